"""Replies of the reading scripts, made into what people see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from jobq.engine.model.ids import time_of
from jobq.engine.model.job import (
    AttemptError,
    JobBrief,
    JobRow,
    Latency,
    LogLine,
    Minute,
    Result,
    Spec,
    State,
    Stats,
    WorkerRow,
)
from jobq.errors import UnreadableResult

if TYPE_CHECKING:
    from collections.abc import Callable

_spec = msgspec.json.Decoder(Spec).decode
_error = msgspec.json.Decoder(AttemptError).decode
_result = msgspec.json.Decoder(Result).decode
_line = msgspec.json.Decoder(LogLine).decode
_worker = msgspec.json.Decoder(WorkerRow).decode
_raw = msgspec.json.Decoder(msgspec.Raw).decode
_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_fields = {field.encode_name: field for field in msgspec.structs.fields(Spec)}

MINUTES_SHOWN: Final = 60
UNREADABLE_SHOWN: Final = 200
"""Characters shown of a stored value that cannot be read."""
UNREADABLE_TYPE: Final = "Unreadable"
"""The error type that stands for an error record that cannot be read."""

BITS: Final = range(46)
"""The buckets of the histograms: bit lengths of times in microseconds. The last one means more than a year."""
_FAULTS = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, LookupError)
"""What reading a damaged row may raise. ``UnicodeDecodeError`` is a ``ValueError``."""

T = TypeVar("T")


def read_spec(raw: bytes) -> Spec:
    """The spec of a job, for the worker that runs it.

    :raises msgspec.MsgspecError: the row is not one of ours.
    """
    return _spec(raw)


UNREADABLE: Final = Spec(type="?", at=0, attempts=1)
"""Stands in for a spec that cannot be read: its job must still end, and operators must still see it."""


class Unreadable:
    """Collects the columns of one row that cannot be read, so that one damaged column hides nothing else."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def read(self, column: str, raw: bytes | None, decode: Callable[[bytes], T], otherwise: T) -> T:
        """The decoded value, or ``otherwise`` where there is none or it cannot be read."""
        if raw is None:
            return otherwise
        try:
            return _strictly(decode, raw)
        except _FAULTS:
            self.found[column] = shown(raw)
            return otherwise

    def spec(self, raw: bytes | None) -> Spec:
        """The spec. Of one that another version wrote, or that is damaged, every field that can be read."""
        if raw is None:
            # The job stands in a set and is counted, so it is shown: an operator has to see it to remove it.
            self.found["spec"] = "it is missing"
            return UNREADABLE
        try:
            return _strictly(_spec, raw or b"")
        except _FAULTS:
            pass
        try:
            parts = _object(raw or b"")
        except _FAULTS:
            self.found["spec"] = shown(raw or b"")
            return UNREADABLE
        values: dict[str, Any] = {}
        for name, part in parts.items():
            if field := _fields.get(name):
                otherwise = getattr(UNREADABLE, field.name)
                decoder = msgspec.json.Decoder(field.type)
                values[field.name] = self.read(name, bytes(part), decoder.decode, otherwise)
        if "type" not in values:
            self.found["spec"] = shown(raw or b"")
        return msgspec.structs.replace(UNREADABLE, **values)


def _strictly(decode: Callable[[bytes], T], raw: bytes) -> T:
    """Decode. msgspec passes over the text inside a ``Raw`` without looking whether it is UTF-8; this looks."""
    raw.decode()
    return decode(raw)


def shown(raw: bytes) -> str:
    """A stored value that cannot be read, cut, as text that can always be encoded."""
    text = raw[:UNREADABLE_SHOWN].decode(errors="backslashreplace")
    return text if len(raw) <= UNREADABLE_SHOWN else f"{text}... ({len(raw)} bytes)"


def as_text(raw: bytes) -> str:
    """An id or a name, whatever its bytes."""
    return raw.decode(errors="backslashreplace")


def read_errors(raw: bytes | None) -> list[AttemptError]:
    """Error records, oldest first. A record that cannot be read becomes one that says so."""
    return [_read_error(line) for line in raw.split(b"\n")] if raw else []


def _read_error(line: bytes) -> AttemptError:
    try:
        return _error(line)
    except _FAULTS:
        return AttemptError(0, 0, UNREADABLE_TYPE, f"this stored error record cannot be read: {shown(line)}")


def read_logs(raw: bytes) -> list[LogLine]:
    """Log lines, oldest first. A line that cannot be read becomes one that says so."""
    return [_read_line(line) for line in raw.split(b"\n")] if raw else []


def _read_line(line: bytes) -> LogLine:
    try:
        return _line(line)
    except _FAULTS:
        return LogLine(0, f"this stored log line cannot be read: {shown(line)}")


def read_result(job_id: str, raw: bytes) -> Result:
    """The result record of a completed job.

    :raises UnreadableResult: it is damaged, or another program wrote it.
    """
    try:
        return _strictly(_result, raw)
    except _FAULTS:
        raise UnreadableResult(job_id, shown(raw)) from None


class _Columns:
    """One row of rows.lua, read. A column that cannot be read is listed in ``unreadable`` and counts as absent."""

    def __init__(self, row: list[Any]) -> None:
        state, score, token, spec, priority, attempts, errors, result, progress, unserved = row
        bad = Unreadable()
        self.unreadable = bad.found
        self.state = state = State(state.decode())
        score = bad.read("score", score, _score, 0)
        self.spec = bad.spec(spec)
        self.priority = bad.read("priority", priority, _priority, self.spec.priority)
        self.errors = read_errors(errors)
        self.result = bad.read("result", result, _result, None)
        self.progress = bad.read("progress", progress, _raw, None)
        self.unserved = bad.read("unserved", unserved, _count, 0)
        charged, _ = bad.read("attempts", attempts, read_attempts, (0, None))
        self.attempts_made = charged + (state in (State.ACTIVE, State.COMPLETED))
        self.run_at = score if state is State.DELAYED else None
        self.lease_until = score if state is State.ACTIVE else None
        self.finished_at = score if state in (State.COMPLETED, State.FAILED) else None
        self.worker: str | None = None
        self.started_at: int | None = None
        self.duration: int | None = None
        if state is State.ACTIVE:
            self.worker, self.started_at = bad.read("lease", token, _lease, (None, None))
        elif state is State.COMPLETED and self.result:
            self.worker, self.started_at, self.duration = (
                self.result.worker or None,
                self.result.started,
                self.result.ran,
            )
        elif state is State.FAILED and self.errors:
            last = self.errors[-1]
            self.worker, self.started_at = last.worker, last.started
            self.duration = None if last.started is None else max(0, last.at - last.started)


def job_row(queue: str, job_id: str, row: list[Any]) -> JobRow:
    """One row of rows.lua."""
    of = _Columns(row)
    spec = of.spec
    return JobRow(
        id=job_id,
        queue=queue,
        type=spec.type,
        state=of.state,
        payload=spec.payload,
        priority=of.priority,
        attempts=spec.attempts,
        attempts_made=of.attempts_made,
        enqueued_at=spec.at or time_of(job_id),
        delay=spec.delay,
        backoff=spec.backoff,
        timeout=spec.timeout,
        lifo=spec.lifo,
        key=spec.key,
        retention=spec.retention,
        metadata=spec.metadata,
        run_at=of.run_at,
        lease_until=of.lease_until,
        worker=of.worker,
        started_at=of.started_at,
        finished_at=of.finished_at,
        duration=of.duration,
        progress=of.progress,
        result=of.result.result if of.result else None,
        errors=of.errors,
        unserved=of.unserved,
        unreadable=of.unreadable,
    )


def job_brief(queue: str, job_id: str, row: list[Any]) -> JobBrief:
    """One brief row of rows.lua."""
    of = _Columns(row)
    return JobBrief(
        id=job_id,
        queue=queue,
        type=of.spec.type,
        state=of.state,
        priority=of.priority,
        attempts=of.spec.attempts,
        attempts_made=of.attempts_made,
        enqueued_at=of.spec.at or time_of(job_id),
        run_at=of.run_at,
        lease_until=of.lease_until,
        worker=of.worker,
        started_at=of.started_at,
        finished_at=of.finished_at,
        duration=of.duration,
        error=of.errors[-1] if of.errors else None,
        unserved=of.unserved,
        unreadable=of.unreadable,
    )


def _count(raw: bytes) -> int:
    """A whole number as HINCRBY writes it."""
    count = int(raw)
    if not -(2**63) <= count < 2**63:
        raise OverflowError
    return count


def read_attempts(raw: bytes | None) -> tuple[int, int | None]:
    """How many runs were charged. Since when the job can run, unix ms; None stands for its enqueue and its delay.

    :raises ValueError: the row is damaged.
    """
    if raw is None:
        return 0, None
    charged, _, since = raw.partition(b" ")
    return _count(charged), _count(since) if since else None


def shown_attempts(raw: bytes | None) -> tuple[int, int | None]:
    """As ``read_attempts``. A damaged row counts as none: the job must run, or fail, all the same."""
    try:
        return read_attempts(raw)
    except _FAULTS:
        return 0, None


def _score(raw: bytes) -> int:
    return _count(b"%d" % float(raw))


def _priority(raw: bytes) -> int:
    return _count(raw.rstrip(b"L"))


def _lease(token: bytes) -> tuple[str | None, int | None]:
    """The worker that holds it, and when it was claimed: a fence is that time in us, unless the clock was set back."""
    fence, worker = token.split(b" ", 1)
    return worker.decode(), _count(fence) // 1000


def worker_row(worker: bytes, info: bytes, seen: int, *, alive: bool) -> WorkerRow:
    """One row of the worker registry. Of a row that cannot be read: the worker's id, and what stands there."""
    try:
        return msgspec.structs.replace(_strictly(_worker, info), seen=seen, alive=alive)
    except _FAULTS:
        return WorkerRow(as_text(worker), "?", 0, [], [], 0, 0, seen, seen, alive=alive, unreadable=shown(info))


def read_stats(queue: str, reply: list[Any]) -> Stats:
    """The reply of stats.lua."""
    now, waiting, delayed, active, completed, failed, blocked, paused, workers, oldest, due, flat = reply
    bad = Unreadable()
    metrics = {
        as_text(name): bad.read(as_text(name), count, _count, 0)
        for name, count in zip(flat[::2], flat[1::2], strict=True)
    }
    this_minute, this_hour = now // 60_000, now // 3_600_000
    minutes = [
        Minute(
            at=minute * 60_000,
            **{what: metrics.get(f"m:{minute}:{what}", 0) for what in ("completed", "failed", "retried")},
        )
        for minute in range(this_minute - MINUTES_SHOWN + 1, this_minute + 1)
    ]
    hours = [f"h:{hour}:" for hour in (this_hour - 1, this_hour)]
    candidates = zip(oldest[::3], oldest[1::3], oldest[2::3], strict=True)
    waits = [now - waiting_since(job_id, attempts, spec) for job_id, attempts, spec in candidates]
    return Stats(
        queue=queue,
        waiting=waiting,
        delayed=delayed,
        active=active,
        completed=completed,
        failed=failed,
        blocked=blocked,
        paused=paused is not None,
        workers=workers,
        completed_total=metrics.get("completed", 0),
        failed_total=metrics.get("failed", 0),
        retried_total=metrics.get("retried", 0),
        unserved_total=metrics.get("unserved", 0),
        oldest_waiting_ms=max(0, *waits) if waits else None,
        next_due_ms=max(0, int(float(due)) - now) if due else None,
        wait=latency(metrics, [f"{hour}wait:" for hour in hours]),
        run=latency(metrics, [f"{hour}run:" for hour in hours]),
        minutes=[minute for minute in minutes if minute.completed or minute.failed or minute.retried],
        unreadable=bad.found,
    )


def waiting_since(job_id: bytes, attempts: bytes | None, spec_: bytes | None) -> int:
    """Since when a job in waiting can run: it was put back, came due for the first time, or was enqueued. Unix ms."""
    _, since = shown_attempts(attempts)
    if since is not None:
        return since
    spec = Unreadable().spec(spec_)
    return spec.ready_at(job_id)


def latency(metrics: dict[str, int], prefixes: list[str]) -> Latency | None:
    """Quantiles out of the histograms ``<prefix><bit length of the time in us>`` -> count, laid over each other.

    Returns None when nothing was counted. A quantile is placed inside its bucket by its rank, as in Prometheus'
    ``histogram_quantile``.
    """
    buckets = [
        (bits, count) for bits in BITS if (count := sum(metrics.get(f"{prefix}{bits}", 0) for prefix in prefixes)) > 0
    ]
    total = sum(count for _, count in buckets)
    if not total:
        return None

    def quantile(q: float) -> float:
        rank, below = q * total, 0
        for bits, count in buckets:
            if below + count >= rank:
                low, high = (2 ** (bits - 1), 2**bits) if bits else (0, 1)
                return round((low + (high - low) * (rank - below) / count) / 1000, 3)
            below += count
        return round(2 ** buckets[-1][0] / 1000, 3)

    return Latency(p50=quantile(0.5), p90=quantile(0.9), p99=quantile(0.99), count=total)
