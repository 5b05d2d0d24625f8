"""The life cycle of a worker: every order of entering, starting, stopping, cancelling and leaving."""

from __future__ import annotations

import asyncio
import math
import threading
from contextlib import AsyncExitStack
from itertools import product
from typing import Any

import anyio
import pytest

from jobq import Queue, State, Worker
from jobq.engine.worker.heartbeat import Heartbeat
from jobq.errors import StoreUnavailable


def heartbeats() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if isinstance(thread, Heartbeat)]


@pytest.fixture(autouse=True)
async def nothing_left(until):
    """No worker leaves a task or a heartbeat behind, in whatever way it ended."""
    tasks = asyncio.all_tasks()
    yield
    await until(lambda: not heartbeats(), "the heartbeats to end")
    await until(lambda: asyncio.all_tasks() <= tasks | {asyncio.current_task()}, "the tasks to end")


ENTER = ("enter", "no enter")
BEGIN = ("start", "run")
END = (
    ("stop",),
    ("stop", "leave"),
    ("stop", "stop"),
    ("stop", "cancel"),
    ("cancel",),
    ("cancel", "stop"),
    ("cancel", "leave"),
    ("leave",),
)
AT_ONCE = {("stop", "stop"), ("cancel", "cancel")}


ORDERS = [
    *(order for order in product(ENTER, BEGIN, END) if order[0] == "enter" or "leave" not in order[2]),
    ("enter", "start", ("cancel", "cancel")),
]


@pytest.mark.parametrize(("enter", "begin", "end"), ORDERS)
async def test_running_jobs_get_their_grace_in_every_order_of_stop_and_exit(queue: Queue, gate, enter, begin, end):
    """Twice, because a stopped worker can be started again."""

    @queue.task(attempts=1)
    async def slow() -> str:
        await gate.passing()
        return "done"

    worker = Worker(queue, grace=60)
    for _ in range(2):
        gate.__init__()
        async with AsyncExitStack() as stack:
            if enter == "enter":
                await stack.enter_async_context(worker)
            running = worker.start() if begin == "start" else asyncio.create_task(worker.run())
            job = await slow.enqueue()
            await gate.arrival()
            assert worker.state == "running"
            for step in end:
                if step == "stop":
                    worker.stop()
                elif step == "cancel":
                    running.cancel()
                    await asyncio.sleep(0)
            if end not in AT_ONCE:
                asyncio.get_running_loop().call_later(0.05, gate.open)
            if "leave" not in end:
                await asyncio.wait([running], timeout=10)
        assert running.done()
        assert running.cancelled() == ("cancel" in end)
        assert worker.state == "stopped"
        assert worker.error is None
        row = await job.row()
        if end in AT_ONCE:
            assert (row.state, row.attempts_made) == (State.WAITING, 0)
            await queue.remove(job.id)
        else:
            assert row.state is State.COMPLETED


@pytest.mark.parametrize("enter", ENTER)
@pytest.mark.parametrize("begin", BEGIN)
async def test_a_worker_that_runs_refuses_to_run_twice(queue: Queue, gate, until, enter, begin):
    async with AsyncExitStack() as stack:
        worker = Worker(queue, grace=0)
        if enter == "enter":
            await stack.enter_async_context(worker)
        running = worker.start() if begin == "start" else asyncio.create_task(worker.run())
        await until(lambda: worker.state == "running")
        with pytest.raises(RuntimeError, match="runs already"):
            worker.start()
        with pytest.raises(RuntimeError, match="runs already"):
            await worker.run()
        worker.stop()
        await running


async def test_a_stop_before_the_start_stops_that_start_only(queue: Queue, until):
    worker = Worker(queue)
    worker.stop()
    await worker.run()
    async with worker:
        worker.start()
        worker.stop()
        await worker.finished()
        worker.stop()  # The worker has already stopped, so this must not stop the next run.
        running = worker.start()
        await until(lambda: worker.state == "running")
        worker.stop()
        await running
    async with worker:
        worker.stop()
    async with worker:
        worker.start()
        await until(lambda: worker.state == "running")


async def test_a_start_that_is_cancelled_before_its_first_step_runs_nothing(queue: Queue):
    async with Worker(queue) as worker:
        worker.start().cancel()
    assert worker.state == "stopped"


async def test_run_without_async_with_opens_and_closes_the_queue(redis_url):
    queue = Queue("test", redis_url)
    worker = Worker(queue)

    @queue.task
    async def last() -> str:
        worker.stop()
        return "done"

    async with queue:
        job = await last.enqueue()
    await worker.run()
    assert not queue.is_open
    async with queue:
        assert (await job.row()).state is State.COMPLETED


async def test_entering_twice_and_leaving_twice_are_refused(queue: Queue):
    async with Worker(queue) as worker:
        with pytest.raises(RuntimeError, match="entered already"):
            await worker.__aenter__()
    with pytest.raises(RuntimeError, match="left already"):
        await worker.__aexit__(None, None, None)


async def test_a_stop_may_come_from_another_thread(queue: Queue, until):
    async with Worker(queue) as worker:
        running = worker.start()
        await until(lambda: worker.state == "running")
        await asyncio.to_thread(worker.stop)
        await asyncio.wait_for(running, 10)


@pytest.mark.parametrize("busy", [False, True], ids=["", "with a busy executor"])
async def test_a_cancel_scope_of_anyio_hands_the_job_back_and_ends_the_heartbeat(
    queue: Queue, gate, until, busy, monkeypatch: pytest.MonkeyPatch
):
    """anyio cancels again at every await until the scope is left."""
    monkeypatch.setattr("jobq.engine.worker.heartbeat.LEAVE_SECONDS", 10.0)  # however busy the machine is
    release = threading.Event()
    if busy:  # Work of other code of the service in the default executor.
        for _ in range(64):
            asyncio.get_running_loop().run_in_executor(None, release.wait, 20)

    @queue.task(attempts=1)
    async def slow() -> None:
        await gate.passing()

    try:
        job = await slow.enqueue()
        worker = Worker(queue, grace=60)
        with anyio.CancelScope() as scope:
            async with worker, anyio.create_task_group() as group:
                group.start_soon(worker.run)
                await gate.arrival()
                scope.cancel()
        assert scope.cancelled_caught
        row = await job.row()
        assert (row.state, row.attempts_made) == (State.WAITING, 0)
        await until(lambda: not heartbeats(), "the heartbeat to end")
        assert await queue.workers() == []
    finally:
        release.set()


# -- a worker that fails ---------------------------------------------------------------------------------------------


class Broken(Exception):
    pass


@pytest.fixture
def broken(queue: Queue) -> Queue:
    @queue.on_startup
    def breaks() -> None:
        raise Broken("no database")

    return queue


async def test_leaving_raises_the_error_of_a_failed_background_worker(broken: Queue, until, logs):
    async def serve() -> None:
        async with worker:
            running = worker.start()
            await until(running.done)
            assert worker.state == "failed"
            assert isinstance(worker.error, Broken)

    worker = Worker(broken)
    with pytest.raises(Broken):
        await serve()
    assert logs.one("worker failed", "ERROR").exc_info


async def test_an_error_of_the_with_body_is_raised_instead_of_the_workers(broken: Queue, until):
    async def serve() -> None:
        async with Worker(broken) as worker:
            running = worker.start()
            await until(running.done)
            raise KeyError("the body's")

    with pytest.raises(KeyError):
        await serve()


async def test_an_error_raised_by_finished_is_not_raised_again_on_leaving(broken: Queue):
    async with Worker(broken) as worker:
        worker.start()
        with pytest.raises(Broken):
            await worker.finished()
    with pytest.raises(RuntimeError, match="was not started"):
        await Worker(broken).finished()


async def test_a_failing_startup_hook_is_named_and_the_hooks_of_other_queues_still_end(queue: Queue, connection, logs):
    ended: list[str] = []
    other = Queue("other", connection)

    @queue.on_shutdown
    async def first() -> None:
        ended.append("first")

    @queue.on_shutdown
    async def second() -> None:
        ended.append("second")
        raise OSError("cannot close")

    @queue.on_shutdown
    def third() -> None:
        ended.append("third")

    @other.on_startup
    async def connect_to_the_database() -> None:
        raise Broken("no database")

    with pytest.raises(OSError, match="cannot close"):
        await Worker(queue, other).run()
    assert ended == ["first", "second", "third"]
    assert "connect_to_the_database" in logs.one("startup hook failed", "ERROR").hook
    assert "second" in logs.one("shutdown hook failed", "ERROR").hook


async def test_a_startup_hook_that_raises_cancelled_error_is_an_error(queue: Queue, logs):
    @queue.on_startup
    async def connect() -> None:
        raise asyncio.CancelledError

    worker = Worker(queue)
    with pytest.raises(RuntimeError, match="cancelled by something it awaited"):
        await worker.run()
    assert "connect" in logs.one("startup hook failed", "ERROR").hook


async def test_an_error_in_the_heartbeat_starts_it_again(queue: Queue, monkeypatch, logs, until):
    monkeypatch.setattr("jobq.engine.worker.heartbeat.RESTART_SECONDS", 0.01)
    watch, failed = Heartbeat._watch, threading.Event()  # noqa: SLF001

    async def fail_once(self: Any, *rest: Any) -> None:
        if not failed.is_set():
            failed.set()
            raise Broken("in the heartbeat")
        await watch(self, *rest)

    monkeypatch.setattr(Heartbeat, "_watch", fail_once)
    async with Worker(queue) as worker:
        worker.start()
        await until(failed.is_set)
        await until(lambda: logs.all("The heartbeat failed and starts again", "ERROR"))
        await until(lambda: worker.state == "running")
        assert len(heartbeats()) == 1


async def test_the_end_of_the_heartbeat_thread_ends_the_worker(queue: Queue, monkeypatch, gate):
    dies = threading.Event()

    @queue.task(attempts=1)
    async def slow() -> None:
        await gate.passing()

    async def die(_: Any, halt: asyncio.Event) -> None:
        await asyncio.to_thread(dies.wait)
        halt.set()

    # Simulates a thread that ends by itself.
    monkeypatch.setattr(Heartbeat, "_watch", die)
    async with Worker(queue, grace=60) as worker:
        worker.start()
        job = await slow.enqueue()
        await gate.arrival()
        dies.set()
        with pytest.raises(RuntimeError, match="heartbeat's thread has ended"):
            await asyncio.wait_for(worker.finished(), 10)
        assert worker.state == "failed"
    assert (await job.row()).state is State.WAITING, "handed back, since its lease would run out"


async def test_a_worker_without_a_server_fails_with_one_line(redis_url, logs):
    with pytest.raises(StoreUnavailable):
        await Worker(Queue("test", "unix:///nowhere")).run()
    assert logs.one("worker failed", "ERROR").exc_info is None


# -- what it is told -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        *(
            ({"concurrency": value}, "concurrency is .*: it takes a whole number")
            for value in (0, -1, 1.5, True, math.nan)
        ),
        *(
            ({"lease": value}, "lease is .*: it takes seconds")
            for value in (0, 0.09, -1, math.nan, math.inf, True, "soon", 1e9)
        ),
        *(
            ({"grace": value}, "grace is .*: it takes seconds")
            for value in (-1, math.nan, math.inf, False, None.__class__)
        ),
        *(({"stuck_after": value}, "stuck_after is .*: it takes seconds") for value in (0, 0.5, -1, math.nan, True)),
        *(({"name": value}, "name is .*: it takes 1 to 100 characters") for value in ("", "x" * 101)),
    ],
)
def test_an_argument_out_of_its_range_is_named(options, says):
    with pytest.raises(ValueError, match=says):
        Worker(Queue("test"), **options)


@pytest.mark.parametrize("weight", [0, -1, 0.5, True, math.nan, "3"])
def test_a_weight_is_a_whole_number(weight):
    with pytest.raises(ValueError, match=r"weight of 'test' is .*: it takes a whole number"):
        Worker((Queue("test"), weight))


@pytest.mark.parametrize("given", ["test", [Queue("a"), Queue("b")], None, (Queue("a"),), (Queue("a"), 1, 2)])
def test_an_argument_that_is_not_a_queue_is_refused(given):
    with pytest.raises(TypeError, match="is not a queue: a worker takes queues one by one"):
        Worker(given)


async def test_a_name_holds_no_white_space(queue: Queue):
    assert Worker(queue, name="my\tlittle worker\n").name.startswith("my_little_worker_-")
