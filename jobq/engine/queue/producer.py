"""Group commit: concurrent enqueues of one process share trips.

While a trip is on its way, the next batch gathers. No timer adds latency. A single ``enqueue`` makes its own trip
without another task. Each durability has a producer of its own. So calls with different durabilities never share a
trip: no call confirms less than it was asked for, and none waits for more.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from jobq.engine.log import debugging, get_logger
from jobq.engine.model.entry import Entry
from jobq.engine.model.job import Accepted, State
from jobq.engine.store import OVERFLOW_PAGE
from jobq.errors import GroupFull, IdempotencyConflict, InvalidJob, JobIdTaken, KeyTaken, StoreUnavailable, twin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from jobq.engine.model.job import Done, Durability
    from jobq.engine.store import Call, Store

log = get_logger("jobq.queue")

BATCH: Final = 250
"""Plain jobs per trip. With so many the cost of the trip itself hardly counts."""
CALL: Final = 125
"""Plain jobs per script call. A table that Redis has just resized costs a page fault at nearly every access. On
a virtual machine that has just started, a fault takes 25 us, and 250 jobs held the server for 16 ms."""
WITH_OPTIONS: Final = 2
"""A job with options counts as so many jobs, because it is written into twice as many tables."""
BATCH_BYTES: Final = 1 << 20
"""Bytes per trip, so that large payloads do not delay the other calls."""

Answer = Accepted | IdempotencyConflict | JobIdTaken | KeyTaken | GroupFull | InvalidJob
LIFO_REFUSED: Final = (
    "lifo=True: this queue has aging, so that no job starves, and a job that goes before all others cannot be added;"
    " give it a lower priority number"
)
_Waiting = tuple[Entry, "asyncio.Future[Accepted]", float]
"""A row that waits for the next trip, the future of its caller, and when the wait began (monotonic seconds)."""
_TOO_LATE: Final = StoreUnavailable("no answer from Redis: the trip before this one used up the time")


class PartitionsFound(Exception):
    """The queue got partitions after this program had opened it. Nothing was written, because the rows have no place
    yet. The session has another producer now."""


class Producer:
    """Sends rows to the store. ``durability``: the confirmation that an enqueue waits for.

    ``checked``: the server is known to give it. Otherwise the server is checked before the first trip. ``before`` is
    called before each trip. ``whole``: the store of all partitions, if this one is not the first. ``learn`` asks for
    the number of partitions once the queue is registered, and returns whether there are several.
    """

    def __init__(
        self,
        store: Store,
        durability: Durability,
        durability_timeout_ms: int,
        *,
        checked: bool,
        before: Callable[[], None] | None = None,
        whole: Store | None = None,
        learn: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._store = store
        self._durability = durability
        self._timeout_ms = durability_timeout_ms
        self._pending: list[_Waiting] = []
        self._flights = 0
        self._checked = checked
        self._before = before
        self._whole = whole
        self._learn = learn
        self.trips = 0
        """How many have begun."""
        self._registered = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def gathered(self) -> int | None:
        """How many rows wait for the next trip; None if no trip is on its way."""
        return len(self._pending) if self._flights else None

    async def send(self, row: Entry) -> Accepted:
        """Enqueue one row, together with others that are enqueued at the same time.

        :raises StoreError: the row may not be written. Repeating the call is harmless.
        :raises DurabilityRefused: nothing was written.
        :raises IdempotencyConflict: the key was used for another request.
        :raises JobIdTaken: another job has this id.
        :raises KeyTaken: another job holds the key, and ``unique`` says "fail".
        """
        if not self._flights:
            self._flights += 1
            try:
                answer = (await self.trip([row]))[0]
            finally:
                self._flights -= 1
                if self._pending:
                    self._start_flight()
        else:
            future: asyncio.Future[Accepted] = self._loop.create_future()
            self._pending.append((row, future, monotonic()))
            answer = await future
        if not isinstance(answer, Accepted):
            raise answer
        return answer

    async def send_many(self, rows: list[Entry]) -> list[Answer]:
        """Enqueue many rows in their order, ``BATCH`` a trip.

        :raises StoreError: some rows may be written. Repeating the same rows is harmless.
        """
        answers: list[Answer] = []
        for batch in batches(rows):
            answers += await self.trip(batch)
        return answers

    def _start_flight(self) -> None:
        self._flights += 1
        task = self._loop.create_task(self._fly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fly(self) -> None:
        timeout = self._store.connection.timeout
        try:
            while self._pending:
                batch = self._take()
                # The wait for this trip counts too. A caller that has waited for nearly a whole timeout gets its error
                # without another trip. The others get the rest of the oldest one's time, or at least a fifth of the
                # timeout.
                left = batch[0][2] + timeout - monotonic()
                if left <= timeout / 10:
                    late = monotonic() - timeout * 0.9
                    _fail([one for one in batch if one[2] <= late], _TOO_LATE)
                    self._pending[:0] = [one for one in batch if one[2] > late]
                    continue
                try:
                    answers = await self.trip([one[0] for one in batch], max(left, timeout / 5))
                except BaseException as error:
                    _fail(batch, error if isinstance(error, Exception) else asyncio.CancelledError())
                    if not isinstance(error, Exception):
                        raise
                    continue
                for (_, future, _), answer in zip(batch, answers, strict=True):
                    if future.done():
                        continue
                    if isinstance(answer, Accepted):
                        future.set_result(answer)
                    else:
                        future.set_exception(answer)
        finally:
            self._flights -= 1

    def _take(self) -> list[_Waiting]:
        count = _fitting([one[0] for one in self._pending[:BATCH]], 0)
        batch, self._pending = self._pending[:count], self._pending[count:]
        return batch

    async def trip(self, rows: list[Entry], within: float | None = None) -> list[Answer]:
        """Enqueue rows that fit into one trip.

        :raises StoreError: some rows may be written. Repeating the same rows is harmless.
        :raises PartitionsFound: nothing was written, and the rows must be made again.
        """
        calls, starts = self._calls(rows)
        self.trips += 1
        if self._before is not None:
            self._before()
        if not self._checked:
            # A refusal is not remembered, because an operator may repair the server.
            await self._store.check(self._durability)
            self._checked = True
        if not self._registered:
            await self._store.register()
            # From here on the queue counts as used, so that partitions which are declared later have one home. Those
            # that were declared since this program opened the queue may have more.
            if self._learn is not None and await self._learn():
                raise PartitionsFound
            self._registered = True
        replies = await self._do(calls, within)
        if any(reply and not reply[0] for reply in replies):
            # The queue is new, or was dropped since we registered it. Without an entry it would not be listed, and
            # without the number of its partitions this one would not be found.
            if self._whole is not None:
                await self._whole.register()
            await self._store.register()
        answers, undecided = _read(rows, starts, replies)
        if undecided:
            await self._decide(undecided, answers)
        if debugging("jobq.queue"):
            for answer in answers:
                if isinstance(answer, Accepted):
                    how = "found by its key" if answer.duplicate else "enqueued"
                    log.debug(f"Job {answer.id} was {how}", queue=self._store.name, job_id=answer.id)
        return answers

    async def _do(self, calls: list[Call[list[Any]]], within: float | None = None) -> list[list[Any]]:
        if self._durability != "none":
            return await self._store.do_durably(calls, self._durability, self._timeout_ms)
        if len(calls) > 1:
            return await self._store.do_all(calls, within=within)
        # the shorter way, which every single enqueue takes
        return [await self._store.do(calls[0], within=within)]

    async def _decide(self, undecided: dict[str, int], answers: list[Answer]) -> None:
        """Learn what happened to jobs over a limit that has an action. ``undecided``: their ids and places."""
        ids = list(undecided)
        pages = [ids[at : at + OVERFLOW_PAGE] for at in range(0, len(ids), OVERFLOW_PAGE)]
        replies = await self._do([self._store.overflow(page) for page in pages])
        for page, words in zip(pages, replies, strict=True):
            for job_id, word in zip(page, words, strict=True):
                if word:
                    state = State.FAILED if word == b"dropped" else None
                    answers[undecided[job_id]] = Accepted(job_id, state=state, done=cast("Done", word.decode()))

    def _calls(self, rows: list[Entry]) -> tuple[list[Call[list[Any]]], list[int]]:
        """The calls that enqueue the rows in their order, and the place of the first row of each.

        Jobs with keys have a script of their own.
        """
        if len(rows) == 1:
            job_id, spec, options, _, uniqueness, _ = rows[0]
            if not uniqueness:
                return [self._store.enqueue([job_id, spec, options])], [0]
            return [self._store.enqueue_unique([job_id, spec, options, uniqueness])], [0]
        keyed = any(row[4] for row in rows)
        step = CALL
        if len(rows) > CALL // WITH_OPTIONS and (keyed or any(row[2] for row in rows)):
            step = CALL // WITH_OPTIONS
        calls: list[Call[list[Any]]] = []
        starts: list[int] = []
        at = 0
        while at < len(rows):
            page = rows[at : at + step]
            if keyed:
                # The jobs up to the first one of the other kind.
                kind = bool(page[0][4])
                page = page[: next((i for i, row in enumerate(page) if bool(row[4]) != kind), len(page))]
            flat: list[Any] = []
            if page[0][4]:
                for job_id, spec, options, _, uniqueness, _ in page:
                    flat += (job_id, spec, options, uniqueness)
                calls.append(self._store.enqueue_unique(flat))
            else:
                for job_id, spec, options, _, _, _ in page:
                    flat += (job_id, spec, options)
                calls.append(self._store.enqueue(flat))
            starts.append(at)
            at += len(page)
        return calls, starts

    async def drain(self) -> None:
        """Wait for the trips that are on their way. Their failures are raised to the callers of ``send``."""
        while self._tasks:
            await asyncio.wait(self._tasks)


def _fail(batch: list[_Waiting], error: BaseException) -> None:
    """Each caller gets an exception of its own, because one for all would collect the tracebacks of all."""
    for _, future, _ in batch:
        if not future.done():
            future.set_exception(twin(error))


def _read(rows: list[Entry], starts: list[int], replies: list[list[Any]]) -> tuple[list[Answer], dict[str, int]]:
    """An answer for each row, and the ids and places of those that ``overflow`` decides about.

    ``replies`` are those of the calls, whose first rows are at ``starts``.
    """
    answers: list[Answer] = [Accepted(row[0]) for row in rows]
    undecided: dict[str, int] = {}
    for start, refused in zip(starts, replies, strict=True):
        width = 5 if rows[start][4] else 3
        for at in range(0, len(refused), width):
            if not refused[at]:
                continue  # This group says that the queue is new.
            place: int = start + refused[at] - 1
            row = rows[place]
            earlier = refused[at + 1].decode()
            if refused[at + 2] == b"over":
                undecided[row[0]] = place
                continue
            if refused[at + 2] == b"full":
                answers[place] = GroupFull(row[2].partition("\v@")[2].partition("\n")[0].partition("\v")[0])
                continue
            if refused[at + 2] == b"lifo":
                answers[place] = InvalidJob(LIFO_REFUSED)
                continue
            if earlier == row[0]:
                # The row's own id: this call was executed before, unless another job has the id.
                if refused[at + 2] == b"!":
                    answers[place] = JobIdTaken(earlier)
                continue
            answers[place] = _held(row, earlier, *(word.decode() for word in refused[at + 2 : at + 5]))
    return answers, undecided


def _held(row: Entry, earlier: str, fingerprint: str, state: str, done: str) -> Answer:
    """The answer for a row whose key is held by an earlier job."""
    if row[3] != "-" and fingerprint not in ("-", row[3]):
        return IdempotencyConflict(earlier)
    if done == "fail":
        return KeyTaken(earlier, row[4].partition("\n")[0].split(" k:", 1)[1], state)
    return Accepted(earlier, duplicate=True, state=State(state) if state else None, done=cast("Done", done))


def _fitting(rows: list[Entry], at: int) -> int:
    """How many of the rows from ``at`` on go into one trip. At least one does."""
    weight = size = 0
    for count, (_, spec, options, _, uniqueness, _) in enumerate(rows[at : at + BATCH]):
        weight += WITH_OPTIONS if options or uniqueness else 1
        size += len(spec)
        if count and (weight > BATCH or size > BATCH_BYTES):
            return count
    return min(BATCH, len(rows) - at)


def batches(rows: list[Entry]) -> Iterator[list[Entry]]:
    """The rows of each trip, in their order."""
    at = 0
    while at < len(rows):
        count = _fitting(rows, at)
        yield rows[at : at + count]
        at += count
