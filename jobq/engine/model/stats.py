"""Turns the reply of stats.lua into what people see."""

from __future__ import annotations

from typing import Any, Final

from jobq.engine.model.unreadable import Unreadable, as_text, shown_attempts, whole
from jobq.engine.model.views import Latency, Minute, Stats

MINUTES_SHOWN: Final = 60
BITS: Final = range(46)
"""The buckets of the histograms: bit lengths of times in microseconds. The last one means more than a year."""


def read_stats(queue: str, reply: list[Any]) -> Stats:
    """The reply of stats.lua."""
    now, waiting, delayed, active, completed, failed, blocked, held, paused, closed, workers, oldest, due, flat = reply
    bad = Unreadable()
    metrics = {
        as_text(name): bad.read(as_text(name), count, whole, 0)
        for name, count in zip(flat[::2], flat[1::2], strict=True)
    }
    closed_until = bad.read("closed", closed, whole, 0)
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
        held=held,
        paused=paused is not None,
        closed_until=closed_until if closed_until > now else None,
        workers=workers,
        completed_total=metrics.get("completed", 0),
        failed_total=metrics.get("failed", 0),
        retried_total=metrics.get("retried", 0),
        snoozed_total=metrics.get("snoozed", 0),
        rate_limited_total=metrics.get("rate_limited", 0),
        unserved_total=metrics.get("unserved", 0),
        duplicates_total=metrics.get("duplicates", 0),
        dropped_total=metrics.get("dropped", 0),
        replaced_oldest_total=metrics.get("replaced_oldest", 0),
        killed_running_total=metrics.get("killed_running", 0),
        expired_total=metrics.get("expired", 0),
        oldest_waiting_ms=max(0, *waits) if waits else None,
        next_due_ms=max(0, int(float(due)) - now) if due else None,
        wait=latency(metrics, [f"{hour}wait:" for hour in hours]),
        run=latency(metrics, [f"{hour}run:" for hour in hours]),
        minutes=[minute for minute in minutes if minute.completed or minute.failed or minute.retried],
        unreadable=bad.found,
    )


def waiting_since(job_id: bytes, attempts: bytes | None, spec_: bytes | None) -> int:
    """Since when a waiting job can run, unix ms: it was put back then, became due, or was enqueued."""
    _, since, *_ = shown_attempts(attempts)
    if since is not None:
        return since
    spec = Unreadable().spec(spec_)
    return spec.ready_at(job_id)


def latency(metrics: dict[str, int], prefixes: list[str]) -> Latency | None:
    """Quantiles of the sum of the histograms ``<prefix><bit length of the time in us>`` -> count.

    Returns None if nothing was counted. A quantile is placed inside its bucket by its rank, as in Prometheus'
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
