"""Why a job does not run, or why a queue runs none: reads the facts and reasons about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from jobq.engine.model.facts import read_facts
from jobq.engine.model.ids import partition_of
from jobq.engine.model.limits import QUEUE_RULE, parse_rule
from jobq.engine.model.reasons import why_job, why_queue
from jobq.engine.model.rows import job_brief, job_row
from jobq.engine.model.unreadable import as_text
from jobq.errors import JobNotFound

if TYPE_CHECKING:
    from jobq.engine.model.facts import QueueFacts
    from jobq.engine.model.limits import Rule
    from jobq.engine.model.views import JobRow
    from jobq.engine.model.why import Why
    from jobq.engine.store import Store

READS: Final = 5
"""How often the job is read again if it moves between the two readings of one trip."""


class WhyVerbs(ABC):
    """What operators ask when nothing runs."""

    name: str

    @property
    @abstractmethod
    def store(self) -> Store:
        """The verbs underneath."""

    async def why(self, job_id: str | None = None) -> Why:
        """Why the job does not run, and about when it will. Without a job: why the queue runs none. It changes nothing.

        :raises JobNotFound: there is no such job.
        """
        store = self.store
        whole = await self._whole()
        if job_id is None:
            return why_queue(_shared(read_facts("", await store.do(store.why("")))[0], whole))
        for read in range(1, READS + 1):
            [row], reply = await store.do_all([store.rows([job_id], brief=True), store.why(job_id)])
            if not row:
                raise JobNotFound(job_id)
            brief = job_brief(self.name, job_id, row)
            queue, job = read_facts(job_id, reply)
            # The job may move between the two readings, though both are sent in one write.
            if job is not None and (job.state is brief.state or read == READS):
                queue = await self._with_workers(queue, job_id)
                return why_job(brief, _shared(queue, whole), job, _last_start(job_row(self.name, job_id, row)))
        raise JobNotFound(job_id)

    async def _with_workers(self, queue: QueueFacts, job_id: str) -> QueueFacts:
        """The facts of the job's partition, with the workers of the queue. Only their rows in the first one are new."""
        if not partition_of(job_id) or len(self.store.parts) == 1:
            return queue
        first = self.store.parts[0]
        known = read_facts("", await first.do(first.why("")))[0]
        return replace(queue, workers=known.workers, alive=known.alive, last_seen=known.last_seen)

    async def _whole(self) -> Rule | None:
        """The queue's own rule, if each partition has only a share of it."""
        first, *others = self.store.parts
        if not others:
            return None
        chosen, _, declared = as_text(await first.command(b"HGET", first.keys["rules"], QUEUE_RULE) or b"").partition(
            "\n"
        )
        return parse_rule(chosen) or parse_rule(declared)


def _shared(queue: QueueFacts, whole: Rule | None) -> QueueFacts:
    return queue if whole is None else replace(queue, own=replace(queue.own, whole=whole))


def _last_start(row: JobRow) -> int | None:
    """By when the job must start. ``expires`` is only about its first attempt."""
    moments = (None if row.attempts_made else row.expires_at, row.deadline_at)
    return min((moment for moment in moments if moment is not None), default=None)
