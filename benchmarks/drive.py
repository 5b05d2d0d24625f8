"""Driver processes: they are started, released together, watched and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from benchmarks import machine
from benchmarks.subjects import KIT, Subject

READY_WITHIN = 60.0
STOP_WITHIN = 30.0


class DriverFailed(Exception):
    """A driver ended, or printed nothing for too long."""


class Driver:
    """A running driver. Its stderr is shown if it fails."""

    def __init__(self, subject: Subject, process: asyncio.subprocess.Process, complaints: Path) -> None:
        self.subject = subject
        self._process = process
        self._complaints = complaints

    @classmethod
    async def start(
        cls, subject: Subject, peers: Path, folder: Path, verb: str, env: dict[str, str] | None = None, **words: Any
    ) -> Self:
        """Start a driver and wait until it is ready.

        :raises DriverFailed: it does not become ready.
        """
        command = [*subject.command(peers), verb]
        for name, value in words.items():
            command += [f"--{name}", str(value)]
        complaints = Path(tempfile.mkstemp(prefix=f"{subject.name}-", suffix=".err", dir=folder)[1])
        with complaints.open("wb") as stderr:  # noqa: ASYNC230 - nothing else runs meanwhile
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": str(KIT), **(env or {})},
            )
        driver = cls(subject, process, complaints)
        if await driver._line(READY_WITHIN) != "ready":
            await driver.kill()
            raise driver._failed("did not get ready")
        return driver

    def _failed(self, what: str) -> DriverFailed:
        last = self._complaints.read_text(errors="replace")[-1500:]
        return DriverFailed(f"{self.subject.name} {what}\n{last}")

    async def _line(self, timeout: float) -> str:
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), timeout)
        except TimeoutError:
            return ""
        return line.decode().strip()

    def go(self) -> None:
        """Send the word that the driver waits for."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")

    async def answer(self, timeout: float) -> dict[str, float]:
        """The line of JSON that ends a ``produce``, with the CPU seconds since ``go`` if they were read.

        :raises DriverFailed: there is no such line.
        """
        line = await self._line(timeout)
        if not line.startswith("{"):
            await self.kill()
            raise self._failed(f"gave no answer within {timeout:.0f} s: {line!r}")
        answer: dict[str, float] = json.loads(line)
        await asyncio.wait_for(self._process.wait(), STOP_WITHIN)
        return answer

    @property
    def running(self) -> bool:
        """Whether the process still runs."""
        return self._process.returncode is None

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        return machine.cpu_seconds(self._process.pid)

    def resident_bytes(self) -> int:
        """Memory now."""
        return machine.resident_bytes(self._process.pid)

    async def stop(self) -> None:
        """Close its stdin, so that it ends by itself."""
        if not self.running:
            raise self._failed(f"ended by itself ({self._process.returncode})")
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_WITHIN)
        except TimeoutError:
            await self.kill()
            raise self._failed("did not stop") from None

    async def kill(self) -> None:
        """At once."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


PAGE = 4096
"""Jobs that the tally counts in one step."""


class Tally:
    """The number of runs of each job. The workers count them in files that they share with the harness, one per
    process.

    ``jobs`` are the expected numbers. Only the first ``looked`` of them are counted.
    """

    def __init__(self, folder: Path, jobs: int, processes: int, looked: int | None = None) -> None:
        self.looked = looked or jobs
        self._front = 0
        self.paths = [Path(tempfile.mkstemp(prefix="tally-", dir=folder)[1]) for _ in range(processes)]
        self._maps: list[mmap.mmap] = []
        for path in self.paths:
            path.write_bytes(bytes(jobs))
            with path.open("r+b") as file:
                self._maps.append(mmap.mmap(file.fileno(), 0))

    def ran(self) -> int:
        """The number of different jobs of each process, summed.

        Complete pages are not counted again. Counting them took 0.4 ms each time while two workers ran 120,000 jobs,
        on one of their cores.
        """
        while self._front + PAGE <= self.looked and self._counted(self._front, self._front + PAGE) >= PAGE:
            self._front += PAGE
        return self._front + self._counted(self._front, self.looked)

    def _counted(self, begin: int, end: int) -> int:
        return sum(len(page) - page.count(0) for page in (one[begin:end] for one in self._maps))

    def exact(self) -> bool:
        """Whether every job ran exactly once. More than 255 repeats of a job would wrap, but would first show as
        lost time."""
        counts = sum(int.from_bytes(one[: self.looked], "big") for one in self._maps)
        return counts == int.from_bytes(b"\1" * self.looked, "big")

    def close(self) -> None:
        """Forget it."""
        for one in self._maps:
            one.close()
        for path in self.paths:
            path.unlink(missing_ok=True)


async def drain(
    subject: Subject,
    peers: Path,
    folder: Path,
    url: str,
    jobs: int,
    *,
    processes: int = 1,
    concurrency: int = 100,
    waiting: int = 0,
    keep: int = 0,
    settings: str = "",
    timeout: float = 120.0,
    env: dict[str, str] | None = None,
    envs: Sequence[dict[str, str]] = (),
    watch: Callable[[list[Driver]], None] | None = None,
) -> tuple[float, float, bool, list[Driver]]:
    """Run ``jobs`` enqueued jobs with some worker processes, from the first run to the last.

    ``waiting``: the number of all jobs, if only about the first ``jobs`` are to be run. ``envs``: an environment per
    process. ``watch(drivers)`` is called during the run. Returns seconds, CPU seconds of the workers, whether every
    job ran exactly once, and the stopped drivers. The resolution of the time is the 5 ms between two readings of the
    tally.

    :raises DriverFailed: it did not finish within ``timeout`` seconds.
    """
    tally = Tally(folder, waiting or jobs, processes, min(waiting, 4 * jobs))
    drivers: list[Driver] = []
    try:
        for number, path in enumerate(tally.paths):
            own = envs[number] if envs else env or {}
            words: dict[str, Any] = {"redis": url, "concurrency": concurrency}
            if keep:
                words["keep"] = keep
            if settings:
                words["settings"] = settings
            drivers.append(
                await Driver.start(subject, peers, folder, "work", env={"BENCHMARK_TALLY": str(path), **own}, **words)
            )
        used = -sum(driver.cpu_seconds() for driver in drivers)
        deadline = time.perf_counter() + timeout
        for driver in drivers:
            driver.go()
        begun = 0.0
        while True:
            ran = tally.ran()
            now = time.perf_counter()
            if ran and not begun:
                begun = now
            if ran >= jobs:
                break
            if watch is not None:
                watch(drivers)
            if now > deadline or not all(driver.running for driver in drivers):
                raise DriverFailed(f"{subject.name} ran {ran} of {jobs} jobs in {timeout:.0f} s")
            # Counting uses some of the cores that are measured. So it is rare, except when the clock starts and
            # stops.
            await asyncio.sleep(0.02 if 0 < ran < 0.8 * jobs else 0.005)
        used += sum(driver.cpu_seconds() for driver in drivers)
        for driver in drivers:
            await driver.stop()
        return now - begun, used, tally.exact(), drivers
    finally:
        for driver in drivers:
            await driver.kill()
        tally.close()


async def produce(
    subject: Subject, peers: Path, folder: Path, url: str, jobs: int, how: str, *, timeout: float = 180.0, **words: Any
) -> dict[str, float]:
    """Enqueue ``jobs`` jobs. Returns the driver's figures, and ``cpu_seconds`` of its process up to its end.

    :raises DriverFailed: it did not finish within ``timeout`` seconds.
    """
    driver = await Driver.start(subject, peers, folder, "produce", redis=url, jobs=jobs, how=how, **words)
    try:
        driver.go()
        return await driver.answer(timeout)
    finally:
        await driver.kill()
