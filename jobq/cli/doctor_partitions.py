"""What ``jobq doctor`` finds, and what it looks at in the partitions of a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

import msgspec

from jobq.cli import render
from jobq.engine.store.fitness import facts_of

if TYPE_CHECKING:
    from jobq.engine.queue.queue import Queue

MANY: Final = 10_000
"""Fewer jobs in a partition are no reason to worry about an uneven spread."""
NEAR_FULL: Final = 0.85
"""A server that uses so much of its maxmemory is nearly full."""
UNEVEN: Final = 3
"""A partition with so many times its share of the jobs is reported."""


class Finding(msgspec.Struct, frozen=True):
    """What was looked at, how it is, and what to type. ``queue`` '': it is about the server."""

    check: str
    level: Literal["ok", "warning", "error"]
    message: str
    fix: str = ""
    queue: str = ""


def memory_of(facts: dict[str, str], queue: str = "", node: str = "") -> Finding:
    """How full a server is, or the ``node`` of a cluster that has partitions of this queue."""
    used, most = int(facts.get("used_memory", 0)), int(facts.get("maxmemory", 0))
    check, server = (f"memory of {node}", f"node {node}") if node else ("memory", "the server")
    if most and used > NEAR_FULL * most:
        words = f"{server} uses {used >> 20} of {most >> 20} MiB; at maxmemory enqueues are refused"
        fix = "redis-cli -u URL CONFIG SET maxmemory BYTES, or keep fewer finished jobs"
        return Finding(check, "error", words, fix, queue)
    return Finding(check, "ok", f"{used >> 20} MiB" + (f" of {most >> 20} MiB" if most else ""), queue=queue)


async def examine_nodes(queue: Queue) -> list[Finding]:
    """The memory of each node of a cluster that has partitions of this queue."""
    nodes = {part.node: part for part in queue.store.parts}
    question = ((b"INFO", b"memory"),)
    return [
        memory_of(facts_of(await part.commands(*question), question), queue.name, _address(node.url))
        for node, part in nodes.items()
    ]


def _address(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}"


async def examine_partitions(queue: Queue) -> list[Finding]:
    """The number of partitions, their workers, and how evenly the jobs are spread."""
    row, name = await queue.get_partitions(), queue.name
    found = [Finding("partitions", "ok", render.number_of(row.partitions, "partition"), queue=name)]
    if queue.partitions not in (None, row.partitions):
        words = f"the code declares {queue.partitions} partitions, and {row.partitions} are stored, which count"
        fix = f"jobq partitions set {queue.partitions} --queue {name}, or declare {row.partitions}"
        found.append(Finding("declared partitions", "warning", words, fix, name))
    if left := [number for number, jobs in enumerate(row.jobs) if jobs and number >= row.partitions]:
        words = (
            f"{render.number_of(sum(row.jobs[number] for number in left), 'job')} in"
            f" {render.number_of(len(left), 'partition')} that get no new ones: workers drain them"
        )
        found.append(Finding("drained partitions", "ok", words, queue=name))
    alone: list[int] = []
    alive = any(worker.alive for worker in await queue.workers())
    for part, jobs in zip(queue.store.parts, row.jobs, strict=False):
        # A worker is in the registry of each partition that it serves. Its row is written rarely in all but the first.
        if alive and jobs and not await part.command(b"ZCARD", part.keys["workers"]):
            alone.append(part.partition)
    if alone:
        words = (
            f"no worker serves partitions {', '.join(map(str, alone[:10]))}, which have jobs, though some serve others"
        )
        found.append(Finding("partition workers", "error", words, "restart the workers of this queue", name))
    most, total = max(row.jobs), sum(row.jobs)
    if most > MANY and most * len(row.jobs) > UNEVEN * total:
        words = f"partition {row.jobs.index(most)} has {most:,} of {total:,} unfinished jobs"
        fix = "look whether one key, group or partition_by has most of the jobs"
        found.append(Finding("uneven partitions", "warning", words, fix, name))
    if queue.store.connection.in_cluster:
        found += await examine_nodes(queue)
    return found
