"""A model of many nodes: measured costs of one job, written assumptions, and what follows from both.

    python -m benchmarks.scale.model          # the table of docs/scale.md, from benchmarks/scale/last.json

``benchmarks.scale.run`` measures the costs on one server, and compares the model with 1, 2 and 3 local nodes.
"""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path
from typing import NamedTuple

LAST = Path(__file__).parent / "last.json"
DAY = 86_400

BUSY = 0.8
"""The share of a core that is planned for. The rest is for peaks, heartbeats, sweeps and persistence."""
PEAK = 3.0
"""The rate of the busiest hour, as a multiple of the mean rate of the day."""
BACKLOG_SECONDS = 3600
"""Jobs that wait in an outage of all workers: one hour at the mean rate."""
JOB_SECONDS = 0.1
"""How long a handler runs. With 100 slots a worker process is then bound by its CPU, not by its slots."""


class Costs(NamedTuple):
    """Microseconds of CPU for one job, measured with batches, and bytes."""

    enqueue_server: float
    enqueue_producer: float
    run_server: float
    run_worker: float
    bytes_waiting: float


class Rate(NamedTuple):
    """Jobs a second, and which processor sets the bound."""

    jobs: float
    bound: str


def rate(server: float, client: float, nodes: int, clients: int, cores: int | None = None) -> Rate:
    """Jobs a second of ``clients`` processes on ``nodes`` servers. Each is one core. ``cores``: all that there are, if
    the processes share a machine."""
    bounds = {"the clients": clients * 1e6 / client, "the nodes": nodes * 1e6 / server}
    if cores is not None:
        bounds[f"{cores} cores for all"] = cores * 1e6 / (server + client)
    bound = min(bounds, key=lambda name: bounds[name])
    return Rate(bounds[bound], bound)


class Plan(NamedTuple):
    """What a number of jobs a day needs."""

    jobs_a_day: float
    nodes: int
    workers: int
    gigabytes: float
    """Of memory per node, for the backlog."""
    connections: int
    """Per node, at most."""


def plan(costs: Costs, jobs_a_day: float, per_worker: int = 4) -> Plan:
    """Nodes and worker processes. Each job is enqueued and run. ``per_worker``: connections of a worker to a node:
    trips, wait, subscription, heartbeat."""
    peak = jobs_a_day / DAY * PEAK
    nodes = max(1, ceil(peak * (costs.enqueue_server + costs.run_server) / 1e6 / BUSY))
    workers = max(1, ceil(peak * costs.run_worker / 1e6 / BUSY), ceil(peak * JOB_SECONDS / 100 / BUSY))
    backlog = jobs_a_day / DAY * BACKLOG_SECONDS * costs.bytes_waiting
    return Plan(jobs_a_day, nodes, workers, backlog / nodes / 1e9, workers * per_worker)


def capacity(costs: Costs, nodes: int) -> float:
    """Jobs a second that this number of nodes takes in and gives out, with enough producers and workers."""
    return nodes * BUSY * 1e6 / (costs.enqueue_server + costs.run_server)


def main() -> None:
    costs = Costs(**json.loads(LAST.read_text())["costs"])
    print("| jobs a day | nodes | worker processes | memory per node for an hour's backlog | connections per node |")
    print("|---|---|---|---|---|")
    for jobs in (1e6, 1e7, 1e8, 1e9):
        one = plan(costs, jobs)
        print(
            f"| {one.jobs_a_day:,.0f} | {one.nodes} | {one.workers} | {one.gigabytes:.1f} GB |"
            f" up to {one.connections:,} |"
        )
    print("\n| nodes | jobs a second, in and out | jobs a day at that rate |")
    print("|---|---|---|")
    for nodes in (1, 3, 10, 100, 1000):
        jobs = capacity(costs, nodes)
        print(f"| {nodes:,} | {jobs:,.0f} | {jobs * DAY:.1e} |")


if __name__ == "__main__":
    main()
