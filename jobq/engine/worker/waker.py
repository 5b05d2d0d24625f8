"""Waiting for work without polling. A worker with free slots and nothing to claim blocks on the wake tokens.

One connection waits for all queues of a server, or of a node of a cluster. A worker of one queue sends a claim of one
job behind the wait in the same write, so the job arrives together with the token and not a trip later. It claims one
job only, because a worker that disappears while it waits (its machine, its network) still gets that job.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, TypeVar

from jobq.engine.log import get_logger
from jobq.engine.model.backoff import pause
from jobq.engine.store import having, send_each, stop_tracking
from jobq.engine.worker.claimer import Demand
from jobq.errors import StoreError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from jobq.engine.worker.lane import Lane
    from jobq.engine.worker.slots import Slots
    from jobq.engine.worker.source import Source

T = TypeVar("T")

log = get_logger("jobq.worker")

BLOCK: Final = 5.0
"""Seconds to block on the wake tokens. Then the worker looks for jobs without a token, because one may be lost with a
connection."""
LEFT_OUT_SECONDS: Final = 1.0
"""Seconds to block while a queue is left out, because the server refuses its claims or the wait for it."""
ASK_SECONDS: Final = 0.01
"""The shortest time between two questions of a busy worker for the tokens of its other queues."""


class Waker:
    """Tells the lanes of one server or cluster whenever there may be something to claim.

    It waits for all of its queues while slots are free, also for those that have jobs at the moment. So the wait need
    not be changed when one of them becomes empty.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._lanes: list[Lane] = []
        self._hungry = asyncio.Event()
        """Set when slots are free and there is nothing to claim from a queue."""
        self._freed = asyncio.Event()
        """Set when a slot is free again, after a time in which nobody waited for tokens."""
        self._told: list[Lane] = []
        """Lanes that may still have a token. Each notes itself whether it has."""
        self._failures = 0
        self._aside = False
        """Whether queues were left out lately, because the server refused to wait for them."""
        self._next = 0
        """The place of the lane that comes first in the next wait. Redis looks at the keys in their order."""
        self._wait: asyncio.Timeout | None = None
        slots.wakers.append(self)

    def add(self, lane: Lane) -> None:
        """Wait for one more queue, from now on."""
        lane.source.hungry = self._hungry
        self._lanes.append(lane)
        if self._wait is not None:
            self._wait.reschedule(0)

    def serves(self, source: Source) -> bool:
        """Whether it can also wait for this queue."""
        return source.store.connection is self._lanes[0].source.store.connection

    @property
    def sources(self) -> list[Source]:
        """The queues that it waits for."""
        return [lane.source for lane in self._lanes]

    # -- as the slots see it ---------------------------------------------------------------------------------------

    def listen(self) -> None:
        """Slots are free: wait for the tokens of queues that have nothing to claim."""
        if len(self._lanes) == 1:
            self._lanes[0].listen()
            return
        self._hungry.set()
        for lane in self._lanes:
            if lane.lacked is not None:
                lane.listen()

    def freed(self) -> None:
        """A slot is free again, and nobody has waited for tokens meanwhile."""
        if len(self._lanes) == 1:
            self._lanes[0].look()
        else:
            self._freed.set()
            self.listen()

    def full(self) -> None:
        """No slot is free. If lanes have tokens and cannot claim, other workers get these tokens."""
        if self._told:
            for lane in self._told:
                lane.pass_token_on()
            self._told.clear()

    # -- its tasks -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Wait for tokens until cancelled."""
        try:
            await self._run()
        finally:
            stop_tracking(self._lanes[0].source.store.connection)

    async def _run(self) -> None:
        while True:
            if not (lanes := self._waiting()):
                self._slots.nobody_listens()
                self._hungry.clear()
                # Do not use wait_for. Before Python 3.12 it loses a cancellation at the moment when the wait ends.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BLOCK):
                        await self._hungry.wait()
            elif len(self._lanes) == 1:
                await self._wait_for_one(lanes[0])
            else:
                await self._wait_for_all(lanes)

    async def ask(self) -> None:
        """When slots become free, ask which queues have a token, until cancelled.

        Without this, a queue with many jobs would take each free slot before the waker can wait for the others.
        """
        while True:
            await self._freed.wait()
            self._freed.clear()
            await self._look_at_those_with("wake")
            self._slots.offer()
            await asyncio.sleep(ASK_SECONDS)

    def _waiting(self) -> list[Lane]:
        """The lanes to wait for now."""
        slots, lanes = self._slots, self._lanes
        if slots.stopping or slots.free() <= 0 or all(lane.source.demand is not Demand.IDLE for lane in lanes):
            return []
        if len(lanes) == 1:
            return [] if lanes[0].source.waking.unanswered else lanes
        # A token of a queue whose claims fail would be taken again and again.
        now = lanes[0].source.loop.time()
        start = self._next % len(lanes)
        return [
            lane
            for lane in (*lanes[start:], *lanes[:start])
            if not lane.source.claimer.backoff.failures and lane.source.waking.backoff.until <= now
        ]

    async def _wait_for_one(self, lane: Lane) -> None:
        """Wait for the wake token once. The claim is sent behind it."""
        source = lane.source
        claimer = source.waking
        call = lane.claim_call(claimer, 1)
        try:
            claimed = await self._until_another_joins(source.store.trip_on_wake(call, block=BLOCK))
        except BaseException as error:
            # The reply was lost, the worker stops, or another queue joins. The claim may have taken a job, so the lane
            # repeats it.
            claimer.failed(source.loop.time())
            lane.wake()
            if isinstance(error, TimeoutError):
                return
            if not isinstance(error, StoreError):
                raise
            source.warn("The wait for new jobs failed and is repeated", error)
        else:
            # The lane claims more jobs and due ones next. This job need not wait for that.
            lane.claimed(claimer, 1, [], claimed)
            # The job starts before the next wait begins.
            await asyncio.sleep(0)

    async def _wait_for_all(self, lanes: list[Lane]) -> None:
        """Wait for a token of any queue once. The lane of that queue claims then."""
        stores = [lane.source.store for lane in lanes]
        try:
            block = BLOCK if len(lanes) == len(self._lanes) else LEFT_OUT_SECONDS
            place = await self._until_another_joins(stores[0].wait_for_wake(stores, block))
        except TimeoutError:
            # Another queue joins. A token may have been taken.
            await self._look_for_jobs()
        except StoreUnavailable as error:
            self._failures += 1
            await self._pause(error)
        except StoreError as error:
            await self._set_aside(lanes, error)
        else:
            self._failures = 0
            if self._aside:
                self._aside = False
                for lane in lanes:
                    lane.source.waking.backoff.worked()
            if place is None:
                await self._look_for_jobs()
            else:
                self._next = self._lanes.index(lanes[place]) + 1
                self._tell(lanes[place])
                # The lane claims before the next wait begins.
                await asyncio.sleep(0)

    async def _until_another_joins(self, waiting: Awaitable[T]) -> T:
        """The result of a wait.

        :raises TimeoutError: another queue joins.
        """
        try:
            async with asyncio.timeout(None) as self._wait:
                return await waiting
        finally:
            self._wait = None

    def _tell(self, lane: Lane) -> None:
        self._told = [told for told in self._told if told.has_token]
        self._told.append(lane)
        lane.has_token = True
        if self._slots.free() <= 0 or self._slots.stopping:
            self.full()
        else:
            lane.look()
            lane.wake()

    async def _look_for_jobs(self) -> None:
        """Look at the queues that have jobs which may run, now or later. A worker that died may have watched them."""
        for lane in await self._look_at_those_with("waiting", "delayed", "held"):
            lane.source.idle.empty()

    async def _look_at_those_with(self, *columns: str) -> list[Lane]:
        """Let lanes claim whose queues have one of these columns. Returns the others that have nothing to claim."""
        idle = [lane for lane in self._lanes if lane.source.demand is Demand.IDLE]
        places: Sequence[int] = range(len(idle))
        with contextlib.suppress(StoreError):  # The claims get the error, too.
            places = await having([lane.source.store for lane in idle], *columns)
        for place in places:
            idle[place].look()
            idle[place].wake()
        found = set(places)
        return [lane for place, lane in enumerate(idle) if place not in found]

    async def _pause(self, error: StoreError) -> None:
        names = ", ".join(source.name for source in self.sources[:3])
        log.warning(
            f"The wait for new jobs of {len(self._lanes)} queues ({names} and others) failed and is repeated: {error}",
            error=str(error),
        )
        await asyncio.sleep(pause(self._failures))
        # The lost reply may have had a token.
        await self._look_for_jobs()

    async def _set_aside(self, lanes: list[Lane], error: StoreError) -> None:
        """The server refuses the wait. Find the queues whose keys are the reason. They are left out for a while, and
        their lanes look for jobs by themselves. The others are waited for again."""
        stores = [lane.source.store for lane in lanes]
        try:
            answers = await send_each(stores, lambda store: (b"ZREM", store.keys["wake"], b""))
        except StoreError as unsent:
            answers, error = [], unsent
        broken = [(lane, answer) for lane, answer in zip(lanes, answers, strict=False) if isinstance(answer, Exception)]
        self._aside |= bool(broken)
        for lane, answer in broken:
            source = lane.source
            source.waking.backoff.failed(source.loop.time())
            error = answer if isinstance(answer, StoreError) else StoreError(f"Redis: {answer}")
            source.warn("The wait for new jobs failed and is repeated", error)
            lane.look()
            lane.wake()
        if not broken:
            self._failures += 1
            await self._pause(error)
