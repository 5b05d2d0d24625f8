"""The handle of an enqueued job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from jobq.engine.task.hooks import decode_hook
from jobq.errors import UnreadableResult
from jobq.redact import misfit

if TYPE_CHECKING:
    from jobq.engine.model.job import JobRow, Seconds
    from jobq.engine.queue.queue import Queue

R = TypeVar("R")


class Job(Generic[R]):
    """What an enqueue returns. ``duplicate``: the job is an earlier one with the same key."""

    __slots__ = ("_returns", "duplicate", "id", "queue")

    def __init__(self, queue: Queue, id: str, returns: Any = Any, *, duplicate: bool = False) -> None:
        self.queue = queue
        self.id = id
        self.duplicate = duplicate
        self._returns = returns

    def __repr__(self) -> str:
        return f"<Job {self.queue.name}:{self.id}{' duplicate' if self.duplicate else ''}>"

    async def result(self, timeout: Seconds | None = None) -> R:
        """Wait for the job's end; its result, typed by the handler's return annotation.

        :raises JobFailed: it ended in failed (``JobKilled``: it was killed).
        :raises JobNotFound: it was removed, or its retention ran out.
        :raises ResultTimeout: it had not ended after ``timeout`` (seconds). With 0 it is asked for once.
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

    async def row(self) -> JobRow:
        """All there is to know of the job now.

        :raises JobNotFound: it was removed, or its retention ran out.
        """
        return await self.queue.get(self.id)

    async def kill(self) -> None:
        """Send the unfinished job to failed as killed; a running handler is stopped.

        :raises JobNotFound: it was removed, or its retention ran out.
        :raises WrongState: it is finished.
        """
        await self.queue.kill(self.id)
