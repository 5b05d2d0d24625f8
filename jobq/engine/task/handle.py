"""The handle of an enqueued job, and the interface of a queue that handles use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

import msgspec

from jobq.engine.task.hooks import decode_hook
from jobq.errors import UnreadableResult
from jobq.redact import misfit

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Iterable
    from datetime import datetime

    from jobq.engine.model.event import EventKind, QueueEvent
    from jobq.engine.model.job import Accepted, Done, Durability, NewJob, Seconds, State
    from jobq.engine.model.views import JobRow

R = TypeVar("R")


class Sender(Protocol):
    """The interface of a queue that the handles of its jobs use."""

    @property
    def name(self) -> str:
        """The queue's name."""
        ...

    @property
    def unknown_fields(self) -> Literal["refuse", "ignore"]:
        """Whether an enqueue refuses or ignores fields of a payload that the handler has no argument for."""
        ...

    async def submit(self, new: NewJob, *, durability: Durability | None = None) -> Accepted:
        """Enqueue one job."""
        ...

    async def send(self, new: NewJob, returns: Any = Any, *, durability: Durability | None = None) -> Job[Any]:
        """Enqueue one job, whose result is decoded as ``returns``."""
        ...

    async def send_many(
        self,
        news: Iterable[NewJob],
        returns: Any = Any,
        *,
        durability: Durability | None = None,
        spread: Seconds | None = None,
    ) -> list[Job[Any]]:
        """Enqueue many jobs."""
        ...

    async def result(self, job_id: str, *, timeout: Seconds | None = None) -> msgspec.Raw:
        """Wait for the end of a job. Returns its result as encoded JSON."""
        ...

    def events(
        self,
        *,
        since: str | datetime | Seconds | None = None,
        job: str | None = None,
        names: Collection[EventKind] | None = None,
    ) -> AsyncGenerator[QueueEvent]:
        """Follow what happens to its jobs."""
        ...

    async def get(self, job_id: str) -> JobRow:
        """Everything that is stored of a job."""
        ...

    async def kill(self, job_id: str) -> None:
        """Send an unfinished job to failed."""
        ...

    def sync(self) -> Blocking:
        """The queue for synchronous code."""
        ...


class Blocking(Protocol):
    """Runs coroutines for synchronous code."""

    def call(self, called: str, instead: str, make: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Wait for ``make()``. ``called`` and ``instead`` are for the text of an error."""
        ...


class Job(Generic[R]):
    """The handle that an enqueue returns. ``duplicate``: the job is an earlier one that holds the key.

    ``state``: the state of that job then. ``done``: what the enqueue did with it: "returned", "replaced" or "extended".
    Both are None for a new job.
    """

    __slots__ = ("_returns", "done", "duplicate", "id", "queue", "state")

    def __init__(
        self,
        queue: Sender,
        id: str,
        returns: Any = Any,
        *,
        duplicate: bool = False,
        state: State | None = None,
        done: Done | None = None,
    ) -> None:
        self.queue = queue
        self.id = id
        self.duplicate = duplicate
        self.state = state
        self.done = done
        self._returns = returns

    def __repr__(self) -> str:
        return f"<Job {self.queue.name}:{self.id}{' duplicate' if self.duplicate else ''}>"

    async def result(self, timeout: Seconds | None = None) -> R:
        """Wait for the job's end. Returns its result, typed by the handler's return annotation.

        :raises JobFailed: the job ended in failed (``JobKilled``: it was killed; ``JobExpired``).
        :raises JobNotFound: the job was removed, or its retention ran out.
        :raises ResultTimeout: the job had not ended after ``timeout`` seconds. With 0, Redis is asked once.
        :raises UnreadableResult: the result is damaged, or is not of the annotated type.
        """
        raw = await self.queue.result(self.id, timeout=timeout)
        try:
            return msgspec.json.decode(raw, type=self._returns, dec_hook=decode_hook())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UnreadableResult(self.id, f"it does not fit the handler's annotation: {misfit(error)}") from None

    def result_sync(self, timeout: Seconds | None = None) -> R:
        """As ``result``, for synchronous code.

        :raises RuntimeError: an event loop runs in this thread.
        """
        return self.queue.sync().call("job.result_sync()", "job.result(...)", lambda: self.result(timeout))

    def events(self, *, since: str | datetime | Seconds | None = None) -> AsyncGenerator[QueueEvent]:
        """Follow what happens to the job. The events end after the job has ended. See ``Queue.events``.

        :raises JobNotFound: the job was removed, or its retention ran out. Raised by the iteration.
        """
        return self.queue.events(since=since, job=self.id)

    async def row(self) -> JobRow:
        """Everything that is stored of the job now.

        :raises JobNotFound: the job was removed, or its retention ran out.
        """
        return await self.queue.get(self.id)

    async def kill(self) -> None:
        """Send the unfinished job to failed as killed, and stop its handler if it runs.

        :raises JobNotFound: the job was removed, or its retention ran out.
        :raises WrongState: the job is finished.
        """
        await self.queue.kill(self.id)
