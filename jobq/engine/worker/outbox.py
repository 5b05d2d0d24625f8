"""Outcomes that have not been sent to Redis: their table, and the bounds of one trip.

A new outcome is one row of ``OUTCOMES``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from jobq.engine.worker.notes import NOTES_MAX, Notes, RunNotes, charge_rows, log_rows, progress_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobq.engine.store import Call, Store
    from jobq.engine.worker.notes import Key

SETTLE_MAX: Final = 250
"""Outcomes per trip: far below Lua's limits, and no script holds Redis for long."""
HAND_BACK_MAX: Final = 100
"""Released jobs per trip. Each changes the tables of two sets, which may be large."""
SETTLE_BYTES: Final = 1 << 20
"""Bytes of results per trip, for the same reason."""
FAIL_MAX: Final = 20
"""Failures per trip. Each moves the errors of all earlier attempts, 64 KiB at most, which takes a tenth of a ms."""
DEFER_FIRST_MS: Final = 250
DEFER_LONGEST_MS: Final = 60_000
PARK_MS: Final = 3_600_000
"""The time for which a job of an unknown type stays delayed, unless a worker that knows its type recalls it."""

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, eq=False)
class Outcome:
    """One kind of outcome. ``call`` makes the script's call from the rows and the metrics of their runs."""

    name: str
    width: int
    """Fields per job in a row. The first two are its id and its token."""
    most: int
    """Jobs per trip."""
    call: Callable[[Store, list[Any], dict[str, Tally]], Call[Any]]
    keep: Literal["keep_completed", "keep_failed"] | None
    """The queue's bound for the set that the jobs are moved to, if it has one. Then the script returns a
    ``Settled``."""
    instead: bool
    """Whether the job ends in failed if the server refuses the outcome for good. Otherwise its lease runs out."""


class Tally:
    """What is counted of the completed runs of one type. A histogram is bit length of a time in us -> runs."""

    __slots__ = ("run", "run_us", "wait", "wait_us")

    def __init__(self) -> None:
        self.run: dict[int, int] = {}
        self.wait: dict[int, int] = {}
        self.run_us = 0
        self.wait_us = 0

    def add(self, other: Tally) -> None:
        """Add the counts of another one."""
        for own, others in ((self.run, other.run), (self.wait, other.wait)):
            for bits, count in others.items():
                own[bits] = own.get(bits, 0) + count
        self.run_us += other.run_us
        self.wait_us += other.wait_us

    def words(self, type: str) -> list[Any]:
        """Flat pairs for complete.lua."""
        words: list[Any] = [f"run_us:{type}", self.run_us, f"wait_us:{type}", self.wait_us]
        for bits, count in self.run.items():
            words += (f"run{bits}:{type}", count)
        for bits, count in self.wait.items():
            words += (f"wait{bits}:{type}", count)
        return words


def _complete(store: Store, rows: list[Any], tallies: dict[str, Tally]) -> Call[Any]:
    return store.complete(rows, [word for name, tally in tallies.items() for word in tally.words(name)])


def _failures(rows: list[Any], what: str) -> tuple[list[Any], list[Any]]:
    """The rows of failed runs as their script takes them, and flat pairs of what is counted of them."""
    jobs: list[Any] = []
    counts: dict[str, int] = {}
    for at in range(0, len(rows), 8):
        jobs += rows[at : at + 5]
        name, micros, lost = rows[at + 5 : at + 8]
        for field, count in ((what, 1), ("bad_us", micros), ("lost", int(lost))):
            if count:
                counts[f"{field}:{name}"] = counts.get(f"{field}:{name}", 0) + count
    return jobs, [word for pair in counts.items() for word in pair]


def _retry(store: Store, rows: list[Any], _: dict[str, Tally]) -> Call[Any]:
    return store.reschedule(*_failures(rows, "retried"))


def _fail(store: Store, rows: list[Any], _: dict[str, Tally]) -> Call[Any]:
    return store.fail(*_failures(rows, "failed"))


def _defer(store: Store, rows: list[Any], _: dict[str, Tally]) -> Call[Any]:
    types = _encode(sorted({type_ for type_ in rows[2::4] if type_}))
    return store.defer(rows, DEFER_FIRST_MS, DEFER_LONGEST_MS, types)


COMPLETED: Final = Outcome("completed", 4, SETTLE_MAX, _complete, "keep_completed", instead=True)
"""Id, token, result record, retention."""
RETRIED: Final = Outcome("retried", 8, FAIL_MAX, _retry, None, instead=True)
"""Id, token, attempt, delay, error record, type, us that it ran, whether its lease was lost."""
FAILED: Final = Outcome("failed", 8, FAIL_MAX, _fail, "keep_failed", instead=False)
"""Id, token, attempt, error record, retention, type, us that it ran, whether its lease was lost."""
RELEASED: Final = Outcome("released", 2, HAND_BACK_MAX, lambda store, rows, _: store.release(rows), None, instead=False)
"""Id, token."""
DEFERRED: Final = Outcome("deferred", 4, HAND_BACK_MAX, _defer, None, instead=False)
"""Id, token, type to park it under or "", ms to park it for."""
SNOOZED: Final = Outcome("snoozed", 3, HAND_BACK_MAX, lambda store, rows, _: store.snooze(rows), None, instead=False)
"""Id, token, delay."""
THROTTLED: Final = Outcome(
    "rate limited", 4, HAND_BACK_MAX, lambda store, rows, _: store.throttle(rows), None, instead=False
)
"""Id, token, ms, scope."""
OUTCOMES: Final = (COMPLETED, RETRIED, FAILED, RELEASED, DEFERRED, SNOOZED, THROTTLED)


class Parcel:
    """The content of one trip: flat rows of each outcome, metrics of the completed runs, and notes."""

    __slots__ = ("counts", "notes", "repeated", "rows")

    def __init__(self) -> None:
        self.rows: dict[Outcome, list[Any]] = {}
        self.counts: dict[str, Tally] = {}
        self.notes: dict[Key, RunNotes] = {}
        self.repeated = False
        """Whether some of it was sent before and may have been executed."""

    def __bool__(self) -> bool:
        return bool(self.rows or self.notes)

    def __len__(self) -> int:
        """The number of jobs. Those with notes and an outcome count twice."""
        return sum(len(flat) // outcome.width for outcome, flat in self.rows.items()) + len(self.notes)

    @property
    def alone(self) -> bool:
        """Whether it contains one job only. If the server refuses the trip, it refuses this job."""
        return sum(len(flat) // outcome.width for outcome, flat in self.rows.items()) <= 1 and len(self.notes) <= 1

    @property
    def size(self) -> int:
        """Bytes, roughly."""
        rows = sum(len(word) for flat in self.rows.values() for word in flat if isinstance(word, (bytes, str)))
        return rows + sum(said.size + len(said.progress or b"") for said in self.notes.values())

    def calls(self, store: Store) -> list[tuple[Outcome | None, Call[Any]]]:
        """The calls of the trip. A job's notes are stored before the outcome that ends its lease."""
        calls: list[tuple[Outcome | None, Call[Any]]] = []
        if self.notes:
            if progress := progress_rows(self.notes):
                calls.append((None, store.progress(progress)))
            if charges := charge_rows(self.notes):
                calls.append((None, store.charge(charges)))
            if lines := log_rows(self.notes):
                calls.append((None, store.log(lines)))
        for outcome, flat in self.rows.items():
            calls.append((outcome, outcome.call(store, flat, self.counts)))
        return calls


class Outbox:
    """Outcomes and notes that the next trip carries."""

    __slots__ = ("counts", "notes", "repeated", "rows")

    def __init__(self) -> None:
        self.rows: dict[Outcome, list[Any]] = {outcome: [] for outcome in OUTCOMES}
        self.counts: dict[str, Tally] = {}
        self.notes = Notes()
        self.repeated = False

    def __bool__(self) -> bool:
        # Most outcomes are completed, and then nothing else is looked at.
        return bool(self.rows[COMPLETED] or self.notes or any(self.rows.values()))

    def take(self, most: int = SETTLE_MAX) -> Parcel:
        """Take the content of the next trip, for at most ``most`` jobs."""
        parcel = Parcel()
        parcel.repeated = self.repeated
        left = most
        for outcome, flat in self.rows.items():
            if not flat:
                continue
            if not left:
                break
            end = min(outcome.most, left) * outcome.width
            if outcome is COMPLETED:
                end = _within(flat, end)
            page = slice(end)
            if outcome is RELEASED:
                # Each call puts its jobs before all waiting ones. So if there are several calls, the last jobs are sent
                # first.
                flat[:] = _by_fence(flat)
                page = slice(-end, None)
            parcel.rows[outcome] = flat[page]
            del flat[page]
            left -= len(parcel.rows[outcome]) // outcome.width
        if COMPLETED in parcel.rows:
            parcel.counts, self.counts = self.counts, {}
        if self.notes:
            self._take_notes(parcel, min(NOTES_MAX, most))
        if not self:
            self.repeated = False
        return parcel

    def _take_notes(self, parcel: Parcel, most: int) -> None:
        """Add notes, those of the parcel's jobs first. An outcome waits for the next trip if the notes of its job do
        not fit."""
        ended = [key for outcome, flat in parcel.rows.items() for key in _keys(outcome, flat)]
        parcel.notes = self.notes.take(ended, most)
        if not any(key in self.notes for key in ended):
            return
        for outcome, flat in list(parcel.rows.items()):
            now: list[Any] = []
            later: list[Any] = []
            for at, key in enumerate(_keys(outcome, flat)):
                row = flat[at * outcome.width : (at + 1) * outcome.width]
                (later if key in self.notes else now).extend(row)
            self.rows[outcome][:0] = later
            parcel.rows[outcome] = now
            if not now:
                del parcel.rows[outcome]

    def put_back(self, parcel: Parcel) -> None:
        """Put back a parcel that may or may not have been executed. All of it is sent again first, and fences make
        repetitions harmless."""
        for outcome, flat in parcel.rows.items():
            self.put_rows_back(outcome, flat)
        self.notes.put_back(parcel.notes)
        self.put_counts_back(parcel)

    def put_counts_back(self, parcel: Parcel) -> None:
        """The completed runs of the parcel were not counted. Its metrics are also those of other runs."""
        for name, tally in parcel.counts.items():
            if name in self.counts:
                self.counts[name].add(tally)
            else:
                self.counts[name] = tally

    def put_rows_back(self, outcome: Outcome, flat: list[Any]) -> None:
        """Put these back. They are sent again before any others."""
        rows = self.rows[outcome]
        place = len(rows) if outcome is RELEASED else 0
        rows[place:place] = flat
        self.repeated = True


def _keys(outcome: Outcome, flat: list[Any]) -> list[Key]:
    return list(zip(flat[:: outcome.width], flat[1 :: outcome.width], strict=True))


def _by_fence(released: list[Any]) -> list[Any]:
    """Sort by the order of claims. Replies of two claimers may arrive in another order."""
    pairs = sorted(zip(released[::2], released[1::2], strict=True), key=lambda pair: int(pair[1].partition(b" ")[0]))
    return [word for pair in pairs for word in pair]


def _within(completed: list[Any], most: int) -> int:
    """The number of words of the groups whose results have ``SETTLE_BYTES``, at least those of one group."""
    size = 0
    for at in range(2, min(len(completed), most), 4):
        size += len(completed[at])
        if size > SETTLE_BYTES:
            return at + 2
    return most
