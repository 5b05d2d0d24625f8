"""A cluster that has lost its majority, and what its nodes execute: only commands on declared keys of one queue."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from typing import TYPE_CHECKING

import pytest

from jobq import Concurrency, Connection, Context, Queue, Rate, Worker, inject
from jobq.errors import JobFailed, StoreUnavailable
from tests.cluster.test_cluster_faults import Load
from tests.conftest import wait_until
from tests.local_cluster import LocalCluster, Node, slot_of, start_cluster, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow


@pytest.fixture
def own_cluster() -> Iterator[LocalCluster]:
    """A cluster of its own, because the test changes it."""
    cluster = start_cluster()
    yield cluster
    cluster.stop()


def signal_to(nodes: list[Node], number: signal.Signals) -> None:
    for node in nodes:
        assert node.server.process is not None
        os.kill(node.server.process.pid, number)


async def test_without_a_majority_calls_fail_and_workers_go_on_afterwards(own_cluster: LocalCluster):
    """Two of three primaries are cut off. The third one refuses everything, although it works."""
    cluster = own_cluster
    left = cluster.owner(slot_of("c"))
    gone = [node for node in cluster.primaries() if node is not left]
    async with Load(cluster) as load:
        signal_to(gone, signal.SIGSTOP)
        try:
            await asyncio.to_thread(wait_for, lambda: b"cluster_state:fail" in left.ask("CLUSTER", "INFO"), "the end")
            for queue in load.queues:
                # Far more than the connection's timeout of 2 s.
                async with asyncio.timeout(15):
                    with pytest.raises(StoreUnavailable):
                        await queue.enqueue("work", {"id": "refused"}, durability="none")
            with pytest.raises(StoreUnavailable, match="CLUSTERDOWN"):
                await load.queues[2].enqueue("work", {"id": "refused"}, durability="none")
        finally:
            signal_to(gone, signal.SIGCONT)
        await asyncio.to_thread(cluster.wait_until_ready)
        await load.more(20)
        await load.settle()


class Monitor:
    """The commands that a node executes, each as its source ("lua" for a script) and its words."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.lines: list[tuple[str, list[str]]] = []

    async def __aenter__(self) -> Monitor:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._node.port, limit=1 << 24)
        self._writer.write(b"MONITOR\r\n")
        assert await self._reader.readline() == b"+OK\r\n"
        self._task = asyncio.create_task(self._read())
        return self

    async def _read(self) -> None:
        while line := (await self._reader.readline()).decode():
            found = re.match(r"\+[\d.]+ \[\d+ (\S+)\] (.*)", line)
            if found:
                self.lines.append((found[1], re.findall(r'"((?:[^"\\]|\\.)*)"', found[2])))

    async def __aexit__(self, *_: object) -> None:
        self._node.ask("PING")
        await wait_until(lambda: any(words == ["PING"] for _, words in self.lines[-50:]), "the last command")
        self._task.cancel()
        self._writer.close()


async def test_scripts_touch_only_declared_keys_of_their_queue(cluster: LocalCluster, connection: Connection):
    """A node of a cluster refuses a key of another node, but not an undeclared key of the same slot or node."""
    queue = Queue("a", connection, limits=[Concurrency(20)], aging=60)
    node = cluster.owner(slot_of("a"))
    started = asyncio.Event()

    @queue.task(attempts=2, backoff=[0.01], limits=["host"])
    async def work(how: str, ctx: Context = inject) -> str:
        ctx.progress(1)
        ctx.log("here")
        if how == "flaky" and ctx.attempt == 1:
            raise ValueError("once")
        if how == "doomed":
            raise ValueError("always")
        if how == "long":
            started.set()
            await asyncio.Event().wait()
        return how

    async with Monitor(node) as monitor, queue:
        await queue.set_limit("host", concurrency=2, rate=Rate(100, per=1))
        await queue.put_schedule("often", "work", {"how": "ok"}, every=60)
        async with Worker(queue, lease=0.6, concurrency=5) as worker:
            worker.start()
            jobs = [await work.options(priority=n % 3, group=f"g{n % 2}").enqueue("ok") for n in range(10)]
            jobs += [await work.options(key=f"k{n % 2}", key_ttl=60, delay=0.05).enqueue("flaky") for n in range(4)]
            for job in jobs:
                await job.result(timeout=20)
            doomed = await work.enqueue("doomed")
            with pytest.raises(JobFailed):
                await doomed.result(timeout=20)
            long = await work.enqueue("long")
            await asyncio.wait_for(started.wait(), 10)
            await queue.kill(long.id)
            await queue.pause()
            later = await work.options(delay=60).enqueue("ok")
            await queue.reprioritise(later.id, 5)
            await queue.promote(later.id)
            await queue.remove(later.id)
            await queue.retry(doomed.id)
            await queue.resume()
            await queue.stats()
            await queue.limits()
            await queue.workers()
            await queue.page()
            await queue.performance("1h")
            await queue.why(doomed.id)
        await queue.drop(force=True)
    declared: set[str] = set()
    scripts: set[str] = set()
    inside = 0
    for source, words in monitor.lines:
        if words[0].upper() in ("EVALSHA", "EVAL"):
            declared = set(words[3 : 3 + int(words[2])])
            scripts.add(words[1])
            assert len({re.sub(r"^jobq:\{(.*)\}:.*$", r"\1", key) for key in declared}) <= 1, words[:9]
        elif source == "lua":
            inside += 1
            used = {word for word in words[1:] if re.fullmatch(r"jobq:\{[^}]*\}:\w+", word)}
            assert used <= declared, words
    assert inside > 200
    assert len(scripts) > 20
