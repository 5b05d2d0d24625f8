"""A lane makes the trips of one source: outcomes go out and jobs come in, in one write of whole scripts.

A trip settles what has ended, trims, forwards delayed jobs that are due, and claims jobs for the free slots. The trips
of a source follow one another. So its jobs start in the order of their claims, and what a run said is stored before its
outcome. A source with a lane of its own cannot be held up by another one whose server does not answer.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from jobq.engine.log import debugging, get_logger
from jobq.engine.store import CLAIM_BYTES, give_wake_back
from jobq.engine.worker.claimer import BackOff, Claimer, Demand
from jobq.engine.worker.outbox import COMPLETED, HAND_BACK_MAX, RELEASED, SETTLE_MAX, Parcel
from jobq.errors import StoreError, StoreFull, StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    import asyncio

    from jobq.engine.store import Call
    from jobq.engine.worker.outbox import Outcome
    from jobq.engine.worker.slots import Slots
    from jobq.engine.worker.source import Source

log = get_logger("jobq.worker")

CLAIM_MAX: Final = 125
"""Jobs per claim: as many as one ``CALL`` of a producer, for the same reason."""
FORWARD_MAX: Final = 125
TRIM_PAGE: Final = 250
"""As many as a trip settles: finished jobs must not pile up."""
RESERVED_SECONDS: Final = 0.25
"""For so long a claim on its way keeps room from the other sources: its server may have stopped to answer."""
REFUSED_TIMES: Final = 2
"""How often a trip with one job must fail, while the server answers others, before the job's outcome is given up."""
SMALL: Final = 1 << 16
"""Bytes of an outcome that no limit of a server or a link refuses."""
REFUSED_TIMES_SMALL: Final = 20
"""The same for a small outcome: if its trips fail, the network is more likely to blame than the job."""

TRANSIENT: Final = (StoreUnavailable, StoreRefused, StoreFull)
"""Errors that say nothing about the data: the same call may work later."""


class Lane:
    """Of one source. ``run`` is its task; ``close`` ends it."""

    def __init__(self, source: Source, slots: Slots) -> None:
        self.source = source
        self.weight = source.weight
        self._slots = slots
        self._loop = slots.loop
        self._sleeper: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._chosen = False
        self._flying = False
        self._releasing = False
        """Jobs that were handed back are on their way."""
        self._closed = False
        self._settling = BackOff()
        self._most = SETTLE_MAX
        """Jobs per trip. Half as many after each trip that failed, so that one that the server refuses is found."""
        self._refused = 0
        """How often a trip with one job failed although the server answers."""
        self._refused_times = REFUSED_TIMES
        """How often it may."""
        self._error = StoreError()
        """Why the last trip failed."""
        self._claim_next = False
        self._reserved = 0
        self._passing: set[asyncio.Task[None]] = set()
        source.wake = self.wake
        source.due = self.due
        slots.claimants.append(self)

    # -- as the slots see it ---------------------------------------------------------------------------------------

    @property
    def wants_slots(self) -> bool:
        """It waits for room to claim."""
        source = self.source
        return (
            source.demand is Demand.READY
            and not self._flying
            and not source.claimer.lost
            and not source.waking.lost
            and source.claimer.backoff.until <= self._loop.time()
        )

    @property
    def idle(self) -> bool:
        """It has nothing to send and waits for no answer."""
        source = self.source
        return not (self._flying or source.outbox or source.claimer.lost or source.waking.want)

    def look(self) -> None:
        """There may be jobs to claim."""
        self.source.demand = self.source.demand.came()

    def listen(self) -> None:
        """There is room: the waker may listen unless the lane has something to claim."""
        if self.source.demand is Demand.IDLE:
            self.source.hungry.set()

    def wake(self, *, chosen: bool = False) -> None:
        """There may be something to do. ``chosen``: it may claim."""
        if chosen:
            self._chosen = True
        sleeper = self._sleeper
        if sleeper is not None and not sleeper.done():
            sleeper.set_result(None)

    def due(self) -> None:
        """A delayed job is due. A worker without room tells another one, which may be idle."""
        self.look()
        if self._slots.room() > 0 or self._slots.stopping:
            self.wake()
        else:
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
        """No more trips."""
        self._closed = True
        self.source.timer.cancel()
        if self._alarm is not None:
            self._alarm.cancel()
        self.wake()

    def _rests(self, backoff: BackOff) -> bool:
        """Whether it is too early to try again. The lane is woken when it is time."""
        if not backoff.failures or backoff.until <= self._loop.time():
            return False
        if self._alarm is None or self._alarm.cancelled() or self._alarm.when() > backoff.until:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = self._loop.call_at(backoff.until, self._rested)
        return True

    def _rested(self) -> None:
        self._alarm = None
        self.wake()

    def _next_claimer(self) -> Claimer | None:
        """Who claims in the next trip. A claim whose reply was lost is repeated before any new one, room or no room."""
        source, slots = self.source, self._slots
        chosen, self._chosen = self._chosen, False
        lost = [claimer for claimer in (source.claimer, source.waking) if claimer.lost]
        if lost:
            return next((claimer for claimer in lost if not self._rests(claimer.backoff)), None)
        if source.demand is not Demand.READY or slots.stopping or self._rests(source.claimer.backoff):
            return None
        if len(source.outbox.rows[RELEASED]) > RELEASED.width * HAND_BACK_MAX:
            # jobs that were handed back must be in the queue again before later ones are claimed
            return None
        if slots.room() <= 0:
            slots.nobody_listens()
            return None
        return source.claimer if chosen or slots.may_claim(self) else None

    async def _trip(self) -> bool:
        """One trip. False: there is nothing to do now."""
        source = self.source
        claimer = self._next_claimer()
        settles = bool(source.outbox) and not self._rests(self._settling)
        if claimer is not None and settles and (self._settling.failures or claimer.backoff.failures):
            # The last trip failed. They go one by one now, so that neither suffers for what the other carries.
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
        want, lapse = 0, None
        if claimer is not None:
            want = claimer.want if claimer.lost else min(self._slots.room(), CLAIM_MAX)
            calls += (source.store.forward(FORWARD_MAX), self.claim_call(claimer, want))
            source.demand = source.demand.sent()
            lapse = self._reserve(want, claimer)
        self._releasing = RELEASED in parcel.rows
        try:
            answers = await source.store.trip(*calls)
        except BaseException as error:
            if claimer is not None:
                claimer.failed(self._loop.time())
                source.demand = source.demand.failed()
            if parcel:
                source.outbox.put_back(parcel)
            if not isinstance(error, StoreError):
                raise
            source.report("A trip to Redis failed; outcomes are kept and sent again", error)
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
            self._settled(parcel, steps, answers)
        if trims:
            self._trimmed(answers[len(steps)])
        if claimer is not None:
            self.claimed(claimer, want, answers[-2], answers[-1])

    def _reserve(self, want: int, claimer: Claimer) -> asyncio.TimerHandle | None:
        """Keep room for a claim: not for one in trouble, and not for long if other sources could use it."""
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
        self._slots.offer()

    def _unreserve(self) -> None:
        self._slots.reserve(-self._reserved)
        self._reserved = 0

    # -- outcomes --------------------------------------------------------------------------------------------------

    async def _answers(self) -> bool:
        """Whether the server answers at all, or the last trip's data had nothing to do with its failure."""
        try:
            await self.source.store.look_at_clock()
        except StoreError:
            self._refused = 0
            self._settling.failed(self._loop.time())
            return False
        if self._refused < self._refused_times:
            return True
        self._refused = 0
        parcel = self.source.outbox.take(1)
        if parcel.notes:
            # without them, the outcome may pass
            log.error(
                f"Redis refuses what a job said: progress and log lines are left out of {_ids(parcel)}",
                queue=self.source.name, jobs=_ids(parcel),
            )  # fmt: skip
            for outcome, flat in parcel.rows.items():
                self.source.outbox.put_rows_back(outcome, flat)
        else:
            for outcome, flat in parcel.rows.items():
                self.source.give_up(outcome, flat, self._error)
        return False

    def _not_sent(self, parcel: Parcel, error: StoreError) -> None:
        """The trip failed as a whole. The server may be away, or one job's data may be more than it accepts."""
        self._error = error
        self._settling.failed(self._loop.time())
        self._most = max(1, len(parcel) // 2)
        self._refused = self._refused + 1 if parcel.alone else 0
        self._refused_times = REFUSED_TIMES if parcel.size > SMALL else REFUSED_TIMES_SMALL

    def _settled(self, parcel: Parcel, steps: list[tuple[Outcome | None, Call[Any]]], answers: list[Any]) -> None:
        source = self.source
        ok = True
        for (outcome, call), answer in zip(steps, answers, strict=False):
            if not isinstance(answer, StoreError):
                if outcome is not None:
                    flat = parcel.rows[outcome]
                    source.settled(outcome, flat, answer, repeated=parcel.repeated or call.again)
            elif outcome is None:
                source.report("Redis refuses progress or log lines; they are left out", answer)
            else:
                ok = False
                self._refused_rows(parcel, outcome, answer)
        self._refused = 0
        if ok:
            self._settling.worked()
            self._most = min(SETTLE_MAX, 2 * self._most)
        else:
            self._settling.failed(self._loop.time())

    def _refused_rows(self, parcel: Parcel, outcome: Outcome, error: StoreError) -> None:
        """The server refuses the call of one outcome. Half as many next time, until one job is refused alone."""
        source, flat = self.source, parcel.rows[outcome]
        jobs = len(flat) // outcome.width
        if not isinstance(error, TRANSIENT) and jobs == 1:
            source.give_up(outcome, flat, error)
            return
        source.report("Redis refuses outcomes; they are kept and sent again", error)
        source.outbox.put_rows_back(outcome, flat)
        if outcome is COMPLETED:
            for bucket, count in parcel.counts.items():
                source.outbox.counts[bucket] = source.outbox.counts.get(bucket, 0) + count
        if not isinstance(error, TRANSIENT):
            self._most = max(1, jobs // 2)

    def _trimmed(self, answer: Any) -> None:
        source = self.source
        if isinstance(answer, StoreError):
            source.report("Redis refuses to trim finished jobs", answer)
            source.standing = 0
        else:
            source.standing = source.standing - answer if answer else 0

    # -- claims ----------------------------------------------------------------------------------------------------

    def claim_call(self, claimer: Claimer, want: int) -> Call[Any]:
        """A claim, or the repetition of a lost one. A worker that stops asks only for what the lost one took."""
        source, slots = self.source, self._slots
        repeated = claimer.lost
        request = claimer.sent(want, repeated=repeated)
        return source.store.claim(
            0 if slots.stopping else want,
            source.lease_ms,
            source.worker,
            claimer.name,
            request,
            repeated=repeated,
            room=slots.room() > want,
        )

    def claimed(self, claimer: Claimer, want: int, forwarded: Any, claimed: Any) -> None:
        """Take in what a claim brought. ``forwarded`` None: nobody looked at what is due, so the lane does."""
        source, slots = self.source, self._slots
        if isinstance(claimed, StoreError):
            claimer.failed(self._loop.time())
            source.demand = source.demand.failed()
            source.report("Redis refuses a claim; it is repeated", claimed)
            self.wake()
            return
        claimer.answered()
        got = size = 0
        if claimed is not None:
            got = len(claimed.ids)
            size = sum(len(spec or b"") for spec in claimed.specs)
            runs = source.without_killed(source.took(claimed, perf_counter()))
            if debugging("jobq.worker"):
                for run in runs:
                    job_id = run.id.decode()
                    log.debug(f"Job {job_id} was claimed", queue=source.name, job_id=job_id, attempt=run.attempt)
            if source.outbox.rows[RELEASED] or (claimer is source.waking and self._releasing):
                # Earlier jobs are being handed back since this claim was sent. These jobs must not overtake them.
                for run in runs:
                    run.ended = True
                    run.reason = "shutdown"
                    source.released(run)
            else:
                slots.admit(runs)
        if forwarded is None:
            source.demand = source.demand.came()
        else:
            source.demand = source.demand.answered(more=got == want or size > CLAIM_BYTES)
            self._forwarded(claimer, forwarded)
        if slots.room() <= 0:
            slots.nobody_listens()
        else:
            for claimant in slots.claimants:
                claimant.listen()
            slots.offer()

    def _forwarded(self, claimer: Claimer, answer: Any) -> None:
        source = self.source
        if isinstance(answer, StoreError):
            claimer.failed(self._loop.time())
            source.report("Redis refuses to forward delayed jobs", answer)
            return
        if answer[0]:
            log.debug(f"{answer[0]} delayed jobs of queue {source.name} became due", queue=source.name)
        if answer[1] == 0:
            source.timer.cancel()
            source.demand = source.demand.came()
        else:
            source.timer.set(answer[1])


def _ids(parcel: Parcel) -> list[str]:
    return [job_id.decode() for job_id, _ in parcel.notes]


async def pass_on(source: Source) -> None:
    """Tell another worker that there may be work."""
    try:
        await give_wake_back(source.store)
    except StoreError as error:
        source.report("Another idle worker could not be woken", error)
