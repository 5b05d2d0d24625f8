"""Commands of groups: groups ls, show, set, pause, resume, reset and charge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobq.cli import render
from jobq.cli.session import one_queue, run
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    import argparse

    from jobq.engine.model.groups import GroupRow
    from jobq.settings import Settings

HEAD = ("GROUP", "HELD", "ACTIVE", "OLDEST", "WEIGHT", "PAUSED", "MAX QUEUED")


def ls(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq groups ls``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            rows = await queue.groups(sort=args.sort, limit=args.limit)
        if args.json:
            for row in rows:
                render.say_json(row)
        elif rows:
            render.say(*render.table(HEAD, [_line(row) for row in rows]))
        else:
            render.say("no groups now; a job gets one with group=... or enqueue --group")

    run(main())


def show(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq groups show``. A group without jobs and settings has its defaults."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            row = await queue.group(args.group)
        if args.json:
            render.say_json(row)
        else:
            render.say(*(f"{name.lower():<10} {words}" for name, words in zip(HEAD, _line(row), strict=True)))

    run(main())


def _line(row: GroupRow) -> tuple[Any, ...]:
    return (
        row.group, row.held, row.active, render.ago(row.oldest), f"{row.weight:g}", "yes" if row.paused else "no",
        "any" if row.max_queued is None else row.max_queued,
    )  # fmt: skip


def set_(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq groups set``."""

    async def main() -> None:
        most: Any = None if args.most == "any" else args.most
        given = {"weight": args.weight, "paused": args.paused, "max_queued": most}
        named = {name for name in given if getattr(args, "most" if name == "max_queued" else name) is not None}
        if not named:
            raise InvalidJob("nothing is to be set: give --weight, --paused, --no-paused or --max-queued")
        async with one_queue(args.queue, settings) as queue:
            new = await queue.set_group(args.group, **{name: given[name] for name in named})
            if args.json:
                render.say_json({"queue": queue.name, "group": args.group, "settings": new})
            else:
                most = "any number of jobs"
                if new.max_queued is not None:
                    most = f"at most {new.max_queued} {'job' if new.max_queued == 1 else 'jobs'}"
                paused = ", paused" if new.paused else ""
                render.say(f"set {args.group} of {queue.name}: weight {new.weight:g}, {most} queued{paused}")

    run(main())


def pause(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq groups pause``."""
    _switch(args, settings, paused=True)


def resume(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq groups resume``."""
    _switch(args, settings, paused=False)


def _switch(args: argparse.Namespace, settings: Settings, *, paused: bool) -> None:
    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            await queue.set_group(args.group, paused=paused)
            if args.json:
                render.say_json({"queue": queue.name, "group": args.group, "paused": paused})
            else:
                render.say(f"{'paused' if paused else 'resumed'} {args.group} of {queue.name}")

    run(main())


def reset(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq groups reset``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            await queue.reset_group(args.group)
            if args.json:
                render.say_json({"queue": queue.name, "group": args.group, "settings": None})
            else:
                render.say(f"reset {args.group} of {queue.name}: weight 1, not paused, any number of jobs queued")

    run(main())


def charge(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq groups charge``. Without a word it shows what is set."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            if args.charge is not None:
                await queue.set_charge(args.charge)
            now = args.charge or await queue.get_charge()
            if args.json:
                render.say_json({"queue": queue.name, "charge": now})
            else:
                pays = "the time that its jobs run" if now == "actual" else "one job"
                render.say(f"{queue.name}: a turn of a group costs {pays} ({now})")

    run(main())
