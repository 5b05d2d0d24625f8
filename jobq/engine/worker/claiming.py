"""Claims of a lane: the call, and what its answer says about jobs, free slots, and the next look."""

from __future__ import annotations

from abc import abstractmethod
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from jobq.engine.log import debugging, get_logger
from jobq.engine.queue.late import tell_late
from jobq.engine.store import CLAIM_BYTES
from jobq.engine.worker.outbox import RELEASED
from jobq.engine.worker.settler import Settler
from jobq.errors import StoreError

if TYPE_CHECKING:
    from jobq.engine.store import Call
    from jobq.engine.worker.claimer import Claimer
    from jobq.engine.worker.run import Run
    from jobq.engine.worker.slots import Slots
    from jobq.engine.worker.source import Source

log = get_logger("jobq.worker")

RESERVED_SECONDS: Final = 0.25
"""How long a claim keeps slots from other sources, and from jobs of later claims, while it is on its way. Its server
may have stopped answering."""


class Claiming(Settler):
    """The part of a lane that claims jobs, and takes in what a claim of the waker brought."""

    def __init__(self, source: Source, slots: Slots) -> None:
        super().__init__(source)
        self._slots = slots
        self._releasing = False
        """Whether jobs are being handed back now."""
        self.lacked: int | None = None
        """So many free slots were too few for the next job."""
        self.has_token = False
        """The waker took a token of this queue, and no claim has been sent since."""
        self._asked = 0.0
        """When the lane sent its last claim (``perf_counter``)."""

    @abstractmethod
    def wake(self, *, chosen: bool = False) -> None:
        """Wake the lane."""

    def claim_call(self, claimer: Claimer, want: int) -> Call[Any]:
        """A claim, or the repetition of a lost one. A worker that stops only repeats, to get that one's jobs.

        While the next job waits for more free slots, or slots are reserved, the waker claims nothing: it could take
        a later job at the moment when the lane takes this one.
        """
        source, slots = self.source, self._slots
        self.has_token = False  # The claim puts it back if jobs are left.
        if claimer is source.claimer:
            self._asked = perf_counter()
        repeated, keeps = claimer.unanswered, slots.kept.slots > 0
        request = claimer.sent(want, repeated=repeated)
        if slots.stopping or (claimer is source.waking and (keeps or self.lacked is not None)):
            want = 0
        return source.store.claim(
            want, source.lease_ms, source.worker, claimer.name, request,
            repeated=repeated,
            more=slots.free() > want,
            size=slots.size,
            reserve=(slots.kept.below, max(0, slots.for_others), slots.size_for_others) if keeps else None,
        )  # fmt: skip

    def claimed(self, claimer: Claimer, want: int, moved: list[Any], claimed: Any) -> None:
        """Take in what a claim brought. ``moved``: the answers of forward and admit, which went before it.

        If it is empty, nobody looked at the jobs that are due, and the lane does it next.
        """
        source, slots = self.source, self._slots
        if isinstance(claimed, StoreError):
            claimer.failed(self._loop.time())
            source.demand = source.demand.failed()
            source.warn("Redis refuses a claim; it is repeated", claimed)
            slots.admit(())
            self.wake()
            return
        claimer.answered()
        got = size = 0
        if claimed is not None:
            got = len(claimed.ids)
            size = sum(len(spec or b"") for spec in claimed.specs)
            runs = source.without_killed(source.took(claimed, perf_counter()))
            if claimed.weights or claimed.urgent:
                got += slots.weigh(runs)
            if debugging("jobq.worker"):
                for run in runs:
                    job_id = run.id.decode()
                    log.debug(f"Job {job_id} was claimed", queue=source.name, job_id=job_id, attempt=run.attempt)
            self._start(claimer, runs)
        else:
            slots.admit(())  # Start what has waited for this answer.
        source.meter.claimed.add(len(claimed.ids) if claimed is not None else 0)
        if got:
            source.idle.over()
        else:
            source.idle.saw(claimed, moved)
        limited_ms = claimed.limited_ms if claimed is not None else None
        if moved:
            self.lacked = None
            source.demand = source.demand.answered(more=got == want or size > CLAIM_BYTES)
            self._moved(claimer, moved, rests=bool(limited_ms))
            if limited_ms is not None:
                source.holds = True
                if limited_ms == 0:
                    source.demand = source.demand.came()
                elif limited_ms < 0:
                    # The end of a job of another source may leave room too.
                    self.lacked = slots.free()
                    slots.nobody_listens()
                elif limited_ms > 0:
                    source.timer.not_later(limited_ms)
        else:
            source.demand = source.demand.came()
        if slots.free() <= 0:
            slots.nobody_listens()
        else:
            for waker in slots.wakers:
                waker.listen()
            slots.offer()

    def _start(self, claimer: Claimer, runs: list[Run]) -> None:
        source = self.source
        woken = claimer is source.waking
        if source.outbox.rows[RELEASED] or (woken and self._releasing):
            # Since this claim was sent, earlier jobs are being handed back. These jobs must not overtake them.
            for run in runs:
                run.ended = True
                run.reason = "shutdown"
                source.release(run)
            return
        # If the lane leaves jobs in the queue, its claim puts the token back, and the waker of this very worker may get
        # it. Then its job comes behind those of the lane, whose answer is read from another connection.
        wait = woken and source.claimer.flying and perf_counter() - self._asked < RESERVED_SECONDS
        self._slots.admit(runs, wait=wait)

    def _recalled(self, want: int, answer: Any) -> None:
        source = self.source
        if isinstance(answer, StoreError):
            source.recalls = True
            source.warn("Redis refuses to recall parked jobs", answer)
            return
        if answer:
            log.debug(f"{answer} parked jobs of queue {source.name} were recalled", queue=source.name)
        if answer == want:
            source.recall()

    def _ended_late(self, answer: Any) -> None:
        if isinstance(answer, StoreError):
            self.source.store.late = True
            self.source.warn("Redis refuses to end late jobs", answer)
        else:
            tell_late(self.source.queue, answer)

    def _moved(self, claimer: Claimer, answers: list[Any], *, rests: bool) -> None:
        """Learn from forward and admit when to look again. ``rests``: nothing can start before a job has ended, or
        before a known time. Then held jobs that are left are no reason to claim again at once."""
        source = self.source
        for answer in answers:
            if isinstance(answer, StoreError):
                claimer.failed(self._loop.time())
                source.warn("Redis refuses to move jobs to waiting", answer)
                return
        (count, due, held), *admission = answers
        if count:
            log.debug(f"{count} delayed jobs of queue {source.name} became due", queue=source.name)
        again = due == 0
        if admission:
            _, token, left = admission[-1]
            again |= left > 0 and not rests
            due = min((moment for moment in (due, token) if moment >= 0), default=-1)
        else:
            again |= held == 1
        source.holds = bool(held)
        if again:
            source.timer.cancel()
            source.demand = source.demand.came()
        else:
            source.timer.set(due)
