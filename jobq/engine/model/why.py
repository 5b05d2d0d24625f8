"""Why a job does not run, or why a queue runs none: the answer of ``queue.why``."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from jobq.engine.model.job import State  # noqa: TC001 - msgspec reads the annotations


class ReasonCode(StrEnum):
    """What a reason is. The codes are stable; docs/why.md says what each of them means and what to do."""

    QUEUE_PAUSED = "queue_paused"
    QUEUE_CLOSED = "queue_closed"
    NO_WORKER = "no_worker"
    TYPE_UNSERVED = "type_unserved"
    GROUP_PAUSED = "group_paused"
    BREAKER_OPEN = "breaker_open"
    BREAKER_HALF_OPEN = "breaker_half_open"
    KEY_CLOSED = "key_closed"
    CONCURRENCY_FULL = "concurrency_full"
    RATE_SPENT = "rate_spent"
    SLOTS_BUSY = "slots_busy"
    GROUP_TURN = "group_turn"
    BEHIND = "behind"
    READY = "ready"
    DELAYED = "delayed"
    RETRYING = "retrying"
    SNOOZED = "snoozed"
    RATE_LIMITED = "rate_limited"
    PARKED = "parked"
    KEY_RUNNING = "key_running"
    RUNNING = "running"
    WORKER_SILENT = "worker_silent"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRES = "expires"
    LATE = "late"
    EXPIRED = "expired"
    KILLED = "killed"
    DROPPED = "dropped"
    REPLACED = "replaced"
    NO_JOBS = "no_jobs"
    ONLY_HELD = "only_held"
    ONLY_DELAYED = "only_delayed"


class Reason(msgspec.Struct, frozen=True, omit_defaults=True, repr_omit_defaults=True, kw_only=True):
    """One reason. ``detail`` says it in English. The other fields depend on the code. Times are unix ms.

    ``until``: when this reason ends, or ends at the earliest. ``since``: when it began. ``rule``, ``key``: the limit.
    ``count`` of ``limit``: jobs that run or have started, and the bound. ``ahead``: jobs that go before this one, of
    which ``urgent`` have a more urgent ``priority``. ``groups``: groups whose turns come before.
    ``types``: the types that living workers serve. ``usual_ms``: how long such jobs took lately, on average.
    ``job``: the job that this one waits for. ``attempt``: the number of the run.
    """

    code: ReasonCode
    detail: str
    until: int | None = None
    since: int | None = None
    rule: str | None = None
    key: str | None = None
    group: str | None = None
    count: int | None = None
    limit: int | None = None
    ahead: int | None = None
    urgent: int | None = None
    priority: int | None = None
    groups: int | None = None
    type: str | None = None
    types: list[str] | None = None
    usual_ms: int | None = None
    worker: str | None = None
    job: str | None = None
    attempt: int | None = None


class Why(msgspec.Struct, frozen=True):
    """Why a job does not run. ``reasons``: the one that decides first comes first.

    ``state``: the job's state, None if the question was about the queue. ``starts_in_ms``: an estimate, None if nobody
    can know, or if the job has started.
    """

    state: State | None
    reasons: list[Reason]
    starts_in_ms: int | None = None
