"""The base of all workloads, and the conditions that they get."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from benchmarks.subjects import Subject

Figures = dict[str, float]


class Bench(msgspec.Struct, frozen=True):
    """The conditions of the run. ``jobs``: the jobs of a drain of the fastest subject. Others get their share."""

    peers: Path
    folder: Path
    server: str
    jobs: int

    def jobs_of(self, subject: Subject, part: float = 1.0) -> int:
        """The number of jobs of a workload for this subject."""
        return max(1000, round(self.jobs * subject.share * part / 1000) * 1000)


class Workload(msgspec.Struct, frozen=True):
    """``needs``: features that a driver must have. ``only``: the subjects, if not all that have them."""

    name: str
    title: str
    measure: Callable[[Bench, Subject], Awaitable[Figures]]
    needs: frozenset[str] = frozenset()
    only: frozenset[str] | None = None

    def fits(self, subject: Subject) -> bool:
        """Whether the workload can measure the subject."""
        return self.needs <= subject.can and (self.only is None or subject.name in self.only)


def quantile(values: list[float], q: float) -> float:
    """The quantile by rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
