"""Waiting for work without polling: a worker that has free slots and nothing to claim blocks on the wake token.

A claim of one job follows in the same write, so the job that woke the worker comes back with the token, a trip earlier.
It asks for one job only: a worker that vanishes while it waits (its machine, its network) still gets that job.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from jobq.engine.store import give_wake_back
from jobq.engine.worker.claimer import Demand
from jobq.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobq.engine.worker.lane import Lane
    from jobq.engine.worker.slots import Slots
    from jobq.engine.worker.source import Source

BLOCK: Final = 5.0
"""Seconds to block on the wake token. Then the waker claims once without it: it may be lost with a connection."""


class Waker:
    """Tells the lane of one source whenever there may be something to claim.

    One waker per source, each blocked on a connection of its own: a wait for several queues at once could not be
    widened when one more of them turns out to be empty.
    """

    def __init__(self, source: Source, lane: Lane, slots: Slots) -> None:
        self._source = source
        self._lane = lane
        self._slots = slots

    async def run(self) -> None:
        """Listen until cancelled."""
        source, slots = self._source, self._slots
        while True:
            if slots.stopping or source.demand is not Demand.IDLE or source.waking.unanswered or slots.free() <= 0:
                slots.nobody_listens()
                source.hungry.clear()
                # not wait_for: before Python 3.12 it loses a cancellation that meets the end of the wait
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BLOCK):
                        await source.hungry.wait()
                continue
            await self._listen()

    async def _listen(self) -> None:
        """Wait for the wake token once."""
        source, lane = self._source, self._lane
        claimer = source.waking
        call = lane.claim_call(claimer, 1)
        try:
            claimed = await source.store.trip_on_wake(call, block=BLOCK)
        except BaseException as error:
            # The reply was lost, or cut off by the worker's end. The claim may have taken a job: the lane repeats it.
            claimer.failed(source.loop.time())
            lane.wake()
            if not isinstance(error, StoreError):
                raise
            source.warn("The wait for new jobs failed and is repeated", error)
        else:
            # the lane claims next, more jobs and those that are due; this job need not wait for that
            lane.claimed(claimer, 1, [], claimed)
            # the job that came starts before the next wait is sent off
            await asyncio.sleep(0)


async def leave(sources: Sequence[Source]) -> None:
    """Wake another worker: the one that goes away may have taken a token, or watched the clock for delayed jobs.

    Gives up after a second: the others look by themselves every few.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            # side by side: a server that does not answer must not keep the others' workers asleep
            await asyncio.gather(*(give_wake_back(source.store) for source in sources), return_exceptions=True)
