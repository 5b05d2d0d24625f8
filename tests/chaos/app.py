"""The queue that the workers of the chaos run serve: ``jobq work tests/chaos/app.py:queue``."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import os
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jobq import Backoff, Breaker, Concurrency, Context, Queue, Rate
from tests.chaos.memory import eat, limited
from tests.chaos.sink import Sink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

queue = Queue("chaos", keep_completed=10_000_000, keep_failed=10_000_000)
SOON = Backoff("fixed", 0.1)
MANY = 100
"""Attempts of each job, so many that faults do not use them up."""


@functools.cache
def sink() -> Sink:
    """The database of this process, which may be a child process of a worker."""
    return Sink(Path(os.environ["CHAOS_SINK"]))


@asynccontextmanager
async def run(ctx: Context) -> AsyncIterator[None]:
    """Record the start and the end of a run."""
    sink().start(ctx)
    try:
        yield
    except asyncio.CancelledError:
        sink().end(ctx, "cancelled")
        raise
    except RuntimeError:
        sink().end(ctx, "failed")
        raise
    sink().end(ctx, "done")


@queue.task(attempts=MANY, backoff=SOON)
async def plain(ms: int, ctx: Context) -> int:
    """Takes some time, then takes effect."""
    async with run(ctx):
        await asyncio.sleep(ms / 1000)
        ctx.progress(50)
        sink().effect(ctx)
    return ctx.fence


@queue.task(attempts=MANY, backoff=SOON)
async def flaky(fails: int, ctx: Context) -> int:
    """Fails for the given number of attempts."""
    async with run(ctx):
        ctx.log(f"attempt {ctx.attempt}")
        if ctx.attempt <= fails:
            raise RuntimeError("as planned")
        sink().effect(ctx)
    return ctx.fence


@queue.task(
    attempts=MANY,
    backoff=SOON,
    limits=[Concurrency(2, by="group"), Rate(200, per=1, burst=20)],
    partition_by="{group}",
)
async def bounded(group: int, ms: int, ctx: Context) -> int:
    """Two of a group at once, and all of them at a bounded rate."""
    async with run(ctx):
        await asyncio.sleep(ms / 1000)
        sink().effect(ctx)
    return ctx.fence


async def pause(ms: int, ctx: Context) -> int:
    """Take some time, then take effect."""
    async with run(ctx):
        await asyncio.sleep(ms / 1000)
        sink().effect(ctx)
    return ctx.fence


@queue.task(attempts=MANY, backoff=SOON, limits=[Concurrency(2, over="drop")], partition_by="all")
async def dropping(ms: int, ctx: Context) -> int:
    """One more than two of them is dropped."""
    return await pause(ms, ctx)


@queue.task(attempts=MANY, backoff=SOON, limits=[Concurrency(2, over="replace_oldest")], partition_by="all")
async def replacing(ms: int, ctx: Context) -> int:
    """The oldest one that has not started ends for one more than two."""
    return await pause(ms, ctx)


@queue.task(attempts=MANY, backoff=SOON, limits=[Concurrency(2, over="kill_running")], partition_by="all")
async def preempting(ms: int, ctx: Context) -> int:
    """A running one ends for one more than two."""
    return await pause(ms, ctx)


@queue.task(attempts=MANY, backoff=SOON, group="{tenant}")
async def grouped(tenant: str, ms: int, ctx: Context) -> int:
    """Takes its turn among tenants."""
    async with run(ctx):
        await asyncio.sleep(ms / 1000)
        sink().effect(ctx)
    return ctx.fence


@queue.task(attempts=MANY, backoff=SOON, breaker=Breaker(rate=0.5, runs=6, open_for="300ms"))
async def breaking(fails: int, ctx: Context) -> int:
    """Fails so often that its breaker opens."""
    async with run(ctx):
        if ctx.attempt <= fails:
            raise RuntimeError("as planned")
        sink().effect(ctx)
    return ctx.fence


@queue.task(attempts=MANY, backoff=SOON, slots=2, limits=[Rate(2000, per=1, burst=200, unit="tokens", cost="tokens")])
async def costly(tokens: int, ctx: Context) -> int:
    """Costs tokens, mostly fewer than it was charged for."""
    async with run(ctx):
        ctx.spent("tokens", tokens // 2)
        sink().effect(ctx)
    return ctx.fence


@queue.task(attempts=MANY, backoff=SOON)
def threaded(ms: int, ctx: Context) -> int:
    """Runs in a thread."""
    sink().start(ctx)
    time.sleep(ms / 1000)
    sink().effect(ctx)
    sink().end(ctx, "done")
    return ctx.fence


@queue.task(attempts=MANY, backoff=SOON, isolate="process")
def isolated(ms: int, ctx: Context) -> int:
    """Runs in a child process."""
    return threaded(ms, ctx)


@queue.task(attempts=MANY, backoff=SOON)
async def blocker(ms: int, ctx: Context) -> int:
    """Blocks the event loop."""
    async with run(ctx):
        time.sleep(ms / 1000)  # noqa: ASYNC251 - blocking is the fault under test
        sink().effect(ctx)
    return ctx.fence


@queue.task(attempts=1, timeout=0.3)
async def stubborn(ms: int, ctx: Context) -> None:
    """Ignores its cancellation."""
    sink().start(ctx)
    until = time.monotonic() + ms / 1000
    while time.monotonic() < until:
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            continue


@queue.task(attempts=2, backoff=SOON, isolate="process")
def segfault(ctx: Context) -> None:
    """Kills its own process."""
    sink().start(ctx)
    sink().end(ctx, "failed")
    ctypes.string_at(0)


@queue.task(attempts=2, backoff=SOON, isolate="process")
def glutton(ctx: Context) -> None:
    """Allocates memory until there is none left."""
    sink().start(ctx)
    sink().end(ctx, "failed")
    with limited(32 << 20):
        eat(1 << 16)


@queue.task(attempts=MANY, backoff=SOON)
async def hasty(fails: int, ctx: Context) -> int:
    """Must start in time, or it expires. Once it has started it may run again."""
    async with run(ctx):
        if ctx.attempt <= fails:
            raise RuntimeError("as planned")
        sink().effect(ctx)
    return ctx.fence


@queue.task(attempts=MANY, backoff=SOON)
async def urgent(ms: int, ctx: Context) -> int:
    """Must end in time. Its run is cancelled then, and no other one follows."""
    async with run(ctx):
        await asyncio.sleep(ms / 1000)
        sink().effect(ctx)
    return ctx.fence


@queue.task(attempts=MANY, backoff=SOON)
async def victim(ctx: Context) -> None:
    """Runs until it is killed."""
    async with run(ctx):
        await asyncio.Event().wait()
