"""Enqueues the jobs of schedules when their slots come. Every worker does it, and every server that has tasks.

There is no leader. Whoever finds a schedule due decides in Python what to do. One script then compares the head of the
row that was read, enqueues the job and advances the schedule. If two do the same, the second changes nothing.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobq.engine.log import get_logger
from jobq.engine.model.backoff import pause
from jobq.engine.model.entry import encode_entry
from jobq.engine.model.ids import IdMaker
from jobq.engine.model.job import Accepted, AttemptError, NewJob
from jobq.engine.model.outcome import EXPIRED, KILLED
from jobq.engine.model.rows import read_errors, read_result
from jobq.engine.model.spread import has_home, home_of
from jobq.engine.model.unique import bind
from jobq.engine.queue.published import completed
from jobq.engine.schedule.definition import RULE
from jobq.engine.schedule.plan import Plan, plan, planned_again, told
from jobq.engine.schedule.state import judge, read_row, slot_id, unfinished, write_definitions
from jobq.errors import InvalidJob, StoreError, UnreadableResult

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from jobq.engine.model.entry import Entry
    from jobq.engine.queue.producing import Producing
    from jobq.engine.schedule.state import How, ScheduleState, Stored
    from jobq.engine.store import Store

log = get_logger("jobq.schedules")

PAGE: Final = 50
"""Schedules that are read and fired together. Planning them takes Python some ms, during which nothing else runs."""
LENT_MS: Final = 2000
"""The time for which a due schedule is hidden from others. If the process dies, its slot comes so much later."""
AGAIN_MS: Final = 60_000
"""The time after which a schedule that cannot be read is looked at again."""
RESULT_MAX: Final = 16_384
"""Bytes of a previous result that the handler gets."""
RESULTS_PAGE: Final = 200
PLANNED_PAGE: Final = 200
CALL_BYTES: Final = 1 << 20
CALL_JOBS: Final = 100
LONGEST: Final = 86_400.0
JOIN_SECONDS: Final = 1.0
JUMP_MS: Final = 500
"""A difference between two clocks that means that one was set."""

UNRUN: Final = {EXPIRED: "expired", "Dropped": "dropped", "Replaced": "replaced"}
"""The error type of a job that ended in failed without a run -> how it ended."""

_unused: Final = IdMaker()
"""The jobs of schedules have ids of their own."""
Ended = dict[str, tuple[str, Any, "str | None"]]
"""Id -> state, result and error of jobs that have ended."""


async def read_ended(store: Store, ids: Sequence[str]) -> Ended:
    """How jobs ended. Jobs that are unfinished are left out.

    :raises StoreError: Redis is away.
    """
    ended: Ended = {}
    at = 0
    while at < len(ids):
        page = ids[at : at + RESULTS_PAGE]
        reply = await store.do(store.results(page))
        for job_id, state, row in zip(page, reply[::2], reply[1::2], strict=False):
            at += 1
            if state == b"completed":
                ended[job_id] = ("completed", _value(job_id, row), None)
            elif state == b"failed":
                errors = read_errors(row)
                how = UNRUN.get(errors[-1].type, "failed") if errors else "failed"
                ended[job_id] = (how, None, f"{errors[-1].type}: {errors[-1].message}" if errors else None)
            elif state == b"gone":
                ended[job_id] = ("gone", None, None)
    return ended


def _value(job_id: str, row: bytes) -> Any:
    try:
        result = read_result(job_id, row).result if row else None
    except UnreadableResult:
        return None
    return result if result is not None and len(result) <= RESULT_MAX else None


def new_job(
    queue: Producing, stored: Stored, state: ScheduleState, slot: int, job_id: str, missed: int, how: How, ended: Ended
) -> NewJob:
    """The job of a slot. Options that the schedule does not give are those of the type."""
    definition = stored.definition
    heard = told(stored, state, slot, missed, how, ended)
    new = NewJob(
        definition.type,
        definition.payload,
        definition.options,
        id=job_id,
        # The payload stays in the version in which it was written when that of the type changes.
        given=(*definition.given, "version"),
        schedule=heard,
    )
    task = queue.tasks.get(definition.type)
    if task is None:
        return new
    new = completed(new, task.defaults)
    return msgspec.structs.replace(new, options=bind(new.options, new.type, task.signature.defaults))


async def encode_jobs(queue: Producing, stored: Stored, news: list[NewJob], *, homes: int | None = None) -> list[Entry]:
    """The jobs in the form of enqueue.lua. ``homes``: partitions that get jobs with keys, if they must not be decided
    by this call.

    :raises InvalidJob: one cannot be encoded.
    :raises StoreError: Redis is away.
    """
    news = [queue.named(queue.current(new)) for new in await queue.type_defaults.complete(news)]
    if stored.definition.overlap == "queue_one":
        key = f"{RULE}:{stored.name}"
        news = [
            msgspec.structs.replace(
                new, options=msgspec.structs.replace(new.options, limits=(key, *new.options.limits))
            )
            for new in news
        ]
    now = queue.store.now_ms()
    entries = [encode_entry(new, _unused, now) for new in news]
    if any(has_home(entry) for entry in entries) and (homes := homes or await queue.homes()) > 1:
        for entry in entries:
            if home := home_of(entry, homes):
                raise InvalidJob(
                    f"the keys, limits, group or partition_by of its jobs belong to partition {home} of the queue, and"
                    " all schedules are in partition 0: leave them out, or let the job enqueue another one"
                )
    return entries


def group(stored: Stored, planned: Plan, entries: Iterable[Entry], checked: Sequence[str] = ()) -> list[Any]:
    """The arguments of schedule_fire.lua for one schedule. ``checked``: jobs that may be in the way."""
    overlap = "allow" if stored.definition.overlap == "kill" else stored.definition.overlap
    flat: list[Any] = [
        stored.name, stored.head, planned.fired.row, planned.fired.due, planned.skipped.row, planned.skipped.due,
        overlap, len(checked), *checked,
    ]  # fmt: skip
    jobs = [word for entry in entries for word in (*entry[:3], entry[4])]
    return [*flat, len(jobs) // 4, *jobs]


class Firing:
    """Fires the schedules of one queue while ``run`` runs. ``failed``: called after an error that nobody expected."""

    def __init__(self, queue: Producing, failed: Callable[[], None] | None = None) -> None:
        self._queue = queue
        self._told = failed
        self._wanted = asyncio.Event()
        self._said: set[str] = set()
        self._read: tuple[float, int] | None = None
        """A moment of the monotonic clock, and the server's time then."""

    def look(self) -> None:
        """A schedule has changed, or a message about one may have been missed."""
        self._wanted.set()

    def check_clock(self) -> None:
        """The server's clock was read again. If it was set, a schedule may be due."""
        if self._read is not None:
            then, now = self._read
            if abs(self._queue.store.now_ms() - now - (monotonic() - then) * 1000) > JUMP_MS:
                self.look()

    async def run(self) -> None:
        """Fire schedules when they are due, until cancelled. In between it waits: nothing is asked of Redis."""
        failures = 0
        # Begin when the control channel is open, so that no message is missed after the first look.
        await self._wait(JOIN_SECONDS)
        while True:
            self._wanted.clear()
            try:
                due_ms = await self.fire_due()
                failures = 0
            except Exception as error:  # noqa: BLE001 - one bad schedule must not stop the worker
                due_ms = round(pause(failures + 1) * 1000)
                self._failed(error, failures)
                failures += 1
            await self._wait(None if due_ms < 0 else min(due_ms / 1000, LONGEST))

    async def _wait(self, seconds: float | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wanted.wait()

    async def fire_due(self) -> int:
        """Enqueue the jobs of all schedules that are due. Returns ms until the next one is due; -1: there is none.

        :raises StoreError: Redis is away, or is full.
        """
        store, planned = self._queue.store, False
        while True:
            due_ms, back, now, *rows = await store.do(store.schedule_due(PAGE, LENT_MS, planned=planned))
            self._read = (monotonic(), int(now)) if due_ms >= 0 or rows else None
            if back and not planned:
                await self._plan_again(int(now))
                planned = True
                continue
            planned = False
            if not rows:
                return due_ms
            await self.fire(rows, int(now))

    async def fire(self, rows: list[bytes], now_ms: int) -> None:
        """Fire schedules that were read: flat triples as in schedule_due.lua.

        :raises StoreError: Redis is away, or is full.
        """
        store = self._queue.store
        found = [one for at in range(0, len(rows), 3) if (one := self._stored(*rows[at : at + 3])) is not None]
        if len(found) < len(rows) // 3:
            readable = {one.name for one in found}
            for name in rows[::3]:
                if name.decode(errors="replace") not in readable:
                    await self._later(name, now_ms)
        ended = await read_ended(store, [job_id for one in found for job_id in unfinished(one.state)])
        groups: list[list[Any]] = []
        sent: list[tuple[Stored, Plan, list[NewJob]]] = []
        for stored in found:
            try:
                made = await self._group(stored, ended, now_ms)
            except (InvalidJob, ValueError) as error:
                # The zone or the type may be unknown to this program only.
                self._say(stored.name, f"Schedule {stored.name} cannot be fired: {error}")
                await self._later(stored.name, now_ms)
                continue
            groups.append(made[0])
            sent.append((stored, made[1], made[2]))
        for first, last in _calls(groups):
            flat = [word for one in groups[first:last] for word in one]
            for word, (stored, planned, news) in zip(
                await store.do(store.schedule_fire(flat)), sent[first:last], strict=True
            ):
                self._fired(word, stored, planned, news)

    async def _later(self, name: bytes | str, now_ms: int) -> None:
        """Look at a schedule that cannot be fired again after a minute, unless it was removed or paused meanwhile."""
        store = self._queue.store
        await store.command(b"ZADD", store.keys["schedules"], b"XX", now_ms + AGAIN_MS, name)

    async def _group(self, stored: Stored, ended: Ended, now_ms: int) -> tuple[list[Any], Plan, list[NewJob]]:
        state = judge(stored, {job_id: outcome for job_id, (outcome, _, _) in ended.items()})
        planned = plan(stored, state, now_ms)
        earlier = unfinished(state)
        if planned.slots and earlier and stored.definition.overlap == "kill":
            await self._kill(stored.name, earlier)
        news = [
            new_job(
                self._queue, stored, state, slot, slot_id(stored.name, slot), 0 if place else planned.missed, "slot",
                ended,
            )
            for place, slot in enumerate(planned.slots)
        ]  # fmt: skip
        if (tracer := self._queue.tracer) is not None:
            news = [tracer.scheduled(new) for new in news]
        entries = await encode_jobs(self._queue, stored, news)
        return group(stored, planned, entries, earlier if planned.slots else ()), planned, news

    async def _kill(self, name: str, ids: list[str]) -> None:
        store = self._queue.store
        message = f"killed by schedule {name}, whose next slot came (overlap kill)"
        record = AttemptError(attempt=0, at=store.now_ms(), type=KILLED, message=message)
        await store.do(store.kill(ids, msgspec.json.encode(record)))

    def _fired(self, word: str, stored: Stored, planned: Plan, news: list[NewJob]) -> None:
        name, queue = stored.name, self._queue
        if queue.tracer is not None:
            for new in news:
                queue.tracer.fired(new, enqueued=word not in ("stale", "skipped"))
        if word == "stale":
            return
        if word == "skipped":
            log.info(
                f"Schedule {name} skipped a slot, because an earlier job is in the way", queue=queue.name, schedule=name
            )
            return
        if planned.reason == "too late":
            log.info(f"Schedule {name} missed a slot, and does not make it up", queue=queue.name, schedule=name)
        elif planned.reason not in ("", "not due"):
            log.warning(f"Schedule {name} was paused: {planned.reason}", queue=queue.name, schedule=name)
        if planned.missed:
            log.info(
                f"Schedule {name} missed slots: {planned.missed} got no job of their own",
                queue=queue.name, schedule=name, missed=planned.missed,
            )  # fmt: skip
        for new in news:
            assert new.id is not None
            log.debug(f"Schedule {name} enqueued job {new.id}", queue=queue.name, schedule=name, job_id=new.id)
            if queue.hooks:
                queue.tell_enqueued(new, Accepted(new.id))

    async def _plan_again(self, now_ms: int) -> None:
        """The server's clock was set back: slots that lie ahead again must come again, unless they ran."""
        store = self._queue.store
        log.warning(
            f"The clock of the server was set back: the schedules of queue {store.name} are planned again",
            queue=store.name,
        )
        names = await store.schedule_names()
        for at in range(0, len(names), PLANNED_PAGE):
            page = names[at : at + PLANNED_PAGE]
            writes: list[Coroutine[Any, Any, bytes]] = []
            for name, (row, failed, _) in zip(page, await store.schedule_rows(page), strict=True):
                stored = self._stored(name, row, failed) if row else None
                try:
                    score = planned_again(stored, now_ms) if stored is not None else None
                except InvalidJob as error:
                    self._say(name.decode(), f"Schedule {name.decode()} cannot be planned: {error}")
                    continue
                if stored is not None and score is not None:
                    definitions = write_definitions(stored.operator, stored.code)
                    call = store.schedule_write(stored.name, stored.head, score.row, definitions, score.due)
                    writes.append(store.do(call))
            await asyncio.gather(*writes)

    def _stored(self, name: bytes, row: bytes, failed: bytes) -> Stored | None:
        text = name.decode(errors="replace")
        try:
            return read_row(text, row, failed)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._say(text, f"Schedule {text} cannot be read by this version of jobq: {error}")
            return None

    def _say(self, name: str, sentence: str) -> None:
        """Log an error once for each schedule."""
        if name not in self._said and len(self._said) < PLANNED_PAGE:
            self._said.add(name)
            log.error(sentence, queue=self._queue.name, schedule=name)

    def _failed(self, error: Exception, failures: int) -> None:
        name = self._queue.name
        if isinstance(error, StoreError):
            level = log.debug if failures else log.warning
            level(
                f"The schedules of queue {name} could not be fired; tried again: {error}", queue=name, error=str(error)
            )
        else:
            log.error(f"The schedules of queue {name} could not be fired; tried again", queue=name, exc_info=error)
            if self._told is not None:
                self._told()


def _calls(groups: list[list[Any]]) -> Iterable[tuple[int, int]]:
    """Which groups go into one call: few enough for a call of some ms."""
    first = jobs = size = 0
    for place, one in enumerate(groups):
        more = sum(len(word) for word in one if isinstance(word, bytes))
        if place > first and (jobs >= CALL_JOBS or size + more > CALL_BYTES):
            yield first, place
            first, jobs, size = place, 0, 0
        jobs += 1 + len(one) // 20
        size += more
    if groups:
        yield first, len(groups)
