"""Every point at which the follower of a queue's events can fail or die. Whatever was hit: each event that a webhook
wants becomes one delivery, in the order of its job's events, and no event of before the webhook does."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest

from jobq import Connection, Queue
from jobq.engine.model.webhook import Delivery
from jobq.engine.queue import announce, events
from jobq.engine.queue.announce import Announcer
from jobq.engine.store import route as route_module
from tests.chaos.faulty import Fault, FaultyConnection
from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.conftest import Server

pytestmark = pytest.mark.slow

JOBS = 3


@asynccontextmanager
async def following(queue: Queue, deliveries: Queue) -> AsyncIterator[None]:
    task = asyncio.create_task(Announcer(queue, deliveries).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def has_followed(queue: Queue) -> bool:
    """Whether all events were passed on, and the follower has stored it."""
    stored = await queue.store.command(b"HGET", queue.store.keys["webhook_facts"], b"cursor")
    return stored == await queue.store.last_event()


async def ended(faulty: FaultyConnection, queue: Queue) -> bool:
    return faulty.dead or await has_followed(queue)


async def check(queue: Queue, deliveries: Queue) -> None:
    rows = (await deliveries.page(limit=100)).jobs
    told: dict[str, list[tuple[str, str | None, str]]] = {}
    for row in rows:
        delivery = msgspec.json.decode(row.payload, type=Delivery)
        told.setdefault(delivery.body["data"]["id"], []).append((delivery.body["type"], delivery.previous, row.id))
    assert sorted(told) == [f"{queue.name}:j{n}" for n in range(JOBS)]
    for some in told.values():
        some.sort(key=lambda event: event[2])
        assert [kind for kind, _, _ in some] == ["job.killed", "job.retried", "job.killed"]
        ids = [event_id for _, _, event_id in some]
        # The death of a follower may leave the order to the times of the deliveries, but never turns it round.
        for (_, previous, _), before in zip(some, [None, *ids], strict=False):
            assert previous in (before, None)


@pytest.mark.parametrize("fault", list(Fault))
async def test_each_event_becomes_one_delivery_whatever_trip_fails(
    fault: Fault, server: Server, connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(route_module, "PAUSES", ())
    monkeypatch.setattr(announce, "LOOK", 0.005)
    monkeypatch.setattr(announce, "ROWS", 4)
    monkeypatch.setattr(events, "AGAIN", 0.01)
    hits: set[str] = set()
    for at in range(60):
        name = f"hooks-{fault.name}-{at}".lower().replace("_", "-")
        now = 1_700_000_000_000
        faulty = FaultyConnection(server.url, fault=fault)

        def clock() -> int:
            return now  # noqa: B023 - the test moves it within the round

        async with AsyncExitStack() as stack:
            healthy, queue = [
                await stack.enter_async_context(Queue(name, one, clock=clock)) for one in (connection, faulty)
            ]
            deliveries, successor = [await stack.enter_async_context(one.webhook_queue()) for one in (queue, healthy)]
            await (await healthy.enqueue("old", delay=60)).kill()
            await healthy.put_webhook("crm", "https://example.com/hook", events=["killed", "retried"])
            jobs = [await healthy.enqueue("t", id=f"j{n}", delay=60) for n in range(JOBS)]
            for job in jobs:
                await job.kill()
                await healthy.retry(job.id)
                await job.kill()
            faulty.at = faulty.trips + at
            async with following(queue, deliveries):
                await wait_until(lambda: ended(faulty, healthy), "the follower to end or to die")  # noqa: B023
            hits.add(faulty.hit)
            now += int(1000 * announce.LEASE)
            async with following(healthy, successor):
                await wait_until(lambda: has_followed(healthy), "the events to be followed")  # noqa: B023
            await check(healthy, successor)
            faulty.dead = False
        await faulty.aclose()
        if not faulty.hit:
            break
    assert hits >= {"follow_events", "rows", "enqueue", ""}, "all trips were hit, and then none"
