"""The routes of circuit breakers: what they take, what they answer and what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from jobq.engine.model.breaker import BreakerRow  # noqa: TC001 - msgspec reads the annotation
from jobq.engine.model.job import DELAY_MAX_MS
from jobq.http import schema
from jobq.http.call import ApiCall, decode, reply

if TYPE_CHECKING:
    from aiohttp import web


class TripBreaker(schema.In):
    """For how long the breaker is open; null: as its task declares."""

    time: Annotated[int, Meta(ge=1, le=DELAY_MAX_MS, description="ms")] | None = None


class Breakers(msgspec.Struct, frozen=True):
    """The circuit breakers of the queue's types."""

    breakers: list[BreakerRow]


class BreakerRemoved(msgspec.Struct, frozen=True):
    """``returns``: workers or servers that run declare the breaker, and write it again within 30 seconds."""

    type: str
    returns: bool


_trip = msgspec.json.Decoder(TripBreaker)


async def breakers(call: ApiCall) -> web.Response:
    return reply(Breakers(await call.queue.breakers()))


async def trip_breaker(call: ApiCall) -> web.Response:
    queue, type_ = call.queue, call.request.match_info["type"]
    time = decode(_trip, await call.body()).time
    row = await queue.trip_breaker(type_, None if time is None else time / 1000)
    call.audit("trip breaker", queue, type=type_, ms=time)
    return reply(row)


async def reset_breaker(call: ApiCall) -> web.Response:
    queue, type_ = call.queue, call.request.match_info["type"]
    row = await queue.reset_breaker(type_)
    call.audit("reset breaker", queue, type=type_)
    return reply(row)


async def remove_breaker(call: ApiCall) -> web.Response:
    queue, type_ = call.queue, call.request.match_info["type"]
    returns = await queue.remove_breaker(type_)
    call.audit("remove breaker", queue, type=type_)
    return reply(BreakerRemoved(type_, returns))
