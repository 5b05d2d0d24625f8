"""Circuit breakers with real workers: a type that fails too often starts no more jobs for a time."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Breaker, Context, InvalidJob, Queue, RateLimited, Settings, Snooze, UnknownBreaker, inject

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobq import BreakerRow
    from tests.conftest import Until


async def the(queue: Queue) -> BreakerRow:
    [row] = await queue.breakers()
    return row


async def test_it_opens_holds_the_type_lets_one_job_through_and_closes(
    queue: Queue, start: Callable[..., Any], until: Until, caplog: pytest.LogCaptureFixture
):
    loop = asyncio.get_running_loop()
    works = False
    starts: list[float] = []

    @queue.task(breaker=Breaker(rate=0.5, runs=4, open_for="500ms"), attempts=1)
    async def call(n: int) -> int:
        starts.append(loop.time())
        if not works:
            raise ConnectionError("the service is away")
        return n

    @queue.task
    async def other() -> None: ...

    await start(concurrency=1)
    jobs = await call.enqueue_many([{"n": n} for n in range(10)])
    await until(lambda: opened(queue), "the breaker to open")
    works = True
    first = len(starts)
    assert 4 <= first <= 6, "at most those that were claimed already"
    row = await the(queue)
    assert (row.type, row.rate, row.runs, row.open_for, row.seen) == ("call", 0.5, 4, 500, 0)
    await (await other.enqueue()).result(10)
    assert await asyncio.gather(*(job.result(20) for job in jobs[first:])) == list(range(first, 10))
    assert starts[first] - starts[3] >= 0.5
    row = await the(queue)
    assert (row.state, row.open_until, row.failed) == ("closed", None, 0)
    said = [record for record in caplog.records if "The breaker of type call" in record.getMessage()]
    assert [record.getMessage().split(":")[0] for record in said] == [
        "The breaker of type call opened for 0.5 s, because too many runs failed",
        "The breaker of type call closed",
    ]
    assert "came too late" not in caplog.text


async def opened(queue: Queue) -> bool:
    return [row.state for row in await queue.breakers()] == ["open"]


async def test_snoozes_rate_limits_and_kills_are_no_failures(queue: Queue, start: Callable[..., Any], until: Until):
    @queue.task(breaker=Breaker(rate=1, runs=3))
    async def call(how: str, ctx: Context = inject) -> None:
        if how == "kill":
            await queue.kill(ctx.id)
            await asyncio.Event().wait()
        if not ctx.snoozes and not ctx.rate_limited:
            raise Snooze(0) if how == "snooze" else RateLimited(retry_after=0, scope="job")

    await start()
    _, *others = await call.enqueue_many([{"how": how} for how in ("kill", "snooze", "limit")])
    await asyncio.gather(*(job.result(10) for job in others))
    await until(lambda: killed_one(queue), "the kill")
    row = await the(queue)
    assert (row.state, row.failed, row.seen) == ("closed", 0, 2)


async def killed_one(queue: Queue) -> bool:
    return (await queue.stats()).failed == 1


async def test_a_timeout_is_a_failure(queue: Queue, start: Callable[..., Any], until: Until):
    @queue.task(breaker=Breaker(rate=1, runs=1, open_for=timedelta(hours=1)), timeout=0.05)
    async def call() -> None:
        await asyncio.Event().wait()

    await call.enqueue()
    await start()
    await until(lambda: opened(queue), "the breaker to open")


async def test_a_lost_lease_is_a_failure(queue: Queue, start: Callable[..., Any], until: Until):
    @queue.task(breaker=Breaker(rate=1, runs=1, open_for="1h"))
    async def call() -> None: ...

    await call.enqueue()
    store = queue.store
    # a worker that dies between its claim and its first sign of life
    store.limited = True
    await store.do(store.breaker("declare", "call", "1.000000 1 3600000"))
    await store.do(store.admit(10, 10, 1))
    assert await store.do(store.claim(10, 300, "dead", "dead:0", 1, repeated=False)) is not None
    await start(lease=0.3)
    await until(lambda: opened(queue), "the breaker to open")


async def test_an_operator_trips_and_resets_it(queue: Queue, start: Callable[..., Any], until: Until):
    @queue.task(breaker=Breaker())
    async def call() -> int:
        return 1

    await start()
    await until(lambda: declared(queue), "the worker to declare it")
    row = await queue.trip_breaker("call", "1h")
    assert row.state == "open"
    job = await call.enqueue()
    await until(lambda: holds(queue, 1), "the job to be held")
    assert (await job.row()).limits == [], "it is no limit"
    row = await queue.reset_breaker("call")
    assert row.state == "closed"
    assert await job.result(10) == 1
    assert (await queue.trip_breaker("call")).open_until is not None
    with pytest.raises(UnknownBreaker, match="type 'cal' has no circuit breaker; there are: call"):
        await queue.trip_breaker("cal")
    for wrong in (0, "soon", True):
        with pytest.raises(InvalidJob, match="the time"):
            await queue.trip_breaker("call", wrong)


async def declared(queue: Queue) -> bool:
    return len(await queue.breakers()) == 1


async def holds(queue: Queue, jobs: int) -> bool:
    return (await the(queue)).held == jobs


async def test_a_producer_without_the_code_and_a_call_with_limits_of_its_own_keep_the_breaker(
    queue: Queue, connection: Any, start: Callable[..., Any], until: Until
):
    @queue.task(breaker=Breaker())
    async def call() -> None: ...

    await start()
    await until(lambda: published(queue), "the worker to publish its options")
    await queue.set_limit("r", concurrency=9)
    await queue.trip_breaker("call", "1h")
    async with Queue(queue.name, connection) as producer:
        await producer.enqueue("call")
        await producer.enqueue("call", limits=["r"])
    await call.options(limits=["r"]).enqueue()
    await until(lambda: holds(queue, 3), "all to be held by the breaker")


async def published(queue: Queue) -> bool:
    return bool(await queue.types())


@pytest.mark.parametrize("make", [
    lambda: Breaker(rate=0), lambda: Breaker(rate=1.1), lambda: Breaker(rate=True), lambda: Breaker(runs=0),
    lambda: Breaker(runs=1001), lambda: Breaker(open_for=0), lambda: Breaker(open_for="x"),
])  # fmt: skip
def test_numbers_out_of_range_are_refused(make: Callable[[], Any]):
    with pytest.raises(InvalidJob):
        make()


def test_only_a_task_takes_one():
    queue = Queue("mail")
    wrong: Any = 0.5
    with pytest.raises(InvalidJob, match=r"breaker is 0\.5: it takes Breaker"):

        @queue.task(breaker=wrong)
        async def send() -> None: ...

    given: Any = {"breaker": Breaker()}
    with pytest.raises(InvalidJob, match="only a task takes Breaker"):
        queue.new("send", **given)
    assert repr(Breaker(rate=0.25, open_for="1m")) == "Breaker(rate=0.25, runs=20, open_for=60)"
    assert len({Breaker(), Breaker(), Breaker(runs=3)}) == 2


async def test_the_number_of_breakers_is_a_setting(redis_url: str, caplog: pytest.LogCaptureFixture):
    async with Queue("test", settings=Settings(redis_url=redis_url, max_breakers=1)) as queue:
        for name in ("first", "second"):

            @queue.task(name=name, breaker=Breaker())
            async def work() -> None: ...

            await work.enqueue()
        assert [row.type for row in await queue.breakers()] == ["first"]
    assert "second was not declared: a queue has 1 breakers at most (JOBQ_MAX_BREAKERS)" in caplog.text
