"""What is stored of a schedule: what operators and code say, its next slot, and what became of the last ones.

A row has four lines: the head "version slot", the state, the operator's definition and that of the code. A script
changes a row only if its head is the one that was read. So everything else about schedules is decided in Python.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from jobq.engine.schedule.definition import Definition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobq.engine.schedule.timing import Timing

RUNS_KEPT: Final = 8
"""The last slots whose outcome is kept."""
UNFINISHED_MAX: Final = 200
"""The most unfinished jobs that a row names. Overlap is judged by them, so later slots do not push them out."""
SPANS_MAX: Final = 50
"""The most spans of slots that ran. Beyond it, the oldest two become one."""

How = Literal["slot", "skipped", "run", "backfill", "refused"]
"""``slot``: it came. ``skipped``: no job, because of overlap or a key. ``run``, ``backfill``: an operator asked for it.
``refused``: no job could be made."""


class ScheduleRun(msgspec.Struct, frozen=True, array_like=True):
    """One slot (unix s), and the job that it got. ``missed``: earlier slots without a job since the one before.

    ``outcome``: the state of the job, "gone" if it was removed, and "" while it is not known.
    """

    slot: int
    how: How
    id: str | None = None
    missed: int = 0
    outcome: str = ""


class Paused(msgspec.Struct, frozen=True):
    """Since when a schedule is paused (unix ms), by whom, and why."""

    at: int
    by: str
    note: str = ""


class ScheduleState(msgspec.Struct, frozen=True, omit_defaults=True):
    """``slot``: the next one, unix s; None after the last. ``at``: when this was written, unix ms.

    ``ran``: spans of time, unix s, whose slots got their jobs. ``owed``: slots without a job since the last run.
    ``gap``: the next run begins a new span.
    """

    version: int = 0
    slot: int | None = None
    at: int = 0
    count: int = 0
    owed: int = 0
    gap: bool = True
    failures: int = 0
    ran: tuple[tuple[int, int], ...] = ()
    runs: tuple[ScheduleRun, ...] = ()
    paused: Paused | None = None


class Stored(msgspec.Struct, frozen=True):
    """A row that was read. ``failed``: the jobs of this schedule that ended in failed last."""

    name: str
    head: bytes
    state: ScheduleState
    operator: Definition | None
    code: Definition | None
    failed: tuple[str, ...] = ()

    @property
    def definition(self) -> Definition:
        """What counts: an operator's definition takes precedence."""
        found = self.operator or self.code
        assert found is not None
        return found


class Score(msgspec.Struct, frozen=True):
    """A state as the scripts take it: the head and the state, and when the schedule is due (unix ms, or "": never)."""

    row: bytes
    due: int | str


_encode = msgspec.json.Encoder().encode
_state = msgspec.json.Decoder(ScheduleState).decode
_definition = msgspec.json.Decoder(Definition).decode


def read_row(name: str, row: bytes, failed: bytes = b"") -> Stored:
    """Read a row.

    :raises msgspec.DecodeError: another version wrote it, or it is damaged.
    """
    try:
        head, state, operator, code = row.split(b"\n")
    except ValueError:
        raise msgspec.DecodeError("the row of the schedule does not have four lines") from None
    if not operator and not code:
        raise msgspec.DecodeError("nobody defines the schedule")
    return Stored(
        name,
        head,
        _state(state),
        _definition(operator) if operator else None,
        _definition(code) if code else None,
        tuple(failed.decode(errors="replace").split()),
    )


def write_state(name: str, definition: Definition, state: ScheduleState) -> Score:
    """The first two lines of a row."""
    slot = "-" if state.slot is None else state.slot
    due: int | str = ""
    if state.slot is not None and state.paused is None:
        due = state.slot * 1000 + jitter_ms(name, definition)
    return Score(b"%d %s\n%b" % (state.version, str(slot).encode(), _encode(state)), due)


def write_definitions(operator: Definition | None, code: Definition | None) -> bytes:
    """The last two lines of a row."""
    return b"\n".join(_encode(one) if one else b"" for one in (operator, code))


def jitter_ms(name: str, definition: Definition) -> int:
    """The time by which the slots of a schedule come later. It is the same for all of them, in every process."""
    if not definition.jitter:
        return 0
    drawn = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
    return drawn % (definition.jitter + 1)


def slot_id(name: str, slot: int) -> str:
    """The id of the job of a slot. Two jobs cannot have it, so a slot cannot get two."""
    return f"{name}~{datetime.fromtimestamp(slot, UTC):%Y%m%dT%H%M%SZ}"


# -- changes -----------------------------------------------------------------------------------------------------------


def next_slot(timing: Timing, state: ScheduleState, definition: Definition, moment: int) -> int | None:
    """The first slot after a moment that has not run. After a clock was set back, some that come again have."""
    if definition.limit is not None and state.count >= definition.limit:
        return None
    slot = timing.after(moment)
    for first, last in state.ran:
        if slot is not None and first <= slot <= last:
            slot = timing.after(last)
    return slot


def mark(state: ScheduleState, first: int, last: int, *, joined: bool) -> tuple[tuple[int, int], ...]:
    """The spans that ran, with one more. ``joined``: no slot is between the span before and this one."""
    spans = sorted([*state.ran, (first, last)])
    merged: list[tuple[int, int]] = []
    for span in spans:
        touches = merged and (span[0] <= merged[-1][1] or (joined and span == (first, last)))
        if touches:
            merged[-1] = (merged[-1][0], max(merged[-1][1], span[1]))
        else:
            merged.append(span)
    while len(merged) > SPANS_MAX:
        merged[:2] = [(merged[0][0], merged[1][1])]
    return tuple(merged)


def judge(stored: Stored, ended: Mapping[str, str]) -> ScheduleState:
    """The state, with what became of the jobs. ``ended``: the state of each job whose outcome was not known.

    A job that is gone and is not noted as failed has completed, and its retention is over.
    """
    runs: list[ScheduleRun] = []
    failures = stored.state.failures
    for run in stored.state.runs:
        found = run
        if run.id is not None and not run.outcome:
            outcome = ended.get(run.id, "")
            if run.id in stored.failed and outcome in ("failed", "gone"):
                outcome, failures = "failed", failures + 1
            elif outcome == "completed":
                failures = 0
            elif outcome in ("expired", "dropped", "replaced"):
                pass  # no failure of the handler either
            elif outcome == "failed":
                outcome = "killed"  # by an operator, or by overlap: no failure of the handler
            elif outcome == "gone":
                failures = 0
            else:
                outcome = ""
            found = msgspec.structs.replace(run, outcome=outcome)
        runs.append(found)
    return msgspec.structs.replace(stored.state, runs=tuple(runs), failures=failures)


def unfinished(state: ScheduleState) -> list[str]:
    """The jobs whose outcome is not known."""
    return [run.id for run in state.runs if run.id is not None and not run.outcome]


def with_run(state: ScheduleState, run: ScheduleRun, **changes: Any) -> ScheduleState:
    """The state with one more run. It keeps the last ones, the unfinished ones, and the last one that got a job.

    If too many are unfinished, it drops those first that an operator asked for: they began without regard to overlap.
    """
    runs = (*state.runs, run)
    if len(runs) <= RUNS_KEPT:
        return msgspec.structs.replace(state, runs=runs, **changes)
    jobs = [place for place, one in enumerate(runs) if one.id is not None]
    kept = {*range(max(0, len(runs) - RUNS_KEPT), len(runs)), *jobs[-1:]}
    open_ = sorted((place for place in jobs if not runs[place].outcome), key=lambda place: runs[place].how == "slot")
    kept.update(open_[-UNFINISHED_MAX:])
    return msgspec.structs.replace(state, runs=tuple(one for place, one in enumerate(runs) if place in kept), **changes)
