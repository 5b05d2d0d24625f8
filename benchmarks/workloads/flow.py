"""The cost of limits and groups. Only for jobq: each drain is compared with a plain one of the same turn."""

from __future__ import annotations

from statistics import median

from benchmarks import drive
from benchmarks.server import Server
from benchmarks.subjects import Subject
from benchmarks.workloads.base import Bench, Figures, Workload

ROUNDS = 3
VARIANTS = ("plain", "groups", "tenants", "wide")
"""No limits; 1,000 groups; a concurrency of 5 for each of 1,000 tenants; a concurrency and a rate of the whole queue,
both above the traffic."""
FEW, MANY = "keys-10", "keys-10000"
"""Three rules with 10 or 10,000 keys each. All keys have jobs that wait, and at most 10 jobs of a key run at once."""
HELD = 100_000
"""Full groups behind which the others must not wait."""
FULL_LINES = "jobq:{bench}:full_lines"
RELEASED = 1_000_000
RATE = 10_000
"""Jobs per second of the one key in ``release``."""
SECONDS = 30.0
"""The key may start its burst at once, beyond its rate. In 5 seconds that alone is 1 % of the jobs."""


async def _drain(bench: Bench, subject: Subject, server: Server, settings: str, jobs: int) -> Figures:
    await drive.produce(subject, bench.peers, bench.folder, server.url, jobs, "bulk", settings=settings)
    server.client.slowlog_reset()
    redis = -server.cpu_seconds()
    seconds, worker, exact, _ = await drive.drain(
        subject, bench.peers, bench.folder, server.url, jobs, settings=settings
    )
    redis += server.cpu_seconds()
    if not exact:
        raise drive.DriverFailed(f"{settings}: not every job ran exactly once")
    return {
        "rate": jobs / seconds,
        "redis_us": redis * 1e6 / jobs,
        "worker_us": worker * 1e6 / jobs,
        "slowest_ms": server.slowest_ms(),
    }


def _compared(turns: list[dict[str, Figures]], base: str) -> Figures:
    """The medians of each variant, and the ratio of its rate to that of ``base`` in the same turn."""
    figures: Figures = {}
    for name in turns[0]:
        for figure in ("rate", "redis_us", "worker_us"):
            figures[f"{name}_{figure}"] = median(turn[name][figure] for turn in turns)
        # A script that is slow by itself is slow in every turn. One that waited for a core is not.
        figures[f"{name}_slowest_ms"] = min(turn[name]["slowest_ms"] for turn in turns)
        figures[f"{name}_kept"] = median(turn[name]["rate"] / turn[base]["rate"] for turn in turns)
    return figures


async def drains(bench: Bench, subject: Subject) -> Figures:
    """Drains of the same no-op jobs: plain, in groups, under limits of tenants, and of the whole queue."""
    jobs, turns = bench.jobs_of(subject, 0.5), []
    for _ in range(ROUNDS):
        turn: dict[str, Figures] = {}
        for settings in VARIANTS:
            with Server(bench.server) as server:
                turn[settings] = await _drain(bench, subject, server, settings, jobs)
        turns.append(turn)
    return _compared(turns, "plain")


async def keys(bench: Bench, subject: Subject) -> Figures:
    """Drains of jobs with three limit keys, of 30 keys and of 30,000."""
    jobs, turns = bench.jobs_of(subject, 0.3), []
    for _ in range(ROUNDS):
        turn: dict[str, Figures] = {}
        for settings in (FEW, MANY):
            with Server(bench.server) as server:
                turn[settings] = await _drain(bench, subject, server, settings, jobs)
        turns.append(turn)
    return _compared(turns, FEW)


async def full(bench: Bench, subject: Subject) -> Figures:
    """Drains of jobs in 10 groups, alone and behind 100,000 groups whose jobs no limit lets start."""
    jobs, turns = bench.jobs_of(subject, 0.3), []
    with Server(bench.server) as alone, Server(bench.server) as behind:
        await drive.produce(subject, bench.peers, bench.folder, behind.url, HELD, "bulk", settings="full")
        while behind.client.zcard(FULL_LINES) < HELD:
            # The first workers look at each full group once.
            await _drain(bench, subject, behind, "groups-10", jobs)
        for _ in range(ROUNDS):
            turn = {"alone": await _drain(bench, subject, alone, "groups-10", jobs)}
            turn["behind"] = await _drain(bench, subject, behind, "groups-10", jobs)
            turns.append(turn)
    return _compared(turns, "alone")


async def release(bench: Bench, subject: Subject) -> Figures:
    """A million held jobs of one key that allows 10,000 starts a second.

    ``kept``: the measured rate over that of the rule. ``redis_us``: Redis CPU of a job from held to completed.
    """
    started = int(RATE * SECONDS)
    with Server(bench.server) as server:
        await drive.produce(subject, bench.peers, bench.folder, server.url, RELEASED, "bulk", settings="release")
        redis = -server.cpu_seconds()
        seconds, _, _, _ = await drive.drain(
            subject, bench.peers, bench.folder, server.url, started, waiting=RELEASED, settings="release"
        )
        redis += server.cpu_seconds()
        slowest = server.slowest_ms()
    return {
        "rate": started / seconds,
        "kept": started / seconds / RATE,
        "redis_us": redis * 1e6 / started,
        "slowest_ms": slowest,
    }


ONLY_JOBQ = frozenset({"jobq"})
WORKLOADS = [
    Workload("flow", "Limits and groups", drains, only=ONLY_JOBQ),
    Workload("flow-keys", "Three rules, 10 keys each and 10,000", keys, only=ONLY_JOBQ),
    Workload("flow-full", "Behind 100,000 full groups", full, only=ONLY_JOBQ),
    Workload("flow-release", "A million held jobs, released at 10,000 a second", release, only=ONLY_JOBQ),
]
