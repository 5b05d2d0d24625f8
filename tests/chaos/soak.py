"""Steady work for a long time: ``python -m tests.chaos.soak --minutes M``. Memory must stay flat.

A producer and two worker processes; every sample prints the resident memory of a worker and of Redis. The first quarter
is warming up (retention fills, allocators settle); after it neither may grow by more than a tenth.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import psutil

from jobq import NewJob, Options, Queue
from jobq.engine.ids import new_id
from tests.chaos.conftest import free_port
from tests.conftest import Server

ROOT = Path(__file__).parents[2]
RATE = 300
"""Jobs a second: a load that leaves room for whoever shares the machine."""
queue = Queue("soak", keep_completed=2_000, keep_failed=100)


@queue.task(attempts=2)
async def work(n: int) -> dict[str, int]:
    """Fails now and then."""
    await asyncio.sleep(0.002)
    if n % 50 == 0:
        raise ValueError("now and then")
    return {"n": n}


async def produce(queue: Queue, until: float) -> None:
    """A steady stream of every kind."""
    number = 0
    while time.monotonic() < until:
        began = time.monotonic()
        jobs: list[NewJob] = []
        for _ in range(RATE // 10):
            number += 1
            options = Options(attempts=2, delay=500 if number % 10 == 0 else 0, priority=number % 3,
                              key=f"key-{number}" if number % 20 == 0 else None,
                              key_ttl=5_000 if number % 20 == 0 else None)  # fmt: skip
            base = queue.new("work", {"n": number})
            jobs.append(NewJob("work", base.payload, options, id=new_id()))
        await queue.submit_many(jobs)
        await asyncio.sleep(max(0.0, 0.1 - (time.monotonic() - began)))


async def soak(minutes: float) -> int:
    """Run; returns 1 when memory grew."""
    server = Server("--appendonly", "yes", port=free_port()).start()
    env = os.environ | {"JOBQ_REDIS_URL": server.url, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jobq", "work", f"{ROOT}/tests/chaos/soak.py:queue", "--processes", "0"]
    workers = [
        await asyncio.create_subprocess_exec(*command, env=env, stderr=asyncio.subprocess.DEVNULL) for _ in range(2)
    ]
    assert server.process is not None
    watched = {"worker": workers[0].pid, "server": server.process.pid}
    samples: list[dict[str, float]] = []
    ok = True
    producer = Queue("soak", server.url)  # the one above is the workers', by the environment
    try:
        async with producer:
            began = time.monotonic()
            producing = asyncio.create_task(produce(producer, began + minutes * 60))
            while not producing.done():
                await asyncio.wait([producing], timeout=minutes * 60 / 20)
                sample = {name: psutil.Process(pid).memory_info().rss / 1e6 for name, pid in watched.items()}
                memory = (await producer.store.connection.trip(b"INFO memory\r\n", 1))[0].decode()
                lines = dict(line.partition(":")[::2] for line in memory.splitlines())
                sample["redis used"] = int(lines["used_memory"]) / 1e6
                samples.append(sample)
                stats = await producer.stats()
                print(f"{time.monotonic() - began:6.0f} s  {stats.completed_total:9} done  "
                      + "  ".join(f"{name} {size:7.1f} MB" for name, size in sample.items()), flush=True)  # fmt: skip
            await producing
        quarter = len(samples) // 4
        for name in samples[0]:
            first, last = samples[quarter][name], samples[-1][name]
            print(f"{name}: {first:.1f} MB after a quarter, {last:.1f} MB at the end")
            ok &= last < first * 1.1 + 1
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
            await worker.wait()
        server.stop()
    return int(not ok)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    sys.exit(asyncio.run(soak(parser.parse_args().minutes)))
