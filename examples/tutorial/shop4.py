"""Step 4: webhooks are acknowledged at once, worked on once, and in order for each customer."""

import hashlib
import hmac
import os
from collections.abc import AsyncIterator
from typing import Literal

import msgspec
from aiohttp import web

from jobq import Concurrency, Discard, Queue, Worker, create_app

queue = Queue("shop")
SECRET = os.environ.get("WEBHOOK_SECRET", "for development").encode()
balances: dict[str, int] = {}
"""Stands for your database."""


class Payment(msgspec.Struct):
    """A webhook of the payment service."""

    event: str
    customer: str
    kind: Literal["paid", "refunded"]
    cents: int


@queue.task(attempts=10, limits=[Concurrency(1, by="customer")])
async def book(event: str, customer: str, kind: str, cents: int) -> int:
    """Change the balance. One job of a customer runs at a time, in the order in which they came."""
    if cents <= 0:
        raise Discard(f"event {event} is about {cents} cents, and another attempt would not change that")
    balances[customer] = balances.get(customer, 0) + (cents if kind == "paid" else -cents)
    return balances[customer]


async def receive(request: web.Request) -> web.Response:
    """Check the signature, enqueue, and answer within milliseconds. The sender repeats what it got no answer for."""
    body = await request.read()
    signature = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(signature, request.headers.get("X-Signature", "")):
        raise web.HTTPUnauthorized(reason="the signature is wrong")
    payment = msgspec.json.decode(body, type=Payment)
    key = f"payment:{payment.event}"
    job = await book.options(key=key, key_ttl=86_400).enqueue(**msgspec.structs.asdict(payment))
    return web.json_response({"job": f"shop:{job.id}", "duplicate": job.duplicate}, status=202)


async def background(_: web.Application) -> AsyncIterator[None]:
    """A worker inside the service, for now."""
    async with queue, Worker(queue) as worker:
        worker.start()
        yield


def make_app() -> web.Application:
    """The service."""
    app = web.Application()
    app.router.add_post("/webhooks/payments", receive)
    app.cleanup_ctx.append(background)
    app.add_subapp("/jobq", create_app(queue))
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=8000)
