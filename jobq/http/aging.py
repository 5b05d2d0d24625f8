"""The route of aging: what it takes, what it answers and what it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from jobq.engine.model.aging import AGING_MAX_MS
from jobq.http import schema
from jobq.http.call import ApiCall, decode, reply

if TYPE_CHECKING:
    from aiohttp import web


class SetAging(schema.In):
    """How much waiting a step of priority is worth."""

    aging: Annotated[int, Meta(ge=0, le=AGING_MAX_MS, description="In ms. 0: priorities are absolute.")]


class AgingSet(msgspec.Struct, frozen=True):
    """How much waiting a step of priority is worth, in ms. 0: priorities are absolute."""

    queue: str
    aging: int


_set = msgspec.json.Decoder(SetAging)


async def set_aging(call: ApiCall) -> web.Response:
    body, queue = decode(_set, await call.body()), call.queue
    await queue.set_aging(body.aging / 1000 if body.aging else None)
    call.audit("set aging", queue, aging=body.aging)
    return reply(AgingSet(queue.name, body.aging))
