"""What operators ask about schedules and change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Unpack

import msgspec

from jobq.engine.log import get_logger
from jobq.engine.model.ids import new_id
from jobq.engine.model.job import Accepted, NewJob
from jobq.engine.model.limits import Rule
from jobq.engine.model.times import to_unix_ms
from jobq.engine.queue.declaring import TRIES, Change, change_schedule, read_schedule
from jobq.engine.queue.firing import encode_jobs, group, new_job, read_ended
from jobq.engine.queue.limits import declare_rules
from jobq.engine.queue.producing import Producing
from jobq.engine.schedule import plan as plans
from jobq.engine.schedule.cron import zone
from jobq.engine.schedule.definition import RULE, ScheduleGiven, check_schedule_name, define, of_version
from jobq.engine.schedule.state import (
    ScheduleState,
    Score,
    Stored,
    judge,
    next_slot,
    read_row,
    slot_id,
    unfinished,
)
from jobq.engine.schedule.timing import SHOWN_TRIES, Timing
from jobq.engine.schedule.views import Preview, ScheduleRow, schedule_row
from jobq.engine.store import Partitions
from jobq.engine.task.handle import Job
from jobq.errors import InvalidJob, ScheduleNotFound

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobq.engine.model.entry import Entry
    from jobq.engine.queue.firing import Ended
    from jobq.engine.schedule.definition import Definition
    from jobq.engine.schedule.state import How

log = get_logger("jobq.schedules")

ONE_AT_A_TIME: Final = Rule(1)
"""The rule of jobs of schedules with ``overlap="queue_one"``."""
PAGE: Final = 200
BACKFILL_MAX: Final = 1000
"""The most slots of one backfill."""
BACKFILL_PAGE: Final = 50
PREVIEW_MAX: Final = 100


class ScheduleVerbs(Producing, ABC):
    """What operators ask about schedules and change."""

    @property
    @abstractmethod
    def place(self) -> tuple[str, str, str]:
        """Where the jobs are."""

    async def put_schedule(
        self, name: str, type: str, payload: Any = None, **given: Unpack[ScheduleGiven]
    ) -> ScheduleRow:
        """Write a schedule, in place of an earlier one and of what code declares. It survives deploys.

        ``cron``, ``every`` or ``at`` say when, see ``ScheduleGiven``. Everything else is an option of the jobs.

        :raises InvalidJob: an expression, a zone, the type, the payload or an option cannot be used.
        """
        return await self.put_definition(name, define(type, payload, dict(given)))

    async def put_definition(self, name: str, definition: Definition) -> ScheduleRow:
        """As ``put_schedule``, for a definition that was checked."""
        check_schedule_name(name)
        new = NewJob(definition.type, definition.payload, definition.options, given=definition.given)
        if "version" not in definition.given:
            task = self.tasks.get(new.type)
            known = task.defaults if task else (await self.type_defaults.complete([new]))[0].options
            definition = of_version(definition, known.version)
            new = msgspec.structs.replace(new, options=definition.options, given=definition.given)
        self.check(new)
        await self._sessions.here.declared.check([new], self.rules, self.declared_breakers)
        await self.store.register()
        # A job that could not be made at its slot is refused now. It may lack an argument that makes its key or group.
        tried = Stored(name, b"", ScheduleState(), definition, None)
        await encode_jobs(self, tried, [new_job(self, tried, tried.state, 0, slot_id(name, 0), 0, "slot", {})])
        if definition.overlap == "queue_one":
            await declare_rules(self.store, {RULE: ONE_AT_A_TIME})

        def change(stored: Stored | None, now: int) -> Change:
            if Timing(definition).after(now // 1000) is None:
                raise InvalidJob("the schedule never comes again: all of its times are over")
            code = stored.code if stored is not None else None
            differs = stored is None or stored.definition != definition
            return plans.defined(stored, name, definition, now, changed=differs), definition, code

        await change_schedule(self.store, name, change)
        return await self.get_schedule(name)

    async def get_schedule(self, name: str) -> ScheduleRow:
        """A schedule with its next five slots, and the last five with their outcome.

        :raises ScheduleNotFound: there is none of this name.
        """
        check_schedule_name(name)
        stored, seen = await read_schedule(self.store, name)
        if stored is None:
            raise ScheduleNotFound(name)
        state, _ = await self._judged(stored)
        declared = await self.store.schedules_declared()
        row = schedule_row(stored, state, seen=seen, declared=declared, alone=True)
        return await self._with_fault(stored, row)

    async def schedules(self, *, after: str = "", limit: int | None = None) -> list[ScheduleRow]:
        """All schedules in the order of their names, each with its next slot. ``after``: those behind this name."""
        store = self.store
        names = [name for name in await store.schedule_names() if name > after.encode()][:limit]
        declared = await store.schedules_declared() if names else 0
        rows: list[ScheduleRow] = []
        for at in range(0, len(names), PAGE):
            page = names[at : at + PAGE]
            found: list[tuple[Stored, int]] = []
            for name, (row, failed, seen) in zip(page, await store.schedule_rows(page), strict=True):
                if row is None:
                    continue
                try:
                    found.append((read_row(name.decode(), row, failed), seen))
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    rows.append(
                        ScheduleRow(name.decode(errors="replace"), "?", msgspec.Raw(b"null"), "", "?", error=str(error))
                    )
            ended = await read_ended(store, [job_id for stored, _ in found for job_id in unfinished(stored.state)])
            outcomes = {job_id: outcome for job_id, (outcome, _, _) in ended.items()}
            for stored, seen in found:
                state = judge(stored, outcomes)
                row = schedule_row(stored, state, seen=seen, declared=declared, alone=False)
                # Elsewhere a schedule whose jobs cannot be made is refused when it is written.
                rows.append(await self._with_fault(stored, row) if self._homes() > 1 else row)
        return sorted(rows, key=lambda row: row.name)

    async def delete_schedule(self, name: str) -> bool:
        """Remove what an operator wrote. Returns whether the schedule goes on as code declares it.

        A schedule that only an operator wrote is gone, and so is one that no program's code declares any more. To stop
        one that code declares, pause it.

        :raises ScheduleNotFound: there is none of this name.
        """
        check_schedule_name(name)
        store = self.store
        try:
            stored, seen = await read_schedule(store, name)
        except InvalidJob:
            # It cannot be read, so nothing of it can be kept.
            ((row, _, _),) = await store.schedule_rows([name])
            await store.do(store.schedule_write(name, (row or b"").partition(b"\n")[0], b"", b"", ""))
            return False
        if stored is None:
            raise ScheduleNotFound(name)
        declared = await store.schedules_declared()
        orphan = schedule_row(stored, stored.state, seen=seen, declared=declared, alone=False).orphan

        def change(stored: Stored | None, now: int) -> Change | None:
            if stored is None:
                return None
            code = None if orphan else stored.code
            if code is None:
                return Score(b"", ""), None, None
            return plans.defined(stored, name, code, now, changed=stored.definition != code), None, code

        await change_schedule(store, name, change)
        kept = stored.code is not None and not orphan
        log.info(f"Schedule {name} was deleted", queue=self.name, schedule=name, declared=kept)
        return kept

    async def prune_schedules(self) -> list[str]:
        """Remove the orphans: schedules that code declared, and that no program's code declares any more."""
        orphans = [row.name for row in await self.schedules() if row.orphan]
        for name in orphans:
            await self.delete_schedule(name)
        return orphans

    async def pause_schedule(self, name: str, *, by: str = "an operator", note: str = "") -> None:
        """Let no slot come until the schedule is resumed. Deploys do not end a pause. ``note`` is shown with it.

        :raises ScheduleNotFound: there is none of this name.
        """
        await self._change(
            name, lambda stored, now: None if stored.state.paused else plans.paused(stored, by[:200], note[:500], now)
        )
        log.info(f"Schedule {name} was paused by {by}", queue=self.name, schedule=name)

    async def resume_schedule(self, name: str) -> None:
        """Let slots come again from now on. Those of the pause are not made up; ``backfill_schedule`` does that.

        :raises ScheduleNotFound: there is none of this name.
        """
        await self._change(name, lambda stored, now: plans.resumed(stored, now) if stored.state.paused else None)
        log.info(f"Schedule {name} was resumed", queue=self.name, schedule=name)

    async def run_schedule(self, name: str) -> Job[Any]:
        """Enqueue a job of the schedule now, besides its slots and whatever its overlap is. A paused one runs, too.

        :raises ScheduleNotFound: there is none of this name.
        :raises InvalidJob: another job holds the key of the job. Nothing was enqueued.
        :raises StoreError: Redis is away, or is full.
        """
        check_schedule_name(name)
        job_id = f"{name}~{new_id()}"
        for _ in range(TRIES):
            stored, _ = await read_schedule(self.store, name)
            if stored is None:
                raise ScheduleNotFound(name)
            if any(run.id == job_id for run in stored.state.runs):
                break  # The reply to the first call was lost.
            now = self.store.now_ms()
            state, ended = await self._judged(stored)
            planned = plans.run_now(stored, state, job_id, now)
            word = await self._fire(stored, planned, await self._jobs(stored, state, ended, planned, [job_id], "run"))
            if word == "skipped":
                raise InvalidJob(
                    f"schedule {name!r} was not run: another job holds the key of its job; kill that one, or wait"
                )
            if word != "stale":
                break
        return Job(self, job_id)

    async def backfill_schedule(self, name: str, from_: datetime, until: datetime) -> list[str]:
        """Enqueue jobs for the slots between two times that got none. Slots that ran do not run again.

        Returns the ids of the jobs. A slot whose key is held by another job gets none, and can be filled later.
        The overlap is not looked at. The slots are those of the definition as it is now.

        :raises ScheduleNotFound: there is none of this name.
        :raises InvalidJob: there are more than 1,000 such slots, or a time lies in the future or has no time zone.
        """
        check_schedule_name(name)
        first, end = -(-to_unix_ms("from_", from_) // 1000), to_unix_ms("until", until) // 1000
        ids: list[str] = []
        wanted: list[int] | None = None
        sent: list[str] = []
        page_size = BACKFILL_PAGE
        for _ in range(2 * BACKFILL_MAX):
            stored, _ = await read_schedule(self.store, name)
            if stored is None:
                raise ScheduleNotFound(name)
            if sent and any(run.id == sent[-1] for run in stored.state.runs):
                ids += sent  # The reply to the last call was lost.
            if wanted is None:
                wanted = _unrun(stored, first, end, self.store.now_ms())
            # Others may have run some of them meanwhile.
            ran = stored.state.ran
            wanted = [slot for slot in wanted if not any(low <= slot <= high for low, high in ran)]
            if not wanted:
                return ids
            state, ended = await self._judged(stored)
            page = _together(stored, wanted[:page_size])
            page_ids = [slot_id(name, slot) for slot in page]
            planned = plans.backfilled(stored, state, page, self.store.now_ms())
            made = await self._jobs(stored, state, ended, planned, page_ids, "backfill")
            if len(page) > 1 and any(entry[4] for _, entry in made):
                # A slot whose key is held can be filled later. So each slot is asked for alone.
                page_size = 1
                continue
            sent = []
            word = await self._fire(stored, planned, made)
            if word == "stale":
                sent = page_ids
            else:
                wanted = wanted[len(page) :]
                ids += page_ids if word == "fired" else []
        return ids

    async def preview_schedule(
        self, *, after: datetime | None = None, count: int = 5, **given: Unpack[ScheduleGiven]
    ) -> Preview:
        """The next times of a schedule that need not exist: ``preview_schedule(cron="0 3 * * *", tz="Europe/Berlin")``.

        :raises InvalidJob: an expression or the zone cannot be used.
        """
        if not 1 <= count <= PREVIEW_MAX:
            raise InvalidJob(f"count is {count!r:.80}: it takes 1 to {PREVIEW_MAX}")
        definition = define("preview", None, dict(given))
        moment = (self.store.now_ms() if after is None else to_unix_ms("after", after)) // 1000
        return preview(definition, moment, count)

    def _homes(self) -> int:
        """The partitions that get jobs with keys, as far as that is decided. A reader does not decide it."""
        return self.store.spread_now.homes or 1 if isinstance(self.store, Partitions) else 1

    async def _with_fault(self, stored: Stored, row: ScheduleRow) -> ScheduleRow:
        """The row with the reason why no job can be made at its slots, if there is one. Workers can only log it."""
        if row.error is not None:
            return row
        trial = new_job(self, stored, stored.state, 0, slot_id(stored.name, 0), 0, "slot", {})
        try:
            await encode_jobs(self, stored, [trial], homes=self._homes())
        except InvalidJob as fault:
            return msgspec.structs.replace(row, error=str(fault))
        return row

    async def _change(self, name: str, change: Callable[[Stored, int], Score | None]) -> None:
        check_schedule_name(name)

        def whole(stored: Stored | None, now: int) -> Change | None:
            if stored is None:
                raise ScheduleNotFound(name)
            score = change(stored, now)
            return None if score is None else (score, stored.operator, stored.code)

        await change_schedule(self.store, name, whole)

    async def _judged(self, stored: Stored) -> tuple[ScheduleState, Ended]:
        """The state with the outcomes of its jobs, and how these ended."""
        ended = await read_ended(self.store, unfinished(stored.state))
        return judge(stored, {job_id: outcome for job_id, (outcome, _, _) in ended.items()}), ended

    async def _jobs(
        self, stored: Stored, state: ScheduleState, ended: Ended, planned: plans.Plan, ids: list[str], how: How
    ) -> list[tuple[NewJob, Entry]]:
        """The jobs that an operator asked for."""
        news = [
            new_job(self, stored, state, slot, job_id, 0, how, ended)
            for slot, job_id in zip(planned.slots, ids, strict=True)
        ]
        return list(zip(news, await encode_jobs(self, stored, news), strict=True))

    async def _fire(self, stored: Stored, planned: plans.Plan, made: list[tuple[NewJob, Entry]]) -> str:
        """Enqueue jobs that an operator asked for. Returns a word, as schedule_fire.lua."""
        flat = group(stored, planned, [entry for _, entry in made])
        flat[6] = "allow"
        (word,) = await self.store.do(self.store.schedule_fire(flat))
        if word == "fired" and self.hooks:
            for new, entry in made:
                self.tell_enqueued(new, Accepted(entry[0]))
        return word


def preview(definition: Definition, moment: int, count: int) -> Preview:
    """The times of a definition after a moment (unix s)."""
    timing, tz = Timing(definition), zone(definition.tz)
    count = min(count, definition.limit or count)
    times: list[datetime] = []
    slot = timing.after(moment)
    while slot is not None and len(times) < count and timing.tries < SHOWN_TRIES:
        times.append(datetime.fromtimestamp(slot, UTC).astimezone(tz))
        slot = timing.after(slot)
    return Preview(times, timing.words())


def _unrun(stored: Stored, first: int, end: int, now_ms: int) -> list[int]:
    """The slots between two times that got no job, ``BACKFILL_MAX`` at most."""
    if end > now_ms // 1000:
        raise InvalidJob("until lies in the future: only slots that are over can be filled")
    definition, state = stored.definition, stored.state
    timing = Timing(definition)
    if state.slot is not None and state.paused is None:
        end = min(end, state.slot - 1)  # this slot comes by itself
    slots: list[int] = []
    without_limit = msgspec.structs.replace(definition, limit=None)
    slot = next_slot(timing, state, without_limit, first - 1)
    while slot is not None and slot <= end:
        if len(slots) == BACKFILL_MAX:
            raise InvalidJob(f"there are more than {BACKFILL_MAX} slots between these times: fill a shorter time")
        slots.append(slot)
        slot = next_slot(timing, state, without_limit, slot)
    return slots


def _together(stored: Stored, slots: list[int]) -> list[int]:
    """The first of these slots, up to one that ran: a row says of a span that all of its slots ran."""
    stop = min((low for low, _ in stored.state.ran if low > slots[0]), default=None)
    return [slot for slot in slots if stop is None or slot < stop]
