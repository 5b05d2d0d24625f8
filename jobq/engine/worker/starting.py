"""How a worker begins to serve a queue: it opens and registers it, calls its startup hooks, and writes its own row."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from jobq.engine.log import get_logger
from jobq.engine.queue.breakers import declare_breakers
from jobq.engine.queue.limits import declare_rules
from jobq.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from contextlib import AsyncExitStack

    from jobq.engine.queue.queue import Queue
    from jobq.engine.worker.heartbeat import Heartbeat

log = get_logger("jobq.worker")


async def open_queues(queues: Sequence[tuple[Queue, int]], stack: AsyncExitStack) -> list[tuple[Queue, int]]:
    """Open the queues side by side; the stack closes them. Returns those whose server does not answer, if another does.

    :raises StoreUnavailable: no server answers.
    :raises StoreRefused: a server cannot be used.
    """

    async def open_one(queue: Queue) -> None:
        await queue.open()
        stack.push_async_callback(queue.aclose)

    outcomes = await asyncio.gather(*(open_one(queue) for queue, _ in queues), return_exceptions=True)
    errors = [outcome for outcome in outcomes if outcome is not None]
    refused = [error for error in errors if not isinstance(error, StoreUnavailable)]
    if refused or len(errors) == len(queues):
        raise (refused or errors)[0]
    return [pair for pair, outcome in zip(queues, outcomes, strict=True) if outcome is not None]


async def register_queue(queue: Queue) -> None:
    """Make the queue known, and its rules: a key without a rule has room for any number of jobs."""
    await queue.register()
    await declare_rules(queue.store, queue.rules)
    await declare_breakers(queue.store, queue.declared_breakers)


async def run_startup_hooks(queue: Queue, stack: AsyncExitStack) -> None:
    """Call the startup hooks. The stack calls the shutdown hooks."""
    for hook in queue.startup_hooks:
        await call_hook(hook, "startup", queue)
    for hook in reversed(queue.shutdown_hooks):
        stack.push_async_callback(call_hook, hook, "shutdown", queue)


async def introduce(queue: Queue, heartbeat: Heartbeat, worker: str) -> None:
    """Write the worker's row before the first claim: what is recorded of claims is kept for known workers only."""
    word = heartbeat.word(queue)
    await asyncio.gather(*(part.do(part.heartbeat(worker, word)) for part in queue.store.parts))


async def side_by_side(calls: Iterable[Awaitable[None]]) -> None:
    """Wait for all of them. A worker of hundreds of queues would start late if it waited for one after the other.

    :raises Exception: the first error.
    """
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        if outcome is not None:
            raise outcome


async def call_hook(hook: Callable[[], Any], when: str, queue: Queue) -> None:
    """Call a hook. An error is logged with the hook's name, so that the reader of the log can find it."""
    try:
        try:
            value = hook()
            if inspect.isawaitable(value):
                await value
        except asyncio.CancelledError:
            if (this := asyncio.current_task()) is None or this.cancelling():
                raise
            # Nobody cancelled the worker. Without this it would end as if it had been stopped, without an error.
            raise RuntimeError("the hook was cancelled by something it awaited") from None
    except Exception:
        name = getattr(hook, "__qualname__", repr(hook))
        log.exception(f"A {when} hook failed: {name} of queue {queue.name}", hook=name, queue=queue.name)
        raise
