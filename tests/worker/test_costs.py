"""Rates that count what jobs cost, and handlers that say what their runs really cost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Concurrency, Context, InvalidJob, Queue, Rate, State, inject
from jobq.testing import FakeContext

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Until


async def spent(queue: Queue, key: str) -> float:
    """The time in ms for which a key owes tokens."""
    stored = await queue.store.command(b"ZSCORE", queue.store.keys["spent"], f"{key}\0001")
    return float(stored or 0)


async def test_a_cost_is_an_argument_and_the_real_one_is_stored_with_the_outcome(
    queue: Queue, start: Callable[..., Any]
):
    @queue.task(limits=[Rate(100, per="1d", burst=100, unit="tokens", by="model", cost="size")])
    async def work(model: str, size: int = 30, ctx: Context = inject) -> None:
        if model == "told":
            ctx.spent("tokens", 7)
            ctx.spent("tokens", 9.5)

    await start()
    told = await work.enqueue("told", 50)
    default = await work.enqueue("default")
    await told.result(10)
    await default.result(10)
    assert (await told.row()).costs == {"tokens": 10}
    assert (await default.row()).costs == {"tokens": 30}
    minute = 24 * 3600 * 1000 / 100
    assert await spent(queue, "work.model:default") - await spent(queue, "work.model:told") == pytest.approx(
        20 * minute, abs=5000
    )


@pytest.mark.parametrize("where", ["thread", "fails"])
async def test_the_real_cost_counts_from_threads_and_from_runs_that_fail(
    queue: Queue, start: Callable[..., Any], until: Until, where: str
):
    def said(ctx: Context) -> None:
        ctx.spent("tokens", 3)
        if where == "fails":
            raise ValueError(where)

    queue.task(name="work", attempts=1, limits=[Rate(10, per="1d", burst=10, unit="tokens", cost=8)])(said)
    await start()
    job = await queue.enqueue("work")

    async def ended() -> bool:
        return (await job.row()).state in (State.COMPLETED, State.FAILED)

    await until(ended, "the end of the job")
    assert (await job.row()).costs == {"tokens": 3}


async def test_a_job_waits_for_as_many_tokens_as_it_costs(queue: Queue, start: Callable[..., Any], until: Until):
    ran: list[int] = []

    @queue.task(limits=[Rate(10, per="1d", burst=10, unit="tokens", cost="n")])
    async def work(n: int) -> None:
        ran.append(n)

    await work.enqueue_many([{"n": 6}, {"n": 5}, {"n": 1}])
    await start()
    await until(lambda: ran == [6], "the first job")

    async def rest_is_held() -> bool:
        return (await queue.stats()).held == 2

    await until(rest_is_held, "the others to wait")
    await queue.set_limit("work", rate=Rate(10_000, per="1s", burst=10, unit="tokens"))
    await until(lambda: ran == [6, 5, 1], "the others, in their order")


async def test_costs_of_a_single_enqueue_replace_those_of_the_task(queue: Queue):
    @queue.task(limits=[Rate(10, per="1s", unit="tokens", cost="n"), Rate(5, per="1s", unit="calls", cost=2)])
    async def work(n: int) -> None: ...

    assert (await (await work.enqueue(4)).row()).costs == {"calls": 2, "tokens": 4}
    assert (await (await work.options(costs={"tokens": 99}).enqueue(4)).row()).costs == {"tokens": 99}
    assert (await (await work.options(costs=None).enqueue(4)).row()).costs == {}


@pytest.mark.parametrize(
    ("limit", "why"),
    [
        (lambda: Rate(1, per=1, cost=5), "no unit"),
        (lambda: Rate(1, per=1, unit="a b", cost=5), "unit 'a b': it takes 1 to 32 letters"),
        (lambda: Rate(1, per=1, unit="t", cost=-1), "cost is -1: a cost takes a number from 0"),
        (lambda: Rate(1, per=1, unit="t", cost="m"), "cost='m' names no argument of 'work'; there are n"),
    ],
)
def test_a_cost_that_cannot_be_charged_is_refused_at_import(limit: Callable[[], Rate], why: str):
    with pytest.raises(InvalidJob, match=why):

        @Queue("q").task(limits=[limit()])
        async def work(n: int) -> None: ...


def test_a_rate_of_the_whole_queue_has_no_unit():
    with pytest.raises(InvalidJob, match="a rate of the whole queue counts jobs"):
        Queue("q", limits=[Concurrency(5), Rate(1, per=1, unit="tokens")])


@pytest.mark.parametrize("n", ["many", -5, True, 1e300])
async def test_an_argument_that_is_no_cost_is_refused_at_the_enqueue(queue: Queue, n: Any):
    @queue.task(limits=[Rate(10, per="1s", unit="tokens", cost="n")])
    async def work(n: Any) -> None: ...

    with pytest.raises(InvalidJob, match=r"n is .*: a cost takes a number from 0 to 1000000000"):
        await work.enqueue(n)


def test_a_fake_context_keeps_what_a_handler_spent():
    context = FakeContext()
    context.spent("tokens", 12)
    assert context.costs == {"tokens": 12}
    with pytest.raises(InvalidJob, match="a cost takes"):
        context.spent("tokens", -1)


async def test_real_costs_leave_room_for_more_jobs_at_once(queue: Queue, start: Callable[..., Any], until: Until):
    ran = 0

    @queue.task(limits=[Rate(1, per="1d", burst=10, unit="tokens", cost=10)])
    async def work(ctx: Context = inject) -> None:
        nonlocal ran
        ran += 1
        ctx.spent("tokens", 0)
        await asyncio.sleep(0)

    await start()
    await work.enqueue_many([{}] * 5)
    await until(lambda: ran == 5, "all jobs: none of them really cost anything")
