"""Commands that change jobs: retry, kill, promote, priority, rm; or a queue: pause, resume, aging, queue rm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobq.cli import render
from jobq.cli.session import Queues, one_queue, run, split_id
from jobq.engine.model.job import State
from jobq.errors import JobqError, QueueInUse

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from jobq.settings import Settings


def retry(args: argparse.Namespace, settings: Settings) -> int:
    """``jobq retry``."""
    if args.all:
        return _all(args, settings, "retrying", "retried", "retry_all")
    return _each(args, settings, "retried", "retry")


def rm(args: argparse.Namespace, settings: Settings) -> int:
    """``jobq rm``."""
    if args.all:
        if not args.state:
            return _refuse("say of which state: --state failed --all")
        return _all(args, settings, "removing", "removed", "remove_all")
    return _each(args, settings, "removed", "remove")


def kill(args: argparse.Namespace, settings: Settings) -> int:
    """``jobq kill``."""
    if args.all:
        if not args.state:
            return _refuse("say of which state: --state held --all")
        return _all(args, settings, "killing", "killed", "kill_all")
    return _each(args, settings, "killed", "kill")


def promote(args: argparse.Namespace, settings: Settings) -> int:
    """``jobq promote``."""
    if args.all:
        return _all(args, settings, "promoting", "promoted", "promote_all")
    return _each(args, settings, "promoted", "promote")


def priority(args: argparse.Namespace, settings: Settings) -> int:
    """``jobq priority``."""
    if args.all:
        if not args.state:
            return _refuse("say of which state: --state held --all")
        return _all(args, settings, "moving", "moved", "reprioritise_all", priority=args.priority)
    return _each(args, settings, "moved", "reprioritise", args.priority)


def pause(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq pause``."""
    _switch(args, settings, "pause", paused=True)


def resume(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq resume``."""
    _switch(args, settings, "resume", paused=False)


def queue_rm(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq queue rm``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            try:
                await queue.drop(force=args.force)
            except QueueInUse as error:
                raise JobqError(str(error).replace("force", "--force")) from None
            if args.json:
                render.say_json({"queue": queue.name, "removed": True})
            else:
                render.say(f"removed queue {queue.name}")

    run(main())


def rerun(args: argparse.Namespace, settings: Settings) -> int:
    """``jobq rerun``: enqueue a job again as a new one, and print its id."""

    async def main() -> int:
        async with Queues(settings) as queues:
            name, job_id = split_id(args.id, args.queue)
            queue = await queues.one(name)
            given: dict[str, Any] = {} if args.payload is None else {"payload": args.payload}
            options = {name: getattr(args, name) for name in ("priority", "delay") if getattr(args, name) is not None}
            job = await queue.rerun(job_id, **given, **options)
            new_id = f"{queue.name}:{job.id}"
            if args.json:
                render.say_json({"id": new_id, "rerun_of": f"{queue.name}:{job_id}"})
            else:
                render.say(new_id)
        return 0

    return run(main())


def aging(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq aging``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            await queue.set_aging(args.time)
            if args.json:
                render.say_json({"queue": queue.name, "aging": args.time})
            elif args.time is None:
                render.say(f"{queue.name}: priorities are absolute")
            else:
                render.say(f"{queue.name}: a step of priority is worth {render.span(args.time)} of waiting")

    run(main())


def _switch(args: argparse.Namespace, settings: Settings, verb: str, *, paused: bool) -> None:
    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            await getattr(queue, verb)()
            if args.json:
                render.say_json({"queue": queue.name, "paused": paused})
            else:
                render.say(f"{verb}d {queue.name}")

    run(main())


def _each(args: argparse.Namespace, settings: Settings, done: str, verb: str, *more: Any) -> int:
    """Change the named jobs. One that cannot be changed is reported, and the others are still changed."""
    if not args.ids:
        return _refuse("say which job: ID" + (", or --all" if "all" in args else ""))

    async def main() -> int:
        code = 0
        async with Queues(settings) as queues:
            for word in args.ids:
                name, job_id = split_id(word, args.queue)
                queue = await queues.one(name)
                try:
                    await getattr(queue, verb)(job_id, *more)
                except JobqError as error:
                    render.complain(str(error))
                    code = 1
                    continue
                if args.json:
                    render.say_json({"id": f"{queue.name}:{job_id}", done: True})
                else:
                    render.say(f"{done} {queue.name}:{job_id}")
        return code

    return run(main())


def _all(args: argparse.Namespace, settings: Settings, doing: str, done: str, verb: str, **more: Any) -> int:
    """Change all jobs of a state, in pages, with a progress bar."""
    if args.ids:
        return _refuse("either IDs or --all, not both")

    async def main() -> int:
        state = State(args.state)
        async with one_queue(args.queue, settings) as queue:
            total = getattr(await queue.stats(), state)
            total = min(total, args.limit or total)
            given: dict[str, Any] = {"group": args.group, "limit": args.limit} | more
            if hasattr(args, "older_than"):
                given["older_than"] = args.older_than
            move: Callable[..., Awaitable[int]] = getattr(queue, verb)
            with render.progress(f"{doing} jobs of {queue.name}", total, quiet=args.json) as heard:
                count = await move(state, **given, progress=heard)
            if args.json:
                render.say_json({"queue": queue.name, "state": state, done: count})
            else:
                render.say(f"{done} {count} {state} {'job' if count == 1 else 'jobs'} of {queue.name}")
        return 0

    return run(main())


def _refuse(words: str) -> int:
    render.complain(words)
    return 2
