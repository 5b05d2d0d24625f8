"""Reads the events of a queue. All listeners in an event loop share one reader, and so one blocking call.

The reader keeps the newest entries. A listener takes from them what lies behind its own place, so that a listener that
is slow fills no memory. If it has fallen behind them, it reads from the stream itself. Only when the stream has dropped
entries, too, are events missing, and the listener is told so.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from jobq.engine.log import get_logger
from jobq.engine.model.backoff import pause
from jobq.engine.model.event import Place
from jobq.errors import StoreError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Generator

    from jobq.engine.store import Store

log = get_logger("jobq.queue")

BLOCK: Final = 5.0
"""Seconds that one read of the stream may wait. A half-open connection is noticed after so long."""
KEPT: Final = 1024
"""Entries that the reader keeps. The stream itself keeps about as many."""
PAGE: Final = 256


class Entry(NamedTuple):
    """An entry of the stream: pairs of a name and ids."""

    place: Place
    fields: list[bytes]


class EventReader:
    """Follows the events stream of one store while anybody listens."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._listeners = 0
        self._task: asyncio.Task[None] | None = None
        self._entries: list[Entry] = []
        self._behind = Place(0, 0)
        """All entries behind this place, up to ``_place``, are kept."""
        self._place: Place | None = None
        self._error: StoreError | None = None
        self._news = asyncio.Event()
        self._closed = False
        self.doubts = 0
        """How often entries may have been lost: Redis was away, or the stream was trimmed before it was read."""

    @contextmanager
    def listening(self) -> Generator[None]:
        """Read the stream while the block runs."""
        self._listeners += 1
        if self._task is None or self._task.done():
            self._place, self._error = None, None
            self._task = asyncio.create_task(self._read(), name="jobq-events")
        try:
            yield
        finally:
            self._listeners -= 1

    async def place(self) -> Place:
        """The newest place of the stream that the reader knows.

        :raises StoreError: Redis is away.
        """
        while self._place is None:
            if self._error is not None:
                raise self._error
            await self.news(None)
        return self._place

    @property
    def next_news(self) -> asyncio.Event:
        """It is set when anything comes that is not known now. Take it before looking, then nothing is overlooked."""
        return self._news

    async def news(self, timeout: float | None, news: asyncio.Event | None = None) -> bool:
        """Wait for anything new: entries, or an outage. Returns False after ``timeout`` seconds without.

        ``news``: wait for what comes after this ``next_news`` was taken.

        :raises StoreUnavailable: the queue was closed.
        """
        if self._closed:
            raise StoreUnavailable("the queue was closed while somebody listened to its events")
        news = news or self._news
        try:
            async with asyncio.timeout(timeout):
                await news.wait()
        except TimeoutError:
            return False
        return True

    def behind(self, place: Place) -> list[Entry] | None:
        """The kept entries behind a place, or None if the reader does not have all of them any more."""
        if self._place is None or place < self._behind:
            return None
        # An entry of which only some jobs were read is among them.
        first = bisect_left(self._entries, place._replace(jobs=0), key=lambda entry: entry.place._replace(jobs=0))
        if first < len(self._entries) and self._entries[first].place <= place:
            first += 1
        return self._entries[first : first + PAGE]

    async def page(self, place: Place) -> tuple[list[Entry], bool]:
        """Entries behind a place, from the reader or else from the stream, and whether some before may be missing.

        :raises StoreError: Redis is away.
        """
        kept = self.behind(place)
        if kept is not None:
            return kept, False
        found, missed = await self._store.events_behind(place.entry, PAGE)
        entries = [Entry(Place.of_entry(entry_id), fields) for entry_id, fields in found]
        return [entry for entry in entries if entry.place > place], missed

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _begin(self, place: Place) -> None:
        self._place = self._behind = place
        self._entries = []

    async def _read(self) -> None:
        failures = 0
        while self._listeners:
            try:
                if self._place is None or failures:
                    # The reader begins. Or Redis was away, and may have lost its newest entries.
                    newest = Place.of_entry(await self._store.last_event())
                    if self._place is None or newest < self._place:
                        self._begin(newest)
                    self.doubts += failures > 0
                    failures, self._error = 0, None
                    self._tell()
                assert self._place is not None
                found, full = await self._store.events(self._place.entry, block=BLOCK)
                # The stream keeps more entries than one reading returns. So none were dropped if this one has fewer.
                trimmed = full and await self._store.trimmed_behind(self._place.entry)
            except Exception as error:
                if not isinstance(error, StoreError):
                    log.exception(
                        f"The events of queue {self._store.name} could not be read; tried again",
                        queue=self._store.name,
                    )
                failures += 1
                self._error = error if isinstance(error, StoreError) else StoreError(f"events: {error}")
                self._tell()
                await asyncio.sleep(pause(failures))
                continue
            if not found:
                continue
            if trimmed:
                self.doubts += 1
                # Listeners that have not read up to here read the stream themselves, and learn what is missing.
                first = Place.of_entry(found[0][0])
                self._begin(first._replace(jobs=0))
            self._entries += [Entry(Place.of_entry(entry_id), fields) for entry_id, fields in found]
            self._place = self._entries[-1].place
            if len(self._entries) > 2 * KEPT:
                self._behind = self._entries[-KEPT - 1].place
                del self._entries[:-KEPT]
            self._tell()

    async def aclose(self) -> None:
        """Stop reading. Listeners get a ``StoreUnavailable``."""
        self._closed = True
        self._tell()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


class EventReaders:
    """The readers of a queue in an event loop: one for each partition that somebody listens to."""

    def __init__(self) -> None:
        self._of: dict[Store, EventReader] = {}

    def of(self, store: Store) -> EventReader:
        """The reader of a partition."""
        if store not in self._of:
            self._of[store] = EventReader(store)
        return self._of[store]

    async def aclose(self) -> None:
        """Stop reading. Listeners get a ``StoreUnavailable``."""
        for reader in self._of.values():
            await reader.aclose()
