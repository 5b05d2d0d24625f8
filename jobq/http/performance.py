"""GET /performance and GET /scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import UNSET, Meta, UnsetType

from jobq.engine.queue.scale import REPLICAS_MAX, SLOTS_MAX, TARGET_MAX
from jobq.http.call import given, reply
from jobq.http.schema import In

if TYPE_CHECKING:
    from aiohttp import web

    from jobq.http.call import ApiCall


class PerformanceQuery(In):
    """The window: 1h, 24h or 7d."""

    window: Annotated[str, Meta(max_length=80, description="1h, 24h or 7d")] = "1h"


class ScaleQuery(In):
    """What an autoscaler wants."""

    target: Annotated[float, Meta(ge=1, le=TARGET_MAX, description="seconds in which the backlog should be done")] = 60
    min: Annotated[int, Meta(ge=0, le=REPLICAS_MAX, description="the fewest replicas")] = 0
    max: Annotated[int, Meta(ge=0, le=REPLICAS_MAX, description="the most replicas")] = 100
    slots: Annotated[int, Meta(ge=1, le=SLOTS_MAX, description="jobs that a worker runs at a time")] | UnsetType = UNSET


async def performance(call: ApiCall) -> web.Response:
    return reply(await call.queue.performance(call.query(PerformanceQuery).window))


async def scale(call: ApiCall) -> web.Response:
    query = call.query(ScaleQuery)
    return reply(await call.queue.scale(target=query.target, least=query.min, most=query.max, slots=given(query.slots)))
