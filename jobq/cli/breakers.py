"""Commands of circuit breakers: breakers ls, trip, reset and rm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobq.cli import render
from jobq.cli.session import one_queue, run

if TYPE_CHECKING:
    import argparse

    from jobq.engine.model.breaker import BreakerRow
    from jobq.settings import Settings

HEAD = ("TYPE", "STATE", "OPENS AT", "FAILED", "HELD", "ACTIVE", "UNTIL")


def ls(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq breakers ls``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            rows = await queue.breakers()
        if args.json:
            for row in rows:
                render.say_json(row)
        elif rows:
            render.say(*render.table(HEAD, [_line(row) for row in rows]))
        else:
            render.say("no circuit breakers; declare one: @queue.task(breaker=Breaker(...))")

    run(main())


def _line(row: BreakerRow) -> tuple[str | int, ...]:
    limit = f"{row.rate * 100:g}% of {row.runs}"
    return (
        row.type, row.state, limit, f"{row.failed} of {row.seen}", row.held, row.active,
        render.ago(row.open_until),
    )  # fmt: skip


def trip(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq breakers trip``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            row = await queue.trip_breaker(args.type, args.time)
            if args.json:
                render.say_json(row)
            else:
                render.say(
                    f"tripped {row.type} of {queue.name}: it is open, and one job runs {render.ago(row.open_until)}"
                )

    run(main())


def reset(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq breakers reset``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            row = await queue.reset_breaker(args.type)
            if args.json:
                render.say_json(row)
            else:
                render.say(f"reset {row.type} of {queue.name}: it is closed")

    run(main())


def rm(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq breakers rm``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            returns = await queue.remove_breaker(args.type)
            if args.json:
                render.say_json({"queue": queue.name, "type": args.type, "returns": returns})
            else:
                back = render.COMES_BACK if returns else ""
                render.say(f"removed the breaker of {args.type} of {queue.name}{back}")

    run(main())
