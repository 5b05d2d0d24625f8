"""Hooks: what happens to the jobs of a queue is told to functions of its user.

A hook never delays or changes a job. It is called at most once for each event, after Redis has stored it, in its own
task. The end of a worker and the closing of a queue wait for these tasks, but not for long.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import msgspec

from jobq.engine.log import get_logger
from jobq.engine.task.inject import behind, name_of, parameters_of

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from jobq.engine.model.job import AttemptError
    from jobq.engine.task.handle import Job

log = get_logger("jobq.hooks")

AT_A_TIME: Final = 100
"""Calls of hooks that run at the same time, in each event loop that has the queue open."""
PENDING_MAX: Final = 10_000
"""Calls that run or wait for their turn. Further ones are left out, so that slow hooks do not fill the memory."""
LONGEST: Final = 60.0
"""Seconds that one call may take."""
CLOSING: Final = 5.0
"""Seconds that the end of a worker, or the closing of a queue, waits for the calls that are left."""

EventName = Literal["enqueue", "start", "success", "retry", "failure", "final_failure"]


class Event(msgspec.Struct, frozen=True):
    """What a hook is told.

    ``attempt`` counts from 1; it is 0 for "enqueue". ``result``: encoded JSON, for "success". ``error`` is the stored
    error and ``exception`` the raised one, for "failure", "retry" and "final_failure". ``delay``: seconds until the
    next attempt, for "retry". If the job cannot be read, ``type`` is "?".
    """

    name: EventName
    job: Job[Any]
    type: str
    attempt: int
    attempts: int | None
    payload: msgspec.Raw
    metadata: dict[str, Any]
    worker: str | None = None
    result: msgspec.Raw | None = None
    error: AttemptError | None = None
    exception: BaseException | None = None
    delay: float | None = None


Hook = Callable[[Event], Awaitable[Any]]
Hooks = dict[EventName, list[tuple[str | None, Hook]]]
"""The hooks of a queue by what they are told of. Those of a task are beside the name of its type."""


def add_hook(hooks: Hooks, event: EventName, type_: str | None, hook: Hook) -> None:
    """Register a hook. ``type_``: of the jobs; None for all of the queue.

    :raises TypeError: there is no such event, or the hook is not ``async`` or does not take one argument.
    """
    if event not in get_args(EventName):
        raise TypeError(f"there is no event {event!r:.80}: a hook takes one of {', '.join(get_args(EventName))}")
    if not callable(hook) or not inspect.iscoroutinefunction(inspect.unwrap(behind(hook))):
        raise TypeError(
            f"hook {name_of(hook)} is not async: write async def {name_of(hook)}(event), and await"
            " asyncio.to_thread(...) in it for code that blocks"
        )
    try:
        parameters_of(hook).bind(None)
    except TypeError:
        raise TypeError(f"hook {name_of(hook)} does not take one argument, the event") from None
    hooks.setdefault(event, []).append((type_, hook))


class HookCalls:
    """The calls of one queue's hooks in one event loop."""

    def __init__(self, queue: str, hooks: Hooks) -> None:
        self._queue = queue
        self._hooks = hooks
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(AT_A_TIME)
        self._left_out = 0
        # Tasks that hooks start must not inherit the context variables of a run.
        self._variables = contextvars.copy_context()

    def wanted(self, name: EventName) -> bool:
        """Whether there is a hook for it."""
        return name in self._hooks

    def call(self, event: Event) -> None:
        """Call the hooks for this event, in tasks of their own."""
        for type_, hook in self._hooks.get(event.name, ()):
            if type_ is None or type_ == event.type:
                if len(self._tasks) < PENDING_MAX:
                    self.spawn(self._call(hook, event))
                    continue
                self._left_out += 1
                # said at the first, and then more and more rarely
                if self._left_out & (self._left_out - 1) == 0:
                    log.error(
                        f"Hooks of queue {self._queue} are too slow: {PENDING_MAX} calls wait, and"
                        f" {self._left_out} were left out so far",
                        queue=self._queue, left_out=self._left_out,
                    )  # fmt: skip

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run something that belongs to the calls, and is waited for with them."""
        task = asyncio.get_running_loop().create_task(coroutine, context=self._variables.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, hook: Hook, event: Event) -> None:
        name, job = name_of(hook), event.job
        async with self._places:
            try:
                async with asyncio.timeout(LONGEST):
                    await hook(event)
            except asyncio.CancelledError:
                log.error(  # noqa: TRY400 - a cancellation has no traceback that helps
                    f"The {event.name} hook {name} of queue {self._queue} was cancelled: job {event.type} {job.id}",
                    queue=self._queue, hook=name, job_id=job.id,
                )  # fmt: skip
                raise
            except BaseException:
                # SystemExit too: a hook must not end the worker
                log.exception(
                    f"The {event.name} hook {name} of queue {self._queue} failed for job {event.type} {job.id}; the job"
                    " goes on as it would without the hook",
                    queue=self._queue, hook=name, job_id=job.id,
                )  # fmt: skip

    async def ended(self) -> None:
        """Wait for the calls that are left. Those that take longer than ``CLOSING`` are cancelled."""
        loop = asyncio.get_running_loop()
        until = loop.time() + CLOSING
        # a call that is waited for may start others
        while self._tasks and (left := until - loop.time()) > 0:
            await asyncio.wait(list(self._tasks), timeout=left)
        late = list(self._tasks)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=1.0)
