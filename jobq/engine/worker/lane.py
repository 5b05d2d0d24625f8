"""A lane makes the trips of one source. A trip sends outcomes and claims jobs, in one write of whole scripts.

A trip sends the outcomes of ended runs, trims, ends late jobs, recalls, forwards, admits, and claims jobs for the free
slots. The trips of a source follow one another. So its jobs start in the order of their claims, and the notes of a
run are stored before its outcome. Each source has its own lane, so a server that does not answer does not delay
other sources.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from jobq.engine.queue.late import late_call
from jobq.engine.store import CLAIM_MAX
from jobq.engine.worker.claimer import Demand
from jobq.engine.worker.claiming import RESERVED_SECONDS, Claiming
from jobq.engine.worker.outbox import HAND_BACK_MAX, RELEASED, THROTTLED, Parcel
from jobq.engine.worker.tokens import pass_on
from jobq.errors import StoreError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from jobq.engine.store import Call
    from jobq.engine.worker.claimer import BackOff, Claimer
    from jobq.engine.worker.slots import Slots
    from jobq.engine.worker.source import Source

FORWARD_MAX: Final = 125
ADMIT_LOOKS: Final = 250
"""Held jobs that one trip looks at. Each costs Redis a few microseconds."""
TRIM_PAGE: Final = 250
"""Jobs per trim: as many as a trip settles, so that finished jobs do not accumulate."""


class Lane(Claiming):
    """The lane of one source. ``run`` is its task, and ``close`` ends it."""

    def __init__(self, source: Source, slots: Slots) -> None:
        super().__init__(source, slots)
        self.weight = source.weight
        self._sleeper: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0
        self._chosen = False
        self._flying = False
        self._closed = False
        self._claim_next = False
        self._reserved = 0
        self.queue: object = source.queue
        self.turn = 0
        """The number of its last claim among those of all lanes."""
        self._passing: set[asyncio.Task[None]] = set()
        source.wake = self.wake
        source.due = self.due
        slots.claimants.append(self)

    # -- as the slots see it ---------------------------------------------------------------------------------------

    @property
    def wants_slots(self) -> bool:
        """It waits for free slots to claim for."""
        source = self.source
        return (
            source.demand is Demand.READY
            and not self._flying
            and not source.claimer.unanswered
            and not source.waking.unanswered
            and source.claimer.backoff.until <= self._loop.time()
        )

    @property
    def idle(self) -> bool:
        """Whether it has nothing to send and waits for no answer."""
        source = self.source
        return not (self._flying or source.outbox or source.claimer.unanswered or source.waking.want)

    def look(self) -> None:
        """There may be jobs to claim."""
        self.source.demand = self.source.demand.came()

    def listen(self) -> None:
        """Slots are free: the waker may listen unless the lane has something to claim."""
        if self.lacked is not None and self._slots.free() > self.lacked:
            self.lacked = None
            self.look()
        if self.source.demand is Demand.IDLE:
            self.source.hungry.set()

    def wake(self, *, chosen: bool = False) -> None:
        """Wake the lane. ``chosen``: it may claim."""
        if chosen:
            self._chosen = True
        sleeper = self._sleeper
        if sleeper is not None and not sleeper.done():
            sleeper.set_result(None)

    def due(self) -> None:
        """A delayed job is due. A worker without a free slot tells another one, which may be idle."""
        self.look()
        if self._slots.free() > 0 or self._slots.stopping:
            self.wake()
        else:
            self._pass_on()

    def pass_token_on(self) -> None:
        """No slot is free for the job of a token: wake another worker, which may be idle."""
        if self.has_token:
            self.has_token = False
            self._pass_on()

    def _pass_on(self) -> None:
        task = self._loop.create_task(pass_on(self.source))
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)

    # -- its task --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Make trips until the lane is closed."""
        while True:
            self._sleeper = None
            if await self._trip():
                continue
            if self._slots.stopping:
                self._slots.look_whether_empty()
            if self._closed:
                return
            self._sleeper = self._loop.create_future()
            await self._sleeper

    def close(self) -> None:
        """Make no more trips."""
        self._closed = True
        self.source.timer.cancel()
        if self._alarm is not None:
            self._alarm.cancel()
        self.wake()

    def _rests(self, backoff: BackOff) -> bool:
        """Whether it is too early for another try. The lane is woken at the right time."""
        if not backoff.failures or backoff.until <= self._loop.time():
            return False
        if self._alarm is None or self._alarm.cancelled() or self._alarm_at > backoff.until:
            if self._alarm is not None:
                self._alarm.cancel()
            # Timers of uvloop that are due within half a ms cannot tell their time.
            self._alarm_at = backoff.until
            self._alarm = self._loop.call_at(backoff.until, self._rested)
        return True

    def _rested(self) -> None:
        self._alarm = None
        self.wake()

    def _next_claimer(self) -> Claimer | None:
        """The claimer for which the next trip should claim, if any.

        A claim whose reply was lost is repeated before any new one, even if there is no free slot.
        """
        source, slots = self.source, self._slots
        chosen, self._chosen = self._chosen, False
        unanswered = [claimer for claimer in (source.claimer, source.waking) if claimer.unanswered]
        if unanswered:
            return next((claimer for claimer in unanswered if not self._rests(claimer.backoff)), None)
        if source.demand is not Demand.READY or slots.stopping or self._rests(source.claimer.backoff):
            return None
        if len(source.outbox.rows[RELEASED]) > RELEASED.width * HAND_BACK_MAX:
            # Jobs that were handed back must be in the queue again before later ones are claimed.
            return None
        if slots.free() <= 0:
            slots.nobody_listens()
            return None
        return source.claimer if chosen or slots.may_claim(self) else None

    async def _trip(self) -> bool:
        """Make one trip. Returns False if there is nothing to do now."""
        source = self.source
        if source.holds and source.outbox:
            # The jobs that ended make room under their limits: claim with the same trip.
            self.look()
        claimer = self._next_claimer()
        settles = bool(source.outbox) and not self._rests(self._settling)
        if claimer is not None and settles and (self._settling.failures or claimer.backoff.failures):
            # The last trip failed. Send outcomes and claims separately now, so that neither can stop the other.
            self._claim_next = not self._claim_next
            if self._claim_next:
                settles = False
            else:
                claimer = None
        if claimer is None and not settles:
            return False
        self._flying = True
        try:
            if settles and self._refused and not await self._answers():
                return True
            parcel = source.outbox.take(self._most) if settles else Parcel()
            await self._send(parcel, claimer)
        finally:
            self._flying = False
        return True

    async def _send(self, parcel: Parcel, claimer: Claimer | None) -> None:
        source = self.source
        steps = parcel.calls(source.store)
        calls: list[Call[Any]] = [call for _, call in steps]
        if source.standing > 0:
            queue = source.queue
            calls.append(source.store.trim(queue.keep_completed, queue.keep_failed, queue.keep_for_ms, TRIM_PAGE))
        trims = len(calls) > len(steps)
        want, lapse, recalls, late = 0, None, False, False
        if claimer is not None:
            want = claimer.want if claimer.unanswered else min(self._slots.free(), CLAIM_MAX)
            # The last claim may have met a job that is too late to start.
            late, source.store.late = source.store.late, False
            if recalls := source.recalls and not claimer.unanswered:
                source.recalls = False
            calls += self._claim_calls(claimer, want, late=late, recalls=recalls)
            source.demand = source.demand.sent()
            lapse = self._reserve(want, claimer)
        elif source.store.limited and parcel:
            # The jobs that ended leave room under their limits, and this worker takes no more jobs: wake another
            # one. It admits what it can claim.
            calls.append(source.store.admit(1, ADMIT_LOOKS, 0))
        first = len(steps) + trims
        self._releasing = RELEASED in parcel.rows
        try:
            answers = await self._measured(parcel, calls)
        except BaseException as error:
            if claimer is not None:
                self._not_claimed(claimer, late=late, recalls=recalls)
            if parcel:
                source.outbox.put_back(parcel)
            if not isinstance(error, StoreError):
                raise
            source.warn("A trip to Redis failed; outcomes are kept and sent again", error)
            if parcel:
                self._not_sent(parcel, error)
            self._lapse()
            return
        finally:
            if lapse is not None:
                lapse.cancel()
            self._unreserve()
            self._releasing = False
        if parcel:
            source.meter.settled.add(len(parcel))
            self._settled(parcel, steps, answers)
        if trims:
            self._trimmed(answers[len(steps)])
        if claimer is not None:
            if late:
                self._ended_late(answers[first])
            if recalls:
                self._recalled(want, answers[first + late])
            self.claimed(claimer, want, answers[first + late + recalls : -1], answers[-1])

    async def _measured(self, parcel: Parcel, calls: list[Call[Any]]) -> list[Any]:
        if THROTTLED in parcel.rows:
            await self.source.whole.close(parcel.rows[THROTTLED])
        meter, began = self.source.meter, perf_counter()
        try:
            answers = await self.source.store.trip(*calls)
        except StoreError:
            meter.errors += 1
            raise
        meter.seconds.add(perf_counter() - began)
        return answers

    def _not_claimed(self, claimer: Claimer, *, late: bool, recalls: bool) -> None:
        """The trip with a claim failed."""
        source = self.source
        claimer.failed(self._loop.time())
        source.demand = source.demand.failed()
        source.recalls |= recalls
        source.store.late |= late
        self._slots.admit(())  # Start what has waited for this answer.

    def _claim_calls(self, claimer: Claimer, want: int, *, late: bool, recalls: bool) -> Iterator[Call[Any]]:
        """A claim, behind the calls that move jobs to where it takes them.

        A recalled or due job with limits is in held at first, so admit comes behind recall and forward. Before it,
        overflow decides about jobs over a limit that has an action.
        """
        source = self.source
        self.turn = self._slots.take_turn()
        if late:
            yield late_call(source.store)
        if recalls:
            yield source.store.recall(want, source.tasks)
        yield source.store.forward(FORWARD_MAX)
        if source.store.limited:
            if source.store.decides:
                yield source.store.overflow(())
            yield source.store.admit(want, ADMIT_LOOKS, 2 if self._slots.free() > want else 1)
        yield self.claim_call(claimer, want)

    def _reserve(self, want: int, claimer: Claimer) -> asyncio.TimerHandle | None:
        """Keep slots for a claim, but not if the last one failed, and not for long if other sources could use them."""
        if claimer.backoff.failures:
            return None
        self._reserved = want
        self._slots.reserve(want)
        if len(self._slots.claimants) == 1:
            return None
        self._slots.offer()
        return self._loop.call_later(RESERVED_SECONDS, self._lapse)

    def _lapse(self) -> None:
        self._unreserve()
        # Wakers stopped waiting for other queues while all slots were reserved.
        for waker in self._slots.wakers:
            waker.listen()
        self._slots.offer()

    def _unreserve(self) -> None:
        self._slots.reserve(-self._reserved)
        self._reserved = 0
