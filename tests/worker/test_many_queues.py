"""A worker of many queues on one server: one wait, one subscription, one sweep and one heartbeat for all of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from proxy import Proxy
from tools import blocked, commands

from jobq import Connection, Queue, Worker
from jobq.engine.store import Store
from jobq.engine.worker import sweeper as sweeper_module
from jobq.engine.worker import waker as waker_module
from jobq.engine.worker.control import Control
from jobq.engine.worker.heartbeat import IDLE_BEATS, Heartbeat
from tests.conftest import CLUSTER, Server
from tests.local_cluster import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.skipif(CLUSTER, reason="one command waits for one slot of a cluster only")

MANY = 60


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers do not look for jobs by themselves during a test, so a lost wake-up shows."""
    monkeypatch.setattr(waker_module, "BLOCK", 60.0)


@pytest.fixture
async def many(connection: Connection) -> AsyncIterator[list[Queue]]:
    """Open queues on one connection, each with a task that returns a number."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(with_task(Queue(f"q{n}", connection))) for n in range(MANY)]


def with_task(queue: Queue) -> Queue:
    @queue.task(name="work")
    async def work(n: int) -> int:
        return n

    return queue


async def run_one(queue: Queue, n: int = 1) -> None:
    job = await queue.enqueue("work", {"n": n})
    assert await job.result(10) == n


async def clients(admin: Store, *words: str) -> int:
    """The number of connections whose row has these words."""
    rows = (await admin.command(b"CLIENT", b"LIST")).decode().splitlines()
    return sum(all(word in row for word in words) for row in rows)


@pytest.mark.usefixtures("patient")
async def test_one_blocked_connection_and_one_subscription_serve_all_queues(many, start, until, admin):
    await start(*many)
    await until(lambda: blocked(admin, 1), "the worker to wait")
    for queue in many[::7]:
        await run_one(queue)
    await until(lambda: blocked(admin, 1), "the worker to wait again")

    async def subscribed() -> bool:
        return await clients(admin, f"sub={MANY}") == 1

    await until(subscribed, "one subscription to all control channels")
    assert await clients(admin, "cmd=subscribe") == 1
    assert await clients(admin, "cmd=bzpopmin", "flags=b") == 1
    # The pool of the trips, the wait, the subscription, the heartbeat, the wait for a result, and the tests' own two.
    assert await clients(admin) <= 16 + 6


async def test_queues_with_the_same_url_share_connections(redis_url, start, until, admin):
    async with AsyncExitStack() as stack:
        queues = [await stack.enter_async_context(with_task(Queue(f"u{n}", redis_url))) for n in range(20)]
        assert len({queue.store.connection for queue in queues}) == 1
        await start(*queues)
        await run_one(queues[7])
        await until(lambda: blocked(admin, 1), "one wait for all")
        before = await clients(admin)
        assert before <= 16 + 6

    # Each closes only what nobody else uses.
    async with Queue("u1", redis_url) as first:
        async with Queue("u2", redis_url) as second:
            assert second.store.connection is first.store.connection
        assert (await first.stats()).waiting == 0


@pytest.mark.usefixtures("patient")
async def test_a_job_starts_in_whichever_queue_it_comes(many, start, until, admin):
    await start(*many)
    await until(lambda: blocked(admin, 1), "the worker to wait")
    jobs = [await queue.enqueue("work", {"n": n}) for n, queue in enumerate(many)]
    assert [await job.result(10) for job in jobs] == list(range(MANY))
    for n in (0, MANY - 1, 0, 3, 3):
        await run_one(many[n], n)


@pytest.mark.usefixtures("patient")
async def test_a_queue_with_a_long_backlog_does_not_keep_others_waiting(many, start, until):
    """One slot, and a queue that always has a job for it: a job of another queue is next after a few."""
    ran: list[str] = []
    busy, quiet = many[0], many[MANY // 2]
    enough = asyncio.Event()

    async def note(name: str) -> None:
        ran.append(name)
        if len(ran) >= 1000:
            enough.set()
        await asyncio.sleep(0.002)

    @busy.task(name="long")
    async def long() -> None:
        await note("busy")

    @quiet.task(name="short")
    async def short() -> None:
        await note("quiet")

    await start(*many, concurrency=1)
    await busy.enqueue_many([busy.new("long") for _ in range(1000)])
    await until(lambda: len(ran) > 20, "the backlog to fill the slot")
    for _ in range(5):
        before = len(ran)
        await (await quiet.enqueue("short")).result(10)
        # Jobs that ran while the result was on its way do not count.
        assert ran[before:].index("quiet") < 100, "it waited for a part of the backlog only"
    assert Counter(ran)["quiet"] == 5


@pytest.mark.usefixtures("patient")
async def test_a_worker_without_slots_leaves_tokens_to_others(many, start, gate, until):
    """Jobs of other queues, which come while all slots of one worker are taken, run on another one at once."""

    @many[0].task(name="hold")
    async def hold() -> None:
        await gate.passing()

    await start(*many, concurrency=1)
    await many[0].enqueue("hold")
    await gate.arrival()
    await start(*many[1:], concurrency=4)
    jobs = [await queue.enqueue("work", {"n": 1}) for queue in many[1:]]
    for job in jobs:
        await job.result(10)


@pytest.mark.usefixtures("patient")
async def test_a_burst_over_all_queues_uses_both_workers_and_loses_nothing(many, start):
    ran: Counter[str] = Counter()
    for queue in many:

        @queue.task(name="slow")
        async def slow(n: int) -> int:
            await asyncio.sleep(0.001)
            return n

    await start(*many, concurrency=2)
    await start(*reversed(many), concurrency=3)
    jobs = [job for queue in many for job in await queue.enqueue_many([queue.new("slow", {"n": n}) for n in range(5)])]
    for job in jobs:
        ran[str(await job.result(20))] += 1
    assert ran.total() == 5 * MANY


@pytest.mark.usefixtures("patient")
async def test_a_queue_whose_wake_key_is_broken_does_not_stop_the_others(many, start, until, admin, logs):
    broken = many[5]
    await admin.command(b"SET", broken.store.keys["wake"], b"not a sorted set")
    await start(*many, grace=0)
    await until(lambda: logs.all("The wait for new jobs failed and is repeated (queue q5)"), "the refusal")
    for queue in (*many[:5], *many[6:12]):
        await run_one(queue)
    await admin.command(b"DEL", broken.store.keys["wake"])
    await run_one(broken)
    await until(lambda: blocked(admin, 1), "one wait for all again")
    assert not logs.all("(queue q6)")


@pytest.mark.parametrize("column", ["waiting", "active", "completed", "workers", "leases"])
async def test_a_broken_queue_does_not_stop_the_others(many, start, admin, column, monkeypatch, until, logs):
    monkeypatch.setattr(sweeper_module, "TIDY_SECONDS", 0.1)
    broken = many[3]
    await start(*many, lease=0.6, grace=0)
    await run_one(broken)  # The worker has started.
    await admin.command(b"DEL", broken.store.keys[column])
    await admin.command(b"SET", broken.store.keys[column], b"broken")
    await broken.store.command(b"ZADD", broken.store.keys["wake"], 0, b"t")
    for queue in (*many[:3], *many[4:10]):
        await run_one(queue)
    about = {
        "waiting": "Redis refuses",
        "active": "The sweep of queue q3 failed",
        "completed": "The sweep of queue q3 failed",
        "workers": "Leases of queue q3 were not renewed",
        "leases": "Redis refuses",
    }
    if column != "leases":
        await until(lambda: logs.all(about[column]), "the error of the broken queue")
    assert not logs.all("queue q4 failed")


@pytest.mark.usefixtures("patient")
async def test_jobs_of_a_dead_worker_are_recovered_in_each_queue(many, start):
    jobs = []
    for queue in many[::10]:
        jobs.append(await queue.enqueue("work", {"n": 1}, attempts=2))
        claim = queue.store.claim(1, 300, "dead", "dead:0", 1, repeated=False)
        assert await queue.store.do(claim) is not None
    await start(*many, lease=0.6)
    for job in jobs:
        assert await job.result(20) == 1


async def test_an_idle_worker_of_many_queues_sends_little(many, start, until, admin, monkeypatch):
    """It is counted per heartbeat, so that a slow machine changes nothing."""
    beats = 0
    beat = Heartbeat._beat  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

    async def counted(heartbeat: Heartbeat, stores: Any) -> bool:
        nonlocal beats
        beats += 1
        return await beat(heartbeat, stores)

    monkeypatch.setattr(Heartbeat, "_beat", counted)
    monkeypatch.setattr(waker_module, "BLOCK", 0.2)  # as often as it renews
    await start(*many, lease=0.6)
    for queue in many:
        await run_one(queue)
    await until(lambda: beats >= 12, "the start to be over", 60)
    before, first = await commands(admin), beats
    await until(lambda: beats >= first + 2 * IDLE_BEATS, "some heartbeats", 60)
    calls = Counter(await commands(admin))
    calls.subtract(before)
    # Two rows of the worker in each queue. The sweep and the looks for jobs ask about all queues at once.
    assert calls["evalsha"] <= 2 * MANY + 20, calls
    assert calls["exists"] <= 60, calls
    assert calls["bzpopmin"] <= 30, calls


async def test_a_worker_that_starts_tidies_only_the_queues_that_it_works_on(many, start, until, monkeypatch):
    """It tidies the others at a random moment of the next minutes."""
    monkeypatch.setattr(sweeper_module, "TIDY_SECONDS", 0.0)
    monkeypatch.setattr(sweeper_module, "QUIET_SECONDS", 1e9)
    monkeypatch.setattr(sweeper_module, "interval", lambda lease_ms: 0.01)
    tidied: Counter[str] = Counter()
    made = Store.rebase  # Only the sweeper calls it.

    def rebase(self: Store, page: int) -> Any:
        tidied[self.name] += 1
        return made(self, page)

    monkeypatch.setattr(Store, "rebase", rebase)
    await start(*many)
    await run_one(many[7])
    await until(lambda: tidied["q7"] >= 1, "the queue that had a job")
    assert tidied.keys() == {"q7"}


@pytest.mark.usefixtures("patient")
async def test_the_rows_of_an_idle_worker_stay_alive_in_every_queue(many, start, until):
    worker = await start(*many, lease=0.6)

    async def renewed(queue: Queue, since: Any) -> bool:
        (row,) = await queue.workers()
        return row.alive and row.seen > since

    await run_one(many[0])  # The worker has started.
    for queue in many[::20]:
        (row,) = await queue.workers()
        assert row.id == worker.name
        await until(lambda queue=queue, row=row: renewed(queue, row.seen), "its next heartbeat")


async def test_a_queue_that_redis_has_forgotten_is_registered_again(many, start, until, admin):
    await start(*many, lease=0.6)
    await admin.command(b"SREM", b"jobq:queues", b"q4", b"q5")

    async def registered() -> bool:
        return len(await many[0].store.queues()) == MANY

    await until(registered, "the next heartbeat")


async def test_kills_reach_runs_of_any_queue(many, start, gate, until):
    for queue in many:

        @queue.task(name="hold")
        async def hold() -> None:
            await gate.passing()

    worker = await start(*many)
    jobs = [await queue.enqueue("hold") for queue in many[::15]]
    for _ in jobs:
        await gate.arrival()
    for job, queue in zip(jobs, many[::15], strict=True):
        await queue.kill(job.id)
    await until(lambda: worker.running == 0, "the handlers to be cancelled")


async def test_a_queue_joins_the_wait_and_the_subscription(server, many, start, until, admin, monkeypatch):
    """Its server answers later than the start. From then on it shares what the others of its server have."""
    monkeypatch.setattr(waker_module, "BLOCK", 60.0)
    other = Server(port=free_ports(1)[0])
    try:
        connection = Connection(other.url, timeout=1.0)
        late = [with_task(Queue(f"late{n}", connection)) for n in range(3)]
        await start(many[0], *late)
        await run_one(many[0])
        other.start()
        async with AsyncExitStack() as stack:
            there = [await stack.enter_async_context(queue) for queue in late]
            for queue in (*there, *there):
                await run_one(queue)
            control = Store(Connection(other.admin_url), "x")

            async def shares() -> bool:
                return await clients(control, "cmd=bzpopmin", "flags=b") == 1 and await clients(control, "sub=3") == 1

            await until(shares, "one wait and one subscription")
            for queue in there:
                await run_one(queue)
            await control.connection.aclose()
    finally:
        await asyncio.sleep(0)
        other.stop()


async def test_it_stops_at_once_when_idle_and_wakes_others(many, start, until, admin):
    worker = Worker(*many)
    running = asyncio.create_task(worker.run())
    await until(lambda: blocked(admin, 1), "the worker to wait")
    worker.stop()
    await asyncio.wait_for(running, 5)
    tokens = [await admin.command(b"ZCARD", queue.store.keys["wake"]) for queue in many]
    assert tokens == [1] * MANY, "it may have taken tokens"
    assert not [row for queue in many for row in await queue.workers()]


async def test_a_lost_connection_loses_no_job(many, start, until, admin, monkeypatch):
    """Its wait and its subscription are cut again and again."""
    monkeypatch.setattr(waker_module, "BLOCK", 60.0)
    caught_up = 0
    catch_up = Control._catch_up  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

    async def counted(control: Control) -> None:
        nonlocal caught_up
        caught_up += 1
        await catch_up(control)

    monkeypatch.setattr(Control, "_catch_up", counted)
    await start(*many)
    await until(lambda: blocked(admin, 1), "the worker to wait")
    for n in range(5):
        await admin.command(b"CLIENT", b"KILL", b"TYPE", b"pubsub")
        for row in (await admin.command(b"CLIENT", b"LIST")).decode().splitlines():
            if "cmd=bzpopmin" in row:
                await admin.command(b"CLIENT", b"KILL", b"ID", row.split()[0].removeprefix("id="))
        await run_one(many[7 * n])
    await until(lambda: caught_up >= 2, "a new subscription")


@pytest.mark.usefixtures("patient")
async def test_a_worker_that_stops_loses_no_token_while_its_jobs_run(redis_url, connection, start, until, admin):
    """The server gave it the token, and the answer does not arrive. Its own job runs on, so another worker gets it."""
    gates = {"first": asyncio.Event(), "other": asyncio.Event()}
    running = {name: asyncio.Event() for name in gates}

    async def slow(name: str) -> None:
        running[name].set()
        await gates[name].wait()

    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy(redis_url))
        theirs = Connection(proxy.url)
        stack.push_async_callback(theirs.aclose)
        stopping = [await stack.enter_async_context(with_task(Queue(f"t{n}", theirs))) for n in range(2)]
        others = [await stack.enter_async_context(with_task(Queue(f"t{n}", connection))) for n in range(2)]
        for queue in (stopping[0], others[0]):
            queue.task(slow)
        # The other worker has no free slot at first, so the token goes to the one that stops.
        await start(*others, concurrency=1)
        await until(lambda: blocked(admin, 1), "it to have looked at both queues")
        await others[0].enqueue("slow", {"name": "other"})
        await running["other"].wait()
        first = Worker(*stopping, concurrency=2, grace=60)
        await stack.enter_async_context(first)
        first.start()
        await others[0].enqueue("slow", {"name": "first"})
        await running["first"].wait()
        await until(lambda: blocked(admin, 1), "the first worker to wait")
        proxy.hold_replies()
        job = await others[1].enqueue("work", {"n": 1})

        async def taken() -> bool:
            return not await admin.command(b"EXISTS", others[1].store.keys["wake"])

        await until(taken, "the server to give the token away")
        gates["other"].set()
        await until(lambda: blocked(admin, 1), "the other worker to wait")
        first.stop()
        try:
            assert await job.result(20) == 1
        finally:
            proxy.pass_replies()
            gates["first"].set()
