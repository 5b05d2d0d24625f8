"""Events of a queue: ``async for event in queue.events()``."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec.structs import replace

from jobq.engine.log import get_logger
from jobq.engine.model.event import (
    ENDS,
    Place,
    QueueEvent,
    check_level,
    end_of,
    ending_of,
    event_of_row,
    place_in,
    read_cursor,
    read_entry,
    read_job_cursor,
    read_names,
)
from jobq.engine.model.ids import is_id, partition_of
from jobq.engine.model.rows import job_brief
from jobq.engine.model.times import to_ms, to_unix_ms
from jobq.engine.queue.changing import changing
from jobq.errors import JobNotFound, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection

    from jobq.engine.model.event import EventKind, EventLevel
    from jobq.engine.model.job import Seconds
    from jobq.engine.queue.reader import Entry, EventReader
    from jobq.engine.queue.session import Session, Sessions
    from jobq.engine.store import Store

log = get_logger("jobq.queue")

LOOK: Final = 30.0
"""Seconds without news after which the state of a job is asked for. A Redis that was emptied tells no event."""
AGAIN = 0.5
"""Seconds after which the stream is read again, if that failed and the reader of new events has noticed nothing."""
GROWTH: Final = 5.0
"""Seconds after which a reader of a whole queue asks whether there are more partitions."""


class EventVerbs(ABC):
    """What is told of the jobs of a queue."""

    name: str
    _sessions: Sessions

    @property
    @abstractmethod
    def store(self) -> Store:
        """The verbs underneath."""

    def events(
        self,
        *,
        since: str | datetime | Seconds | None = None,
        job: str | None = None,
        names: Collection[EventKind] | None = None,
    ) -> AsyncGenerator[QueueEvent]:
        """Follow what happens to the jobs of the queue, in the order in which it happened.

        ``since``: the cursor of the last event that was handled, a datetime, or so many seconds ago. None: from the
        first iteration on. ``job``: only events of this job; they end after the job has ended. ``names``: only events
        of these names.

        The queue keeps its last 1,000 batches of events or somewhat more. If older ones were asked for, or the caller
        is too slow, an event "missed" says so. While Redis is away the iteration waits.

        :raises InvalidQuery: ``since`` or a name cannot be used.
        :raises JobNotFound: there is no such job. Raised by the iteration.
        :raises StoreError: Redis is away at the first iteration, or the queue is closed.
        """
        return _each(self.event_batches(since=since, job=job, names=names))

    def event_batches(
        self,
        *,
        since: str | datetime | Seconds | None = None,
        job: str | None = None,
        names: Collection[EventKind] | None = None,
    ) -> AsyncGenerator[list[QueueEvent]]:
        """As ``events``, but in lists: those of up to 256 batches that were there together. This costs less for each
        event."""
        wanted = read_names(names)
        if job is not None and not is_id(job):
            raise JobNotFound(job[:200])
        session = self._sessions.here
        if job is not None:
            place = None if since is None else self._place(since, job)
            return _follow_job(session, job, place, wanted)
        places = None
        if since is not None:
            places = read_cursor(since) if isinstance(since, str) else [self._place(since, "")]
        return _follow_all(session, places, wanted)

    def _place(self, since: str | datetime | Seconds, job: str) -> Place:
        if isinstance(since, str):
            return read_job_cursor(since, partition_of(job))
        ms = to_unix_ms("since", since) if isinstance(since, datetime) else self.store.now_ms() - to_ms(since)
        return Place(max(0, ms), 0, 0)

    async def event_cursor(self) -> str:
        """The cursor of this moment: ``events(since=...)`` with it tells all that happens from now on.

        :raises StoreError: Redis is away.
        """
        session = self._sessions.here
        await session.refresh()
        return ",".join([str(Place.of_entry(await part.last_event())) for part in session.store.parts])

    async def set_events(self, level: EventLevel) -> None:
        """Set which events the queue tells: "outcomes", or "all": also "started" and "progress".

        It acts at once. Programs that declare another ``Queue(events=...)`` do not change it; they log a warning.

        :raises InvalidJob: it is another word.
        """
        word = check_level(level)
        await self.store.register()
        async with changing(self.store):
            for part in self.store.parts:
                await part.do(part.setting("events", word))
        log.info(f"Queue {self.name} tells {level} as events from now on", queue=self.name)

    async def get_events(self) -> EventLevel:
        """Which events the queue tells now."""
        stored = await self.store.command(b"HGET", self.store.keys["meta"], b"events")
        return "all" if stored == b"all" else "outcomes"


async def _each(batches: AsyncGenerator[list[QueueEvent]]) -> AsyncGenerator[QueueEvent]:
    async with aclosing(batches):
        async for batch in batches:
            for event in batch:
                yield event


async def _follow_all(
    session: Session, since: list[Place] | None, names: frozenset[str] | None
) -> AsyncGenerator[list[QueueEvent]]:
    """The events of all partitions. Those of one partition keep their order."""
    places: list[str] = []
    following: list[AsyncGenerator[list[QueueEvent]]] = []
    coming: dict[asyncio.Future[list[QueueEvent]], int] = {}
    # Partitions that are found later are then new, so none of their events is older than this reader.
    await session.refresh()
    try:
        while True:
            for number, part in enumerate(session.store.parts):
                if number < len(following):
                    continue
                reader = session.readers.of(part)
                if since is None:
                    with reader.listening():
                        place = await reader.place()
                else:
                    place = place_in(since, number)
                places.append(str(place))
                following.append(_follow(reader, part, place, None, names))
                coming[asyncio.ensure_future(anext(following[number]))] = number
            since = since or [Place(0, 0)]
            done, _ = await asyncio.wait(coming, timeout=GROWTH, return_when=asyncio.FIRST_COMPLETED)
            session.look()
            for one in done:
                number = coming.pop(one)
                batch = one.result()
                coming[asyncio.ensure_future(anext(following[number]))] = number
                yield _of_partition(batch, number, places)
    finally:
        for one in coming:
            one.cancel()
        await asyncio.gather(*coming, return_exceptions=True)
        for one in following:
            await one.aclose()


def _of_partition(batch: list[QueueEvent], number: int, places: list[str]) -> list[QueueEvent]:
    """The events of a partition, with cursors for all partitions. ``places`` are moved on."""
    if len(places) == 1:
        places[0] = batch[-1].cursor
        return batch
    told: list[QueueEvent] = []
    for event in batch:
        places[number] = event.cursor
        told.append(replace(event, cursor=",".join(places)))
    return told


async def _follow_job(
    session: Session, job: str, since: Place | None, names: frozenset[str] | None
) -> AsyncGenerator[list[QueueEvent]]:
    """The events of one job. In a queue of several partitions their cursors name the partition, so that nobody takes
    one for a cursor of the whole queue."""
    number = partition_of(job)
    if number >= len(session.store.parts):
        await session.refresh()
    part = session.store.part_of(job)
    several = len(session.store.parts) > 1
    async with aclosing(_follow(session.readers.of(part), part, since, job, names)) as batches:
        async for batch in batches:
            yield [replace(event, cursor=f"{event.cursor}.p{number}") for event in batch] if several else batch


class _End(NamedTuple):
    """How a job has ended. The stream tells it up to the place ``told_by``, if it tells it at all."""

    event: QueueEvent
    told_by: Place
    gone: bool
    """Nothing is stored of the job."""


async def _follow(
    reader: EventReader, store: Store, since: Place | None, job: str | None, names: frozenset[str] | None
) -> AsyncGenerator[list[QueueEvent]]:
    wanted = None if job is None else job.encode()
    with reader.listening():
        place = await reader.place()
        # A time may lie ahead.
        cursor = place if since is None else min(since, place) if since.is_time else since
        doubts, end, known = -1, None, False
        # If the job ended before `since`, the caller has been told.
        owed = since is None
        while True:
            news = reader.next_news
            if job is not None and doubts != reader.doubts:
                end = await _end_of(store, job, first=doubts < 0)
                if end is not None and end.gone and since is None and doubts < 0:
                    raise JobNotFound(job)
                owed |= doubts >= 0
                doubts = reader.doubts
            try:
                gone = cursor > place and await _is_gone(store, cursor)
                if gone:
                    cursor = place
                entries, missed = ([], True) if gone else await reader.page(cursor)
            except StoreError:
                await reader.news(AGAIN, news)
                continue
            if missed:
                owed = True
                id_ = f"{cursor}{ending_of(store.partition)}"
                yield [QueueEvent("missed", None, store.name, store.now_ms(), id_, str(cursor))]
            found = _events_in(store, entries, cursor, wanted)
            cursor = entries[-1].place if entries else cursor
            known |= bool(found)
            ended = next((at for at, event in enumerate(found) if event.name in ENDS), None) if job else None
            if ended is not None:
                del found[ended + 1 :]
            told = [event for event in found if names is None or event.name in names]
            if told:
                yield told
            if ended is not None:
                return
            if not entries and not missed:
                cursor = max(cursor, place)
                if end is not None and cursor >= end.told_by:
                    if end.gone and not known and not owed:
                        # The caller has a place in the stream, and the stream does not name the job behind it.
                        raise JobNotFound(end.event.job or "")
                    if owed and (names is None or end.event.name in names):
                        yield [end.event]
                    return
                if not await reader.news(LOOK, news) and job is not None:
                    end = await _end_of(store, job, first=False)
                    owed = True
            place = await reader.place()


async def _is_gone(store: Store, cursor: Place) -> bool:
    """Whether the stream does not have the entry of a place that the reader has not come to: Redis was emptied, or has
    lost its newest entries.

    :raises StoreError: Redis is away.
    """
    newest = Place.of_entry(await store.last_event())
    return cursor > newest and cursor.entry != newest.entry


def _events_in(store: Store, entries: list[Entry], behind: Place, job: bytes | None) -> list[QueueEvent]:
    """The events of these entries behind a place."""
    found: list[QueueEvent] = []
    for entry in entries:
        # In the first entry, some jobs may have been read before.
        seen = behind.jobs if behind.entry == entry.place.entry else 0
        found += read_entry(store.name, entry.place, entry.fields, seen, job, store.partition)
    return found


async def _end_of(store: Store, job: str, *, first: bool) -> _End | None:
    """How the job has ended, if it has.

    :raises StoreError: Redis is away when it is asked for ``first``.
    """
    try:
        [row] = await store.do(store.rows([job], brief=True, expired=True))
        last = Place.of_entry(await store.last_event())
        if not row:
            return _End(event_of_row("removed", job, store.name, store.now_ms(), str(last)), last, gone=True)
        found = job_brief(store.name, job, row)
        name = end_of(found.state, found.error.type if found.error else None)
        if name is None or found.finished_at is None:
            return None
        # Whoever hears of this end gets the same event, as long as the stream has it.
        for entry_id, fields in await store.events_at(found.finished_at):
            place = Place.of_entry(entry_id)
            for event in read_entry(store.name, place, fields, 0, job.encode(), store.partition):
                if event.name == name:
                    return _End(event, last, gone=False)
    except StoreError:
        if first:
            raise
        return None
    return _End(event_of_row(name, job, store.name, found.finished_at, str(last)), last, gone=False)
