"""``raise RateLimited``: no attempt is charged, the job keeps its place, and what it names is closed for a time."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import isolated
import pytest

from jobq import (
    Concurrency,
    Context,
    InvalidJob,
    Job,
    Queue,
    Rate,
    RateLimited,
    RemoteError,
    Snooze,
    State,
    UnknownRule,
    inject,
)
from jobq.engine.model.job import DELAY_MAX_MS
from jobq.engine.model.outcome import Throttled, facts, put_off
from jobq.engine.model.policy import RATE_LIMITED_MAX, retry_policy
from jobq.engine.worker.child_errors import pack, rebuild
from jobq.testing import Drained, FakeContext, drain

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools import Gate, Logs

    from tests.conftest import Until


async def test_a_key_is_closed_for_all_its_jobs_and_the_job_comes_back_first(
    queue: Queue, start: Callable[..., Any], until: Until, logs: Logs
):
    loop = asyncio.get_running_loop()
    ran: list[tuple[str, int]] = []
    limited_at = 0.0
    starts: dict[tuple[str, int], float] = {}

    @queue.task(limits=[Concurrency(1, by="tenant")])
    async def call(tenant: str, n: int, ctx: Context = inject) -> None:
        nonlocal limited_at
        if (tenant, n) == ("a", 0) and not ctx.rate_limited:
            limited_at = loop.time()
            raise RateLimited("the quota is used up", retry_after=0.3)
        ran.append((tenant, n))
        starts[tenant, n] = loop.time()

    jobs = await call.enqueue_many([{"tenant": tenant, "n": n} for n in range(3) for tenant in "ab"])
    await start()
    await asyncio.gather(*(job.result(20) for job in jobs))
    assert [n for tenant, n in ran if tenant == "a"] == [0, 1, 2], "it kept its place"
    assert min(starts["a", n] for n in range(3)) - limited_at >= 0.3
    assert max(starts["b", n] for n in range(3)) < min(starts["a", n] for n in range(3)), "other keys go on"
    row = await jobs[0].row()
    assert (row.rate_limited, row.attempts_made, row.errors, row.snoozes) == (1, 1, [], 0)
    assert (await queue.stats()).rate_limited_total == 1
    assert (await queue.briefs(State.COMPLETED)).jobs[-1].rate_limited + 1
    [said] = logs.all("was rate limited for 0.3 s (scope key): the quota is used up", "INFO")
    assert (vars(said)["scope"], vars(said)["rate_limited"]) == ("key", 1)


async def test_without_limit_keys_only_the_job_waits(queue: Queue, logs: Logs):
    @queue.task
    async def call(n: int, ctx: Context = inject) -> None:
        if n == 0 and not ctx.rate_limited:
            raise RateLimited(retry_after=0.05)

    jobs = await call.enqueue_many([{"n": 0}, {"n": 1}])
    assert await drain(queue, include_delayed=True) == Drained(completed=2, rate_limited=1)
    assert [(await job.row()).state for job in jobs] == [State.COMPLETED] * 2
    assert len(logs.all(f"Job {jobs[0].id} has no limit keys to close, so only this job waits")) == 1


async def test_the_queue_is_closed_and_wakes_once(queue: Queue, start: Callable[..., Any], until: Until):
    loop = asyncio.get_running_loop()
    order: list[int] = []
    moments: list[float] = []

    @queue.task
    async def call(n: int, ctx: Context = inject) -> None:
        moments.append(loop.time())
        if n == 0 and not ctx.rate_limited:
            raise RateLimited(retry_after=timedelta(milliseconds=300), scope="queue")
        order.append(n)

    await call.enqueue(0)
    await start(concurrency=1)
    await until(lambda: len(moments) == 1, "the first job to run")
    jobs = await call.enqueue_many([{"n": n} for n in (1, 2)])

    async def closed() -> bool:
        return (await queue.stats()).closed_until is not None

    # The outcome of the first job may be on its way.
    await until(closed, "the queue to be closed")
    stats = await queue.stats()
    assert stats.closed_until is not None
    assert (stats.waiting, order) == (3, [])
    await asyncio.gather(*(job.result(20) for job in jobs))
    # The worker has two claimers, and the reply to the second one may arrive first.
    assert sorted(order[:2]) == [0, 1], "it kept its place"
    assert moments[1] - moments[0] >= 0.3
    assert (await queue.stats()).closed_until is None


async def test_an_operator_opens_what_is_closed(queue: Queue, start: Callable[..., Any], until: Until):
    ran: list[str] = []

    @queue.task(limits=[Concurrency(5, by="tenant", name="tenant")])
    async def call(tenant: str, scope: Any = "key", ctx: Context = inject) -> None:
        if not ctx.rate_limited:
            raise RateLimited(retry_after="1h", scope=scope)
        ran.append(tenant)

    await start()
    job = await call.enqueue(tenant="a")
    await until(lambda: closed_keys(queue, ["tenant:a"]), "the key to be closed")
    [rule] = await queue.limits()
    assert (rule.closed, rule.held) == (1, 1)
    assert rule.closed_until is not None
    await queue.open_limit("tenant:a")
    await job.result(10)
    job = await call.enqueue(tenant="b", scope="queue")
    await until(lambda: queue_closed(queue), "the queue to be closed")
    await queue.open_limit("queue")
    await job.result(10)
    assert ran == ["a", "b"]
    await queue.close_limit("tenant:c", "5m")
    job = await call.enqueue(tenant="c")
    [key] = await queue.limit_keys("tenant")
    assert (key.key, key.held) == ("tenant:c", 1)
    assert key.closed_until == key.opens_at
    with pytest.raises(UnknownRule, match="there is no rule 'tenent'; there are: tenant"):
        await queue.open_limit("tenent:c")
    for wrong in (0, -1, "soon", math.nan, True):
        with pytest.raises(InvalidJob, match="the time"):
            await queue.close_limit("tenant:c", wrong)


async def closed_keys(queue: Queue, keys: list[str]) -> bool:
    return [row.key for row in await queue.limit_keys("tenant") if row.closed_until and row.held] == keys


async def queue_closed(queue: Queue) -> bool:
    stats = await queue.stats()
    return stats.closed_until is not None and not stats.active


async def test_the_bound(queue: Queue):
    runs = 0

    @queue.task(max_rate_limited=3, attempts=None)
    async def call() -> None:
        nonlocal runs
        runs += 1
        raise RateLimited("no quota", retry_after=0, scope="job")

    job = await call.enqueue()
    assert await drain(queue, include_delayed=True) == Drained(failed=1, rate_limited=3)
    row = await job.row()
    assert (runs, row.state, row.rate_limited, row.attempts_made) == (4, State.FAILED, 3, 1)
    (error,) = row.errors
    assert error.type == "TooManyRateLimits"
    assert error.message == "the job was rate limited 3 times, and its task allows 3 (max_rate_limited): no quota"
    await queue.retry(job.id)
    assert (await job.row()).rate_limited == 0, "a retry starts anew"


def test_without_a_task_of_its_own_a_thousand():
    assert put_off(RateLimited(retry_after=1), 0, None, RATE_LIMITED_MAX - 1) == Throttled(1000, "key", "rate limited")
    assert type(put_off(RateLimited(retry_after=1), 0, None, RATE_LIMITED_MAX)).__name__ == "TooManyRateLimits"
    assert RATE_LIMITED_MAX == 1000
    with pytest.raises(TypeError, match="max_rate_limited is -1"):
        retry_policy({"max_rate_limited": -1}, str)


async def test_snoozes_and_rate_limits_are_counted_apart(queue: Queue):
    @queue.task
    async def call(ctx: Context = inject) -> list[int]:
        if not ctx.snoozes:
            raise Snooze(0)
        if ctx.rate_limited < 2:
            raise RateLimited(retry_after=0, scope="job")
        if ctx.snoozes < 2:
            raise Snooze(0)
        return [ctx.snoozes, ctx.rate_limited, ctx.attempt]

    job = await call.enqueue()
    assert await drain(queue, include_delayed=True) == Drained(completed=1, snoozed=2, rate_limited=2)
    assert await job.result(5) == [2, 2, 1]


async def test_from_a_thread_from_middleware_and_from_a_child(queue: Queue):
    @queue.middleware
    async def first(context: Context, call_next: Any) -> Any:
        if context.type == "guarded" and not context.rate_limited:
            raise RateLimited(retry_after=0, scope="job")
        return await call_next()

    @queue.task
    def threaded(ctx: Context = inject) -> int:
        if not ctx.rate_limited:
            raise RateLimited(retry_after=0, scope="job")
        return ctx.rate_limited

    @queue.task
    async def guarded(ctx: Context = inject) -> int:
        return ctx.rate_limited

    child = queue.task(isolate="process")(isolated.rate_limited)
    jobs: list[Any] = [await threaded.enqueue(), await guarded.enqueue(), await child.enqueue()]
    assert await drain(queue, include_delayed=True) == Drained(completed=3, rate_limited=3)
    assert [await job.result(5) for job in jobs] == [1, 1, [1, 1]]


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (RateLimited(retry_after=1.5), (1500, "key")),
        (RateLimited(retry_after="2m", scope="queue"), (120_000, "queue")),
        (RateLimited(retry_after=" 30 ", scope="job"), (30_000, "job")),
        (ExceptionGroup("", [RateLimited(retry_after=1, scope="job"), RateLimited(retry_after=3)]), (3000, "key")),
        (ExceptionGroup("", [RateLimited(retry_after=1, scope="queue"), Snooze(9)]), (1000, "queue")),
        (ExceptionGroup("", [RateLimited(retry_after=1), ValueError()]), None),
        (RateLimited(retry_after=1e300), (DELAY_MAX_MS, "key")),
    ],
)
def test_what_is_asked_for_also_after_the_way_from_a_child(error: Exception, limit: tuple[int, str] | None):
    assert facts(error).rate_limit == limit
    again = rebuild(pack(error))
    assert facts(again).rate_limit == limit
    found = put_off(again, 0)
    assert (None if found is None else (found.delay, found.scope)) == limit  # pyright: ignore[reportAttributeAccessIssue]
    remote = RemoteError("x.Y", "text", rate_limit=limit)
    assert facts(remote).rate_limit == limit


@pytest.mark.parametrize("given", [-1, math.nan, math.inf, "soon", "-5", None, True, timedelta(seconds=-1)])
def test_a_time_that_is_none_is_refused_where_it_is_raised(given: Any):
    with pytest.raises(ValueError, match="RateLimited takes retry_after="):
        RateLimited(retry_after=given)
    with pytest.raises(ValueError, match="scope='job', 'key' or 'queue', not 'tenant'"):
        RateLimited(retry_after=1, scope="tenant")  # pyright: ignore[reportArgumentType]


async def test_a_run_that_lost_its_job_closes_nothing(
    queue: Queue, start: Callable[..., Any], gate: Gate, until: Until
):
    @queue.task(limits=[Concurrency(1)])
    async def call() -> None:
        try:
            await gate.passing()
        finally:
            raise RateLimited(retry_after="1h", scope="queue")

    job = await call.enqueue()
    await start()
    await gate.arrival()
    await queue.kill(job.id)
    await until(lambda: idle(queue), "the run to end")
    other = await queue.enqueue("call")
    await until(lambda: gate.arrivals.qsize() == 1, "the next one to start")
    await queue.kill(other.id)


async def idle(queue: Queue) -> bool:
    return (await queue.workers())[0].running == 0


async def test_a_new_worker_waits_until_the_key_opens(queue: Queue, start: Callable[..., Any], until: Until):
    """What is closed is in Redis. A worker that starts later learns it, and when it opens."""
    loop = asyncio.get_running_loop()
    ran: list[float] = []

    @queue.task(limits=[Rate(1000, per=1, burst=100)])
    async def call() -> None:
        ran.append(loop.time())

    await queue.set_limit("call", concurrency=9)
    jobs = await call.enqueue_many([{}, {}])
    began = loop.time()
    await queue.close_limit("call", 0.4)
    await start()
    await asyncio.gather(*(job.result(20) for job in jobs))
    assert min(ran) - began >= 0.4


async def test_a_paused_queue_stays_paused_when_its_key_opens(queue: Queue, start: Callable[..., Any], until: Until):
    @queue.task(limits=[Concurrency(1)])
    async def call(ctx: Context = inject) -> None:
        if not ctx.rate_limited:
            await queue.pause()
            raise RateLimited(retry_after=0.01)

    job = await call.enqueue()
    await start()
    await until(lambda: came_back(job), "the job to come back")
    for _ in range(3):
        await asyncio.sleep(0.02)
        assert await is_held(queue)
    await queue.resume()
    await job.result(10)


async def came_back(job: Job[Any]) -> bool:
    return (await job.row()).rate_limited == 1


async def is_held(queue: Queue) -> bool:
    stats = await queue.stats()
    return (stats.held, stats.active) == (1, 0)


async def test_a_handler_that_is_called_by_itself():
    assert FakeContext(rate_limited=4).rate_limited == 4
