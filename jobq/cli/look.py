"""Commands that only read: queues, stats, workers, ls, show, logs."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from jobq.cli import render
from jobq.cli.session import Queues, all_queues, one_queue, run, split_id
from jobq.engine.model.history import window_of
from jobq.engine.model.job import LogLine, State

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from jobq.engine.model.views import JobBrief, JobRow, Stats, WorkerRow
    from jobq.engine.queue.queue import Queue
    from jobq.settings import Settings

PAGE = 200
_UNSTARTED = (State.WAITING, State.HELD, State.DELAYED, State.BLOCKED)


def stats(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq stats``. With --window it shows the types instead."""
    if args.window is not None:
        _performance(args, settings)
        return
    _of_queues(args, settings, render.STATS_HEAD, render.stats_row)


def _performance(args: argparse.Namespace, settings: Settings) -> None:
    window_of(args.window)

    async def main() -> None:
        async with all_queues(args.queue, settings) as queues:
            found = [await queue.performance(args.window) for queue in queues]
        if args.json:
            for one in found:
                render.say_json(one)
        elif lines := [
            render.numbers_row(one.queue, row) for one in found for row in (one.all, *one.types) if row.runs
        ]:
            render.say(*render.table(render.NUMBERS_HEAD, lines))
        else:
            render.say(f"no run has ended in the last {args.window}")

    run(main())


def queues(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq queues``. With --types it lists the types instead."""
    if args.types:
        _types(args, settings)
        return
    _of_queues(args, settings, render.QUEUES_HEAD, render.queue_row, as_json=render.queue_facts)


def _types(args: argparse.Namespace, settings: Settings) -> None:
    async def main() -> None:
        async with all_queues(args.queue, settings) as queues:
            found = [(queue.name, row) for queue in queues for row in await queue.types()]
        if args.json:
            for name, row in found:
                render.say_json({"queue": name, **msgspec.to_builtins(row)})
        elif found:
            render.say(*render.table(render.TYPES_HEAD, [render.type_row(name, row) for name, row in found]))
        else:
            render.say("there are no types; workers and servers publish them when they start: jobq work TARGET")

    run(main())


def _of_queues(
    args: argparse.Namespace,
    settings: Settings,
    head: Sequence[str],
    row: Callable[[Stats], tuple[Any, ...]],
    *,
    as_json: Callable[[Stats], Any] = lambda one: one,
) -> None:
    async def main() -> None:
        async with Queues(settings) as opened:
            found = await opened.stats(args.queue)
            if args.json:
                for one in found:
                    render.say_json(as_json(one))
            elif found:
                render.say(*render.table(head, [row(one) for one in found]))
            else:
                render.say(opened.nothing)

    run(main())


def workers(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq workers``."""

    async def main() -> None:
        async with all_queues(args.queue, settings) as queues:
            rows = await known_workers(queues)
        if args.json:
            for row in rows:
                render.say_json(row)
        elif rows:
            render.say(*render.table(render.WORKERS_HEAD, [render.worker_line(row) for row in rows]))
        else:
            render.say("there are no workers; start some with jobq work TARGET")

    run(main())


async def known_workers(queues: list[Queue]) -> list[WorkerRow]:
    """The workers of all these queues, without duplicates."""
    found: dict[str, WorkerRow] = {}
    for queue in queues:
        for row in await queue.workers():
            known = found.get(row.id)
            # A worker has one row in each of its queues, with the reason why its last claim there brought nothing.
            found[row.id] = _merged(known, row) if known else row
    return list(found.values())


def _merged(known: WorkerRow, row: WorkerRow) -> WorkerRow:
    queues, same = sorted({*known.queues, *row.queues}), known.idle == row.idle
    return replace(row, queues=queues, idle=row.idle if same else "", idle_until=row.idle_until if same else None)


def ls(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq ls``."""

    async def main() -> None:
        state = State(args.state) if args.state else None
        left = None if args.all else args.limit
        cursor: str | None = None
        first = True
        async with one_queue(args.queue, settings) as queue:
            while left is None or left > 0:
                limit = PAGE if left is None else min(PAGE, left)
                look = queue.page if args.json else queue.briefs
                page = await look(state, type=args.type, group=args.group, limit=limit, cursor=cursor)
                _print_jobs(page.jobs, as_json=args.json, first=first)
                first, cursor = False, page.cursor
                left = None if left is None else left - len(page.jobs)
                if cursor is None:
                    return
            if not args.json:
                render.say("... there are more jobs; list them with --limit N or --all")

    run(main())


def _print_jobs(rows: Sequence[JobRow | JobBrief], *, as_json: bool, first: bool) -> None:
    if as_json:
        for row in rows:
            render.say_json(row)
        return
    now = time.time() * 1000
    head, *lines = render.table(render.JOBS_HEAD, [render.job_line(row, now) for row in rows])
    render.say(*([head] if first else []), *lines)


def show(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq show``."""

    async def main() -> None:
        name, job_id = split_id(args.id, args.queue)
        async with one_queue(name, settings) as queue:
            row = await queue.get(job_id)
            if args.json:
                render.say_json(row)
                return
            why = await queue.why(job_id) if row.state in _UNSTARTED else None
        render.say(*render.job_lines(row, why))

    run(main())


def logs(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq logs``. With --follow it runs until the job is finished."""

    async def main() -> None:
        name, job_id = split_id(args.id, args.queue)
        async with one_queue(name, settings) as queue:
            shown: list[LogLine] = []
            finished = not args.follow
            while True:
                # Read the state first. Lines that were logged before the job ended are then not missed.
                finished = finished or (await queue.get(job_id)).state in (State.COMPLETED, State.FAILED)
                lines = await queue.logs(job_id)
                for line in unseen(shown, lines):
                    if args.json:
                        render.say_json(line)
                    else:
                        render.say(*render.log_lines(line))
                if finished:
                    return
                shown = lines
                await asyncio.sleep(args.interval)

    run(main())


def unseen(shown: list[LogLine], lines: list[LogLine]) -> list[LogLine]:
    """The lines after those already shown. Redis keeps the last 64 KiB, so the first ones may be gone."""
    for kept in range(min(len(shown), len(lines)), 0, -1):
        if shown[-kept] == lines[0] and shown[-kept:] == lines[:kept]:
            return lines[kept:]
    return lines
