"""What REST answers. Times are unix ms, durations ms. The OpenAPI document is made from these structs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from jobq.engine.model.job import AttemptError, Done, LogLine, State  # noqa: TC001 - msgspec reads the annotations
from jobq.engine.model.types import TypeRow  # noqa: TC001 - msgspec reads the annotation
from jobq.engine.model.views import JobRow, WorkerRow  # noqa: TC001 - msgspec reads the annotations

if TYPE_CHECKING:
    from jobq.engine.model.views import JobBrief as Brief


class Session(msgspec.Struct, frozen=True):
    """The caller and its scope. ``login``: whether this server requires API keys."""

    key: str
    scope: str
    login: bool


class Enqueued(msgspec.Struct, frozen=True):
    """The job's id. ``duplicate``: it belongs to an earlier job that holds the key, which was in this ``state``.

    ``done``: what the request did with that job. Both are left out for a new job, unless it was over a limit that has
    an action: it was "dropped" and is in failed, or another job ended for it ("replaced_oldest", "killed_running").
    """

    id: str
    duplicate: bool
    state: State | UnsetType = UNSET
    done: Done | UnsetType = UNSET


class BulkAnswer(msgspec.Struct, frozen=True):
    """The answer for one job of an array: ``id`` and ``duplicate`` if it was accepted, else a problem."""

    id: str | UnsetType = UNSET
    duplicate: bool | UnsetType = UNSET
    state: State | UnsetType = UNSET
    done: Done | UnsetType = UNSET
    type: str | UnsetType = UNSET
    title: str | UnsetType = UNSET
    status: int | UnsetType = UNSET
    detail: str | UnsetType = UNSET


class Moved(msgspec.Struct, frozen=True):
    """The state that the job is in now."""

    id: str
    state: State


class Prioritised(msgspec.Struct, frozen=True):
    """The job's new priority."""

    id: str
    priority: int


class Count(msgspec.Struct, frozen=True):
    """The number of jobs that were moved."""

    count: int


class Paused(msgspec.Struct, frozen=True):
    """Whether the queue is paused."""

    queue: str
    paused: bool


class JobBrief(msgspec.Struct, frozen=True):
    """A job as the list shows it. GET /jobs/{id} shows more."""

    id: str
    type: str
    state: State
    priority: int
    attempts: int | None
    attempts_made: int
    enqueued_at: int
    run_at: int | None
    started_at: int | None
    finished_at: int | None
    duration: int | None
    worker: str | None
    error: str | None
    snoozes: int
    rate_limited: int
    group: str | None

    @classmethod
    def of(cls, row: Brief) -> JobBrief:
        return cls(
            f"{row.queue}:{row.id}", row.type, row.state, row.priority, row.attempts, row.attempts_made,
            row.enqueued_at, row.run_at, row.started_at, row.finished_at, row.duration, row.worker,
            one_line(row.error), row.snoozes, row.rate_limited, row.group,
        )  # fmt: skip


class Jobs(msgspec.Struct, frozen=True):
    """A page; ``cursor`` leads to the next one, null at the end."""

    jobs: list[JobBrief]
    cursor: str | None


class FailedJob(msgspec.Struct, frozen=True):
    """A failed job and its errors. Tracebacks need the scope "write"."""

    id: str
    type: str
    error: str | None
    attempts: int | None
    attempts_made: int
    traceback: str | None
    failed_at: int | None
    errors: list[AttemptError]
    payload: msgspec.Raw

    @classmethod
    def of(cls, row: JobRow, *, tracebacks: bool) -> FailedJob:
        errors = row.errors if tracebacks else without_tracebacks(row.errors)
        traceback = errors[-1].traceback if errors else None
        return cls(
            f"{row.queue}:{row.id}", row.type, last_error(row), row.attempts, row.attempts_made, traceback,
            row.finished_at, errors, row.payload,
        )  # fmt: skip


class FailedJobs(msgspec.Struct, frozen=True):
    """A page; ``cursor`` leads to the next one, null at the end."""

    jobs: list[FailedJob]
    cursor: str | None


class Logs(msgspec.Struct, frozen=True):
    """The log lines of the job's handler, oldest first."""

    logs: list[LogLine]


class Workers(msgspec.Struct, frozen=True):
    """The workers of the queue, alive or not."""

    workers: list[WorkerRow]


class Types(msgspec.Struct, frozen=True):
    """The types of the queue that workers and servers publish."""

    types: list[TypeRow]


class QueueBrief(msgspec.Struct, frozen=True):
    """A queue that this server serves. ``types``: the types that it accepts; an empty list means all."""

    name: str
    default: bool
    paused: bool
    types: list[str]
    waiting: int
    delayed: int
    active: int
    completed: int
    failed: int


class Queues(msgspec.Struct, frozen=True):
    """The queues that this server serves and that the API key may read."""

    queues: list[QueueBrief]


class Health(msgspec.Struct, frozen=True):
    """``ok`` is always true. Anything wrong is answered with a problem."""

    ok: bool = True


class Ready(msgspec.Struct, frozen=True):
    """``ok`` is always true. ``failing``: the server's own duties that have failed within the last minutes, such as
    "webhooks". The server's log has the errors. Each is tried again, and the routes are served meanwhile."""

    failing: list[str]
    ok: bool = True


class Problem(msgspec.Struct, frozen=True):
    """RFC 9457. ``type`` is stable; some types carry more fields. ``help``: a path on this server, which describes the
    problem."""

    type: str
    title: str
    status: int
    detail: str
    help: str | UnsetType = UNSET


def last_error(row: JobRow) -> str | None:
    """The last attempt's error as one line."""
    return one_line(row.errors[-1] if row.errors else None)


def one_line(error: AttemptError | None) -> str | None:
    """An error without its traceback."""
    return f"{error.type}: {error.message}" if error else None


def without_tracebacks(errors: list[AttemptError]) -> list[AttemptError]:
    """The errors without tracebacks, for callers that must not see the inside of the workers."""
    return [msgspec.structs.replace(error, traceback=None) for error in errors]


def public(row: JobRow, *, tracebacks: bool) -> JobRow:
    """The row with the id that REST uses. Tracebacks are removed unless the caller may see them."""
    errors = row.errors if tracebacks else without_tracebacks(row.errors)
    return msgspec.structs.replace(
        row,
        id=f"{row.queue}:{row.id}",
        errors=errors,
        rerun_of=row.rerun_of and f"{row.queue}:{row.rerun_of}",
        reruns=[f"{row.queue}:{job_id}" for job_id in row.reruns],
    )
