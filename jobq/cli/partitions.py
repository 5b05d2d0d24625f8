"""Commands of partitions: partitions show and set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobq.cli import render
from jobq.cli.session import one_queue, run

if TYPE_CHECKING:
    import argparse

    from jobq.engine.queue.partitions import PartitionRow
    from jobq.settings import Settings


def show(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq partitions show``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            _say(args, queue.name, await queue.get_partitions())

    run(main())


def set_(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq partitions set``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            _say(args, queue.name, await queue.set_partitions(args.partitions))

    run(main())


def _say(args: argparse.Namespace, name: str, row: PartitionRow) -> None:
    if args.json:
        render.say_json(
            {
                "queue": name,
                "partitions": row.partitions,
                "homes": row.homes,
                "most": row.most,
                "jobs": row.jobs,
            }
        )
        return
    keys = f"jobs with keys in {row.homes} of them" if row.homes else "no job with keys yet"
    render.say(
        f"{name}: {render.number_of(row.partitions, 'partition')}, {keys}, {row.most} at most so far",
        *render.table(("PARTITION", "JOBS"), list(enumerate(row.jobs))),
    )
