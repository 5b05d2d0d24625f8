"""Commands that look and change nothing: stats, workers, ls, show, logs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec.structs import replace

from jobq.cli import render
from jobq.cli.session import all_queues, one_queue, run, split_id
from jobq.engine.model.job import JobBrief, JobRow, State, WorkerRow

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from jobq.engine.queue.queue import Queue
    from jobq.settings import Settings

PAGE = 200


def stats(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq stats``."""

    async def main() -> None:
        async with all_queues(args.queue, settings) as queues:
            found = [await queue.stats() for queue in queues]
        if args.json:
            for one in found:
                render.say_json(one)
        elif found:
            render.say(*render.table(render.STATS_HEAD, [render.stats_row(one) for one in found]))
        else:
            render.say("no queues yet: enqueue a job, or start a worker")

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
            render.say("no workers; start some: jobq work TARGET")

    run(main())


async def known_workers(queues: list[Queue]) -> list[WorkerRow]:
    """The workers of all these queues, each once."""
    found: dict[str, WorkerRow] = {}
    for queue in queues:
        for row in await queue.workers():
            known = found.get(row.id)
            # Each queue has a row of its own for the worker.
            found[row.id] = replace(row, queues=sorted({*known.queues, *row.queues})) if known else row
    return list(found.values())


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
                page = await look(state, type=args.type, limit=limit, cursor=cursor)
                _print_jobs(page.jobs, as_json=args.json, first=first)
                first, cursor = False, page.cursor
                left = None if left is None else left - len(page.jobs)
                if cursor is None:
                    return
            if not args.json:
                render.say("... there are more: --limit N or --all")

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
        else:
            render.say(*render.job_lines(row))

    run(main())


def logs(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq logs``."""

    async def main() -> None:
        name, job_id = split_id(args.id, args.queue)
        async with one_queue(name, settings) as queue:
            for line in await queue.logs(job_id):
                if args.json:
                    render.say_json(line)
                else:
                    render.say(*render.log_lines(line))

    run(main())
