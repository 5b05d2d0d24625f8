"""Turns the stored rows of jobs and workers into what people see."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from jobq.engine.model.costs import read_costs
from jobq.engine.model.ids import time_of
from jobq.engine.model.job import AttemptError, LogLine, Result, State
from jobq.engine.model.unreadable import (
    FAULTS,
    NEVER_RUN,
    Unreadable,
    as_text,
    read_attempts,
    shown,
    strictly,
    whole,
)
from jobq.engine.model.views import JobBrief, JobRow, WorkerRow
from jobq.errors import UnreadableResult

_error = msgspec.json.Decoder(AttemptError).decode
_result = msgspec.json.Decoder(Result).decode
_line = msgspec.json.Decoder(LogLine).decode
_worker = msgspec.json.Decoder(WorkerRow).decode
_raw = msgspec.json.Decoder(msgspec.Raw).decode

UNREADABLE_TYPE: Final = "Unreadable"
"""The error type of a record that cannot be read."""


def read_errors(raw: bytes | None) -> list[AttemptError]:
    """Error records, oldest first. An unreadable record is replaced by one that says so."""
    return [_read_error(line) for line in raw.split(b"\n")] if raw else []


def _read_error(line: bytes) -> AttemptError:
    try:
        return _error(line)
    except FAULTS:
        return AttemptError(0, 0, UNREADABLE_TYPE, f"this stored error record cannot be read: {shown(line)}")


def read_logs(raw: bytes) -> list[LogLine]:
    """Log lines, oldest first. An unreadable line is replaced by one that says so."""
    return [_read_line(line) for line in raw.split(b"\n")] if raw else []


def _read_line(line: bytes) -> LogLine:
    try:
        return _line(line)
    except FAULTS:
        return LogLine(0, f"this stored log line cannot be read: {shown(line)}")


def read_result(job_id: str, raw: bytes) -> Result:
    """The result record of a completed job.

    :raises UnreadableResult: the row is damaged, or another program wrote it.
    """
    try:
        return strictly(_result, raw)
    except FAULTS:
        raise UnreadableResult(job_id, shown(raw)) from None


class _Columns:
    """One row of rows.lua. A column that cannot be read is listed in ``unreadable`` and counts as absent."""

    def __init__(self, row: list[Any]) -> None:
        state, score, token, spec, priority, attempts, errors, result, progress, unserved, limits, weights, *rest = row
        reruns, start_by, end_by = rest
        bad = Unreadable()
        self.unreadable = bad.found
        self.state = state = State(state.decode())
        score = bad.read("score", score, _score, 0)
        self.spec = bad.spec(spec)
        self.priority = bad.read("priority", priority, _priority, self.spec.priority)
        self.errors = read_errors(errors)
        self.result = bad.read("result", result, _result, None)
        self.progress = bad.read("progress", progress, _raw, None)
        self.limits = [key for key in as_text(limits).split("\n") if key[:1] not in ("!", "@")] if limits else []
        group = as_text(limits).partition("\n")[0] if limits else ""
        self.group = group[1:] if group[:1] == "@" else None
        self.costs = read_costs(weights)
        self.reruns = as_text(reruns).split(" ") if reruns else []
        self.unserved = bad.read("unserved", unserved, _times, 0)
        charged, _, self.snoozes, self.rate_limited = bad.read("attempts", attempts, read_attempts, NEVER_RUN)
        self.attempts_made = charged + (state in (State.ACTIVE, State.COMPLETED))
        ended = state in (State.COMPLETED, State.FAILED)
        # Without an entry the time does not count any more: the job has started, or was retried by hand.
        self.expires_at = self.spec.expires_at if ended or start_by is not None else None
        self.deadline_at = self.spec.deadline_at if ended or end_by is not None else None
        self.run_at = score if state is State.DELAYED else None
        self.lease_until = score if state is State.ACTIVE else None
        self.finished_at = score if ended else None
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
        snoozes=of.snoozes,
        rate_limited=of.rate_limited,
        unserved=of.unserved,
        limits=of.limits,
        group=of.group,
        slots=spec.slots,
        schedule=spec.schedule,
        costs=of.costs,
        expires_at=of.expires_at,
        deadline_at=of.deadline_at,
        rerun_of=spec.rerun_of,
        partition_by=spec.partition_by,
        reruns=of.reruns,
        version=spec.version,
        trace=spec.trace,
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
        snoozes=of.snoozes,
        rate_limited=of.rate_limited,
        unserved=of.unserved,
        group=of.group,
        unreadable=of.unreadable,
    )


def _times(raw: bytes) -> int:
    """The first number of a row."""
    return whole(raw.partition(b" ")[0])


def _score(raw: bytes) -> int:
    return whole(b"%d" % float(raw))


def _priority(raw: bytes) -> int:
    return whole(raw.rstrip(b"LF"))


def _lease(token: bytes) -> tuple[str | None, int | None]:
    """The worker that holds the lease, and the time of its claim. The fence is that time unless the clock went back."""
    fence, worker = token.split(b" ", 1)
    return worker.decode(), whole(fence) // 1000


def worker_row(worker: bytes, info: bytes, seen: int, *, alive: bool) -> WorkerRow:
    """One row of the registry of workers. If it cannot be read: the worker's id, and the stored text."""
    try:
        return msgspec.structs.replace(strictly(_worker, info), seen=seen, alive=alive)
    except FAULTS:
        return WorkerRow(as_text(worker), "?", 0, [], [], 0, 0, seen, seen, alive=alive, unreadable=shown(info))
