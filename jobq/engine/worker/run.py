"""One run of one job, from its claim to its outcome: prepare, invoke, conclude.

A plain async handler is called in ``execute`` itself. ``invoke`` does what a job may ask for beyond that: injection,
middleware, a thread, a process.
"""

from __future__ import annotations

import asyncio
import contextvars
import traceback
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from structlog.contextvars import bind_contextvars

from jobq.engine.log import get_logger, indented
from jobq.engine.model.outcome import encode_result
from jobq.engine.model.unreadable import read_spec
from jobq.engine.task.context import Context, Lender, current, lender
from jobq.engine.task.signature import field_names
from jobq.engine.task.versions import Inconvertible
from jobq.engine.version import jobq_version
from jobq.engine.worker.invoke import invoke, surround
from jobq.errors import DeadlineExceeded, InvalidPayload, Timeout, Unserved
from jobq.redact import misfit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jobq.engine.model.job import Spec
    from jobq.engine.task.task import Task
    from jobq.engine.worker.host import Host, Reason

log = get_logger("jobq.worker")

CANCEL_GRACE: Final = 5.0
"""Seconds that a cancelled handler has to end before its slot is given to the next job."""
SHUTDOWN_GRACE: Final = 2.0
"""The same when the worker stops: it has waited already, and the job has to be handed back before it is gone."""


_astuple = msgspec.structs.astuple
_encode = msgspec.json.Encoder().encode
# Set the variables of bind_contextvars directly, because its search by name took a tenth of a short run. They are bound
# once in a separate context to find structlog's variables.
_bound = contextvars.copy_context().run(bind_contextvars, queue="", job_id="", attempt=0)
_set_queue, _set_job_id, _set_attempt = (_bound[name].var.set for name in ("queue", "job_id", "attempt"))


def base_context(queue: str, source: Lender) -> contextvars.Context:
    """The context that the runs of a queue copy: a copy of the caller's context with the queue's name."""
    context = contextvars.copy_context()
    context.run(_set_queue, queue)
    context.run(lender.set, source)
    return context


class Run:
    """A claimed job: buffered, running, or waiting to be settled."""

    __slots__ = (
        "abandoned", "attempt", "claimed", "context", "ended", "error", "id", "late", "lines", "rate_limited", "raw",
        "reason", "since", "slots", "snoozes", "source", "spec", "started", "task", "timed", "token",
        "urgent", "watch",
    )  # fmt: skip

    def __init__(
        self,
        source: Host,
        id: bytes,
        token: bytes,
        raw: bytes,
        attempt: int,
        claimed: float,
        since: int | None = None,
        snoozes: int = 0,
        rate_limited: int = 0,
    ) -> None:
        self.source = source
        self.id = id
        self.token = token
        self.raw = raw
        self.attempt = attempt
        self.claimed = claimed
        self.since = since
        self.snoozes = snoozes
        self.rate_limited = rate_limited
        self.slots = 1
        """How many slots of the worker it takes."""
        self.urgent = False
        """Whether it may take slots that its worker reserves."""
        self.started = 0.0
        self.spec: Spec | None = None
        self.context: Context | None = None
        self.task: asyncio.Task[None] | None = None
        self.reason: Reason | None = None
        self.watch: asyncio.TimerHandle | None = None
        self.lines = 0
        """How many log lines it has written."""
        self.timed = False
        """Whether it is stopped after a time."""
        self.late = False
        """Whether this time is the job's deadline."""
        self.ended = False
        self.error: BaseException | None = None
        """Why it failed. Kept for hooks only."""
        self.abandoned = False

    @property
    def name(self) -> str:
        """The job's type and id, for messages."""
        return f"{self.spec.type if self.spec else 'of an unknown type'} {self.id.decode()}"

    def stop(self, reason: Reason) -> None:
        """Cancel the handler. One that does not end within ``CANCEL_GRACE`` loses its slot and is reported."""
        if self.ended or self.reason is not None:
            return
        self.reason = reason
        if self.context is not None:
            self.context.stopped = reason
            # A job that will be handed back at the stop still belongs to this run.
            self.context.lost = reason != "shutdown"
        if self.task is not None:
            self.task.cancel()
            if not self.started:
                # A task that is cancelled before its first step does not run at all, so nothing else would end this
                # run.
                self.abandoned = True
                self.finish()
                self.settle_stopped()
                return
            grace = SHUTDOWN_GRACE if reason == "shutdown" else CANCEL_GRACE
            self.watch = self.source.loop.call_later(grace, self._abandon)

    def _abandon(self) -> None:
        if self.ended or self.task is None:
            return
        self.abandoned = True
        self.finish()
        self.settle_stopped()
        log.error(
            f"The handler of job {self.name} ignores its cancellation ({self.reason}); its slot goes to the next job:"
            f"\n{indented(_stack(self.task))}",
            queue=self.source.name, job_id=self.id.decode(), reason=self.reason,
        )  # fmt: skip

    def finish(self) -> None:
        """Free the slot, once."""
        if not self.ended:
            self.ended = True
            if self.timed:
                self.source.deadlines.remove(self)
            if self.watch is not None:
                self.watch.cancel()
            self.source.freed(self)

    def settle_stopped(self) -> None:
        """Pass on the outcome of a run that was stopped from outside."""
        if self.context is not None:
            # A thread may still run. Its outcome will be ignored.
            self.context.lost = True
        if self.reason == "shutdown":
            self.source.release(self)
        elif self.reason == "timeout":
            self.source.fail(self, self.timeout())
        else:  # The job was killed or lost. Another worker has it, or it has ended.
            self.source.forget(self)

    def in_time(self, spec: Spec) -> Spec:
        """The spec. A retry by hand after the deadline is a new chance, so it has none any more."""
        if spec.deadline_at is not None and self.since is not None and self.since >= spec.deadline_at:
            spec = msgspec.structs.replace(spec, deadline_at=None)
            self.raw = _encode(spec)
        return spec

    def watch_time(self, spec: Spec) -> None:
        """Stop the run at its timeout or its deadline, whichever comes first.

        :raises DeadlineExceeded: the deadline has come.
        """
        seconds = inf if spec.timeout is None else spec.timeout / 1000
        if spec.deadline_at is not None:
            left = (spec.deadline_at - self.source.store.now_ms()) / 1000
            self.late = left < seconds
            if left <= 0:
                raise self.timeout()
            seconds = min(seconds, left)
        self.timed = True
        self.source.deadlines.add(self, seconds)

    def timeout(self) -> Timeout | DeadlineExceeded:
        """The error of a run that took too long."""
        if self.late:
            return DeadlineExceeded("the job's deadline came while it ran")
        limit = (self.spec and self.spec.timeout) or 0
        return Timeout(f"the run took longer than its timeout of {limit / 1000:g} s")


def _stack(task: asyncio.Task[None]) -> str:
    """The stack of a suspended task. ``Task.get_stack`` contains only its outermost coroutine."""
    lines: list[str] = []
    waits: Any = task.get_coro()
    while (frame := getattr(waits, "cr_frame", None) or getattr(waits, "gi_frame", None)) is not None:
        lines += traceback.format_list(
            [traceback.FrameSummary(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)]
        )
        waits = getattr(waits, "cr_await", None) or getattr(waits, "gi_yieldfrom", None)
    return "".join(lines)


async def execute(run: Run) -> None:
    """Run a job to its outcome: prepare, invoke, conclude. Never raises; a cancellation is one of the outcomes."""
    source = run.source
    run.started = started = perf_counter()
    try:
        try:
            task, args = prepare(run)
        except Unserved as miss:
            await hand_back(run, miss)
            return
        if task.inline and not source.middlewares:
            value = await task.fn(*_astuple(args))
        else:
            value = await invoke(run, task, args)
        result = b"null" if value is None else encode_result(value, source.queue.max_result)
    except BaseException as error:
        # any exception of a handler is its outcome
        conclude(run, error)
        if issubclass(type(error), KeyboardInterrupt):
            raise
    else:
        conclude(run, None, result, perf_counter() - started)


def prepare(run: Run) -> tuple[Task[Any, Any], msgspec.Struct]:
    """Read the job, and make the context of its run.

    :raises Unserved: this worker has no handler for the job, or cannot read it.
    :raises InvalidPayload: no version of the handler can read it.
    :raises DeadlineExceeded: its deadline came while it waited in the worker.
    """
    source = run.source
    try:
        spec = run.spec = read_spec(run.raw)
    except msgspec.ValidationError as error:
        raise Unserved(f"this version of jobq cannot read the job's row: {misfit(error)}") from None
    if spec.deadline_at is not None:
        spec = run.spec = run.in_time(spec)
    task = source.tasks.get(spec.type)
    if task is None:
        raise Unserved("this worker has no handler for its type")
    if spec.version != task.versions.current or task.aliases:
        spec = run.spec = current_spec(run, spec, task)
    try:
        args = task.signature.decode(spec.payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        args = read_leniently(run, task, error)
    job_id = run.id.decode()
    fence = int(run.token.partition(b" ")[0])
    context = run.context = Context(
        job_id, source.name, spec, run.attempt, source.worker, fence, source.say, run.snoozes, run.rate_limited
    )
    current.set(context)
    _set_job_id(job_id)
    _set_attempt(run.attempt)
    if spec.timeout is not None or spec.deadline_at is not None:
        run.watch_time(spec)
    if source.hooks:
        source.tell_start(run)
    return task, args


def current_spec(run: Run, spec: Spec, task: Task[Any, Any]) -> Spec:
    """The job under the name of its task, with its payload in the version that the handler takes.

    :raises Unserved: the payload is of a newer version, or it cannot be converted. Another release may be able to.
    """
    payload = spec.payload
    if spec.version != task.versions.current:
        try:
            payload = task.versions.convert(payload, spec.version)
        except Inconvertible as error:
            raise Unserved(str(error), invalid=not error.newer) from error.__cause__
    spec = msgspec.structs.replace(spec, type=task.name, payload=payload, version=task.versions.current)
    run.raw = _encode(spec)
    return spec


def read_leniently(run: Run, task: Task[Any, Any], error: Exception) -> msgspec.Struct:
    """Read a payload that another version of the handler may have written: unknown fields are ignored.

    :raises Unserved: another version may be able to read it.
    :raises InvalidPayload: it is not JSON.
    """
    signature, spec = task.signature, run.spec
    assert spec is not None
    if not isinstance(error, msgspec.ValidationError):
        raise InvalidPayload(f"the payload is not JSON: {error}") from None
    try:
        args = signature.read(spec.payload)
    except msgspec.ValidationError as second:
        raise Unserved(
            f"the payload does not fit {task.name}'s signature: {misfit(second)}; it has the fields"
            f" {_listed(field_names(spec.payload))}, the signature has {_listed(signature.names)}",
            invalid=True,
        ) from None
    if task.first_time(why := misfit(error)):
        log.warning(
            f"A field of the payload is ignored, because this version of {task.name} has no such argument: {why}."
            f" The first such job is {run.name}. This is said once for each field.",
            queue=run.source.name, job_id=run.id.decode(), type=task.name,
        )  # fmt: skip
    return args


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


async def hand_back(run: Run, miss: Unserved) -> None:
    """Hand a job back for workers of another version, uncharged. After the queue's ``unserved_for`` it fails.

    :raises InvalidPayload: ``unserved_for`` is over.
    :raises Unserved: ``unserved_for`` is over.
    """
    source = run.source
    limit = source.queue.unserved_for_ms
    left = limit - await source.unserved_ms(run)
    if left > 0:
        run.finish()
        source.defer(run, str(miss), left)
        return
    error = (InvalidPayload if miss.invalid else Unserved)(
        f"{miss}. No worker could run the job for {limit / 3_600_000:g} h;"
        f" the last one was {source.worker} with jobq {jobq_version()}"
    )
    if run.spec is not None and source.middlewares:
        raise_it = _raiser(error)
        context = Context(run.id.decode(), source.name, run.spec, run.attempt, source.worker, 0, source.say)
        await surround(source.middlewares, context, raise_it)
    raise error


def _raiser(error: Exception) -> Callable[[], Any]:
    async def raise_it() -> Any:
        raise error

    return raise_it


def conclude(run: Run, error: BaseException | None, result: bytes = b"", seconds: float = 0.0) -> None:
    """Free the slot and pass the outcome to the source, which sends it to Redis."""
    if run.abandoned:
        return
    run.finish()
    source, reason = run.source, run.reason
    if reason in ("killed", "lost"):
        source.forget(run)
    elif error is None:
        # The handler has finished, even if a timeout or a shutdown has just told it to stop.
        source.complete(run, result, seconds)
    elif reason is not None:
        # The handler was stopped, and may raise anything while it ends.
        run.settle_stopped()
    elif issubclass(type(error), asyncio.CancelledError):
        source.fail(run, RuntimeError("the handler was cancelled by something it awaited"))
    else:
        source.fail(run, error)
