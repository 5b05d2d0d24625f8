"""Replies of the reading scripts, made into what people see."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from jobq.engine.model.ids import time_of
from jobq.engine.model.job import (
    AttemptError,
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

_spec = msgspec.json.Decoder(Spec).decode
_error = msgspec.json.Decoder(AttemptError).decode
_result = msgspec.json.Decoder(Result).decode
_line = msgspec.json.Decoder(LogLine).decode
_worker = msgspec.json.Decoder(WorkerRow).decode

MINUTES_SHOWN: Final = 60


def read_spec(raw: bytes) -> Spec:
    """The spec of a job.

    :raises msgspec.MsgspecError: the row is not one of ours.
    """
    return _spec(raw)


UNREADABLE: Final = Spec(type="?", at=0, attempts=1)
"""Stands in for a row that is damaged, or not ours: it must end, and show, where an operator looks."""


def shown_spec(raw: bytes) -> Spec:
    """The spec of a job, or ``UNREADABLE``: one bad row must not hide the others."""
    try:
        return _spec(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return UNREADABLE


def read_errors(raw: bytes | None) -> list[AttemptError]:
    """Error records, oldest first."""
    return [_error(line) for line in raw.split(b"\n")] if raw else []


def read_logs(raw: bytes) -> list[LogLine]:
    """Log lines, oldest first."""
    return [_line(line) for line in raw.split(b"\n")] if raw else []


def read_result(raw: bytes) -> Result:
    """The result record of a completed job."""
    return _result(raw)


def job_row(queue: str, job_id: str, row: list[Any]) -> JobRow:
    """One row of rows.lua."""
    state_, score_, token, spec_, priority, attempts, errors_, result_, progress, unserved, _keys = row
    state, score = State(state_.decode()), int(float(score_))
    spec = shown_spec(spec_)
    errors = read_errors(errors_)
    result = _result(result_) if result_ else None
    charged = int(attempts or 0)
    finished = state in (State.COMPLETED, State.FAILED)
    return JobRow(
        id=job_id,
        queue=queue,
        type=spec.type,
        state=state,
        payload=spec.payload,
        priority=int(priority.rstrip(b"L")) if priority else spec.priority,
        attempts=spec.attempts,
        attempts_made=charged + (state in (State.ACTIVE, State.COMPLETED)),
        enqueued_at=spec.at or time_of(job_id),
        delay=spec.delay,
        backoff=spec.backoff,
        timeout=spec.timeout,
        lifo=spec.lifo,
        key=spec.key,
        retention=spec.retention,
        metadata=spec.metadata,
        run_at=score if state is State.DELAYED else None,
        lease_until=score if state is State.ACTIVE else None,
        worker=token.split(b" ", 1)[1].decode() if token else (result.worker or None) if result else None,
        started_at=result.started if result else None,
        finished_at=score if finished else None,
        duration=result.ran if result else None,
        progress=msgspec.Raw(progress) if progress else None,
        result=result.result if result else None,
        errors=errors,
        unserved=int(unserved or 0),
    )


def worker_row(info: bytes, seen: int) -> WorkerRow:
    """One row of the worker registry."""
    return msgspec.structs.replace(_worker(info), seen=seen)


def read_stats(queue: str, reply: list[Any]) -> Stats:
    """The reply of stats.lua."""
    now, waiting, delayed, active, completed, failed, blocked, paused, workers, first, spec, due, flat = reply
    metrics = {name.decode(): int(count) for name, count in zip(flat[::2], flat[1::2], strict=True)}
    this_minute = now // 60_000
    minutes = [
        Minute(
            at=minute * 60_000,
            **{what: metrics.get(f"m:{minute}:{what}", 0) for what in ("completed", "failed", "retried")},
        )
        for minute in range(this_minute - MINUTES_SHOWN + 1, this_minute + 1)
    ]
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
        oldest_waiting_ms=max(0, now - ready_at(first, spec)) if first else None,
        next_due_ms=max(0, int(float(due)) - now) if due else None,
        wait=latency(metrics, "wait:"),
        run=latency(metrics, "run:"),
        minutes=[minute for minute in minutes if minute.completed or minute.failed or minute.retried],
    )


def ready_at(job_id: bytes, spec_: bytes | None) -> int:
    """When the job first stood in waiting, unix ms."""
    spec = shown_spec(spec_ or b"")
    return (spec.at or time_of(job_id)) + spec.delay


def latency(metrics: dict[str, int], prefix: str) -> Latency | None:
    """Quantiles out of the histogram ``<prefix><bit length of the time in us>`` -> count. None: nothing was counted.

    A quantile is placed inside its bucket by its rank, as in Prometheus' ``histogram_quantile``.
    """
    buckets = sorted(
        (int(name.removeprefix(prefix)), count) for name, count in metrics.items() if name.startswith(prefix)
    )
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
