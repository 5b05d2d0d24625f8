"""A cluster under load: slots move, primaries die or hang, nodes come and go. No acknowledged job is lost."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

import pytest
from redis.crc import key_slot

from jobq import Connection, Queue, Worker
from jobq.engine.model.ids import new_id, partition_of
from jobq.errors import StoreError
from tests.cluster.test_cluster import ATOMIC, NAMES
from tests.conftest import wait_until
from tests.local_cluster import LocalCluster, Node, slot_of, start_cluster, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow


REGISTRY = key_slot(b"jobq:queues")
"""The slot of the list of queues."""


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """A cluster of its own for each test, because the tests change it for good."""
    cluster = start_cluster()
    yield cluster
    cluster.stop()


class Load:
    """Producers and a worker for queues on three nodes. Every enqueue waits for a copy on a replica."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.connection = Connection(cluster.url, timeout=2.0)
        self.queues = [Queue(name, self.connection, durability="replicated", durability_timeout=1.0) for name in NAMES]
        self.acknowledged: dict[str, list[str]] = {name: [] for name in NAMES}
        self.runs: Counter[str] = Counter()
        self._stack = AsyncExitStack()
        self._producing = True
        self._producers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for queue in self.queues:

            @queue.task(attempts=50)
            async def work(id: str) -> int:
                self.runs[id] += 1
                return 1

            await self._stack.enter_async_context(queue)
        worker = await self._stack.enter_async_context(Worker(*self.queues, lease=3, concurrency=20, grace=5))
        worker.start()
        self._producers = [asyncio.create_task(self._produce(queue)) for queue in self.queues for _ in range(2)]
        await self.more(20)
        return self

    async def _produce(self, queue: Queue) -> None:
        while self._producing:
            job_id = str(new_id())
            job = queue.new("work", {"id": job_id}, id=job_id)
            while True:
                try:
                    await queue.submit(job)
                    break
                except StoreError:
                    await asyncio.sleep(0.05)
            self.acknowledged[queue.name].append(job_id)
            await asyncio.sleep(0)

    async def more(self, count: int) -> None:
        """Wait until each queue has acknowledged so many further jobs."""
        before = {name: len(ids) for name, ids in self.acknowledged.items()}
        await wait_until(
            lambda: all(len(ids) >= before[name] + count for name, ids in self.acknowledged.items()),
            f"jobs in all queues, with {before} before",
            timeout=40,
        )

    async def takeover(self, cluster: LocalCluster, gone: Node) -> None:
        """Wait until the queue of the node is served elsewhere. There is no further replica, so without a copy."""
        queue = self.queues[0]
        await asyncio.to_thread(wait_for, lambda: cluster.owner(slot_of(queue.name)) is not gone, "a takeover")
        deadline = asyncio.get_running_loop().time() + 20
        while True:
            try:
                job = await queue.enqueue("work", {"id": "alone"}, durability="none")
                break
            except StoreError:
                assert asyncio.get_running_loop().time() < deadline
        assert await job.result(timeout=20) == 1

    async def settle(self) -> None:
        """End the load. Every acknowledged job must be completed."""
        self._producing = False
        await asyncio.gather(*self._producers)
        for queue in self.queues:

            async def ended(queue: Queue = queue) -> bool:
                stats = await queue.stats()
                return not (stats.waiting + stats.active + stats.delayed)

            await wait_until(ended, f"all jobs of {queue.name} to end", timeout=30)
            ids = self.acknowledged[queue.name]
            assert [
                (job_id, state) for job_id in ids if (state := (await queue.get(job_id)).state) != "completed"
            ] == []

    async def __aexit__(self, *_: object) -> None:
        self._producing = False
        for producer in self._producers:
            producer.cancel()
        await self._stack.aclose()
        await self.connection.aclose()


@pytest.mark.parametrize("at_once", [False, *([True] if ATOMIC else [])])
async def test_slots_move_both_ways_under_load(cluster: LocalCluster, at_once: bool):
    move = cluster.move_at_once if at_once else cluster.move
    async with Load(cluster) as load:
        homes = {name: cluster.owner(slot_of(name)) for name in NAMES}
        for round_ in range(2):
            for i, name in enumerate(NAMES):
                away = homes[NAMES[(i + 1 + round_) % 3]]
                await asyncio.to_thread(move, slot_of(name), homes[name], away)
                await load.more(5)
                await asyncio.to_thread(move, slot_of(name), away, homes[name])
                await load.more(5)
        await load.settle()
        runs = [load.runs[job_id] for ids in load.acknowledged.values() for job_id in ids]
        assert set(runs) == {1}, "no lease was lost"


async def test_slots_of_partitions_move_under_load(cluster: LocalCluster):
    """Both ways, while producers spread jobs over all partitions, with and without keys, and a worker runs them."""
    connection = Connection(cluster.url, timeout=2.0)
    ran: Counter[int] = Counter()
    jobs: list[Any] = []
    stopped = asyncio.Event()
    async with Queue("spread", connection, partitions=3) as queue:

        @queue.task(attempts=50)
        async def work(n: int) -> int:
            ran[n] += 1
            return n

        async def produce(first: int) -> None:
            for n in itertools.count(first, 2):
                if stopped.is_set():
                    return
                key = f"key-{n % 7}-{n}" if n % 3 else None
                jobs.append(await work.options(key=key).enqueue(n))
                await asyncio.sleep(0)

        async def more() -> None:
            at = len(jobs)
            await wait_until(lambda: len(jobs) >= at + 20, "more jobs", timeout=40)

        async with Worker(queue, lease=3, concurrency=20, grace=5) as worker:
            worker.start()
            producers = [asyncio.create_task(produce(first)) for first in (0, 1)]
            await more()
            for part in queue.store.parts:
                slot = key_slot(part.keys["waiting"])
                home = await asyncio.to_thread(cluster.owner, slot)
                away = next(node for node in cluster.primaries() if node is not home)
                await asyncio.to_thread(cluster.move, slot, home, away)
                await more()
                await asyncio.to_thread(cluster.move, slot, away, home)
                await more()
            stopped.set()
            await asyncio.gather(*producers)
            results = await asyncio.gather(*(job.result(timeout=30) for job in jobs))
        assert sorted(results) == sorted(ran)
        assert set(ran.values()) == {1}, "no lease was lost"
        assert {partition_of(job.id) for job in jobs} == {0, 1, 2}
    await connection.aclose()


async def test_a_primary_is_killed_under_load(cluster: LocalCluster):
    dead = cluster.owner(slot_of("a"))
    async with Load(cluster) as load:
        dead.server.kill()
        await load.takeover(cluster, dead)
        dead.start()
        await asyncio.to_thread(cluster.wait_until_ready)
        await load.more(20)
        await load.settle()


async def test_a_primary_hangs_under_load(cluster: LocalCluster):
    """It is cut off from all others, as by a broken network. When it comes back, it is a replica."""
    hung = cluster.owner(slot_of("a"))
    assert hung.server.process is not None
    async with Load(cluster) as load:
        os.kill(hung.server.process.pid, signal.SIGSTOP)
        try:
            await load.takeover(cluster, hung)
        finally:
            os.kill(hung.server.process.pid, signal.SIGCONT)
        await asyncio.to_thread(cluster.wait_until_ready)
        assert cluster.owner(slot_of("a")) is not hung
        await load.more(20)
        await load.settle()


async def test_a_replica_takes_over_by_an_operators_wish(cluster: LocalCluster):
    async with Load(cluster) as load:
        for name in NAMES:
            primary = cluster.owner(slot_of(name))
            cluster.replica_of(primary).ask("CLUSTER", "FAILOVER")
            await asyncio.to_thread(wait_for, lambda p=primary, n=name: cluster.owner(slot_of(n)) is not p, "failover")
            await load.more(10)
        await load.settle()


async def test_nodes_are_added_and_removed_under_load(cluster: LocalCluster):
    """The queues move to new nodes. Then two of the three old shards leave, which the URL names at least in part."""
    async with Load(cluster) as load:
        old = cluster.primaries()
        pairs = [(Node(*cluster.options).start(), Node(*cluster.options).start()) for _ in range(3)]
        for node in (node for pair in pairs for node in pair):
            cluster.meet(old[0], node)
            cluster.nodes.append(node)
        await asyncio.to_thread(wait_for, lambda: all(cluster.knows_all(node) for node in cluster.nodes), "the nodes")
        for node in cluster.nodes:
            node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        for primary, replica in pairs:
            await asyncio.to_thread(_replicate, replica, primary)
        await asyncio.to_thread(cluster.wait_until_ready)
        for name, (primary, _) in zip(NAMES, pairs, strict=True):
            await asyncio.to_thread(cluster.move, slot_of(name), cluster.owner(slot_of(name)), primary)
        await load.more(10)
        for node in old:
            if node is not cluster.owner(REGISTRY):
                cluster.replica_of(node).server.kill()
                node.server.kill()
        await load.more(10)
        assert await load.queues[0].store.queues() == NAMES
        await load.settle()


def _replicate(replica: Node, primary: Node) -> None:
    wait_for(lambda: replica.ask("CLUSTER", "REPLICATE", primary.id), "a replica")
    wait_for(lambda: b"master_link_status:up" in replica.ask("INFO", "replication"), "its data")
