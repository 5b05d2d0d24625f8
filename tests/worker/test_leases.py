"""Leases: renewed by a thread while the loop is blocked, given up if it is stuck, recovered when the worker is dead."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time

import pytest
import redis

from jobq import Backoff, Context, JobFailed, Queue, State, inject
from jobq.engine.worker import heartbeat
from jobq.engine.worker.heartbeat import Heartbeat
from tests.chaos.invariants import broken

NOW = Backoff(type="fixed", delay=0, jitter=0)


async def test_a_handler_that_blocks_the_loop_keeps_its_lease_and_is_reported(queue: Queue, redis_url, start, logs):
    """A real second worker, in its own process, would take the job if the lease ran out."""
    runs = 0

    @queue.task
    async def block() -> str:
        nonlocal runs
        runs += 1
        time.sleep(2.5)  # noqa: ASYNC251 - that is the sin
        return "mine"

    other = await _worker_process(redis_url, lease=1)
    try:
        await queue.pause()
        job = await block.enqueue()
        await start(lease=1)
        await asyncio.sleep(0)
        await queue.resume()
        assert await job.result(10) == "mine"
    finally:
        other.terminate()
        await other.wait()
    row = await job.row()
    assert (runs, row.attempts_made, row.errors) == (1, 1, [])
    report = logs.one("blocks the event loop", "WARNING")
    assert "time.sleep(2.5)" in report.getMessage()


async def test_jobs_claimed_ahead_go_back_while_a_handler_blocks_the_loop(
    queue: Queue, server, admin, start, until, monkeypatch
):
    monkeypatch.setattr(heartbeat, "HAND_BACK_MAX", 10)
    seen: list[tuple[int, int, int]] = []
    orders: list[tuple[object, object]] = []
    with redis.Redis.from_url(server.admin_url) as client:

        @queue.task
        async def quick() -> None:
            ahead = len(worker._pool.slots.buffer)  # noqa: SLF001
            if seen or ahead <= 10:
                return
            claimed = [run.id for run in worker._pool.slots.buffer._runs]  # noqa: SLF001
            held = still = client.zcard(admin.keys["active"])
            deadline = time.monotonic() + 10
            while still > held - ahead and time.monotonic() < deadline:
                time.sleep(0.01)  # noqa: ASYNC251 - that is the sin
                still = client.zcard(admin.keys["active"])
            seen.append((ahead, held, still))
            orders.append((claimed, client.zrange(admin.keys["waiting"], 0, ahead - 1)))

        await quick.enqueue_many([{}] * 2000)  # There are so many short jobs that the worker claims ahead.
        worker = await start(concurrency=10)

        async def completed() -> bool:
            return (await queue.stats()).completed == 2000

        await until(completed)
    [(ahead, held, still)] = seen
    assert still <= held - ahead
    [(claimed, waiting)] = orders
    assert waiting == claimed, "they wait in the order of their claim, although several calls handed them back"


SERVICE = """
import asyncio, os, signal, sys
from jobq import Queue, Worker

queue = Queue("test", sys.argv[1])
lease, grace, mode = float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]

if mode != "sweeper":
    @queue.task(attempts=3)
    async def work(where: str) -> str:
        with open(where, "a") as file:
            print("started", file=file, flush=True)
        if mode == "suicide":
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(float(sys.argv[5]))
        with open(where, "a") as file:
            print("ended", file=file, flush=True)
        return "done"

    @queue.task
    async def cling(where: str) -> None:
        while True:
            try:
                await work(where)
            except asyncio.CancelledError:
                pass

async def main():
    async with queue, Worker(queue, lease=lease, grace=grace) as worker:
        def stop():
            worker.stop()
            print("stopping", flush=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        running = asyncio.create_task(worker.run())
        print("ready", flush=True)
        await running

asyncio.run(main())
"""


async def _worker_process(url: str, *, lease: float = 30, grace: float = 5, mode: str = "sweeper", work: float = 60):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVICE, url, str(lease), str(grace), mode, str(work), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert (await process.stdout.readline()).strip() == b"ready"
    return process


async def test_the_outcome_of_a_run_that_held_the_gil_beyond_its_lease_is_refused(
    queue: Queue, redis_url, start, until, tmp_path
):
    """Nothing in a process runs while one thread holds the GIL. For Redis a stopped process is the same, and it is
    exact."""
    slow = await _worker_process(redis_url, lease=0.5, mode="work", work=1)
    job = await queue.enqueue("work", {"where": str(tmp_path / "slow")}, backoff=NOW)
    await until((tmp_path / "slow").exists, "the process to run the job")
    slow.send_signal(signal.SIGSTOP)

    @queue.task
    async def work(where: str, ctx: Context = inject) -> list[object]:
        return ["recovered", ctx.attempt]

    await start(lease=0.5)
    assert await job.result(10) == ["recovered", 2]
    slow.send_signal(signal.SIGCONT)
    slow.terminate()
    assert await slow.wait() == 0
    assert await job.result(10) == ["recovered", 2], "the late outcome changed nothing"
    assert (await job.row()).attempts_made == 2


async def test_a_killed_workers_job_is_recovered_by_another_and_charged(
    queue: Queue, redis_url, start, until, tmp_path
):
    process = await _worker_process(redis_url, lease=0.5, mode="work")
    job = await queue.enqueue("work", {"where": str(tmp_path / "log")}, backoff=NOW)
    await until((tmp_path / "log").exists, "the process to run the job")
    process.kill()
    await process.wait()

    @queue.task
    async def work(where: str, ctx: Context = inject) -> list[object]:
        return ["recovered", ctx.attempt]

    await start(lease=0.5)
    assert await job.result(10) == ["recovered", 2]
    (error,) = (await job.row()).errors
    assert error.type == "LeaseExpired"
    assert "stopped renewing" in error.message


async def test_a_worker_is_known_before_its_first_claim(queue: Queue, start, monkeypatch):
    """The records of its claims are removed with its row. If it were killed before its first heartbeat, they would
    remain."""
    monkeypatch.setattr(Heartbeat, "_beat", _mute)

    @queue.task
    async def known() -> list[str]:
        return [row.id for row in await queue.workers()]

    job = await known.enqueue()
    worker = await start()
    assert await job.result(5) == [worker.name]


async def _mute(*_: object) -> bool:
    return True


async def test_a_job_that_kills_every_worker_ends_in_failed_with_the_reason(
    queue: Queue, redis_url, start, until, tmp_path
):
    job = await queue.enqueue("work", {"where": str(tmp_path / "log")}, attempts=2, backoff=NOW)
    for _ in range(2):
        process = await _worker_process(redis_url, lease=0.5, mode="suicide")
        assert await process.wait() == -signal.SIGKILL
    await start(lease=0.5)
    with pytest.raises(JobFailed, match="stopped renewing") as failed:
        await job.result(10)
    assert failed.value.type == "LeaseExpired"
    row = await job.row()
    assert (row.state, row.attempts_made) == (State.FAILED, 2)
    assert (tmp_path / "log").read_text() == "started\n" * 2


async def test_a_stuck_loop_is_given_up_and_its_job_goes_to_another(queue: Queue, redis_url, start, logs):
    given_up = threading.Event()

    @queue.task(attempts=1)
    async def stuck() -> None:
        given_up.wait(10)  # This blocks the loop as an endless loop would.
        time.sleep(1.5)  # noqa: ASYNC251 - the lease runs out meanwhile

    other = await _worker_process(redis_url, lease=0.4)
    try:
        await queue.pause()
        job = await stuck.enqueue()
        await start(lease=0.4, stuck_after=1.2, given_up=given_up.set)
        await asyncio.sleep(0)
        await queue.resume()
        with pytest.raises(JobFailed, match="stopped renewing"):
            await job.result(15)
    finally:
        other.terminate()
        await other.wait()
    assert given_up.is_set()
    assert "given_up.wait(10)" in logs.one("event loop is stuck", "ERROR").getMessage()


async def test_sigterm_waits_for_running_jobs_and_hands_the_rest_back(queue: Queue, redis_url, until, tmp_path):
    process = await _worker_process(redis_url, mode="work", work=0.5, grace=10)
    job = await queue.enqueue("work", {"where": str(tmp_path / "log")})
    await until((tmp_path / "log").exists)
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
    row = await job.row()
    assert (row.state, row.result and bytes(row.result)) == (State.COMPLETED, b'"done"')
    assert await queue.workers() == []


@pytest.mark.parametrize("signals", [1, 2], ids=["after the grace", "second signal"])
async def test_a_job_that_outlasts_the_grace_goes_back_uncharged(queue: Queue, redis_url, until, tmp_path, signals):
    process = await _worker_process(redis_url, mode="work", work=3600, grace=0.3 if signals == 1 else 3600)
    job = await queue.enqueue("work", {"where": str(tmp_path / "log")}, attempts=1)
    await until((tmp_path / "log").exists)
    process.send_signal(signal.SIGTERM)
    if signals == 2:
        process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 60) == 0  # This is much less than the job and the grace take.
    row = await job.row()
    assert (row.state, row.attempts_made, row.errors) == (State.WAITING, 0, [])
    assert (tmp_path / "log").read_text() == "started\n"


async def test_sigterm_twice_then_sigkill_loses_nothing(queue: Queue, redis_url, start, until, tmp_path):
    """The worker is killed while it stops at once. Jobs that it had handed back are not charged, the others are."""
    process = await _worker_process(redis_url, lease=0.5, mode="work", grace=60)
    mine, clinging = tmp_path / "work", tmp_path / "cling"
    jobs = [await queue.enqueue("work", {"where": str(mine)}, backoff=NOW) for _ in range(20)]
    jobs.append(await queue.enqueue("cling", {"where": str(clinging)}, backoff=NOW))
    await until(lambda: mine.exists() and mine.read_text() == "started\n" * 20, "all of them")
    await until(clinging.exists, "the one that ignores its cancellation")
    stdout = process.stdout
    assert stdout is not None
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        assert await stdout.readline() == b"stopping\n"
    await until(lambda: clinging.read_text() == "started\n" * 2, "its cancellation")
    process.kill()
    assert await process.wait() == -signal.SIGKILL

    async def again(where: str, ctx: Context = inject) -> int:
        return ctx.attempt

    queue.task(name="work")(again)
    queue.task(name="cling")(again)
    await start(lease=0.5)
    attempts = [await job.result(10) for job in jobs]
    assert set(attempts[:-1]) <= {1, 2}
    assert attempts[-1] == 2
    for job, attempt in zip(jobs, attempts, strict=True):
        row = await job.row()
        assert (row.state, row.attempts_made) == (State.COMPLETED, attempt)
        assert [error.type for error in row.errors] == ["LeaseExpired"] * (attempt - 1)
    assert await broken(queue.store) == []
