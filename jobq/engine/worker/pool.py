"""Slots, lanes and the waker: what keeps a worker's slots full.

Two lanes go to Redis and back, so that one trip is under way while handlers run on what the other brought. A trip is
one write of whole scripts: settle what is done, trim, forward what is due, claim for the free slots. A worker with free
slots and nothing to claim blocks on the wake token and sets a timer for the next due job; nobody polls.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections import deque
from threading import get_ident
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from jobq.engine.log import debugging, get_logger
from jobq.engine.model.backoff import pause
from jobq.engine.store import CLAIM_BYTES, give_wake_back
from jobq.engine.worker.buffer import Buffer
from jobq.engine.worker.run import execute
from jobq.engine.worker.threads import Threads
from jobq.errors import StoreError

if TYPE_CHECKING:
    from jobq.engine.worker.outbox import Outbox
    from jobq.engine.worker.run import Run
    from jobq.engine.worker.source import Source

log = get_logger("jobq.worker")

LANES: Final = 2
WAKER: Final = 2
"""The waker's place among those who claim, behind the lanes."""
CLAIM_MAX: Final = 125
"""Jobs per claim: as many as one ``CALL`` of a producer, for the same reason."""
FORWARD_MAX: Final = 125
PREFETCH_SECONDS: Final = 0.002
"""How much work may be claimed ahead of a free slot."""
HESITATE: Final = 0.05
"""Seconds that a worker leaves to others when a job is due whose type it may not know."""
EAGER: Final = sys.version_info >= (3, 12)


class Pool:
    """The slots of one worker, shared by its sources."""

    def __init__(self, loop: asyncio.AbstractEventLoop, concurrency: int, lease_ms: int, worker: str) -> None:
        self.loop = loop
        self.concurrency = concurrency
        self.lease_ms = lease_ms
        self.worker = worker
        self.sources: list[Source] = []
        self.running = 0
        self.stopping = False
        self.closed = False
        self.buffer = Buffer(loop, self._overdue)
        self._reserved = 0
        self._filling = False
        self._full = False
        self._typical = 1.0
        """Seconds that a run takes, as a moving average; starts high: nothing is prefetched on trust."""
        self._sleepers: deque[asyncio.Future[None]] = deque()
        self._passing: set[asyncio.Task[None]] = set()
        self.threads = Threads(loop, concurrency, self.widen)
        self._clock_ms = 0.0
        self._flying = 0
        self._idle = asyncio.Event()
        self._empty = asyncio.Event()
        self.thread = get_ident()

    # -- slots -----------------------------------------------------------------------------------------------------

    def room(self) -> int:
        """How many more jobs may be claimed now."""
        ahead = 0 if self.stopping else min(500, int(self.concurrency * PREFETCH_SECONDS / self._typical))
        return self.concurrency + ahead - self.running - len(self.buffer) - self._reserved

    def server_ms(self, moment: float) -> int:
        """A ``perf_counter`` moment on the server's clock, unix ms."""
        return int(self._clock_ms + moment * 1000)

    def _fill(self) -> None:
        """Start buffered jobs while slots are free. Not recursive: an eager run may end before it returns."""
        if self._filling:
            return
        self._filling = True
        pop, loop = self.buffer.pop, self.loop
        while self.running < self.concurrency and (run := pop()) is not None:
            self.running += 1
            # this may be the end of another run: what that one left in its context is none of this one's business
            context = run.source.context.copy()
            if EAGER:
                run.task = asyncio.Task(execute(run), loop=loop, context=context, eager_start=True)  # pyright: ignore
            else:
                run.task = loop.create_task(execute(run), context=context)
        self._filling = False

    def freed(self, run: Run) -> None:
        """A run has ended: its slot is free."""
        self.running -= 1
        if run.started:
            self._typical += 0.1 * (perf_counter() - run.started - self._typical)
        self._room_again()
        if self.stopping and not self.running:
            self._idle.set()
            self.notify()

    def widen(self, by: int) -> None:
        """Have more slots, or fewer: those that run keep theirs."""
        self.concurrency += by
        if by > 0:
            # nobody may have looked for work while there were no slots
            self._full = True
            self._room_again()

    def _room_again(self) -> None:
        if self.buffer:
            self._fill()
        if self._full:
            # nobody listened while there was no room: look again
            self._full = False
            for source in self.sources:
                source.ready = True
            self.notify()

    def give_back_buffer(self) -> None:
        """Hand back what has not started."""
        for run in self.buffer.take_all():
            run.source.released(run)

    def _overdue(self) -> None:
        """What was claimed ahead waits for too long: jobs are not as short as they were, and others may be idle."""
        self._typical = max(self._typical, 1.0)
        self.give_back_buffer()

    # -- lanes -----------------------------------------------------------------------------------------------------

    def notify(self) -> None:
        """There may be something for a lane to do."""
        sleepers = self._sleepers
        while sleepers:
            future = sleepers.popleft()
            if not future.done():
                future.set_result(None)
                return

    def nobody_listens(self) -> None:
        """For a wake token, that is: whoever frees a slot has to look for work."""
        self._full = True

    def _pick(self, lane: int) -> Source | None:
        """The source of the next trip: by weight among those that can be claimed from or have outcomes."""
        for source in self.sources:
            if any(source.unanswered[claimer] for claimer in self._claimers(lane)):
                # what that claim took is nobody's until it is asked for again, room or no room
                return source
        room = 0 if self.stopping else self.room()
        candidates = [
            source
            for source in self.sources
            if (room > 0 and source.ready and (source.deep or not source.claiming))
            or (source.outbox and not source.speaking)
        ]
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        return random.choices(candidates, [source.weight for source in candidates])[0]

    async def lane(self, index: int) -> None:
        """Make trips until the pool is closed."""
        failures = 0
        while True:
            source = self._pick(index)
            if source is None:
                if self.stopping and not self.running and not self._flying and not self.buffer and not self._asking():
                    self._empty.set()
                if self.closed:
                    return
                future: asyncio.Future[None] = self.loop.create_future()
                self._sleepers.append(future)
                await future
                continue
            self._flying += 1
            try:
                ok = await self._trip(source, index)
            finally:
                self._flying -= 1
            if ok:
                failures = 0
            else:
                failures += 1
                if self.closed:
                    return
                await asyncio.sleep(pause(failures))

    @staticmethod
    def _claimers(lane: int) -> tuple[int, ...]:
        """Whose lost claims a lane asks for again: its own; the first lane also the waker's."""
        return (lane, WAKER) if lane == 0 else (lane,)

    def _asking(self) -> bool:
        return any(any(source.unanswered) for source in self.sources)

    async def _trip(self, source: Source, lane: int) -> bool:
        want = 0
        claimer = next((claimer for claimer in self._claimers(lane) if source.unanswered[claimer]), lane)
        repeated = source.unanswered[claimer] > 0
        if repeated:
            # a claim whose reply was lost: the same request again, so that what it took is not left behind
            want = source.unanswered[claimer]
        elif source.ready and not self.stopping and (source.deep or not source.claiming):
            want = max(0, min(self.room(), CLAIM_MAX))
        outbox = source.take()
        steps = source.calls(outbox)
        calls: list[Any] = [call for _, call in steps]
        if want:
            calls += (source.store.forward(FORWARD_MAX), self.claim_call(source, claimer, want, repeated=repeated))
            source.claiming += 1
            self._reserved += want
            source.ready = source.deep
        elif not calls:
            return True
        try:
            answers = await source.store.trip(*calls)
        except StoreError as error:
            outbox.put_before(source.outbox)
            source.unanswered[claimer] = want
            source.ready = True
            source.report(error)
            return False
        finally:
            if outbox.progress or outbox.logs:
                source.speaking = False
            if want:
                source.claiming -= 1
                self._reserved -= want
        ok = self._settled(source, outbox, steps, answers)
        if want:
            ok &= self.claimed(source, claimer, want, answers[-2], answers[-1])
        return ok

    def claim_call(self, source: Source, claimer: int, want: int, *, repeated: bool = False) -> Any:
        """A claim. A worker that stops repeats one for what it took, not for more."""
        if not repeated:
            source.requests[claimer] += 1
        return source.store.claim(
            0 if self.stopping else want,
            self.lease_ms,
            self.worker,
            f"{self.worker}:{claimer}",
            source.requests[claimer],
            repeated=repeated,
            room=self.room() > want,
        )

    def _settled(self, source: Source, outbox: Outbox, steps: list[tuple[str, Any]], answers: list[Any]) -> bool:
        ok = True
        for (kind, call), answer in zip(steps, answers, strict=False):
            if isinstance(answer, StoreError):
                ok = False
                source.report(answer)
                if kind not in ("trim", "progress", "logs"):
                    flat = getattr(source.outbox, kind)
                    setattr(source.outbox, kind, getattr(outbox, kind) + flat)
            else:
                source.settled(kind, outbox, answer, repeated=outbox.repeated or call.again)
        return ok

    def claimed(self, source: Source, claimer: int, want: int, forwarded: Any, claimed: Any) -> bool:
        """Take in what a claim brought. False: it was refused, and is asked for again.

        ``forwarded`` None: nobody looked at what is due, so a lane does.
        """
        if isinstance(claimed, StoreError):
            source.unanswered[claimer] = want
            source.ready = True
            source.report(claimed)
            return False
        source.unanswered[claimer] = 0
        got = size = 0
        if claimed is not None:
            now = perf_counter()
            got = len(claimed.ids)
            self._clock_ms = claimed.now - now * 1000
            size = sum(len(spec or b"") for spec in claimed.specs)
            runs = source.without_killed(source.took(claimed, now))
            source.killed_early.clear()
            self.buffer.extend(runs)
            if debugging("jobq.worker"):
                for run in runs:
                    log.debug("claimed", queue=source.name, job_id=run.id.decode(), attempt=run.attempt)
            if self.stopping:
                self.give_back_buffer()
            else:
                self._fill()
                self.buffer.watch()
        source.deep = got == want or size > CLAIM_BYTES
        if source.deep or forwarded is None:
            source.ready = True
        if forwarded is not None and not isinstance(forwarded, StoreError):
            if forwarded[0]:
                log.debug("forwarded", queue=source.name, count=forwarded[0])
            self._watch(source, forwarded[1])
        if self.room() <= 0:
            self._full = True
        else:
            for other in self.sources:
                if not other.ready:
                    other.hungry.set()
        if source.ready:
            self.notify()
        return True

    def _watch(self, source: Source, due_ms: int) -> None:
        """Look again when the next delayed job is due."""
        if source.timer is not None:
            source.timer.cancel()
            source.timer = None
        if due_ms == 0:
            source.ready = True
        elif due_ms > 0:
            self.look_in(source, due_ms)

    def look_in(self, source: Source, due_ms: int) -> None:
        """A job is due in so many ms: look then, or earlier if something else is due before it."""
        due = min(due_ms, 60_000) / 1000
        if source.timer is not None:
            if source.timer.when() <= self.loop.time() + due:
                return
            source.timer.cancel()
        source.timer = self.loop.call_later(due, self._due, source)

    def _due(self, source: Source) -> None:
        source.timer = None
        if self.loop.time() < source.hesitant_until:
            # probably a job that some workers handed back: one that knows its type should get to it first
            source.timer = self.loop.call_later(HESITATE, self.look, source)
        else:
            self.look(source)

    def look(self, source: Source) -> None:
        """Something is due. A worker without room passes the word on, to one that may be idle."""
        source.timer = None
        source.ready = True
        if self.room() > 0 or self.stopping:
            self.notify()
        else:
            task = self.loop.create_task(self._pass_on(source))
            self._passing.add(task)
            task.add_done_callback(self._passing.discard)

    async def _pass_on(self, source: Source) -> None:
        with contextlib.suppress(StoreError):
            await give_wake_back(source.store)

    # -- the end ---------------------------------------------------------------------------------------------------

    def stop_claiming(self) -> None:
        """No more claims; what has not started goes back."""
        self.stopping = True
        self.give_back_buffer()
        self.notify()

    def unfinished(self) -> list[Run]:
        """What runs now."""
        return [
            run for source in self.sources for run in source.runs.values() if run.task is not None and not run.ended
        ]

    async def idle(self, timeout: float) -> bool:
        """Wait until nothing runs, while stopping; False: not within ``timeout`` seconds."""
        self._idle.clear()
        if not self.running:
            return True
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def drained(self, timeout: float | None) -> bool:
        """Wait until nothing runs and everything is settled; False: not within ``timeout`` seconds."""
        self._empty.clear()
        self.notify()
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """The lanes end."""
        self.closed = True
        for _ in range(LANES):
            self.notify()
        for source in self.sources:
            if source.timer is not None:
                source.timer.cancel()
        self.buffer.close()
        self.threads.close()
