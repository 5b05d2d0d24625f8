"""OpenTelemetry: spans of enqueues and runs, in one trace or linked. It needs ``pip install 'jobq[otel]'``.

    from jobq.otel import instrument

    instrument(queue)

The names and attributes are those of the semantic conventions for messaging: ``send QUEUE`` (PRODUCER) for an enqueue,
also for one of many jobs, and ``process QUEUE`` (CONSUMER) for a run. The trace context travels in the job's row.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import msgspec

from jobq.engine.log import get_logger
from jobq.errors import JobqError, RateLimited, Retry, SettingsError, Snooze

try:
    from opentelemetry import propagate, trace
    from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider, get_tracer_provider
except ImportError:
    raise SettingsError("traces need OpenTelemetry: pip install 'jobq[otel]'") from None

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from opentelemetry.context import Context as OtelContext
    from opentelemetry.trace import Span, TracerProvider

    from jobq.engine.model.job import Accepted, Durability, NewJob, Seconds
    from jobq.engine.queue.queue import Queue
    from jobq.engine.task.context import Context
    from jobq.engine.task.tracer import Submitter
    from jobq.errors import InvalidJob

__all__ = ["Mode", "instrument"]

log = get_logger("jobq.otel")

Mode = Literal["auto", "link", "child"]
SOON: Final = 60.0
"""Seconds from an enqueue to a run in which "auto" continues the producer's trace."""
CONTEXT_MAX: Final = 4096
"""Bytes of a trace context that a job carries. A propagator may add baggage of any size."""
BULK: Final = "jobq-bulk"
"""Marks the context of a job that was enqueued together with others."""


def instrument(queue: Queue, *, trace: Mode = "auto", tracer_provider: TracerProvider | None = None) -> None:
    """Trace the enqueues and the runs of a queue in this program. Call it once, before workers start.

    ``trace``: how the span of a run belongs to that of its enqueue. "child": it continues the trace. "link": it begins
    a new trace, which links to the enqueue. "auto": "child" if the job was enqueued alone and starts within 60 s,
    else "link". A retry also links to the attempt before it. ``tracer_provider``: by default the global one, which has
    to be set before. Without an SDK nothing is traced, and nothing costs anything.

    :raises ValueError: there is no such mode, or the queue is traced already.
    """
    if trace not in get_args(Mode):
        raise ValueError(f"trace is {trace!r:.80}: it takes 'auto', 'link' or 'child'")
    if queue.tracer is not None:
        raise ValueError(f"queue {queue.name!r} is traced already: call instrument(queue) once")
    if isinstance(tracer_provider or get_tracer_provider(), NoOpTracerProvider | ProxyTracerProvider):
        log.info(
            f"Queue {queue.name} is not traced, because OpenTelemetry has no SDK here. Set its tracer provider before"
            " instrument(queue)",
            queue=queue.name,
        )
        return
    tracing = _Tracing(queue, trace, tracer_provider)
    queue.tracer = tracing
    # The span of a run contains everything else that belongs to it, also other middleware.
    queue.middlewares.insert(0, tracing.run)


class _Tracing:
    def __init__(self, queue: Queue, mode: Mode, provider: TracerProvider | None) -> None:
        self._queue = queue
        self._mode = mode
        self._tracer = trace.get_tracer("jobq", tracer_provider=provider)
        self._scheduled: dict[str, Span] = {}
        """The spans of jobs that schedules are enqueueing now, by their ids."""

    # -- producers -------------------------------------------------------------------------------------------------

    async def submit(self, queue: Submitter, new: NewJob, *, durability: Durability | None, checked: bool) -> Accepted:
        with self._send(new.type) as span:
            carried = msgspec.structs.replace(new, trace=_inject())
            accepted = await queue.submit(carried, durability=durability, checked=checked)
            span.set_attribute("messaging.message.id", accepted.id)
            if accepted.duplicate:
                span.set_attribute("jobq.duplicate", True)
            return accepted

    async def submit_each(
        self,
        queue: Submitter,
        news: Sequence[NewJob],
        *,
        durability: Durability | None,
        checked: bool,
        spread: Seconds | None,
    ) -> list[Accepted | InvalidJob]:
        types = {new.type for new in news}
        with self._send(types.pop() if len(types) == 1 else None) as span:
            span.set_attribute("messaging.batch.message_count", len(news))
            context = _inject()
            if len(news) > 1 and context:
                context[BULK] = "1"
            carried = [msgspec.structs.replace(new, trace=context) if new.trace is None else new for new in news]
            return await queue.submit_each(carried, durability=durability, checked=checked, spread=spread)

    def scheduled(self, new: NewJob) -> NewJob:
        assert new.id is not None
        assert new.schedule is not None
        span = self._tracer.start_span(
            f"send {self._queue.name}", kind=trace.SpanKind.PRODUCER, attributes=self._attributes("send", new.type)
        )
        span.set_attribute("messaging.message.id", new.id)
        span.set_attribute("jobq.schedule", new.schedule.name)
        self._scheduled[new.id] = span
        return msgspec.structs.replace(new, trace=_inject(trace.set_span_in_context(span)))

    def fired(self, new: NewJob, *, enqueued: bool) -> None:
        assert new.id is not None
        span = self._scheduled.pop(new.id, None)
        if span is not None and enqueued:
            span.end()

    @contextmanager
    def _send(self, type_: str | None) -> Generator[Span]:
        with self._tracer.start_as_current_span(
            f"send {self._queue.name}",
            kind=trace.SpanKind.PRODUCER,
            attributes=self._attributes("send", type_),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except BaseException as error:
                _failed(span, error)
                raise

    def _attributes(self, operation: str, type_: str | None) -> dict[str, Any]:
        attributes: dict[str, Any] = {
            "messaging.system": "jobq",
            "messaging.destination.name": self._queue.name,
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
        }
        if type_ is not None:
            attributes["jobq.job.type"] = type_
        return attributes

    # -- workers ---------------------------------------------------------------------------------------------------

    async def run(self, context: Context, call_next: Any) -> Any:
        """The middleware around each run."""
        parent, links = self._relations(context)
        if context.attempt > 1 and (earlier := await self._earlier(context)) is not None:
            links.append(trace.Link(earlier, {"jobq.link": "previous attempt"}))
        attributes = self._attributes("process", context.type) | {
            "messaging.message.id": context.id,
            "messaging.client.id": context.worker,
            "jobq.attempt": context.attempt,
        }
        with self._tracer.start_as_current_span(
            f"process {self._queue.name}",
            context=parent,
            kind=trace.SpanKind.CONSUMER,
            attributes=attributes,
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            context.trace = _inject().get("traceparent")
            try:
                return await call_next()
            except (Snooze, RateLimited):
                span.set_attribute("jobq.outcome", "put off")
                raise
            except BaseException as error:
                if context.stopped is not None:
                    span.set_attribute("jobq.outcome", context.stopped)
                _failed(span, error, context.stopped)
                raise

    def _relations(self, context: Context) -> tuple[OtelContext, list[trace.Link]]:
        """The parent of a run's span, and its links."""
        carrier = context.spec.trace or {}
        # Without the caller's context: a worker may itself run in a span, which is the parent of no job.
        created = propagate.extract(carrier, context=trace.set_span_in_context(trace.INVALID_SPAN))
        producer = trace.get_current_span(created).get_span_context()
        if not producer.is_valid:
            return created, []
        soon = self._queue.store.now_ms() - context.enqueued_at < SOON * 1000
        if self._mode == "child" or (self._mode == "auto" and soon and BULK not in carrier):
            return created, []
        return (
            trace.set_span_in_context(trace.INVALID_SPAN, created),
            [trace.Link(producer, {"jobq.link": "enqueue"})],
        )

    async def _earlier(self, context: Context) -> trace.SpanContext | None:
        """The span of the attempt before this one. It is in the job's row, so each retry costs a trip."""
        try:
            row = await self._queue.get(context.id)
        except JobqError:
            return None
        if not row.errors or row.errors[-1].trace is None:
            return None
        extracted = propagate.extract({"traceparent": row.errors[-1].trace})
        found = trace.get_current_span(extracted).get_span_context()
        return found if found.is_valid else None


def _inject(context: OtelContext | None = None) -> dict[str, str]:
    """The trace context as headers. Empty if it is too large, or if there is none."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier, context=context)
    size = sum(len(name) + len(value) for name, value in carrier.items())
    sound = not any(brace in value for value in carrier.values() for brace in "{}")
    return carrier if size <= CONTEXT_MAX and sound else {}


def _failed(span: Span, error: BaseException, reason: str | None = None) -> None:
    if issubclass(type(error), Retry):  # not isinstance, which a hostile exception could answer itself
        span.set_attribute("jobq.outcome", "retry")
    span.record_exception(error)
    span.set_attribute("error.type", reason or type(error).__qualname__)
    span.set_status(trace.StatusCode.ERROR, str(error)[:500] or None)
