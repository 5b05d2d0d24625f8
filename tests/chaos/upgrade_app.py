"""The queue that both releases serve in test_upgrade.py. It uses only features of the earlier one."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from jobq import Backoff, Context, Queue, inject

queue = Queue("upgrade", keep_completed=100_000)
RELEASE = os.environ.get("UPGRADE_RELEASE", "")
RUNS = Path("runs")


def ended(ctx: Context) -> str:
    """Note that a run has got to its end. Returns the release that it ran in."""
    with RUNS.open("a") as file:
        file.write(f"{ctx.id} {RELEASE} {os.getpid()}\n")
    return RELEASE


@queue.task(attempts=5)
async def plain(n: int, ctx: Context = inject) -> str:
    """Takes long enough for both workers to get some of the jobs."""
    await asyncio.sleep(0.005)
    return f"{ended(ctx)} {n}"


@queue.task(attempts=5, backoff=Backoff(type="fixed", delay=0, jitter=0))
async def flaky(n: int, ctx: Context = inject) -> str:
    """Fails twice, possibly in two releases."""
    ctx.log(f"attempt {ctx.attempt} by {RELEASE}")
    ctx.progress(ctx.attempt)
    if ctx.attempt < 3:
        raise RuntimeError(RELEASE)
    return f"{ended(ctx)} {n}"


@queue.task(attempts=5)
def threaded(n: int, ctx: Context = inject) -> str:
    """Runs in a thread."""
    return f"{ended(ctx)} {n}"


@queue.task(attempts=5)
async def stuck(begun: str, ctx: Context = inject) -> str:
    """The first run reports its start and never ends, until its process is killed."""
    if ctx.attempt == 1:
        Path(begun).touch()  # noqa: ASYNC240 - nothing else of the test happens in this worker meanwhile
        await asyncio.Event().wait()
    return f"{ended(ctx)} -1"


PRODUCE = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import upgrade_app as app

async def main():
    async with app.queue:
        once = await app.plain.options(key="once").enqueue(n=-1)
        print(once.id, flush=True)
        while not Path("stop").exists():
            jobs = await app.plain.enqueue_many([{"n": n} for n in range(8)])
            jobs.append(await app.flaky.options(priority=3).enqueue(n=8))
            jobs.append(await app.threaded.options(delay=0.05).enqueue(n=9))
            print(*(job.id for job in jobs), sep="\\n", flush=True)
            await asyncio.sleep(0.1)

asyncio.run(main())
"""
"""A program that enqueues jobs of each type until there is a file "stop", and prints their ids."""
