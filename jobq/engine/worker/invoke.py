"""Calls a handler with its dependencies and the middleware of its queue."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from jobq.engine.log import get_logger
from jobq.engine.task.inject import Injector, overrides

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from jobq.engine.task.context import Context
    from jobq.engine.task.task import Task
    from jobq.engine.worker.host import Invoked

log = get_logger("jobq.worker")

_astuple = msgspec.structs.astuple


async def invoke(run: Invoked, task: Task[Any, Any], args: msgspec.Struct) -> Any:
    """Call the handler, with its dependencies around it and the middleware around both.

    Middleware sees errors of dependencies. A transaction that cannot be committed fails the job like any other
    error.
    """
    if run.source.middlewares:
        assert run.context is not None
        return await surround(run.source.middlewares, run.context, partial(_handle, run, task, args))
    return await _handle(run, task, args)


async def _handle(run: Invoked, task: Task[Any, Any], args: msgspec.Struct) -> Any:
    """Open the dependencies, call the handler, and close them."""
    source, signature, context = run.source, task.signature, run.context
    assert context is not None
    kwargs = dict(zip(signature.names, _astuple(args), strict=True))
    if signature.open:
        kwargs |= signature.extras(context.spec.payload)
    try:
        if not signature.injected or task.kind == "process":
            return await _call_handler(run, task, kwargs)
        if not signature.closes and not overrides:
            # Nothing has to be closed. An exit stack would cost as much as the dependencies.
            await Injector(context, source.resources, None).fill(kwargs, signature.injected)
            return await _call_handler(run, task, kwargs)
        async with AsyncExitStack() as stack:
            await Injector(context, source.resources, stack).fill(kwargs, signature.injected)
            try:
                return await _call_handler(run, task, kwargs)
            except asyncio.CancelledError as error:
                raise _reason(run, error) from None
    except asyncio.CancelledError as error:
        raise _reason(run, error) from None
    raise RuntimeError("a dependency swallowed the handler's error: a generator has to let it pass")


def _call_handler(run: Invoked, task: Task[Any, Any], kwargs: dict[str, Any]) -> Awaitable[Any]:
    """Call the handler in the place that its task chose: this event loop, a thread or a child process."""
    if task.kind == "async":
        return task.fn(**kwargs)
    if task.kind == "process":
        assert run.context is not None
        return run.source.children.run(task, run.context)
    return in_a_thread(run, task.fn, kwargs)


def _reason(run: Invoked, error: asyncio.CancelledError) -> BaseException:
    """The exception of a cancelled part of a run. Middleware and dependencies get a timeout as ``Timeout``, because
    they would not take a cancellation for an error of the job."""
    if run.reason != "timeout":
        return error
    if (this := asyncio.current_task()) is not None:
        this.uncancel()
    return run.timeout()


async def surround(middlewares: Sequence[Any], context: Context, inner: Callable[[], Any]) -> Any:
    """Call ``inner`` inside the middleware. The first one is the outermost."""
    for middleware in reversed(middlewares):
        inner = partial(middleware, context, inner)
    return await inner()


async def in_a_thread(run: Invoked, fn: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
    """Call a sync handler in a thread, which sees the context variables of this run: structlog's, and ``current``."""
    here = contextvars.copy_context()
    try:
        value = await run.source.threads.run(lambda: here.run(_call, fn, kwargs))
    except asyncio.CancelledError:
        log.warning(
            f"The thread of job {run.name} cannot be stopped ({run.reason}); what it still does counts for nothing",
            queue=run.source.name, job_id=run.id.decode(), reason=run.reason,
        )  # fmt: skip
        raise
    if type(value) is _Raised:
        raise value.error
    # A plain wrapper around an async function returns a coroutine.
    return await value if inspect.isawaitable(value) else value


class _Raised:
    """Carries the exception of a handler out of its thread. A future cannot hold some exceptions, such as
    StopIteration."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _call(fn: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
    try:
        return fn(**kwargs)
    except BaseException as error:  # noqa: BLE001 - any exception of a handler is its outcome
        return _Raised(error)
