"""What a worker measures of itself: its trips, its event loop, and how many of its slots are used.

It is written in the worker's loop and in the heartbeat's thread, and read in the thread that serves /metrics. Each
number has one writer. A reader may see a trip that is counted in one number and not yet in another.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
JOBS: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 125.0, 250.0)


class Histogram:
    """Counts of values up to each bound."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """Each bound with the number of values up to it, as Prometheus takes them."""
        total, found = 0, list[tuple[str, float]]()
        for bound, count in zip((*map(str, self._bounds), "+Inf"), list(self._counts), strict=True):
            total += count
            found.append((bound, total))
        return found


class TripMeter:
    """The trips of one source. ``settled`` and ``claimed``: jobs in a trip that sent outcomes, or claimed."""

    __slots__ = ("claimed", "errors", "seconds", "settled")

    def __init__(self) -> None:
        self.seconds = Histogram(SECONDS)
        self.settled = Histogram(JOBS)
        self.claimed = Histogram(JOBS)
        self.errors = 0
        """Trips without an answer."""


class LoopMeter:
    """The worker's event loop, sampled twice a second. ``busy``: slots in use, summed over the seconds."""

    __slots__ = ("busy", "lag")

    def __init__(self) -> None:
        self.lag = Histogram(SECONDS)
        """The time until the loop answered."""
        self.busy = 0.0
