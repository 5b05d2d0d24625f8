"""Commands about all queues of a server, which may be thousands: few trips, and the same output as for one queue."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from jobq import Connection, Queue
from jobq.engine.queue.overview import glances
from jobq.engine.store.packing import pack
from tests.conftest import CLUSTER

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobq.engine.store import Store
    from tests.conftest import Server

    from .conftest import Said

MANY = 250


async def fill(url: str) -> None:
    connection = Connection(url)
    for n in range(MANY):
        async with Queue(f"q{n:03}", connection) as queue:
            await queue.store.register()
            if n % 100 == 7:
                await queue.enqueue("work", {"n": n})
    async with Queue("wide", connection, partitions=4) as queue:
        for n in range(8):
            await queue.enqueue("work", {"n": n})
    await connection.aclose()


async def test_glances_are_what_open_queues_say(connection: Connection, redis_url: str):
    await fill(redis_url)
    names = ["q007", "q008", "wide"]
    seen = await glances([Queue(name, connection) for name in names], connection)
    assert seen[2] is None, "a queue with partitions must be opened"
    for name, glance in zip(names[:2], seen[:2], strict=True):
        assert glance is not None
        async with Queue(name, connection) as queue:
            stats = await queue.stats()
        assert (glance.stats.queue, glance.stats.waiting) == (name, stats.waiting)
        assert glance.quiet == (name == "q008")


@pytest.mark.skipif(CLUSTER, reason="the commands of one server are counted")
@pytest.mark.parametrize("command", ["stats", "queues", "doctor"])
def test_all_queues_are_read_in_few_trips(
    jobq: Callable[..., Said], redis_url: str, server: Server, admin: Store, command: str
):
    async def executed(connection: Connection) -> int:
        (info,) = await connection.trip(pack((b"INFO", b"stats")), 1)
        line = next(line for line in info.splitlines() if line.startswith(b"total_reads_processed"))
        return int(line.partition(b":")[2])

    async def reads() -> int:
        connection = Connection(server.admin_url)
        try:
            return await executed(connection)
        finally:
            await connection.aclose()

    asyncio.run(fill(redis_url))
    before = asyncio.run(reads())
    said = jobq(command, "--json")
    after = asyncio.run(reads())
    # Each page of a hundred queues is three writes. The server may need several reads for one. Four queues are opened.
    assert after - before < MANY
    rows = [json.loads(line) for line in said.out.splitlines()]
    named = {row["queue"] for row in rows if row.get("queue")}
    assert named == {f"q{n:03}" for n in range(MANY)} | {"wide"}
    if command == "stats":
        assert {row["queue"]: row["waiting"] for row in rows if row["waiting"]} == {
            "q007": 1, "q107": 1, "q207": 1, "wide": 8,
        }  # fmt: skip
    if command == "doctor":
        assert [row["queue"] for row in rows if row["level"] == "error"] == ["q007", "q107", "q207", "wide"]
