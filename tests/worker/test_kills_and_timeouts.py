"""Runs that are stopped from outside: by a kill or a timeout, also if they ignore their cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
from tools import listening

from jobq import Backoff, Context, JobFailed, JobKilled, JobNotFound, Queue, State, inject
from jobq.engine.worker import run as run_module
from jobq.errors import WrongState


@pytest.mark.parametrize("delay", [0, 60], ids=["waiting", "delayed"])
async def test_kill_of_a_job_that_has_not_started(queue: Queue, start, delay):
    ran = asyncio.Event()

    @queue.task
    async def never() -> None:
        ran.set()

    @queue.task
    async def fine() -> None: ...

    job = await never.options(delay=delay).enqueue()
    await queue.kill(job.id)
    with pytest.raises(JobKilled):
        await job.result(5)
    row = await job.row()
    assert (row.state, row.attempts_made, row.errors[0].type) == (State.FAILED, 0, "Killed")
    with pytest.raises(WrongState, match="failed"):
        await queue.kill(job.id)
    await start()
    await (await fine.enqueue()).result(5)
    assert not ran.is_set()


async def test_kill_of_a_running_async_job_stops_its_handler_at_once(queue: Queue, start, gate, until, logs, admin):
    stopped = asyncio.Event()

    @queue.task(attempts=5)
    async def slow(ctx: Context = inject) -> None:
        try:
            await gate.passing(ctx)
        finally:
            stopped.set()

    worker = await start(lease=30)  # No renewal would report the kill during the test. The control channel does.
    await until(lambda: listening(admin))
    job = await slow.enqueue()
    ctx = await gate.arrival()
    await queue.kill(job.id)
    async with asyncio.timeout(1):
        await stopped.wait()
    assert ctx.lost
    with pytest.raises(JobKilled, match="killed by an operator"):
        await job.result(5)
    await until(lambda: worker.running == 0)
    row = await job.row()
    assert (row.state, row.attempts_made) == (State.FAILED, 1)
    assert logs.one(f"The run of job slow {job.id} was stopped because it was killed", "WARNING").reason == "killed"


async def test_kill_of_a_job_that_started_before_its_worker_listens(queue: Queue, start, gate):
    stopped = asyncio.Event()

    @queue.task
    async def slow() -> None:
        try:
            await gate.passing()
        finally:
            stopped.set()

    job = await slow.enqueue()
    await start(lease=30)
    await gate.arrival()
    await queue.kill(job.id)
    async with asyncio.timeout(2):
        await stopped.wait()


async def test_a_killed_handler_that_returns_or_raises_late_changes_nothing(
    queue: Queue, start, gate, until, monkeypatch
):
    monkeypatch.setattr(run_module, "CANCEL_GRACE", 0.05)
    ended = asyncio.Queue()

    @queue.task(attempts=5)
    async def deaf(fail: bool) -> str:
        while True:
            try:
                await gate.passing()
                break
            except asyncio.CancelledError:
                continue
        ended.put_nowait(fail)
        if fail:
            raise RuntimeError("late")
        return "late"

    @queue.task
    async def fine() -> None: ...

    worker = await start()
    jobs = await deaf.enqueue_many([{"fail": False}, {"fail": True}])
    for _ in jobs:
        await gate.arrival()
    for job in jobs:
        await queue.kill(job.id)
    await until(lambda: worker.running == 0)
    gate.open()
    for _ in jobs:
        await ended.get()
    await (await fine.enqueue()).result(5)
    for job in jobs:
        row = await job.row()
        assert (row.state, row.result, [error.type for error in row.errors]) == (State.FAILED, None, ["Killed"])


async def test_a_killed_and_removed_job_never_comes_back(queue: Queue, start, gate, until):
    @queue.task(attempts=5)
    async def slow() -> None:
        await gate.passing()

    worker = await start()
    job = await slow.enqueue()
    await gate.arrival()
    with pytest.raises(WrongState, match="kill it first"):
        await queue.remove(job.id)
    await queue.kill(job.id)
    await queue.remove(job.id)
    gate.open()
    await until(lambda: worker.running == 0)
    with pytest.raises(JobNotFound):
        await job.row()
    stats = await queue.stats()
    assert (stats.waiting, stats.delayed, stats.active, stats.completed, stats.failed) == (0, 0, 0, 0, 0)


async def test_a_killed_job_that_is_retried_runs_again_and_its_old_run_changes_nothing(queue: Queue, start, gate):
    runs = 0

    @queue.task
    async def slow() -> str:
        nonlocal runs
        runs += 1
        if runs == 1:
            await gate.passing()
            return "first"
        return "second"

    await start()
    job = await slow.enqueue()
    await gate.arrival()
    await queue.kill(job.id)
    await queue.retry(job.id)
    assert await job.result(5) == "second"


async def test_the_outcome_of_a_killed_thread_is_refused_and_the_kill_is_logged(queue: Queue, start, gate, until, logs):
    ended = threading.Event()

    @queue.task
    def stubborn(ctx: Context = inject) -> str:
        gate.hold(ctx)
        ctx.progress("late")
        ended.set()
        return "late"

    @queue.task
    def fine() -> int:
        return 1

    gate.loop = asyncio.get_running_loop()
    worker = await start(concurrency=1)
    job = await stubborn.enqueue()
    ctx = await gate.arrival()
    await queue.kill(job.id)
    with pytest.raises(JobKilled):
        await job.result(5)
    await until(lambda: worker.running == 0)
    assert ctx.lost  # The value that a long sync handler checks.
    assert logs.one("cannot be stopped", "WARNING").job_id == job.id
    assert await (await fine.enqueue()).result(5) == 1  # Its slot and a thread are free although it still runs.
    assert not ended.is_set()
    gate.open()
    await asyncio.to_thread(ended.wait, 5)
    await (await fine.enqueue()).result(5)
    row = await job.row()
    assert (row.state, row.result, row.progress) == (State.FAILED, None, None)


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_timeout_is_a_failed_attempt(queue: Queue, start, gate, logs, kind):
    @queue.task(attempts=1, timeout=0.05, name="async")
    async def coroutine() -> None:
        await gate.passing()

    @queue.task(attempts=1, timeout=0.05, name="thread")
    def thread() -> None:
        gate.hold()

    gate.loop = asyncio.get_running_loop()
    await start()
    job = await queue.enqueue(kind)
    with pytest.raises(JobFailed, match=r"timeout of 0\.05 s") as failed:
        await job.result(5)
    assert failed.value.type == "Timeout"
    assert bool(logs.all("cannot be stopped", "WARNING")) == (kind == "thread")


async def test_after_a_timeout_the_next_attempt_runs(queue: Queue, start, gate):
    @queue.task(attempts=2, timeout=0.1)
    async def slow(ctx: Context = inject) -> int:
        if ctx.attempt == 1:
            await gate.passing()
        return ctx.attempt

    await start()
    job = await slow.options(backoff=Backoff(type="fixed", delay=0, jitter=0)).enqueue()
    assert await job.result(5) == 2
    assert [error.type for error in (await job.row()).errors] == ["Timeout"]


async def test_a_handler_that_raises_another_error_when_cancelled_has_still_timed_out(queue: Queue, start, gate):
    @queue.task(attempts=1, timeout=0.05)
    async def wrapping() -> None:
        try:
            await gate.passing()
        except asyncio.CancelledError:
            raise ValueError("interrupted") from None

    await start()
    with pytest.raises(JobFailed, match=r"timeout of 0\.05 s"):
        await (await wrapping.enqueue()).result(5)


async def test_a_handler_that_ignores_its_cancellation_is_reported_with_its_stack_and_loses_its_slot(
    queue: Queue, start, gate, logs, monkeypatch
):
    monkeypatch.setattr(run_module, "CANCEL_GRACE", 0.05)

    @queue.task(attempts=1, timeout=0.05)
    async def deaf() -> None:
        while True:
            try:
                return await gate.passing()
            except asyncio.CancelledError:
                continue

    @queue.task
    async def fine() -> int:
        return 1

    await start(concurrency=1)
    job = await deaf.enqueue()
    with pytest.raises(JobFailed, match=r"timeout of 0\.05 s"):
        await job.result(5)
    report = logs.one("ignores its cancellation", "ERROR")
    assert (report.job_id, report.reason) == (job.id, "timeout")
    assert "in deaf" in report.getMessage()
    assert await (await fine.enqueue()).result(5) == 1


async def test_kill_of_jobs_claimed_ahead_of_a_slot(queue: Queue, start, gate, until):
    """Jobs that are claimed ahead have no handler yet. A kill must still remove them."""
    ran: list[int] = []

    @queue.task
    async def quick(n: int) -> None:
        ran.append(n)

    worker = await start(concurrency=1)
    jobs = await quick.enqueue_many([{"n": n} for n in range(400)])
    killed = 0
    for job in reversed(jobs):
        try:
            await queue.kill(job.id)
            killed += 1
        except WrongState:
            continue
    await until(lambda: worker.running == 0)

    async def all_ended() -> bool:
        stats = await queue.stats()
        return stats.completed + stats.failed == 400 and stats.failed == killed

    await until(all_ended)


async def test_a_sync_handler_learns_that_its_grace_is_over(queue: Queue, start, gate, until):
    seen: list[tuple[bool, str | None]] = []
    ended = threading.Event()

    @queue.task
    def slow(ctx: Context = inject) -> None:
        seen.append((ctx.lost, ctx.stopped))
        gate.hold(ctx)
        seen.append((ctx.lost, ctx.stopped))
        ended.set()

    gate.loop = asyncio.get_running_loop()
    worker = await start(grace=0)
    job = await slow.enqueue()
    ctx = await gate.arrival()
    worker.stop()
    await until(lambda: ctx.lost)
    gate.open()
    await asyncio.to_thread(ended.wait, 5)
    assert seen == [(False, None), (True, "shutdown")]

    async def handed_back() -> bool:
        return (await job.row()).state is State.WAITING

    await until(handed_back)


async def test_hung_threads_are_bounded_and_each_one_beyond_keeps_its_slot(queue: Queue, start, gate, until, logs):
    """Without a bound, a handler that sometimes hangs would fill the process with threads."""

    @queue.task(attempts=1, timeout=0.05)
    def hangs() -> None:
        gate.hold()

    @queue.task
    async def fine() -> int:
        return 1

    gate.loop = asyncio.get_running_loop()
    worker = await start(concurrency=2)
    jobs = await hangs.enqueue_many([{} for _ in range(6)])
    for job in jobs[:4]:
        with pytest.raises(JobFailed, match="timeout"):
            await job.result(5)
    # Two threads may be left behind. The third and the fourth keep the worker's two slots.
    lines = logs.all("threads of handlers that timed out or were killed still run", "ERROR")
    assert [line.threads for line in lines] == [3, 4]
    late = await fine.enqueue()
    await (await fine.options(priority=-1).enqueue()).row()
    assert worker.running == 0
    assert (await jobs[4].row()).state is State.WAITING
    gate.open()
    assert await late.result(5) == 1
    for job in jobs[4:]:
        with contextlib.suppress(JobFailed):
            await job.result(5)


async def test_a_worker_stops_although_threads_keep_its_slots(queue: Queue, start, gate, until):
    @queue.task(attempts=1, timeout=0.05)
    def hangs() -> None:
        gate.hold()

    gate.loop = asyncio.get_running_loop()
    worker = await start(concurrency=1)
    for job in await hangs.enqueue_many([{} for _ in range(2)]):
        with pytest.raises(JobFailed, match="timeout"):
            await job.result(5)
    worker.stop()
    await until(lambda: _gone(queue), "the worker to end")


async def _gone(queue: Queue) -> bool:
    return await queue.workers() == []
