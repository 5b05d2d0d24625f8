"""Queue(aging=...): programs that share a queue, the order of a worker, retries, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from jobq import Connection, InvalidJob, Queue, State, StoreRefused, Unique, Worker

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = 1_700_000_000_000


class Clock:
    now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_a_worker_starts_jobs_by_priority_and_waiting_time(connection: Connection, clock: Clock):
    order: list[str] = []
    async with Queue("aged", connection, aging=60, clock=clock) as queue:

        @queue.task
        async def note(name: str) -> None:
            order.append(name)

        await note.options(priority=1).enqueue("old")
        late = await note.options(priority=2, delay=60).enqueue("due after a minute")
        clock.now += 61_000
        jobs = [await note.enqueue("new"), await note.options(priority=-1).enqueue("urgent"), late]
        assert (await queue.stats()).aging_ms == 60_000
        [reason] = [one for one in (await queue.why(jobs[0].id)).reasons if one.code == "behind"]
        assert reason.detail == (
            "2 jobs stand before it, by priority and by waiting time: a step of priority is worth 1 min of waiting."
        )
        clock.now += 200_000
        async with Worker(queue, concurrency=1) as worker:
            worker.start()
            for job in jobs:
                await job.result(timeout=10)
    assert order == ["urgent", "old", "new", "due after a minute"]


async def test_no_job_starves_while_urgent_ones_keep_coming(connection: Connection, clock: Clock):
    """Each urgent job enqueues the next one, a second later."""
    order: list[int] = []
    async with Queue("aged", connection, aging=10, clock=clock) as queue:

        @queue.task
        async def urgent(n: int) -> None:
            order.append(n)
            clock.now += 1_000
            if n < 100:
                await urgent.options(priority=-2).enqueue(n + 1)

        @queue.task
        async def patient() -> int:
            return len(order)

        waits = await patient.enqueue()
        await urgent.options(priority=-2).enqueue(0)
        async with Worker(queue, concurrency=1) as worker:
            worker.start()
            assert await waits.result(timeout=20) in (20, 21, 22)


async def test_programs_must_agree_and_one_without_a_value_takes_what_is_stored(connection: Connection):
    async with Queue("aged", connection, aging=60) as queue:
        await queue.enqueue("t", {})
        async with Queue("aged", connection) as plain:
            assert (await plain.stats()).aging_ms == 60_000
        with pytest.raises(
            StoreRefused, match=r"has aging=60, and this program declares aging=30.*jobq aging 30s --queue"
        ):
            await Queue("aged", connection, aging=30).open()
        await queue.set_aging(30)
        assert (await queue.stats()).aging_ms == 30_000
        async with Queue("aged", connection, aging=30):
            pass
        await queue.set_aging(None)
        with pytest.raises(StoreRefused, match="has no aging"):
            await Queue("aged", connection, aging=30).open()


async def test_a_queue_that_is_only_read_is_not_made(connection: Connection):
    async with Queue("aged", connection, aging=60) as queue:
        assert (await queue.stats()).aging_ms == 0
        assert "aged" not in await queue.queues()


async def test_a_dropped_queue_has_its_aging_again(connection: Connection):
    async with Queue("aged", connection, aging=60) as queue:
        await queue.enqueue("t", {})
        await queue.drop(force=True)
        await queue.enqueue("t", {}, priority=1)
        assert (await queue.stats()).aging_ms == 60_000
        await queue.enqueue("t", {}, priority=-1)
        first, second = (await queue.page(State.WAITING)).jobs
        assert (first.priority, second.priority) == (-1, 1)


async def test_aging_is_introduced_while_few_jobs_wait(connection: Connection):
    async with Queue("aged", connection) as queue:
        await queue.enqueue("t", {})
        async with Queue("aged", connection, aging=60):
            assert (await queue.stats()).aging_ms == 60_000
        await queue.set_aging(None)
        await queue.enqueue_many([queue.new("t", {}) for _ in range(1001)])
        with pytest.raises(InvalidJob, match=r"1002 jobs of queue 'aged' wait, and aging can change while 1000 wait"):
            await queue.set_aging(60)
    async with Queue("fresh", connection) as queue:
        await queue.enqueue_many([queue.new("t", {}) for _ in range(1001)])
        with pytest.raises(StoreRefused, match=r"1001 jobs of queue 'fresh' wait in the order of absolute priorities"):
            await Queue("fresh", connection, aging=60).open()


@pytest.mark.parametrize("unique", [None, Unique(key="k", while_="queued", on="return")])
async def test_lifo_is_refused(connection: Connection, unique: Any):
    async with Queue("aged", connection, aging=60) as queue:
        given: dict[str, Any] = {"unique": unique} if unique else {}
        with pytest.raises(InvalidJob, match="lifo=True: this queue has aging"):
            await queue.enqueue("t", {}, lifo=True, **given)
        assert (await queue.stats()).waiting == 0


@pytest.mark.parametrize("aging", [0, -1, True, 86_401, float("nan")])
def test_a_time_that_does_not_fit(aging: Any):
    with pytest.raises(InvalidJob):
        Queue("aged", aging=aging)


async def test_reserved_slots_are_for_jobs_that_have_waited_too(
    connection: Connection, clock: Clock, start: Callable[..., Any], gate: Any, until: Any
):
    async with Queue("aged", connection, aging=60, clock=clock) as queue:

        @queue.task
        async def work() -> None:
            await gate.passing()

        for _ in range(5):
            await work.enqueue()
        worker = await start(queue, concurrency=3, reserve={"priority<0": 2})
        await until(lambda: worker.running == 1, "the slot that is not reserved")
        clock.now += 60_001
        await work.enqueue()
        await until(lambda: worker.running == 3, "jobs that have waited a minute")
