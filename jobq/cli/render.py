"""Output of the commands: text for people, or one JSON document per line for programs.

All output goes through ``say``, ``say_json`` and ``complain``, which make it printable, because most of it was chosen
by clients. A test refuses a ``print`` anywhere else in the command line.
"""

from __future__ import annotations

import contextlib
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from jobq.engine.model.outcome import EXPIRED
from jobq.engine.model.views import JobBrief, JobRow, Stats, WorkerRow
from jobq.printable import printable, printable_json, printable_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from jobq.engine.model.history import TypeNumbers
    from jobq.engine.model.job import AttemptError, LogLine
    from jobq.engine.model.types import TypeRow
    from jobq.engine.model.why import Why


COMES_BACK = "; workers or servers that declare it write it again within 30 s: stop them, or deploy without it"


def say(*lines: str) -> None:
    """Write lines to stdout. A newline inside a line is shown as ``\\n``, so that a value cannot forge a line."""
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))
    sys.stdout.flush()


def say_json(value: Any) -> None:
    """Write one JSON document on one line. A job's id includes its queue."""
    if isinstance(value, JobRow):
        value = msgspec.structs.replace(value, id=f"{value.queue}:{value.id}")
    sys.stdout.write(f"{_one_line(msgspec.json.encode(value))}\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Write one line to stderr. Its reader may be gone."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"jobq: {printable(' '.join(text.split()))}\n")
        sys.stderr.flush()


def _one_line(document: bytes) -> str:
    """JSON without the newlines that a producer may have written between its values."""
    try:
        return printable_json(msgspec.json.format(document, indent=-1).decode())
    except (msgspec.DecodeError, UnicodeError):
        return printable(document.decode(errors="replace"))  # The stored text is damaged. Show it anyway.


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """The lines of a table: its head, then the rows. Numbers are aligned to the right, text to the left."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = (
            word.rjust(width) if to_right else word.ljust(width)
            for word, width, to_right in zip(row, widths, right, strict=True)
        )
        return "  ".join(cells).rstrip()

    return [line(row) for row in [head, *cells]]


def number_of(count: int, noun: str) -> str:
    """ "1 job", "2 jobs"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def ago(ms: int | None, now_ms: float | None = None) -> str:
    """A time in the past or the future: "3s ago", "in 5m"."""
    if ms is None:
        return "-"
    delta = ((time.time() * 1000 if now_ms is None else now_ms) - ms) / 1000
    return f"{span(delta)} ago" if delta >= 0 else f"in {span(-delta)}"


def span(seconds: float) -> str:
    """Seconds in the largest unit that fits: 0.25 -> "250ms", 90 -> "1.5m"."""
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
        return f"{ms} ms"  # A damaged row may contain any number.


STATS_HEAD = (
    "QUEUE",
    "WAITING",
    "DELAYED",
    "HELD",
    "ACTIVE",
    "COMPLETED",
    "FAILED",
    "WORKERS",
    "WAIT P99",
    "RUN P99",
    "",
)


def stats_row(stats: Stats) -> tuple[Any, ...]:
    """A queue's line under STATS_HEAD."""
    counts = (stats.waiting, stats.delayed, stats.held, stats.active, stats.completed, stats.failed, stats.workers)
    latencies = (span(latency.p99 / 1000) if latency else "-" for latency in (stats.wait, stats.run))
    return (stats.queue, *counts, *latencies, obstacle(stats))


def obstacle(stats: Stats) -> str:
    """What keeps the workers from claiming: the queue is paused, or closed for a time. And its partitions."""
    closed = f"closed, opens {ago(stats.closed_until)}" if stats.closed_until else ""
    parts = number_of(stats.partitions, "partition") if stats.partitions > 1 else ""
    return ", ".join(word for word in ("paused" if stats.paused else "", closed, parts) if word)


NUMBERS_HEAD = (
    "QUEUE", "TYPE", "COMPLETED", "FAILED", "RETRIED", "LOST", "WAIT P50", "WAIT P99", "RUN P50", "RUN P99",
)  # fmt: skip


def numbers_row(queue: str, row: TypeNumbers) -> tuple[Any, ...]:
    """A type's line under NUMBERS_HEAD."""
    times = [
        span(time / 1000) for latency in (row.wait, row.run) for time in ((latency.p50, latency.p99) if latency else ())
    ]
    times = times or ["-"] * 4
    return (queue, row.type or "(all)", row.completed, row.failed, row.retried, row.lost, *times)


QUEUES_HEAD = ("QUEUE", "WAITING", "DELAYED", "HELD", "ACTIVE", "COMPLETED", "FAILED", "WORKERS", "")


def queue_row(stats: Stats) -> tuple[Any, ...]:
    """A queue's line under QUEUES_HEAD."""
    return (*list(queue_facts(stats).values())[:-1], obstacle(stats))


def queue_facts(stats: Stats) -> dict[str, Any]:
    """A queue's document of ``jobq queues --json``. It counts living workers only."""
    names = ("queue", "waiting", "delayed", "held", "active", "completed", "failed", "workers", "paused")
    return {name: getattr(stats, name) for name in names}


TYPES_HEAD = ("QUEUE", "TYPE", "PUBLISHED BY", "OPTIONS", "")


def type_row(queue: str, row: TypeRow) -> tuple[Any, ...]:
    """A type's line under TYPES_HEAD. Options at their defaults are left out."""
    options = msgspec.json.encode(row.options).decode()
    others = f"differs from {', '.join(one.publisher for one in row.differing)}" if row.differing else ""
    return (queue, row.type, row.publisher, options, others)


JOBS_HEAD = ("ID", "TYPE", "STATE", "PRIORITY", "ATTEMPTS", "ENQUEUED", "WHEN")


def job_line(row: JobRow | JobBrief, now_ms: float) -> tuple[Any, ...]:
    """A job's line under JOBS_HEAD."""
    when = {
        "delayed": f"due {ago(row.run_at, now_ms)}",
        "active": f"lease ends {ago(row.lease_until, now_ms)}",
        "completed": f"done {ago(row.finished_at, now_ms)}",
        "failed": f"failed {ago(row.finished_at, now_ms)}",
    }.get(row.state, "")
    attempts = f"{row.attempts_made}/{'no limit' if row.attempts is None else row.attempts}"
    enqueued = ago(row.enqueued_at, now_ms)
    return (f"{row.queue}:{row.id}", row.type, str(row.state), row.priority, attempts, enqueued, when)


def job_lines(row: JobRow, why: Why | None = None) -> list[str]:
    """A job in full: one fact per line, then its errors. ``why``: why it has not started."""
    facts: list[tuple[str, Any]] = [
        ("id", f"{row.queue}:{row.id}"),
        ("type", row.type),
        ("state", row.state),
        ("why", why and why.reasons[0].detail),
        ("payload", _json(row.payload)),
        ("priority", row.priority or None),
        ("attempts", f"{row.attempts_made} of {'any number' if row.attempts is None else row.attempts}"),
        ("snoozes", row.snoozes or None),
        ("rate limited", row.rate_limited or None),
        ("enqueued", f"{clock(row.enqueued_at)} ({ago(row.enqueued_at)})"),
        ("due", row.run_at and f"{clock(row.run_at)} ({ago(row.run_at)})"),
        ("lease ends", row.lease_until and ago(row.lease_until)),
        ("started", row.started_at and clock(row.started_at)),
        ("finished", row.finished_at and f"{clock(row.finished_at)} ({ago(row.finished_at)})"),
        ("ran", None if row.duration is None else span(row.duration / 1000)),
        ("worker", row.worker),
        ("timeout", row.timeout and span(row.timeout / 1000)),
        ("rerun of", row.rerun_of and f"{row.queue}:{row.rerun_of}"),
        ("reruns", " ".join(f"{row.queue}:{job_id}" for job_id in row.reruns)),
        ("expires", row.expires_at and f"{clock(row.expires_at)} ({ago(row.expires_at)})"),
        ("deadline", row.deadline_at and f"{clock(row.deadline_at)} ({ago(row.deadline_at)})"),
        ("backoff", row.backoff and _json(msgspec.json.encode(row.backoff))),
        ("key", row.key),
        ("partition by", row.partition_by),
        ("metadata", row.metadata and _json(msgspec.json.encode(row.metadata))),
        ("handed back", row.unserved and f"{row.unserved} times: a worker could not read its payload, or run its type"),
        ("progress", _json(row.progress)),
        ("result", _json(row.result)),
        *((f"{column}: unreadable:", repr(raw)) for column, raw in row.unreadable.items()),
    ]
    lines = [f"{name:<10} {value}" for name, value in facts if value not in (None, 0, "")]
    return lines + [line for error in row.errors for line in _error(error)]


def _json(raw: msgspec.Raw | bytes | None) -> str | None:
    return None if raw is None else _one_line(bytes(raw))


def _error(error: AttemptError) -> list[str]:
    # A kill ends a job without using an attempt, and so does a time that is over.
    ended = "expired" if error.type == EXPIRED else "killed"
    what = f"attempt {error.attempt} failed" if error.attempt else ended
    message, *more = printable_lines(f"{error.type}: {error.message}", "  ")
    trace = printable_lines(error.traceback, "  ") if error.traceback else more
    return ["", f"{what} at {clock(error.at)}: {message.strip()}", *trace]


def log_lines(line: LogLine) -> list[str]:
    """An entry of a job's log. Lines after the first are indented."""
    start = f"{clock(line.at)}  "
    first, *more = printable_lines(line.message, " " * len(start))
    return [start + first[len(start) :], *more]


WORKERS_HEAD = ("WORKER", "ALIVE", "HOST", "PID", "QUEUES", "RUNNING", "OF", "STARTED", "SEEN", "VERSION", "LAST CLAIM")


def worker_line(row: WorkerRow) -> tuple[Any, ...]:
    """A worker's line under WORKERS_HEAD."""
    queues = ",".join(row.queues)
    times = (ago(row.started), ago(row.seen))
    return (
        row.id,
        "yes" if row.alive else "no",
        row.host,
        row.pid,
        queues,
        row.running,
        row.concurrency,
        *times,
        row.version,
        idle(row),
    )


def idle(row: WorkerRow) -> str:
    """Why the worker's last claim brought nothing: "queue paused", "only delayed, in 5m". "-" if it brought jobs."""
    when = f", {ago(row.idle_until)}" if row.idle_until else ""
    return f"{row.idle.replace('_', ' ')}{when}" if row.idle else "-"


@contextmanager
def progress(text: str, total: int, *, quiet: bool) -> Generator[Callable[[int], None], None, None]:
    """A progress bar on stderr. Without rich it is a counter, and without a terminal nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:

        def count(done: int) -> None:
            sys.stderr.write(f"\r{text}: {done} of {total}")
            sys.stderr.flush()

        yield count
        sys.stderr.write("\n")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done: bar.update(task, completed=done)
