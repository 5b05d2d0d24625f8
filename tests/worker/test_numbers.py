"""Figures for operators: ages, latencies, starts and ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from jobq import Backoff, Context, Queue, State, Worker, inject
from jobq.testing import ManualClock, drain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from jobq import Connection
    from jobq.engine.store import Store
    from tests.conftest import Until

DAY = 24 * 3600


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still until it is advanced."""
    return ManualClock()


@pytest.fixture
async def queue(connection: Connection, clock: ManualClock) -> AsyncIterator[Queue]:
    """A queue with that clock."""
    async with Queue("numbers", connection, clock=clock) as queue:
        yield queue


async def oldest(queue: Queue) -> int | None:
    """The shown age in ms."""
    return (await queue.stats()).oldest_waiting_ms


async def test_the_oldest_waiting_job_is_found_behind_urgent_ones(queue: Queue, clock: ManualClock) -> None:
    await queue.enqueue("t")
    clock.advance(3600)
    await queue.enqueue("t", priority=-1)
    assert await oldest(queue) == 3_600_000


async def test_the_waiting_time_of_a_released_job_starts_at_its_release(queue: Queue, clock: ManualClock) -> None:
    fail = True

    @queue.task(attempts=1)
    async def t() -> None:
        if fail:
            raise ValueError("x")

    job = await t.enqueue()
    await drain(queue)
    clock.advance(3 * DAY)
    fail = False
    await queue.retry(job.id)
    assert await oldest(queue) == 0
    clock.advance(5)
    assert await oldest(queue) == 5_000
    await drain(queue)
    wait = (await queue.stats()).wait
    assert wait is not None
    assert 4_000 < wait.p99 < 9_000, "five seconds, not three days"


async def test_the_waiting_time_after_a_retry_or_promotion_starts_when_the_job_could_run(
    queue: Queue, clock: ManualClock
) -> None:
    store = queue.store
    await queue.enqueue("t")
    claimed = await store.do(store.claim(1, 30_000, "w", "w:0", 1, repeated=False))
    assert claimed is not None
    await store.do(store.reschedule([claimed.ids[0], claimed.token, 1, 10_000, b"{}"]))
    clock.advance(12)
    await store.do(store.forward(10))
    assert await oldest(queue) == 2_000, "since it was due"
    await queue.remove_all(State.WAITING)
    job = await queue.enqueue("t", delay=DAY)
    clock.advance(3600)
    await queue.promote(job.id)
    assert await oldest(queue) == 0


async def test_old_latencies_are_not_counted(queue: Queue, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    # The time between the claim and the start is real, and may be some ms on a busy machine.
    for module in ("claiming", "lane", "run"):
        monkeypatch.setattr(f"jobq.engine.worker.{module}.perf_counter", lambda: 1.0)

    @queue.task
    async def t() -> None: ...

    await t.enqueue()
    clock.advance(600)
    await drain(queue)
    wait = (await queue.stats()).wait
    assert wait is not None
    assert wait.p50 > 500_000
    clock.advance(2 * 3600)
    await t.enqueue()
    await drain(queue)
    wait = (await queue.stats()).wait
    assert wait is not None
    assert (wait.p50 < 1, wait.count) == (True, 1)


async def test_an_active_job_has_a_start_and_a_failed_one_its_last_run(queue: Queue, clock: ManualClock) -> None:
    started = asyncio.Event()
    go_on = asyncio.Event()

    @queue.task(attempts=1, backoff=Backoff("fixed", 0))
    async def t(ctx: Context = inject) -> None:
        ctx.log("hello")
        started.set()
        await go_on.wait()
        raise ValueError("x")

    async with Worker(queue) as worker:
        worker.start()
        job = await t.enqueue()
        await asyncio.wait_for(started.wait(), 10)
        row = await job.row()
        assert (row.state, row.started_at) == (State.ACTIVE, clock())
        worker_id = row.worker
        assert worker_id
        go_on.set()
        with pytest.raises(Exception, match="x"):
            await job.result(timeout=10)
    row = await job.row()
    assert (row.state, row.worker) == (State.FAILED, worker_id)
    assert row.started_at is not None
    assert row.duration is not None
    lines = await queue.logs(job.id)
    assert [(line.message, line.at) for line in lines] == [("hello", clock())], "stamped with the queue's clock"


async def test_workers_and_their_queue_are_found_again_after_redis_was_emptied(
    connection: Connection, admin: Store, until: Until
) -> None:
    queue = Queue("emptied", connection)
    async with queue, Worker(queue, lease=0.3) as worker:
        worker.start()
        await until(queue.workers, "the worker's first heartbeat")
        # In one write, because the worker registers itself again at its next heartbeat.
        _, left = await admin.commands((b"FLUSHALL",), (b"KEYS", b"*"))
        assert left == []

        async def found() -> bool:
            return await queue.queues() == ["emptied"] and len(await queue.workers()) == 1

        await until(found, "the queue and its worker in the registries")
