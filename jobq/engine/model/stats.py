"""Turns the reply of stats.lua into what people see."""

from __future__ import annotations

from typing import Any, Final

from jobq.engine.model.history import WINDOWS, numbers, read_counts
from jobq.engine.model.unreadable import Unreadable, as_text, shown_attempts, whole
from jobq.engine.model.views import Minute, Stats

MINUTES_SHOWN: Final = 60


def read_stats(queue: str, reply: list[Any]) -> Stats:
    """The reply of stats.lua."""
    now, waiting, delayed, active, completed, failed, blocked, held, paused, closed, workers, *rest = reply
    oldest, due, flat, history, held_oldest, aging = rest
    bad = Unreadable()
    metrics = {
        as_text(name): bad.read(as_text(name), count, whole, 0)
        for name, count in zip(flat[::2], flat[1::2], strict=True)
    }
    closed_until = bad.read("closed", closed, whole, 0)
    this_minute = now // 60_000
    counted = {name.split(":")[1] for name in metrics if name.startswith("m:")}
    minutes = [
        Minute(
            at=minute * 60_000,
            **{what: metrics.get(f"m:{minute}:{what}", 0) for what in ("completed", "failed", "retried")},
        )
        for minute in range(this_minute - MINUTES_SHOWN + 1, this_minute + 1)
        if str(minute) in counted
    ]
    last_hour = numbers("", read_counts(history, flat).of(WINDOWS["1h"], now))
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
        oldest_waiting_ms=_longest(now, oldest),
        oldest_held_ms=_longest(now, held_oldest),
        next_due_ms=max(0, int(float(due)) - now) if due else None,
        wait=last_hour.wait,
        run=last_hour.run,
        minutes=[minute for minute in minutes if minute.completed or minute.failed or minute.retried],
        aging_ms=bad.read("aging", aging, whole, 0),
        unreadable=bad.found,
    )


def _longest(now: int, flat: list[Any]) -> int | None:
    """How long the job has waited that waits longest. ``flat``: triples id, attempts, spec."""
    candidates = zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    waits = [now - waiting_since(job_id, attempts, spec) for job_id, attempts, spec in candidates]
    return max(0, *waits) if waits else None


def waiting_since(job_id: bytes, attempts: bytes | None, spec_: bytes | None) -> int:
    """Since when a waiting job can run, unix ms: it was put back then, became due, or was enqueued."""
    _, since, *_ = shown_attempts(attempts)
    if since is not None:
        return since
    spec = Unreadable().spec(spec_)
    return spec.ready_at(job_id)
