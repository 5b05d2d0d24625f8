"""``jobq enqueue`` adds a job from the shell."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from jobq.cli import render
from jobq.cli.session import one_queue, run
from jobq.engine.model.unique import Unique
from jobq.errors import InvalidJob, StoreError

if TYPE_CHECKING:
    import argparse

    from jobq.engine.queue.queue import Queue
    from jobq.engine.task.handle import Job
    from jobq.settings import Settings

OPTIONS = (
    "delay",
    "run_at",
    "id",
    "priority",
    "attempts",
    "backoff",
    "timeout",
    "expires",
    "deadline",
    "lifo",
    "key",
    "key_ttl",
    "retention",
    "durability",
    "metadata",
    "limits",
    "group",
    "partition_by",
    "slots",
    "costs",
    "version",
)


UNIQUE = (
    ("by", "by"),
    ("unique_while", "while_"),
    ("unique_for", "for_"),
    ("on_conflict", "on"),
    ("unique_delay", "delay"),
    ("max_wait", "max_wait"),
)
"""The flags of uniqueness, and the arguments of ``Unique``."""


def enqueue(args: argparse.Namespace, settings: Settings) -> None:
    """Enqueue, then print the id, or with --wait the result."""

    async def main() -> None:
        _check_each(args)
        given: dict[str, Any] = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
        if unique := {name: value for flag, name in UNIQUE if (value := getattr(args, flag)) is not None}:
            # Together with one of these, --key is the key of the rule.
            given["unique"] = Unique(key=given.pop("key", None), **unique)
        if given.get("attempts") == "unlimited":
            given["attempts"] = None
        if "costs" in given:
            given["costs"] = dict(given["costs"])
        async with one_queue(args.queue, settings, create=args.create or args.queue is None) as queue:
            if args.each is not None:
                durability = given.pop("durability", None)
                news = [queue.new(args.type, payload, **given) for payload in args.each]
                for job in await queue.enqueue_many(news, durability=durability, spread=args.spread):
                    _say(args, queue.name, job)
                await _tell_unknown(queue, args.type)
                return
            payload = args.payload or msgspec.Raw(b"{}")
            job = await queue.enqueue(args.type, payload, **given)
            if args.wait is None:
                _say(args, queue.name, job)
            await _tell_unknown(queue, args.type)
            if args.wait is None:
                return
            job_id = f"{queue.name}:{job.id}"
            result = await queue.result(job.id, timeout=args.wait)
            if args.json:
                render.say_json({"id": job_id, "duplicate": job.duplicate} | _holder(job) | {"result": result})
            else:
                render.say_json(result)

    run(main())


async def _tell_unknown(queue: Queue, type_: str) -> None:
    """A mistyped type is enqueued, because its worker may start later. Say so at once, and not after a day."""
    known: list[str] = []
    with suppress(StoreError):  # The job is enqueued.
        known = [row.type for row in await queue.types()]
    if known and type_ not in known:
        render.complain(
            f"no worker or server has published the type {type_!r}: the job waits for a worker that has it; known: "
            + ", ".join(known[:20])
        )


def _check_each(args: argparse.Namespace) -> None:
    """Refuse what does not fit to --each.

    :raises InvalidJob: something does not.
    """
    if args.each is None:
        if args.spread is not None:
            raise InvalidJob("--spread spreads the jobs of --each; a single job takes --delay")
        return
    for name, shown in (("payload", "JSON"), ("id", "--id"), ("wait", "--wait")):
        if getattr(args, name) is not None:
            raise InvalidJob(f"--each adds a job for each line, so leave {shown} out")


def _say(args: argparse.Namespace, queue: str, job: Job[Any]) -> None:
    job_id = f"{queue}:{job.id}"
    if args.json:
        render.say_json({"id": job_id, "duplicate": job.duplicate} | _holder(job))
    else:
        render.say(f"{job_id}{_remark(job)}")


def _holder(job: Job[Any]) -> dict[str, Any]:
    return {"state": job.state, "done": job.done} if job.duplicate or job.done else {}


_OVER = {
    "dropped": " (dropped: a limit had no room)",
    "replaced_oldest": " (replaced the oldest job of its limit key)",
    "killed_running": " (a running job of its limit key was killed for it)",
}


def _remark(job: Job[Any]) -> str:
    if job.duplicate:
        return f" (this job holds the key: it is {job.state or 'gone'}, and was {job.done})"
    return _OVER[job.done] if job.done else ""
