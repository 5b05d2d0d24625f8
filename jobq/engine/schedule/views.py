"""Schedules as readers get them. Times are unix ms, durations are ms."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - msgspec reads the annotations
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobq.engine.model.job import PLAIN
from jobq.engine.schedule.definition import CatchUp, Overlap  # noqa: TC001 - msgspec reads the annotations
from jobq.engine.schedule.state import How, Paused, jitter_ms, next_slot
from jobq.engine.schedule.timing import SHOWN_TRIES, Timing
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from jobq.engine.schedule.definition import Definition
    from jobq.engine.schedule.state import ScheduleState, Stored

SHOWN: Final = 5
"""Slots that are shown: so many next ones, and so many last ones."""
ORPHAN_MS: Final = 120_000
"""A schedule of code is an orphan if programs have said for so long what they declare, and it is not among that."""


class SlotRow(msgspec.Struct, frozen=True):
    """One slot that came. ``how``: "slot", "skipped" (an earlier job was in the way), "run" or "backfill" (an operator
    asked for it). ``missed``: slots before it without a job of their own. ``outcome``: the state of the job, or how it
    ended without its handler ("expired", "dropped", "replaced", "killed"), or "gone" if it was removed; null: it is not
    finished, or there is no job."""

    slot: int
    how: How
    job_id: str | None = None
    missed: int = 0
    outcome: str | None = None


class ScheduleRow(msgspec.Struct, frozen=True, rename={"start": "from"}):
    """A schedule. ``words``: when its slots are, in English. ``options``: those of its jobs that it gives.

    ``source``: whose definition counts, "code" or "operator". ``differs``: the operator's is not that of the code.
    ``orphan``: no program's code declares it any more. ``paused``: since when, by whom and why; null: it is not.
    ``next``: its next slots, one in a list and five alone; empty if it is paused or has ended. ``last``: its last five
    slots, newest first. ``count``: slots that got a job. ``failures``: failed
    jobs in a row. ``error``: why this program cannot read its expressions or its time zone, or
    make its jobs.
    """

    name: str
    type: str
    payload: msgspec.Raw
    words: str
    source: str
    cron: tuple[str, ...] = ()
    every: int | None = None
    at: tuple[int, ...] = ()
    tz: str = "UTC"
    exclude: tuple[str, ...] = ()
    overlap: Overlap = "skip"
    catch_up: CatchUp = "last"
    jitter: int = 0
    start: int | None = None
    until: int | None = None
    limit: int | None = None
    pause_after: int | None = None
    options: dict[str, Any] = {}
    differs: bool = False
    orphan: bool = False
    paused: Paused | None = None
    next: list[int] = []
    last: list[SlotRow] = []
    count: int = 0
    failures: int = 0
    error: str | None = None


class Preview(msgspec.Struct, frozen=True):
    """The next times of a schedule, in its time zone, and what it says in English."""

    times: list[datetime]
    words: str


def schedule_row(stored: Stored, state: ScheduleState, *, seen: int, declared: int, alone: bool) -> ScheduleRow:
    """A row as readers get it. ``state``: with the outcomes of its jobs. ``seen``: when code declared it last, and
    ``declared``: when any program said what it declares, both unix ms."""
    definition = stored.definition
    words, following, error = "", [], None
    try:
        timing = Timing(definition)
        words = timing.words()
        following = _next(stored.name, definition, timing, state, SHOWN if alone else 1)
    except InvalidJob as fault:
        error = str(fault)
    last = [
        SlotRow(run.slot * 1000, run.how, run.id, run.missed, run.outcome or None)
        for run in reversed(state.runs[-SHOWN:])
    ]
    options: dict[str, Any] = msgspec.to_builtins(definition.options) if definition.options != PLAIN else {}
    return ScheduleRow(
        stored.name,
        definition.type,
        definition.payload,
        words,
        "operator" if stored.operator is not None else "code",
        definition.cron,
        definition.every,
        definition.at,
        definition.tz,
        definition.exclude,
        definition.overlap,
        definition.catch_up,
        definition.jitter,
        definition.start,
        definition.until,
        definition.limit,
        definition.pause_after,
        {name: options.get(name, getattr(PLAIN, name)) for name in definition.given},
        differs=stored.operator is not None and stored.code is not None and stored.operator != stored.code,
        orphan=stored.code is not None and seen < declared - ORPHAN_MS,
        paused=state.paused,
        next=following,
        last=last,
        count=state.count,
        failures=state.failures,
        error=error,
    )


def _next(name: str, definition: Definition, timing: Timing, state: ScheduleState, most: int) -> list[int]:
    """The next slots with their jitter, unix ms."""
    if state.paused is not None or state.slot is None:
        return []
    if definition.limit is not None:
        most = min(most, definition.limit - state.count)
    slots: list[int] = []
    slot: int | None = state.slot
    while slot is not None and len(slots) < most and timing.tries < SHOWN_TRIES:
        slots.append(slot * 1000 + jitter_ms(name, definition))
        slot = next_slot(timing, state, definition, slot)
    return slots
