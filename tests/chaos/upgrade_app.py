"""The queue that both releases serve in test_upgrade.py. It uses only features of the earlier one."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from jobq import Context, Queue, inject

queue = Queue("upgrade")
RELEASE = os.environ.get("UPGRADE_RELEASE", "")


@queue.task
async def plain(n: int) -> str:
    """Takes long enough for both workers to get some of the jobs."""
    await asyncio.sleep(0.005)
    return f"{RELEASE} {n}"


@queue.task(attempts=4)
async def flaky(n: int, ctx: Context = inject) -> str:
    """Fails twice, possibly in two releases."""
    ctx.log(f"attempt {ctx.attempt} by {RELEASE}")
    ctx.progress(ctx.attempt)
    if ctx.attempt < 3:
        raise RuntimeError(RELEASE)
    return f"{RELEASE} {n}"


@queue.task
def threaded(n: int) -> str:
    """Runs in a thread."""
    return f"{RELEASE} {n}"


@queue.task(attempts=3)
async def stuck(begun: str, ctx: Context = inject) -> str:
    """The first run reports its start and never ends, until its process is killed."""
    if ctx.attempt == 1:
        Path(begun).touch()  # noqa: ASYNC240 - nothing else runs in this worker
        await asyncio.Event().wait()
    return RELEASE


PRODUCE = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
import upgrade_app as app

async def main():
    async with app.queue:
        jobs = await app.plain.enqueue_many([{"n": n} for n in range(100)])
        jobs += await app.flaky.options(priority=3).enqueue_many([{"n": n} for n in range(20)])
        jobs += await app.threaded.options(delay=0.05).enqueue_many([{"n": n} for n in range(20)])
        jobs.append(await app.plain.options(key="once").enqueue(n=-1))
        jobs.append(await app.plain.options(key="once").enqueue(n=-1))
        for job in jobs:
            print(job.id)

asyncio.run(main())
"""
"""A program that enqueues jobs of each type and prints their ids."""
