"""How long one worker takes to enqueue the jobs of 1,000 schedules that are due in the same second, out of 10,000.

    python -m benchmarks.schedules        # the server at JOBQ_REDIS_URL, or an embedded one

It prints the time from the slot to the last enqueue, the processor time of the worker and of Redis in it, and what a
look costs while none is due.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

from jobq import Queue
from jobq.engine.queue.declaring import declare_schedules
from jobq.engine.queue.firing import Firing

SCHEDULES = 10_000
DUE = 1_000
HOUR = 3600


async def spent(queue: Queue) -> float:
    """The time of Redis for scripts since the last reset, in ms."""
    lines = (await queue.store.command(b"INFO", b"commandstats")).decode().splitlines()
    return sum(int(line.partition("usec=")[2].partition(",")[0]) for line in lines if "cmdstat_evalsha:" in line) / 1000


async def main() -> None:
    now = int(datetime(2027, 1, 4, 12, 30, tzinfo=UTC).timestamp()) * 1000
    queue = Queue("bench-schedules", clock=lambda: now)

    @queue.task
    async def noop(n: int) -> None: ...

    async with queue:
        await queue.drop(force=True)
        began = time.perf_counter()
        for n in range(SCHEDULES):
            cron = "0 * * * *" if n < DUE else f"{1 + n % 59} {n % 24} {1 + n % 28} * *"
            queue.schedule(cron, name=f"s{n}", payload={"n": n}, tz="Europe/Berlin")(noop)
        await declare_schedules(queue.store, queue.declared_schedules, started=True)
        print(f"{SCHEDULES} schedules written in {time.perf_counter() - began:.1f} s")
        await queue.store.command(b"CONFIG", b"RESETSTAT")
        firing = Firing(queue)
        await firing.fire_due()
        now = now // (HOUR * 1000) * HOUR * 1000 + HOUR * 1000
        await queue.store.command(b"CONFIG", b"RESETSTAT")
        began, used = time.perf_counter(), time.process_time()
        await firing.fire_due()
        took, used = time.perf_counter() - began, time.process_time() - used
        scripts = await spent(queue)
        stats = await queue.stats()
        print(
            f"{stats.delayed} jobs of schedules enqueued in {took * 1000:.0f} ms by one worker:"
            f" {used * 1000:.0f} ms of its processor, and {scripts:.0f} ms of Redis"
        )
        await queue.store.command(b"CONFIG", b"RESETSTAT")
        for _ in range(100):
            await firing.fire_due()
        print(f"a look while none is due: {await spent(queue) * 10:.0f} us of Redis")
        assert stats.delayed >= DUE
        await queue.drop(force=True)


if __name__ == "__main__":
    asyncio.run(main())
