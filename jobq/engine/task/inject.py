"""Injection: dependencies are found once in a handler's signature, and opened for each run or once for a worker."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import types
from collections.abc import Awaitable
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from typing import TYPE_CHECKING, Annotated, Any, Union, cast, get_args, get_origin

from jobq.engine.task.context import Context, Depends

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


def injection(annotation: Any, default: Any = None) -> type[Context] | Depends[Any] | None:
    """What is injected for a parameter: the Context, a dependency, or None for nothing.

    ``Context``, ``Context | None``, ``Annotated[T, Depends(f)]``, or ``Depends(f)`` as the default.
    """
    if isinstance(default, Depends):
        return cast("Depends[Any]", default)
    if annotation is Context:
        return Context
    origin = get_origin(annotation)
    if origin is Annotated:
        for extra in get_args(annotation)[1:]:
            if isinstance(extra, Depends):
                return cast("Depends[Any]", extra)
        return injection(get_args(annotation)[0])
    if origin is Union or origin is types.UnionType:
        return next((found for one in get_args(annotation) if (found := injection(one)) is not None), None)
    return None


def parameters_of(fn: Callable[..., Any]) -> inspect.Signature:
    """The signature of a function, a partial or a callable object, with its annotations as types.

    :raises TypeError: an annotation cannot be resolved.
    """
    try:
        return inspect.signature(fn, eval_str=True)
    except NameError as error:
        raise TypeError(
            f"{name_of(fn)}: {error}; the types of a handler's parameters must be importable at run time"
        ) from None
    except ValueError:  # A type or function of C has no signature.
        return inspect.Signature()


def name_of(fn: Any) -> str:
    """The name of a function for messages. Partials and callable objects have the name of what they call."""
    name: str | None = getattr(fn, "__qualname__", None)
    return name or name_of(getattr(fn, "func", None) or fn.__class__)


def behind(fn: Any) -> Any:
    """The function that runs when ``fn`` is called, which may be a partial or an object with ``__call__``."""
    while hasattr(fn, "func") and not inspect.isroutine(fn):
        fn = fn.func
    return fn if inspect.isroutine(fn) or inspect.isclass(fn) else fn.__class__.__call__


overrides: dict[Hashable, Callable[..., Any]] = {}
"""Replacements by the key of the dependency. ``jobq.testing.override`` sets them."""


def key_of(call: Callable[..., Any]) -> Hashable:
    """The key of a dependency: the function itself, or its id if it cannot be hashed."""
    try:
        return hash(call) and call
    except TypeError:
        return id(call)


class Provider:
    """A dependency, with its own dependencies.

    :raises TypeError: a parameter cannot be filled, or a dependency of scope "worker" needs a run's Context.
    """

    __slots__ = ("_needs", "_open", "call", "closes", "key", "scope")

    def __init__(self, depends: Depends[Any], *, scope: str = "run") -> None:
        self.call = call = depends.call
        self.scope = "worker" if scope == "worker" else depends.scope
        self.key = key_of(call)
        function = behind(call)
        self._open: Any = None
        if inspect.isasyncgenfunction(function):
            self._open = asynccontextmanager(call)
        elif inspect.isgeneratorfunction(function):
            self._open = contextmanager(call)
        elif inspect.isgeneratorfunction(inspect.unwrap(function)) or inspect.isasyncgenfunction(
            inspect.unwrap(function)
        ):
            # It is decorated with contextmanager or asynccontextmanager.
            self._open = call
        self._needs: list[tuple[str, Provider | None]] = []
        for parameter in parameters_of(call).parameters.values():
            marker = injection(parameter.annotation, parameter.default)
            if marker is None:
                optional = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
                if parameter.default is parameter.empty and not optional:
                    raise TypeError(
                        f"dependency {name_of(call)}: nothing is injected for its parameter {parameter.name!r}; give it"
                        " a default, or annotate it with Context or Annotated[..., Depends(...)]"
                    )
            elif isinstance(marker, Depends):
                self._needs.append((parameter.name, Provider(marker, scope=self.scope)))
            elif self.scope == "worker":
                raise TypeError(
                    f"dependency {name_of(call)} has scope 'worker' and outlives every run: it cannot ask for a Context"
                )
            else:
                self._needs.append((parameter.name, None))
        self.closes: bool = self.scope == "run" and (
            self._open is not None or any(need is not None and need.closes for _, need in self._needs)
        )
        """It must be closed at the end of the run, or one of its own dependencies must."""

    async def provide(self, run: Injector) -> Any:
        """The value. It is opened at its first use in the run, or in the worker."""
        if overrides and self.key in overrides:
            return await Provider(Depends(overrides[self.key]), scope=self.scope).provide(run)
        if self.scope == "worker":
            return await run.resources.get(self)
        opened = run.opened
        if self.key not in opened:
            opened[self.key] = await self.open(run)
        return opened[self.key]

    async def open(self, run: Injector) -> Any:
        """Open the value and its own dependencies. They are closed with the stack of the run."""
        wanted: dict[str, Any] = {}
        for name, provider in self._needs:
            wanted[name] = run.context if provider is None else await provider.provide(run)
        if self._open is None:
            value = self.call(**wanted)
            return await cast("Awaitable[Any]", value) if isinstance(value, Awaitable) else value
        assert run.stack is not None
        manager = self._open(**wanted)
        if isinstance(manager, AbstractAsyncContextManager):
            return await run.stack.enter_async_context(cast("AbstractAsyncContextManager[Any]", manager))
        if isinstance(manager, AbstractContextManager):
            return run.stack.enter_context(cast("AbstractContextManager[Any]", manager))
        return manager


class Injector:
    """The values that are injected into one run. Each dependency is opened once, at its first use.

    ``stack`` closes them. It may be None if no provider ``closes``.
    """

    __slots__ = ("context", "opened", "resources", "stack")

    def __init__(self, context: Context | None, resources: Resources, stack: AsyncExitStack | None) -> None:
        self.context = context
        self.resources = resources
        self.stack = stack
        self.opened: dict[Hashable, Any] = {}

    async def fill(self, kwargs: dict[str, Any], injected: dict[str, Provider | None]) -> None:
        """Put the values of the injected parameters into a handler's arguments. None stands for the Context."""
        for name, provider in injected.items():
            kwargs[name] = self.context if provider is None else await provider.provide(self)


class Resources:
    """The dependencies of scope "worker". They are opened at their first use, and closed with the worker."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._injector = Injector(None, self, self._stack)
        self._opened: dict[Hashable, asyncio.Task[Any]] = {}
        # The context of the worker: tasks that a dependency starts must not carry the context of the first job.
        self._variables = contextvars.copy_context()

    async def get(self, provider: Provider) -> Any:
        """The value of this dependency. Concurrent first uses open it once."""
        opening = self._opened.get(provider.key)
        if opening is None:
            # A task of its own, because the run that came first may be killed while others wait.
            opening = self._opened[provider.key] = asyncio.get_running_loop().create_task(
                self._open(provider), context=self._variables.copy()
            )
            opening.add_done_callback(lambda done: self._opening_ended(provider, done))
        value = await asyncio.shield(opening)
        if isinstance(value, _Failed):
            raise value.error
        return value

    async def _open(self, provider: Provider) -> Any:
        try:
            return await provider.open(self._injector)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit would end the worker's loop
            return _Failed(error)

    def _opening_ended(self, provider: Provider, opening: asyncio.Task[Any]) -> None:
        if opening.cancelled() or isinstance(opening.result(), _Failed):
            # The next run tries again.
            del self._opened[provider.key]

    async def aclose(self) -> None:
        """Close all of them, the last opened one first."""
        for opening in list(self._opened.values()):
            if not opening.done():
                opening.cancel()
                await asyncio.wait([opening])
        await self._stack.aclose()


class _Failed:
    """The error of a dependency that could not be opened."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
