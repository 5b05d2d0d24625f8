"""Full stores, ten thousand sleeping jobs, long jobs among short ones. Only for jobq: these test promises, not a
comparison."""

from __future__ import annotations

import json
from statistics import median

from msgspec.structs import replace

from benchmarks import drive
from benchmarks.server import Server
from benchmarks.subjects import MissingPeer, Subject
from benchmarks.workloads.base import Bench, Figures, Workload
from jobq.engine.server.embedded import find_binary
from jobq.errors import NoServer

MILLION = 1_000_000
KEEP = 2 * MILLION
DRAINED = 100_000
ONE = 10_000
WAITING = "jobq:{bench}:waiting"
SLEEPERS = 10_000
WORKERS = 4
SLOTS = 10
"""Per worker, in the mixed workload."""
SHORT, LONG = 0.05, 1.0
"""Seconds."""
MIXED_JOBS = 2000
ROUNDS = 3


async def _figures(bench: Bench, subject: Subject, server: Server, waiting: int) -> Figures:
    """The usual figures with everything that is already in the server."""

    async def enqueue(jobs: int, how: str) -> dict[str, float]:
        return await drive.produce(subject, bench.peers, bench.folder, server.url, jobs, how)

    server.client.slowlog_reset()
    bulk = await enqueue(DRAINED, "bulk")
    before = server.client.zcard(WAITING)
    redis = -server.cpu_seconds()
    seconds, _, _, _ = await drive.drain(
        subject, bench.peers, bench.folder, server.url, DRAINED, waiting=waiting, keep=KEEP
    )
    redis += server.cpu_seconds()
    done = before - server.client.zcard(WAITING)
    one = await enqueue(ONE, "one")
    return {
        "one_of_ping": one["ping_seconds"] / one["seconds"],
        "bulk_rate": DRAINED / bulk["seconds"],
        "drain_rate": DRAINED / seconds,
        "redis_us": redis * 1e6 / done,
    }


async def million(bench: Bench, subject: Subject) -> Figures:
    """The figures with 1e6 waiting, 1e6 delayed and 1e6 finished jobs in the queue, alternating with those of an
    empty one. ``_kept`` is the ratio.

    ``slowest_ms``: the slowest script meanwhile (0: none over 2 ms).
    """

    async def fill(server: Server) -> float:
        before = server.memory()
        await drive.produce(subject, bench.peers, bench.folder, server.url, MILLION, "bulk")
        await drive.drain(subject, bench.peers, bench.folder, server.url, MILLION, keep=KEEP)
        await drive.produce(subject, bench.peers, bench.folder, server.url, MILLION, "bulk", settings="delayed")
        await drive.produce(subject, bench.peers, bench.folder, server.url, MILLION, "bulk")
        return (server.memory() - before) / (3 * MILLION)

    empty, full = [], []
    slowest: list[float] = []
    with Server(bench.server) as small, Server(bench.server) as large:
        memory = await fill(large)
        for _ in range(ROUNDS):
            empty.append(await _figures(bench, subject, small, waiting=0))
            full.append(await _figures(bench, subject, large, waiting=MILLION))
            slowest.append(large.slowest_ms())
    # A script that is slow by itself is slow in every round. One that waited for a core is not.
    figures = {"slowest_ms": min(slowest), "bytes_per_job": memory}
    for name in empty[0]:
        figures[f"{name}_empty"] = median(turn[name] for turn in empty)
        figures[f"{name}_full"] = median(turn[name] for turn in full)
        figures[f"{name}_kept"] = median(b[name] / a[name] for a, b in zip(empty, full, strict=True))
    return figures


async def million_embedded(bench: Bench, subject: Subject) -> Figures:
    """The same on the server of `jobq[embedded]`. The cost of a full store depends on the server's tables."""
    try:
        binary = find_binary()
    except NoServer as error:
        raise MissingPeer(str(error)) from error
    return await million(replace(bench, server=str(binary)), subject)


async def sleepers(bench: Bench, subject: Subject) -> Figures:
    """10,000 jobs that sleep for a second, concurrency 10,000: from the worker's start to the last end."""
    peak = 0
    with Server(bench.server) as server:
        await drive.produce(subject, bench.peers, bench.folder, server.url, SLEEPERS, "naps", settings="[1.0]")

        def watch(drivers: list[drive.Driver]) -> None:
            nonlocal peak
            peak = max(peak, sum(driver.resident_bytes() for driver in drivers))

        naps = bench.folder / "naps.json"
        _, worker, exact, _ = await drive.drain(
            subject, bench.peers, bench.folder, server.url, SLEEPERS,
            concurrency=SLEEPERS, watch=watch, env={"BENCHMARK_NAPS": str(naps)},
        )  # fmt: skip
    runs: list[tuple[float, float]] = json.loads(naps.read_text())
    return {
        "seconds": max(end for _, end in runs) - min(begun for begun, _ in runs),
        "worker_us": worker * 1e6 / SLEEPERS,
        "resident_mb": peak / 2**20,
        "exactly_once": float(exact),
    }


async def mixed(bench: Bench, subject: Subject) -> Figures:
    """One job in ten takes 1 s, the others 50 ms; 4 workers with 10 slots each.

    ``utilisation``: the share of all slots' time, until the last job was started, that was spent in handlers.
    """
    pattern = json.dumps([LONG] + [SHORT] * 9)
    files = [bench.folder / f"naps-{number}.json" for number in range(WORKERS)]
    with Server(bench.server) as server:
        await drive.produce(subject, bench.peers, bench.folder, server.url, MIXED_JOBS, "naps", settings=pattern)
        _, _, exact, _ = await drive.drain(
            subject, bench.peers, bench.folder, server.url, MIXED_JOBS,
            processes=WORKERS, concurrency=SLOTS, envs=[{"BENCHMARK_NAPS": str(file)} for file in files],
        )  # fmt: skip
    runs: list[tuple[float, float]] = [tuple(nap) for file in files for nap in json.loads(file.read_text())]
    first, last = min(begun for begun, _ in runs), max(begun for begun, _ in runs)
    busy = sum(min(end, last) - begun for begun, end in runs)
    return {
        "utilisation": busy / ((last - first) * WORKERS * SLOTS),
        "seconds": max(end for _, end in runs) - first,
        "exactly_once": float(exact),
    }


ONLY_JOBQ = frozenset({"jobq"})
WORKLOADS = [
    Workload("million", "1e6 waiting + 1e6 delayed + 1e6 finished", million, only=ONLY_JOBQ),
    Workload("million-embedded", "The same on the embedded server", million_embedded, only=ONLY_JOBQ),
    Workload("sleepers", "10,000 sleeping jobs at concurrency 10,000", sleepers, only=ONLY_JOBQ),
    Workload("mixed", "Long jobs among short ones, 4 workers", mixed, only=ONLY_JOBQ),
]
