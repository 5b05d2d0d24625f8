"""A worker of many queues in a cluster: one connection to each node hears of the jobs of all queues there."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Connection, Queue, Worker
from jobq.engine.model.ids import new_id
from jobq.engine.store import Store, send_together
from jobq.engine.store import tracking as tracking_module
from jobq.engine.worker import waker as waker_module
from jobq.engine.worker.heartbeat import Heartbeat
from jobq.errors import StoreUnavailable
from tests.cluster.test_cluster import ATOMIC
from tests.cluster.test_cluster_waits import blocked, clients, tracking
from tests.conftest import USER, documented_rules
from tests.local_cluster import LocalCluster, Node, slot_of, start_cluster, wait_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.conftest import Until

MANY = 30

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("patient")]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers do not look for jobs by themselves during a test, so a lost wake-up shows."""
    monkeypatch.setattr(waker_module, "BLOCK", 60.0)


def with_task(queue: Queue) -> Queue:
    @queue.task(name="work", attempts=50)
    async def work(n: int) -> int:
        return n

    return queue


@pytest.fixture
async def many(connection: Connection) -> AsyncIterator[list[Queue]]:
    """Open queues on all nodes."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(with_task(Queue(f"m{n}", connection))) for n in range(MANY)]


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Any]]:
    """``await start(*queues)``: a worker of them."""
    async with AsyncExitStack() as stack:

        async def begin(*queues: Queue, **options: Any) -> Worker:
            worker = await stack.enter_async_context(Worker(*queues, grace=1.0, **options))
            worker.start()
            return worker

        yield begin


async def run_one(queue: Queue, n: int = 1) -> None:
    assert await (await queue.enqueue("work", {"n": n})).result(20) == n


async def run_one_at_last(queue: Queue) -> None:
    """A caller that meets the node that is gone gets an error, and repeats its call."""
    job_id = str(new_id())
    while True:
        try:
            job = await queue.enqueue("work", {"n": 1}, id=job_id)
            assert await job.result(20) == 1
            return
        except StoreUnavailable:
            await asyncio.sleep(0.01)


def executed(cluster: LocalCluster) -> Counter[str]:
    """The commands that the primaries have executed."""
    found: Counter[str] = Counter()
    for node in cluster.primaries():
        for line in node.ask("INFO", "commandstats").decode().splitlines():
            name, _, figures = line.partition(":")
            if name.startswith("cmdstat_"):
                found[name.removeprefix("cmdstat_")] += int(figures.split(",")[0].removeprefix("calls="))
    return found


def on(cluster: LocalCluster, node: Node, queues: list[Queue]) -> list[Queue]:
    """The queues that are on the node."""
    return [queue for queue in queues if cluster.owner(slot_of(queue.name)) is node]


async def test_one_connection_to_each_node_hears_of_all_jobs(cluster: LocalCluster, many, start, until: Until):
    await start(*many)
    await until(lambda: tracking(cluster) == 3, "one connection to each node")
    jobs = [await queue.enqueue("work", {"n": n}) for n, queue in enumerate(many)]
    assert [await job.result(10) for job in jobs] == list(range(MANY))
    for n in (0, MANY - 1, 0, 3, 3):
        await run_one(many[n], n)
    assert tracking(cluster) == 3
    assert blocked(cluster, b"bzpopmin") == 0
    assert sum(b" sub=0 " not in line for line in clients(cluster)) == 1, "one subscription"


async def test_two_workers_wake_for_the_same_queues(many, connection: Connection, cluster: LocalCluster, start, until):
    other = Connection(cluster.url)
    async with AsyncExitStack() as stack:
        theirs = [await stack.enter_async_context(with_task(Queue(queue.name, other))) for queue in many]
        await start(*many, concurrency=2)
        await start(*theirs, concurrency=2)
        await until(lambda: tracking(cluster) == 6, "both workers to listen")
        for queue in many[::5]:
            await asyncio.gather(*(run_one(queue, n) for n in range(20)))
    await other.aclose()


async def test_a_worker_without_slots_leaves_tokens_to_others(many, cluster: LocalCluster, start, until: Until):
    entered, release = asyncio.Event(), asyncio.Event()

    @many[0].task(name="hold")
    async def hold() -> None:
        entered.set()
        await release.wait()

    await start(*many, concurrency=1)
    await many[0].enqueue("hold")
    await entered.wait()
    other = Connection(cluster.url)
    async with AsyncExitStack() as stack:
        theirs = [await stack.enter_async_context(with_task(Queue(queue.name, other))) for queue in many[1:]]
        await start(*theirs, concurrency=4)
        for job in [await queue.enqueue("work", {"n": 1}) for queue in many[1:]]:
            await job.result(10)
        release.set()
    await other.aclose()


async def _beats(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number that the heartbeat counts up."""
    beats = [0]
    beat = Heartbeat._beat  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

    async def counted(heartbeat: Heartbeat, stores: Any) -> bool:
        beats[0] += 1
        return await beat(heartbeat, stores)

    monkeypatch.setattr(Heartbeat, "_beat", counted)
    return beats


@pytest.mark.parametrize("partitions", [1, 64])
async def test_an_idle_queue_sends_little_however_many_partitions_it_has(
    partitions: int, cluster: LocalCluster, connection: Connection, start, until: Until, monkeypatch
):
    """The bounds are the same for one partition and for 64. It is counted per heartbeat, so a slow machine changes
    nothing."""
    beats = await _beats(monkeypatch)
    monkeypatch.setattr(waker_module, "BLOCK", 0.2)  # as often as it renews
    monkeypatch.setattr(tracking_module, "PING_SECONDS", 0.2)
    async with with_task(Queue("spread", connection, partitions=partitions)) as queue:
        await start(queue, lease=0.6)
        for n in range(partitions):
            await run_one(queue, n)
        await until(lambda: beats[0] >= 12, "the start to be over", 60)
        before, first = executed(cluster), beats[0]
        await until(lambda: beats[0] >= first + 10, "some heartbeats", 60)
        calls = executed(cluster)
        calls.subtract(before)
    assert calls["evalsha"] <= 120, calls
    assert calls["exists"] <= 60, calls
    assert calls["bzpopmin"] <= 60, calls
    assert calls["ping"] <= 60, calls


async def test_lost_connections_lose_no_job(many, cluster: LocalCluster, start, until: Until):
    await start(*many)
    for n in range(5):
        await until(lambda: tracking(cluster) == 3, "one connection to each node")
        for node in cluster.primaries():
            for line in node.ask("CLIENT", "LIST").splitlines():
                if b"t" in line.partition(b" flags=")[2].partition(b" ")[0]:
                    node.ask("CLIENT", "KILL", "ID", line.split()[0].removeprefix(b"id="))
        await asyncio.gather(*(run_one(queue) for queue in many[n::5]))


async def test_a_queue_whose_wake_key_is_broken_does_not_stop_the_others(
    many, cluster: LocalCluster, start, caplog: pytest.LogCaptureFixture, until: Until
):
    broken = many[5]
    admin = Store(Connection(cluster.admin_url), broken.name)
    await admin.command(b"SET", admin.keys["wake"], b"not a sorted set")
    await start(*many)
    await until(lambda: "The wait for new jobs failed and is repeated (queue m5)" in caplog.text, "the refusal")
    for queue in (*many[:5], *many[6:12]):
        await run_one(queue)
    await admin.command(b"DEL", admin.keys["wake"])
    await run_one(broken)
    await admin.connection.aclose()
    assert "(queue m6)" not in caplog.text


@pytest.mark.parametrize("at_once", [False, *([True] if ATOMIC else [])])
async def test_queues_that_move_are_heard_of_at_their_new_node(
    many, cluster: LocalCluster, start, until: Until, at_once: bool
):
    """Nobody but the old node says that the slot has moved. While it moves, jobs start, too."""
    await start(*many)
    await until(lambda: tracking(cluster) == 3, "one connection to each node")
    await run_one(many[0])
    slot = slot_of(many[0].name)
    source = cluster.owner(slot)
    target = next(node for node in cluster.primaries() if node is not source)
    move = cluster.move_at_once if at_once else cluster.move
    for ends in [(source, target), (target, source)]:
        await asyncio.to_thread(move, slot, *ends)
        await run_one(many[0])
        await run_one(many[1])


async def test_a_queue_that_moves_again_and_again_is_heard_of(many, cluster: LocalCluster, start, until: Until):
    """A node that had the slot before, and gets it back, must also tell that it moves away once more. Another program
    enqueues, so nothing but the nodes tells the worker where the queue is."""
    await start(*many, lease=60.0)
    await until(lambda: tracking(cluster) == 3, "one connection to each node")
    other = Connection(cluster.url)
    async with with_task(Queue(many[0].name, other)) as producer:
        slot = slot_of(producer.name)
        source = cluster.owner(slot)
        target = next(node for node in cluster.primaries() if node is not source)
        for ends in [(source, target), (target, source)] * 2:
            await asyncio.to_thread(cluster.move, slot, *ends)
            await until(functools.partial(_hears, ends[1], producer), "the worker to listen at the new node")
            await run_one(producer)
    await other.aclose()


def _hears(node: Node, queue: Queue) -> bool:
    (_, listeners) = node.ask("PUBSUB", "SHARDNUMSUB", queue.store.keys["control"])
    return listeners > 0


async def test_a_worker_that_stops_leaves_others_on_its_connection_listening(many, cluster, start, until: Until):
    await start(*many, concurrency=2)
    async with Worker(*many, concurrency=2, grace=1.0) as other:
        other.start()
        await until(lambda: tracking(cluster) == 3, "one connection to each node")
        await run_one(many[0])
    for queue in many:
        await run_one(queue)


async def test_a_slot_on_the_move_does_not_keep_other_queues_waiting(many, cluster: LocalCluster, start, until: Until):
    """The node refuses what is about one queue. The leases of the others are renewed in the same write."""
    worker = await start(*many, lease=1.0)
    await until(lambda: tracking(cluster) == 3, "one connection to each node")
    await run_one(many[0])
    source = cluster.owner(slot_of("m0"))
    target = next(node for node in cluster.primaries() if node is not source)
    beside = [queue for queue in on(cluster, source, many) if queue.name != "m0"]
    slot = slot_of("m0")
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
    try:
        keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, 2)
        source.ask("MIGRATE", "127.0.0.1", target.port, keys[0], 0, 10_000)
        parts = [(queue.store, [queue.store.heartbeat("x", b"1")]) for queue in [many[0], *beside]]
        (_, *answers) = await send_together(parts)
        assert answers == [[2]] * len(beside)
        for queue in beside:
            await run_one(queue)
        assert worker.running == 0
    finally:
        for key in source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 10_000)
        for node in (target, source, *cluster.primaries()):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)
    await run_one(many[0])


# -- clusters that are broken for good -----------------------------------------------------------------------------


@pytest.fixture
def own_cluster() -> Any:
    """A cluster of its own, because the test changes it."""
    cluster = start_cluster()
    yield cluster
    for node in cluster.nodes:
        if node.server.process is not None and node.alive:
            os.kill(node.server.process.pid, signal.SIGCONT)
    cluster.stop()


@pytest.mark.parametrize("fault", ["killed", "hung", "replaced"])
async def test_the_replica_that_takes_over_is_listened_to(
    own_cluster: LocalCluster, fault: str, start, until: Until, monkeypatch: pytest.MonkeyPatch
):
    """A primary is killed, hangs, or changes places with its replica. Queues on other nodes notice nothing."""
    monkeypatch.setattr(tracking_module, "PING_SECONDS", 0.3)
    cluster, connection = own_cluster, Connection(own_cluster.url, timeout=1.0)
    async with AsyncExitStack() as stack:
        many = [await stack.enter_async_context(with_task(Queue(f"m{n}", connection))) for n in range(12)]
        await start(*many, lease=3.0)
        await until(lambda: tracking(cluster) == 3, "one connection to each node")
        for queue in many:
            await run_one(queue)
        gone = cluster.owner(slot_of("m0"))
        affected = on(cluster, gone, many)
        others = [queue for queue in many if queue not in affected]
        for node in cluster.nodes:
            node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        if fault == "killed":
            gone.server.kill()
        elif fault == "hung":
            assert gone.server.process is not None
            os.kill(gone.server.process.pid, signal.SIGSTOP)
        else:
            cluster.replica_of(gone).ask("CLUSTER", "FAILOVER")
        for queue in others:
            await run_one(queue)
        alive = [node for node in cluster.nodes if node is not gone]
        slot = slot_of("m0")
        await asyncio.to_thread(
            wait_for, lambda: all(node.owner_of(slot) != [gone.port] for node in alive), "the replica to take over"
        )
        for queue in (*affected, *others, *affected):
            await run_one_at_last(queue)
    await connection.aclose()


@pytest.mark.skipif(not USER, reason="the default user may do everything")
async def test_a_user_who_may_not_track_keys_is_told(
    own_cluster: LocalCluster, start, until: Until, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(waker_module, "BLOCK", 0.5)
    rules = [rule for rule in documented_rules(in_cluster=True) if rule != "+client|tracking"]
    for node in own_cluster.nodes:
        node.ask("ACL", "SETUSER", "jobq", "reset", "on", ">least-rights", *rules)
    connection = Connection(own_cluster.url)
    async with AsyncExitStack() as stack:
        many = [await stack.enter_async_context(with_task(Queue(f"m{n}", connection))) for n in range(3)]
        await start(*many)
        await until(lambda: "does not tell this user which keys change" in caplog.text, "the warning")
        for queue in many:
            await run_one(queue)
    await connection.aclose()


async def test_a_user_who_may_not_hear_that_slots_move_is_told_and_hears_of_jobs_later(
    own_cluster: LocalCluster, start, until: Until, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """The old node says nothing more of a queue that moved."""
    monkeypatch.setattr(waker_module, "BLOCK", 0.5)
    monkeypatch.setattr(tracking_module, "PING_SECONDS", 0.5)
    for node in own_cluster.nodes:
        rules = [rule for rule in documented_rules(in_cluster=True) if rule != "+ssubscribe"]
        node.ask("ACL", "SETUSER", "deaf", "reset", "on", ">deaf", *rules)
    connection, other = Connection(own_cluster.admin_url.replace("//", "//deaf:deaf@", 1)), Connection(own_cluster.url)
    async with AsyncExitStack() as stack:
        many = [await stack.enter_async_context(with_task(Queue(f"m{n}", connection))) for n in range(6)]
        producer = await stack.enter_async_context(with_task(Queue("m0", other)))
        await start(*many, lease=60.0)
        await until(lambda: tracking(own_cluster) == 3, "one connection to each node")
        await until(lambda: "does not tell this user when slots move" in caplog.text, "the warning")
        slot = slot_of("m0")
        source = own_cluster.owner(slot)
        target = next(node for node in own_cluster.primaries() if node is not source)
        for ends in [(source, target), (target, source)]:
            await asyncio.to_thread(own_cluster.move, slot, *ends)
            await run_one(producer)
    for one in (connection, other):
        await one.aclose()
    assert caplog.text.count("does not tell this user when slots move") == 1


async def test_a_blocking_wait_at_a_primary_that_hangs_ends_by_its_deadline(
    own_cluster: LocalCluster, start, until: Until, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """A worker of one queue blocks on its wake token. Nothing tells it that the node answers no longer."""
    monkeypatch.setattr(waker_module, "BLOCK", 0.5)
    cluster, connection = own_cluster, Connection(own_cluster.url, timeout=0.5)
    async with with_task(Queue("m0", connection)) as queue:
        await start(queue, lease=3.0)
        await run_one(queue)
        await until(lambda: blocked(cluster, b"bzpopmin") == 1, "the wait")
        hung = cluster.owner(slot_of("m0"))
        assert hung.server.process is not None
        os.kill(hung.server.process.pid, signal.SIGSTOP)
        await until(lambda: "The wait for new jobs failed and is repeated (queue m0)" in caplog.text, "the deadline")
        alive = [node for node in cluster.nodes if node is not hung]
        slot = slot_of("m0")
        await asyncio.to_thread(
            wait_for, lambda: all(node.owner_of(slot) != [hung.port] for node in alive), "the replica to take over"
        )
        await run_one_at_last(queue)
        await run_one_at_last(queue)
    await connection.aclose()


@pytest.mark.parametrize("count", [1, 6])
async def test_the_url_of_one_node_is_enough_for_the_heartbeat(
    count: int, cluster: LocalCluster, start, until: Until, caplog: pytest.LogCaptureFixture, monkeypatch
):
    """Its first renewal finds the other nodes without a failure."""
    beats = await _beats(monkeypatch)
    connection = Connection(f"redis://{USER}127.0.0.1:{cluster.nodes[0].port}")
    async with AsyncExitStack() as stack:
        queues = [await stack.enter_async_context(with_task(Queue(f"m{n}", connection))) for n in range(count)]
        await start(*queues, lease=0.6)
        for queue in queues:
            await run_one(queue)
        await until(lambda: beats[0] >= 4, "some renewals")
        for queue in queues:
            (row,) = await queue.workers()
            assert row.alive
    await connection.aclose()
    assert "were not renewed" not in caplog.text
