"""Resolving ``Depends``: per run, or once per worker."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, cast

from jobq.engine.context import Context, Depends
from jobq.engine.signature import injection

if TYPE_CHECKING:
    from collections.abc import Callable


class Resources:
    """What lives as long as a worker: dependencies of scope "worker", opened at their first use."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._opened: dict[Callable[..., Any], asyncio.Future[Any]] = {}

    async def get(self, call: Callable[..., Any]) -> Any:
        """The one value of this dependency; concurrent first uses open it once."""
        opened = self._opened.get(call)
        if opened is None:
            opened = self._opened[call] = asyncio.get_running_loop().create_future()
            try:
                opened.set_result(await resolve(call, None, self, self._stack))
            except BaseException as error:
                # the next run tries again
                del self._opened[call]
                if isinstance(error, Exception):
                    opened.set_exception(error)
                    with contextlib.suppress(Exception):
                        await opened  # somebody has looked at it: no "exception was never retrieved"
                else:
                    opened.cancel()
                raise
        return await asyncio.shield(opened)

    async def aclose(self) -> None:
        """Close them, last opened first."""
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
