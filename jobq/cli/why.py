"""``jobq why``: why a job does not run, or why a queue runs none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from jobq.cli import render
from jobq.cli.session import all_queues, one_queue, run, split_id

if TYPE_CHECKING:
    import argparse

    from jobq.engine.model.why import Why
    from jobq.settings import Settings


def why(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq why``. Without an ID it is about queues."""
    run(_of_queues(args, settings) if args.id is None else _of_job(args, settings))


async def _of_job(args: argparse.Namespace, settings: Settings) -> None:
    name, job_id = split_id(args.id, args.queue)
    async with one_queue(name, settings) as queue:
        answer = await queue.why(job_id)
        full_id = f"{queue.name}:{job_id}"
    if args.json:
        render.say_json({"id": full_id, **msgspec.to_builtins(answer)})
    else:
        render.say(f"{full_id} is {answer.state}", *_reasons(answer), *starts(answer))


async def _of_queues(args: argparse.Namespace, settings: Settings) -> None:
    async with all_queues(args.queue, settings) as queues:
        for queue in queues:
            answer = await queue.why()
            if args.json:
                render.say_json({"queue": queue.name, **msgspec.to_builtins(answer)})
            else:
                clear = [] if answer.reasons else ["- Nothing is in the way: workers take its jobs."]
                render.say(f"queue {queue.name}", *_reasons(answer), *clear)


def _reasons(answer: Why) -> list[str]:
    return [f"- {reason.detail}" for reason in answer.reasons]


def starts(answer: Why) -> list[str]:
    """When the job starts, as a sentence. None if it has started."""
    if answer.state is None or answer.state in ("active", "completed", "failed"):
        return []
    if answer.starts_in_ms is None:
        return ["Nobody can know when it starts."]
    return [
        f"It starts in about {render.span(answer.starts_in_ms / 1000)}." if answer.starts_in_ms else "It starts now."
    ]
