"""``jobq enqueue`` adds a job from the shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from jobq.cli import render
from jobq.cli.session import one_queue, run

if TYPE_CHECKING:
    import argparse

    from jobq.settings import Settings

OPTIONS = (
    "delay",
    "run_at",
    "id",
    "priority",
    "attempts",
    "backoff",
    "timeout",
    "lifo",
    "key",
    "key_ttl",
    "retention",
    "durability",
    "metadata",
    "limits",
    "slots",
)


def enqueue(args: argparse.Namespace, settings: Settings) -> None:
    """Enqueue, then print the id, or with --wait the result."""

    async def main() -> None:
        given: dict[str, Any] = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
        if given.get("attempts") == "unlimited":
            given["attempts"] = None
        async with one_queue(args.queue, settings, create=args.create or args.queue is None) as queue:
            payload = args.payload or msgspec.Raw(b"{}")
            job = await queue.enqueue(args.type, payload, **given)
            job_id = f"{queue.name}:{job.id}"
            if args.wait is None:
                if args.json:
                    render.say_json({"id": job_id, "duplicate": job.duplicate})
                else:
                    render.say(f"{job_id} (enqueued before, with the same key)" if job.duplicate else job_id)
                return
            result = await queue.result(job.id, timeout=args.wait)
            if args.json:
                render.say_json({"id": job_id, "duplicate": job.duplicate, "result": result})
            else:
                render.say_json(result)

    run(main())
