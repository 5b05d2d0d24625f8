"""A million jobs in every state, through every verb: ``python -m tests.chaos.size [--jobs N]``.

No script may work for 10 ms, and no auxiliary key may grow with the number of jobs.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec

from jobq import Connection, Context, NewJob, Options, Queue, State, Worker
from jobq.engine.model.ids import new_id
from jobq.engine.model.job import AttemptError
from jobq.engine.model.outcome import MESSAGE_MAX, TRACEBACK_MAX
from jobq.engine.store import lua
from jobq.engine.store.packing import pack
from jobq.engine.worker.lane import CLAIM_MAX, FORWARD_MAX
from jobq.engine.worker.notes import LOG_LINE_MAX
from jobq.engine.worker.outbox import FAIL_MAX, HAND_BACK_MAX
from jobq.engine.worker.sweeper import PAGE
from tests.chaos.conftest import free_port
from tests.conftest import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from jobq.engine.store import Claimed

SLOW_MS = 10.0
LOOK_MS = 1
"""The bound of the slow log. Calls that take longer are recorded."""
BOUNDED = ("wake", "claims", "events", "workers", "workers_info", "types", "types_seen", "metrics", "history", "meta")
"""Keys that must not grow with the jobs."""


async def fill(queue: Queue, count: int, options: Options) -> None:
    """Enqueue that many small jobs."""
    page = 10_000
    for _ in range(count // page):
        await queue.submit_many([NewJob("work", options=options, id=new_id()) for _ in range(page)])


async def claims(queue: Queue, count: int, lease_ms: int) -> AsyncIterator[Claimed]:
    """Claim that many jobs in the way of a worker."""
    store = queue.store
    lane = f"w:{new_id()}"  # Request numbers of a lane only grow.
    for request in itertools.count(1):
        claimed = await store.do(store.claim(min(count, CLAIM_MAX), lease_ms, "w", lane, request, repeated=False))
        assert claimed
        yield claimed
        count -= len(claimed.ids)
        if not count:
            return


async def fail(queue: Queue, count: int) -> None:
    """Let that many jobs fail for good."""
    record = msgspec.json.encode(AttemptError(1, 1, "ValueError", "no"))
    store = queue.store
    async for claimed in claims(queue, count, lease_ms=60_000):
        for at in range(0, len(claimed.ids), FAIL_MAX):
            page = claimed.ids[at : at + FAIL_MAX]
            await store.do(store.fail([word for job_id in page for word in (job_id, claimed.token, 1, record, "")]))


async def reap(queue: Queue, count: int) -> None:
    """All workers died. The sweeper recovers their jobs, which go back to waiting."""
    store = queue.store
    reaped = 0
    while reaped < count - 1000:  # Earlier verbs have held some of them for longer.
        claimed = await store.do(store.reap(PAGE, 600_000, "s", 10**9, 0))
        assert claimed
        reaped += len(claimed.ids)
        await store.do(store.release([word for job_id in claimed.ids for word in (job_id, claimed.token)]))


class Clock:
    """Prints the time that each step took."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    def say(self, what: str) -> None:
        """Print the time since the last call."""
        now = time.monotonic()
        print(f"{what:60} {now - self._at:8.1f} s", flush=True)
        self._at = now


async def measure(count: int) -> dict[str, Seen]:
    """Fill the queue, run every verb, and read the slow log. Returns the records of each script."""
    server = Server("--slowlog-log-slower-than", str(LOOK_MS * 1000), "--slowlog-max-len", "100000", port=free_port())
    connection = Watched(server.start())
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
            await fail(queue, count)
            clock.say(f"{count} failed")
            await fill(queue, count, Options(attempts=1))
            async for _ in claims(queue, count, lease_ms=1):
                pass
            clock.say(f"{count} active, whose lease has run out")
            await fill(queue, count, Options(attempts=1))
            clock.say(f"{count} waiting")
            await fill(queue, count, Options(delay=3_600_000, priority=3))
            clock.say(f"{count} delayed")
            await verbs(queue, clock)
            await report(queue, server, count)
            clock.say("figures")
            await reap(queue, count)
            clock.say(f"{count} reaped and released")
            for state in (State.COMPLETED, State.FAILED):
                moved = await queue.retry_all(state, limit=100_000)
                clock.say(f"retry_all, {moved} of the {state}")
            for state in (State.COMPLETED, State.FAILED, State.DELAYED, State.WAITING):
                gone = await queue.remove_all(state)
                clock.say(f"remove_all, {gone} {state}")
            show(connection.seen)
            return connection.seen
    finally:
        await connection.aclose()
        server.stop()


class Watched(Connection):
    """Counts the calls of each script, and reads the slow log after every trip.

    The slow log measures wall time, which includes the time that a server waits for a CPU on a busy machine. So a call
    that took long is compared with the CPU time of the server's process between two readings. This is more than the
    call itself used and never less, so a slow call cannot hide. In a virtual machine that is halted for a while the CPU
    clock has outliers too: a loop that only reads it saw 60 ms pass between two readings, once in 45 s. These are
    random, while a slow script is slow again at the same place. So calls over the limit are measured a second time, see
    ``again``.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(server.url)
        assert server.process is not None
        self.seen: dict[str, Seen] = {script.name: Seen() for script in lua.scripts().values()}
        # The CPU clock of another process, computed as clock_getcpuclockid(3) does.
        self._clock = (~server.process.pid << 3) | 2
        self._names = {script.sha.encode(): script.name for script in lua.scripts().values()}
        self._own = Connection(server.url)
        self._looking = asyncio.Lock()
        self._since = time.clock_gettime(self._clock)

    async def trip(
        self, payload: bytes, replies: int, *, patience: float = 0.0, within: float | None = None
    ) -> list[Any]:
        """As ``Connection.trip``, followed by a reading of the slow log."""
        for sha, name in self._names.items():
            self.seen[name].calls += payload.count(sha)
        try:
            return await super().trip(payload, replies, patience=patience, within=within)
        finally:
            await self.look()

    async def look(self) -> None:
        """Read the entries of the slow log since the last reading."""
        async with self._looking:
            since, self._since = self._since, time.clock_gettime(self._clock)
            log, _ = await self._own.trip(pack(("SLOWLOG", "GET", -1)) + pack(("SLOWLOG", "RESET")), 2)
            worked = (time.clock_gettime(self._clock) - since) * 1000
            for _, _, micros, words, *_ in log:
                if words[0] == b"EVALSHA":  # A command inside a script has its own entry.
                    self.seen[self._names[words[1]]].add(micros / 1000, worked)

    async def aclose(self) -> None:
        """Close both."""
        await self._own.aclose()
        await super().aclose()


class Seen:
    """The records of one script."""

    def __init__(self) -> None:
        self.calls = 0
        self.late = 0
        """Calls over the limit in wall time."""
        self.over: list[int] = []
        """Numbers of the calls that may have worked for longer than the limit."""
        self.most = 0.0
        """Milliseconds, an upper bound of the work of its longest call. 0 means that no call was in the slow log."""

    def add(self, took: float, worked: float) -> None:
        """Add a call of the slow log: its wall time and the process's CPU time around it, in ms."""
        self.late += took > SLOW_MS
        if min(took, worked) > SLOW_MS:
            self.over.append(self.calls)
        self.most = max(self.most, min(took, worked))


def show(seen: dict[str, Seen]) -> None:
    """Print the records, the slowest script first."""
    for name, script in sorted(seen.items(), key=lambda item: -item[1].most):
        if script.calls:
            most = f"{script.most:.1f}" if script.most else f"under {LOOK_MS}"
            late = f"; over {SLOW_MS:.0f} ms: calls {script.over}, by the wall {script.late}" if script.late else ""
            print(f"{name:14} {script.calls:8} calls, {most:>8} ms at most{late}")


def again(first: Seen, second: Seen) -> bool:
    """Whether a call was over the limit in both runs at about the same place: within 1 % of the calls, or ten."""
    near = max(10, first.calls // 100)
    return any(abs(a - b) <= near for a in first.over for b in second.over)


async def verbs(queue: Queue, clock: Clock) -> None:
    """Run everything that reads or changes a queue while it has a million jobs in each state."""
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
    for job_id in [*waiting[-50:], *delayed[-50:]]:
        await queue.why(job_id)
    await queue.why()
    await queue.stats()
    await queue.workers()
    clock.say("1200 single verbs")
    for durability in range(20):
        await queue.enqueue("work", key=f"key-{durability}", delay=60)
    claimed = await queue.store.do(queue.store.claim(CLAIM_MAX, 1000, "w", "w:0", 1, repeated=False))
    assert claimed
    pairs: list[Any] = [word for job_id in claimed.ids for word in (job_id, claimed.token)]
    await queue.store.do(queue.store.renew(pairs, 1))
    await settles(queue)
    await queue.store.do(queue.store.trim(900_000, 900_000, 10**12, 500))
    await queue.store.do(queue.store.expire(500))
    clock.say("claim, renew, every settle, trim, expire")


async def settles(queue: Queue) -> None:
    """All ways to end a run but success, and log lines and progress, in the largest calls that a worker sends."""
    store = queue.store
    number = itertools.count(2)

    async def held(count: int) -> list[tuple[Any, Any]]:
        pairs: list[tuple[Any, Any]] = []
        while len(pairs) < count:
            want = min(count - len(pairs), CLAIM_MAX)
            claimed = await store.do(store.claim(want, 60_000, "w", "w:0", next(number), repeated=False))
            assert claimed
            pairs += [(job_id, claimed.token) for job_id in claimed.ids]
        return pairs

    for _ in range(10):
        await store.do(store.release([word for pair in await held(HAND_BACK_MAX) for word in pair]))
        await store.do(
            store.defer([word for pair in await held(HAND_BACK_MAX) for word in (*pair, "t", 1)], 1, 1, b"[]")
        )
    # The same few jobs fail and log until their columns are full.
    record = b'{"type":"ValueError","message":"%b"}' % (b"x" * (MESSAGE_MAX + TRACEBACK_MAX))
    line = b'{"at":1,"message":"%b"}' % (b"x" * LOG_LINE_MAX)
    first = Options(attempts=100, priority=-1000)
    await queue.submit_many([NewJob("work", options=first, id=new_id()) for _ in range(FAIL_MAX)])
    for attempt in range(1, 12):
        pairs = await held(FAIL_MAX)
        await store.do(store.progress([word for pair in pairs for word in (*pair, b"50")]))
        await store.do(store.log([word for pair in pairs for word in (*pair, attempt - 1, attempt, line)]))
        if attempt < 11:
            await store.do(store.reschedule([word for pair in pairs for word in (*pair, attempt, 0, record)]))
            while (await store.do(store.forward(FORWARD_MAX)))[0]:
                pass
        else:
            await store.do(store.fail([word for pair in pairs for word in (*pair, attempt, record, "")]))


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
    print(f"Redis memory: {used / 1e6:.0f} MB, {used / (5 * count):.0f} bytes per job over the five states")


def main() -> int:
    """Run all steps and print the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.size", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    count = parser.parse_args().jobs
    first = asyncio.run(measure(count))
    slow = [name for name, seen in first.items() if seen.over]
    if slow:
        print(f"over {SLOW_MS:.0f} ms: {', '.join(slow)}; once more, to tell a script's work from the machine's stalls")
        second = asyncio.run(measure(count))
        slow = [name for name in slow if again(first[name], second[name])]
    print(f"too slow: {', '.join(slow) or 'nothing'}")
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
