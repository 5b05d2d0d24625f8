"""Slots that a worker keeps free for urgent jobs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Queue, Settings, Worker
from jobq.engine.task.context import current

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools import Gate

    from tests.conftest import Until

BELOW_0 = {"priority<0": 2}


async def test_urgent_jobs_start_at_once_while_bulk_work_fills_the_rest_of_several_workers(
    queue: Queue, start: Callable[..., Any], gate: Gate, until: Until
):
    running: dict[str, list[int]] = {}

    @queue.task
    async def work(priority: int) -> None:
        running.setdefault(current.get().worker, []).append(priority)
        await gate.passing()

    await work.enqueue_many([{"priority": 0}] * 30)
    first, second = await start(concurrency=5, reserve=BELOW_0), await start(concurrency=5, reserve=BELOW_0)
    await until(lambda: first.running == second.running == 3, "the slots that are not reserved")
    for _ in range(4):
        await work.options(priority=-1).enqueue(-1)
    await until(lambda: sum(map(len, running.values())) == 10, "the urgent jobs")
    assert [sorted(priorities) for priorities in running.values()] == [[-1, -1, 0, 0, 0]] * 2
    assert (await queue.stats()).waiting == 24


async def test_reserved_slots_are_never_taken_by_others(queue: Queue, start: Callable[..., Any]):
    now: dict[str, int] = {}
    most: list[int] = []

    @queue.task
    async def work(urgent: bool) -> None:
        worker = current.get().worker
        if not urgent:
            now[worker] = now.get(worker, 0) + 1
            most.append(now[worker])
        for _ in range(5):
            await asyncio.sleep(0)
        if not urgent:
            now[worker] -= 1

    await start(concurrency=4, reserve=BELOW_0)
    await start(concurrency=4, reserve=BELOW_0)
    jobs = [
        await work.options(priority=-5 if n % 3 == 0 else 5, slots=1 + n % 2 * (n % 5)).enqueue(n % 3 == 0)
        for n in range(200)
    ]
    await asyncio.gather(*(job.result(20) for job in jobs))
    assert max(most) == 2


async def test_urgent_jobs_use_reserved_slots_first(queue: Queue, start: Callable[..., Any], gate: Gate, until: Until):
    """Otherwise others would get fewer slots than they may have."""

    @queue.task
    async def work() -> None:
        await gate.passing()

    worker = await start(concurrency=4, reserve=BELOW_0)
    await work.options(priority=-1).enqueue()
    await work.options(priority=-1).enqueue()
    await until(lambda: worker.running == 2, "the urgent jobs")
    await work.enqueue_many([{}] * 5)
    await until(lambda: worker.running == 4, "two others")


async def test_a_worker_without_room_for_others_tells_one_that_has(
    queue: Queue, start: Callable[..., Any], gate: Gate, until: Until
):
    @queue.task
    async def work() -> None:
        await gate.passing()

    full = await start(concurrency=3, reserve=BELOW_0)
    await work.enqueue()
    await until(lambda: full.running == 1, "the only slot for others")
    other = await start(concurrency=3, reserve=BELOW_0)
    await work.enqueue()
    await until(lambda: other.running == 1, "the second job")
    await work.enqueue()
    for worker in (full, other):
        assert worker.running == 1
    last = await start(concurrency=3)
    await until(lambda: last.running == 1, "the third job")


async def test_the_setting_reserves_slots_too(queue: Queue):
    queue.settings = Settings(reserve="priority < -3 = 20")
    assert Worker(queue)._plan.reserve == Worker(queue, reserve={"priority<-3": 20})._plan.reserve  # noqa: SLF001


@pytest.mark.parametrize(
    "given",
    [{"priority<0": 0}, {"priority<0": 100}, {"priority<0": True}, {"priority>0": 1}, {"priority<-2000": 1},
     {"priority<0": 1, "priority<5": 1}, {"type=x": 2}],
)  # fmt: skip
def test_a_reserve_that_cannot_be_kept_is_refused(given: Any):
    with pytest.raises(ValueError, match=r"^reserve is .* takes "):
        Worker(Queue("q"), reserve=given, concurrency=100)
