"""jobq: background jobs for Python services, over Redis or Valkey."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobq.engine.model.job import (
    Accepted,
    AttemptError,
    Backoff,
    BriefPage,
    JobBrief,
    JobRow,
    LogLine,
    NewJob,
    Options,
    Page,
    State,
    Stats,
    WorkerRow,
)
from jobq.engine.queue.handle import Job
from jobq.engine.queue.queue import Queue
from jobq.engine.store import Connection
from jobq.engine.task.context import Context, Depends, inject
from jobq.engine.task.task import Task
from jobq.engine.worker.worker import Worker
from jobq.errors import (
    Discard,
    JobFailed,
    JobKilled,
    JobNotFound,
    JobqError,
    RemoteError,
    ResultTimeout,
    Retry,
    StoreError,
)
from jobq.settings import Settings

if TYPE_CHECKING:
    from jobq.http import create_app

__all__ = [
    "Accepted",
    "AttemptError",
    "Backoff",
    "BriefPage",
    "Connection",
    "Context",
    "Depends",
    "Discard",
    "Job",
    "JobBrief",
    "JobFailed",
    "JobKilled",
    "JobNotFound",
    "JobRow",
    "JobqError",
    "LogLine",
    "NewJob",
    "Options",
    "Page",
    "Queue",
    "RemoteError",
    "ResultTimeout",
    "Retry",
    "Settings",
    "State",
    "Stats",
    "StoreError",
    "Task",
    "Worker",
    "WorkerRow",
    "create_app",
    "inject",
]


def __getattr__(name: str) -> Any:
    # aiohttp takes 100 ms to import; a worker does not need it
    if name == "create_app":
        from jobq.http import create_app

        return create_app
    raise AttributeError(f"module 'jobq' has no attribute {name!r}")
