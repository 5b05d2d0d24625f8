"""Handlers that misbehave: they block the loop, ignore their cancellation, or kill their process."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Backoff, Connection, Context, JobFailed, Queue, State, Worker
from jobq.engine.worker import run as run_module
from tests.chaos.memory import eat, limited

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobq import JobRow

LEASE = 0.3
"""Seconds."""
ATTEMPTS = 3
ROOM = 48 << 20
"""Bytes that a handler may allocate."""

here = Queue("handlers")
"""Handlers are at the top level of a module, because child processes import them."""


@here.task(isolate="process")
def segfault() -> None:
    """Reads from an invalid address."""
    ctypes.string_at(0)


@here.task(isolate="process")
def big_bites() -> None:
    """Allocates until the allocator refuses, with some memory left for an error message."""
    with limited(ROOM):
        eat(1 << 20)


@here.task(isolate="process")
def to_the_last_byte() -> None:
    """Allocates until even the smallest allocation is refused."""
    with limited(ROOM):
        eat(1)


@here.task(isolate="process")
def native() -> None:
    """Aborts when it cannot allocate, as C++ libraries do."""
    try:
        with limited(ROOM):
            eat(1 << 20)
    except MemoryError:
        os.abort()


@here.task(isolate="process")
def caged(group: str) -> None:
    """Allocates in a control group until the kernel's OOM killer kills it."""
    Path(group, "cgroup.procs").write_text(str(os.getpid()))
    with limited(16 * ROOM):  # This ends the test if the control group has no effect.
        eat(1 << 20)


@here.task
def modest() -> int:
    """Does no harm."""
    return 1


@pytest.fixture
def group() -> Iterator[str]:
    """A control group with little memory."""
    root = Path("/sys/fs/cgroup")
    limits = ("memory.max", "memory.swap.max")
    if not (root / "cgroup.controllers").exists():
        root, limits = root / "memory", ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    folder = root / f"jobq-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if not (folder / limits[0]).exists():
            pytest.skip("control groups have no memory controller here")
        for name in limits:
            if (folder / name).exists():
                (folder / name).write_text("0" if name == "memory.swap.max" else str(ROOM))
        yield str(folder)
    finally:
        folder.rmdir()


async def ends_in_failed(connection: Connection, name: str, payload: dict[str, Any] | None = None) -> JobRow:
    """Run a job that uses up its process's memory or kills it, then a harmless one, on the same worker."""
    queue = Queue("handlers", connection)
    queue.tasks = here.tasks
    async with queue, Worker(queue, concurrency=2) as worker:
        worker.start()
        job = await queue.enqueue(name, payload, attempts=ATTEMPTS, backoff=Backoff("fixed", 0))
        with pytest.raises(JobFailed):
            await job.result(timeout=60)
        assert await (await queue.enqueue("modest")).result(timeout=20) == 1
        row = await job.row()
        assert row.state == State.FAILED
        assert row.attempts_made == len(row.errors) == ATTEMPTS
        return row


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("segfault", "ProcessCrashed: .*SIGSEGV"),
        ("big_bites", "MemoryError"),
        # If there is not even memory for the error message, the process ends.
        ("to_the_last_byte", "MemoryError|ProcessCrashed"),
        ("native", "ProcessCrashed: .*SIGABRT"),
    ],
)
async def test_a_child_that_eats_memory_or_dies(connection: Connection, name: str, reason: str) -> None:
    """The job ends in failed with the reason after its attempts. The worker and its other jobs continue."""
    row = await ends_in_failed(connection, name)
    for error in row.errors:
        assert re.match(reason, f"{error.type}: {error.message}")


@pytest.mark.slow
async def test_a_child_that_the_kernel_kills_for_its_memory(connection: Connection, group: str) -> None:
    """Uses the real OOM killer. The error says what SIGKILL usually means."""
    row = await ends_in_failed(connection, "caged", {"group": group})
    for error in row.errors:
        assert re.match("ProcessCrashed: .*SIGKILL.*memory", f"{error.type}: {error.message}")


async def test_a_handler_that_blocks_the_loop_keeps_its_lease(
    connection: Connection, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    """The handler blocks the loop for more than three leases. Another worker in another loop must not get the job. The
    log names the handler."""
    starts: list[int] = []

    @queue.task
    async def block(ctx: Context) -> int:
        starts.append(ctx.fence)
        time.sleep(max(3 * LEASE, 1.6))  # noqa: ASYNC251 - that is the fault
        return ctx.attempt

    def other() -> None:
        """A second worker whose sweeper would recover jobs of a worker that seems dead."""

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
    reports = [record.getMessage() for record in caplog.records]
    assert any("A handler blocks the event loop" in report and "time.sleep" in report for report in reports)


async def test_a_handler_that_ignores_its_cancellation(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its slot is freed for the next job, its job ends by its timeout, and the handler is logged."""
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
        with pytest.raises(JobFailed, match=r"timeout of 0\.1 s"):
            await job.result(timeout=5)
        assert await behind.result(timeout=5) == 1
        assert "ignores its cancellation" in caplog.text
        let_go.set()
