"""The part of the parser with the commands of schedules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, get_args

from jobq.cli import values
from jobq.cli.menu import Menu, command
from jobq.engine.schedule.definition import CatchUp, Overlap

if TYPE_CHECKING:
    import argparse

_TIME: Final[dict[str, Any]] = {"type": values.seconds, "metavar": "TIME"}
_MOMENT: Final[dict[str, Any]] = {"type": values.moment, "metavar": "WHEN"}
SCHEDULES: Final = "'schedules ls', 'show', 'put', 'rm', 'pause', 'resume', 'run', 'backfill', 'preview', 'prune'"


def add_schedules(menu: Menu) -> None:
    """Add the commands."""

    def add(name: str, run: str, words: str, *, named: bool = True) -> argparse.ArgumentParser:
        parser = command(menu, name, f"schedules:{run}", words, shown=True, queue=True)
        if named:
            parser.add_argument("name", metavar="NAME", help="the schedule")
        return parser

    add("ls", "ls", "list the schedules, each with its next slot", named=False)
    add("show", "show", "show a schedule with its next and its last five slots")
    put = add("put", "put", "write a schedule, in place of what code declares")
    put.add_argument("type", metavar="TYPE", help="the type of its jobs")
    put.add_argument(
        "payload", metavar="JSON", nargs="?", type=values.payload, help="the handler's arguments (default: {})"
    )
    put.add_argument("--create", action="store_true", help="let --queue name a queue that does not exist yet")
    put.add_argument("--cron", action="append", metavar="EXPRESSION", help="5 fields, or 6 with seconds first")
    _add_times(put)
    put.add_argument("--overlap", choices=get_args(Overlap), help="while an earlier job is unfinished (default: skip)")
    put.add_argument("--catch-up", choices=get_args(CatchUp), help="for slots at which no worker ran (default: last)")
    put.add_argument("--jitter", **_TIME, help="let the slots come later by a fixed time of at most this length")
    put.add_argument("--pause-after", type=values.whole(1), metavar="N", help="pause it after N failures in a row")
    put.add_argument("--priority", type=values.integer, metavar="N", help="lower numbers run first")
    put.add_argument("--attempts", type=values.attempts, metavar="N", help="total number of runs, or unlimited")
    put.add_argument("--timeout", **_TIME, help="limit of one run")
    put.add_argument("--limits", action="append", metavar="KEY", help="a limit key; may be repeated")
    add("rm", "rm", "remove what operators wrote, or a schedule that no code declares")
    pause = add("pause", "pause", "let no slot come until it is resumed")
    pause.add_argument("--note", default="", metavar="TEXT", help="why; it is shown with the schedule")
    add("resume", "resume", "let slots come again")
    add("run", "run_", "enqueue a job now, besides the slots, and print its id")
    backfill = add("backfill", "backfill", "enqueue jobs for earlier slots that got none")
    backfill.add_argument("start", help="the first moment: 2030-01-31T08:00:00+01:00", **_MOMENT)
    backfill.add_argument("end", help="the last moment", **_MOMENT)
    preview = add("preview", "preview", "print when the slots of a schedule would be", named=False)
    preview.add_argument("cron", metavar="EXPRESSION", nargs="*", help="5 fields, or 6 with seconds first")
    _add_times(preview)
    preview.add_argument("--after", **_MOMENT, help="the first times after this one (default: now)")
    preview.add_argument("--count", type=values.whole(1), default=5, metavar="N", help="how many (default: 5)")
    add("prune", "prune", "remove the schedules that no program's code declares any more", named=False)


def _add_times(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--every", **_TIME, help="the time between two slots")
    parser.add_argument("--at", action="append", **_MOMENT, help="a time: 2030-01-31T08:00:00+01:00; may be repeated")
    parser.add_argument("--tz", metavar="ZONE", help="the time zone of the expressions, such as Europe/Berlin")
    parser.add_argument("--exclude", action="append", metavar="EXPRESSION", help="leave these times out")
    parser.add_argument("--from", dest="from_", **_MOMENT, help="no slot before this time")
    parser.add_argument("--until", **_MOMENT, help="no slot after this time")
    parser.add_argument("--limit", type=values.whole(1), metavar="N", help="only so many slots get a job")
