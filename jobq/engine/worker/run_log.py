"""What a worker logs about its runs.

The message alone says which job, what happened and what follows, because the log format of a service may show nothing
else. The same facts are fields too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobq.engine.log import get_logger, indented
from jobq.engine.model.unreadable import as_text

if TYPE_CHECKING:
    from jobq.engine.model.job import Spec
    from jobq.engine.model.outcome import Failure, Snoozed, Throttled
    from jobq.engine.worker.run import Run

log = get_logger("jobq.worker")

_STOPPED = {
    "killed": "because it was killed; what it still does counts for nothing",
    "lost": "because its lease was lost, and another worker may run it; what this one still does counts for nothing",
}


def log_failure(run: Run, spec: Spec, failure: Failure) -> None:
    """Log a failed attempt: as a warning if another one follows, else as an error with the traceback."""
    what = f"{failure.type}: {' '.join(failure.message.split())}" if failure.message else failure.type
    attempt = f"Job {spec.type} {run.id.decode()} failed in attempt {run.attempt}"
    attempt += " (no limit)" if spec.attempts is None else f" of {spec.attempts}"
    fields = {
        "queue": run.source.name, "job_id": run.id.decode(), "type": spec.type, "attempt": run.attempt,
        "attempts": spec.attempts, "error": failure.type, "why": failure.message, "retry_in_ms": failure.delay,
    }  # fmt: skip
    if failure.complaint is not None:
        log.warning(f"Job {spec.type} {run.id.decode()}: {failure.complaint}", **fields)
    if failure.delay is not None:
        log.warning(f"{attempt} and runs again in {failure.delay / 1000:g} s: {what}", **fields)
        return
    trace = f"\n{indented(failure.trace)}" if failure.trace else ""
    log.error(f"{attempt} and does not run again: {what}{trace}", **fields)


def log_snooze(run: Run, snoozed: Snoozed) -> None:
    """A handler put its job off."""
    why = " ".join(snoozed.message.split())
    log.info(
        f"Job {run.name} was snoozed and runs again in {snoozed.delay / 1000:g} s: {why}",
        queue=run.source.name, job_id=run.id.decode(), attempt=run.attempt, snoozes=run.snoozes + 1, why=why,
        run_in_ms=snoozed.delay,
    )  # fmt: skip


def log_rate_limit(run: Run, limit: Throttled) -> None:
    """A service refused the calls of a handler for a time."""
    why = " ".join(limit.message.split())
    log.info(
        f"Job {run.name} was rate limited for {limit.delay / 1000:g} s (scope {limit.scope}): {why}",
        queue=run.source.name, job_id=run.id.decode(), attempt=run.attempt, rate_limited=run.rate_limited + 1, why=why,
        run_in_ms=limit.delay, scope=limit.scope,
    )  # fmt: skip


def log_stop(run: Run) -> None:
    """Log that a run was stopped and its outcome is refused."""
    log.warning(
        f"The run of job {run.name} was stopped {_STOPPED.get(run.reason or '', 'by its worker')}",
        queue=run.source.name, job_id=run.id.decode(), reason=run.reason,
    )  # fmt: skip


def log_breakers(queue: str, changed: list[bytes]) -> None:
    """Circuit breakers opened or closed with the outcomes that this worker has just stored: ``!type ms``, 0: closed."""
    for word in changed:
        name, _, ms = word[1:].rpartition(b" ")
        type_ = as_text(name)
        if ms == b"0":
            log.warning(f"The breaker of type {type_} closed: its jobs start again", queue=queue, type=type_)
        else:
            log.warning(
                f"The breaker of type {type_} opened for {int(ms) / 1000:g} s, because too many runs failed: its jobs"
                " are held",
                queue=queue, type=type_, open_ms=int(ms),
            )  # fmt: skip
