"""A worker: the life of a pool. Start, run, graceful stop."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import os
import socket
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

from jobq.engine.log import get_logger
from jobq.engine.model.backoff import pause
from jobq.engine.model.ids import new_id
from jobq.engine.model.job import Seconds, WorkerRow
from jobq.engine.model.options import to_ms
from jobq.engine.task.inject import Resources
from jobq.engine.version import jobq_version
from jobq.engine.worker.children import Children
from jobq.engine.worker.heartbeat import Heartbeat
from jobq.engine.worker.pool import Pool
from jobq.engine.worker.sweeper import Sweeper
from jobq.engine.worker.waker import leave
from jobq.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobq.engine.queue.queue import Queue
    from jobq.engine.worker.source import Source

log = get_logger("jobq.worker")

_numbers = itertools.count()
SETTLE_SECONDS = 5.0
"""How long a stopping worker tries to settle its last outcomes; then the leases take over."""

HEARTBEAT_SECONDS = 3.0
"""How long a stopping worker waits for its heartbeat's end."""


class Worker:
    """Runs the jobs of one or more queues in this event loop.

    A queue may come with a weight, ``(queue, 3)``: its share when all have work. ``concurrency``: handlers at a time.
    ``lease``: how long a job stays this worker's without a renewal. ``grace``: how long ``stop`` waits for running
    handlers before it hands them back. ``stuck_after``: how long a blocked event loop keeps its leases. ``given_up`` is
    then called in the heartbeat's thread (the command line ends the process with it). All times in seconds.
    """

    def __init__(
        self,
        *queues: Queue | tuple[Queue, int],
        concurrency: int | None = None,
        lease: Seconds | None = None,
        grace: Seconds | None = None,
        name: str | None = None,
        stuck_after: Seconds = 300.0,
        given_up: Callable[[], None] | None = None,
    ) -> None:
        if not queues:
            raise ValueError("a worker needs at least one queue")
        self._queues = [(entry, 1) if not isinstance(entry, tuple) else entry for entry in queues]
        for place, (queue, weight) in enumerate(self._queues):
            if weight < 1:
                raise ValueError(f"weight of {queue.name!r} is {weight}: it takes at least 1")
            if any(queue.place == other.place for other, _ in self._queues[:place]):
                raise ValueError(f"queue {queue.name!r} is given twice: each would hand back the other's jobs")
        settings = self._queues[0][0].settings
        self.concurrency = settings.concurrency if concurrency is None else concurrency
        if type(self.concurrency) is not int or self.concurrency < 1:
            raise ValueError(f"concurrency is {self.concurrency!r}: it takes a whole number, at least 1")
        self.lease_ms = to_ms(lease if lease is not None else settings.lease)
        if self.lease_ms < 100:
            raise ValueError(f"lease is {self.lease_ms} ms: it takes at least 0.1 s")
        self.grace = to_ms(grace if grace is not None else settings.grace) / 1000
        # No two workers may share a name, or one would hold the other's leases. Short: each finished job keeps it.
        number = next(_numbers)
        node = new_id()[12:] + (f".{number}" if number else "")
        base = name or f"{socket.gethostname()[:40]}-{os.getpid()}"
        self.name = f"{base}-{node}".replace(" ", "_")
        self._stuck_after = to_ms(stuck_after) / 1000
        self._given_up = given_up
        self._stack: AsyncExitStack | None = None
        self._pool: Pool | None = None
        self._stops = 0
        self._stopped = asyncio.Event()
        self._hurry = asyncio.Event()
        self._started = 0
        self._background: asyncio.Task[None] | None = None
        self._running = False

    async def __aenter__(self) -> Self:
        self._stack = stack = AsyncExitStack()
        try:
            for queue, _ in self._queues:
                await stack.enter_async_context(queue)
        except BaseException:
            await stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._stack is not None
        try:
            if self._background is not None:
                self.stop()
                await self._background
        finally:
            await self._stack.aclose()

    def start(self) -> asyncio.Task[None]:
        """Run in the background of someone else's service; leaving the ``async with`` stops it gracefully."""
        self._background = asyncio.create_task(self.run(), name="jobq-worker")
        return self._background

    def stop(self) -> None:
        """Stop gracefully: no more claims, running handlers get ``grace``, the rest is handed back. Twice: at once."""
        self._stops += 1
        self._stopped.set()
        if self._stops > 1:
            self._hurry.set()

    @property
    def running(self) -> int:
        """How many handlers run now."""
        return self._pool.running if self._pool else 0

    def _describe(self, queue: Queue) -> WorkerRow:
        # Whoever may read a queue reads its row. So the row names this queue only, and the types that it runs for it.
        pool = self._pool
        assert pool is not None
        return WorkerRow(
            id=self.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=[queue.name],
            types=sorted(queue.tasks),
            concurrency=self.concurrency,
            running=pool.running,
            started=self._started,
            seen=0,
            version=jobq_version(),
        )

    async def run(self) -> None:
        """Claim and run jobs until ``stop``.

        :raises RuntimeError: it runs already, or is used outside ``async with``.
        """
        if self._stack is None:
            raise RuntimeError("use the worker as a context manager: async with Worker(queue) as worker")
        if self._running:
            raise RuntimeError("this worker runs already")
        self._running = True
        try:
            # whatever of it fails, the rest of the end still happens
            async with AsyncExitStack() as stack:
                await self._run(stack)
        finally:
            self._running = False
            log.info("worker stopped", worker=self.name)

    async def _run(self, stack: AsyncExitStack) -> None:
        self._started = time.time_ns() // 1_000_000
        resources, children = Resources(), Children()
        pool = self._pool = Pool(asyncio.get_running_loop(), self.concurrency, self.lease_ms, self.name)
        for queue, weight in self._queues:
            pool.add(queue, weight, resources, children)
        for queue, _ in self._queues:
            await queue.store.register()
            await _call_hooks(queue.startup_hooks)
            stack.push_async_callback(_call_hooks, queue.shutdown_hooks)
        stack.push_async_callback(resources.aclose)
        stack.push_async_callback(children.aclose)
        heartbeat = Heartbeat(pool, self._describe, self._stuck_after, self._given_up)
        heartbeat.start()
        stack.push_async_callback(asyncio.wait, [heartbeat.ended], timeout=HEARTBEAT_SECONDS)
        stack.callback(heartbeat.halt)  # a plain call: a cancellation cannot skip it
        for queue, _ in self._queues:
            # known before the first claim: what is recorded of claims is kept for known workers only
            await queue.store.do(queue.store.heartbeat(self.name, heartbeat.word(queue)))
        tasks = [
            *(asyncio.create_task(lane.run(), name="jobq-lane") for lane in pool.lanes),
            *(asyncio.create_task(waker.run(), name="jobq-waker") for waker in pool.wakers),
            asyncio.create_task(Sweeper(pool).run(), name="jobq-sweeper"),
            *(asyncio.create_task(self._listen(source), name="jobq-control") for source in pool.sources),
        ]
        log.info(
            "worker started",
            worker=self.name,
            queues=[queue.name for queue, _ in self._queues],
            concurrency=self.concurrency,
        )
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done() and not task.cancelled() and task.exception():
                    log.error(
                        "the worker's own task failed; the worker stops",
                        task=task.get_name(),
                        exc_info=task.exception(),
                    )
        finally:
            stopped.cancel()
            try:
                await self._wind_down(pool, tasks)
            finally:
                # cancelled again while it winds down: at once
                pool.close()
                for task in tasks:
                    task.cancel()
        for task in tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _wind_down(self, pool: Pool, tasks: list[asyncio.Task[None]]) -> None:
        pool.slots.stop_claiming()
        wakers = [task for task in tasks if task.get_name() == "jobq-waker"]
        for task in wakers:
            # before the lanes end: they ask for what a waker's last claim may have taken
            task.cancel()
        await asyncio.wait(wakers, timeout=1.0)
        if pool.running:
            log.info("stopping: waiting for running jobs", running=pool.running, grace_s=self.grace)
        hurry = asyncio.create_task(self._hurry.wait())
        idle = asyncio.create_task(pool.slots.idle(self.grace))
        try:
            await asyncio.wait([hurry, idle], return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurry.cancel()
            idle.cancel()
        if running := pool.unfinished():
            log.warning("stopping: handing back running jobs", running=len(running))
            for run in running:
                run.stop("shutdown")
        if not await pool.slots.drained(SETTLE_SECONDS):
            held = sum(len(source.runs) for source in pool.sources)
            log.error("stopped with jobs unsettled; others recover them when their leases run out", held=held)
        pool.close()
        for task in tasks:
            # lanes end by themselves; one that hangs on a dead Redis is cut off here
            if not task.get_name().startswith("jobq-lane"):
                task.cancel()
        _, late = await asyncio.wait(tasks, timeout=1.0)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=1.0)
        await leave(pool.sources)

    async def _listen(self, source: Source) -> None:
        """Hear kills at once. Without the channel they are learnt of at the next renewal."""
        failures = 0

        async def joined() -> None:
            nonlocal failures
            failures = 0
            await source.look_for_lost()

        while True:
            with contextlib.suppress(StoreError):
                await source.store.listen(source.heard, joined)
            failures += 1
            await asyncio.sleep(pause(failures))


async def _call_hooks(hooks: list[Callable[[], Any]]) -> None:
    for hook in hooks:
        value = hook()
        if inspect.isawaitable(value):
            await value
