"""What operators read of an open queue and do to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from jobq.engine.log import get_logger
from jobq.engine.model.job import AttemptError, LogLine, Options, Seconds, State
from jobq.engine.model.options import check
from jobq.engine.model.outcome import KILLED
from jobq.engine.model.rows import job_brief, job_row, read_logs, worker_row
from jobq.engine.model.stats import read_stats
from jobq.engine.model.times import to_ms
from jobq.engine.model.types import read_type
from jobq.engine.model.views import BriefPage, JobRow, Page, Stats, WorkerRow
from jobq.engine.queue.changing import changing
from jobq.engine.queue.events import EventVerbs
from jobq.engine.store import ALIVE_MS
from jobq.engine.task.context import waiting_for
from jobq.errors import JobNotFound, QueueInUse, WrongState

if TYPE_CHECKING:
    from jobq.engine.model.types import TypeRow
    from jobq.engine.queue.published import Defaults
    from jobq.engine.store import Call, Store
    from jobq.engine.task.events import HookCalls

log = get_logger("jobq.queue")

TYPES_PAGE: Final = 32
"""Types that are read in one trip."""

_encode = msgspec.json.Encoder().encode


class Verbs(EventVerbs):
    """The operators' methods of a queue."""

    @property
    def store(self) -> Store:
        """The methods that run the scripts.

        :raises StoreError: the queue is not open in the event loop that runs now.
        """
        session = self._sessions.here
        session.look()
        return session.store

    @property
    def hook_calls(self) -> HookCalls:
        """The calls of the queue's hooks in the event loop that runs now.

        :raises StoreError: the queue is not open there.
        """
        return self._sessions.here.hook_calls

    @property
    def type_defaults(self) -> Defaults:
        """The published options of types, in the event loop that runs now.

        :raises StoreError: the queue is not open there.
        """
        return self._sessions.here.defaults

    # -- readers ---------------------------------------------------------------------------------------------------

    async def get(self, job_id: str) -> JobRow:
        """Everything that is stored of a job.

        :raises JobNotFound: it was never enqueued, was removed, or its retention has ended.
        """
        row = (await self.store.do(self.store.rows([job_id])))[0]
        if not row:
            raise JobNotFound(job_id)
        return job_row(self.name, job_id, row)

    async def page(
        self,
        state: State | None = None,
        *,
        type: str | None = None,
        group: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """Jobs of one state, or of all. Unfinished jobs come in their order, finished jobs newest first.

        A page of more than 8 MB ends early, with a cursor. ``briefs`` leaves out the columns that may be large.

        :raises InvalidQuery: the cursor cannot be read, or ``limit`` is not 1 to 1000.
        """
        return Page(*await self._sessions.here.pager.page(job_row, state, type, limit, cursor, group=group))

    async def briefs(
        self,
        state: State | None = None,
        *,
        type: str | None = None,
        group: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> BriefPage:
        """As ``page``, without payloads, metadata, progress, results and earlier errors.

        :raises InvalidQuery: the cursor cannot be read, or ``limit`` is not 1 to 1000.
        """
        page = self._sessions.here.pager.page(job_brief, state, type, limit, cursor, group=group, brief=True)
        return BriefPage(*await page)

    async def logs(self, job_id: str) -> list[LogLine]:
        """The lines that the job's handler logged.

        :raises JobNotFound: there is no such job.
        """
        lines = read_logs(await self.store.logs(job_id))
        if not lines:
            await self.get(job_id)
        return lines

    async def stats(self) -> Stats:
        """Counts, totals, latencies and the last hour's minutes."""
        store = self.store
        found = read_stats(self.name, await store.do(store.stats()))
        return msgspec.structs.replace(found, partitions=store.spread_now.count)

    async def workers(self) -> list[WorkerRow]:
        """The workers, latest heartbeat first. A worker that has stopped is not listed. One that died is, for a day."""
        known = await self.store.workers()
        since = self.store.now_ms() - ALIVE_MS
        rows = [worker_row(worker, info, seen, alive=seen > since) for worker, info, seen in known]
        return sorted(rows, key=lambda row: -row.seen)

    async def types(self) -> list[TypeRow]:
        """The types that workers and servers publish, with the default options and the JSON Schema of each."""
        names = sorted(await self.store.type_names())
        rows: list[TypeRow] = []
        for at in range(0, len(names), TYPES_PAGE):
            page = [name.decode() for name in names[at : at + TYPES_PAGE]]
            for name, stored in zip(page, await self.store.types(page), strict=True):
                if stored and (row := read_type(name, stored)):
                    rows.append(row)
        return rows

    async def result(self, job_id: str, *, timeout: Seconds | None = None) -> msgspec.Raw:
        """Wait for the job's end. Returns its result as encoded JSON.

        A handler that waits here lends its slot to another job meanwhile, if its own worker serves the queue.

        :raises JobFailed: the job ended in failed (``JobKilled``: it was killed; ``JobExpired``).
        :raises JobNotFound: the job was never enqueued, was removed, or its retention ran out.
        :raises ResultTimeout: the job had not ended after ``timeout`` (seconds).
        :raises TooManyWaiting: too many handlers of the worker wait for other jobs already.
        """
        with waiting_for(self.name, job_id):
            return await self._sessions.here.waiters.wait(job_id, None if timeout is None else to_ms(timeout) / 1000)

    async def ready(self) -> None:
        """Run the smallest script on Redis. A PING would not show that scripts run and that the user has the rights.

        :raises StoreError: the script did not run.
        """
        await self.store.do(self.store.ready())

    async def queues(self) -> list[str]:
        """Names of all queues under the prefix."""
        return await self.store.queues()

    # -- operators -------------------------------------------------------------------------------------------------

    async def pause(self) -> None:
        """Stop claims. Running jobs go on, and no job moves."""
        await self._sessions.here.refresh()  # No partition may be left out.
        await self.store.register()  # A paused queue must be listed, even before its first job.
        async with changing(self.store):
            said = await self.store.do(self.store.pause())
        if said[0]:
            log.info(f"Queue {self.name} was paused", queue=self.name)

    async def resume(self) -> None:
        """Allow claims again."""
        await self._sessions.here.refresh()
        async with changing(self.store):
            said = await self.store.do(self.store.resume())
        if said[0]:
            log.info(f"Queue {self.name} was resumed", queue=self.name)

    async def drop(self, *, force: bool = False) -> None:
        """Remove the queue itself, with its jobs, its metrics and its place in the list of queues.

        ``force``: remove it although it has jobs, living workers or schedules. Running jobs then lose their leases. A
        worker or producer that goes on creates the queue again.

        :raises QueueInUse: it has jobs, living workers or schedules. Nothing was removed.
        """
        await self._sessions.here.refresh()
        if not force and len(self.store.parts) > 1:
            # Each partition is dropped for itself. So look first whether any of them must not be.
            found = await self.stats()
            jobs = sum(getattr(found, state) for state in State)
            schedules = len(await self.store.schedule_names())
            if jobs or found.workers or schedules:
                raise QueueInUse(self.name, jobs, found.workers, schedules)
        if len(self.store.parts) > 1:
            # If not all of them are dropped, workers give the others their settings again.
            await self.store.do(self.store.setting())
        jobs, workers, schedules, dropped = await self.store.do(self.store.drop(force=force))
        if not dropped:
            raise QueueInUse(self.name, jobs, workers, schedules)
        await self.store.unregister()
        log.info(f"Queue {self.name} was removed with {jobs} jobs", queue=self.name, jobs=jobs)

    async def kill(self, job_id: str) -> None:
        """Send an unfinished job to failed as killed, and stop its handler if it runs.

        :raises JobNotFound: there is no such job.
        :raises WrongState: the job is finished.
        """
        store = self.store
        record = AttemptError(attempt=0, at=store.now_ms(), type=KILLED, message="killed by an operator")
        row = (await store.do(store.rows([job_id], brief=True)))[0]
        retention = job_row(self.name, job_id, row).retention if row else None
        call = store.kill([job_id], _encode(record), "" if retention is None else retention)
        await self._move(call, job_id, "kill", ("waiting", "delayed", "held", "blocked", "active"))

    async def remove(self, job_id: str) -> None:
        """Remove a job that is not active, with everything that is stored of it.

        :raises JobNotFound: there is no such job.
        :raises WrongState: the job is active. Kill it first.
        """
        await self._move(
            self.store.remove([job_id]),
            job_id,
            "remove",
            ("waiting", "delayed", "held", "blocked", "completed", "failed"),
            "kill it first",
        )

    async def retry(self, job_id: str) -> None:
        """Send a finished job back to waiting, with all its attempts again.

        :raises JobNotFound: there is no such job.
        :raises WrongState: the job is not finished, or another job holds its key now.
        """
        await self._move(self.store.retry([job_id]), job_id, "retry", ("failed", "completed"))

    async def promote(self, job_id: str) -> None:
        """Send a delayed job to waiting now.

        :raises JobNotFound: there is no such job.
        :raises WrongState: the job is not delayed.
        """
        await self._move(self.store.promote([job_id]), job_id, "promote", ("delayed",))

    async def reprioritise(self, job_id: str, priority: int) -> None:
        """Give a job that has not started another priority. Among the jobs of that priority it keeps its order in time.

        :raises InvalidJob: the priority is out of range.
        :raises JobNotFound: there is no such job.
        :raises WrongState: the job is active or finished.
        """
        check(Options(priority=priority))
        call = self.store.reprioritise([job_id], priority)
        await self._move(call, job_id, "reprioritise", ("waiting", "delayed"))

    async def _move(
        self, call: Call[list[str]], job_id: str, verb: str, allowed: tuple[str, ...], hint: str = ""
    ) -> None:
        state = (await self.store.do(call))[0]
        if state.startswith("key "):
            raise WrongState(job_id, verb, "blocked by its key", allowed, f"job {state[4:]} holds the same key")
        if not state:
            row = await self.get(job_id)
            raise WrongState(job_id, verb, row.state, allowed, hint if row.state is State.ACTIVE else "")
        log.debug(f"Job {job_id} was {state}: {verb}", queue=self.name, job_id=job_id, was=state)
