"""One run: each workload with every subject that fits, alternating and repeated."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TextIO

import msgspec

from benchmarks import machine
from benchmarks.drive import DriverFailed
from benchmarks.server import Server
from benchmarks.subjects import MissingPeer, Subject
from benchmarks.workloads.base import Bench, Figures, Workload


class Spread(msgspec.Struct, frozen=True):
    """Median, minimum and maximum of a figure's repeats."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> Spread | None:
        """Returns None if there are no values."""
        return cls(median(values), min(values), max(values)) if values else None


class Measured(msgspec.Struct):
    """The repeats of one workload with one subject. ``load``: the load of the machine before each.

    ``at`` (unix seconds) and ``cpu``: when and where it was measured.
    """

    workload: str
    subject: str
    repeats: list[Figures] = []
    load: list[float] = []
    failures: list[str] = []
    at: int = 0
    cpu: str = ""

    def spread(self, figure: str) -> Spread | None:
        """Returns None if there is no such figure."""
        return Spread.of([one[figure] for one in self.repeats if figure in one])


class Report(msgspec.Struct):
    """A run, as it is written to JSON. ``at``: unix seconds."""

    at: int
    machine: dict[str, str]
    server: str
    versions: dict[str, str]
    options: dict[str, int]
    measured: list[Measured] = []

    def of(self, workload: str, subject: str) -> Measured | None:
        """The results of both."""
        for one in self.measured:
            if one.workload == workload and one.subject == subject and one.repeats:
                return one
        return None

    def ratio(self, workload: str, figure: str, subject: str, other: str) -> Spread | None:
        """``subject`` over ``other``, repeat by repeat, because both ran under the same load. None if one was not
        measured."""
        ours, theirs = self.of(workload, subject), self.of(workload, other)
        if ours is None or theirs is None:
            return None
        pairs = [
            mine[figure] / its[figure]
            for mine, its in zip(ours.repeats, theirs.repeats, strict=False)
            if figure in mine and its.get(figure)
        ]
        return Spread.of(pairs)

    def merge(self, newer: Report) -> None:
        """Take over the results of a later run. A workload comes from one run as a whole, because ratios need that."""
        again = {one.workload for one in newer.measured}
        self.measured = [one for one in self.measured if one.workload not in again] + newer.measured
        if 2 * len(newer.measured) > len(self.measured):
            # The page names the machine and the time of most tables. The other tables name theirs.
            self.at, self.machine, self.server = newer.at, newer.machine, newer.server
        self.versions |= newer.versions


def load(path: Path) -> Report:
    """Read a report.

    :raises msgspec.MsgspecError: the file is not one.
    """
    return msgspec.json.decode(path.read_bytes(), type=Report)


async def run(
    workload: Workload,
    subjects: list[Subject],
    *,
    peers: Path,
    server: str,
    jobs: int,
    repeats: int,
    out: TextIO = sys.stderr,
) -> Report:
    """Run the workloads. A subject that fails is recorded and left out of the rest."""
    with Server(server) as probe:
        version = probe.version()
    report = Report(
        at=int(time.time()),
        machine=machine.describe(),
        server=version,
        versions={subject.name: subject.version(peers) for subject in subjects},
        options={"jobs": jobs, "repeats": repeats},
    )
    with tempfile.TemporaryDirectory(prefix="jobq-bench-") as folder:
        bench = Bench(peers=peers, folder=Path(folder), server=server, jobs=jobs)
        at, cpu = report.at, report.machine.get("cpu", "")
        rows = {
            subject.name: Measured(workload.name, subject.name, at=at, cpu=cpu)
            for subject in subjects
            if workload.fits(subject)
        }
        report.measured += rows.values()
        for turn in range(repeats):
            for subject in subjects:
                row = rows.get(subject.name)
                if row is None or row.failures:
                    continue
                row.load.append(round(machine.load(), 2))
                begun = time.monotonic()
                try:
                    figures = await workload.measure(bench, subject)
                except (DriverFailed, MissingPeer) as error:
                    row.failures.append(str(error))
                    print(f"{workload.name:18} {subject.name:9} {error}", file=out, flush=True)
                    continue
                row.repeats.append({name: round(value, 4) for name, value in figures.items()})
                said = "  ".join(f"{name} {value:,.4g}" for name, value in figures.items())
                took = time.monotonic() - begun
                print(
                    f"{workload.name:18} {subject.name:9} {turn + 1}/{repeats} {took:5.1f} s  {said}",
                    file=out, flush=True,
                )  # fmt: skip
    return report
