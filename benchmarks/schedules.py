"""How long one worker takes to enqueue the jobs of 1,000 schedules that are due in the same second, out of 10,000.

    python -m benchmarks.schedules        # the server at JOBQ_REDIS_URL, or an embedded one

It prints the time from the slot to the last enqueue, the longest call of a script, and what an idle minute costs.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

from jobq import Queue
from jobq.engine.queue.firing import Firing

SCHEDULES = 10_000
DUE = 1_000
HOUR = 3600


async def main() -> None:
    now = int(datetime(2027, 1, 4, 12, 30, tzinfo=UTC).timestamp()) * 1000
    queue = Queue("bench-schedules", clock=lambda: now)

    @queue.task
    async def noop(n: int) -> None: ...

    async with queue:
        await queue.drop(force=True)
        began = time.perf_counter()
        for first in range(0, SCHEDULES, 100):
            await asyncio.gather(
                *(
                    queue.put_schedule(
                        f"s{n}", "noop", {"n": n}, tz="Europe/Berlin",
                        cron="0 * * * *" if n < DUE else f"{1 + n % 59} {n % 24} {1 + n % 28} * *",
                    )
                    for n in range(first, first + 100)
                )
            )  # fmt: skip
        print(f"{SCHEDULES} schedules written in {time.perf_counter() - began:.1f} s")
        await queue.store.command(b"CONFIG", b"RESETSTAT")
        firing = Firing(queue)
        await firing.fire_due()
        now = now // (HOUR * 1000) * HOUR * 1000 + HOUR * 1000
        began = time.perf_counter()
        await firing.fire_due()
        took = time.perf_counter() - began
        stats = await queue.stats()
        print(f"{stats.delayed} jobs of schedules enqueued in {took * 1000:.0f} ms by one worker")
        await queue.store.command(b"CONFIG", b"RESETSTAT")
        for _ in range(100):
            await firing.fire_due()
        lines = (await queue.store.command(b"INFO", b"commandstats")).decode()
        spent = [line for line in lines.splitlines() if "evalsha" in line]
        print("a look while none is due:", *spent)
        assert stats.delayed >= DUE
        await queue.drop(force=True)


if __name__ == "__main__":
    asyncio.run(main())
