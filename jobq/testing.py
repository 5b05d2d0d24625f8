"""Help for testing code that uses jobq: real queues on a real server that lives as long as the test, without waiting.

    from jobq.testing import ManualClock, drain, on_server, temporary_server

    async def test_reminder():
        clock = ManualClock()
        with temporary_server() as url:
            async with on_server(app.queue, url, clock=clock):  # the service's own queue, elsewhere
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
"""How often ``drain`` looks whether all is done."""


class ManualClock:
    """A clock that stands still until it is advanced: ``Queue(..., clock=clock)``.

    Whoever uses the queue must have the same clock. A worker that is running does not notice an advance by itself;
    ``drain`` looks at the clock when it starts. ``now``: where it begins, unix ms.
    """

    def __init__(self, now: int = 1_700_000_000_000) -> None:
        self.now = now

    def __call__(self) -> int:
        """Unix ms."""
        return self.now

    def advance(self, by: Seconds) -> None:
        """Let ``by`` (seconds or a ``timedelta``) pass.

        :raises ValueError: time does not run backwards.
        """
        ms = to_ms(by)
        if ms < 0:
            raise ValueError(f"a clock cannot be advanced by {by!r}: time does not run backwards")
        self.now += ms


class FakeContext(Context):
    """A ``Context`` for calling a handler by itself. It keeps what the handler reports: ``logs`` and ``progresses``.

    ``lost`` can be set, as the worker does when the job is no longer this run's.
    """

    __slots__ = ("logs", "progresses")

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
    ) -> None:
        self.logs: list[str] = []
        self.progresses: list[Any] = []
        raw = msgspec.Raw(msgspec.json.encode({} if payload is None else payload))
        spec = Spec(type, payload=raw, attempts=attempts, metadata=metadata)
        super().__init__(id or new_id(), queue, spec, attempt, worker, fence, self._keep)
        self.lost = lost

    def _keep(self, _: Context, what: str, value: bytes | str) -> None:
        if what == "progress":
            self.progresses.append(msgspec.json.decode(value))
        else:
            self.logs.append(str(value))


@contextmanager
def override(dependency: Callable[..., Any], by: Callable[..., Any]) -> Generator[None]:
    """Let ``Depends(dependency)`` give what ``by`` gives, in all runs of this process that start in the ``with`` block.

    ``by`` may be whatever ``Depends`` takes. Child processes (``isolate="process"``) keep the dependency itself.
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
    """How the runs of a ``drain`` ended; a job that was run twice counts twice."""

    completed: int = 0
    failed: int = 0
    retried: int = 0


async def drain(*queues: Queue, include_delayed: bool = False, timeout: Seconds = 30.0) -> Drained:
    """Run what waits in these queues, and what it enqueues, with a real worker in this process, until nothing is left.

    A failed job waits out its backoff as delayed, and delayed jobs are left alone until they are due;
    ``include_delayed`` runs them at once, so that a job goes through all its attempts.

    :raises TimeoutError: something still waited or ran after ``timeout`` (seconds).
    :raises RuntimeError: a queue is paused: its jobs would wait for ever.
    """
    async with Worker(*queues, grace=0) as worker:
        before = await _look(queues)
        if paused := [stats.queue for stats in before if stats.paused]:
            raise RuntimeError(f"queue {paused[0]!r} is paused: resume it, or its jobs wait for ever")
        after = before
        running = worker.start()
        try:
            async with asyncio.timeout(to_ms(timeout) / 1000):
                while True:
                    if include_delayed:
                        for queue in queues:
                            await _promote_delayed(queue)
                    earlier, after = after, await _look(queues)
                    # queues are looked at one by one: a job that ended between two looks may have filled the other
                    if not any(map(_busy, [*earlier, *after])) and [*map(_ends, earlier)] == [*map(_ends, after)]:
                        break
                    # its end here would be an error of a hook: raised below, where it is awaited
                    await asyncio.wait([running], timeout=LOOK_SECONDS)
                    if running.done():
                        break
        except TimeoutError:
            left = ", ".join(f"{stats.queue}: {stats.waiting} waiting, {stats.active} running" for stats in after)
            raise TimeoutError(f"not drained within {timeout} s ({left})") from None

    gained = [
        [late - early for early, late in zip(_ends(old), _ends(new), strict=True)]
        for old, new in zip(before, after, strict=True)
    ]
    return Drained(*map(sum, zip(*gained, strict=True)))


async def _look(queues: tuple[Queue, ...]) -> list[Stats]:
    return [await queue.stats() for queue in queues]


def _busy(stats: Stats) -> bool:
    return bool(stats.waiting or stats.active or stats.next_due_ms == 0)


def _ends(stats: Stats) -> tuple[int, int, int]:
    return stats.completed_total, stats.failed_total, stats.retried_total


async def _promote_delayed(queue: Queue) -> None:
    """Delayed jobs run now, but for those that no handler here can read: they would come back for ever."""
    cursor = None
    while True:
        page = await queue.briefs(State.DELAYED, limit=1000, cursor=cursor)
        for row in page.jobs:
            if row.type in queue.tasks and not row.unserved:
                try:
                    await queue.promote(row.id)
                except WrongState:
                    continue  # it came due meanwhile
        cursor = page.cursor
        if cursor is None:
            return


@asynccontextmanager
async def on_server(queue: Queue, url: str, *, clock: Callable[[], int] | None = None) -> AsyncGenerator[Queue]:
    """Open a queue, with its tasks, on another server than its own, and perhaps with another clock.

    :raises RuntimeError: it is open already.
    :raises StoreError: as ``queue.open``.
    """
    if queue.is_open:
        raise RuntimeError(f"{queue!r} is open already: it cannot be moved to another server")
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
    """A server of one's own, empty, gone afterwards with all its data; gives its URL.

    It is the embedded server: from ``jobq[embedded]``, else valkey-server or redis-server on PATH.

    :raises NoServer: there is none of them.
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
    """Run a coroutine where no event loop is: this one's caller may have one, or none."""
    answers: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(asyncio.run(coroutine))
        except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread
            errors.append(error)

    thread = Thread(target=run, name="jobq-testing")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return answers[0]
