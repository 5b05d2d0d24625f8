"""One queue over the slots of a real cluster."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from jobq import Queue, State, Unique, Worker
from jobq.cli.doctor_partitions import examine_partitions
from jobq.engine.model.ids import partition_of
from jobq.engine.queue import announce, events, session
from jobq.engine.queue.announce import Announcer
from tests.conftest import wait_until

if TYPE_CHECKING:
    from jobq import Connection
    from tests.local_cluster import LocalCluster

pytestmark = pytest.mark.slow


async def test_a_queue_of_partitions_is_on_all_nodes(connection: Connection, cluster: LocalCluster):
    async with Queue("spread", connection, partitions=8) as queue:

        @queue.task()
        async def double(n: int) -> int:
            return 2 * n

        assert len({part.node.url for part in queue.store.parts}) == 3
        keyed = [await queue.enqueue("double", {"n": n}, unique=Unique(by="n")) for n in range(30) for _ in range(2)]
        assert len({job.id for job in keyed}) == 30
        many = await double.enqueue_many([{"n": n} for n in range(600)])
        singles = [await double.enqueue(n) for n in range(16)]
        assert {partition_of(job.id) for job in (*many, *singles)} == set(range(8))
        assert (await queue.stats()).waiting == 646
        page = await queue.page(State.WAITING, limit=100)
        assert len({row.id for row in page.jobs}) == 100
        await queue.pause()
        await queue.set_partitions(12)
        await queue.resume()
        jobs = [*keyed[::2], *many, *singles, *[await double.enqueue(n) for n in range(24)]]
        assert max(partition_of(job.id) for job in jobs) > 8
        async with Worker(queue, concurrency=50) as worker:
            worker.start()
            results = await asyncio.gather(*(job.result(timeout=30) for job in jobs))
        assert sum(results) == 2 * (sum(range(30)) + sum(range(600)) + sum(range(16)) + sum(range(24)))
        stats = await queue.stats()
        assert (stats.completed, stats.completed_total) == (670, 670)
        page = await queue.page(State.COMPLETED, limit=100)
        times = [row.finished_at or 0 for row in page.jobs]
        assert times == sorted(times, reverse=True)
        assert await queue.remove_all(State.COMPLETED) == 670
        await queue.drop()
        assert await queue.queues() == []


async def test_doctor_looks_at_each_node_that_has_partitions(connection: Connection, cluster: LocalCluster):
    async with Queue("spread", connection, partitions=8) as queue:
        await queue.enqueue("t")
        nodes = cluster.primaries()
        full = nodes[1]
        used = int(full.ask("INFO", "memory").decode().partition("used_memory:")[2].split()[0])
        full.ask("CONFIG", "SET", "maxmemory", int(used * 1.05))
        try:
            found = {one.check: one for one in await examine_partitions(queue) if one.check.startswith("memory of ")}
        finally:
            full.ask("CONFIG", "SET", "maxmemory", 0)
        assert set(found) == {f"memory of 127.0.0.1:{node.port}" for node in nodes}
        assert {check for check, one in found.items() if one.level == "error"} == {f"memory of 127.0.0.1:{full.port}"}


async def test_webhooks_of_a_queue_of_partitions_are_told_of_all_of_them(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    """Also of partitions that are added later. The follower dies once, and the next one goes on."""
    monkeypatch.setattr(announce, "LOOK", 0.02)
    monkeypatch.setattr(events, "GROWTH", 0.05)
    monkeypatch.setattr(session, "FRESH_SECONDS", 0.02)
    async with Queue("spread", connection, partitions=6) as queue, queue.webhook_queue() as deliveries:
        await (await queue.enqueue("old", id="old~5", delay=60)).kill()
        await queue.put_webhook("crm", "https://example.com/hook", events=["killed"])
        ids: list[str] = []

        async def told() -> bool:
            rows = (await deliveries.page(limit=200)).jobs
            return sorted((row.metadata or {})["job"] for row in rows) == sorted(ids)

        for partitions in (6, 9):
            await queue.set_partitions(partitions)
            following = asyncio.create_task(Announcer(queue, deliveries).run())
            for partition in range(partitions):
                job = await queue.enqueue("t", id=f"j{partitions}" + (f"~{partition}" if partition else ""), delay=60)
                await job.kill()
                ids.append(job.id)
            await wait_until(told, "a delivery for each job, and none for the one of before")
            following.cancel()
            await asyncio.wait([following])
            await queue.store.command(b"HDEL", queue.store.keys["webhook_facts"], b"follower")  # Its turn is over.
