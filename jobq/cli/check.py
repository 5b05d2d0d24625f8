"""``jobq check``: whether this code can run the jobs that a queue holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from jobq.cli import render
from jobq.cli.session import all_queues, is_target, run
from jobq.engine.queue.pages import UNFINISHED
from jobq.errors import TargetError

if TYPE_CHECKING:
    import argparse

    from jobq.engine.queue.checking import CheckReport, Misfit
    from jobq.settings import Settings


def check(args: argparse.Namespace, settings: Settings) -> int:
    """``jobq check TARGET``. Returns 1 if the code cannot run all of the jobs."""
    if not is_target(args.target):
        raise TargetError(f"{args.target!r} is not a target; write package.module:name or path/file.py:name")

    async def main() -> int:
        fits = True
        async with all_queues(args.target, settings) as queues:
            for queue in queues:
                report = await queue.check_jobs(args.state or UNFINISHED, limit=args.limit)
                fits &= report.fits
                if args.json:
                    render.say_json(_shown(report))
                else:
                    render.say(*_lines(report))
        return 0 if fits else 1

    return run(main())


def _shown(report: CheckReport) -> dict[str, Any]:
    return {"fits": report.fits, **msgspec.to_builtins(report)}


def _lines(report: CheckReport) -> list[str]:
    more = "" if report.complete else ", and there are more"
    read = f"queue {report.queue}: {_count(report.jobs, 'job')} and {_count(report.schedules, 'schedule')} read{more}"
    if not report.misfits:
        return [f"{read}. This code can run all of them."]
    return [f"{read}.", *(f"- {_line(misfit, report.queue)}" for misfit in report.misfits)]


def _line(misfit: Misfit, queue: str) -> str:
    of = f"of type {misfit.type}" + (f", version {misfit.version}" if misfit.version else "")
    example = f"{queue}:{misfit.example}" if misfit.kind == "job" else misfit.example
    return f"{misfit.severity}: {_count(misfit.count, misfit.kind)} {of}: {misfit.reason}. For example {example}"


def _count(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"
