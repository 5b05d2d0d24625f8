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
    place_in,
    read_cursor,
    read_entry,
    read_names,
)
from jobq.engine.model.ids import is_id
from jobq.engine.model.outcome import EXPIRED, KILLED
from jobq.engine.model.rows import read_errors
from jobq.engine.model.times import to_ms, to_unix_ms
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
        places = None if since is None else self._since(since)
        session = self._sessions.here
        if job is None:
            return _follow_all(session, places, wanted)
        part = self.store.part_of(job)
        return _follow(session.readers.of(part), part, None if places is None else places[0], job, wanted)

    def _since(self, since: str | datetime | Seconds) -> list[Place]:
        if isinstance(since, str):
            return read_cursor(since)
        if isinstance(since, datetime):
            return [Place(max(0, to_unix_ms("since", since)), 0, 0)]
        return [Place(max(0, self.store.now_ms() - to_ms(since)), 0, 0)]

    async def set_events(self, level: EventLevel) -> None:
        """Set which events the queue tells: "outcomes", or "all": also "started" and "progress".

        It acts at once. Programs that declare another ``Queue(events=...)`` do not change it; they log a warning.

        :raises InvalidJob: it is another word.
        """
        word = check_level(level)
        await self.store.register()
        for part in self.store.parts:
            await part.command(b"HSET", part.keys["meta"], b"events", word)
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
            # From now on a partition that is new has no event that is old.
            since = since or [Place(0, 0)]
            # There may be more partitions after a while.
            done, _ = await asyncio.wait(coming, timeout=LOOK, return_when=asyncio.FIRST_COMPLETED)
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
        told.append(replace(event, id=f"{event.id}.p{number}", cursor=",".join(places)))
    return told


class _End(NamedTuple):
    """How a job has ended. The stream tells it up to the place ``told_by``, if it tells it at all."""

    event: QueueEvent
    told_by: Place


async def _follow(
    reader: EventReader, store: Store, since: Place | None, job: str | None, names: frozenset[str] | None
) -> AsyncGenerator[list[QueueEvent]]:
    wanted = None if job is None else job.encode()
    with reader.listening():
        place = await reader.place()
        cursor = place if since is None else since
        if cursor.is_time:
            cursor = min(cursor, place)  # a time that lies ahead
        doubts, end = -1, None
        # If the job ended before `since`, the caller has been told.
        owed = since is None
        while True:
            news = reader.next_news
            if job is not None and doubts != reader.doubts:
                end = await _end_of(store, job, first=doubts < 0)
                owed |= doubts >= 0
                doubts = reader.doubts
            missed = cursor > place and cursor.entry != place.entry
            entries: list[Entry] = []
            if missed:
                # The stream does not have this entry. Redis was emptied, or has lost its newest entries.
                cursor = place
            else:
                try:
                    entries, missed = await reader.page(cursor)
                except StoreError:
                    await reader.news(LOOK, news)
                    continue
            if missed:
                owed = True
                yield [QueueEvent("missed", None, store.name, store.now_ms(), str(cursor), str(cursor))]
            found: list[QueueEvent] = []
            for entry in entries:
                # In the first entry, some jobs may have been read before.
                seen = cursor.jobs if cursor.entry == entry.place.entry else 0
                found += read_entry(store.name, entry.place, entry.fields, seen, wanted)
                cursor = entry.place
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
                    if owed and (names is None or end.event.name in names):
                        yield [end.event]
                    return
                if not await reader.news(LOOK, news) and job is not None:
                    end = await _end_of(store, job, first=False)
                    owed = True
            place = await reader.place()


async def _end_of(store: Store, job: str, *, first: bool) -> _End | None:
    """How the job has ended, if it has.

    :raises JobNotFound: there is no such job when it is asked for ``first``.
    :raises StoreError: Redis is away when it is asked for ``first``.
    """
    try:
        state, row = await store.do(store.results([job]))
        last = Place.of_entry(await store.last_event())
    except StoreError:
        if first:
            raise
        return None
    name: EventKind
    if state == b"completed":
        name = "completed"
    elif state == b"failed":
        errors = read_errors(row)
        kind = errors[-1].type if errors else ""
        name = "killed" if kind == KILLED else "expired" if kind == EXPIRED else "failed"
    elif state == b"gone":
        if first:
            raise JobNotFound(job)
        name = "removed"
    else:
        return None
    return _End(QueueEvent(name, job, store.name, store.now_ms(), str(last), str(last)), last)
