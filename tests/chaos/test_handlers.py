"""Handlers that do what none should: block the loop, ignore their cancellation, take their process along."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time

import pytest

from jobq import Backoff, Connection, Context, JobFailed, Queue, Worker
from jobq.engine import run as run_module

LEASE = 0.3
"""Seconds."""

here = Queue("handlers")
"""At the top level of a module: child processes look their handlers up."""


@here.task(attempts=2, backoff=Backoff("fixed", 0), isolate="process")
def segfault() -> None:
    """Reads where nothing is."""
    ctypes.string_at(0)


@here.task(attempts=3, backoff=Backoff("fixed", 0), isolate="process")
def killed_by_the_system() -> None:
    """As the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("name", "attempts", "reason"), [("segfault", 2, "SIGSEGV"), ("killed_by_the_system", 3, "SIGKILL")]
)
async def test_a_child_that_dies(connection: Connection, name: str, attempts: int, reason: str) -> None:
    """The job ends in failed with the reason after its attempts; the worker and its other jobs go on."""
    queue = Queue("handlers", connection)
    queue.tasks = here.tasks

    async with queue, Worker(queue, concurrency=2) as worker:
        worker.start()
        job = await queue.enqueue(name, attempts=attempts, backoff=Backoff("fixed", 0))
        with pytest.raises(JobFailed, match=reason):
            await job.result(timeout=20)
        row = await job.row()
        assert [error.type for error in row.errors] == ["ProcessCrashed"] * attempts


async def test_a_handler_that_blocks_the_loop_keeps_its_lease(
    connection: Connection, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    """For three leases and more; another worker, in a loop of its own, must not get the job. It is reported by name."""
    starts: list[int] = []

    @queue.task
    async def block(ctx: Context) -> int:
        starts.append(ctx.fence)
        time.sleep(max(3 * LEASE, 1.6))  # noqa: ASYNC251 - that is the fault
        return ctx.attempt

    def other() -> None:
        """A second worker whose sweeper would recover what seems dead."""

        async def sweep() -> None:
            elsewhere = Queue("test", connection.url)
            elsewhere.tasks = queue.tasks
            async with elsewhere, Worker(elsewhere, lease=LEASE, grace=0) as worker:
                worker.start()
                await stopped.wait()

        stopped = asyncio.Event()
        others.append(stopped)
        loop = asyncio.new_event_loop()
        loops.append(loop)
        loop.run_until_complete(sweep())
        loop.close()

    others: list[asyncio.Event] = []
    loops: list[asyncio.AbstractEventLoop] = []
    async with Worker(queue, lease=LEASE, concurrency=1) as worker:
        worker.start()
        job = await queue.enqueue("block")
        second = asyncio.create_task(asyncio.to_thread(other))
        assert await job.result(timeout=10) == 1
        loops[0].call_soon_threadsafe(others[0].set)
        await second
    assert len(starts) == 1
    assert "a handler blocks the event loop" in caplog.text
    stacks = [str(record.__dict__.get("stack")) for record in caplog.records]
    assert any("time.sleep" in stack for stack in stacks)


async def test_a_handler_that_ignores_its_cancellation(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its slot goes to the next job, its job ends as its timeout says, and it is reported."""
    monkeypatch.setattr(run_module, "CANCEL_GRACE", 0.1)
    let_go = asyncio.Event()

    @queue.task(attempts=1, timeout=0.1)
    async def stubborn() -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    @queue.task
    async def next_one() -> int:
        return 1

    async with Worker(queue, concurrency=1) as worker:
        worker.start()
        job = await stubborn.enqueue()
        behind = await next_one.enqueue()
        with pytest.raises(JobFailed, match="timeout of 100 ms"):
            await job.result(timeout=5)
        assert await behind.result(timeout=5) == 1
        assert "ignores its cancellation" in caplog.text
        let_go.set()
