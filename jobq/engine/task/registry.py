"""The tasks of a queue, and what surrounds their runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from jobq.engine.model.job import Options
from jobq.engine.model.options import Given, merge
from jobq.engine.task.task import Task
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from jobq.engine.queue.queue import Queue


P = ParamSpec("P")
R = TypeVar("R")


class Registry:
    """What is registered with a queue: tasks by type, middleware, hooks."""

    name: str
    unknown_fields: Literal["refuse", "ignore"] = "refuse"

    def __init__(self) -> None:
        self.tasks: dict[str, Task[Any, Any]] = {}
        self.middlewares: list[Any] = []
        self.startup_hooks: list[Callable[[], Any]] = []
        self.shutdown_hooks: list[Callable[[], Any]] = []

    @overload
    def task(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def task(self, fn: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self, /, *, name: str | None = None, isolate: Literal["process"] | None = None, **given: Unpack[Given]
    ) -> _Decorator: ...
    def task(
        self,
        fn: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        isolate: Literal["process"] | None = None,
        **given: Unpack[Given],
    ) -> Any:
        """Make a function this queue's handler of a type, by default of the function's name.

        :raises InvalidJob: an option is out of its range, or the type has a handler already.
        :raises TypeError: the signature cannot be a payload's.
        """

        def register(fn: Callable[..., Any]) -> Task[..., Any]:
            task: Task[..., Any] = Task(cast("Queue", self), fn, name or fn.__name__, merge(Options(), given), isolate)
            if task.name in self.tasks:
                raise InvalidJob(
                    f"queue {self.name!r} has a handler for {task.name!r} already: give one of them a name="
                )
            self.tasks[task.name] = task
            return task

        return register if fn is None else register(fn)

    def middleware(self, fn: Any) -> Any:
        """Put ``async def fn(context, call_next)`` around every run; the first registered is the outermost."""
        self.middlewares.append(fn)
        return fn

    def on_startup(self, fn: Callable[[], Any]) -> Callable[[], Any]:
        """Call ``fn`` (plain or async) when a worker starts, before its first claim."""
        self.startup_hooks.append(fn)
        return fn

    def on_shutdown(self, fn: Callable[[], Any]) -> Callable[[], Any]:
        """Call ``fn`` (plain or async) when a worker has stopped, after its last run."""
        self.shutdown_hooks.append(fn)
        return fn


class _Decorator(Protocol):
    """Types of ``@queue.task(...)``."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Task[P, R]: ...
