"""The time until an idle worker starts a job, and the delay with which a delayed job starts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from benchmarks import drive
from benchmarks.server import Server
from benchmarks.subjects import Subject
from benchmarks.workloads.base import Bench, Figures, Workload, quantile

JOBS = 400
WARM = 50
SLOW = frozenset({"arq", "saq", "dramatiq"})
"""These peers poll every half second or second, so fewer jobs are enough."""


async def _latency(bench: Bench, subject: Subject, how: str) -> Figures:
    jobs = 60 if subject.name in SLOW else JOBS
    late = bench.folder / "late.json"
    late.unlink(missing_ok=True)
    with Server(bench.server) as server:
        worker = await drive.Driver.start(
            subject, bench.peers, bench.folder, "work", env={"BENCHMARK_LATENCIES": str(late)}, redis=server.url
        )
        try:
            worker.go()
            await asyncio.sleep(2)  # The worker is idle.
            await drive.produce(
                subject, bench.peers, bench.folder, server.url, jobs, how, pause=0.1 if subject.name in SLOW else 0.01
            )
            await asyncio.sleep(2 if how == "paced" else (jobs * 0.1 if subject.name in SLOW else jobs * 0.01) + 3)
            await worker.stop()
        finally:
            await worker.kill()
    seconds: list[float] = json.loads(Path(late).read_text())
    if len(seconds) < jobs * 0.95:
        raise drive.DriverFailed(f"{subject.name}: {len(seconds)} of {jobs} timed jobs ran")
    settled = seconds[WARM:] if len(seconds) > 2 * WARM else seconds[5:]
    return {
        "jobs": len(settled),
        "p50_ms": quantile(settled, 0.5) * 1000,
        "p99_ms": quantile(settled, 0.99) * 1000,
        "worst_ms": max(settled) * 1000,
    }


async def pickup(bench: Bench, subject: Subject) -> Figures:
    """The time from the call of enqueue to the start of the handler. The worker is idle before each."""
    return await _latency(bench, subject, "paced")


async def delayed(bench: Bench, subject: Subject) -> Figures:
    """The time from a delayed job's due time to the start of the handler."""
    return await _latency(bench, subject, "delayed")


WORKLOADS = [
    Workload("pickup", "Pickup latency, idle worker", pickup, frozenset({"paced"})),
    Workload("delayed", "Lateness of delayed jobs", delayed, frozenset({"delayed"})),
]
