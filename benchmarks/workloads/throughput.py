"""Drain and enqueue: jobs per second, CPU per job on both sides, memory per job, every job exactly once."""

from __future__ import annotations

from benchmarks import drive
from benchmarks.server import Server
from benchmarks.subjects import Subject
from benchmarks.workloads.base import Bench, Figures, Workload


def fastest_way(subject: Subject) -> str:
    """The ways to make a backlog."""
    for how in ("bulk", "gathered", "one"):
        if how in subject.can:
            return how
    raise ValueError(subject.name)


async def _drain(bench: Bench, subject: Subject, processes: int) -> Figures:
    jobs = bench.jobs_of(subject)
    with Server(bench.server) as server:
        await drive.produce(subject, bench.peers, bench.folder, server.url, jobs, fastest_way(subject))
        redis = -server.cpu_seconds()
        seconds, worker, exact, _ = await drive.drain(
            subject, bench.peers, bench.folder, server.url, jobs, processes=processes
        )
        redis += server.cpu_seconds()
    return {
        "jobs": jobs,
        "rate": jobs / seconds,
        "worker_us": worker * 1e6 / jobs,
        "redis_us": redis * 1e6 / jobs,
        "exactly_once": float(exact),
    }


async def drain_1(bench: Bench, subject: Subject) -> Figures:
    """A backlog of no-op jobs, one worker process."""
    return await _drain(bench, subject, 1)


async def drain_2(bench: Bench, subject: Subject) -> Figures:
    """The same with two worker processes."""
    return await _drain(bench, subject, 2)


async def realistic(bench: Bench, subject: Subject) -> Figures:
    """Drains of plain and of realistic jobs, alternating.

    A realistic job has two dependencies, one middleware, a timeout, one log line and progress. ``cost``: the worker
    CPU of such a job over that of a plain one.
    """
    jobs = bench.jobs_of(subject, 0.25)
    spent = {"": 0.0, "realistic": 0.0}
    took = dict(spent)
    for _ in range(3):
        for settings in spent:
            with Server(bench.server) as server:
                await drive.produce(
                    subject, bench.peers, bench.folder, server.url, jobs, "bulk", settings=settings or "plain"
                )
                seconds, worker, exact, _ = await drive.drain(
                    subject, bench.peers, bench.folder, server.url, jobs, settings=settings
                )
            if not exact:
                raise drive.DriverFailed(f"{subject.name}: not every job ran exactly once")
            spent[settings] += worker
            took[settings] += seconds
    return {
        "jobs": 3 * jobs,
        "rate": 3 * jobs / took["realistic"],
        "worker_us": spent["realistic"] * 1e6 / jobs / 3,
        "plain_worker_us": spent[""] * 1e6 / jobs / 3,
        "cost": spent["realistic"] / spent[""],
        "rate_kept": took[""] / took["realistic"],
    }


async def _enqueue(bench: Bench, subject: Subject, how: str, part: float) -> Figures:
    jobs = bench.jobs_of(subject, part)
    with Server(bench.server) as server:
        redis = -server.cpu_seconds()
        said = await drive.produce(subject, bench.peers, bench.folder, server.url, jobs, how)
        redis += server.cpu_seconds()
    figures = {"jobs": jobs, "rate": jobs / said["seconds"], "redis_us": redis * 1e6 / jobs}
    if "ping_seconds" in said:
        figures["of_ping"] = said["ping_seconds"] / said["seconds"]
        del figures["redis_us"]  # This includes the PINGs.
    return figures


async def enqueue_one(bench: Bench, subject: Subject) -> Figures:
    """Each enqueue is awaited before the next. ``of_ping``: relative to redis.asyncio's PING on the same loop."""
    return await _enqueue(bench, subject, "one", 0.1)


async def enqueue_gathered(bench: Bench, subject: Subject) -> Figures:
    """A thousand enqueues at a time, gathered."""
    return await _enqueue(bench, subject, "gathered", 0.5)


async def enqueue_bulk(bench: Bench, subject: Subject) -> Figures:
    """The call for many jobs, a thousand at a time."""
    return await _enqueue(bench, subject, "bulk", 0.5)


async def memory(bench: Bench, subject: Subject) -> Figures:
    """Redis memory per waiting and per finished job, and Redis CPU of a job's full cycle."""
    jobs = bench.jobs_of(subject, 0.5)
    keep = jobs if subject.name == "jobq" else 0
    with Server(bench.server) as server:
        empty = server.memory()
        redis = -server.cpu_seconds()
        await drive.produce(subject, bench.peers, bench.folder, server.url, jobs, fastest_way(subject))
        waiting = server.memory() - empty
        await drive.drain(subject, bench.peers, bench.folder, server.url, jobs, keep=keep)
        redis += server.cpu_seconds()
        finished = server.memory() - empty
    return {
        "jobs": jobs,
        "waiting_bytes": waiting / jobs,
        "finished_bytes": finished / jobs,
        "cycle_redis_us": redis * 1e6 / jobs,
    }


WORKLOADS = [
    Workload("drain-1", "Drain, one worker process", drain_1, frozenset({"drain"})),
    Workload("drain-2", "Drain, two worker processes", drain_2, frozenset({"drain"})),
    Workload("realistic", "Drain of realistic jobs", realistic, only=frozenset({"jobq"})),
    Workload("enqueue-one", "Enqueue, awaited one by one", enqueue_one, frozenset({"one"})),
    Workload("enqueue-gathered", "Enqueue, gathered", enqueue_gathered, frozenset({"gathered"})),
    Workload("enqueue-bulk", "Enqueue, bulk", enqueue_bulk, frozenset({"bulk"})),
    Workload("memory", "Redis memory and CPU, full cycle", memory, frozenset({"drain"})),
]
