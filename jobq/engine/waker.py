"""Waiting for work without polling: a worker that has free slots and nothing to claim blocks on the wake token."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from jobq.engine.backoff import pause
from jobq.engine.store import give_wake_back, wait_for_wake
from jobq.errors import StoreError

if TYPE_CHECKING:
    from jobq.engine.pool import Pool
    from jobq.engine.source import Source

BLOCK: Final = 5.0
"""Seconds to block on the wake token; then one look whether a token was lost with a connection."""


async def wait_for_work(pool: Pool, source: Source) -> None:
    """Tell the pool whenever there may be something to claim from the source. Runs until cancelled.

    One waker per source, each blocked on a connection of its own: a wait for several queues at once could not be
    widened when one more of them turns out to be empty.
    """
    failures = 0
    while True:
        if pool.stopping or source.ready or pool.room() <= 0:
            pool.nobody_listens()
            source.hungry.clear()
            # not wait_for: before Python 3.12 it loses a cancellation that meets the end of the wait
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BLOCK):
                    await source.hungry.wait()
            continue
        try:
            woken = await wait_for_wake(source.store, BLOCK)
            if woken and (pool.stopping or pool.room() <= 0):
                await give_wake_back(source.store)
            failures = 0
        except StoreError:
            failures += 1
            await asyncio.sleep(pause(failures))
        # not woken: nothing in BLOCK seconds, or no connection. A token may have been lost with one: look once
        source.ready = True
        pool.notify()


async def leave(pool: Pool) -> None:
    """A worker that goes away may have taken a token, or be the one that watches the clock for what is delayed: wake
    another. Gives up after a second: the others look by themselves every few."""
    with contextlib.suppress(StoreError, TimeoutError):
        async with asyncio.timeout(1.0):
            for source in pool.sources:
                await give_wake_back(source.store)
