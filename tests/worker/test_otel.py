"""Traces: the spans of enqueues and runs, their names and attributes, and how they belong together."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import messaging_attributes as names
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from tools import listening

from jobq import Discard, InvalidJob, Queue, Snooze
from jobq.engine.queue.firing import Firing
from jobq.otel import instrument
from jobq.testing import ManualClock

if TYPE_CHECKING:
    from tools import Logs

    from jobq import Connection
    from jobq.engine.store import Store
    from tests.conftest import Until


class Spans:
    """The spans that have ended."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def all(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.all(name)
        return span


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
def traced(queue: Queue, spans: Spans) -> Queue:
    instrument(queue, tracer_provider=spans.provider)
    return queue


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def linked(span: ReadableSpan) -> list[tuple[int, Any]]:
    return [(link.context.span_id, (link.attributes or {})["jobq.link"]) for link in span.links]


def id_of(span: ReadableSpan) -> int:
    assert span.context
    return span.context.span_id


async def test_an_enqueue_and_its_run_are_one_trace(traced: Queue, spans: Spans, start):
    seen: list[int] = []

    @traced.task
    async def send(to: str) -> str:
        seen.append(trace.get_current_span().get_span_context().span_id)
        return to

    tracer = spans.provider.get_tracer("test")
    with tracer.start_as_current_span("request") as request:
        job = await send.enqueue("ada")
    worker = await start()
    assert await job.result(10) == "ada"
    worker.stop()
    await worker.finished()
    sent, processed = spans.one("send test"), spans.one("process test")
    assert sent.kind is trace.SpanKind.PRODUCER
    assert processed.kind is trace.SpanKind.CONSUMER
    assert sent.parent
    assert processed.parent
    assert sent.parent.span_id == request.get_span_context().span_id
    assert processed.parent.span_id == id_of(sent)
    assert seen == [id_of(processed)]
    assert not processed.links
    common = {names.MESSAGING_SYSTEM: "jobq", names.MESSAGING_DESTINATION_NAME: "test", "jobq.job.type": "send",
              names.MESSAGING_MESSAGE_ID: job.id}  # fmt: skip
    assert attributes(sent) == common | {
        names.MESSAGING_OPERATION_NAME: "send",
        names.MESSAGING_OPERATION_TYPE: names.MessagingOperationTypeValues.SEND.value,
    }
    found = attributes(processed)
    assert found.pop(names.MESSAGING_CLIENT_ID)
    assert found == common | {
        names.MESSAGING_OPERATION_NAME: "process",
        names.MESSAGING_OPERATION_TYPE: names.MessagingOperationTypeValues.PROCESS.value,
        "jobq.attempt": 1,
    }
    assert {sent.status.status_code, processed.status.status_code} == {trace.StatusCode.UNSET}
    assert set((await job.row()).trace or {}) == {"traceparent"}


@pytest.mark.parametrize("mode", ["auto", "link", "child"])
@pytest.mark.parametrize("how", ["alone", "late", "bulk"])
async def test_a_run_continues_the_trace_or_links_to_it(
    connection: Connection, spans: Spans, start, mode: Any, how: str
):
    clock = ManualClock()
    async with Queue("test", connection, clock=clock) as queue:

        @queue.task
        async def send(n: int = 0) -> int:
            return n

        instrument(queue, trace=mode, tracer_provider=spans.provider)
        jobs = await send.enqueue_many([{"n": 1}, {"n": 2}]) if how == "bulk" else [await send.enqueue(1)]
        if how == "late":
            clock.advance(61)
        worker = await start(queue)
        assert [await job.result(10) for job in jobs] == [1, 2][: len(jobs)]
        worker.stop()
        await worker.finished()
    sent = spans.one("send test")
    processed = spans.all("process test")
    assert len(processed) == len(jobs)
    if how == "bulk":
        assert attributes(sent)[names.MESSAGING_BATCH_MESSAGE_COUNT] == 2
        assert names.MESSAGING_MESSAGE_ID not in attributes(sent)
    child = mode == "child" or (mode == "auto" and how == "alone")
    for span in processed:
        assert sent.context
        assert span.context
        if child:
            assert span.parent
            assert span.parent.span_id == id_of(sent)
            assert not span.links
        else:
            assert span.parent is None
            assert span.context.trace_id != sent.context.trace_id
            assert linked(span) == [(id_of(sent), "enqueue")]


async def test_a_retry_links_to_the_attempt_before_it(traced: Queue, spans: Spans, start):
    @traced.task(attempts=3, backoff=[0])
    async def flaky(n: int) -> int:
        if len(spans.all("process test")) < 2:
            raise ValueError("no luck")
        return n

    job = await flaky.enqueue(7)
    worker = await start()
    assert await job.result(10) == 7
    worker.stop()
    await worker.finished()
    sent, (first, second, third) = spans.one("send test"), spans.all("process test")
    assert linked(second) == [(id_of(first), "previous attempt")]
    assert linked(third) == [(id_of(second), "previous attempt")]
    assert {span.parent.span_id for span in (first, second, third) if span.parent} == {id_of(sent)}
    assert [attributes(span)["jobq.attempt"] for span in (first, second, third)] == [1, 2, 3]
    assert [span.status.status_code for span in (first, second, third)] == [
        trace.StatusCode.ERROR, trace.StatusCode.ERROR, trace.StatusCode.UNSET
    ]  # fmt: skip
    assert attributes(first)["error.type"] == "ValueError"
    (event,) = first.events
    assert event.name == "exception"
    errors = (await job.row()).errors
    assert errors[-1].trace
    assert f"{id_of(second):016x}" in errors[-1].trace


async def test_what_ends_a_run_is_in_its_span(traced: Queue, admin: Store, spans: Spans, start, gate, until: Until):
    @traced.task
    async def discarded() -> None:
        raise Discard("never")

    @traced.task
    async def snoozed() -> None:
        if not spans.all("process test"):
            raise Snooze(0)

    @traced.task
    async def hangs() -> None:
        await gate.passing()

    # A renewal before the news of the kill would find the lease lost. There is one when the worker begins to listen.
    worker = await start(concurrency=1, lease=60)
    job = await snoozed.enqueue()
    await job.result(10)
    first, second = spans.all("process test")
    assert (first.status.status_code, attributes(first)["jobq.outcome"]) == (trace.StatusCode.UNSET, "put off")
    assert "error.type" not in attributes(first)
    assert second.status.status_code is trace.StatusCode.UNSET
    spans.exporter.clear()

    job = await hangs.enqueue()
    await gate.arrival()
    await until(lambda: listening(admin))
    await job.kill()
    await until(lambda: spans.all("process test"))
    assert attributes(spans.one("process test"))["error.type"] == "killed"
    spans.exporter.clear()

    job = await discarded.enqueue()
    with pytest.raises(Exception, match="never"):
        await job.result(10)
    worker.stop()
    await worker.finished()
    span = spans.one("process test")
    assert (attributes(span)["error.type"], span.status.description) == ("Discard", "never")


async def test_an_enqueue_that_is_refused_is_an_error_and_a_duplicate_is_not(traced: Queue, spans: Spans):
    @traced.task(key="k")
    async def send(to: str) -> None: ...

    with pytest.raises(InvalidJob):
        await traced.enqueue("send", {"wrong": 1})
    refused = spans.one("send test")
    assert (refused.status.status_code, attributes(refused)["error.type"]) == (trace.StatusCode.ERROR, "InvalidJob")
    spans.exporter.clear()
    first, second = await send.enqueue("a"), await send.enqueue("a")
    assert second.id == first.id
    assert [attributes(span).get("jobq.duplicate") for span in spans.all("send test")] == [None, True]


async def test_a_repeated_enqueue_in_another_trace_is_the_same_job(traced: Queue):
    @traced.task
    async def send(to: str, trace: Any = None) -> None: ...

    for payload in ({"to": "a"}, {"to": "a", "trace": {}}, {"to": "a", "trace": {"b": "c"}}):
        job_id = f"mine-{len(str(payload))}"
        for _ in range(2):
            await traced.enqueue("send", payload, id=job_id, metadata={"x": 1, "trace": {"b": "c"}})
            await traced.enqueue("send", payload, id=f"{job_id}-m")
        with pytest.raises(Exception, match="belongs to another job"):
            await traced.enqueue(
                "send", {**payload, "trace": {"b": "d"}}, id=job_id, metadata={"x": 1, "trace": {"b": "c"}}
            )
        with pytest.raises(Exception, match="belongs to another job"):
            await traced.enqueue("send", payload, id=job_id, metadata={"x": 1, "trace": {"b": "d"}})
    new = msgspec.structs.replace(traced.new("send", {"to": "a"}), idempotency_key="k")
    first, second = await traced.submit(new), await traced.submit(new)
    assert (first.id, second.duplicate) == (second.id, True)


async def test_a_schedule_carries_its_own_trace(connection: Connection, spans: Spans, start):
    clock = ManualClock(int(datetime(2027, 1, 4, 12, tzinfo=UTC).timestamp() * 1000))
    async with Queue("test", connection, clock=clock) as queue:

        @queue.task
        async def send() -> None: ...

        instrument(queue, tracer_provider=spans.provider)
        await queue.put_schedule("hourly", "send", {}, every="1h")
        clock.advance(3600.5)
        first, second = Firing(queue), Firing(queue)
        await first.fire_due()
        await second.fire_due()
        sent = spans.one("send test")
        (row,) = (await queue.page()).jobs
        assert attributes(sent)["jobq.schedule"] == "hourly"
        assert attributes(sent)[names.MESSAGING_MESSAGE_ID] == row.id
        worker = await start(queue)
        await queue.result(row.id, timeout=10)
        worker.stop()
        await worker.finished()
    processed = spans.one("process test")
    assert processed.parent
    assert processed.parent.span_id == id_of(sent)


async def test_a_context_that_is_too_large_is_left_out(traced: Queue, monkeypatch):
    @traced.task
    async def send() -> None: ...

    composite = CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])
    monkeypatch.setattr(propagate, "inject", composite.inject)
    token = context.attach(baggage.set_baggage("user", "ada"))
    try:
        job = await send.enqueue()
        assert (await job.row()).trace is not None
        assert ((await job.row()).trace or {})["baggage"] == "user=ada"
    finally:
        context.detach(token)
    large = baggage.set_baggage("a", "x" * 2000)
    large = baggage.set_baggage("b", "x" * 2000, large)
    token = context.attach(baggage.set_baggage("c", "x" * 2000, large))
    try:
        assert (await (await send.enqueue()).row()).trace is None
    finally:
        context.detach(token)


async def test_without_an_sdk_nothing_is_traced_and_nothing_is_in_the_way(queue: Queue, logs: Logs):
    instrument(queue, tracer_provider=trace.NoOpTracerProvider())
    instrument(queue)  # The global provider of this process is not set.
    assert queue.tracer is None
    assert queue.middlewares == []
    assert len(logs.all("OpenTelemetry has no SDK here", "INFO")) == 2


def test_synchronous_callers_are_the_parents_of_their_enqueues(redis_url: str, spans: Spans):
    queue = Queue("test", redis_url)

    @queue.task
    def send() -> None: ...

    instrument(queue, tracer_provider=spans.provider)
    with queue.sync() as open_queue, spans.provider.get_tracer("test").start_as_current_span("view") as view:
        open_queue.enqueue("send")
    sent = spans.one("send test")
    assert sent.parent
    assert sent.parent.span_id == view.get_span_context().span_id


def test_a_wrong_mode_and_a_second_call_are_refused(queue: Queue, spans: Spans):
    with pytest.raises(ValueError, match="it takes 'auto', 'link' or 'child'"):
        instrument(queue, trace="parent")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    instrument(queue, tracer_provider=spans.provider)
    with pytest.raises(ValueError, match="is traced already"):
        instrument(queue)
