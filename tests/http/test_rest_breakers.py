"""Circuit breakers over REST: they are listed, tripped, reset and removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rest import enqueue, problem

from jobq import Breaker, Queue
from jobq.engine.queue.breakers import declare_breakers
from jobq.engine.queue.published import Publisher

if TYPE_CHECKING:
    from rest import NewClient

    from jobq import Connection


async def test_a_breaker_is_listed_tripped_reset_and_removed(new_client: NewClient, connection: Connection):
    queue = Queue("mail", connection)

    @queue.task(breaker=Breaker(rate=0.25, runs=8, open_for="1m"))
    async def send() -> None: ...

    client = await new_client(queue)
    await declare_breakers(queue.store, queue.declared_breakers)
    rest = {"rate": 0.25, "runs": 8, "open_for": 60_000, "failed": 0, "seen": 0, "held": 0, "active": 0}
    [row] = (await (await client.get("/breakers")).json())["breakers"]
    since = row.pop("since")
    assert row == {"type": "send", "state": "closed", "open_until": None, **rest}
    response = await client.post("/breakers/send/trip", json={})
    row = await response.json()
    assert (response.status, row["state"], row["open_until"] - row["since"]) == (200, "open", 60_000)
    assert row["since"] >= since
    row = await (await client.post("/breakers/send/trip", json={"time": 5_000})).json()
    # Of two changes in one ms the second gets the next ms, so that they do not seem to be one.
    assert row["open_until"] - row["since"] in (5_000, 4_999)
    await enqueue(client, type="send")
    row = await (await client.post("/breakers/send/reset")).json()
    assert (row["state"], row["open_until"]) == ("closed", None)
    for wrong in ({"time": 0}, {"time": "1m"}, {"for": 1}):
        assert (await client.post("/breakers/send/trip", json=wrong)).status in (400, 422)
    body = await problem(await client.post("/breakers/sent/trip", json={}), 404, "unknown-breaker")
    assert body["known"] == ["send"]
    await problem(await client.post("/breakers/sent/reset"), 404, "unknown-breaker")
    await declare_breakers(queue.store, {"old": Breaker()})
    response = await client.delete("/breakers/old")
    assert (response.status, await response.json()) == (200, {"type": "old", "returns": False})
    assert [row["type"] for row in (await (await client.get("/breakers")).json())["breakers"]] == ["send"]
    body = await problem(await client.delete("/breakers/sent"), 404, "unknown-breaker")
    assert body["known"] == ["send"]


async def test_a_removed_breaker_that_a_server_declares_returns(new_client: NewClient, connection: Connection):
    queue = Queue("mail", connection)

    @queue.task(breaker=Breaker())
    async def send() -> None: ...

    client = await new_client(queue)
    await Publisher(
        queue.tasks, queue.rules, queue.name, "server", breakers=queue.declared_breakers
    ).publish(queue.store)  # fmt: skip
    response = await client.delete("/breakers/send")
    assert await response.json() == {"type": "send", "returns": True}
