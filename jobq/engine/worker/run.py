"""One run of one job: decode, validate, inject, call, and an outcome handed to its source.

The steps of a plain async handler stand in one coroutine, ``execute``; everything a job may ask for beyond that (a
timeout, injection, middleware, a thread, a process) is in ``call``.
"""

from __future__ import annotations

import asyncio
import contextvars
import traceback
from contextlib import AsyncExitStack
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from structlog.contextvars import bind_contextvars

from jobq.engine.log import get_logger
from jobq.engine.model.outcome import InvalidPayload, Timeout, encode_result
from jobq.engine.model.rows import read_spec
from jobq.engine.task.context import Context, current
from jobq.engine.task.inject import provide

if TYPE_CHECKING:
    from jobq.engine.model.job import Spec
    from jobq.engine.task.task import Task
    from jobq.engine.worker.source import Source

log = get_logger("jobq.worker")

CANCEL_GRACE: Final = 5.0
"""Seconds that a cancelled handler has to end before its slot is given to the next job."""
SHUTDOWN_GRACE: Final = 2.0
"""The same when the worker stops: it has waited already, and the job has to be handed back before it is gone."""

Reason = Literal["killed", "lost", "timeout", "shutdown"]

_astuple = msgspec.structs.astuple
# What bind_contextvars sets, without its search by name: that was a tenth of a short run. Bound in a context that is
# thrown away, to get at structlog's variables.
_bound = contextvars.copy_context().run(bind_contextvars, queue="", job_id="", attempt=0)
_set_queue, _set_job_id, _set_attempt = (_bound[name].var.set for name in ("queue", "job_id", "attempt"))


def base_context(queue: str) -> contextvars.Context:
    """What the runs of a queue's jobs start from: a copy of the caller's context that names the queue."""
    context = contextvars.copy_context()
    context.run(_set_queue, queue)
    return context


class Run:
    """A claimed job: buffered, running, or waiting to be settled."""

    __slots__ = (
        "abandoned", "attempt", "claimed", "context", "deadline", "ended", "id", "raw", "reason", "source", "spec",
        "started", "task", "token", "watch",
    )  # fmt: skip

    def __init__(self, source: Source, id: bytes, token: bytes, raw: bytes, attempt: int, claimed: float) -> None:
        self.source = source
        self.id = id
        self.token = token
        self.raw = raw
        self.attempt = attempt
        self.claimed = claimed
        self.started = 0.0
        self.spec: Spec | None = None
        self.context: Context | None = None
        self.task: asyncio.Task[None] | None = None
        self.reason: Reason | None = None
        self.deadline: asyncio.TimerHandle | None = None
        self.watch: asyncio.TimerHandle | None = None
        self.ended = False
        self.abandoned = False

    def stop(self, reason: Reason) -> None:
        """Cancel the handler. One that does not end within ``CANCEL_GRACE`` loses its slot and is reported."""
        if self.ended or self.reason is not None:
            return
        self.reason = reason
        if self.context is not None and reason != "shutdown":
            self.context.lost = True
        if self.task is not None:
            self.task.cancel()
            if not self.started:
                # cancelled before its first step, a coroutine does not run at all: nobody else would end this run
                self.abandoned = True
                self.finish()
                self.settle_stopped()
                return
            grace = SHUTDOWN_GRACE if reason == "shutdown" else CANCEL_GRACE
            self.watch = self.source.loop.call_later(grace, self._abandon)

    def _abandon(self) -> None:
        if self.ended or self.task is None:
            return
        log.error(
            "handler ignores its cancellation; its slot goes to the next job",
            queue=self.source.name, job_id=self.id.decode(), reason=self.reason, stack=_stack(self.task),
        )  # fmt: skip
        self.abandoned = True
        self.finish()
        self.settle_stopped()

    def finish(self) -> None:
        """Give the slot free, once."""
        if not self.ended:
            self.ended = True
            if self.deadline is not None:
                self.deadline.cancel()
            if self.watch is not None:
                self.watch.cancel()
            self.source.freed(self)

    def settle_stopped(self) -> None:
        """What follows for a run that was stopped from outside."""
        if self.reason == "shutdown":
            self.source.released(self)
        elif self.reason == "timeout":
            spec = self.spec
            limit = spec.timeout if spec else None
            self.source.failed(self, Timeout(f"the run took longer than its timeout of {limit} ms"))
        else:  # killed or lost: somebody else has the job, or it is over
            self.source.forget(self)


def _stack(task: asyncio.Task[None]) -> str:
    """Where a suspended task waits: ``Task.get_stack`` knows its outermost coroutine only."""
    lines: list[str] = []
    waits: Any = task.get_coro()
    while (frame := getattr(waits, "cr_frame", None) or getattr(waits, "gi_frame", None)) is not None:
        lines += traceback.format_list(
            [traceback.FrameSummary(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)]
        )
        waits = getattr(waits, "cr_await", None) or getattr(waits, "gi_yieldfrom", None)
    return "".join(lines)


async def execute(run: Run) -> None:
    """Run a job to its outcome. Never raises; a cancellation is one of the outcomes."""
    source = run.source
    run.started = started = perf_counter()
    try:
        spec = run.spec = read_spec(run.raw)
        task = source.tasks.get(spec.type)
        if task is None:
            run.finish()
            source.deferred(run)
            return
        try:
            args = task.signature.decode(spec.payload)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise InvalidPayload(f"the payload does not fit {task.name}'s signature: {error}") from None
        job_id = run.id.decode()
        fence = int(run.token.partition(b" ")[0])
        context = run.context = Context(job_id, source.name, spec, run.attempt, source.worker, fence, source.say)
        current.set(context)
        _set_job_id(job_id)
        _set_attempt(run.attempt)
        if spec.timeout is not None:
            run.deadline = source.loop.call_later(spec.timeout / 1000, run.stop, "timeout")
        if task.kind == "async" and task.signature.plain and not source.middlewares:
            value = await task.fn(*_astuple(args))
        else:
            value = await call(run, task, args, context)
        result = encode_result(value)
    except asyncio.CancelledError:
        if run.abandoned:
            return
        run.finish()
        if run.reason is None:
            # nobody stopped it: the handler awaited something that was cancelled
            source.failed(run, RuntimeError("the handler was cancelled by something it awaited"))
        else:
            run.settle_stopped()
        return
    except BaseException as error:
        # whatever a handler raises is its outcome; one that was stopped may raise anything on its way out
        if not run.abandoned:
            run.finish()
            if run.reason is None:
                source.failed(run, error)
            else:
                run.settle_stopped()
        if issubclass(type(error), KeyboardInterrupt):
            raise
        return
    if run.abandoned:
        return
    run.finish()
    if run.reason in ("killed", "lost"):
        source.forget(run)
    else:
        # finished in time after all, even if a timeout or a shutdown had just asked it to stop
        source.completed(run, result, perf_counter() - started)


async def call(run: Run, task: Task[Any, Any], args: msgspec.Struct, context: Context) -> Any:
    """Call the handler with everything that it, or its queue, asks for beyond plain arguments."""
    source = run.source
    spec = context.spec
    async with AsyncExitStack() as stack:
        kwargs = {name: getattr(args, name) for name in task.signature.names}
        if task.signature.open:
            kwargs |= task.signature.extras(spec.payload)
        if task.kind != "process":
            for name, marker in task.signature.injected.items():
                kwargs[name] = await provide(marker, context, source.resources, stack)

        async def innermost() -> Any:
            if task.kind == "async":
                return await task.fn(**kwargs)
            if task.kind == "process":
                return await source.children.run(task, context)
            # the thread sees the context variables of this run: structlog's, and `current`
            here = contextvars.copy_context()
            try:
                value = await source.loop.run_in_executor(
                    source.threads.executor, lambda: here.run(_call_sync, task.fn, kwargs)
                )
            except asyncio.CancelledError:
                log.warning(
                    "a thread cannot be stopped; it is fenced off",
                    queue=source.name,
                    job_id=context.id,
                    reason=run.reason,
                )
                source.threads.abandon()
                raise
            if type(value) is _Raised:
                raise value.error
            return value

        chain = innermost
        for middleware in reversed(source.middlewares):
            chain = _wrap(middleware, context, chain)
        return await chain()
    raise RuntimeError("a dependency swallowed the handler's error: a generator has to let it pass")


class _Raised:
    """What a handler raised in its thread. Some exceptions cannot travel through a future: StopIteration, say."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _call_sync(fn: Any, kwargs: dict[str, Any]) -> Any:
    try:
        return fn(**kwargs)
    except BaseException as error:  # noqa: BLE001 - whatever a handler raises is its outcome
        return _Raised(error)


def _wrap(middleware: Any, context: Context, inner: Any) -> Any:
    async def step() -> Any:
        return await middleware(context, inner)

    return step
