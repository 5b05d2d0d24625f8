"""``raise Snooze``: the job runs again later, no attempt is charged, and everything else of it stays."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import Any

import isolated
import msgspec
import pytest

from jobq import Context, Discard, JobFailed, Queue, RemoteError, Retry, Snooze, State, inject
from jobq.engine.model.outcome import Snoozed, facts, put_off
from jobq.engine.model.policy import SNOOZES_MAX, retry_policy
from jobq.engine.worker.child_errors import pack, rebuild
from jobq.testing import Drained, FakeContext, drain


async def test_a_snoozed_job_is_delayed_and_uncharged_and_keeps_everything_else(queue: Queue, start, until, logs):
    seen: list[tuple[int, int]] = []

    @queue.task(attempts=2)
    async def ship(ctx: Context = inject) -> str:
        seen.append((ctx.attempt, ctx.snoozes))
        ctx.log(f"look {ctx.snoozes}")
        if ctx.snoozes == 0:
            raise ValueError("the first run fails") if ctx.attempt == 1 else Snooze(timedelta(hours=1), "no stock")
        if ctx.snoozes == 1:
            ctx.progress(50)
            raise Snooze(3600.0, "no stock yet")
        return "shipped"

    await start()
    job = await ship.options(key="order-7", priority=-3, metadata={"by": "me"}).enqueue()
    for times in range(3):
        await until(lambda: _is_delayed(queue, job.id, len(seen)), "the run to end")
        row = await job.row()
        assert (row.attempts_made, row.snoozes, len(row.errors)) == (1, times, 1)
        assert (row.key, row.priority, row.metadata) == ("order-7", -3, {"by": "me"})
        if times:
            assert row.run_at is not None
            assert row.run_at > row.enqueued_at + 3_500_000
        await queue.promote(job.id)
        await until(lambda n=times: len(seen) == n + 2, "the next run")
    assert await job.result(10) == "shipped"
    assert seen == [(1, 0), (2, 0), (2, 1), (2, 2)]
    row = await job.row()
    assert (row.state, row.attempts_made, row.snoozes) == (State.COMPLETED, 2, 2)
    assert [line.message for line in await queue.logs(job.id)] == ["look 0", "look 0", "look 1", "look 2"]
    said = logs.all("was snoozed and runs again in 3600 s: no stock", "INFO")
    assert [record.snoozes for record in said] == [1, 2]
    stats = await queue.stats()
    assert (stats.snoozed_total, stats.retried_total, stats.failed_total) == (2, 1, 0)
    assert (await queue.briefs(State.COMPLETED)).jobs[0].snoozes == 2


async def _is_delayed(queue: Queue, job_id: str, runs: int) -> bool:
    row = await queue.get(job_id)
    return row.state is State.DELAYED and row.attempts_made + row.snoozes == runs


async def test_a_job_that_snoozes_for_ever_fails_and_says_why(queue: Queue):
    runs = 0

    @queue.task(max_snoozes=3, attempts=None)
    async def poll() -> None:
        nonlocal runs
        runs += 1
        raise Snooze(0, "not ready")

    job = await poll.enqueue()
    assert await drain(queue, include_delayed=True) == Drained(failed=1, snoozed=3)
    row = await job.row()
    assert (runs, row.state, row.snoozes, row.attempts_made) == (4, State.FAILED, 3, 1)
    (error,) = row.errors
    assert error.type == "TooManySnoozes"
    assert error.message == "the job was snoozed 3 times, and its task allows 3 (max_snoozes): not ready"
    await queue.retry(job.id)
    row = await job.row()
    assert (row.attempts_made, row.snoozes) == (0, 0), "a retry starts anew"


def test_without_a_task_of_its_own_a_thousand():
    assert put_off(Snooze(1), SNOOZES_MAX - 1) == Snoozed(1000, "snoozed")
    assert type(put_off(Snooze(1), SNOOZES_MAX)).__name__ == "TooManySnoozes"
    assert SNOOZES_MAX == 1000


async def test_from_a_thread_and_from_middleware(queue: Queue):
    @queue.middleware
    async def first(context: Context, call_next: Any) -> Any:
        if context.type == "guarded" and not context.snoozes:
            raise Snooze(0, "the middleware says so")
        try:
            return await call_next()
        except Snooze as error:
            seen.append(str(error))
            raise

    seen: list[str] = []

    @queue.task
    def threaded(ctx: Context = inject) -> int:
        if not ctx.snoozes:
            raise Snooze(0, "in a thread")
        return ctx.snoozes

    @queue.task
    async def guarded(ctx: Context = inject) -> int:
        return ctx.snoozes

    jobs = [await threaded.enqueue(), await guarded.enqueue()]
    assert await drain(queue, include_delayed=True) == Drained(completed=2, snoozed=2)
    assert [await job.result(5) for job in jobs] == [1, 1]
    assert seen == ["in a thread"]


async def test_from_a_child_process(queue: Queue):
    snooze = queue.task(isolate="process")(isolated.snooze)
    job = await snooze.enqueue()
    assert await drain(queue, include_delayed=True) == Drained(completed=1, snoozed=1)
    assert await job.result(5) == [1, 1]


async def test_a_snooze_in_a_task_group(queue: Queue):
    @queue.task
    async def alone(ctx: Context = inject) -> int:
        async def snooze(seconds: float) -> None:
            if not ctx.snoozes:
                raise Snooze(seconds)

        async with asyncio.TaskGroup() as group:
            group.create_task(snooze(5))
            group.create_task(snooze(3))
        return ctx.snoozes

    job = await alone.enqueue()
    assert await drain(queue, include_delayed=True) == Drained(completed=1, snoozed=1)
    assert await job.result(5) == 1


class Ours(Snooze):
    """A subclass."""

    @property
    def delay(self) -> Any:
        return "soon"

    @delay.setter
    def delay(self, value: Any) -> None: ...


@pytest.mark.parametrize(
    ("error", "delay"),
    [
        (Snooze(1.5), 1500),
        (Snooze(0), 0),
        (Snooze(timedelta(minutes=1)), 60_000),
        (Snooze(1e12), 10 * 366 * 24 * 3600 * 1000),
        (ExceptionGroup("g", [Snooze(1), ExceptionGroup("h", [Snooze(7)])]), 7000),
        (ExceptionGroup("g", [Snooze(1), ValueError()]), None),
        (ExceptionGroup("g", [Snooze(1), Discard()]), None),
        (ExceptionGroup("g", [Snooze(1), Retry()]), None),
        (RemoteError("their.Snooze", "soon", snooze=250), 250),
        (RemoteError("ValueError", "no"), None),
        (Ours(1), None),
        (ValueError(), None),
    ],
)
def test_what_a_snooze_is(error: Exception, delay: int | None):
    found = put_off(error, 0)
    assert (found.delay if isinstance(found, Snoozed) else found) == delay
    again = rebuild(msgspec.msgpack.decode(msgspec.msgpack.encode(pack(error)), type=type(pack(error))))
    assert put_off(again, 0) == found, "the same from a child process"
    assert facts(again).snooze == delay


@pytest.mark.parametrize("delay", [-1, math.nan, math.inf, "5", None, True, timedelta(seconds=-1)])
def test_a_delay_that_is_no_time_is_refused_where_it_is_raised(delay: Any):
    with pytest.raises(ValueError, match="Snooze takes seconds from 0 on, or a timedelta"):
        Snooze(delay)


@pytest.mark.parametrize("most", [-1, 1.5, True, "9", None])
def test_a_bound_that_is_no_number_is_refused(most: Any):
    with pytest.raises(TypeError, match="max_snoozes is"):
        retry_policy({"max_snoozes": most}, str)


async def test_no_snooze_at_all(queue: Queue):
    @queue.task(max_snoozes=0)
    async def never() -> None:
        raise Snooze(0)

    job = await never.enqueue()
    assert await drain(queue) == Drained(failed=1)
    with pytest.raises(JobFailed, match="snoozed 0 times, and its task allows 0"):
        await job.result(5)


async def test_a_handler_that_is_called_by_itself():
    ctx = FakeContext(snoozes=4)
    assert ctx.snoozes == 4
