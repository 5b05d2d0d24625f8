"""What a run needs of the source that it belongs to. It keeps run.py and source.py from importing each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import asyncio
    import contextvars
    from collections.abc import Mapping, Sequence

    import msgspec

    from jobq.engine.queue.queue import Queue
    from jobq.engine.task.context import Context
    from jobq.engine.task.inject import Resources
    from jobq.engine.task.task import Task
    from jobq.engine.worker.children import Children
    from jobq.engine.worker.threads import Threads
    from jobq.engine.worker.timers import Deadlines

Reason = Literal["killed", "lost", "timeout", "shutdown"]


class Host(Protocol):
    """A source, as its runs see it."""

    @property
    def name(self) -> str:
        """Of the queue."""
        ...

    @property
    def worker(self) -> str:
        """The worker's name."""
        ...

    @property
    def queue(self) -> Queue:
        """Where the job is."""
        ...

    @property
    def tasks(self) -> Mapping[str, Task[Any, Any]]:
        """The handlers by type."""
        ...

    @property
    def middlewares(self) -> Sequence[Any]:
        """What goes around each handler."""
        ...

    @property
    def hooks(self) -> Mapping[Any, Any]:
        """Who is told of what happens to its jobs."""
        ...

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where handlers run."""
        ...

    @property
    def context(self) -> contextvars.Context:
        """What each run's context is a copy of."""
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
        """When runs time out."""
        ...

    def tell_start(self, run: Any, /) -> None:
        """Call the hooks for the start of a run."""
        ...

    def freed(self, run: Any, /) -> None:
        """The run's slot is free."""
        ...

    def completed(self, run: Any, result: bytes | msgspec.Raw, seconds: float, /) -> None:
        """The run returned."""
        ...

    def failed(self, run: Any, error: BaseException, /) -> None:
        """The run failed: another attempt, or the end."""
        ...

    def deferred(self, run: Any, why: str, /) -> None:
        """Another version of the worker might run the job."""
        ...

    async def unserved_ms(self, run: Any, /) -> int:
        """For how long nobody could run the job."""
        ...

    def released(self, run: Any, /) -> None:
        """Handed back, uncharged."""
        ...

    def forget(self, run: Any, /) -> None:
        """Another worker holds the job now, or it has ended."""
        ...

    def say(self, context: Context, what: str, value: bytes | str, /) -> None:
        """Progress or a log line."""
        ...


class Invoked(Protocol):
    """A run, as the call of its handler sees it."""

    @property
    def id(self) -> bytes:
        """Of the job."""
        ...

    @property
    def name(self) -> str:
        """For people: the job's type and id."""
        ...

    @property
    def source(self) -> Host:
        """What the run belongs to."""
        ...

    @property
    def context(self) -> Context | None:
        """What the handler can know of its run."""
        ...

    @property
    def reason(self) -> Reason | None:
        """Why the run was stopped."""
        ...

    def timeout(self) -> Exception:
        """The error of a run that took too long."""
        ...
