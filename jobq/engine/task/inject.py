"""Resolving ``Depends``: per run, or once per worker."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, cast

from jobq.engine.task.context import Context, Depends
from jobq.engine.task.signature import injection

if TYPE_CHECKING:
    from collections.abc import Callable


class Resources:
    """What lives as long as a worker: dependencies of scope "worker", opened at their first use."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._opened: dict[Callable[..., Any], asyncio.Future[Any]] = {}

    async def get(self, call: Callable[..., Any]) -> Any:
        """The one value of this dependency; concurrent first uses open it once."""
        opening = self._opened.get(call)
        if opening is None:
            # a task of its own: the run that came first may be killed while the others wait
            opening = self._opened[call] = asyncio.ensure_future(resolve(call, None, self, self._stack))
            opening.add_done_callback(lambda done: self._opening_ended(call, done))
        return await asyncio.shield(opening)

    def _opening_ended(self, call: Callable[..., Any], opening: asyncio.Future[Any]) -> None:
        if opening.cancelled() or opening.exception() is not None:
            # the next run tries again
            del self._opened[call]

    async def aclose(self) -> None:
        """Close them, last opened first."""
        for opening in list(self._opened.values()):
            if not opening.done():
                opening.cancel()
                await asyncio.wait([opening])
        await self._stack.aclose()


async def resolve(
    call: Callable[..., Any], context: Context | None, resources: Resources, stack: AsyncExitStack
) -> Any:
    """Call a dependency with its own dependencies; generators are entered on the stack.

    :raises TypeError: a dependency of scope "worker" asks for a run's Context.
    """
    wanted: dict[str, Any] = {}
    for parameter in inspect.signature(call, eval_str=True).parameters.values():
        marker = injection(parameter.annotation)
        if marker is not None:
            wanted[parameter.name] = await provide(marker, context, resources, stack)
    if inspect.isasyncgenfunction(call):
        return await stack.enter_async_context(asynccontextmanager(call)(**wanted))
    if inspect.isgeneratorfunction(call):
        return stack.enter_context(contextmanager(call)(**wanted))
    value = call(**wanted)
    if inspect.isawaitable(value):
        return await value
    if isinstance(value, contextlib.AbstractAsyncContextManager):
        return await stack.enter_async_context(cast("contextlib.AbstractAsyncContextManager[Any]", value))
    return value


async def provide(
    marker: type[Context] | Depends[Any], context: Context | None, resources: Resources, stack: AsyncExitStack
) -> Any:
    """The value for one injected parameter."""
    if isinstance(marker, Depends):
        if marker.scope == "worker":
            return await resources.get(marker.call)
        return await resolve(marker.call, context, resources, stack)
    if context is None:
        raise TypeError("a dependency of scope 'worker' outlives every run: it cannot ask for a Context")
    return context
