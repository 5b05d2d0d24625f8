"""Jobs, workers and queues as readers get them. Times are unix ms, durations are ms."""

from __future__ import annotations

from typing import Any

import msgspec

from jobq.engine.model.job import (  # noqa: TC001 - msgspec reads the annotations
    AttemptError,
    Scheduled,
    State,
    StoredBackoff,
)
from jobq.engine.model.readable import readable


class JobRow(msgspec.Struct, frozen=True):
    """Everything that is stored of one job.

    ``attempts_made`` counts the charged runs, including the one that is running. ``snoozes``: those that were put off.
    ``rate_limited``: those that a service refused for a time.
    ``run_at``: when a delayed job is due. ``lease_until``: when an active job's lease runs out.
    ``started_at``: when the run that ended it started, or when the running one was claimed.
    ``schedule``: the schedule that enqueued it, and the slot.
    ``expires_at``: by when it must have started. ``deadline_at``: by when it must have ended. While a job
    is unfinished, each is None once it does not count any more, such as after a retry by hand.
    ``rerun_of``: the job that it runs again. ``reruns``: the last jobs that run it again, newest first.
    ``version``: that of the payload. ``trace``: the trace context of its producer. ``partition_by``: what decided in
    which partition it is.
    ``unreadable``: stored values that cannot be read, cut, by the name of their column. Their fields have default
    values.
    """

    id: str
    queue: str
    type: str
    state: State
    payload: msgspec.Raw
    priority: int
    attempts: int | None
    attempts_made: int
    enqueued_at: int
    delay: int = 0
    backoff: StoredBackoff | None = None
    timeout: int | None = None
    lifo: bool = False
    key: str | None = None
    retention: int | None = None
    metadata: dict[str, Any] | None = None
    run_at: int | None = None
    lease_until: int | None = None
    worker: str | None = None
    started_at: int | None = None
    finished_at: int | None = None
    duration: int | None = None
    progress: msgspec.Raw | None = None
    result: msgspec.Raw | None = None
    errors: list[AttemptError] = []
    snoozes: int = 0
    rate_limited: int = 0
    unserved: int = 0
    limits: list[str] = []
    group: str | None = None
    slots: int = 1
    schedule: Scheduled | None = None
    costs: dict[str, int] = {}
    expires_at: int | None = None
    deadline_at: int | None = None
    rerun_of: str | None = None
    reruns: list[str] = []
    version: int = 1
    trace: dict[str, str] | None = None
    partition_by: str | None = None
    unreadable: dict[str, str] = {}

    __repr__ = readable


class JobBrief(msgspec.Struct, frozen=True):
    """A job as a list shows it, without fields that may be large. ``error``: why its last attempt failed."""

    id: str
    queue: str
    type: str
    state: State
    priority: int
    attempts: int | None
    attempts_made: int
    enqueued_at: int
    run_at: int | None = None
    lease_until: int | None = None
    worker: str | None = None
    started_at: int | None = None
    finished_at: int | None = None
    duration: int | None = None
    error: AttemptError | None = None
    snoozes: int = 0
    rate_limited: int = 0
    unserved: int = 0
    group: str | None = None
    unreadable: dict[str, str] = {}


class Page(msgspec.Struct, frozen=True):
    """A page of jobs. ``cursor`` leads to the next one. It is None at the end.

    A page of large jobs has fewer jobs than were asked for.
    """

    jobs: list[JobRow]
    cursor: str | None = None


class BriefPage(msgspec.Struct, frozen=True):
    """A page of briefs. ``cursor`` leads to the next one. It is None at the end."""

    jobs: list[JobBrief]
    cursor: str | None = None


class WorkerRow(msgspec.Struct, frozen=True):
    """A worker process as its last heartbeat described it. ``seen``: the time of that heartbeat.

    ``reserve``: how many of its slots are only for urgent jobs: ``priority<0=20``. ``elsewhere``: slots that run jobs
    of other queues.
    ``idle``: why its last claim from the queue brought nothing, a ``ReasonCode``; '' if it brought jobs.
    ``idle_until``: when that ends, if it is known.
    ``alive``: its last heartbeat is less than 30 s old. A worker that was killed stays listed for a day.
    ``unreadable``: what its heartbeat wrote, cut, if this program cannot read it.
    """

    id: str
    host: str
    pid: int
    queues: list[str]
    types: list[str]
    concurrency: int
    running: int
    started: int
    seen: int
    version: str = ""
    reserve: str = ""
    elsewhere: int = 0
    idle: str = ""
    idle_until: int | None = None
    alive: bool = False
    unreadable: str | None = None


class Minute(msgspec.Struct, frozen=True):
    """Counts of one minute. ``at``: its start."""

    at: int
    completed: int = 0
    failed: int = 0
    retried: int = 0


class Latency(msgspec.Struct, frozen=True):
    """Quantiles and mean in ms of the completed runs of a time. The edges of buckets are powers of two."""

    p50: float
    p90: float
    p99: float
    count: int
    mean: float = 0.0


class Stats(msgspec.Struct, frozen=True):
    """Numbers of a queue. Counts are the sizes of the sets. Totals count since the queue began.

    ``oldest_waiting_ms``: how long the job that has waited longest has been able to run. A delay does not count, and a
    job that was put back (a retry, a hand-back) has waited since then. ``oldest_held_ms``: the same for held jobs.

    ``wait`` and ``run``: latencies of the last hour.

    ``dropped_total``, ``replaced_oldest_total``, ``killed_running_total``: jobs that ended because of a limit with this
    action. They count as failed too.

    ``aging_ms``: how much waiting a step of priority is worth; 0: priorities are absolute.
    ``partitions``: over how many the queue is spread.
    ``unreadable``: stored counts that are not numbers, by their names.
    """

    queue: str
    waiting: int
    delayed: int
    active: int
    completed: int
    failed: int
    blocked: int
    held: int
    paused: bool
    closed_until: int | None
    workers: int
    completed_total: int
    failed_total: int
    retried_total: int
    snoozed_total: int
    rate_limited_total: int
    unserved_total: int
    duplicates_total: int
    dropped_total: int = 0
    replaced_oldest_total: int = 0
    killed_running_total: int = 0
    expired_total: int = 0
    oldest_waiting_ms: int | None = None
    oldest_held_ms: int | None = None
    next_due_ms: int | None = None
    wait: Latency | None = None
    run: Latency | None = None
    minutes: list[Minute] = []
    aging_ms: int = 0
    partitions: int = 1
    unreadable: dict[str, str] = {}
