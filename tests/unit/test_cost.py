"""The cost of a job, counted instead of timed: redis.call()s inside the scripts, scripts, and trips to the server.

A change that makes one of these numbers grow makes every job slower on every machine. Lower them if a job becomes
cheaper. The clock stands still and the server is real, so the numbers are the same everywhere.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import Mock

import pytest

from jobq import Queue, Worker
from jobq.engine.store import lua
from jobq.engine.worker import sweeper, waker
from jobq.engine.worker.notes import Notes, log_rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from jobq import Connection
    from jobq.engine.store import Store
    from tests.conftest import Until

OURS = {"evalsha", "eval", "info", "bzpopmin", "xlen"}
"""Commands that no script calls, including those of this file."""


HOUR = 3600.0


class Cost(NamedTuple):
    """Of one thing done."""

    calls: int
    scripts: int
    trips: int


class Meter:
    """Counts the commands that the server executes, and the trips on one connection."""

    def __init__(self, connection: Connection, admin: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self._admin = admin
        self._trip = connection.trip
        self._trips = 0

        async def counted(payload: bytes, replies: int, **words: Any) -> list[Any]:
            # Blocking for the wake token is waiting and not work.
            self._trips += b"BZPOPMIN" not in payload
            return await self._trip(payload, replies, **words)

        monkeypatch.setattr(connection, "trip", counted)

    async def _executed(self) -> dict[str, int]:
        text = await self._admin.command(b"INFO", b"commandstats")
        found: dict[str, int] = {}
        for line in text.decode().splitlines():
            name, colon, facts = line.partition(":calls=")
            if colon:
                found[name.removeprefix("cmdstat_")] = int(facts.partition(",")[0])
        return found

    async def all_settled(self, queue: Queue) -> bool:
        """Whether outcomes are stored and a worker waits for jobs again. The check itself sends no command that is
        counted."""
        told = await self._admin.command(b"XLEN", queue.store.keys["events"])
        return told > 0 and b"blocked_clients:1" in await self._admin.command(b"INFO", b"clients")

    async def of(self, doing: Awaitable[Any]) -> tuple[Cost, Any]:
        """The cost of awaiting something, and its result."""
        before = await self._executed()
        self._trips = 0
        answer = await doing
        trips = self._trips
        spent = {name: calls - before.get(name, 0) for name, calls in (await self._executed()).items()}
        calls = sum(count for name, count in spent.items() if name not in OURS)
        return Cost(calls, spent.get("evalsha", 0) + spent.get("eval", 0), trips), answer


@pytest.fixture
async def queue(connection: Connection) -> AsyncIterator[Queue]:
    """A queue whose clock stands still. The server knows its scripts, and the extra cost of the first job is paid."""
    async with Queue("cost", connection, clock=lambda: 1_700_000_000_000) as queue:
        for script in lua.scripts().values():
            await queue.store.command(b"SCRIPT", b"LOAD", script.source)
        first = await queue.enqueue("noop")
        await queue.remove(first.id)
        yield queue


@pytest.fixture
def meter(connection: Connection, admin: Store, monkeypatch: pytest.MonkeyPatch) -> Meter:
    """On the queue's connection."""
    return Meter(connection, admin, monkeypatch)


@pytest.mark.parametrize("jobs", [1, 100])
async def test_cost_of_a_batch_does_not_depend_on_its_size(queue: Queue, meter: Meter, jobs: int) -> None:
    store = queue.store
    news = [queue.new("noop", {"n": n}) for n in range(jobs)]
    enqueued, _ = await meter.of(queue.submit_many(news))
    forwarded, _ = await meter.of(store.do(store.forward(100)))
    claimed, claim = await meter.of(store.do(store.claim(jobs, 30_000, "w", "w:0", 1, repeated=False)))
    assert len(claim.ids) == jobs
    done: list[Any] = []
    for job_id in claim.ids:
        done += (job_id, claim.token, b"[]", b"")
    counts: list[Any] = [b"run5:noop", jobs, b"wait9:noop", jobs, b"run_us:noop", 20, b"wait_us:noop", 300]
    completed, settled = await meter.of(store.do(store.complete(done, counts)))
    assert settled.lost == []

    assert {"enqueue": enqueued, "forward": forwarded, "claim": claimed, "complete": completed} == {
        "enqueue": Cost(calls=4 if jobs == 1 else 5, scripts=1, trips=1),
        "forward": Cost(calls=2, scripts=1, trips=1),
        # One call reads the lane's record, so that a claim that is executed late is refused. Two of the 17 turn
        # lists into tables: more calls and less work (decision 20).
        "claim": Cost(calls=12 if jobs == 1 else 17, scripts=1, trips=1),
        # Two of them add up the times, which a mean needs.
        "complete": Cost(calls=13, scripts=1, trips=1),
    }


async def test_cost_of_log_lines_is_that_of_their_jobs(queue: Queue, meter: Meter) -> None:
    store = queue.store
    await queue.submit_many([queue.new("noop") for _ in range(2)])
    claim = await store.do(store.claim(2, 30_000, "w", "w:0", 1, repeated=False))
    assert claim is not None
    notes, speakers = Notes(), {job_id: Mock(lines=0) for job_id in claim.ids}
    for n in range(300):
        for job_id in claim.ids:
            notes.log((job_id, claim.token), speakers[job_id], f"{n}", 0, appends=False)
    cost, _ = await meter.of(store.do(store.log(log_rows(notes.take([], 2)))))
    assert cost == Cost(calls=6, scripts=1, trips=1)
    for job_id in claim.ids:
        text = await store.command(b"HGET", store.keys["logs"], job_id)
        assert len(text.splitlines()) == 1 + 300


@pytest.mark.parametrize(("jobs", "most"), [(1, Cost(117, 20, 14)), (100, Cost(141, 20, 14))])
async def test_cost_of_a_worker(
    queue: Queue, meter: Meter, until: Until, monkeypatch: pytest.MonkeyPatch, jobs: int, most: Cost
) -> None:
    """All commands of a worker: it starts with waiting jobs, runs them, waits for more, and stops. When it starts, it
    looks once for schedules, and for partitions.

    The bounds do not depend on the load of the machine. Nothing here is due at a certain time. No handler ends
    before all have started, so all outcomes are sent together. The worker stops only when it waits for jobs again.
    """
    monkeypatch.setattr(sweeper, "interval", lambda lease_ms: HOUR)
    monkeypatch.setattr(waker, "BLOCK", HOUR)
    started = 0
    all_started, may_end = asyncio.Event(), asyncio.Event()
    ended: asyncio.Queue[int] = asyncio.Queue()

    @queue.task
    async def noop(n: int) -> None:
        nonlocal started
        started += 1
        if started == jobs:
            all_started.set()
        await may_end.wait()
        ended.put_nowait(n)

    await noop.enqueue_many([{"n": n} for n in range(jobs)])

    async def work() -> None:
        async with Worker(queue, concurrency=100, lease=HOUR) as worker:
            worker.start()
            await all_started.wait()
            may_end.set()
            for _ in range(jobs):
                await ended.get()
            await until(lambda: meter.all_settled(queue), "the worker has settled all, and listens")

    cost, _ = await meter.of(work())
    assert (await queue.stats()).completed == jobs
    # This is a bound, because connections answer in any order. A histogram takes a call for each bucket with runs.
    assert all(got <= bound for got, bound in zip(cost, most, strict=True)), f"{cost}, at most {most}"
