"""Every point at which a process or its connection can fail, one after the other.

A scenario runs once and its trips to Redis are counted. Then it runs again for each trip and each fault: the request is
lost, the reply is lost, the process dies before or after it. What is left is recovered by a healthy worker. Whatever
was hit: each acknowledged job ends exactly once and where it should, nothing leaks, no attempt is charged twice.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

from jobq import (
    Breaker,
    Concurrency,
    Connection,
    Context,
    Discard,
    NewJob,
    Options,
    Queue,
    Rate,
    RateLimited,
    Snooze,
    State,
    Stats,
    StoredBackoff,
    Worker,
)
from jobq.engine.model.ids import IdMaker
from jobq.engine.store import Store
from jobq.engine.store import route as route_module
from jobq.engine.task.inject import Resources
from jobq.engine.worker import life
from jobq.engine.worker.children import Children
from jobq.engine.worker.pool import Pool
from jobq.engine.worker.sweeper import Sweeper
from jobq.errors import JobNotFound, StoreError, StoreUnavailable, WrongState
from tests.chaos.faulty import Fault, FaultyConnection
from tests.chaos.invariants import broken

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobq.engine.store.sender import Sender
    from tests.conftest import Server

LEASE = 60.0
"""Seconds on the scenario's clock. Only the test advances it, so no lease runs out by accident."""
ATTEMPTS = 4
AT_A_TIME = 12
_numbers = itertools.count()


class Sink:
    """A database that checks fences: for each job it keeps the effect of the highest fence that it has seen."""

    def __init__(self) -> None:
        self.effects: dict[str, int] = {}
        self.starts: dict[str, int] = {}

    def start(self, context: Context) -> None:
        """A run starts."""
        self.starts[context.id] = self.starts.get(context.id, 0) + 1

    def effect(self, context: Context) -> None:
        """A run takes effect, unless a later run has."""
        if context.fence >= self.effects.get(context.id, 0):
            self.effects[context.id] = context.fence


def unfinished(stats: Stats) -> int:
    """The jobs that have not ended."""
    return stats.waiting + stats.delayed + stats.active + stats.held


class Scenario:
    """A queue whose jobs end in every possible way, over one connection."""

    def __init__(self, connection: Connection) -> None:
        self.now = 1_700_000_000_000
        self.sink = Sink()
        self.sleeping = asyncio.Event()
        self.started = True
        self.fates: dict[str, tuple[State, ...]] = {}
        """The states in which each acknowledged job may end."""
        self.removed: set[str] = set()
        self.late: set[str] = set()
        """Jobs that must never start."""
        self.rerun_of: dict[str, str] = {}
        """Acknowledged reruns, and the jobs that they run again."""
        self.name = f"sweep{next(_numbers)}"
        self.queue = self.new_queue(connection)
        self.worker = Worker(self.queue, concurrency=3, lease=LEASE, grace=5)

    def new_queue(self, connection: Connection) -> Queue:
        queue = Queue(self.name, connection, charge="actual", clock=lambda: self.now)
        sink = self.sink

        @queue.task(name="ok")
        async def ok(ctx: Context) -> int:
            sink.start(ctx)
            ctx.log(f"{ctx.fence} started")
            ctx.progress(50)
            ctx.log(f"{ctx.fence} went on")
            sink.effect(ctx)
            return ctx.fence

        @queue.task(name="flaky")
        async def flaky(ctx: Context) -> int:
            sink.start(ctx)
            if ctx.attempt == 1:
                raise ValueError("the first run fails")
            sink.effect(ctx)
            return ctx.fence

        @queue.task(name="doomed")
        async def doomed(ctx: Context) -> None:
            sink.start(ctx)
            raise Discard("never works")

        @queue.task(name="snoozing")
        async def snoozing(ctx: Context) -> int:
            sink.start(ctx)
            if not ctx.snoozes:
                raise Snooze(0)
            sink.effect(ctx)
            return ctx.fence

        @queue.task(name="throttled", limits=[Concurrency(1)])
        async def throttled(ctx: Context, scope: Any = "key") -> int:
            sink.start(ctx)
            if not ctx.rate_limited:
                raise RateLimited(retry_after=0, scope=scope)
            sink.effect(ctx)
            return ctx.fence

        @queue.task(name="limited", limits=[Concurrency(1)])
        async def limited(ctx: Context) -> int:
            sink.start(ctx)
            sink.effect(ctx)
            return ctx.fence

        @queue.task(name="grouped", group="g")
        async def grouped(ctx: Context) -> int:
            sink.start(ctx)
            sink.effect(ctx)
            return ctx.fence

        @queue.task(name="breaking", breaker=Breaker(rate=1, runs=1, open_for="1ms"))
        async def breaking(ctx: Context) -> int:
            sink.start(ctx)
            if ctx.attempt == 1:
                raise ConnectionError("the first run opens the breaker")
            sink.effect(ctx)
            return ctx.fence

        @queue.task(name="costly", limits=[Rate(1000, per=1, burst=1000, unit="tokens", cost=7)])
        async def costly(ctx: Context) -> int:
            sink.start(ctx)
            ctx.spent("tokens", 3)
            sink.effect(ctx)
            return ctx.fence

        @queue.task(name="dropping", limits=[Concurrency(1, over="drop")])
        async def dropping(ctx: Context) -> int:
            sink.start(ctx)
            sink.effect(ctx)
            return ctx.fence

        @queue.task(name="endless")
        async def endless(ctx: Context) -> None:
            sink.start(ctx)
            self.sleeping.set()
            await asyncio.Event().wait()

        return queue

    async def insist(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """A caller that gets no answer repeats its call."""
        for _ in range(3):
            try:
                return await call()
            except StoreUnavailable:
                continue
        return await call()

    async def enqueue(self, type_: str, *ends: State, **options: Any) -> str:
        options.setdefault("attempts", ATTEMPTS)
        job = NewJob(type_, options=Options(backoff=StoredBackoff("fixed", 0), **options), id=IdMaker().new(self.now))
        await self.insist(lambda: self.queue.submit(job))
        assert job.id
        self.fates[job.id] = ends
        return job.id

    async def rerun(self, job_id: str, *ends: State) -> None:
        """An operator runs a job again as a new one."""
        new_id = IdMaker().new(self.now)
        await self.insist(lambda: self.queue.rerun(job_id, id=new_id))
        self.fates[new_id] = ends
        self.rerun_of[new_id] = job_id

    async def remove(self, job_id: str) -> None:
        """An operator removes a job. From the request on it may be gone, and from the answer on it must be."""
        del self.fates[job_id]
        with suppress(JobNotFound):  # it is removed already: the reply was lost, not the removal
            await self.insist(lambda: self.queue.remove(job_id))
        self.removed.add(job_id)

    async def act(self) -> None:
        """All calls of producers, workers and operators."""
        # open() is repeated like any other call.
        await self.insist(self.queue.open)
        worker = self.worker
        try:
            delayed = await self.enqueue("ok", State.COMPLETED, delay=5_000)
            await self.enqueue("flaky", State.COMPLETED, priority=-1)
            await self.enqueue("doomed", State.FAILED)
            await self.enqueue("snoozing", State.COMPLETED)
            await self.enqueue("throttled", State.COMPLETED)
            await self.enqueue("throttled", State.COMPLETED, limits=("throttled",))
            await self.enqueue("ok", State.COMPLETED, key="once", lifo=True)
            await self.remove(await self.enqueue("ok", State.COMPLETED, delay=5_000, key="unwanted"))
            while await self.insist(lambda: self.queue.store.do(self.queue.store.rebase(1, -1))):
                pass
            await self.enqueue("limited", State.COMPLETED, limits=("limited",))
            await self.enqueue("limited", State.COMPLETED, limits=("limited",), slots=3)
            for group in ("g", "h"):
                await self.enqueue("grouped", State.COMPLETED, group=group)
            await self.enqueue("breaking", State.COMPLETED, breaker=True)
            await self.enqueue("costly", State.COMPLETED, limits=("costly",), costs={"tokens": 7})
            # No worker has started yet, so the first of these takes the only place.
            await self.enqueue("dropping", State.COMPLETED, limits=("dropping",))
            await self.enqueue("dropping", State.FAILED, limits=("dropping",))
            self.late.add(await self.enqueue("ok", State.FAILED, expires=1_000))
            self.late.add(await self.enqueue("ok", State.FAILED, deadline=1_000, delay=500))
            kept = await self.enqueue("ok", State.COMPLETED, expires=10**9, deadline=10**9)
            await self.rerun(kept, State.COMPLETED)
            self.now += 1_000
            async with worker:
                working = worker.start()
                victim = await self.enqueue("endless", State.FAILED)
                sleeping = asyncio.create_task(self.sleeping.wait())
                await asyncio.wait([working, sleeping], timeout=10, return_when=asyncio.FIRST_COMPLETED)
                sleeping.cancel()
                if working.done():  # It got no answer when it started, so it ends and is started again.
                    self.started = False
                    return
                with suppress(WrongState):  # The job is failed already: the kill was executed and its reply was lost.
                    await self.insist(lambda: self.queue.kill(victim))
                self.now += 5_001
                await self.insist(lambda: self.queue.promote(delayed))
                others = [job_id for job_id in self.fates if job_id != victim]
                for job_id in others:
                    await self.ended(job_id)
        except (WrongState, JobNotFound):
            # If the reply to the promote was lost, the job may already have started.
            pass
        finally:
            if self.queue.is_open:
                await self.queue.aclose()

    async def ended(self, job_id: str) -> None:
        """Wait until a job ends in any way."""
        async with asyncio.timeout(10):
            while True:
                row = await self.insist(lambda: self.queue.get(job_id))
                if row.state in (State.COMPLETED, State.FAILED):
                    return
                # A breaker opens for 1 ms of this clock.
                self.now += 1
                await asyncio.sleep(0.005)

    async def recover(self, healthy: Connection) -> None:
        """The lease runs out, a sweeper recovers the jobs of the dead worker, and a healthy worker runs all jobs to
        their end."""
        self.sleeping = asyncio.Event()
        queue = self.new_queue(healthy)
        async with queue:
            pool = Pool(asyncio.get_running_loop(), 1, round(LEASE * 1000), "sweeper")
            source = pool.add(queue, 1, Resources(), Children())
            self.now += round(LEASE * 1000) + 1
            # Nobody has swept for long, so living workers get a third of the lease to renew.
            for _ in range(3):
                await Sweeper(pool, pool.wakers[0]).reap(source)
                self.now += round(LEASE * 1000 / 6) + 1
            parcel = source.outbox.take()
            if parcel:
                for answer in await source.store.trip(*[call for _, call in parcel.calls(source.store)]):
                    assert not isinstance(answer, StoreError), answer
            async with Worker(queue, concurrency=3, lease=LEASE, grace=5) as worker:
                worker.start()
                async with asyncio.timeout(10):
                    while unfinished(await queue.stats()):
                        if self.sleeping.is_set():  # Its kill was never sent or never acknowledged.
                            self.sleeping.clear()
                            for row in (await queue.page(State.ACTIVE)).jobs:
                                if row.type == "endless":
                                    await queue.kill(row.id)
                        self.now += 1
                        await asyncio.sleep(0.005)
            await self.assert_sound(queue)

    async def assert_sound(self, queue: Queue) -> None:
        """Check the promises."""
        assert await broken(queue.store) == []
        rows = {row.id: row for row in (await queue.page(None, limit=1000)).jobs}
        for job_id, ends in self.fates.items():
            assert job_id in rows, "an acknowledged job is lost"
            assert rows[job_id].state in ends, rows[job_id]
        assert not self.removed & rows.keys(), "a removed job came back"
        assert not self.late & self.sink.starts.keys(), "a late job started"
        for new_id, job_id in self.rerun_of.items():
            assert (rows[new_id].rerun_of, rows[job_id].reruns) == (job_id, [new_id])
        for job_id, row in rows.items():
            lines = [line.message for line in await queue.logs(job_id)]
            assert len(set(lines)) == len(lines), "a log line is stored twice"
            assert row.attempts_made <= ATTEMPTS, "more attempts than allowed"
            planned = 2 if row.type in ("flaky", "snoozing", "throttled", "breaking") else 1
            # One fault may use one attempt of each job that ran.
            assert self.sink.starts.get(job_id, 0) <= planned + 1, row
            if row.state is State.COMPLETED:
                assert row.result is not None
                assert self.sink.effects[job_id] == int(bytes(row.result)), "the effect is another run's"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead worker does not wait until its Redis is back."""
    monkeypatch.setattr(life, "SETTLE_SECONDS", 0.02)


async def at_each_trip(scenario: Callable[[int], Awaitable[int]]) -> None:
    """Run a scenario without a fault, then with a fault at each of its trips, several of them side by side.

    ``scenario`` takes the number of the trip, and returns how many trips there were.
    """
    trips = await scenario(-1)
    assert trips > 10
    turn = asyncio.Semaphore(AT_A_TIME)

    async def one(at: int) -> None:
        async with turn:
            await scenario(at)

    async with asyncio.TaskGroup() as group:
        for at in range(trips):
            group.create_task(one(at))


async def run_once(server: Server, at: int, fault: Fault) -> int:
    """Run the scenario with a fault at one trip. Returns the number of trips."""
    faulty, healthy = FaultyConnection(server.url, at=at, fault=fault), Connection(server.url)
    scenario = Scenario(faulty)
    try:
        task = asyncio.create_task(scenario.act())
        while not task.done() and not faulty.dead:
            await asyncio.wait([task], timeout=0.01)
        if faulty.dead:
            # This is as near to a SIGKILL as one process can come, because nothing is awaited.
            scenario.worker.stop()
            scenario.worker.stop()
            task.cancel()
        try:
            await task
        except (asyncio.CancelledError, StoreUnavailable):
            assert faulty.dead or not scenario.started
        await scenario.recover(healthy)
    except BaseException as error:
        error.add_note(f"queue {scenario.name}: {fault} at trip {at}: {faulty.hit}")
        raise
    finally:
        await faulty.aclose()
        await healthy.aclose()
    return faulty.trips


@pytest.mark.slow
@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("retries", [True, False], ids=["store-retries", "fault-reaches-engine"])
async def test_no_job_is_lost_when_any_trip_fails_or_its_process_dies(
    server: Server, connection: Connection, fault: Fault, retries: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep."""
    if not retries:
        monkeypatch.setattr(route_module, "PAUSES", ())
    await at_each_trip(lambda at: run_once(server, at, fault))


async def use_drop_and_use_again(name: str, faulty: FaultyConnection) -> list[str]:
    """What was acknowledged, in its order."""
    done: list[str] = []

    async def insist(what: str, call: Callable[[Queue], Awaitable[Any]], queue: Queue) -> None:
        for last in (False, False, True):
            try:
                await call(queue)
                break
            except StoreUnavailable:
                if last or faulty.dead:
                    raise
        done.append(what)

    async with AsyncExitStack() as stack:
        stack.enter_context(suppress(StoreUnavailable))
        queue = Queue(name, faulty)
        await insist("opened", lambda queue: queue.open(), queue)
        stack.push_async_callback(queue.aclose)
        await insist("old", lambda queue: queue.submit(NewJob("ok", id="old")), queue)
        await insist("dropped", lambda queue: queue.drop(force=True), queue)
        await insist("new", lambda queue: queue.submit(NewJob("ok", id="new", options=Options(key="k"))), queue)
    return done


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("retries", [True, False], ids=["store-retries", "fault-reaches-engine"])
async def test_each_trip_of_a_queue_that_is_dropped_and_used_again_cut(
    server: Server, connection: Connection, fault: Fault, retries: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drop that is repeated takes no job of the new queue, and one that was acknowledged leaves none of the old."""
    if not retries:
        monkeypatch.setattr(route_module, "PAUSES", ())

    async def scenario(at: int) -> int:
        faulty, name = FaultyConnection(server.url, at=at, fault=fault), f"drop{next(_numbers)}"
        done = await use_drop_and_use_again(name, faulty)
        await faulty.aclose()
        if at < 0:
            assert done == ["opened", "old", "dropped", "new"]
        async with Queue(name, connection) as queue:
            assert await broken(queue.store) == []
            rows = {row.id for row in (await queue.page(State.WAITING)).jobs}
        where = f"{fault} at trip {at}: {faulty.hit}, acknowledged {done}"
        assert "new" in rows or "new" not in done, where
        assert "old" not in rows or "dropped" not in done, where
        return faulty.trips

    await at_each_trip(scenario)


async def migrate_a_page(store: Sender) -> bool:
    """A migration to a layout of this test: progress is kept in the column of the logs."""
    found = await store.command(b"HGETALL", store.keys["progress"])
    for job_id, value in list(zip(found[::2], found[1::2], strict=True))[:2]:
        await store.command(b"HSET", store.keys["logs"], job_id, value)
        await store.command(b"HDEL", store.keys["progress"], job_id)
    return len(found) > 4


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("retries", [True, False], ids=["store-retries", "fault-reaches-engine"])
async def test_each_trip_of_a_migration_cut(
    server: Server, connection: Connection, fault: Fault, retries: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens the queue next continues it. The new layout is written only when every row is moved."""
    if not retries:
        monkeypatch.setattr(route_module, "PAUSES", ())
    rows = {f"j{n}".encode(): b"%d" % n for n in range(5)}

    async def scenario(at: int) -> int:
        healthy = Store(connection, f"migration{next(_numbers)}")
        await healthy.command(b"HSET", healthy.keys["meta"], b"layout", 1)
        await healthy.command(b"HSET", healthy.keys["progress"], *itertools.chain(*rows.items()))
        faulty = FaultyConnection(server.url, at=at, fault=fault)
        with suppress(StoreUnavailable):
            await Store(faulty, healthy.name).open(wanted=2, migrations={1: migrate_a_page})
        await faulty.aclose()
        layout = await healthy.command(b"HGET", healthy.keys["meta"], b"layout")
        left = await healthy.command(b"HLEN", healthy.keys["progress"])
        assert layout == b"1" or not left, f"{fault} at trip {at}: {faulty.hit}"
        await healthy.open(wanted=2, migrations={1: migrate_a_page})
        moved = await healthy.command(b"HGETALL", healthy.keys["logs"])
        assert dict(zip(moved[::2], moved[1::2], strict=True)) == rows
        assert await healthy.command(b"HGET", healthy.keys["meta"], b"layout") == b"2"
        return faulty.trips

    await at_each_trip(scenario)
