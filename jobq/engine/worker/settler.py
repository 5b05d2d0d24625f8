"""Sends outcomes to Redis, and handles those that Redis refuses. A refused outcome affects only its own job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from jobq.engine.log import debugging, get_logger
from jobq.engine.model.unreadable import as_text
from jobq.engine.worker.claimer import BackOff
from jobq.engine.worker.outbox import COMPLETED, SETTLE_MAX, THROTTLED
from jobq.engine.worker.run_log import log_breakers
from jobq.engine.worker.tell import tell_settled
from jobq.errors import OutcomeRefused, StoreError, StoreFull, StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from jobq.engine.store import Call, Settled
    from jobq.engine.worker.outbox import Outcome, Parcel
    from jobq.engine.worker.source import Source

log = get_logger("jobq.worker")

REFUSED_TIMES: Final = 2
"""The number of failed trips with one job, while the server answers others, after which its outcome is given up."""
SMALL: Final = 1 << 16
"""Outcomes of this size or less are not refused by any usual limit of a server or network."""
REFUSED_TIMES_SMALL: Final = 20
"""The same for a small outcome. If its trips fail, the cause is more probably the network than the job."""

TRANSIENT: Final = (StoreUnavailable, StoreRefused, StoreFull)
"""Errors that are not about the data. The same call may work later."""


class Settler:
    """The part of a lane that sends outcomes.

    After a trip that failed, the next one carries half as many jobs, until the job that Redis refuses is alone. Only
    that job fails then.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._loop = source.loop
        self._settling = BackOff()
        self._most = SETTLE_MAX
        """Jobs per trip. It is halved after each failed trip, until the job that the server refuses is alone."""
        self._refused = 0
        """The number of failed trips with one job while the server answers."""
        self._refused_times = REFUSED_TIMES
        """The allowed number of these."""
        self._error = StoreError()
        """The error of the last trip."""

    async def _answers(self) -> bool:
        """Whether the server does not answer at all, or the last failure was not about the data."""
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
        self.source.outbox.put_counts_back(parcel)
        if parcel.notes:
            # Redis may accept the outcome without its notes.
            log.error(
                f"Redis refuses the notes of a job: progress and log lines are left out of {_ids(parcel)}",
                queue=self.source.name, jobs=_ids(parcel),
            )  # fmt: skip
            for outcome, flat in parcel.rows.items():
                self.source.outbox.put_rows_back(outcome, flat)
        else:
            for outcome, flat in parcel.rows.items():
                self._give_up(outcome, flat, self._error)
        return False

    def _not_sent(self, parcel: Parcel, error: StoreError) -> None:
        """The whole trip failed. The server may be away, or one job's data may be larger than it accepts."""
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
                    self._stored(outcome, flat, answer, repeated=parcel.repeated or call.again)
            elif outcome is None:
                source.warn("Redis refuses progress or log lines; they are left out", answer)
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
        """The server refuses the call of one outcome. Send half as many jobs next time, until one job is refused
        alone."""
        source, flat = self.source, parcel.rows[outcome]
        jobs = len(flat) // outcome.width
        if outcome is COMPLETED:
            source.outbox.put_counts_back(parcel)
        if not isinstance(error, TRANSIENT) and jobs == 1:
            self._give_up(outcome, flat, error)
            return
        source.warn("Redis refuses outcomes; they are kept and sent again", error)
        source.outbox.put_rows_back(outcome, flat)
        if not isinstance(error, TRANSIENT):
            self._most = max(1, jobs // 2)

    def _stored(self, outcome: Outcome, flat: list[Any], answer: Any, *, repeated: bool) -> None:
        """The reply to one outcome's script. The worker no longer holds its jobs."""
        source = self.source
        runs = source.runs
        told = [runs.get(job_id) for job_id in flat[:: outcome.width]] if source.hooks else None
        for job_id, token in zip(flat[:: outcome.width], flat[1 :: outcome.width], strict=True):
            # Do not compare only the id, because this worker may already hold the same job again.
            run = runs.get(job_id)
            if run is not None and run.token == token:
                del runs[job_id]
        lost: list[bytes]
        if outcome is THROTTLED:
            lost, alone = answer
            for job_id in alone:
                log.info(
                    f"Job {job_id.decode()} has no limit keys to close, so only this job waits",
                    queue=source.name, job_id=job_id.decode(),
                )  # fmt: skip
        elif outcome.keep is None:
            lost = answer
        else:
            settled: Settled = answer
            lost = settled.lost
            source.standing = max(source.standing, settled.standing - getattr(source.queue, outcome.keep))
        if changed := [word for word in lost if word.startswith(b"!")]:
            # No id of a job begins with this mark.
            lost = [job_id for job_id in lost if job_id not in changed]
            log_breakers(source.name, changed)
            source.whole.tell([as_text(word[1:].rpartition(b" ")[0]) for word in changed])
        if told:
            tell_settled(source.queue, outcome, told, flat, lost, repeated=repeated)
        if debugging("jobq.worker"):
            for job_id in flat[:: outcome.width]:
                if job_id not in lost:
                    name = job_id.decode()
                    log.debug(f"Outcome of job {name}: {outcome.name}", queue=source.name, job_id=name)
        if lost and not repeated:
            for job_id in lost:
                log.warning(
                    f"The outcome ({outcome.name}) of job {job_id.decode()} came too late: its lease was lost, and"
                    " another worker may run it",
                    queue=source.name, job_id=job_id.decode(), outcome=outcome.name,
                )  # fmt: skip

    def _give_up(self, outcome: Outcome, flat: list[Any], error: StoreError) -> None:
        """The server refuses the outcome of one job for good. The job ends in failed with the reason."""
        source, job_id, token = self.source, flat[0], flat[1]
        run = source.runs.get(job_id)
        if run is None or run.token != token:
            return
        if outcome.instead:
            log.error(
                f"Job {run.name} ends in failed, because the server refuses the outcome ({outcome.name}): {error}",
                queue=source.name, job_id=job_id.decode(), outcome=outcome.name, error=str(error),
            )  # fmt: skip
            size = sum(len(word) for word in flat if isinstance(word, bytes))
            why = f"the outcome ({outcome.name}, {size} bytes) could not be stored: {error}"
            source.fail(run, OutcomeRefused(why))
        else:
            log.error(
                f"Another worker recovers job {run.name} when its lease runs out, because the server refuses the"
                f" outcome ({outcome.name}): {error}",
                queue=source.name, job_id=job_id.decode(), outcome=outcome.name, error=str(error),
            )  # fmt: skip
            del source.runs[job_id]

    def _trimmed(self, answer: Any) -> None:
        source = self.source
        if isinstance(answer, StoreError):
            source.warn("Redis refuses to trim finished jobs", answer)
            source.standing = 0
        else:
            source.standing = source.standing - answer if answer else 0


def _ids(parcel: Parcel) -> list[str]:
    return [job_id.decode() for job_id, _ in parcel.notes]
