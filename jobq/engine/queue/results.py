"""Waiting for jobs to end: thousands of waiters on one connection, without polling.

The reader of the queue (reader.py) follows the events stream while anybody waits. A waiter asks for the state of its
job only after the reader has its place in the stream. So it cannot miss an end between the two. If entries were trimmed
before they were read, or the connection broke, the state of every job is asked for again. A Redis that was emptied
sends no event. So every few seconds one page of the jobs is asked for, and all of them if one of that page is gone.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Final

import msgspec

from jobq.engine.model.event import ENDS
from jobq.engine.model.outcome import EXPIRED, KILLED
from jobq.engine.model.rows import read_errors, read_result
from jobq.engine.model.unreadable import as_text
from jobq.errors import (
    JobExpired,
    JobFailed,
    JobKilled,
    JobNotFound,
    ResultTimeout,
    StoreError,
    StoreUnavailable,
    UnreadableResult,
    twin,
)

if TYPE_CHECKING:
    from jobq.engine.model.event import Place
    from jobq.engine.model.job import AttemptError
    from jobq.engine.queue.reader import EventReader, EventReaders
    from jobq.engine.store import Partitions, Store

LOOK: Final = 5.0
"""Seconds after which a page of the jobs is asked for without an event."""
PAGE: Final = 200

_ENDS: Final = frozenset(name.encode() for name in ENDS)

Waiter = asyncio.Future[msgspec.Raw]


def failure_kind(last: AttemptError) -> type[JobFailed]:
    """The error for those who wait for a job whose last error is this one."""
    return {KILLED: JobKilled, EXPIRED: JobExpired}.get(last.type, JobFailed)


def _failure(job_id: str, row: bytes) -> JobFailed:
    """The error for those who wait for a failed job, from its error records."""
    errors = read_errors(row)
    if not errors:
        return JobFailed(job_id, "unknown", "no record")
    last = errors[-1]
    return failure_kind(last)(job_id, last.type, last.message, last.traceback)


class Waiters:
    """The waiters of one queue in this process."""

    def __init__(self, store: Store, reader: EventReader) -> None:
        self._store = store
        self._events = reader
        self._waiting: dict[str, set[Waiter]] = {}
        self._ask: list[str] = []
        self._reader: asyncio.Task[None] | None = None
        self._asker: asyncio.Task[None] | None = None
        self._placed = asyncio.Event()
        self._sample: set[str] = set()
        """Jobs that were asked for although no event named them."""
        self._looked = 0.0

    async def wait(self, job_id: str, timeout: float | None) -> msgspec.Raw:
        """The job's result, as encoded JSON.

        :raises JobFailed: the job ended in failed (``JobKilled``: it was killed; ``JobExpired``).
        :raises JobNotFound: there is no such job, or it was removed while waiting.
        :raises ResultTimeout: the job had not ended after ``timeout`` seconds. With 0, Redis is asked once.
        """
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(job_id, set()).add(waiter)
        try:
            if timeout is not None and timeout <= 0:
                state, row = await self._store.do(self._store.results([job_id]))
                self._answer(job_id, state, row)
                if waiter.done():
                    return await waiter
                raise TimeoutError
            async with asyncio.timeout(timeout):
                if self._reader is None or self._reader.done():
                    self._placed.clear()
                    self._reader = asyncio.create_task(self._read(), name="jobq-results")
                await self._placed.wait()
                self._ask_for([job_id])
                return await waiter
        except TimeoutError:
            raise ResultTimeout(f"job {job_id} had not ended after {timeout} s; it goes on") from None
        finally:
            waiters = self._waiting.get(job_id)
            if waiters is not None:
                waiters.discard(waiter)
                if not waiters:
                    del self._waiting[job_id]

    def _ask_for(self, ids: list[str]) -> None:
        self._ask += ids
        if self._asker is None or self._asker.done():
            self._asker = asyncio.create_task(self._ask_all(), name="jobq-results-ask")

    async def _ask_all(self) -> None:
        while self._ask:
            page, self._ask = self._ask[:PAGE], self._ask[PAGE:]
            try:
                answers = await self._store.do(self._store.results(page))
            except Exception as error:  # noqa: BLE001 - no waiter may wait for ever because of it
                for job_id in page:
                    self._fail(job_id, error)
                continue
            # Large results make the reply shorter.
            for job_id, state, row in zip(page, answers[::2], answers[1::2], strict=False):
                self._answer(job_id, state, row)
            self._ask = page[len(answers) // 2 :] + self._ask
            gone = {one for one, state in zip(page, answers[::2], strict=False) if state == b"gone"}
            if gone & self._sample:
                # No event told of its end, so the other jobs may be gone as well.
                self._sample.clear()
                self._ask_for(list(self._waiting))

    def _answer(self, job_id: str, state: bytes, row: bytes) -> None:
        if state == b"completed":
            try:
                result = read_result(job_id, row).result if row else msgspec.Raw(b"null")
            except UnreadableResult as error:
                # Fail only the waiters of this job. The answers of other jobs are in the same page.
                self._fail(job_id, error)
                return
            for waiter in self._waiting.get(job_id, ()):
                if not waiter.done():
                    waiter.set_result(result)
        elif state == b"failed":
            self._fail(job_id, _failure(job_id, row))
        elif state == b"gone":
            self._fail(job_id, JobNotFound(job_id))

    def _fail(self, job_id: str, error: Exception) -> None:
        """Each waiter gets an exception of its own, so that what one caller does to it does not reach the others."""
        for waiter in self._waiting.get(job_id, ()):
            if not waiter.done():
                waiter.set_exception(twin(error))

    def _ask_for_a_sample(self) -> None:
        self._looked = monotonic()
        ids = list(self._waiting)[:PAGE]
        self._sample = set(ids)
        for job_id in ids:
            # Move it to the end, so that the next sample is another one.
            self._waiting[job_id] = self._waiting.pop(job_id)
        self._ask_for(ids)

    async def _read(self) -> None:
        """Follow the stream until nobody waits."""
        reader = self._events
        place: Place | None = None
        doubts = -1
        with reader.listening():
            while self._waiting:
                try:
                    if place is None:
                        place = await reader.place()
                        self._looked = monotonic()
                    entries = reader.behind(place)
                    if entries is None or doubts != reader.doubts:
                        doubts, place = reader.doubts, await reader.place()
                        self._placed.set()
                        self._ask_for(list(self._waiting))
                        entries = []
                except StoreError:
                    # The waiters that come now ask for themselves, and learn that Redis is away.
                    self._placed.set()
                    await reader.news(LOOK)
                    continue
                if monotonic() - self._looked >= LOOK:
                    self._ask_for_a_sample()
                ended: list[str] = []
                for entry in entries:
                    place = entry.place
                    if entry.fields[0] in _ENDS:
                        for ids in entry.fields[1::2]:
                            ended += [job_id for job_id in as_text(ids).split(" ") if job_id in self._waiting]
                if ended:
                    self._ask_for(ended)
                if not entries:
                    await reader.news(LOOK)

    async def aclose(self) -> None:
        """Stop reading. Waiters get a ``StoreError``."""
        for task in (self._reader, self._asker):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        for job_id in list(self._waiting):
            self._fail(job_id, StoreUnavailable("the queue was closed while waiting for the result"))


class WaitersOfAll:
    """The waiters of a queue of several partitions. Each partition has a stream of its own. ``first``: those of
    partition 0."""

    def __init__(self, store: Partitions, first: Waiters | WaitersOfAll, readers: EventReaders) -> None:
        self._store = store
        self._readers = readers
        self._of: dict[Store, Waiters | WaitersOfAll] = {store.parts[0]: first}

    async def wait(self, job_id: str, timeout: float | None) -> msgspec.Raw:
        """As ``Waiters.wait``."""
        part = self._store.part_of(job_id)
        if part not in self._of:
            self._of[part] = Waiters(part, self._readers.of(part))
        return await self._of[part].wait(job_id, timeout)

    async def aclose(self) -> None:
        """Stop reading. Waiters get a ``StoreError``."""
        await asyncio.gather(*(waiters.aclose() for waiters in self._of.values()))
