"""What clients send to REST: bodies and queries. Times are unix ms, durations ms. The OpenAPI document is made of them.

Requests refuse unknown fields by name. ``UNSET`` means that a field is not given, so the task's default applies;
``null`` overrides that default.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from jobq.engine.model.job import (
    ATTEMPTS_MAX,
    DELAY_MAX_MS,
    DELAYS_MAX,
    NAME_MAX,
    PRIORITY_MAX,
    PRIORITY_MIN,
    SLOTS_MAX,
    VERSION_MAX,
    Durability,
    State,
)
from jobq.engine.model.limits import KEYS_MAX, VALUE_MAX
from jobq.http.unique import Key, Unique  # noqa: TC001 - msgspec reads the annotations

MAX_PAGE = 500
MAX_MANY = 10_000
MAX_WAIT = 60_000

_Payload = Annotated[
    msgspec.Raw, Meta(description="Any JSON, stored byte for byte.", extra_json_schema={"default": {}})
]
_Metadata = Annotated[
    msgspec.Raw,
    Meta(
        description="An object for your own use, stored with the job.",
        extra_json_schema={"anyOf": [{"type": "object"}, {"type": "null"}]},
    ),
]
_Ms = Annotated[int, Meta(ge=0, le=DELAY_MAX_MS)]
_Delay = Annotated[int, Meta(ge=0, le=DELAY_MAX_MS, description="ms from now until it may run.")]
_Timeout = Annotated[int, Meta(ge=1, le=DELAY_MAX_MS, description="ms that one run may take.")]
_Retention = Annotated[int, Meta(ge=0, le=DELAY_MAX_MS, description="Longest time in ms to keep the finished job.")]
_RunAt = Annotated[
    datetime,
    Meta(tz=True, description="Not before this time with its offset, in place of delay: 2030-01-31T08:00:00+01:00."),
]
_Expires = Annotated[
    int, Meta(ge=1, le=DELAY_MAX_MS, description="ms from now until it must start. Otherwise it fails as expired.")
]
_Deadline = Annotated[
    int,
    Meta(ge=1, le=DELAY_MAX_MS, description="ms from now until it must end: then a run is cancelled."),
]
_Durability = Annotated[
    Durability,
    Meta(
        description="What must be confirmed before the answer: only the write, an fsync, or a copy on a replica. The"
        " default is the queue's setting."
    ),
]
_Spread = Annotated[
    int,
    Meta(
        ge=0,
        le=DELAY_MAX_MS,
        description="ms over which the due times of the jobs in an array are spread evenly, in order.",
    ),
]
_At = Annotated[datetime, Meta(tz=True, description="The same as a time with its offset.")]
_Id = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        pattern=r"^[0-9A-Za-z._~-]+$",
        description="An id of your own. The same job sent again with it is enqueued once; another job gets a 409.",
    ),
]
_Attempts = Annotated[int, Meta(ge=1, le=ATTEMPTS_MAX, description="Total number of runs; null: until it succeeds.")]
_Lifo = Annotated[bool, Meta(description="Run before the other jobs of the same priority instead of after them.")]
_KeyTtl = Annotated[int, Meta(ge=1, le=DELAY_MAX_MS, description="ms that the key is held.")]
_Limits = Annotated[
    tuple[Annotated[str, Meta(min_length=1, max_length=400)], ...],
    Meta(max_length=KEYS_MAX, description="Limit keys: `rule`, or `rule:value`. They replace those of the task."),
]
_Costs = Annotated[
    dict[str, int],
    Meta(max_length=8, description='What it costs, by unit: `{"tokens": 500}`, for rates that count this unit.'),
]
_Group = Annotated[
    str, Meta(min_length=1, max_length=VALUE_MAX, description="The group whose turns the job takes, such as a tenant.")
]
_PartitionBy = Annotated[
    str,
    Meta(
        min_length=1, max_length=VALUE_MAX,
        description="Jobs with the same text are in one partition of the queue, and keep their order there.",
    ),
]  # fmt: skip
_Slots = Annotated[
    int, Meta(ge=1, le=SLOTS_MAX, description="How many jobs it counts as: for its worker and under its limits.")
]
_Version = Annotated[
    int, Meta(ge=1, le=VERSION_MAX, description="The version of the payload, if it is older than the task's.")
]
_Age = Annotated[int, Meta(ge=0, le=DELAY_MAX_MS, description="Only jobs older than this, in ms.")]
_Cursor = Annotated[str, Meta(max_length=1000, description="The cursor of the previous page.")]
PageSize = Annotated[int, Meta(ge=1, le=MAX_PAGE)]
_Many = Annotated[int, Meta(ge=1, le=MAX_MANY)]
IDEMPOTENCY_KEY = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]([ -~]*[!-~])?$"}
"""Printable ASCII, which every client, proxy and server reads in the same way in a header."""
Priority = Annotated[
    int, Meta(ge=PRIORITY_MIN, le=PRIORITY_MAX, description="A lower number runs first; 0 is the default.")
]


class In(msgspec.Struct, forbid_unknown_fields=True):
    """Base of all structs that clients send."""


class Backoff(In):
    """The time in ms from a failed attempt to the next one: ``delay``, or ``delay * 2**(attempt - 1)`` up to ``max``.
    ``delays`` replaces both: its entries are used in order, and the last one for all further attempts."""

    type: Literal["fixed", "exponential"] = "exponential"
    delay: _Ms = 1000
    max: _Ms = 3_600_000
    jitter: Annotated[float, Meta(ge=0, le=1, description="The share of the delay that is random.")] = 0.25
    delays: Annotated[tuple[_Ms, ...], Meta(max_length=DELAYS_MAX)] = ()


class Enqueue(In):
    """A job to enqueue. A field that is not given has the task's default, as the server or a worker publishes it."""

    type: Annotated[str, Meta(min_length=1, max_length=NAME_MAX, description="The task's name.")]
    payload: _Payload | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    delay: _Delay | UnsetType = UNSET
    attempts: _Attempts | UnsetType | None = UNSET
    backoff: Backoff | UnsetType | None = UNSET
    timeout: _Timeout | UnsetType | None = UNSET
    lifo: _Lifo | UnsetType = UNSET
    key: Key | UnsetType | None = UNSET
    key_ttl: _KeyTtl | UnsetType | None = UNSET
    retention: _Retention | UnsetType | None = UNSET
    metadata: _Metadata | UnsetType = UNSET
    run_at: _RunAt | UnsetType | None = UNSET
    limits: _Limits | UnsetType | None = UNSET
    group: _Group | UnsetType | None = UNSET
    slots: _Slots | UnsetType = UNSET
    unique: Unique | UnsetType | None = UNSET
    costs: _Costs | UnsetType | None = UNSET
    expires: _Expires | UnsetType | None = UNSET
    expires_at: _At | UnsetType | None = UNSET
    deadline: _Deadline | UnsetType | None = UNSET
    deadline_at: _At | UnsetType | None = UNSET
    version: _Version | UnsetType = UNSET
    partition_by: _PartitionBy | UnsetType | None = UNSET
    id: _Id | UnsetType = UNSET


Rerun = msgspec.defstruct(
    "Rerun",
    [(field.name, field.type, UNSET) for field in msgspec.structs.fields(Enqueue)[1:]],
    bases=(In,),
    namespace={"__doc__": "What differs from the earlier job. Other fields are as there, except for times."},
)
"""As ``Enqueue``, without the type."""


class EnqueueQuery(In):
    """How the jobs are enqueued. Nothing here changes what a job is."""

    durability: _Durability | UnsetType = UNSET
    spread: _Spread | UnsetType = UNSET


class RerunQuery(In):
    """How the rerun is enqueued."""

    durability: _Durability | UnsetType = UNSET


class SetPriority(In):
    """The new priority of a job that has not started."""

    priority: Priority


class ListQuery(In):
    """Which jobs to list; newest first within a state."""

    state: State | UnsetType = UNSET
    type: Annotated[str, Meta(max_length=NAME_MAX)] | UnsetType = UNSET
    group: _Group | UnsetType = UNSET
    limit: PageSize = 50
    cursor: _Cursor | UnsetType = UNSET


class FailedQuery(In):
    """Which page of the failed jobs."""

    limit: PageSize = 50
    cursor: _Cursor | UnsetType = UNSET


class WaitQuery(In):
    """How long to wait for the result."""

    wait: Annotated[int, Meta(ge=0, le=MAX_WAIT, description="ms")] = 0


class RetryMany(In):
    """Which finished jobs to run again. Call again while ``count`` equals ``limit``."""

    state: Literal["failed", "completed"] = "failed"
    group: _Group | UnsetType = UNSET
    older_than: _Age | UnsetType = UNSET
    limit: _Many = 1000


class RemoveMany(In):
    """Which jobs to remove. Call again while ``count`` equals ``limit``."""

    state: Literal["waiting", "delayed", "held", "completed", "failed"]
    group: _Group | UnsetType = UNSET
    older_than: _Age | UnsetType = UNSET
    limit: _Many = 1000


class KillMany(In):
    """Which unfinished jobs to kill. Call again while ``count`` equals ``limit``."""

    state: Literal["waiting", "delayed", "held", "blocked", "active"]
    group: _Group | UnsetType = UNSET
    limit: _Many = 1000


class PromoteMany(In):
    """Which delayed jobs to run now. Call again while ``count`` equals ``limit``."""

    group: _Group | UnsetType = UNSET
    limit: _Many = 1000


class PrioritiseMany(In):
    """Which jobs get another priority. Call again while ``count`` equals ``limit``."""

    state: Literal["waiting", "delayed", "held", "blocked"]
    group: _Group | UnsetType = UNSET
    limit: _Many = 1000


class Login(In):
    """An API key, for a session of the dashboard."""

    key: Annotated[str, Meta(min_length=1, max_length=1000)]
