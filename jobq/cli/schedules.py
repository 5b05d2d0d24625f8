"""Commands of schedules: ls, show, put, rm, pause, resume, run, backfill, preview, prune."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobq.cli import render
from jobq.cli.session import one_queue, run

if TYPE_CHECKING:
    import argparse

    from jobq.engine.schedule.views import ScheduleRow
    from jobq.settings import Settings

HEAD: Final = ("SCHEDULE", "TYPE", "WHEN", "ZONE", "NEXT", "FROM", "STATE")
LAST_HEAD: Final = ("SLOT", "HOW", "OUTCOME", "MISSED", "JOB")
OPTIONS: Final = (
    "cron", "every", "at", "tz", "exclude", "overlap", "catch_up", "jitter", "from_", "until", "limit", "pause_after",
    "priority", "attempts", "timeout", "limits",
)  # fmt: skip

PREVIEW: Final = ("cron", "every", "at", "tz", "exclude", "from_", "until", "limit")


def ls(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq schedules ls``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            rows = await queue.schedules()
        if args.json:
            for row in rows:
                render.say_json(row)
        elif rows:
            lines = [
                (row.name, row.type, _when(row), row.tz, render.ago(row.next[0]) if row.next else "-", row.source,
                 _state(row))
                for row in rows
            ]  # fmt: skip
            render.say(*render.table(HEAD, lines))
        else:
            render.say("no schedules; write one: jobq schedules put NAME TYPE --cron EXPRESSION")

    run(main())


def show(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq schedules show``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            row = await queue.get_schedule(args.name)
        if args.json:
            render.say_json(row)
            return
        facts = [
            ("schedule", f"{row.name}, {_state(row)}"),
            ("job", f"{row.type} {bytes(row.payload).decode(errors='replace')}"),
            ("when", f"{_when(row)} ({row.tz}): {row.words}"),
            ("overlap", row.overlap), ("catch up", row.catch_up), ("from", row.source), ("slots", str(row.count)),
            ("next", ", ".join(_iso(ms) for ms in row.next) or "-"),
        ]  # fmt: skip
        render.say(*(f"{name:<9} {words}" for name, words in facts))
        if row.last:
            lines = [(_iso(one.slot), one.how, one.outcome or "-", one.missed, one.job_id or "-") for one in row.last]
            render.say("", *render.table(LAST_HEAD, lines))

    run(main())


def put(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq schedules put``."""

    async def main() -> None:
        given: dict[str, Any] = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
        if given.get("attempts") == "unlimited":
            given["attempts"] = None
        async with one_queue(args.queue, settings, create=args.create or args.queue is None) as queue:
            row = await queue.put_schedule(args.name, args.type, args.payload or msgspec.Raw(b"{}"), **given)
        if args.json:
            render.say_json(row)
        else:
            following = render.ago(row.next[0]) if row.next else _state(row)
            render.say(f"wrote {row.name} of {queue.name}: {row.words or _when(row)}; next: {following}")

    run(main())


def rm(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq schedules rm``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            declared = await queue.delete_schedule(args.name)
        if args.json:
            render.say_json({"queue": queue.name, "name": args.name, "declared": declared})
        elif declared:
            render.say(f"removed what operators wrote of {args.name}; it goes on as the code declares it")
        else:
            render.say(f"removed {args.name} of {queue.name}")

    run(main())


def pause(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq schedules pause``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            await queue.pause_schedule(args.name, by=getpass.getuser(), note=args.note)
        _said(args, queue.name, "paused")

    run(main())


def resume(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq schedules resume``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            await queue.resume_schedule(args.name)
        _said(args, queue.name, "resumed")

    run(main())


def run_(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq schedules run``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            job = await queue.run_schedule(args.name)
        job_id = f"{queue.name}:{job.id}"
        if args.json:
            render.say_json({"id": job_id})
        else:
            render.say(job_id)

    run(main())


def backfill(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq schedules backfill``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            ids = [
                f"{queue.name}:{job_id}" for job_id in await queue.backfill_schedule(args.name, args.start, args.end)
            ]
        if args.json:
            render.say_json({"queue": queue.name, "name": args.name, "ids": ids})
        else:
            render.say(f"enqueued {len(ids)} {'job' if len(ids) == 1 else 'jobs'}", *ids)

    run(main())


def preview(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq schedules preview``."""

    async def main() -> None:
        async with one_queue(args.queue, settings, create=True) as queue:
            given: dict[str, Any] = {name: value for name in PREVIEW if (value := getattr(args, name))}
            found = await queue.preview_schedule(after=args.after, count=args.count, **given)
        if args.json:
            render.say_json(found)
        else:
            render.say(found.words, *(moment.isoformat() for moment in found.times))

    run(main())


def prune(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq schedules prune``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            names = await queue.prune_schedules()
        if args.json:
            render.say_json({"queue": queue.name, "names": names})
        else:
            render.say(f"removed {len(names)} orphan{'' if len(names) == 1 else 's'}", *names)

    run(main())


def _said(args: argparse.Namespace, queue: str, word: str) -> None:
    if args.json:
        render.say_json({"queue": queue, "name": args.name, "state": word})
    else:
        render.say(f"{word} {args.name} of {queue}")


def _when(row: ScheduleRow) -> str:
    if row.every is not None:
        return f"every {render.span(row.every / 1000)}"
    return "; ".join(row.cron) or ", ".join(_iso(ms) for ms in row.at[:3]) or "?"


def _state(row: ScheduleRow) -> str:
    words = [
        f"paused by {row.paused.by}{f' ({row.paused.note})' if row.paused.note else ''}" if row.paused else "",
        "orphan" if row.orphan else "",
        "differs from code" if row.differs else "",
        f"error: {row.error}" if row.error else "",
    ]
    return ", ".join(filter(None, words)) or ("on" if row.next else "ended")


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat().replace("+00:00", "Z")
