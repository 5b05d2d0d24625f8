"""What every workload is given, and what it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from benchmarks.subjects import Subject

Figures = dict[str, float]


class Bench(msgspec.Struct, frozen=True):
    """The run's circumstances. ``jobs``: of a drain of the fastest subject; others get their share."""

    peers: Path
    folder: Path
    server: str
    jobs: int

    def jobs_of(self, subject: Subject, part: float = 1.0) -> int:
        """How many jobs this subject gets of a workload."""
        return max(1000, round(self.jobs * subject.share * part / 1000) * 1000)


class Workload(msgspec.Struct, frozen=True):
    """``needs``: what a driver must be able to do for it; ``only``: subjects, if not all that can."""

    name: str
    title: str
    measure: Callable[[Bench, Subject], Awaitable[Figures]]
    needs: frozenset[str] = frozenset()
    only: frozenset[str] | None = None

    def fits(self, subject: Subject) -> bool:
        """Whether the subject can be measured with it."""
        return self.needs <= subject.can and (self.only is None or subject.name in self.only)


def quantile(values: list[float], q: float) -> float:
    """By rank; of a sorted copy."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
