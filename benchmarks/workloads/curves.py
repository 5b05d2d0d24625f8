"""Throughput over backlog, batch size, concurrency and processes, for the plots. Of jobq alone."""

from __future__ import annotations

from benchmarks import drive
from benchmarks.server import Server
from benchmarks.subjects import Subject
from benchmarks.workloads.base import Bench, Figures, Workload

BACKLOGS = (1_000, 10_000, 100_000, 500_000)
BATCHES = (1, 2, 5, 10, 25, 50, 100, 250, 1000)
CONCURRENCIES = (1, 3, 10, 30, 100, 300, 1000)
PROCESSES = (1, 2, 3, 4)
JOBS = 60_000


async def _drained(bench: Bench, subject: Subject, jobs: int, concurrency: int = 100, processes: int = 1) -> float:
    with Server(bench.server) as server:
        await drive.produce(subject, bench.peers, bench.folder, server.url, jobs, "bulk")
        seconds, _, _, _ = await drive.drain(
            subject, bench.peers, bench.folder, server.url, jobs, concurrency=concurrency, processes=processes
        )
    return jobs / seconds


async def backlog(bench: Bench, subject: Subject) -> Figures:
    """Drain, by the number of waiting jobs."""
    return {str(jobs): await _drained(bench, subject, jobs) for jobs in BACKLOGS}


async def batch(bench: Bench, subject: Subject) -> Figures:
    """Enqueue, by jobs per call."""
    rates: Figures = {}
    for size in BATCHES:
        jobs = min(JOBS, 2000 * size)
        with Server(bench.server) as server:
            said = await drive.produce(subject, bench.peers, bench.folder, server.url, jobs, "bulk", chunk=size)
        rates[str(size)] = jobs / said["seconds"]
    return rates


async def concurrency(bench: Bench, subject: Subject) -> Figures:
    """Drain, by handlers at a time."""
    return {
        str(slots): await _drained(bench, subject, min(JOBS, 10_000 * slots), concurrency=slots)
        for slots in CONCURRENCIES
    }


async def processes(bench: Bench, subject: Subject) -> Figures:
    """Drain, by worker processes."""
    return {str(count): await _drained(bench, subject, 2 * JOBS, processes=count) for count in PROCESSES}


ONLY_JOBQ = frozenset({"jobq"})
WORKLOADS = [
    Workload("over-backlog", "Drain over the backlog", backlog, only=ONLY_JOBQ),
    Workload("over-batch", "Enqueue over the batch size", batch, only=ONLY_JOBQ),
    Workload("over-concurrency", "Drain over concurrency", concurrency, only=ONLY_JOBQ),
    Workload("over-processes", "Drain over worker processes", processes, only=ONLY_JOBQ),
]
