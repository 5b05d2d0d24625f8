"""What commands print: text for people, one JSON document a line for programs."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from jobq.engine.model.job import AttemptError, JobRow, LogLine, Stats, WorkerRow

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence


def print_json(value: Any) -> None:
    """One JSON document on one line. A job's id carries its queue."""
    if isinstance(value, JobRow):
        value = msgspec.structs.replace(value, id=f"{value.queue}:{value.id}")
    print(msgspec.json.encode(value).decode())


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns under their heads: numbers to the right, text to the left."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        words = (
            word.rjust(width) if to_right else word.ljust(width)
            for word, width, to_right in zip(row, widths, right, strict=True)
        )
        return "  ".join(words).rstrip()

    return "\n".join(line(row) for row in [head, *cells])


def ago(ms: int | None, now_ms: float | None = None) -> str:
    """A time in the past or the future: "3s ago", "in 5m"."""
    if ms is None:
        return "-"
    delta = ((time.time() * 1000 if now_ms is None else now_ms) - ms) / 1000
    return f"{span(delta)} ago" if delta >= 0 else f"in {span(-delta)}"


def span(seconds: float) -> str:
    """A time of seconds in its largest unit: 0.25 -> "250ms", 90 -> "1.5m"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.1f}{unit}".replace(".0", "")
    return f"{seconds:.1f}s".replace(".0", "")


def clock(ms: int | None) -> str:
    """Unix ms as local time."""
    if ms is None:
        return "-"
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000)) + f".{ms % 1000:03}"
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms"  # a damaged row may hold any number


STATS_HEAD = ("QUEUE", "WAITING", "DELAYED", "ACTIVE", "COMPLETED", "FAILED", "WORKERS", "WAIT P99", "RUN P99", "")


def stats_row(stats: Stats) -> tuple[Any, ...]:
    """A queue's line under STATS_HEAD."""
    counts = (stats.waiting, stats.delayed, stats.active, stats.completed, stats.failed, stats.workers)
    latencies = (span(latency.p99 / 1000) if latency else "-" for latency in (stats.wait, stats.run))
    return (stats.queue, *counts, *latencies, "paused" if stats.paused else "")


JOBS_HEAD = ("ID", "TYPE", "STATE", "PRIORITY", "ATTEMPTS", "ENQUEUED", "WHEN")


def job_line(row: JobRow, now_ms: float) -> tuple[Any, ...]:
    """A job's line under JOBS_HEAD."""
    when = {
        "delayed": f"due {ago(row.run_at, now_ms)}",
        "active": f"lease ends {ago(row.lease_until, now_ms)}",
        "completed": f"done {ago(row.finished_at, now_ms)}",
        "failed": f"failed {ago(row.finished_at, now_ms)}",
    }.get(row.state, "")
    attempts = f"{row.attempts_made}/{row.attempts}"
    enqueued = ago(row.enqueued_at, now_ms)
    return (f"{row.queue}:{row.id}", row.type, str(row.state), row.priority, attempts, enqueued, when)


def job_text(row: JobRow) -> str:
    """All of a job, a line for each thing there is to say."""
    facts: list[tuple[str, Any]] = [
        ("id", f"{row.queue}:{row.id}"),
        ("type", row.type),
        ("state", row.state),
        ("payload", _json(row.payload)),
        ("priority", row.priority or None),
        ("attempts", f"{row.attempts_made} of {row.attempts}"),
        ("enqueued", f"{clock(row.enqueued_at)} ({ago(row.enqueued_at)})"),
        ("due", row.run_at and f"{clock(row.run_at)} ({ago(row.run_at)})"),
        ("lease ends", row.lease_until and ago(row.lease_until)),
        ("started", row.started_at and clock(row.started_at)),
        ("finished", row.finished_at and f"{clock(row.finished_at)} ({ago(row.finished_at)})"),
        ("ran", None if row.duration is None else span(row.duration / 1000)),
        ("worker", row.worker),
        ("timeout", row.timeout and span(row.timeout / 1000)),
        ("backoff", row.backoff and _json(msgspec.json.encode(row.backoff))),
        ("key", row.key),
        ("metadata", row.metadata and _json(msgspec.json.encode(row.metadata))),
        ("unserved", row.unserved and f"{row.unserved} times: no worker that claimed it knew its type"),
        ("progress", _json(row.progress)),
        ("result", _json(row.result)),
        *((f"{column}: unreadable:", repr(raw)) for column, raw in row.unreadable.items()),
    ]
    lines = [f"{name:<10} {value}" for name, value in facts if value not in (None, 0, "")]
    return "\n".join([*lines, *map(_error, row.errors)])


def _json(raw: msgspec.Raw | bytes | None) -> str | None:
    return None if raw is None else bytes(raw).decode(errors="replace")


def _error(error: AttemptError) -> str:
    head = f"\nattempt {error.attempt} failed at {clock(error.at)}: {error.type}: {error.message}"
    return f"{head}\n{error.traceback.rstrip()}" if error.traceback else head


def log_line(line: LogLine) -> str:
    """One line of a job's log."""
    return f"{clock(line.at)}  {line.message}"


WORKERS_HEAD = ("WORKER", "HOST", "PID", "QUEUES", "RUNNING", "OF", "STARTED", "SEEN", "VERSION")


def worker_line(row: WorkerRow) -> tuple[Any, ...]:
    """A worker's line under WORKERS_HEAD."""
    queues = ",".join(row.queues)
    times = (ago(row.started), ago(row.seen))
    return (row.id, row.host, row.pid, queues, row.running, row.concurrency, *times, row.version)


@contextmanager
def progress(words: str, total: int, *, quiet: bool) -> Generator[Callable[[int], None], None, None]:
    """A bar on stderr for long work, fed with how much is done. Without rich, or with no terminal: nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield lambda done: print(f"\r{words}: {done} of {total}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(words, total=total)
        yield lambda done: bar.update(task, completed=done)
