"""Waiting for results: many waiters on one connection, removals and closings; queues and workers inside a service."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from tools import commands, reading

from jobq import (
    Connection,
    JobFailed,
    JobKilled,
    JobNotFound,
    Queue,
    ResultTimeout,
    State,
    StoreError,
    UnreadableResult,
    Worker,
)
from jobq.engine.queue import results
from tests.conftest import Server


@pytest.mark.slow
async def test_five_thousand_waiters_share_one_connection_and_do_not_poll(queue: Queue, start, until, admin):
    @queue.task
    async def echo(n: int) -> int:
        return n

    jobs = await echo.enqueue_many([{"n": n} for n in range(5000)])
    before = await commands(admin)
    waiting = [asyncio.create_task(job.result(60)) for job in jobs]
    asked = Counter[str]()

    async def all_asked() -> bool:
        asked.clear()
        asked.update(await commands(admin))
        asked.subtract(before)
        return asked["zscore"] >= 5000 and asked["xread"] > 0

    await until(all_asked, "everybody to have asked once", timeout=30)
    assert asked["evalsha"] <= 60, asked
    clients = await admin.command(b"CLIENT", b"LIST")
    assert clients.count(b"cmd=xread") == 1
    await start(concurrency=500)
    assert await asyncio.gather(*waiting) == list(range(5000))


async def test_the_result_of_a_finished_job_is_returned_at_once(queue: Queue, start):
    @queue.task
    async def answer() -> int:
        return 42

    await start()
    job = await answer.enqueue()
    assert [await job.result(5) for _ in range(3)] == [42, 42, 42]


async def test_waiting_ends_in_time(queue: Queue):
    job = await queue.enqueue("nobody")
    with pytest.raises(ResultTimeout, match=r"after 0\.05 s; it goes on"):
        await job.result(0.05)
    assert (await job.row()).state is State.WAITING


async def test_a_job_removed_before_or_while_somebody_waits_is_not_found(queue: Queue, admin, until):
    job = await queue.enqueue("nobody")
    waiting = asyncio.create_task(job.result(5))
    await until(lambda: reading(admin), "the waiter to read")
    await queue.remove(job.id)
    with pytest.raises(JobNotFound):
        await waiting
    with pytest.raises(JobNotFound):
        await job.result(5)


async def test_closing_the_queue_ends_the_waiting(connection, admin, until):
    async with Queue("other", connection) as queue:
        job = await queue.enqueue("nobody")
        waiting = asyncio.create_task(job.result(30))
        await until(lambda: reading(admin), "the waiter to read")
    with pytest.raises(StoreError, match="closed"):
        await waiting


async def test_a_cancelled_waiter_harms_no_other(queue: Queue, admin, start, until):
    @queue.task
    async def echo(n: int) -> int:
        return n

    job = await echo.enqueue(n=1)
    first, second = (asyncio.create_task(job.result(10)) for _ in range(2))
    await until(lambda: reading(admin), "both waiters to read")
    first.cancel()
    await start()
    assert await second == 1
    assert first.cancelled()


async def test_a_queue_is_usable_again_after_it_was_closed(redis_url):
    queue = Queue("twice", redis_url)

    @queue.task
    async def echo(n: int) -> int:
        return n

    for n in range(2):
        async with queue, Worker(queue, grace=1) as worker:
            worker.start()
            assert await (await echo.enqueue(n=n)).result(5) == n
        assert not queue.is_open
        with pytest.raises(StoreError, match="not open"):
            await queue.stats()


async def test_concurrent_openings_all_get_an_open_queue(redis_url):
    queue = Queue("shared", redis_url)

    async def use() -> int:
        async with queue:
            return (await queue.stats()).waiting

    for _ in range(2):
        assert await asyncio.gather(*(use() for _ in range(5))) == [0] * 5
    assert not queue.is_open


async def test_an_opening_that_fails_can_be_tried_again(tmp_path):
    missing = Server(folder=tmp_path)
    queue = Queue("late", missing.url)
    for _ in range(2):
        with pytest.raises(StoreError):
            await queue.open()
    missing.start()
    try:
        async with queue:
            assert (await queue.stats()).waiting == 0
    finally:
        missing.kill()


async def test_two_services_in_one_loop_do_not_affect_each_other(redis_url):
    async def service(name: str) -> list[str]:
        queue = Queue("same", redis_url, prefix=name)

        @queue.task
        async def who(n: int) -> str:
            return f"{name} {n}"

        async with queue, Worker(queue, grace=1) as worker:
            worker.start()
            jobs = await who.enqueue_many([{"n": n} for n in range(20)])
            return [await job.result(5) for job in jobs]

    one, two = await asyncio.gather(service("jobq:one"), service("jobq:two"))
    assert one == [f"jobq:one {n}" for n in range(20)]
    assert two == [f"jobq:two {n}" for n in range(20)]


async def test_a_cancelled_worker_stops_gracefully_and_leaves_no_task_behind(queue: Queue, gate):
    @queue.task
    async def slow() -> str:
        await gate.passing()
        return "done"

    before = asyncio.all_tasks()
    async with Worker(queue, grace=5) as worker:
        running = asyncio.create_task(worker.run())
        job = await slow.enqueue()
        await gate.arrival()
        running.cancel()
        await asyncio.sleep(0)
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert (await job.row()).state is State.COMPLETED
    left = {task for task in asyncio.all_tasks() - before if not task.done()}
    assert left == set()


async def test_a_worker_that_is_cancelled_twice_stops_at_once(queue: Queue, gate, until, logs):
    @queue.task
    async def slow() -> None:
        await gate.passing()

    async with Worker(queue, grace=3600) as worker:
        running = asyncio.create_task(worker.run())
        await slow.enqueue()
        await gate.arrival()
        running.cancel()
        await until(lambda: logs.all("jobs still run, and have"), "the worker to wait for the job")
        running.cancel()
        async with asyncio.timeout(30):  # This is much less than the grace.
            with pytest.raises(asyncio.CancelledError):
                await running


async def test_stop_waits_then_hands_jobs_back_and_a_second_stop_does_not_wait(queue: Queue, gate, until, logs):
    @queue.task(attempts=1)
    async def slow(n: int) -> None:
        await gate.passing(n)

    for stops in (1, 2):
        async with Worker(queue, concurrency=2, grace=0.2 if stops == 1 else 60) as worker:
            running = worker.start()
            job = await slow.enqueue(n=stops)
            assert await gate.arrival() == stops
            for _ in range(stops):
                worker.stop()
            async with asyncio.timeout(3):
                await running
        row = await job.row()
        assert (row.state, row.attempts_made) == (State.WAITING, 0)
        await queue.remove(job.id)
    assert not logs.all("before Redis took the outcome")


async def test_the_job_of_a_handler_that_ignores_the_stop_is_handed_back(queue: Queue, gate, logs, monkeypatch):
    from jobq.engine.worker import run as run_module

    monkeypatch.setattr(run_module, "SHUTDOWN_GRACE", 0.05)

    @queue.task(attempts=1)
    async def deaf() -> None:
        while True:
            try:
                return await gate.passing()
            except asyncio.CancelledError:
                continue

    async with Worker(queue, grace=0.05) as worker:
        worker.start()
        job = await deaf.enqueue()
        await gate.arrival()
    row = await job.row()
    assert (row.state, row.attempts_made) == (State.WAITING, 0)
    assert not logs.all("before Redis took the outcome")
    gate.open()


async def test_a_handler_that_fails_because_of_the_stop_is_not_charged(queue: Queue, gate):
    @queue.task(attempts=1)
    async def wrapping() -> None:
        try:
            await gate.passing()
        except asyncio.CancelledError:
            raise ConnectionError("interrupted") from None

    async with Worker(queue, grace=0.05) as worker:
        worker.start()
        job = await wrapping.enqueue()
        await gate.arrival()
    row = await job.row()
    assert (row.state, row.attempts_made, row.errors) == (State.WAITING, 0, [])


async def test_a_result_over_the_limit_fails_its_job(connection: Connection) -> None:
    """The job does not run again, because its work is done."""
    queue = Queue("small", connection, max_result=100)

    @queue.task(attempts=3)
    async def big(size: int) -> str:
        return "x" * size

    async with queue, Worker(queue) as worker:
        worker.start()
        assert await (await big.enqueue(size=98)).result(timeout=10) == "x" * 98
        job = await big.enqueue(size=99)
        with pytest.raises(JobFailed, match="the handler's result has 101 bytes, the limit is 100"):
            await job.result(timeout=10)
        assert (await job.row()).attempts_made == 1


async def test_a_timeout_of_zero_returns_an_existing_result(queue: Queue, start):
    @queue.task
    async def answer() -> int:
        return 42

    job = await answer.enqueue()
    with pytest.raises(ResultTimeout, match=r"had not ended after 0\.0 s"):
        await job.result(0)
    await start()
    assert await job.result(10) == 42
    assert await job.result(0) == 42
    await queue.remove(job.id)
    with pytest.raises(JobNotFound):
        await job.result(0)


async def test_waiters_get_an_error_soon_after_a_flush(queue: Queue, admin, monkeypatch, until):
    monkeypatch.setattr(results, "LOOK", 0.05)
    monkeypatch.setattr(results, "PAGE", 2)
    jobs = [await queue.enqueue("nobody") for _ in range(10)]
    waiting = [asyncio.create_task(job.result(60)) for job in jobs]
    await until(lambda: reading(admin), "the waiters to read")
    await admin.command(b"FLUSHALL")
    answers = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)
    assert {type(answer) for answer in answers} == {JobNotFound}


async def test_an_event_of_a_damaged_id_ends_no_waiting(queue: Queue, admin, start, until, monkeypatch):
    """A job whose id is no text was removed. Nobody heard of the ends of other jobs any more."""
    monkeypatch.setattr(results, "LOOK", 60.0)

    @queue.task
    async def answer() -> int:
        return 42

    job = await answer.enqueue()
    waiting = asyncio.create_task(job.result(10))
    await until(lambda: reading(admin), "the reader")
    await admin.command(b"XADD", admin.keys["events"], b"*", b"removed", b"\xff\xfe", b"types", b"")
    await start()
    assert await waiting == 42


async def test_each_waiter_gets_an_exception_of_its_own(queue: Queue):
    """REST removes the traceback for callers that may not see it."""
    job = await queue.enqueue("x")
    waiting = [asyncio.create_task(job.result(10)) for _ in range(3)]
    await asyncio.sleep(0)
    await queue.kill(job.id)
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    errors = [answer for answer in answers if isinstance(answer, JobKilled)]
    assert len({id(error) for error in errors}) == 3
    assert {(str(error), error.job_id, error.type) for error in errors} == {(str(errors[0]), job.id, "Killed")}


async def test_a_result_that_does_not_fit_the_annotation_is_an_error_of_jobqs(queue: Queue, start):
    @queue.task
    async def text() -> int:
        return "no number"  # type: ignore[return-value]

    await start()
    job = await text.enqueue()
    with pytest.raises(UnreadableResult, match="does not fit the handler's annotation: Expected `int`, got `str`"):
        await job.result(10)


async def test_a_retention_of_zero_still_keeps_awaited_results_for_a_moment(connection, start):
    """Jobs that have just finished stay for some seconds, whatever their retention is."""
    queue = Queue("test", connection, keep_completed=0, keep_failed=0)

    @queue.task(retention=0)
    async def echo(n: int) -> int:
        return n

    @queue.task
    async def again(n: int) -> int:
        return n

    async with queue:
        await start(queue, concurrency=50)
        jobs = await echo.enqueue_many({"n": n} for n in range(500))
        jobs += await again.enqueue_many({"n": n} for n in range(500))
        assert await asyncio.gather(*(job.result(30) for job in jobs)) == [*range(500), *range(500)]
