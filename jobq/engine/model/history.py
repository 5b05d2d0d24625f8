"""What was counted of the types of a queue, in windows that end now.

The scripts count each five minutes alone. ``fold.lua`` adds them to rows of longer intervals when they are over, and
drops intervals that are too old. So the space is bounded, and a window forgets what is older than it.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import msgspec

from jobq.engine.model.unreadable import as_text
from jobq.engine.model.views import Latency
from jobq.errors import InvalidQuery

ALL: Final = ""
"""The row of all types together."""
OTHER: Final = "\t"
"""The row of runs whose type no code knows. It cannot be the name of a type."""
INTERVAL_MS: Final = 300_000
BITS: Final = range(46)
"""The buckets of the histograms: bit lengths of times in microseconds. The last one means more than a year."""


class Window(NamedTuple):
    """A time that ends now: so many intervals of one unit of ``fold.lua``, and the one that has begun."""

    unit: str
    interval_ms: int
    intervals: int

    def since(self, now: int) -> int:
        """When it begins, unix ms."""
        return (now // self.interval_ms - self.intervals) * self.interval_ms


WINDOWS: Final = {
    "1h": Window("f", INTERVAL_MS, 12),
    "24h": Window("h", 3_600_000, 24),
    "7d": Window("q", 21_600_000, 28),
}


def window_of(name: str) -> Window:
    """The window of this name.

    :raises InvalidQuery: there is no such window.
    """
    if name not in WINDOWS:
        raise InvalidQuery(f"there is no window {name[:80]!r}; the windows are {', '.join(WINDOWS)}")
    return WINDOWS[name]


class TypeNumbers(msgspec.Struct, frozen=True):
    """The runs of a type that ended in a time. ``type`` is '' for all types together, and "other" for runs whose type
    no code knew.

    ``completed``, ``failed``, ``retried``: how the runs ended. ``lost``: those of the failed and retried ones whose
    worker lost the lease. ``busy_ms``: how long all runs took together. ``wait`` and ``run``: of completed runs.
    """

    type: str
    completed: int
    failed: int
    retried: int
    lost: int
    busy_ms: int
    wait: Latency | None
    run: Latency | None

    @property
    def runs(self) -> int:
        """How many runs ended."""
        return self.completed + self.failed + self.retried


class Performance(msgspec.Struct, frozen=True):
    """The runs of a queue that ended from ``since`` until ``now`` (unix ms), together and by type.

    The window begins with a whole interval, so it is up to one interval longer than its name says: 5 minutes in an
    hour, one hour in a day, six hours in a week.
    """

    queue: str
    window: str
    since: int
    now: int
    all: TypeNumbers
    types: list[TypeNumbers]


class Counts(msgspec.Struct, frozen=True):
    """What was counted of one type. ``row``: its history. ``live``: what is not in the history yet."""

    row: str
    live: dict[str, int]

    def of(self, window: Window | None, now: int) -> dict[str, int]:
        """What -> count in the window; without one, of all time."""
        since = window.since(now) if window else 0
        total: dict[str, int] = {}
        for field, count in self.live.items():
            _, interval, what = field.split(":", 2)
            if (int(interval) + 1) * INTERVAL_MS > since:
                total[what] = total.get(what, 0) + count
        for line in self.row.split("\n"):
            unit, _, rest = line.partition(" ")
            number, _, words = rest.partition(" ")
            if unit != (window.unit if window else "t") or not number.isdecimal():
                continue
            if window is None or int(number) * window.interval_ms >= since:
                for word in words.split(" "):
                    what, _, count = word.partition("=")
                    if count.isdecimal():
                        total[what] = total.get(what, 0) + int(count)
        return total


_LIVE = re.compile(r"s:\d{1,12}:[a-z_]+\d{0,2}")


def read_counts(row: bytes | None, flat: list[Any]) -> Counts:
    """The row of a type, and flat pairs of what is not in it yet. Damaged fields are left out."""
    found: dict[str, int] = {}
    for name, count in zip(flat[::2], flat[1::2], strict=True):
        field, number = as_text(name), as_text(count)
        if _LIVE.fullmatch(field) and number.isdecimal():
            found[field] = int(number)
    return Counts(as_text(row or b""), found)


def numbers(type: str, counts: dict[str, int]) -> TypeNumbers:
    """The numbers of a type from what was counted."""
    run, wait = histogram(counts, "run"), histogram(counts, "wait")
    return TypeNumbers(
        type="other" if type == OTHER else type,
        completed=sum(run.values()),
        failed=counts.get("failed", 0),
        retried=counts.get("retried", 0),
        lost=counts.get("lost", 0),
        busy_ms=(counts.get("run_us", 0) + counts.get("bad_us", 0)) // 1000,
        wait=latency(wait, counts.get("wait_us", 0)),
        run=latency(run, counts.get("run_us", 0)),
    )


def histogram(counts: dict[str, int], name: str) -> dict[int, int]:
    """Bit length of the time in microseconds -> number of runs."""
    return {bits: count for bits in BITS if (count := counts.get(f"{name}{bits}", 0)) > 0}


def latency(buckets: dict[int, int], micros: int) -> Latency | None:
    """Quantiles of a histogram, and the mean of times of ``micros`` in all. None if nothing was counted.

    A quantile is placed inside its bucket by its rank, as in Prometheus' ``histogram_quantile``.
    """
    total = sum(buckets.values())
    if not total:
        return None

    def quantile(q: float) -> float:
        rank, below = q * total, 0
        for bits, count in buckets.items():
            if below + count >= rank:
                low, high = (2 ** (bits - 1), 2**bits) if bits else (0, 1)
                return round((low + (high - low) * (rank - below) / count) / 1000, 3)
            below += count
        return round(2 ** max(buckets) / 1000, 3)

    mean = round(micros / total / 1000, 3)
    return Latency(p50=quantile(0.5), p90=quantile(0.9), p99=quantile(0.99), count=total, mean=mean)


class Arrivals(NamedTuple):
    """How many jobs have come to where a worker can take them. ``notes``: unix ms, and the number then."""

    now: int
    total: int
    notes: tuple[tuple[int, int], ...]

    def per_second(self, seconds: float = 300.0) -> float:
        """The rate since the first note of the last ``seconds``. 0 if there is none that is old enough to tell."""
        young = [(at, total) for at, total in self.notes if self.now - seconds * 1000 <= at <= self.now - 1000]
        if not young:
            return 0.0
        at, total = min(young)
        return max(0, self.total - total) / ((self.now - at) / 1000)


def read_arrivals(now: int, total: bytes, notes: bytes) -> Arrivals:
    """As numbers.lua returns them. Damaged notes are left out."""
    pairs = [_NOTE.fullmatch(word) for word in as_text(notes).split()]
    return Arrivals(now, whole(total), tuple((int(pair[1]), int(pair[2])) for pair in pairs if pair))


_NOTE = re.compile(r"(\d{1,15}):(-?\d{1,18})")


def whole(raw: bytes) -> int:
    """A count, or 0 if it is damaged."""
    return int(raw) if raw.isdigit() and len(raw) < 19 else 0
