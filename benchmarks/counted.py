"""What ``benchmarks.instructions`` counts: a producer, or a worker. It uses what earlier commits have, too.

python -P benchmarks/counted.py VERB URL JOBS
"""

from __future__ import annotations

import asyncio
import sys

from jobq import Connection, Queue, Worker

PAYLOAD = {"text": "x" * 88}
"""100 bytes of JSON."""
PAGE = 500


async def bulk(queue: Queue, jobs: int) -> None:
    """Enqueue in pages."""
    async with queue:
        for _ in range(jobs // PAGE):
            await queue.enqueue_many([queue.new("noop", PAYLOAD) for _ in range(PAGE)])


async def single(queue: Queue, jobs: int) -> None:
    """Enqueue one job after the other."""
    async with queue:
        for _ in range(jobs):
            await queue.enqueue("noop", PAYLOAD)


async def drain(queue: Queue, jobs: int) -> None:
    """Run all jobs."""
    ended = 0
    worker = Worker(queue, concurrency=100)

    @queue.task
    async def noop(text: str) -> None:
        nonlocal ended
        ended += 1
        if ended == jobs:
            worker.stop()

    await worker.run()


if __name__ == "__main__":
    _, verb, url, jobs = sys.argv
    asyncio.run({"bulk": bulk, "single": single, "drain": drain}[verb](Queue("bench", Connection(url)), int(jobs)))
