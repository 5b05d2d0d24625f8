"""Measures the costs of the model on one server, and compares the model with local clusters of 1, 2 and 3 nodes.

    python -m benchmarks.scale.run     # writes benchmarks/scale/last.json and docs/benchmarks.md; ROUNDS=9 for more

Six queues are filled with bulk enqueues by one process, and drained by one worker process. The four subjects take
turns, and each round begins with another one, so that no place in a round favours one of them. All processes share the
cores of this machine, so the model counts them, too.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import describe
from benchmarks.page import write
from benchmarks.run import load
from benchmarks.scale.many_queues import cpu
from benchmarks.scale.model import LAST, Costs, rate
from benchmarks.scale.nodes import Nodes
from benchmarks.server import Server
from jobq import Connection, Queue, Worker
from jobq.engine.server.embedded import find_binary

QUEUES = 6
JOBS = 240_000
"""Bulk enqueues of them take more than a second. Those of 60,000 took 0.3 s, and differed by 20 % between rounds."""
PAGE = 500
ROUNDS = int(os.environ.get("ROUNDS", "3"))
PAGE_FROM = Path(__file__).parents[1] / "last.json"
DOCS = Path(__file__).parents[2] / "docs"
PAYLOAD = {"text": "x" * 88}
"""100 bytes of JSON."""


async def fill(url: str, names: list[str]) -> None:
    """Enqueue in bulk, the queues side by side."""
    connection = Connection(url)
    queues = [Queue(name, connection) for name in names]
    for queue in queues:
        await queue.open()

    async def one(queue: Queue) -> None:
        for _ in range(JOBS // QUEUES // PAGE):
            await queue.enqueue_many([queue.new("noop", PAYLOAD) for _ in range(PAGE)])

    began, used = time.monotonic(), time.process_time()
    await asyncio.gather(*(one(queue) for queue in queues))
    print(json.dumps({"seconds": time.monotonic() - began, "cpu": time.process_time() - used}))
    for queue in queues:
        await queue.aclose()


async def drain(url: str, names: list[str]) -> None:
    """Run all jobs. The time counts from the first one."""
    connection = Connection(url)
    queues = [Queue(name, connection) for name in names]
    ended, began, used = 0, 0.0, 0.0
    worker = Worker(*queues, concurrency=100)
    for queue in queues:

        @queue.task
        async def noop(text: str) -> None:
            nonlocal ended, began, used
            ended += 1
            if ended == 1:
                began, used = time.monotonic(), time.process_time()
            if ended == JOBS:
                print(json.dumps({"seconds": time.monotonic() - began, "cpu": time.process_time() - used}), flush=True)
                worker.stop()

    await worker.run()


def child(verb: str, url: str, names: list[str], pids: list[int]) -> dict[str, float]:
    """Run a part in a process of its own. Returns its seconds, its CPU, and that of the servers."""
    before = sum(map(cpu, pids))
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, verb, url, *names], check=True, stdout=subprocess.PIPE, timeout=120
    )
    return json.loads(done.stdout) | {"servers": sum(map(cpu, pids)) - before}


def both(url: str, names: list[str], pids: list[int], memory: Callable[[], float]) -> dict[str, float]:
    """One round: fill, then drain."""
    empty = memory()
    filled = child("fill", url, names, pids)
    size = memory() - empty
    drained = child("drain", url, names, pids)
    return {
        "enqueue": JOBS / filled["seconds"],
        "drain": JOBS / drained["seconds"],
        "enqueue_server": filled["servers"] / JOBS * 1e6,
        "enqueue_producer": filled["cpu"] / JOBS * 1e6,
        "run_server": drained["servers"] / JOBS * 1e6,
        "run_worker": drained["cpu"] / JOBS * 1e6,
        "bytes_waiting": size / JOBS,
    }


def used(clients: list[Any]) -> float:
    """Bytes of memory of all nodes."""
    return float(sum(client.info("memory")["used_memory"] for client in clients))


def subject(nodes: int) -> dict[str, float]:
    """A round on a cluster of this number of nodes; 0: on one plain server."""
    if not nodes:
        with Server(str(find_binary())) as server:
            pid = int(server.client.info("server")["process_id"])
            return both(server.url, [f"q{n}" for n in range(QUEUES)], [pid], lambda: used([server.client]))
    with Nodes(nodes) as cluster:
        return both(cluster.url, cluster.queues(QUEUES), cluster.pids, lambda: used(cluster.clients))


def main() -> None:
    if sys.argv[1:]:
        asyncio.run({"fill": fill, "drain": drain}[sys.argv[1]](sys.argv[2], sys.argv[3:]))
        return
    found: dict[int, list[dict[str, float]]] = {0: [], 1: [], 2: [], 3: []}
    subjects = list(found)
    for turn in range(ROUNDS):
        first = turn % len(subjects)
        for nodes in subjects[first:] + subjects[:first]:
            found[nodes].append(subject(nodes))
    medians = {n: {name: median(one[name] for one in rounds) for name in rounds[0]} for n, rounds in found.items()}
    costs = Costs(**{name: medians[0][name] for name in Costs._fields})
    cores = len(os.sched_getaffinity(0))
    # No process reaches all of its bound, because it also waits. The plain server shows which share of it.
    entered = medians[0]["enqueue"] / rate(costs.enqueue_server, costs.enqueue_producer, 1, 1, cores).jobs
    left = medians[0]["drain"] / rate(costs.run_server, costs.run_worker, 1, 1, cores).jobs
    rows: list[dict[str, Any]] = []

    def of_plain(nodes: int, what: str) -> list[float]:
        """The ratio to the plain server in each round: least, median, most."""
        ratios = sorted(some[what] / plain[what] for some, plain in zip(found[nodes], found[0], strict=True))
        return [ratios[0], median(ratios), ratios[-1]]

    for nodes in (1, 2, 3):
        into = rate(costs.enqueue_server, costs.enqueue_producer, nodes, 1, cores)
        out = rate(costs.run_server, costs.run_worker, nodes, 1, cores)
        rows.append(
            {
                "nodes": nodes,
                "enqueue": medians[nodes]["enqueue"],
                "enqueue_predicted": into.jobs * entered,
                "enqueue_bound": into.bound,
                "enqueue_of_plain": of_plain(nodes, "enqueue"),
                "drain": medians[nodes]["drain"],
                "drain_predicted": out.jobs * left,
                "drain_bound": out.bound,
                "drain_of_plain": of_plain(nodes, "drain"),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    print(json.dumps(costs._asdict()))
    LAST.write_text(
        json.dumps(
            {
                "machine": describe(),
                "costs": costs._asdict(),
                "nodes": rows,
                "plain": medians[0],
                "reached": {"enqueue": entered, "drain": left},
            },
            indent=1,
        )
        + "\n"
    )
    for page in write(load(PAGE_FROM), DOCS):
        print(page)


if __name__ == "__main__":
    main()
