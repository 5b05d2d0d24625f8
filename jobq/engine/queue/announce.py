"""Turns the events of a queue into the jobs that deliver them to webhooks.

Any number of processes may do this; one of them follows at a time. It stores how far it has come only after it has
enqueued, and the id of a delivery follows from the webhook and the event. So a process that dies in between makes the
next one enqueue the same ids again, which Redis knows already: no event is left out, and none is delivered by two jobs.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from jobq.engine.log import get_logger
from jobq.engine.model.event import Place, QueueEvent, earliest, end_of, event_of_row, is_behind, read_cursor
from jobq.engine.model.ids import new_id
from jobq.engine.model.job import State
from jobq.engine.model.rows import job_row
from jobq.engine.model.unreadable import as_text
from jobq.engine.model.webhook import Delivery, timestamp
from jobq.engine.queue import webhooks
from jobq.engine.queue.upcoming import Upcoming
from jobq.engine.queue.webhooks import TYPE, read_webhook
from jobq.errors import InvalidJob, InvalidQuery, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobq.engine.model.job import NewJob
    from jobq.engine.model.views import JobRow
    from jobq.engine.model.webhook import StoredWebhook
    from jobq.engine.queue.queue import Queue

log = get_logger("jobq.webhooks")

LEASE: Final = 10.0
"""Seconds after which another process follows, if this one does not say that it still does."""
LOOK = 2.0
"""Seconds between two looks for events, or for a first webhook."""
SLOWEST: Final = 60.0
"""The most seconds until it is tried again after an error that nobody expected."""
ROWS: Final = 50
REMEMBERED: Final = 50_000
"""Jobs of which the last delivery is remembered, so that the next one comes after it."""


class Told(NamedTuple):
    """A webhook, and the places in the partitions behind which it is told of events."""

    hook: StoredWebhook
    since: list[Place]
    row: bytes


class Announcer:
    """Follows the events of an open queue, and enqueues deliveries in ``deliveries``, which is open too.

    ``failed``: called after an error that nobody expected.
    """

    def __init__(self, queue: Queue, deliveries: Queue, failed: Callable[[], None] | None = None) -> None:
        self._failed = failed
        self._queue = queue
        self._deliveries = deliveries
        self._name = new_id()
        self._hooks: dict[str, Told] = {}
        self._last: OrderedDict[tuple[str, str], str] = OrderedDict()
        """Webhook and job -> the last delivery that was enqueued."""

    async def run(self) -> None:
        """Follow until cancelled. After any error, and while another process follows, it tries again and again."""
        failures = 0
        while True:
            wait = LOOK
            try:
                await self._follow()
                failures = 0
            except StoreError as error:
                log.warning(
                    f"Events of queue {self._queue.name} are not passed on to webhooks now; tried again: {error}",
                    queue=self._queue.name, error=str(error),
                )  # fmt: skip
            except Exception as error:
                wait = min(SLOWEST, LOOK * 2 ** min(failures, 10))
                failures += 1
                log.exception(
                    f"The events of queue {self._queue.name} could not be passed on to webhooks; tried again in"
                    f" {wait:g} s",
                    queue=self._queue.name, error=str(error), in_s=wait,
                )  # fmt: skip
                if self._failed is not None:
                    self._failed()
            await asyncio.sleep(wait)

    async def _turn(self, fence: int = 0, cursor: str = "") -> tuple[int, str]:
        """The fence of this process's turn to follow, 0 if it has none, and the stored cursor."""
        store = self._queue.store
        fence, stored = await store.do(store.follow_events(self._name, int(LEASE * 1000), fence, cursor))
        return fence, as_text(stored)

    async def _look(self) -> None:
        """Read the webhooks that are told of events."""
        self._hooks = {
            as_text(name): Told(hook, read_cursor(hook.since), facts.row)
            for name, facts in (await self._queue.store.webhooks()).items()
            if facts.disabled is None and facts.row and (hook := read_webhook(facts.row)) and hook.enabled
        }

    async def _bound(self) -> None:
        """Disable webhooks that are slower than their events come. Their deliveries would fill Redis."""
        if not self._hooks:
            return
        held = [await part.command(b"ZCARD", part.keys["held"]) for part in self._deliveries.store.parts]
        if sum(held) < webhooks.BACKLOG:
            return
        for name, count in (await webhooks.waiting_deliveries(self._deliveries)).items():
            if count >= webhooks.BACKLOG and (told := self._hooks.pop(name, None)) is not None:
                reason = (
                    f"{count} deliveries wait, because it fails or is slower than its events come: choose fewer events"
                    " or types, or let it answer before it does its work"
                )
                await webhooks.disable_webhook(self._queue, name, told.row, reason)

    async def _follow(self) -> None:
        fence, cursor = await self._turn()
        if not fence:
            return
        await self._remember()
        await self._look()
        try:
            since = read_cursor(cursor)
        except InvalidQuery:  # Nobody has followed yet, or it is damaged. No delivery that exists is made again.
            if not self._hooks:
                return
            cursor = earliest([told.hook.since for told in self._hooks.values()])
            since = read_cursor(cursor)
        async with aclosing(Upcoming(self._queue.event_batches(since=cursor))) as upcoming:
            while True:
                if await upcoming.arrives(LOOK):
                    batch = upcoming.take()
                    if batch is None:
                        return
                    # Look now, so that a webhook is told of each event that comes after it was set.
                    await self._look()
                    await self._bound()
                    await self._announce(batch, min(place.ms for place in since))
                    cursor = batch[-1].cursor
                    since = read_cursor(cursor)
                if (await self._turn(fence, cursor))[0] != fence:
                    return  # This process stalled and another one follows, or all webhooks were removed.

    async def _remember(self) -> None:
        """Read the deliveries that are left, so that later ones come after them."""
        self._last.clear()
        found: list[tuple[str, tuple[str, str]]] = []
        for state in (State.ACTIVE, State.WAITING, State.HELD, State.DELAYED):
            cursor: str | None = None
            while True:
                page = await self._deliveries.page(state, type=TYPE, limit=200, cursor=cursor)
                found += [
                    (row.id, (row.metadata["webhook"], row.metadata["job"]))
                    for row in page.jobs
                    if row.metadata and {"webhook", "job"} <= row.metadata.keys()
                ]
                cursor = page.cursor
                if cursor is None or len(found) >= REMEMBERED:
                    break
        for delivery, key in sorted(found, key=lambda one: _order(one[0])):
            self._last[key] = delivery

    async def _announce(self, batch: list[QueueEvent], since_ms: int) -> None:
        if not self._hooks:
            return
        if batch[0].name == "missed":
            batch = await self._missed(since_ms)
        wanted = {name for told in self._hooks.values() for name in told.hook.events}
        chosen = [event for event in batch if event.name in wanted and event.job is not None]
        for at in range(0, len(chosen), ROWS):
            some = chosen[at : at + ROWS]
            ids = list(dict.fromkeys(event.job for event in some if event.job is not None))
            rows: dict[str, JobRow] = {}
            if any(event.name != "removed" for event in some):
                while ids:
                    # Also of jobs whose own retention is over: they are stored for some seconds more.
                    found = await self._queue.store.do(self._queue.store.rows(ids, expired=True))
                    for one, row in zip(ids, found, strict=False):  # Large rows make the reply shorter.
                        if row:
                            rows[one] = job_row(self._queue.name, one, row)
                    ids = ids[len(found) :]
            news = [
                new
                for event in some
                for name, told in self._hooks.items()
                if (new := self._new(name, told, event, rows))
            ]
            if news:
                await self._submit(news)

    async def _submit(self, news: list[NewJob]) -> None:
        try:
            # A refusal in place of an answer: the delivery exists, and its job has changed since.
            await self._deliveries.submit_each(news)
        except InvalidJob:
            # One of them does not fit: the metadata or the error of its job is large. It must not stop all others.
            for new in news:
                try:
                    await self._deliveries.submit_each([new])
                except InvalidJob:
                    await self._submit_shortened(new)

    async def _submit_shortened(self, new: NewJob) -> None:
        try:
            await self._deliveries.submit_each([_shortened(new)])
        except InvalidJob as error:
            log.warning(
                f"Delivery {new.id} of queue {self._queue.name} was left out, because it cannot be enqueued: {error}",
                queue=self._queue.name, delivery=new.id, error=str(error),
            )  # fmt: skip

    def _new(self, name: str, told: Told, event: QueueEvent, rows: dict[str, JobRow]) -> NewJob | None:
        assert event.job is not None
        row = rows.get(event.job)
        hook = told.hook
        kind = event.type if row is None else row.type
        # If the type is not known any more, tell it: a receiver can pass over an event, but not miss one.
        if event.name not in hook.events or (hook.types is not None and kind is not None and kind not in hook.types):
            return None
        if not is_behind(event, told.since):
            return None
        delivery = f"{name}~{event.id}"
        previous = self._last.pop((name, event.job), None)
        if previous == delivery:
            previous = None  # It is enqueued again, and must not wait for itself.
        self._last[name, event.job] = delivery
        if len(self._last) > REMEMBERED:
            self._last.popitem(last=False)
        payload = Delivery(name, _body(event, row), previous, hook.created_at)
        return self._deliveries.new(
            TYPE, payload, id=delivery, metadata={"webhook": name, "job": event.job, "event": event.name}
        )

    async def _missed(self, since_ms: int) -> list[QueueEvent]:
        """Events were dropped before they were read. Find the ends of jobs in the jobs themselves."""
        found: list[QueueEvent] = []
        until_ms = 0
        for part in self._queue.store.parts:
            oldest = await part.oldest_event()
            # From that entry on the stream tells them.
            until_ms = max(until_ms, Place.of_entry(oldest).ms if oldest else self._queue.store.now_ms())
        for state in (State.COMPLETED, State.FAILED):
            cursor: str | None = None
            while True:
                page = await self._queue.briefs(state, limit=200, cursor=cursor)
                recent = [row for row in page.jobs if (row.finished_at or 0) >= since_ms]
                for row in recent:
                    if (row.finished_at or 0) > until_ms:
                        continue
                    name = end_of(row.state, row.error.type if row.error else None)
                    if name is not None:  # Otherwise somebody has retried it.
                        found.append(event_of_row(name, row.id, row.queue, row.finished_at or 0))
                cursor = page.cursor
                if cursor is None or len(recent) < len(page.jobs):
                    break
        log.warning(
            f"Events of queue {self._queue.name} were dropped before they were passed on to webhooks: {len(found)} ends"
            " of jobs since then were found in the jobs, and some of them may be delivered twice",
            queue=self._queue.name, found=len(found),
        )  # fmt: skip
        return sorted(found, key=lambda event: event.at)


def _order(delivery: str) -> tuple[int, ...]:
    """The order of deliveries in time, from their ids."""
    event = delivery.partition("~")[2]
    return tuple(int(number) for number in re.findall(r"[0-9]{1,15}", event)[:3])


def _shortened(new: NewJob) -> NewJob:
    """A delivery without what is large: metadata, error and progress of the job."""
    payload: dict[str, Any] = msgspec.json.decode(new.payload)
    data = payload["body"]["data"]
    for name in ("metadata", "error", "progress"):
        data.pop(name, None)
    return msgspec.structs.replace(new, payload=msgspec.Raw(msgspec.json.encode(payload)))


def _body(event: QueueEvent, row: JobRow | None) -> dict[str, Any]:
    """What is delivered. Payloads and results are left out: they may be large, or secret."""
    data: dict[str, Any] = {"id": f"{event.queue}:{event.job}", "queue": event.queue, "type": event.type}
    if row is not None:
        data |= {"type": row.type, "attempts_made": row.attempts_made, "metadata": row.metadata}
        if row.errors and event.name in ("retried", "failed", "killed", "expired"):
            data["error"] = {"type": row.errors[-1].type, "message": row.errors[-1].message}
    if event.value is not None:
        data["progress"] = event.value
    return {"type": f"job.{event.name}", "timestamp": timestamp(event.at), "data": data}
