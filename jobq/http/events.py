"""Events of jobs as Server-Sent Events: GET /events for a queue, or for one job with ``?job=``."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, cast

import msgspec
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from jobq.engine.model.event import CURSOR_MAX, EventLevel, QueueEvent
from jobq.engine.queue.upcoming import Upcoming
from jobq.errors import JobNotFound
from jobq.http import feeds, schema
from jobq.http.call import ApiCall, decode, given, no_content, reply
from jobq.http.feeds import QUIET, problem_event
from jobq.http.streams import stream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aiohttp import web

    from jobq.engine.model.event import EventKind
    from jobq.engine.queue.queue import Queue

_encode = msgspec.json.Encoder().encode


class EventsQuery(schema.In):
    """Which events. The header Last-Event-ID, which browsers send when they connect again, replaces ``since``."""

    job: (
        Annotated[str, Meta(max_length=300, description="Only those of this job; the stream ends with it")] | UnsetType
    ) = UNSET
    since: (
        Annotated[str, Meta(max_length=CURSOR_MAX, description="The cursor of the last event that you know, or a time")]
        | UnsetType
    ) = UNSET
    names: Annotated[str, Meta(max_length=100, description="With commas: completed,failed")] | UnsetType = UNSET


class SetEvents(schema.In):
    """Which events a queue tells."""

    events: Annotated[EventLevel, Meta(description='"all": also each start and each progress.')]


class EventsSet(msgspec.Struct, frozen=True):
    """Which events a queue tells."""

    queue: str
    events: EventLevel


_set = msgspec.json.Decoder(SetEvents)


async def set_events(call: ApiCall) -> web.Response:
    """PUT /events."""
    body, queue = decode(_set, await call.body()), call.queue
    await queue.set_events(body.events)
    call.audit("set events", queue, events=body.events)
    return reply(EventsSet(queue.name, body.events))


async def events(call: ApiCall) -> web.StreamResponse:
    """GET /events."""
    query = call.query(EventsQuery)
    queue, job = (call.queue, None) if query.job is UNSET else call.job(query.job)
    known = call.request.headers.get("Last-Event-ID")
    since = given(query.since) if known is None else known
    names = None if query.names is UNSET else cast("list[EventKind]", query.names.split(","))
    # A client may act as soon as the answer begins, and has to hear of what follows. So the place is taken before.
    now = await queue.event_cursor() if since is None else None
    ended = job is not None and await _has_ended(queue, job, known=since is not None)
    # What a job that ended before did comes from its row, not from the stream.
    batches = queue.event_batches(since=since if ended or since is not None else now, job=job, names=names)
    async with aclosing(Upcoming(batches)) as upcoming:
        # Its events come at once, or there is an error, which can still become the answer. A browser connects again
        # after the end of each stream, until it gets 204.
        if ended and await upcoming.arrives(feeds.HEARTBEAT) and upcoming.peek() is None and known is not None:
            return no_content()
        return await stream(call, _written(upcoming))


async def _has_ended(queue: Queue, job: str, *, known: bool) -> bool:
    """Whether a job has ended. ``known``: the caller has heard of it, so it may be removed already.

    :raises JobNotFound: there is no such job, and it is not known.
    """
    try:
        return (await queue.get(job)).finished_at is not None
    except JobNotFound:
        if not known:
            raise
        return True


async def _written(upcoming: Upcoming[list[QueueEvent]]) -> AsyncGenerator[bytes]:
    while True:
        if not await upcoming.arrives(feeds.HEARTBEAT):
            yield QUIET
            continue
        try:
            batch = upcoming.take()
        except Exception as error:  # noqa: BLE001 - the listener is told, and connects again
            yield problem_event(error)
            return
        if batch is None:
            return
        yield b"".join(map(_piece, batch))


def _piece(event: QueueEvent) -> bytes:
    full = event if event.job is None else replace(event, job=f"{event.queue}:{event.job}")
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event.cursor.encode(), event.name.encode(), _encode(full))
