"""Jobs that take several slots of their worker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Concurrency, InvalidJob, Queue, Rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools import Gate

    from tests.conftest import Until


class Load:
    """The slots of the running jobs, and the most that ever were taken."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def run(self, slots: int) -> None:
        self.now += slots
        self.most = max(self.most, self.now)
        for _ in range(5):
            await asyncio.sleep(0)
        self.now -= slots


async def test_a_worker_takes_no_more_jobs_than_it_has_slots_for(queue: Queue, start: Callable[..., Any]):
    loads: dict[str, Load] = {}

    @queue.task
    async def work(slots: int) -> None:
        from jobq.engine.task.context import current

        await loads.setdefault(current.get().worker, Load()).run(min(slots, 5))

    jobs = [
        await work.options(slots=slots).enqueue(slots) for slots in [1, 4, 1, 1, 2, 5, 3, 1, 1, 9, 1, 2, 2, 4, 1] * 4
    ]
    await start(concurrency=5)
    await start(concurrency=5)
    await asyncio.gather(*(job.result(20) for job in jobs))
    assert max(load.most for load in loads.values()) <= 5
    assert (await queue.stats()).completed == len(jobs)


async def test_a_large_job_starts_when_enough_slots_are_free_and_is_not_overtaken(
    queue: Queue, start: Callable[..., Any], gate: Gate, until: Until
):
    order: list[str] = []
    ends = {name: asyncio.Event() for name in ("a", "b", "large", "last")}

    @queue.task
    async def work(name: str) -> None:
        order.append(name)
        await ends[name].wait()

    await work.enqueue("a")
    await work.enqueue("b")
    await work.options(slots=3).enqueue("large")
    last = await work.enqueue("last")
    worker = await start(concurrency=4)
    await until(lambda: order == ["a", "b"], "the first two jobs")
    ends["a"].set()
    await until(lambda: order == ["a", "b", "large"], "the large job")
    assert worker.running == 2
    ends["large"].set()
    ends["b"].set()
    ends["last"].set()
    await last.result(10)


async def test_another_worker_with_enough_free_slots_takes_the_job(
    queue: Queue, start: Callable[..., Any], gate: Gate, until: Until
):
    """The worker that took the wake token has too few. It must not keep the news to itself."""
    where: dict[str, str] = {}

    @queue.task
    async def work(name: str) -> None:
        from jobq.engine.task.context import current

        where[name] = current.get().worker
        await gate.passing(name)

    for name in "abcdef":
        await work.options(slots=2).enqueue(name)
    busy = await start(concurrency=3)
    await gate.arrival()
    other = await start(concurrency=12)
    for _ in range(5):
        await gate.arrival()
    assert where["a"] == busy.name
    assert {where[name] for name in "bcdef"} == {other.name}


async def test_slots_of_one_queue_are_freed_by_the_jobs_of_another(
    queue: Queue, start: Callable[..., Any], until: Until
):
    other, may_end, ran = Queue("other", queue.store.connection), asyncio.Event(), asyncio.Event()

    @other.task
    async def small() -> None:
        await may_end.wait()

    @queue.task(slots=3)
    async def large() -> None:
        ran.set()

    async with other:
        worker = await start(queue, other, concurrency=3)
        await small.enqueue()
        await until(lambda: worker.running == 1, "the small job")
        await large.enqueue()
        may_end.set()
        async with asyncio.timeout(10):
            await ran.wait()


async def test_slots_count_under_limits_and_under_the_rule_of_the_queue(
    queue: Queue, start: Callable[..., Any], gate: Gate, until: Until
):
    running: list[int] = []

    @queue.task(slots=2, limits=[Concurrency(5)])
    async def work(n: int) -> None:
        running.append(n)
        await gate.passing()

    await work.enqueue_many([{"n": n} for n in range(4)])
    await start(concurrency=20)
    await until(lambda: running == [0, 1], "two jobs with four slots")
    [rule] = await queue.limits()
    assert (rule.active, rule.held) == (4, 2)
    await queue.set_limit("work", concurrency=20)
    await until(lambda: len(running) == 4, "the others")


async def test_a_handler_that_waits_for_another_job_lends_all_its_slots(queue: Queue, start: Callable[..., Any]):
    @queue.task(slots=2)
    async def inner() -> str:
        return "inner"

    @queue.task(slots=3)
    async def outer() -> str:
        return await (await inner.enqueue()).result(timeout=10)

    await start(concurrency=3)
    assert await (await outer.enqueue()).result(timeout=10) == "inner"


@pytest.mark.parametrize("slots", [0, -1, 101, 1.5, True, "2"])
def test_slots_out_of_range_are_refused(slots: Any):
    with pytest.raises(InvalidJob, match=r"slots is .*: it takes 1 to 100"):
        Queue("q").task(slots=slots)(lambda: None)


async def test_a_job_shows_its_slots(queue: Queue):
    job = await queue.enqueue("t", slots=7)
    assert (await queue.get(job.id)).slots == 7


@pytest.mark.parametrize("held_back", ["slots", "concurrency", "rate"])
async def test_a_worker_that_can_start_nothing_does_not_ask_again_and_again(
    queue: Queue, start: Callable[..., Any], gate: Gate, monkeypatch: pytest.MonkeyPatch, held_back: str
):
    """Jobs of groups are held behind one that cannot start before others end, or before a token is free. The worker
    claimed again at once, some hundred times a second."""

    @queue.task(slots=3)
    async def large() -> None:
        await gate.passing()

    @queue.task
    async def small() -> None: ...

    rules: dict[str, dict[str, Any]] = {"concurrency": {"concurrency": 3}, "rate": {"rate": Rate(1, per="1h", burst=1)}}
    if held_back in rules:
        await queue.set_limit("queue", **rules[held_back])
    await start(concurrency=4)
    first = await large.enqueue()
    await gate.arrival()
    await large.enqueue()
    for group in "abc":
        await small.options(group=group).enqueue_many([{}] * 3)

    claims = 0
    claim = queue.store.claim

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal claims
        claims += 1
        return claim(*args, **options)

    monkeypatch.setattr(queue.store, "claim", counted)
    for _ in range(300):
        await queue.stats()
    assert claims < 20
    gate.open()
    assert await first.result(10) is None
