"""Waiting for work without polling: a worker that has free slots and nothing to claim blocks on the wake token.

Behind the token, in the same write, goes a claim of one job: what woke the worker comes back with the token, a trip
earlier. One job only, since a worker that vanishes while it waits (its machine, its network) still gets it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from jobq.engine.model.backoff import pause
from jobq.engine.store import give_wake_back
from jobq.engine.worker.pool import LANES, WAKER
from jobq.errors import StoreError

if TYPE_CHECKING:
    from jobq.engine.worker.pool import Pool
    from jobq.engine.worker.source import Source

BLOCK: Final = 5.0
"""Seconds to block on the wake token; then one look whether a token was lost with a connection."""


async def wait_for_work(pool: Pool, source: Source) -> None:
    """Tell the pool whenever there may be something to claim from the source. Runs until cancelled.

    One waker per source, each blocked on a connection of its own: a wait for several queues at once could not be
    widened when one more of them turns out to be empty.
    """
    failures = 0
    while True:
        if pool.stopping or source.ready or source.unanswered[WAKER] or pool.room() <= 0:
            pool.nobody_listens()
            source.hungry.clear()
            # not wait_for: before Python 3.12 it loses a cancellation that meets the end of the wait
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BLOCK):
                    await source.hungry.wait()
            continue
        call = pool.claim_call(source, WAKER, 1)
        try:
            # nothing in BLOCK seconds: the claim behind it looks once whether a token was lost with a connection
            claimed = await source.store.trip_on_wake(call, block=BLOCK)
        except BaseException as error:
            # lost, or cut off by the worker's end: a lane asks for what it may have taken
            source.unanswered[WAKER] = 1
            # every one of them: only the first asks for the waker's claims, and any other would let it sleep
            for _ in range(LANES):
                pool.notify()
            if not isinstance(error, StoreError):
                raise
            failures += 1
            await asyncio.sleep(pause(failures))
        else:
            failures = 0
            # a lane comes right behind it, for more jobs and for what is due: this one need not wait for that
            pool.claimed(source, WAKER, 1, None, claimed)
            # the job that came starts before the next wait is sent off
            await asyncio.sleep(0)


async def leave(pool: Pool) -> None:
    """A worker that goes away may have taken a token, or be the one that watches the clock for what is delayed: wake
    another. Gives up after a second: the others look by themselves every few."""
    with contextlib.suppress(StoreError, TimeoutError):
        async with asyncio.timeout(1.0):
            for source in pool.sources:
                await give_wake_back(source.store)
