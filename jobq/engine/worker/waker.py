"""Waiting for work without polling. A worker with free slots and nothing to claim blocks on the wake token.

A claim of one job follows in the same write, so the job arrives together with the token and not a trip later. It
claims one job only, because a worker that disappears while it waits (its machine, its network) still gets that job.
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
"""Seconds to block on the wake token. Then the waker claims once without it, because a token may be lost with a
connection."""


class Waker:
    """Tells the lane of one source whenever there may be something to claim.

    One waker per source, each blocked on its own connection. A wait for several queues at once could not be extended
    when another of them becomes empty.
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
                # Do not use wait_for. Before Python 3.12 it loses a cancellation at the moment when the wait ends.
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
            # The reply was lost, or the worker stops. The claim may have taken a job, so the lane repeats it.
            claimer.failed(source.loop.time())
            lane.wake()
            if not isinstance(error, StoreError):
                raise
            source.warn("The wait for new jobs failed and is repeated", error)
        else:
            # The lane claims more jobs and due ones next. This job need not wait for that.
            lane.claimed(claimer, 1, [], claimed)
            # The job starts before the next wait begins.
            await asyncio.sleep(0)


async def leave(sources: Sequence[Source]) -> None:
    """Wake another worker, because the stopping one may have taken a token or watched for due jobs.

    It gives up after a second. The others check by themselves every few seconds.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            # Do this concurrently. A server that does not answer must not keep workers of the others asleep.
            await asyncio.gather(*(give_wake_back(source.store) for source in sources), return_exceptions=True)
