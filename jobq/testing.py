"""Tools for testing code that uses jobq. They use a real server for the time of the test, and never wait for a delay.

    from jobq.testing import ManualClock, drain, on_server, temporary_server

    async def test_reminder():
        clock = ManualClock()
        with temporary_server() as url:
            async with on_server(app.queue, url, clock=clock):  # the service's own queue, on the test's server
                await app.remind.options(delay=3600).enqueue(user=7)
                assert (await drain(app.queue)).completed == 0
                clock.advance(3600)
                assert (await drain(app.queue)).completed == 1

To call a handler by itself, call its task: ``await app.remind(user=7, ctx=FakeContext(attempt=2))``. ``override``
replaces a dependency in the runs of a worker. With pytest, the fixtures ``jobq_url``,
``jobq_queue`` and ``jobq_clock`` come with ``pytest_plugins = ["jobq.testing_plugin"]`` in the topmost conftest.py.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import msgspec

from jobq.engine.model.ids import new_id
from jobq.engine.model.job import Seconds, Spec, State
from jobq.engine.model.times import to_ms
from jobq.engine.task.context import Context
from jobq.engine.task.inject import key_of, overrides
from jobq.engine.worker.worker import Worker
from jobq.errors import WrongState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Generator

    from jobq.engine.model.views import Stats
    from jobq.engine.queue.queue import Queue

__all__ = ["Drained", "FakeContext", "ManualClock", "drain", "on_server", "override", "temporary_server"]

LOOK_SECONDS = 0.005
"""The time between two checks of ``drain`` whether all jobs are done."""


class ManualClock:
    """A clock that stands still until it is advanced: ``Queue(..., clock=clock)``.

    All users of a queue must have the same clock. A running worker does not notice an advance by itself; ``drain``
    reads the clock when it starts. ``now``: the first time, in unix ms.
    """

    def __init__(self, now: int = 1_700_000_000_000) -> None:
        self.now = now

    def __call__(self) -> int:
        """Unix ms."""
        return self.now

    def advance(self, by: Seconds) -> None:
        """Advance the clock by ``by`` (seconds or a ``timedelta``).

        :raises ValueError: ``by`` is negative.
        """
        ms = to_ms(by)
        if ms < 0:
            raise ValueError(f"a clock cannot be advanced by {by!r}: time does not run backwards")
        self.now += ms


class FakeContext(Context):
    """A ``Context`` for calling a handler without a worker. ``logs`` and ``progresses`` list what the handler reports.

    Set ``lost`` to test how the handler reacts when its worker has lost the job.
    """

    __slots__ = ("costs", "logs", "progresses")

    def __init__(
        self,
        type: str = "test",
        payload: Any = None,
        *,
        id: str | None = None,
        queue: str = "test",
        attempt: int = 1,
        attempts: int | None = 3,
        metadata: dict[str, Any] | None = None,
        worker: str = "test",
        fence: int = 1,
        lost: bool = False,
        snoozes: int = 0,
        rate_limited: int = 0,
    ) -> None:
        self.logs: list[str] = []
        self.progresses: list[Any] = []
        self.costs: dict[str, int] = {}
        """What the handler passed to ``spent``, by unit."""
        raw = msgspec.Raw(msgspec.json.encode({} if payload is None else payload))
        spec = Spec(type, payload=raw, attempts=attempts, metadata=metadata)
        super().__init__(id or new_id(), queue, spec, attempt, worker, fence, self._keep, snoozes, rate_limited)
        self.lost = lost

    def _keep(self, _: Context, what: str, value: bytes | str) -> None:
        if what == "progress":
            self.progresses.append(msgspec.json.decode(value))
        elif what == "spent":
            unit, amount = str(value).split(" ")
            self.costs[unit] = int(amount)
        else:
            self.logs.append(str(value))


@contextmanager
def override(dependency: Callable[..., Any], by: Callable[..., Any]) -> Generator[None]:
    """Replace a dependency: ``Depends(dependency)`` calls ``by`` instead, in all runs that start in the ``with`` block.

    ``by`` may be anything that ``Depends`` takes. The replacement holds in this process. Child processes
    (``isolate="process"``) keep the dependency itself.
    """
    key = key_of(dependency)
    before = overrides.get(key)
    overrides[key] = by
    try:
        yield
    finally:
        if before is None:
            del overrides[key]
        else:
            overrides[key] = before


class Drained(msgspec.Struct, frozen=True):
    """The number of runs of a ``drain`` that ended in each way. A job that ran twice counts twice."""

    completed: int = 0
    failed: int = 0
    retried: int = 0
    snoozed: int = 0
    rate_limited: int = 0


async def drain(*queues: Queue, include_delayed: bool = False, timeout: Seconds = 30.0) -> Drained:
    """Run all waiting jobs of these queues, and the jobs that they enqueue, with a real worker in this process.

    Delayed jobs stay delayed until they are due, and so does a failed job until its next attempt. ``include_delayed``
    runs them at once, so that a job goes through all its attempts.

    :raises TimeoutError: jobs were still waiting or running after ``timeout`` (seconds).
    :raises RuntimeError: a queue is paused, so its jobs would wait for ever.
    """
    async with Worker(*queues, grace=0) as worker:
        before = await _look(queues)
        if paused := [stats.queue for stats in before if stats.paused]:
            raise RuntimeError(f"queue {paused[0]!r} is paused, so its jobs would never run; resume it first")
        after = before
        running = worker.start()
        try:
            async with asyncio.timeout(to_ms(timeout) / 1000):
                while True:
                    if include_delayed:
                        for queue in queues:
                            await _promote_delayed(queue)
                    earlier, after = after, await _look(queues)
                    # Queues are read one after another. A job that ended in between may have enqueued to another one.
                    if not any(map(_busy, [*earlier, *after])) and [*map(_ends, earlier)] == [*map(_ends, after)]:
                        break
                    # If the worker ends here, a hook has failed. Its error is raised below, where it is awaited.
                    await asyncio.wait([running], timeout=LOOK_SECONDS)
                    if running.done():
                        break
        except TimeoutError:
            left = ", ".join(
                f"{stats.queue}: {stats.waiting} waiting, {stats.held} held, {stats.active} running" for stats in after
            )
            says = "; await queue.why(job_id) says what holds a job" if any(stats.held for stats in after) else ""
            raise TimeoutError(f"not drained within {timeout} s ({left}){says}") from None

    gained = [
        [late - early for early, late in zip(_ends(old), _ends(new), strict=True)]
        for old, new in zip(before, after, strict=True)
    ]
    return Drained(*map(sum, zip(*gained, strict=True)))


async def _look(queues: tuple[Queue, ...]) -> list[Stats]:
    return [await queue.stats() for queue in queues]


def _busy(stats: Stats) -> bool:
    return bool(stats.waiting or stats.held or stats.active or stats.next_due_ms == 0)


def _ends(stats: Stats) -> tuple[int, ...]:
    return (
        stats.completed_total, stats.failed_total, stats.retried_total, stats.snoozed_total, stats.rate_limited_total,
    )  # fmt: skip


async def _promote_delayed(queue: Queue) -> None:
    """Promote all delayed jobs, except those that no handler here can read: they would be delayed again for ever."""
    cursor = None
    while True:
        page = await queue.briefs(State.DELAYED, limit=1000, cursor=cursor)
        for row in page.jobs:
            if row.type in queue.tasks and not row.unserved:
                try:
                    await queue.promote(row.id)
                except WrongState:
                    continue  # The job came due meanwhile.
        cursor = page.cursor
        if cursor is None:
            return


@asynccontextmanager
async def on_server(queue: Queue, url: str, *, clock: Callable[[], int] | None = None) -> AsyncGenerator[Queue]:
    """Open a queue with its tasks on a server other than its own. ``clock`` replaces the queue's clock.

    :raises RuntimeError: the queue is open already.
    :raises StoreError: as ``queue.open``.
    """
    if queue.is_open:
        raise RuntimeError(f"{queue!r} is open already; close it before you open it on another server")
    attributes = vars(queue)
    before = attributes["_redis"], attributes["clock"]
    attributes |= {"_redis": url, "clock": clock or queue.clock}
    try:
        async with queue:
            yield queue
    finally:
        attributes["_redis"], attributes["clock"] = before


@contextmanager
def temporary_server() -> Generator[str]:
    """Start an empty server and return its URL. Afterwards the server is stopped and its data removed.

    It is the server of ``jobq[embedded]``, or else valkey-server or redis-server from PATH.

    :raises NoServer: none of them is installed.
    """
    from jobq.engine.server.embedded import EmbeddedServer

    folder = Path(tempfile.mkdtemp(prefix="jobq-testing-"))
    try:
        server = _in_a_thread(EmbeddedServer.join_or_start(folder))
        try:
            yield server.url
        finally:
            _in_a_thread(server.stop())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _in_a_thread(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a new thread, because the caller's thread may have a running event loop."""
    answers: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(asyncio.run(coroutine))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    thread = Thread(target=run, name="jobq-testing")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return answers[0]
