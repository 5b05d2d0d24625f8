"""One life of a worker, from start to end: hooks, heartbeat, lanes, and the graceful stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from jobq.engine.log import get_logger
from jobq.engine.model.backoff import pause
from jobq.engine.model.views import WorkerRow
from jobq.engine.task.inject import Resources
from jobq.engine.version import jobq_version
from jobq.engine.worker.balancer import Balancer
from jobq.engine.worker.children import Children
from jobq.engine.worker.exporter import Exporter
from jobq.engine.worker.heartbeat import Heartbeat
from jobq.engine.worker.pool import Pool
from jobq.engine.worker.starting import introduce, open_queues, register_queue, run_startup_hooks, side_by_side
from jobq.engine.worker.sweeper import Sweeper
from jobq.engine.worker.tokens import leave
from jobq.errors import StoreError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from jobq.engine.queue.queue import Queue
    from jobq.engine.worker.reserve import Reserve
    from jobq.engine.worker.source import Source

log = get_logger("jobq.worker")

SETTLE_SECONDS: Final = 5.0
"""Seconds for which a stopping worker tries to send its last outcomes. After that other workers recover the jobs."""
HEARTBEAT_SECONDS: Final = 3.0
"""Seconds for which a stopping worker waits for the end of its heartbeat."""
HANDED_BACK_SECONDS: Final = 15.0
"""Seconds in which a cancelled worker may hand its jobs back. Then even that is cancelled."""


@dataclass(frozen=True)
class Plan:
    """The arguments of a worker."""

    queues: list[tuple[Queue, int]]
    name: str
    concurrency: int
    lease_ms: int
    grace: float
    stuck_after: float
    given_up: Callable[[], None] | None
    reserve: Reserve | None = None
    metrics: tuple[str, int] | None = None
    """The address at which the worker's own numbers are served."""


async def to_end(task: asyncio.Task[Any], cancelled: Callable[[int], None] = lambda _: None) -> None:
    """Wait for a task's end, even if the caller is cancelled meanwhile. Cancel scopes of anyio cancel repeatedly.

    ``cancelled`` is called at each cancellation with their number.

    :raises CancelledError: after the end, if the caller was cancelled.
    """
    times = 0
    last: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            times += 1
            cancelled(times)
            last = error
    if last is not None:
        raise last


class Life:
    """One run. A worker that is started again has a new one.

    It runs in its own task. A cancellation of the caller, even a repeated one, only tells it to stop.
    """

    def __init__(self, plan: Plan) -> None:
        self.pool: Pool | None = None
        self.metrics_port: int | None = None
        self.stopping = False
        self.working = False
        """Whether the start is complete: queues are open and startup hooks have run."""
        self._plan = plan
        self._resources = Resources()
        self._children = Children()
        self._stop = asyncio.Event()
        self._at_once = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._started = 0
        self.task = self._loop.create_task(self._run(), name="jobq-worker-life")
        # The error is logged here and raised in callers that wait, so asyncio need not report it as never retrieved.
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())

    def stop(self, *, at_once: bool = False) -> None:
        """Stop gracefully. It may be called from any thread, and any number of times."""
        self.stopping = True
        with contextlib.suppress(RuntimeError):  # The loop is closed, so nothing runs any more.
            self._loop.call_soon_threadsafe(self._stop.set)
            if at_once:
                self._loop.call_soon_threadsafe(self._at_once.set)

    @property
    def error(self) -> BaseException | None:
        """The error that ended it, or None after a stop."""
        return self.task.exception() if self.task.done() and not self.task.cancelled() else None

    def check(self) -> None:
        """Raise the error that ended it, if there is one."""
        if self.error is not None:
            raise self.error

    async def end(self) -> None:
        """Wait for the end. A cancellation asks for a graceful stop, a second one for a stop at once.

        :raises CancelledError: after the end, if the caller was cancelled meanwhile.
        """

        def cancelled(times: int) -> None:
            if times == 1:
                self.stop()
                if not self.working:
                    self.task.cancel()  # For example, a startup hook need not be completed.
            elif times == 2:
                self.stop(at_once=True)
                self._loop.call_later(HANDED_BACK_SECONDS, self.task.cancel)

        await to_end(self.task, cancelled)

    # -- the run ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        name = self._plan.name
        if self.stopping:
            log.info(f"The worker was stopped before it had started: {name}", worker=name)
            return
        try:
            # If one step of the shutdown fails, the other steps still happen.
            async with AsyncExitStack() as stack:
                await self._work(stack)
        except StoreError as error:
            log.error(f"The worker failed: {name}: {error}", worker=name, error=str(error))  # noqa: TRY400 - no traceback needed
            raise
        except Exception:
            log.exception(f"The worker failed: {name}", worker=name)
            raise
        finally:
            self.stopping = True
            log.info(f"The worker stopped: {name}", worker=name)

    async def _work(self, stack: AsyncExitStack) -> None:
        plan = self._plan
        self._started = time.time_ns() // 1_000_000
        away = await open_queues(plan.queues, stack)
        here = [pair for pair in plan.queues if pair not in away]
        pool = self.pool = Pool(self._loop, plan.concurrency, plan.lease_ms, plan.name, plan.reserve)
        if plan.metrics is not None:
            exporter = Exporter(pool, *plan.metrics)
            stack.callback(exporter.close)
            self.metrics_port = exporter.port
        await side_by_side(register_queue(queue) for queue, _ in here)
        for queue, _ in here:
            await run_startup_hooks(queue, stack)
        # for the queues that join later: they are closed after the last run, like the others
        joined = await stack.enter_async_context(AsyncExitStack())
        stack.push_async_callback(self._resources.aclose)
        stack.push_async_callback(self._children.aclose)
        heartbeat = Heartbeat(pool, self._describe, plan.stuck_after, plan.given_up)
        for queue, weight in here:
            self._add(queue, weight)
        heartbeat.start()
        stack.push_async_callback(asyncio.wait, [heartbeat.ended], timeout=HEARTBEAT_SECONDS)
        stack.callback(heartbeat.halt)  # This is a plain call, so a cancellation cannot skip it.
        await side_by_side(introduce(queue, heartbeat, plan.name) for queue, _ in here)
        served: set[object] = set()
        tasks = [asyncio.create_task(_watch(heartbeat), name="jobq-heartbeat"), *_serve(pool, served)]
        for queue, _ in away:
            log.warning(
                f"Queue {queue.name} is not served yet: its server does not answer, and is tried again until it does",
                queue=queue.name,
            )
        joins: list[asyncio.Task[Queue]] = [
            *(asyncio.create_task(self._join(*pair, joined, heartbeat), name="jobq-join") for pair in away),
            *(self._watch_partitions(queue, heartbeat) for queue, _ in here),
        ]
        _log_start(plan, [queue.name for queue, _ in here])
        self.working = True
        stopped = asyncio.create_task(self._stop.wait())
        try:
            while True:
                await asyncio.wait([stopped, *tasks, *joins], return_when=asyncio.FIRST_COMPLETED)
                ready = [join for join in joins if join.done() and not join.cancelled() and not join.exception()]
                if not ready:
                    break
                joins = [join for join in joins if join not in ready]
                for join in ready:
                    joins.append(self._watch_partitions(join.result(), heartbeat))
                tasks += _serve(pool, served)
            tasks += joins
            if failed := [task.get_name() for task in tasks if task.done()]:
                self.stopping = True
                log.error(f"A part of the worker ended, so the worker stops: {', '.join(failed)}", parts=failed)
            if heartbeat.ended.done():
                # No lease is renewed any more. During a grace other workers would start the same jobs.
                self._at_once.set()
            await self._wind_down(pool, tasks)
        finally:
            # It may have been cancelled meanwhile. Then do not wait.
            stopped.cancel()
            pool.close()
            for task in (*tasks, *joins):
                task.cancel()
        for task in tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _join(self, queue: Queue, weight: int, stack: AsyncExitStack, heartbeat: Heartbeat) -> Queue:
        """Wait until the server of a queue answers, and add the queue to the pool. Returns the queue."""
        failures, last = 0, ""
        while True:
            failures += 1
            await asyncio.sleep(pause(failures))
            try:
                await open_queues([(queue, weight)], stack)
                await register_queue(queue)
                break
            except StoreUnavailable:
                continue
            except StoreError as error:
                # The server answers, and refuses. The other queues are served meanwhile.
                level = log.debug if str(error) == last else log.error
                last = str(error)
                level(f"Queue {queue.name} is not served: {error}", queue=queue.name, error=last)
        await run_startup_hooks(queue, stack)
        with contextlib.suppress(StoreUnavailable):  # the first claim fails as well, and is repeated
            await introduce(queue, heartbeat, self._plan.name)
        added = self._add(queue, weight)
        for source in added:
            heartbeat.add(source)
        log.warning(f"Queue {queue.name} is served now: its server answers", queue=queue.name)
        return queue

    def _watch_partitions(self, queue: Queue, heartbeat: Heartbeat) -> asyncio.Task[Queue]:
        return asyncio.create_task(self._grow(queue, heartbeat), name="jobq-join")

    async def _grow(self, queue: Queue, heartbeat: Heartbeat) -> Queue:
        """Wait until the queue has more partitions, and add those to the pool. Returns the queue."""
        pool, failures = self.pool, 0
        assert pool is not None
        grown = next(source.grown for source in pool.sources if source.queue is queue)
        while True:
            await grown.wait()
            grown.clear()
            try:
                await queue.refresh_partitions()
                if len(queue.store.parts) > sum(source.queue is queue for source in pool.sources):
                    await register_queue(queue)
                    await introduce(queue, heartbeat, self._plan.name)
                    break
                failures = 0
            except StoreError as error:
                failures += 1
                log.debug(f"The partitions of queue {queue.name} could not be read; tried again", error=str(error))
                await asyncio.sleep(pause(failures))
                grown.set()
        for source in self._add(queue, next(weight for one, weight in self._plan.queues if one is queue)):
            heartbeat.add(source)
        log.info(f"Queue {queue.name} has {len(queue.store.parts)} partitions now, which are served", queue=queue.name)
        return queue

    def _add(self, queue: Queue, weight: float) -> list[Source]:
        """Add the partitions of a queue that are not served yet to the pool. They share its weight."""
        pool, parts = self.pool, queue.store.parts
        assert pool is not None
        served = [source for source in pool.sources if source.queue is queue]
        for lane in pool.lanes:
            if lane.source in served:
                lane.weight = weight / len(parts)
        return [
            pool.add(queue, weight / len(parts), self._resources, self._children, part) for part in parts[len(served) :]
        ]

    async def _wind_down(self, pool: Pool, tasks: list[asyncio.Task[Any]]) -> None:
        pool.slots.stop_claiming()
        wakers = [task for task in tasks if task.get_name() in ("jobq-waker", "jobq-join")]
        for task in wakers:
            # Do this before the lanes end, because they repeat the last claim of a waker, which may have taken a job.
            task.cancel()
        await asyncio.wait(wakers, timeout=1.0)
        if pool.running:
            # A waker may have been about to hear of a token. These jobs may take long, so another worker gets it now.
            await leave(pool.sources)
            log.info(
                f"The worker stops: {pool.running} jobs still run, and have {self._plan.grace:g} s to end",
                running=pool.running, grace_s=self._plan.grace,
            )  # fmt: skip
        at_once = asyncio.create_task(self._at_once.wait())
        idle = asyncio.create_task(pool.slots.idle(self._plan.grace))
        try:
            await asyncio.wait([at_once, idle], return_when=asyncio.FIRST_COMPLETED)
        finally:
            at_once.cancel()
            idle.cancel()
        if running := pool.unfinished():
            log.warning(f"The worker stops: {len(running)} jobs still run, and are handed back", running=len(running))
            for run in running:
                run.stop("shutdown")
        if not await pool.slots.drained(SETTLE_SECONDS):
            held = sum(len(source.runs) for source in pool.sources)
            log.error(
                f"The worker stopped before Redis took the outcome of {held} jobs; other workers recover them when"
                " their leases run out",
                held=held,
            )
        await asyncio.gather(*(source.queue.hook_calls.ended() for source in pool.sources))
        pool.close()
        for task in tasks:
            # Lanes end by themselves. One that waits for a dead Redis is cancelled here.
            if not task.get_name().startswith("jobq-lane"):
                task.cancel()
        _, late = await asyncio.wait(tasks, timeout=1.0)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=1.0)
        await leave(pool.sources)

    def _describe(self, queue: Queue) -> WorkerRow:
        # Everybody who may read a queue can read this row. So it names this queue and its types only.
        idle = self.pool.idle(queue) if self.pool else None
        return WorkerRow(
            id=self._plan.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=[queue.name],
            types=sorted(queue.tasks),
            concurrency=self._plan.concurrency,
            reserve=str(self._plan.reserve or ""),
            running=self.pool.running if self.pool else 0,
            elsewhere=self.pool.elsewhere(queue) if self.pool else 0,
            idle=str(idle.code) if idle else "",
            idle_until=idle.until if idle else None,
            started=self._started,
            seen=0,
            version=jobq_version(),
        )


def _log_start(plan: Plan, queues: list[str]) -> None:
    log.info(
        f"The worker started: {plan.name} runs jobs of {', '.join(queues)}, {plan.concurrency} at a time",
        worker=plan.name, queues=queues, concurrency=plan.concurrency,
    )  # fmt: skip


def _serve(pool: Pool, served: set[object]) -> list[asyncio.Task[Any]]:
    """Start the tasks of the parts of the pool that are not yet in ``served``, and add them there."""
    tasks: list[asyncio.Task[Any]] = []

    def start(part: object, name: str, *works: Coroutine[Any, Any, None]) -> None:
        served.add(part)
        tasks.extend(asyncio.create_task(work, name=name) for work in works)

    for lane in pool.lanes:
        if lane not in served:
            start(lane, "jobq-lane", lane.run())
            if not lane.source.store.partition:
                # All schedules are in the first partition.
                start(lane, "jobq-schedules", lane.source.firing.run())
                start(lane, "jobq-shares", Balancer(lane.source.queue, pool.worker).run())
    for waker in pool.wakers:
        if waker not in served:
            start(waker, "jobq-waker", waker.run(), waker.ask())
            # The sources of a waker are on one server, or alone.
            start(waker, "jobq-sweeper", Sweeper(pool, waker).run())
    for control in pool.controls:
        if control not in served:
            start(control, "jobq-control", control.run())
    return tasks


async def _watch(heartbeat: Heartbeat) -> None:
    """End the worker when the heartbeat's thread ends, because without it every lease would be lost."""
    await asyncio.wait([heartbeat.ended])  # A plain await would cancel the future together with this task.
    raise RuntimeError("the heartbeat's thread has ended: nothing renews the leases")
