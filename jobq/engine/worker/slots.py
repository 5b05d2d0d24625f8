"""The slots of a worker: the runs that use them, the runs that wait for one, and the source that may claim for free
ones."""

from __future__ import annotations

import asyncio
import random
import sys
from threading import get_ident
from time import perf_counter
from typing import TYPE_CHECKING, Final, Protocol

from jobq.engine.worker.buffer import Buffer
from jobq.engine.worker.lending import Lending
from jobq.engine.worker.reserve import Reserve
from jobq.engine.worker.run import execute
from jobq.engine.worker.threads import Threads
from jobq.engine.worker.timers import Deadlines

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jobq.engine.worker.run import Run

PREFETCH_SECONDS: Final = 0.002
"""Seconds of work that may be claimed ahead."""
PREFETCH_MAX: Final = 100
"""The most jobs that may be claimed ahead. One call can hand all of them back."""
EAGER: Final = sys.version_info >= (3, 12)


class Claimant(Protocol):
    """The interface of a lane that the slots use."""

    @property
    def weight(self) -> float:
        """Its share if several lanes want slots."""
        ...

    @property
    def queue(self) -> object:
        """Its queue. Lanes of one queue serve its partitions."""
        ...

    @property
    def turn(self) -> int:
        """The number of its last claim among those of all lanes."""
        ...

    @property
    def wants_slots(self) -> bool:
        """It would claim now if slots were free."""
        ...

    @property
    def idle(self) -> bool:
        """Whether it has nothing to send and waits for no answer."""
        ...

    def look(self) -> None:
        """There may be jobs to claim."""
        ...

    def wake(self, *, chosen: bool = False) -> None:
        """Wake the lane. ``chosen``: it may claim."""
        ...


class Listener(Protocol):
    """The interface of a waker that the slots use."""

    def listen(self) -> None:
        """Slots are free: wait for the wake tokens of queues that have nothing to claim."""
        ...

    def freed(self) -> None:
        """A slot is free again, and nobody has waited for tokens meanwhile."""
        ...

    def full(self) -> None:
        """No slot is free: other workers get the tokens that cannot be used here."""
        ...


class Slots:
    """Shared by the sources of one worker."""

    def __init__(self, loop: asyncio.AbstractEventLoop, concurrency: int, reserve: Reserve | None = None) -> None:
        self.loop = loop
        self.concurrency = concurrency
        self._own = concurrency
        self.kept = reserve or Reserve()
        """Slots that only urgent jobs may take."""
        self._turn = 0
        self.claimants: list[Claimant] = []
        self.wakers: list[Listener] = []
        self.running = 0
        self.stopping = False
        self.buffer = Buffer(loop, self._overdue)
        self.threads = Threads(loop, concurrency, self.widen)
        self.deadlines = Deadlines(loop)
        self.lending = Lending(loop, self.widen, concurrency)
        self.thread = get_ident()
        self._reserved = 0
        self._heavy: list[Run] = []
        """Claimed jobs that take several slots."""
        self._urgent: list[Run] = []
        """Claimed jobs that may take reserved slots. Empty without a reserve."""
        self._filling = False
        self._full = False
        self._typical = 1.0
        """Seconds that a run takes, as a moving average. It starts high, so that at first no job is claimed ahead."""
        self._idle = asyncio.Event()
        self._empty = asyncio.Event()

    # -- free slots ------------------------------------------------------------------------------------------------

    def free(self) -> int:
        """The number of jobs that may be claimed now."""
        ahead = (
            0
            if self.stopping or self.kept.slots
            else min(PREFETCH_MAX, int(self.concurrency * PREFETCH_SECONDS / self._typical))
        )
        free = self.concurrency + ahead - self.running - len(self.buffer) - self._reserved
        return free - self._more(self._heavy) if self._heavy else free

    @property
    def size(self) -> int:
        """The slots of this worker, without those that waiting handlers lend, and those that left-over threads keep."""
        return max(1, min(self._own, self.concurrency))

    @property
    def size_for_others(self) -> int:
        """The slots of this worker that jobs may take that are not urgent."""
        return max(1, self.size - self.kept.slots)

    @property
    def for_others(self) -> int:
        """The free slots that jobs that are not urgent may take. They can be fewer than none."""
        return self.free() - self._still_kept()

    def _still_kept(self) -> int:
        self._urgent = [run for run in self._urgent if not run.ended]
        return max(0, self.kept.slots - len(self._urgent) - self._more(self._urgent))

    def weigh(self, runs: Sequence[Run]) -> int:
        """Remember those of these claimed jobs that take several slots or are urgent. Returns how many slots more than
        jobs they take."""
        self._urgent += [run for run in runs if run.urgent]
        heavy = [run for run in runs if run.slots > 1]
        self._heavy += heavy
        return self._more(heavy)

    def _more(self, runs: Iterable[Run]) -> int:
        """The slots that these jobs take behind their first ones. A job with more slots than there are runs alone."""
        return sum(self._needs(run) - 1 for run in runs if not run.ended)

    def _needs(self, run: Run) -> int:
        return min(run.slots, self.size if run.urgent or not self.kept.slots else self.size_for_others)

    def _has_room(self) -> bool:
        """Whether the next run of the buffer fits into the free slots."""
        if not self._heavy and not self.kept.slots:
            return self.running < self.concurrency
        self._heavy = [run for run in self._heavy if not run.ended]
        taken = self.running + self._more(run for run in self._heavy if run.task is not None)
        run = self.buffer.first()
        if run is None:
            return False
        free = self.concurrency
        if self.kept.slots and not run.urgent:
            urgent = [run for run in self._urgent if run.task is not None and not run.ended]
            free -= max(0, self.kept.slots - len(urgent) - self._more(urgent))
        return not taken or taken + self._needs(run) <= free

    def reserve(self, jobs: int) -> None:
        """Keep slots free for the jobs of a claim that is on its way. A negative number releases them."""
        self._reserved += jobs

    def take_turn(self) -> int:
        """The number of a claim that is sent now."""
        self._turn += 1
        return self._turn

    def may_claim(self, asker: Claimant) -> bool:
        """Whether a lane that wants slots may claim now. If it is the turn of another lane, that one is woken."""
        if self.stopping or self.free() <= 0:
            return False
        return len(self.claimants) == 1 or self._choose(asker) is asker

    def offer(self) -> None:
        """Slots are free: wake one of the lanes that want them."""
        if not self.stopping and self.free() > 0:
            self._choose(None)

    def _choose(self, asker: Claimant | None) -> Claimant | None:
        """Choose by weight among the lanes that want slots, at random. Wake the chosen one unless it is the caller.

        Partitions of a queue take turns, so that an urgent job waits for one claim of each other partition at most.
        """
        wanting = [claimant for claimant in self.claimants if claimant is asker or claimant.wants_slots]
        if not wanting:
            return None
        chosen = wanting[0]
        if len(wanting) > 1:
            chosen = random.choices(wanting, [claimant.weight for claimant in wanting])[0]
            queue = chosen.queue
            chosen = min((one for one in wanting if one.queue is queue), key=lambda one: one.turn)
        if chosen is not asker:
            chosen.wake(chosen=True)
        return chosen

    def nobody_listens(self) -> None:
        """No waker waits for the wake token now. So the lanes must claim by themselves as soon as a slot is free."""
        self._full = True
        for waker in self.wakers:
            waker.full()

    # -- runs ------------------------------------------------------------------------------------------------------

    def admit(self, runs: Sequence[Run], *, wait: bool = False) -> None:
        """Start claimed jobs. Those without a free slot wait in the buffer. ``wait``: all of them do, because the
        answer of an earlier claim is expected at any moment."""
        self.buffer.extend(runs)
        if self.stopping:
            self.give_back_buffer()
        elif self.buffer:
            if not wait:
                self._fill()
            self.buffer.watch()

    def _fill(self) -> None:
        """Start buffered jobs while slots are free. It must not recurse, because an eager run may end before it
        returns."""
        if self._filling:
            return
        self._filling = True
        pop, loop = self.buffer.pop, self.loop
        while self._has_room() and (run := pop()) is not None:
            self.running += 1
            # This code may run inside another run that ends. Its context must not leak into the new run.
            context = run.source.context.copy()
            if EAGER:
                run.task = asyncio.Task(execute(run), loop=loop, context=context, eager_start=True)  # pyright: ignore
            else:
                run.task = loop.create_task(execute(run), context=context)
        self._filling = False

    def freed(self, run: Run) -> None:
        """A run has ended, so its slot is free."""
        self.running -= 1
        if run.started:
            self._typical += 0.1 * (perf_counter() - run.started - self._typical)
        self._slots_are_free()
        if self.stopping and not self.running:
            self._idle.set()
            for claimant in self.claimants:
                claimant.wake()

    def widen(self, by: int) -> None:
        """Add slots, or remove some. Running handlers keep theirs."""
        self.concurrency += by
        if by > 0:
            # Jobs may have arrived while there were no slots.
            self._full = True
            self._slots_are_free()

    def _slots_are_free(self) -> None:
        if self.buffer:
            self._fill()
        if self._full:
            self._full = False
            for waker in self.wakers:
                waker.freed()
            self.offer()

    def give_back_buffer(self) -> None:
        """Hand back the jobs that have not started."""
        for run in self.buffer.take_all():
            run.source.release(run)

    def _overdue(self) -> None:
        """A buffered job waits for too long, because jobs take longer than before. Another worker may be idle."""
        self._typical = max(self._typical, 1.0)
        self.give_back_buffer()

    # -- the end ---------------------------------------------------------------------------------------------------

    def stop_claiming(self) -> None:
        """Claim no more. Jobs that have not started are handed back."""
        self.stopping = True
        self.give_back_buffer()
        for waker in self.wakers:
            waker.full()
        for claimant in self.claimants:
            claimant.wake()

    async def idle(self, timeout: float) -> bool:
        """Wait until no handler runs, while stopping. Returns False if one still runs after ``timeout`` seconds."""
        self._idle.clear()
        if not self.running:
            return True
        return await _happens(self._idle, timeout)

    async def drained(self, timeout: float | None) -> bool:
        """Wait until no handler runs and every outcome is sent. Returns False after ``timeout`` seconds."""
        self._empty.clear()
        self.look_whether_empty()
        return await _happens(self._empty, timeout)

    def look_whether_empty(self) -> None:
        """A lane has nothing to do. It may have been the last one."""
        if not self.running and not self.buffer and all(claimant.idle for claimant in self.claimants):
            self._empty.set()

    def close(self) -> None:
        """Start no more runs."""
        self.buffer.close()
        self.threads.close()
        self.deadlines.close()


async def _happens(event: asyncio.Event, timeout: float | None) -> bool:
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return False
    return True
