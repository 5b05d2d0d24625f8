"""``jobq enqueue`` adds a job from the shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from jobq.cli import render
from jobq.cli.session import one_queue, run
from jobq.engine.model.unique import Unique

if TYPE_CHECKING:
    import argparse

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
        given: dict[str, Any] = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
        if unique := {name: value for flag, name in UNIQUE if (value := getattr(args, flag)) is not None}:
            # Together with one of these, --key is the key of the rule.
            given["unique"] = Unique(key=given.pop("key", None), **unique)
        if given.get("attempts") == "unlimited":
            given["attempts"] = None
        if "costs" in given:
            given["costs"] = dict(given["costs"])
        async with one_queue(args.queue, settings, create=args.create or args.queue is None) as queue:
            payload = args.payload or msgspec.Raw(b"{}")
            job = await queue.enqueue(args.type, payload, **given)
            job_id = f"{queue.name}:{job.id}"
            if args.wait is None:
                if args.json:
                    render.say_json({"id": job_id, "duplicate": job.duplicate} | _holder(job))
                else:
                    render.say(f"{job_id}{_remark(job)}")
                return
            result = await queue.result(job.id, timeout=args.wait)
            if args.json:
                render.say_json({"id": job_id, "duplicate": job.duplicate} | _holder(job) | {"result": result})
            else:
                render.say_json(result)

    run(main())


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
