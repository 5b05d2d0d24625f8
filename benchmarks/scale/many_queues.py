"""What a worker of many queues costs while it is idle, and how soon it starts a job.

    python -m benchmarks.scale.many_queues 1 10 200     # numbers of queues
    NODES=3 python -m benchmarks.scale.many_queues 1 64 # the same on a local cluster of three nodes
    PARTITIONS=64 python -m benchmarks.scale.many_queues 1

A server and a worker run in processes of their own. For each number it prints the time until the worker waits for jobs,
commands per second (all, with those inside scripts), connections, memory and CPU of the worker, CPU of the server, and
the time from an enqueue into a random queue to the start of the handler.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.scale.nodes import Nodes
from benchmarks.server import Server
from jobq import Connection, Queue, Worker
from jobq.engine.server.embedded import find_binary

if TYPE_CHECKING:
    from collections.abc import Iterator

IDLE_SECONDS = float(os.environ.get("IDLE_SECONDS", "30"))
WARM_SECONDS = float(os.environ.get("WARM_SECONDS", "12"))
"""Time for what is done at the start. A worker of many queues tidies idle ones less often after some minutes."""
PICKUPS = 500
NODES = int(os.environ.get("NODES", "0"))
"""The nodes of the cluster; 0: one server that is no cluster."""
PARTITIONS = int(os.environ.get("PARTITIONS", "0")) or None
TICK = os.sysconf("SC_CLK_TCK")


async def work(url: str, count: int) -> None:
    """The worker's process."""
    connection = Connection(url)
    queues = [Queue(f"q{n}", connection, partitions=PARTITIONS) for n in range(count)]
    for queue in queues:

        @queue.task
        async def started() -> float:
            return time.monotonic()

    worker = Worker(*queues, concurrency=100)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.run()


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICK


def rss(pid: int) -> float:
    """Memory of a process, in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def executed(clients: list[Any]) -> int:
    """Commands that the servers have executed, with those inside scripts, without what the nodes tell one another."""
    stats = [client.info("commandstats") for client in clients]
    return sum(row["calls"] for one in stats for name, row in one.items() if "replconf" not in name)


def connections(clients: list[Any]) -> int:
    """The connections of jobq to the servers."""
    return sum(row["name"] == "jobq" for client in clients for row in client.client_list())


@contextmanager
def servers() -> Iterator[tuple[str, list[Any], list[int]]]:
    """The URL of a server or cluster, clients of its nodes, and their processes."""
    if NODES:
        with Nodes(NODES) as nodes:
            yield nodes.url, nodes.clients, nodes.pids
        return
    with Server(str(find_binary())) as server:
        yield server.url, [server.client], [int(server.client.info("server")["process_id"])]


async def pickups(url: str, count: int) -> list[float]:
    """Milliseconds from an enqueue to the start of its handler, sorted."""
    connection = Connection(url)
    found: list[float] = []
    queues = [Queue(f"q{n}", connection, partitions=PARTITIONS) for n in range(count)]
    for queue in queues:
        await queue.open()
    for _ in range(PICKUPS):
        queue = random.choice(queues)
        began = time.monotonic()
        job = await queue.enqueue("started")
        found.append((await job.result(10) - began) * 1000)
        await asyncio.sleep(0.002)
    for queue in queues:
        await queue.aclose()
    return sorted(found)


def measure(count: int) -> dict[str, float]:
    """One worker of this number of queues."""
    with servers() as (url, clients, pids):
        began = time.monotonic()
        worker = subprocess.Popen([sys.executable, "-m", __spec__.name, "work", url, str(count)])
        try:
            # Its last step is to listen to the control channels.
            while not any(int(row["sub"]) for client in clients for row in client.client_list()):
                time.sleep(0.02)
            ready = time.monotonic() - began
            time.sleep(WARM_SECONDS)
            before = executed(clients), cpu(worker.pid), sum(map(cpu, pids)), time.monotonic()
            time.sleep(IDLE_SECONDS)
            seconds = time.monotonic() - before[3]
            idle = {
                "queues": count,
                "nodes": NODES,
                "first wait s": ready,
                "commands/s": (executed(clients) - before[0]) / seconds,
                "worker cpu %": (cpu(worker.pid) - before[1]) / seconds * 100,
                "server cpu %": (sum(map(cpu, pids)) - before[2]) / seconds * 100,
                "connections": connections(clients),
                "worker MB": rss(worker.pid),
            }
            times = asyncio.run(pickups(url, count))
            return idle | {
                "start p50 ms": times[len(times) // 2],
                "start p99 ms": times[len(times) * 99 // 100],
            }
        finally:
            worker.terminate()
            worker.wait(30)


def main() -> None:
    if sys.argv[1:2] == ["work"]:
        asyncio.run(work(sys.argv[2], int(sys.argv[3])))
        return
    for count in [int(word) for word in sys.argv[1:]] or [1, 10, 200]:
        print(json.dumps({name: round(value, 3) for name, value in measure(count).items()}), flush=True)


if __name__ == "__main__":
    main()
