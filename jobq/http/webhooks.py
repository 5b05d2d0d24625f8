"""The routes of webhooks: what they take, what they answer and what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from jobq.engine.model.webhook import URL_MAX, USUAL, Webhook, WebhookDelivery
from jobq.engine.queue.webhooks import DELIVERIES_MAX
from jobq.http import schema
from jobq.http.call import ApiCall, decode, no_content, reply

if TYPE_CHECKING:
    from aiohttp import web


class PutWebhook(schema.In):
    """A webhook."""

    url: Annotated[str, Meta(max_length=URL_MAX, description="An http or https URL, without user and password")]
    events: (
        Annotated[list[str], Meta(description="Names of events; by default the ends of jobs: completed, failed, ...")]
        | UnsetType
    ) = UNSET
    types: Annotated[list[str] | None, Meta(description="Only of jobs of these types")] = None
    secret: Annotated[str, Meta(max_length=200, description="One of your own: whsec_ and base64")] | UnsetType = UNSET
    enabled: bool = True


class Webhooks(msgspec.Struct, frozen=True):
    """The webhooks of a queue."""

    webhooks: list[Webhook]


class DeliveriesQuery(schema.In):
    """How many."""

    limit: Annotated[int, Meta(ge=1, le=DELIVERIES_MAX)] = 20


class WebhookDeliveries(msgspec.Struct, frozen=True):
    """The last deliveries of a webhook that were tried, newest first."""

    deliveries: list[WebhookDelivery]


class WebhookTested(msgspec.Struct, frozen=True):
    """The job that delivers the test."""

    id: str


_put = msgspec.json.Decoder(PutWebhook)


async def webhooks(call: ApiCall) -> web.Response:
    return reply(Webhooks(await call.queue.webhooks()))


async def show_webhook(call: ApiCall) -> web.Response:
    return reply(await call.queue.get_webhook(_name(call)))


async def webhook_deliveries(call: ApiCall) -> web.Response:
    limit = call.query(DeliveriesQuery).limit
    return reply(WebhookDeliveries(await call.queue.webhook_deliveries(_name(call), limit=limit)))


async def put_webhook(call: ApiCall) -> web.Response:
    body, queue, name = decode(_put, await call.body()), call.queue, _name(call)
    found = await queue.put_webhook(
        name,
        body.url,
        events=USUAL if body.events is UNSET else body.events,
        types=body.types,
        secret=None if body.secret is UNSET else body.secret,
        enabled=body.enabled,
    )
    call.audit("set webhook", queue, webhook=name)
    return reply(found)


async def delete_webhook(call: ApiCall) -> web.Response:
    queue, name = call.queue, _name(call)
    await queue.delete_webhook(name)
    call.audit("remove webhook", queue, webhook=name)
    return no_content()


async def rotate_webhook(call: ApiCall) -> web.Response:
    queue, name = call.queue, _name(call)
    found = await queue.rotate_webhook(name)
    call.audit("rotate webhook", queue, webhook=name)
    return reply(found)


async def test_webhook(call: ApiCall) -> web.Response:
    queue, name = call.queue, _name(call)
    job = await queue.test_webhook(name)
    call.audit("test webhook", queue, webhook=name)
    return reply(WebhookTested(f"{job.queue.name}:{job.id}"), 202)


def _name(call: ApiCall) -> str:
    return call.request.match_info["name"]
