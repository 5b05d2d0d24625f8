"""Decides what happens with a schedule that is due. No I/O: the time and the outcomes of its jobs are arguments."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec

from jobq.engine.model.job import PreviousRun, Scheduled
from jobq.engine.schedule.cron import zone
from jobq.engine.schedule.definition import CATCH_UP_MAX
from jobq.engine.schedule.state import (
    How,
    Paused,
    ScheduleRun,
    ScheduleState,
    Score,
    jitter_ms,
    mark,
    next_slot,
    slot_id,
    with_run,
    write_state,
)
from jobq.engine.schedule.timing import COUNTED, Timing

if TYPE_CHECKING:
    from jobq.engine.schedule.definition import Definition
    from jobq.engine.schedule.state import Stored

LATE_SECONDS: Final = 60
"""With ``catch_up="none"``, a slot that is later than this gets no job."""
PAUSER: Final = "jobq"
"""Who pauses a schedule after failures."""
_LOOKED_AT: Final = 2000


class Plan(msgspec.Struct, frozen=True):
    """What to do with a schedule: the jobs to enqueue by their slots, and the row afterwards.

    ``fired``: the row if a job is enqueued, or if there is none to enqueue. ``skipped``: the row if another job was in
    the way. ``missed``: slots before the first of these that got no job. ``reason``: why it does nothing.
    """

    fired: Score
    skipped: Score
    slots: list[int]
    missed: int = 0
    reason: str = ""


def plan(stored: Stored, state: ScheduleState, now_ms: int) -> Plan:
    """What a schedule does now. ``state``: its state, with the outcomes of its jobs."""
    definition = stored.definition
    name = stored.name

    def nothing(changed: ScheduleState, reason: str) -> Plan:
        score = write_state(name, definition, changed)
        return Plan(score, score, [], reason=reason)

    now = (now_ms - jitter_ms(name, definition)) // 1000
    first = state.slot
    if first is None or state.paused is not None or first > now:
        return nothing(state, "not due")
    if definition.pause_after is not None and state.failures >= definition.pause_after:
        note = f"{state.failures} jobs failed in a row"
        paused = Paused(now_ms, PAUSER, note)
        return nothing(
            msgspec.structs.replace(state, version=state.version + 1, paused=paused, gap=True, at=now_ms), note
        )
    timing = Timing(definition)
    due = _due_after_set_back(timing, state, definition, first, now)
    last, count = (due[-1], len(due)) if due else timing.up_to(first, now)
    slots = [last]
    if definition.catch_up == "all" and count > 1:
        slots = due[-CATCH_UP_MAX:] or _latest(timing, first, last, count)
    elif definition.catch_up == "none" and now - last > LATE_SECONDS:
        slots = []
    if definition.limit is not None:
        slots = slots[: definition.limit - state.count]
    missed = state.owed + count - len(slots)
    counted = msgspec.structs.replace(state, count=state.count + len(slots))
    following = next_slot(timing, counted, definition, last)
    none = with_run(
        state, ScheduleRun(last, "skipped", missed=count - 1),
        slot=next_slot(timing, state, definition, last), owed=state.owed + count, gap=True, at=now_ms,
    )  # fmt: skip
    skipped = write_state(name, definition, none)
    if not slots:
        return Plan(skipped, skipped, [], reason="too late")
    done = msgspec.structs.replace(
        counted, slot=following, owed=0, gap=False, at=now_ms,
        ran=mark(state, slots[0], slots[-1], joined=not state.gap and count == len(slots)),
    )  # fmt: skip
    for place, slot in enumerate(slots):
        done = with_run(done, ScheduleRun(slot, "slot", slot_id(name, slot), 0 if place else missed))
    return Plan(write_state(name, definition, done), skipped, slots, missed)


def _due_after_set_back(
    timing: Timing, state: ScheduleState, definition: Definition, first: int, now: int
) -> list[int]:
    """The slots that are due, without those that ran before the clock was set back. Empty if none of them did."""
    if not any(low <= now and high >= first for low, high in state.ran):
        return []
    due: list[int] = []
    unlimited = msgspec.structs.replace(definition, limit=None)
    slot = next_slot(timing, state, unlimited, first - 1)
    while slot is not None and slot <= now and len(due) < COUNTED:
        due.append(slot)
        slot = next_slot(timing, state, unlimited, slot)
    return due


def _latest(timing: Timing, first: int, last: int, count: int) -> list[int]:
    """The last missed slots, ``CATCH_UP_MAX`` at most."""
    if count < COUNTED:
        return timing.between(first, last, COUNTED)[-CATCH_UP_MAX:]
    # There are too many to look at all of them. Look at a time before the last one that is long enough.
    back = 60
    while True:
        found = timing.between(max(first, last - back), last, _LOOKED_AT)
        if len(found) >= CATCH_UP_MAX or last - back <= first:
            return found[-CATCH_UP_MAX:]
        back *= 2


def planned_again(stored: Stored, now_ms: int) -> Score | None:
    """The row of a schedule after the clock was set back; None if it need not change.

    The slots until the one that was next come again. Those that ran before are left out, because the row has them.
    """
    state, definition = stored.state, stored.definition
    if state.at <= now_ms:
        return None
    moment = (now_ms - jitter_ms(stored.name, definition)) // 1000
    slot = next_slot(Timing(definition), state, definition, moment)
    changed = msgspec.structs.replace(state, version=state.version + 1, slot=slot, at=now_ms, gap=True)
    return write_state(stored.name, definition, changed)


def defined(before: Stored | None, name: str, definition: Definition, now_ms: int, *, changed: bool = True) -> Score:
    """The row of a schedule whose definition is written. ``changed``: another definition counts than before."""
    state = before.state if before is not None else ScheduleState()
    version = state.version + 1
    if before is None or changed:
        moment = (now_ms - jitter_ms(name, definition)) // 1000
        slot = next_slot(Timing(definition), state, definition, moment)
        state = msgspec.structs.replace(state, slot=slot, gap=True, at=now_ms)
    return write_state(name, definition, msgspec.structs.replace(state, version=version))


def resumed(stored: Stored, now_ms: int) -> Score:
    """The row of a schedule that is resumed. The slots of the pause are not made up: ``backfill`` does that."""
    state, definition = stored.state, stored.definition
    moment = (now_ms - jitter_ms(stored.name, definition)) // 1000
    changed = msgspec.structs.replace(
        state, version=state.version + 1, paused=None, failures=0, owed=0, gap=True, at=now_ms,
        slot=next_slot(Timing(definition), state, definition, moment),
    )  # fmt: skip
    return write_state(stored.name, definition, changed)


def paused(stored: Stored, by: str, note: str, now_ms: int) -> Score:
    """The row of a schedule that is paused."""
    state = stored.state
    changed = msgspec.structs.replace(
        state, version=state.version + 1, paused=Paused(now_ms, by, note), gap=True, at=now_ms
    )
    return write_state(stored.name, stored.definition, changed)


def backfilled(stored: Stored, state: ScheduleState, slots: list[int], now_ms: int) -> Plan:
    """Earlier slots get their jobs. ``state``: with the outcomes of its jobs."""
    done = msgspec.structs.replace(
        state, version=state.version + 1, at=now_ms, ran=mark(state, slots[0], slots[-1], joined=False)
    )
    for slot in slots:
        done = with_run(done, ScheduleRun(slot, "backfill", slot_id(stored.name, slot)))
    return _by_hand(stored, state, done, slots)


def run_now(stored: Stored, state: ScheduleState, job_id: str, now_ms: int) -> Plan:
    """The schedule runs once more, besides its slots. ``state``: with the outcomes of its jobs."""
    slot = now_ms // 1000
    done = with_run(state, ScheduleRun(slot, "run", job_id), version=state.version + 1, at=now_ms)
    return _by_hand(stored, state, done, [slot])


def _by_hand(stored: Stored, before: ScheduleState, done: ScheduleState, slots: list[int]) -> Plan:
    """A plan that an operator asked for. If another job holds the key of the job, the row names no job."""
    skipped = msgspec.structs.replace(before, version=before.version + 1)
    name, definition = stored.name, stored.definition
    return Plan(write_state(name, definition, done), write_state(name, definition, skipped), slots)


def told(
    stored: Stored,
    state: ScheduleState,
    slot: int,
    missed: int,
    how: How,
    ended: dict[str, tuple[str, object, str | None]],
) -> Scheduled:
    """What the handler of a job hears of its schedule. ``ended``: result and error of the jobs that have ended."""
    tz = zone(stored.definition.tz)
    before = next((run for run in reversed(state.runs) if run.id is not None), None)
    previous = None
    if before is not None:
        assert before.id is not None
        _, result, error = ended.get(before.id, ("", None, None))
        previous = PreviousRun(
            datetime.fromtimestamp(before.slot, UTC).astimezone(tz), before.outcome or "unfinished", result, error
        )
    return Scheduled(stored.name, datetime.fromtimestamp(slot, UTC).astimezone(tz), missed, how, previous)
