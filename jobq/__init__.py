"""jobq: background jobs for Python services, over Redis or Valkey."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobq.engine.model.backoff import Backoff
from jobq.engine.model.breaker import Breaker, BreakerRow
from jobq.engine.model.event import QueueEvent
from jobq.engine.model.groups import Group, GroupRow
from jobq.engine.model.history import Performance, TypeNumbers
from jobq.engine.model.ids import new_id
from jobq.engine.model.job import (
    Accepted,
    AttemptError,
    LogLine,
    NewJob,
    Options,
    PreviousRun,
    Scheduled,
    State,
    StoredBackoff,
    StoredUnique,
    UniqueBy,
)
from jobq.engine.model.limits import Band, Concurrency, LimitKeyRow, LimitRow, Rate, Rule
from jobq.engine.model.scale import Scale
from jobq.engine.model.types import TypeRow, Variant
from jobq.engine.model.unique import Unique, debounce, latest, singleton, throttle
from jobq.engine.model.views import BriefPage, JobBrief, JobRow, Latency, Minute, Page, Stats, WorkerRow
from jobq.engine.model.webhook import Webhook, WebhookDelivery
from jobq.engine.model.why import Reason, ReasonCode, Why
from jobq.engine.queue.checking import CheckReport, Misfit
from jobq.engine.queue.partitions import PartitionRow
from jobq.engine.queue.queue import Queue
from jobq.engine.queue.sync import SyncQueue
from jobq.engine.schedule.definition import Definition
from jobq.engine.schedule.state import Paused
from jobq.engine.schedule.views import Preview, ScheduleRow, SlotRow
from jobq.engine.store import Connection
from jobq.engine.task.context import Context, Depends, inject
from jobq.engine.task.events import Event
from jobq.engine.task.handle import Job
from jobq.engine.task.task import Bound, Task
from jobq.engine.worker.worker import Worker
from jobq.errors import (
    DeadlineExceeded,
    Discard,
    DurabilityRefused,
    DurabilityUnavailable,
    GroupFull,
    IdempotencyConflict,
    InvalidJob,
    InvalidPayload,
    InvalidQuery,
    InvalidResult,
    JobExpired,
    JobFailed,
    JobIdTaken,
    JobKilled,
    JobNotFound,
    JobqError,
    KeyTaken,
    LeaseExpired,
    NoServer,
    OutcomeRefused,
    PayloadTooLarge,
    ProcessCrashed,
    QueueInUse,
    RateLimited,
    RemoteError,
    ResultTimeout,
    Retry,
    ScheduleNotFound,
    SettingsError,
    Snooze,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    TargetError,
    Timeout,
    TooManyRateLimits,
    TooManySnoozes,
    TooManyWaiting,
    UnknownBreaker,
    UnknownQueue,
    UnknownRule,
    UnknownType,
    UnreadableResult,
    Unserved,
    WebhookNotFound,
    WrongState,
)
from jobq.settings import Settings

if TYPE_CHECKING:
    from jobq.http import create_app

__all__ = [
    "Accepted",
    "AttemptError",
    "Backoff",
    "Band",
    "Bound",
    "Breaker",
    "BreakerRow",
    "BriefPage",
    "CheckReport",
    "Concurrency",
    "Connection",
    "Context",
    "DeadlineExceeded",
    "Definition",
    "Depends",
    "Discard",
    "DurabilityRefused",
    "DurabilityUnavailable",
    "Event",
    "Group",
    "GroupFull",
    "GroupRow",
    "IdempotencyConflict",
    "InvalidJob",
    "InvalidPayload",
    "InvalidQuery",
    "InvalidResult",
    "Job",
    "JobBrief",
    "JobExpired",
    "JobFailed",
    "JobIdTaken",
    "JobKilled",
    "JobNotFound",
    "JobRow",
    "JobqError",
    "KeyTaken",
    "Latency",
    "LeaseExpired",
    "LimitKeyRow",
    "LimitRow",
    "LogLine",
    "Minute",
    "Misfit",
    "NewJob",
    "NoServer",
    "Options",
    "OutcomeRefused",
    "Page",
    "PartitionRow",
    "Paused",
    "PayloadTooLarge",
    "Performance",
    "Preview",
    "PreviousRun",
    "ProcessCrashed",
    "Queue",
    "QueueEvent",
    "QueueInUse",
    "Rate",
    "RateLimited",
    "Reason",
    "ReasonCode",
    "RemoteError",
    "ResultTimeout",
    "Retry",
    "Rule",
    "Scale",
    "ScheduleNotFound",
    "ScheduleRow",
    "Scheduled",
    "Settings",
    "SettingsError",
    "SlotRow",
    "Snooze",
    "State",
    "Stats",
    "StoreError",
    "StoreFull",
    "StoreRefused",
    "StoreUnavailable",
    "StoredBackoff",
    "StoredUnique",
    "SyncQueue",
    "TargetError",
    "Task",
    "Timeout",
    "TooManyRateLimits",
    "TooManySnoozes",
    "TooManyWaiting",
    "TypeNumbers",
    "TypeRow",
    "Unique",
    "UniqueBy",
    "UnknownBreaker",
    "UnknownQueue",
    "UnknownRule",
    "UnknownType",
    "UnreadableResult",
    "Unserved",
    "Variant",
    "Webhook",
    "WebhookDelivery",
    "WebhookNotFound",
    "Why",
    "Worker",
    "WorkerRow",
    "WrongState",
    "create_app",
    "debounce",
    "inject",
    "latest",
    "new_id",
    "singleton",
    "throttle",
]


def __getattr__(name: str) -> Any:
    # Importing aiohttp takes 100 ms, and a worker does not need it.
    if name == "create_app":
        from jobq.http import create_app

        return create_app
    raise AttributeError(f"module 'jobq' has no attribute {name!r}")
