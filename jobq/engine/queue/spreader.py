"""Spreads the jobs of a queue over its partitions: jobs with keys to the home of their keys, the others in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobq.engine.model.ids import OPEN, in_partition, partition_of
from jobq.engine.model.spread import has_home, home_of
from jobq.engine.queue.producer import BATCH, Producer, batches
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobq.engine.model.entry import Entry
    from jobq.engine.model.job import Accepted
    from jobq.engine.queue.producer import Answer
    from jobq.engine.store import Partitions, Store

TRIPS: Final = 2
"""Trips of one partition in a row. Jobs that are enqueued at the same time share a trip and so a partition."""


class Spreader:
    """Has a producer for each partition. ``first`` is the one of partition 0, ``make`` makes the others."""

    def __init__(
        self, store: Partitions, first: Producer, make: Callable[[Store], Producer], before: Callable[[], None]
    ) -> None:
        self._store = store
        self._make = make
        self._before = before
        self._producers = [first]
        self._turn = 0
        self._until = 0
        """The number of trips after which it is the next partition's turn."""
        self._registered = False

    async def send(self, row: Entry) -> Accepted:
        """Enqueue one row, together with others that are enqueued at the same time. It raises what ``Producer.send``
        raises."""
        if not self._registered:
            await self._register()
        self._before()
        if not self._store.spread_now.homes and has_home(row):
            await self._store.decide_homes()
        partition = self._place(row)
        if partition is None:
            partition = self._next()
        return await self._of(partition).send(_placed(row, partition))

    async def send_many(self, rows: list[Entry]) -> list[Answer]:
        """Enqueue many rows. Each page of those that may go anywhere goes to one partition.

        :raises StoreError: some rows may be written. Repeating rows with ids is harmless.
        """
        if not self._registered:
            await self._register()
        self._before()
        if not self._store.spread_now.homes and any(not _is_free(row) and has_home(row) for row in rows):
            await self._store.decide_homes()
        homes: dict[int, list[int]] = {}
        free: list[int] = []
        for number, row in enumerate(rows):
            partition = None if _is_free(row) else self._place(row)
            (free if partition is None else homes.setdefault(partition, [])).append(number)
        if len(free) == len(rows):
            return [answer for page in batches(rows) for answer in await self._send_page(page)]
        answers: dict[int, Answer] = {}
        for partition, numbers in homes.items():
            sent = await self._of(partition).send_many([_placed(rows[number], partition) for number in numbers])
            answers.update(zip(numbers, sent, strict=True))
        at = 0
        for page in batches([rows[number] for number in free]):
            answers.update(zip(free[at : at + len(page)], await self._send_page(page), strict=True))
            at += len(page)
        return [answers[number] for number in range(len(rows))]

    async def _send_page(self, page: list[Entry]) -> list[Answer]:
        """Enqueue a page of rows that may go anywhere, in one trip to the next partition."""
        partition = self._pass_on()
        if partition:
            ending = f"~{partition}"
            placed = [(job_id[:-1] + ending, a, b, c, d, e) for job_id, a, b, c, d, e in page]
        else:
            placed = [(job_id[:-1], a, b, c, d, e) for job_id, a, b, c, d, e in page]
        return await self._of(partition).trip(placed)

    async def drain(self) -> None:
        """Wait for the trips that are on their way."""
        for producer in self._producers:
            await producer.drain()

    async def _register(self) -> None:
        """Make the queue and its number of partitions known before the first job is in one of them."""
        await self._store.register()
        self._store.learn(await self._store.stored_spread())
        self._registered = True

    def _of(self, partition: int) -> Producer:
        while len(self._producers) <= partition:
            self._producers.append(self._make(self._store.parts[len(self._producers)]))
        return self._producers[partition]

    def _place(self, row: Entry) -> int | None:
        """The partition to which a row must go; None if it may go to any.

        :raises InvalidJob: its id or its keys name different ones.
        """
        home = home_of(row, self._store.spread_now.homes)
        job_id = row[0]
        if job_id.endswith(OPEN):
            return home
        own = partition_of(job_id)
        if own >= len(self._store.parts):
            raise InvalidJob(
                f"id {job_id!r} names partition {own}, and the queue has {len(self._store.parts)}: leave the ending out"
            )
        if home is not None and home != own:
            ending = f"with the ending ~{home}" if home else "without an ending"
            raise InvalidJob(
                f"id {job_id!r} names partition {own}, and its keys or partition_by belong to partition {home}: give it"
                f" an id {ending}, or none"
            )
        return own

    def _next(self) -> int:
        """The partition for a single job. It stays the same while jobs gather for one trip of its producer."""
        producer = self._of(self._turn % self._store.spread_now.count)
        gathered = producer.gathered
        if gathered is None or gathered >= BATCH or (not gathered and producer.trips >= self._until):
            self._pass_on()
        return self._turn

    def _pass_on(self) -> int:
        self._turn = (self._turn + 1) % self._store.spread_now.count
        self._until = self._of(self._turn).trips + TRIPS
        return self._turn


def _is_free(row: Entry) -> bool:
    """Whether nothing of the row says where it goes. So much is known without looking at its keys."""
    job_id, _, options_row, _, uniqueness, partition_by = row
    return not options_row and not uniqueness and partition_by is None and job_id[-1] == OPEN


def _placed(row: Entry, partition: int) -> Entry:
    """The row, with the partition in its id. A row that has it already stays as it is."""
    job_id = row[0]
    return (in_partition(job_id[:-1], partition), *row[1:]) if job_id.endswith(OPEN) else row
