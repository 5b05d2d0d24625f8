"""The interface between runs and sources, so that run.py and source.py do not import each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import asyncio
    import contextvars
    from collections.abc import Mapping, Sequence

    import msgspec

    from jobq.engine.queue.queue import Queue
    from jobq.engine.store import Store
    from jobq.engine.task.context import Context
    from jobq.engine.task.inject import Resources
    from jobq.engine.task.task import Task
    from jobq.engine.worker.children import Children
    from jobq.engine.worker.threads import Threads
    from jobq.engine.worker.timers import Deadlines

Reason = Literal["killed", "lost", "timeout", "shutdown"]


class Host(Protocol):
    """The interface of a source that its runs use."""

    @property
    def name(self) -> str:
        """The name of the queue."""
        ...

    @property
    def worker(self) -> str:
        """The worker's name."""
        ...

    @property
    def queue(self) -> Queue:
        """The queue."""
        ...

    @property
    def store(self) -> Store:
        """The scripts of the queue, and the server's clock."""
        ...

    @property
    def tasks(self) -> Mapping[str, Task[Any, Any]]:
        """The handlers by type."""
        ...

    @property
    def middlewares(self) -> Sequence[Any]:
        """The middleware of the queue."""
        ...

    @property
    def hooks(self) -> Mapping[Any, Any]:
        """Who is told of what happens to its jobs."""
        ...

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The executor of sync handlers."""
        ...

    @property
    def context(self) -> contextvars.Context:
        """The context that each run copies."""
        ...

    @property
    def resources(self) -> Resources:
        """Dependencies of the worker's scope."""
        ...

    @property
    def children(self) -> Children:
        """The processes of isolated handlers."""
        ...

    @property
    def threads(self) -> Threads:
        """The threads of sync handlers."""
        ...

    @property
    def deadlines(self) -> Deadlines:
        """The deadlines of runs."""
        ...

    def tell_start(self, run: Any, /) -> None:
        """Call the hooks for the start of a run."""
        ...

    def freed(self, run: Any, /) -> None:
        """The run's slot is free."""
        ...

    def complete(self, run: Any, result: bytes | msgspec.Raw, seconds: float, /) -> None:
        """The run returned."""
        ...

    def fail(self, run: Any, error: BaseException, /) -> None:
        """The run failed: another attempt, or the end."""
        ...

    def defer(self, run: Any, why: str, left_ms: int, /) -> None:
        """A worker of another version may be able to run the job."""
        ...

    async def unserved_ms(self, run: Any, /) -> int:
        """The time for which no worker could run the job."""
        ...

    def release(self, run: Any, /) -> None:
        """Hand the job back, uncharged."""
        ...

    def forget(self, run: Any, /) -> None:
        """Another worker holds the job now, or it has ended."""
        ...

    def say(self, context: Context, what: str, value: bytes | str, /) -> None:
        """Progress or a log line."""
        ...


class Invoked(Protocol):
    """The interface of a run that the call of its handler uses."""

    @property
    def id(self) -> bytes:
        """The spec of the job."""
        ...

    @property
    def name(self) -> str:
        """The job's type and id, for messages."""
        ...

    @property
    def source(self) -> Host:
        """The source of the run."""
        ...

    @property
    def context(self) -> Context | None:
        """The context of the run."""
        ...

    @property
    def reason(self) -> Reason | None:
        """The reason why the run was stopped."""
        ...

    def timeout(self) -> Exception:
        """The error of a run that took too long."""
        ...
