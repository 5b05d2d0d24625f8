"""A job: the spec that is written once, and its states. views.py has the form that readers get.

A job's life:

1. ``enqueue`` writes its spec and puts it into *waiting*, or into *delayed* until its time.
2. ``forward`` moves what is due from *delayed* to *waiting*.
3. ``claim`` moves it to *active*, under a lease and with a fence.
4. The worker settles it: *completed*, or *delayed* again with a backoff, or *failed* if its attempts are used up, its
   error is final, or it was killed.
5. A job whose lease runs out is reaped: the sweeper claims it and settles it as a failed attempt.
6. Retention removes finished jobs. ``remove`` removes any job that is not active.

The state of a job **is** the sorted set that contains it. No field repeats it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

import msgspec

from jobq.engine.model.ids import time_of
from jobq.engine.model.readable import readable

PRIORITY_MIN = -1024
PRIORITY_MAX = 1023
DELAY_MAX_MS = 10 * 366 * 24 * 3600 * 1000
"""Ten years. A longer delay is a mistake in units."""
ATTEMPTS_MAX = 1000
SLOTS_MAX = 100
"""Slots of one job. Each one is a member of a set, so that no count can be wrong."""
VERSION_MAX = 1_000_000
"""The highest version of a payload."""
DELAYS_MAX = 100
"""The number of delays in a backoff. They are stored in every row."""
NAME_MAX = 128

Seconds = float | timedelta | str
"""A time as Python callers give it: seconds, a ``timedelta``, or a text such as "5m"."""
Durability = Literal["none", "fsynced", "replicated"]
"""The confirmation that an enqueue waits for: Redis's answer, an fsync (WAITAOF), or a copy on a replica (WAIT)."""
While = Literal["queued", "running", "unfinished"]
"""The states of a job in which it holds its key."""
Conflict = Literal["return", "fail", "replace", "replace_all", "extend", "keep_last", "kill_running"]
"""What happens to a job that finds its key held."""
Done = Literal["returned", "replaced", "extended", "dropped", "replaced_oldest", "killed_running"]
"""What an enqueue did with the job that holds its key; or what happened because a limit with an action had no room."""


class State(StrEnum):
    """The sorted sets. A job is in exactly one."""

    WAITING = "waiting"
    DELAYED = "delayed"
    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"
    BLOCKED = "blocked"
    HELD = "held"


class StoredBackoff(msgspec.Struct, frozen=True, omit_defaults=True):
    """A ``Backoff`` as in the job's row and in REST. Times are ms.

    ``delays``: the delay after the first attempt, after the second, and so on. The last one repeats. If there are any,
    ``type``, ``delay`` and ``max`` do not count.
    """

    type: Literal["fixed", "exponential"] = "exponential"
    delay: int = 1000
    max: int = 3_600_000
    jitter: float = 0.25
    delays: tuple[int, ...] = ()


class PreviousRun(msgspec.Struct, frozen=True, omit_defaults=True):
    """The last job of a schedule before this one, as it was when this one was enqueued.

    ``state``: "completed", "failed", "expired", "killed", "gone" (it was removed) or "unfinished". ``result``: what it
    returned; None if the result is larger than 16 KiB or was removed. ``error``: why its last attempt failed.
    """

    slot: datetime
    state: str
    result: Any = None
    error: str | None = None


class Scheduled(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a schedule enqueued a job. ``slot``: the time for which it is, in the time zone of the schedule.

    ``missed``: how many slots since the previous run got no job of their own, because no worker or server ran or
    because of ``overlap``. ``how``: "slot", or "run" and "backfill" if an operator asked for the job.
    """

    name: str
    slot: datetime
    missed: int = 0
    how: str = "slot"
    previous: PreviousRun | None = None


class Spec(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The immutable row in the ``jobs`` column.

    The order of the fields counts, because scripts cut rows without decoding them. ``type`` is first, so that a page
    can filter by the encoded prefix. Fields that may be large are last, so that a list can leave them out. ``version``
    is that of the payload and stands behind it, so that whatever replaces the payload replaces both. ``trace`` is last,
    because a repeated enqueue has another one, and scripts that compare two specs leave it out.

    ``at`` is unix ms by the server's clock, or 0 if it is the time in the id. ``run_at``, ``expires_at`` (the job must
    have started by then) and ``deadline_at`` (it must have ended by then) are unix ms. Other times are ms.
    """

    type: str
    at: int = 0
    priority: int = 0
    delay: int = 0
    attempts: int | None = 3
    backoff: StoredBackoff | None = None
    timeout: int | None = None
    lifo: bool = False
    key: str | None = None
    retention: int | None = None
    run_at: int | None = None
    slots: int = 1
    expires_at: int | None = None
    deadline_at: int | None = None
    rerun_of: str | None = None
    partition_by: str | None = None
    payload: msgspec.Raw = msgspec.Raw(b"null")
    version: int = 1
    metadata: dict[str, Any] | None = None
    schedule: Scheduled | None = None
    trace: dict[str, str] | None = None

    def ready_at(self, job_id: str | bytes) -> int:
        """When the job with this id could run for the first time, unix ms."""
        ready = (self.at or time_of(job_id)) + self.delay
        return ready if self.run_at is None else max(ready, self.run_at)


class LimitBy(msgspec.Struct, frozen=True):
    """A limit key whose value is an argument of the job. ``default``: the value if the payload leaves it out."""

    rule: str
    field: str
    default: str = "null"


class UniqueBy(msgspec.Struct, frozen=True, omit_defaults=True):
    """An argument that makes a key. ``default``: its default as JSON, None if it has none."""

    field: str
    default: str | None = None


class StoredUnique(msgspec.Struct, frozen=True, omit_defaults=True, rename={"while_": "while", "for_": "for"}):
    """A ``Unique`` as in a type's published options and in REST. Times are ms.

    ``by``: the arguments that make the key.
    """

    key: str | None = None
    while_: While | None = None
    for_: int | None = None
    on: Conflict = "return"
    delay: int | None = None
    max_wait: int | None = None
    by: tuple[UniqueBy, ...] = ()


class CostBy(msgspec.Struct, frozen=True):
    """A cost that an argument of the job gives. ``default``: the cost if the payload leaves it out."""

    unit: str
    field: str
    default: int = 1


class GroupBy(msgspec.Struct, frozen=True):
    """A template of names, such as "{tenant}". ``defaults``: values of arguments that a payload leaves out."""

    template: str
    defaults: dict[str, str]


class Options(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a job is run, each option with a default. Times are ms. The Python methods convert from seconds.

    ``run_at``: the job does not run before this time (unix ms), in place of ``delay``.
    ``attempts``: total number of runs, None for no limit. ``key``: while a job with this key is unfinished (or for
    ``key_ttl`` ms from its enqueue), another enqueue answers with that job. ``retention``: ms to keep the finished job
    at most; the queue's count and age bound it all the same. ``limits``: the limit keys under which the job counts.
    ``limits_by``: more of them, which an argument of the job completes. ``group``: the group whose turns the job takes.
    ``group_by``: a template of it over the job's arguments. ``slots``: how many jobs it counts as.
    ``partition_by``: jobs with the same text are in one partition of the queue. ``partition_from``: a template of it.
    ``breaker``: the type has a circuit breaker.
    ``unique``: while what a key is held, and what becomes of a job that finds it held. ``key`` and ``key_ttl`` are its
    short forms.
    ``costs``: what it costs, by unit, under rates that count this unit. ``costs_by``: the same, from arguments.
    ``expires``: ms from the enqueue in which the job must start, or it never does. ``deadline``: ms from the enqueue in
    which it must end. ``expires_at`` and ``deadline_at`` are the same as unix ms, in place of these.
    ``version``: that of the payload. A worker converts an older one to the version that its task has.
    """

    priority: int = 0
    delay: int = 0
    attempts: int | None = 3
    backoff: StoredBackoff | None = None
    timeout: int | None = None
    lifo: bool = False
    key: str | None = None
    key_ttl: int | None = None
    retention: int | None = None
    run_at: int | None = None
    metadata: dict[str, Any] | None = None
    limits: tuple[str, ...] = ()
    limits_by: tuple[LimitBy, ...] = ()
    group: str | None = None
    group_by: GroupBy | None = None
    slots: int = 1
    breaker: bool = False
    unique: StoredUnique | None = None
    costs: dict[str, int] = {}
    costs_by: tuple[CostBy, ...] = ()
    expires: int | None = None
    expires_at: int | None = None
    deadline: int | None = None
    deadline_at: int | None = None
    version: int = 1
    partition_by: str | None = None
    partition_from: GroupBy | None = None


PLAIN = Options()
"""The default options."""


class AttemptError(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why one attempt failed. ``started`` and ``at`` (its end) are unix ms. A long ``traceback`` is cut in its middle.

    ``started`` is None if it is not known, because the attempt was killed or its worker died. ``trace``: the span of
    the attempt, as a ``traceparent``, if runs are traced.
    """

    attempt: int
    at: int
    type: str
    message: str
    traceback: str | None = None
    worker: str | None = None
    started: int | None = None
    trace: str | None = None


class LogLine(msgspec.Struct, frozen=True, gc=False):
    """A line that a handler wrote with ``context.log``. ``at`` is unix ms."""

    at: int
    message: str


class Result(msgspec.Struct, frozen=True, array_like=True):
    """The row in the ``results`` column. It is an array, because field names would be larger than the values.

    ``started`` is unix ms, ``ran`` is ms.
    """

    started: int
    ran: int
    worker: str = ""
    result: msgspec.Raw = msgspec.Raw(b"null")


class NewJob(msgspec.Struct, frozen=True):
    """A job that can be enqueued. ``payload`` is encoded JSON and is stored byte for byte.

    ``id``: your own id. With it, repeating an enqueue is harmless as long as the job is kept. ``idempotency_key``: for
    24 hours, another enqueue with this key returns this job, whatever becomes of it. A different job with the key is an
    ``IdempotencyConflict``. ``idempotency_scope``: the owner of the key. Equal keys in two scopes are two keys.
    ``given``: names of the options that were given. The others get the published defaults of the type. None: all
    options count as given. ``schedule``: the schedule that enqueues it. ``offset``: ms by which the spread of
    its bulk puts it off, besides its delay. ``rerun_of``: the job that it runs again. ``trace``: the trace context of
    its producer, as the headers of W3C Trace Context.
    """

    type: str
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    options: Options = PLAIN
    idempotency_key: str | None = None
    id: str | None = None
    idempotency_scope: tuple[str, ...] = ()
    given: tuple[str, ...] | None = None
    schedule: Scheduled | None = None
    offset: int = 0
    rerun_of: str | None = None
    trace: dict[str, str] | None = None

    __repr__ = readable


class Accepted(msgspec.Struct, frozen=True):
    """The answer to an enqueue. ``duplicate``: ``id`` is the earlier job that holds the key.

    ``state``: the state of that job then, None if it has no row any more. ``done``: what the enqueue did with it. Both
    are None for a new job, unless it was over a limit that has an action: it was "dropped" and is in failed, or another
    job ended for it ("replaced_oldest", "killed_running").
    """

    id: str
    duplicate: bool = False
    state: State | None = None
    done: Done | None = None
