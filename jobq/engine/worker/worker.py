"""The public class of the worker: its arguments, entering and leaving, start and stop."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, Literal, Self, cast

from jobq.engine.model.ids import new_id
from jobq.engine.model.times import to_ms
from jobq.engine.model.why import ReasonCode
from jobq.engine.queue.queue import Queue
from jobq.engine.worker.life import Life, Plan, open_queues, to_end
from jobq.engine.worker.reserve import read_reserve
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from jobq.engine.model.job import Seconds
    from jobq.engine.worker.pool import Pool

_numbers = itertools.count()
DAY_MS: Final = 86_400_000
NAME_MAX: Final = 100

WorkerState = Literal["new", "starting", "running", "stopping", "stopped", "failed"]


class Worker:
    """Runs the jobs of one or more queues in this event loop.

    A queue may have a weight, ``(queue, 3)``, which is its share when all queues have jobs. ``concurrency``:
    handlers at a time. ``reserve={"priority<0": 20}``: 20 of these slots are only for jobs with a priority below 0.
    ``lease``: the time for which a job belongs to this worker without a renewal. ``grace``: the time that ``stop``
    waits for running handlers before it hands their jobs back. ``stuck_after``: the time for which a blocked event
    loop keeps its leases. Then ``given_up`` is called in the heartbeat's thread (the command line ends the process
    with it). All times are seconds. ``metrics_port``: serves the worker's own numbers to Prometheus on this port of
    ``metrics_host``; 0 takes a free one, which ``metrics_port`` of the running worker tells.

    ``await Worker(queue).run()`` runs until ``stop``. In a service, ``async with Worker(queue) as worker:
    worker.start()`` runs in the background, and leaving stops gracefully. A worker that has stopped can be started
    again.

    :raises ValueError: an argument is out of its range. ``TypeError``: an argument is not a queue.
    """

    def __init__(
        self,
        *queues: Queue | tuple[Queue, int],
        concurrency: int | None = None,
        reserve: Mapping[str, int] | None = None,
        lease: Seconds | None = None,
        grace: Seconds | None = None,
        name: str | None = None,
        stuck_after: Seconds = 300.0,
        given_up: Callable[[], None] | None = None,
        metrics_port: int | None = None,
        metrics_host: str = "127.0.0.1",
    ) -> None:
        weighted = _weighted(queues)
        settings = weighted[0][0].settings
        self.concurrency = _whole("concurrency", settings.concurrency if concurrency is None else concurrency)
        self.lease_ms = _milliseconds("lease", settings.lease if lease is None else lease, 100, DAY_MS)
        self.grace = _milliseconds("grace", settings.grace if grace is None else grace, 0, DAY_MS) / 1000
        self.name = _unique_name(name)
        stuck = _milliseconds("stuck_after", stuck_after, 1000) / 1000
        kept = read_reserve(settings.reserve if reserve is None else reserve, self.concurrency)
        metrics = None if metrics_port is None else (metrics_host, _port(metrics_port))
        self._plan = Plan(
            weighted, self.name, self.concurrency, self.lease_ms, self.grace, stuck, given_up, kept, metrics
        )
        self._opened: AsyncExitStack | None = None
        self._life: Life | None = None
        self._background: Life | None = None
        """The run that ``start`` began, until ``finished`` has reported its end."""
        self._early_stops = 0
        """Calls of ``stop`` before the first run."""
        self._stops = 0

    async def __aenter__(self) -> Self:
        if self._opened is not None:
            raise RuntimeError("this worker is entered already: use one 'async with' for it")
        stack = AsyncExitStack()
        try:
            await open_queues(self._plan.queues, stack)  # the run opens those whose server is away
        except BaseException:
            await stack.aclose()
            raise
        self._opened = stack
        if self._life is not None and self._life.task.done():
            self._life = None
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        stack, self._opened = self._opened, None
        if stack is None:
            raise RuntimeError("this worker was not entered, or is left already")
        life, background = self._life, self._background
        self._early_stops, self._background = 0, None
        try:
            if life is not None and not life.task.done():
                life.stop()
                await life.end()
        finally:
            await to_end(closing := asyncio.create_task(stack.aclose()))
        closing.result()
        if background is not None and error is None:
            background.check()

    def start(self) -> asyncio.Task[None]:
        """Run in the background of a service. Leaving the ``async with`` stops it gracefully.

        The task ends when the worker ends, with its error if it failed. Leaving the ``async with`` raises that error
        too, unless ``finished`` has. Cancelling the task stops the worker gracefully.

        :raises RuntimeError: the worker runs already.
        """
        self._background = life = self._begin()
        task = asyncio.create_task(self._follow(life), name="jobq-worker")

        def ended(task: asyncio.Task[None]) -> None:
            # A task that is cancelled before its first step does not run at all, so nothing else would stop the worker.
            life.stop()
            if not task.cancelled():
                task.exception()  # The error is already logged.

        task.add_done_callback(ended)
        return task

    async def run(self) -> None:
        """Claim and run jobs until ``stop``. Outside ``async with`` it opens its queues, and closes them at the end.

        A cancellation stops gracefully, a second one at once.

        :raises RuntimeError: the worker runs already.
        """
        await self._follow(self._begin())

    async def finished(self) -> None:
        """Wait until the worker ends.

        :raises RuntimeError: it was never started.
        :raises Exception: the error that ended the worker.
        """
        if self._life is None:
            raise RuntimeError("this worker was not started: call start() or run() first")
        life = self._life
        await asyncio.wait([life.task])
        self._background = None
        life.check()

    def stop(self) -> None:
        """Stop gracefully: claim no more, give running handlers ``grace``, and hand the rest back. A second call
        does not wait.

        May be called from any thread and from signal handlers. Before the first run it stops that run; after the last
        one it does nothing.
        """
        if self._life is None:
            self._early_stops += 1
            return
        self._stops += 1
        self._life.stop(at_once=self._stops > 1)

    @property
    def state(self) -> WorkerState:
        """The state of the worker. ``failed``: it ended by itself and runs no more jobs; ``error`` has the reason."""
        life = self._life
        if life is None:
            return "new"
        if life.task.done():
            return "stopped" if life.error is None else "failed"
        if life.stopping:
            return "stopping"
        return "running" if life.working else "starting"

    @property
    def error(self) -> BaseException | None:
        """The error that ended the worker."""
        return self._life.error if self._life else None

    @property
    def idle(self) -> dict[str, ReasonCode]:
        """Why the last claim from a queue brought nothing, by the name of the queue: it is paused, has no jobs, and so
        on. Queues whose last claim brought jobs are left out."""
        found: dict[str, str] = {}
        for source in self._pool.sources if self._pool else []:
            # A queue of several partitions is idle if all of them are.
            if not found.setdefault(source.name, source.idle.code) or not source.idle.code:
                found[source.name] = ""
        return {name: ReasonCode(code) for name, code in found.items() if code}

    @property
    def running(self) -> int:
        """The number of handlers that run now."""
        return self._pool.running if self._pool else 0

    @property
    def metrics_port(self) -> int | None:
        """The port on which this worker serves its numbers now."""
        return self._life.metrics_port if self._life else None

    @property
    def _pool(self) -> Pool | None:
        return self._life.pool if self._life else None

    def _begin(self) -> Life:
        if self._life is not None and not self._life.task.done():
            raise RuntimeError("this worker runs already: stop it before it is started again, or make another Worker")
        self._life = life = Life(self._plan)
        self._stops, self._early_stops = self._early_stops, 0
        if self._stops:
            life.stop()
        return life

    @staticmethod
    async def _follow(life: Life) -> None:
        await life.end()
        life.check()


def _weighted(given: Sequence[object]) -> list[tuple[Queue, int]]:
    """The queues with their weights."""
    if not given:
        raise ValueError("a worker needs at least one queue")
    weighted: list[tuple[Queue, int]] = []
    for entry in given:
        pair = cast("tuple[Any, ...]", entry) if isinstance(entry, tuple) else (entry, 1)
        queue, weight = pair if len(pair) == 2 else (None, 1)
        if not isinstance(queue, Queue):
            raise TypeError(
                f"{queue!r} is not a queue: a worker takes queues one by one, each alone or as (queue, weight)"
            )
        if any(queue.place == other.place for other, _ in weighted):
            raise ValueError(f"queue {queue.name!r} is given twice: each would hand back the other's jobs")
        weighted.append((queue, _whole(f"weight of {queue.name!r}", weight)))
    return weighted


def _whole(what: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{what} is {value!r}: it takes a whole number, at least 1")
    return value


def _port(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65_535:
        raise ValueError(f"metrics_port is {value!r}: it takes 0 to 65535")
    return value


def _milliseconds(what: str, value: Any, least: int, most: int = 1000 * DAY_MS) -> int:
    try:
        ms = to_ms(value)
    except InvalidJob:
        ms = -1
    if isinstance(value, bool) or not least <= ms <= most:
        bounds = f"at least {least / 1000:g} s, at most {most // 1000} s"
        raise ValueError(f"{what} is {value!r}: it takes seconds, or a timedelta, {bounds}")
    return ms


def _unique_name(given: str | None) -> str:
    """Two workers must not share a name, or one would hold the other's leases. It is short, because each finished
    job stores it."""
    base = f"{socket.gethostname()[:40]}-{os.getpid()}" if given is None else given
    if not 0 < len(base) <= NAME_MAX:
        raise ValueError(f"name is {base[:NAME_MAX]!r}: it takes 1 to {NAME_MAX} characters")
    number = next(_numbers)
    node = new_id()[12:] + (f".{number}" if number else "")
    # A space ends the name in a lease's token.
    return re.sub(r"\s", "_", f"{base}-{node}")
