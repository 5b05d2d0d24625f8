"""jobq itself with all defaults: results, events, metrics, retention, fences."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import kit
import redis.asyncio

from jobq import Concurrency, Connection, Context, Depends, Queue, Rate, Worker, inject

PINGS = 500
"""Enqueues and PINGs alternate in rounds of this size, so that both run under the same load."""


async def database() -> object:
    """A dependency that is awaited."""
    return database


def settings() -> dict[str, int]:
    """A plain dependency."""
    return {"size": 1}


def _realistic(queue: Queue) -> Any:
    """A realistic job: two dependencies, one middleware, a timeout, a log line and progress."""

    @queue.middleware
    async def measured(context: Context, call_next: Any) -> Any:
        begun = time.perf_counter()
        value = await call_next()
        assert time.perf_counter() >= begun
        return value

    @queue.task(timeout=30)
    async def realistic(
        n: int,
        x: str,
        db: Annotated[object, Depends(database)],
        config: Annotated[dict[str, int], Depends(settings)],
        ctx: Context = inject,
    ) -> None:
        ctx.log("halfway")
        ctx.progress(50)
        kit.ran(n)

    return realistic


def _limited(queue: Queue, settings: str) -> Any:
    """The no-op job with a group or limits. All of these have the same arguments."""
    options: dict[str, Any] = {}
    if settings == "groups":
        options["group"] = lambda n, x: f"tenant-{n % 1000}"
    elif settings == "groups-10":
        options["group"] = lambda n, x: f"tenant-{n % 10}"
    elif settings == "full":
        options |= {"group": lambda n, x: f"full-{n}", "limits": [Concurrency(1, name="closed")]}
    elif settings == "release":
        options["limits"] = [Rate(10_000, per="1s", burst=500, name="key")]

    async def noop(n: int, x: str) -> None:
        kit.ran(n)

    async def of_tenant(n: int, x: str, tenant: int) -> None:
        kit.ran(n)

    if settings == "tenants":
        return queue.task(limits=[Concurrency(5, by="tenant")], name="noop")(of_tenant)
    if settings.startswith("keys-"):
        rules = [Concurrency(10, by="tenant", name=name) for name in ("first", "second", "third")]
        return queue.task(limits=rules, name="noop")(of_tenant)
    return queue.task(name="noop", **options)(noop)


class Jobq(kit.Peer):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.naps: list[tuple[float, float]] = []
        keep = {"keep_completed": options.keep} if options.keep else {}
        if options.settings == "wide":
            keep["limits"] = [Concurrency(100_000), Rate(1_000_000, per="1s", burst=100_000)]
        self.queue = queue = Queue("bench", Connection(self.url), **keep)
        noop = None if options.settings == "realistic" else _limited(queue, options.settings)

        @queue.task
        async def timed(due: float, x: str) -> None:
            kit.timed(due)

        @queue.task
        async def nap(n: int, seconds: float) -> None:
            begun = time.time()
            await asyncio.sleep(seconds)
            self.naps.append((begun, time.time()))
            kit.ran(n)

        if options.settings == "realistic":
            noop = _realistic(queue)
        self.noop, self.timed, self.nap = noop, timed, nap
        self.tenants = {"tenants": 1000, "keys-10": 10, "keys-10000": 10_000}.get(options.settings, 0)

    async def open(self) -> None:
        await self.queue.open()
        if self.options.settings == "full":
            await self.queue.set_limit("closed", concurrency=1)
            await self.queue.close_limit("closed", 3600)

    async def close(self) -> None:
        await self.queue.aclose()

    def enqueue(self, n: int) -> Any:
        return self.noop.enqueue(n=n, x=kit.PAD)

    def enqueue_many(self, numbers: range) -> Any:
        task = self.noop.options(delay=3600) if self.options.settings == "delayed" else self.noop
        if self.tenants:
            return task.enqueue_many([{"n": n, "x": kit.PAD, "tenant": n % self.tenants} for n in numbers])
        return task.enqueue_many([{"n": n, "x": kit.PAD} for n in numbers])

    def enqueue_timed(self, due: float, delay: float) -> Any:
        task = self.timed.options(delay=delay) if delay > 0 else self.timed
        return task.enqueue(due=due, x=kit.PAD)

    async def work(self, stop: asyncio.Event) -> None:
        async with self.queue, Worker(self.queue, concurrency=self.concurrency) as worker:
            # As in `jobq work`, and as the README advises for a process that only works.
            gc.collect()
            gc.freeze()
            worker.start()
            await stop.wait()
        if path := os.environ.get("BENCHMARK_NAPS"):
            Path(path).write_text(json.dumps(self.naps))

    async def produce(self) -> dict[str, float]:
        other = {"naps": self._produce_naps, "one": self._produce_one_by_one}.get(self.options.how)
        return await (other or super().produce)()

    async def _produce_naps(self) -> dict[str, float]:
        """Jobs that sleep. ``settings`` is a JSON list of seconds, used in turn."""
        naps = json.loads(self.options.settings)
        async with self.queue:
            await kit.go()
            begun = time.perf_counter()
            await self.nap.enqueue_many([{"n": n, "seconds": naps[n % len(naps)]} for n in range(self.options.jobs)])
            return {"seconds": time.perf_counter() - begun}

    async def _produce_one_by_one(self) -> dict[str, float]:
        """Awaited enqueues, with rounds of redis.asyncio's PING between them."""
        client = redis.asyncio.Redis.from_url(self.url)
        enqueuing = pinging = 0.0
        async with self.queue:
            await client.ping()
            await kit.go()
            for first in range(0, self.options.jobs, PINGS):
                begun = time.perf_counter()
                for n in range(first, first + PINGS):
                    await self.noop.enqueue(n=n, x=kit.PAD)
                turned = time.perf_counter()
                for _ in range(PINGS):
                    await client.ping()
                enqueuing += turned - begun
                pinging += time.perf_counter() - turned
        await client.aclose()
        return {"seconds": enqueuing, "ping_seconds": pinging}


if __name__ == "__main__":
    kit.main(Jobq)
