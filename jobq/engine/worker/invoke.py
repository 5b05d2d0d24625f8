"""Calling a handler with everything that it, or its queue, asks for beyond plain arguments."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from jobq.engine.log import get_logger
from jobq.engine.task.inject import Injector

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import msgspec

    from jobq.engine.task.context import Context
    from jobq.engine.task.task import Task
    from jobq.engine.worker.host import Invoked

log = get_logger("jobq.worker")


async def invoke(run: Invoked, task: Task[Any, Any], args: msgspec.Struct) -> Any:
    """Call the handler, with its dependencies around it and the middleware around both.

    Middleware sees what a dependency raises: a transaction that cannot be committed fails the job like any other error.
    """
    source, context = run.source, run.context
    assert context is not None
    kwargs = {name: getattr(args, name) for name in task.signature.names}
    if task.signature.open:
        kwargs |= task.signature.extras(context.spec.payload)

    async def call() -> Any:
        try:
            if task.kind == "async":
                return await task.fn(**kwargs)
            if task.kind == "process":
                return await source.children.run(task, context)
            return await in_a_thread(run, task.fn, kwargs)
        except asyncio.CancelledError as error:
            raise _reason(run, error) from None

    async def handler() -> Any:
        if task.kind == "process" or not task.signature.injected:
            return await call()
        try:
            async with AsyncExitStack() as stack:
                await Injector(context, source.resources, stack).fill(kwargs, task.signature.injected)
                return await call()
        except asyncio.CancelledError as error:
            raise _reason(run, error) from None
        raise RuntimeError("a dependency swallowed the handler's error: a generator has to let it pass")

    return await surround(source.middlewares, context, handler)


def _reason(run: Invoked, error: asyncio.CancelledError) -> BaseException:
    """What a cancelled part of a run raises. Middleware and dependencies see a timeout as the error that it is: to
    them, a cancellation is none of the job's errors."""
    if run.reason != "timeout":
        return error
    if (this := asyncio.current_task()) is not None:
        this.uncancel()
    return run.timeout()


async def surround(middlewares: Sequence[Any], context: Context, inner: Callable[[], Any]) -> Any:
    """Call ``inner`` inside the middleware; the first is the outermost."""
    for middleware in reversed(middlewares):
        inner = _wrap(middleware, context, inner)
    return await inner()


def _wrap(middleware: Any, context: Context, inner: Any) -> Any:
    async def step() -> Any:
        return await middleware(context, inner)

    return step


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
    # a coroutine, from a plain wrapper around an async function
    return await value if inspect.isawaitable(value) else value


class _Raised:
    """What a handler raised in its thread. Some exceptions cannot travel through a future: StopIteration, say."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _call(fn: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
    try:
        return fn(**kwargs)
    except BaseException as error:  # noqa: BLE001 - whatever a handler raises is its outcome
        return _Raised(error)
