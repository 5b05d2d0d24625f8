"""A million jobs in every state, through every verb: ``python -m tests.chaos.size [--jobs N]``.

No script may hold the server for 10 ms (SLOWLOG), and no auxiliary key may grow with the number of jobs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from jobq import Connection, Context, NewJob, Options, Queue, State, Worker
from jobq.engine import lua
from jobq.engine.ids import new_id
from jobq.engine.store.link import pack
from tests.chaos.conftest import free_port
from tests.conftest import Server

SLOW_US = 10_000
BOUNDED = ("wake", "claims", "events", "workers", "workers_info", "metrics", "meta", "leases", "active")
"""Keys that must not grow with the jobs."""


async def fill(queue: Queue, count: int, options: Options) -> None:
    """That many small jobs."""
    page = 10_000
    for _ in range(count // page):
        await queue.submit_many([NewJob("work", options=options, id=new_id()) for _ in range(page)])


class Clock:
    """Says what each step took."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    def say(self, what: str) -> None:
        """Print the time since the last word."""
        now = time.monotonic()
        print(f"{what:60} {now - self._at:8.1f} s", flush=True)
        self._at = now


async def measure(count: int) -> list[str]:
    """Fill, run every verb, look at the slow log. Returns which scripts are slow."""
    server = Server("--slowlog-log-slower-than", str(SLOW_US), "--slowlog-max-len", "100000", port=free_port()).start()
    assert server.process is not None
    with suppress(PermissionError):
        # the slow log counts the wall's time: a server that waits for its turn is not what is measured
        os.setpriority(os.PRIO_PROCESS, server.process.pid, -20)
    connection = Counting(server.url)
    queue = Queue("size", connection, keep_completed=count, keep_failed=count)

    @queue.task(attempts=1)
    async def work(ctx: Context) -> None:
        """Does nothing."""

    clock = Clock()
    try:
        async with queue:
            await queue.pause()
            await fill(queue, count, Options(attempts=1))
            clock.say(f"{count} enqueued to be completed")
            await queue.resume()
            async with Worker(queue, concurrency=100) as worker:
                worker.start()
                while (await queue.stats()).completed < count:  # noqa: ASYNC110 - the event would come from Redis
                    await asyncio.sleep(0.5)
            clock.say(f"{count} completed by one worker")
            await fill(queue, count, Options(attempts=1))
            clock.say(f"{count} waiting")
            await fill(queue, count, Options(delay=3_600_000, priority=3))
            clock.say(f"{count} delayed")
            await verbs(queue, clock)
            await report(queue, server, count)
            clock.say("figures")
            moved = await queue.retry_all(State.COMPLETED, limit=100_000)
            clock.say(f"retry_all, {moved} of the completed")
            for state in (State.COMPLETED, State.DELAYED, State.WAITING):
                gone = await queue.remove_all(state)
                clock.say(f"remove_all, {gone} {state}")
            return show(await queue.store.command(b"SLOWLOG", b"GET", 100_000), connection.calls)
    finally:
        await connection.aclose()
        server.stop()


class Counting(Connection):
    """Counts the calls of each script."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.calls: Counter[str] = Counter()
        self._names = {script.sha.encode(): script.name for script in lua.scripts().values()}

    async def trip(self, payload: bytes, replies: int, *, patience: float = 0.0) -> list[Any]:
        """As ``Connection.trip``."""
        for sha, name in self._names.items():
            self.calls[name] += payload.count(sha)
        return await super().trip(payload, replies, patience=patience)


def show(log: list[Any], calls: Counter[str]) -> list[str]:
    """Print the slow log by script. Returns the scripts that are slow by themselves.

    The slow log counts the wall's time: on a busy machine any call waits for its turn now and then, a TIME too. What is
    too slow itself is so in more than a few of its calls.
    """
    names = {script.sha: script.name for script in lua.scripts().values()}
    slow: Counter[str] = Counter()
    for _, _, _, words, *_ in log:
        if words[0] == b"EVALSHA":  # a command inside of a script has an entry of its own
            slow[names.get(words[1].decode(), "?")] += 1
    for name, count in sorted(calls.items()):
        if count:
            print(f"{name:14} {count:8} calls, {slow[name]:4} over 10 ms ({slow[name] / count:.2%})")
    return [name for name, count in slow.items() if count > 1 and count > 0.05 * calls[name]]


async def verbs(queue: Queue, clock: Clock) -> None:
    """Everything that can be asked or done while a million stand in every state."""
    for state in State:
        cursor = None
        for _ in range(50):
            cursor = (await queue.page(state, limit=1000, cursor=cursor)).cursor
            if cursor is None:
                break
    await queue.page(None, type="none of these", limit=1000)
    clock.say("pages")
    waiting = [row.id for row in (await queue.page(State.WAITING, limit=1000)).jobs]
    delayed = [row.id for row in (await queue.page(State.DELAYED, limit=1000)).jobs]
    for job_id in waiting[:200]:
        await queue.reprioritise(job_id, 1000)
    for job_id in delayed[:200]:
        await queue.promote(job_id)
    for job_id in waiting[200:400]:
        await queue.kill(job_id)
    for job_id in delayed[200:400]:
        await queue.remove(job_id)
    for job_id in waiting[200:300]:
        await queue.retry(job_id)
    await queue.stats()
    await queue.workers()
    clock.say("1100 single verbs")
    for durability in range(20):
        await queue.enqueue("work", key=f"key-{durability}", delay=60)
    claimed = await queue.store.do(queue.store.claim(250, 1000, "w", "w:0", 1, repeated=False))
    assert claimed
    pairs: list[Any] = [word for job_id in claimed.ids for word in (job_id, claimed.token)]
    await queue.store.do(queue.store.renew(pairs, 1))
    for _ in range(3):
        await queue.store.do(queue.store.reap(100, 30_000, "s", 0, 0))
    await queue.store.do(queue.store.trim(900_000, 900_000, 10**12, 500))
    await queue.store.do(queue.store.expire(500))
    clock.say("claim, renew, reap, trim, expire")


async def report(queue: Queue, server: Server, count: int) -> None:
    """Sizes of the auxiliary keys, and bytes per job."""
    store = queue.store
    sizes = {}
    for column in BOUNDED:
        kind = await store.command(b"TYPE", store.keys[column])
        how = {b"zset": b"ZCARD", b"hash": b"HLEN", b"stream": b"XLEN"}.get(kind)
        sizes[column] = await store.command(how, store.keys[column]) if how else 0
    print("auxiliary keys:", sizes)
    assert all(size <= 2000 for size in sizes.values()), sizes
    memory = (await store.connection.trip(pack(("INFO", "memory")), 1))[0].decode()
    used = next(int(line.split(":")[1]) for line in memory.splitlines() if line.startswith("used_memory:"))
    print(f"Redis memory: {used / 1e6:.0f} MB, {used / (3 * count):.0f} bytes per job over the three states")


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.size", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    slow = asyncio.run(measure(parser.parse_args().jobs))
    print(f"slow by itself: {', '.join(slow) or 'nothing'}")
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
