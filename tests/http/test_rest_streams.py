"""Server-Sent Events: their listeners, their cost, and listeners that do not read."""

from __future__ import annotations

import asyncio
import json
import math
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientResponse, ClientSession
from rest import deaf, enqueue, problem, serving

from jobq import Connection, Queue
from jobq.http import feeds
from jobq.http import streams as live
from jobq.http.app import create_app
from jobq.http.auth import Scope, new_key
from jobq.http.serve import Deadlines
from tests.conftest import Server

if TYPE_CHECKING:
    from rest import Client, NewClient, Until


class Counted(Queue):
    """A queue that counts the requests for its stats."""

    asked = 0
    last = -math.inf
    closest = math.inf
    """The shortest time between two requests."""

    async def stats(self) -> Any:
        self.asked += 1
        now = asyncio.get_running_loop().time()
        self.last, self.closest = now, min(self.closest, now - self.last)
        return await super().stats()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events every few ms instead of every second."""
    monkeypatch.setattr(feeds, "INTERVAL", 0.01)


async def next_event(response: ClientResponse) -> tuple[str, Any]:
    """The name and data of the next event."""
    name = ""
    async with asyncio.timeout(10):
        while line := (await response.content.readline()).decode():
            if line.startswith("event: "):
                name = line[7:-1]
            elif line.startswith("data: "):
                return name, json.loads(line[6:])
    raise EOFError


def pollers() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("jobq-events-")]


async def test_stats_come_as_they_change(client: Client, often: None):
    async with client.get("/jobs/stats/events") as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-store"
        name, stats = await next_event(response)
        assert (name, stats["queue"], stats["waiting"]) == ("stats", "main", 0)
        await enqueue(client)
        while stats["waiting"] == 0:
            _, stats = await next_event(response)
        assert stats["waiting"] == 1


async def test_each_queue_has_its_own(new_client: NewClient, connection: Connection):
    client = await new_client(Queue("main", connection), Queue("other", connection))
    async with client.get("/queues/other/jobs/stats/events") as response:
        assert (await next_event(response))[1]["queue"] == "other"
    await problem(await client.get("/queues/none/jobs/stats/events"), 404, "unknown-queue")


async def test_the_first_event_comes_at_once(client: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feeds, "INTERVAL", 3600.0)
    async with client.get("/jobs/stats/events") as first, client.get("/jobs/stats/events") as second:
        await next_event(first)
        await next_event(second)


async def test_events_keep_the_interval(new_client: NewClient, connection: Connection, monkeypatch: pytest.MonkeyPatch):
    assert feeds.INTERVAL == 1.0
    monkeypatch.setattr(feeds, "INTERVAL", 0.1)
    queue = Counted("main", connection)
    client = await new_client(queue)
    async with client.get("/jobs/stats/events") as response:
        for _ in range(4):
            await next_event(response)
    assert queue.asked >= 4
    assert queue.closest > 0.09  # The loop's clock is exact to some ms.


async def test_many_listeners_cost_one_call_and_no_listener_costs_no_call(
    new_client: NewClient, connection: Connection, often: None, until: Until
):
    queue = Counted("main", connection)
    client = await new_client(queue)
    assert queue.asked == 0
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(client.get("/jobs/stats/events")) for _ in range(20)]
        before = queue.asked
        seen = [await next_event(stream) for stream in streams for _ in range(5)]
        assert len(seen) == 100
        assert queue.asked - before < 60
        assert len(pollers()) == 1
    await until(lambda: not pollers(), "the poller to end with the last listener")
    asked = queue.asked
    async with client.get("/jobs/stats/events") as response:  # A new listener starts the requests again.
        await next_event(response)
    assert queue.asked > asked


async def test_head_is_answered_without_a_stream(client: Client):
    response = await client.head("/jobs/stats/events")
    assert (response.status, response.content_type) == (200, "text/event-stream")
    assert not pollers()


async def test_streams_are_bounded(client: Client, monkeypatch: pytest.MonkeyPatch, until: Until):
    monkeypatch.setattr(feeds, "MOST", 2)
    async with client.get("/jobs/stats/events") as one, client.get("/jobs/stats/events") as two:
        await next_event(one)
        await next_event(two)
        refused = await client.get("/jobs/stats/events")
        assert "2 event streams" in (await problem(refused, 503, "busy"))["detail"]
        assert refused.headers["Retry-After"] == "1"
    await until(lambda: not pollers(), "the streams to be given back")
    async with client.get("/jobs/stats/events") as again:
        await next_event(again)


async def test_streams_need_the_scope_and_the_queue(new_client: NewClient, connection: Connection):
    secret, key = new_key("mail", Scope.READ, ["mail"])
    client = await new_client(Queue("main", connection), Queue("mail", connection), api_keys=[key])
    await problem(await client.get("/jobs/stats/events"), 401, "unauthenticated")
    headers = {"Authorization": f"Bearer {secret}"}
    await problem(await client.get("/jobs/stats/events", headers=headers), 403, "forbidden")
    async with client.get("/queues/mail/jobs/stats/events", headers=headers) as response:
        assert (await next_event(response))[1]["queue"] == "mail"


async def test_a_stream_ends_after_its_life(client: Client, often: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live, "LIFE", 0.2)
    async with client.get("/jobs/stats/events") as response:
        assert b"event: stats" in await asyncio.wait_for(response.read(), 10)


async def test_a_quiet_stream_has_a_heartbeat(client: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feeds, "INTERVAL", 60.0)
    monkeypatch.setattr(feeds, "HEARTBEAT", 0.02)
    async with client.get("/jobs/stats/events") as response:
        await next_event(response)
        async with asyncio.timeout(10):
            while await response.content.readline() != b": nothing new\n":
                pass


async def test_listeners_get_a_problem_event_while_redis_is_away(new_client: NewClient, often: None):
    server = Server().start()
    connection = Connection(server.url, timeout=0.3)
    client = await new_client(Queue("main", connection))
    try:
        async with client.get("/jobs/stats/events") as response:
            assert (await next_event(response))[0] == "stats"
            server.kill()
            name, body = await next_event(response)
            while name == "stats":
                name, body = await next_event(response)
            assert (name, body["type"]) == ("problem", "urn:jobq:problem:redis-unavailable")
            assert server.url not in body["detail"]
            server.start()
            while name == "problem":
                name, _ = await next_event(response)
    finally:
        await client.close()
        await connection.aclose()
        server.stop()


async def test_streams_end_at_once_when_the_server_stops(connection: Connection, monkeypatch: pytest.MonkeyPatch):
    """Not even after the next event, or after the timeout of the server."""
    monkeypatch.setattr(feeds, "INTERVAL", 3600.0)
    async with AsyncExitStack() as stack:
        app = create_app(Queue("main", connection))
        served = await stack.enter_async_context(serving(app, deadlines=Deadlines(close=3600)))
        session = await stack.enter_async_context(ClientSession(f"http://localhost:{served.port}"))
        streams = [await session.get("/jobs/stats/events") for _ in range(10)]
        for stream in streams:
            await next_event(stream)
        served.stop.set()
        await asyncio.wait_for(asyncio.gather(*(stream.read() for stream in streams)), 30)
        await asyncio.wait_for(served.task, 30)
        assert not pollers()


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of 200 kB, so that the buffers of the kernel are soon full."""
    make = feeds.Feed._event  # noqa: SLF001 # pyright: ignore

    async def padded(feed: feeds.Feed) -> bytes:
        return b": %b\n" % (b"x" * 200_000) + await make(feed)

    monkeypatch.setattr(feeds.Feed, "_event", padded)


async def test_a_listener_that_does_not_read_is_disconnected_by_serve(
    connection: Connection, often: None, large: None, until: Until
):
    fast = Deadlines(head=5, write=0.2, idle=30, close=5)
    async with serving(create_app(Queue("main", connection)), deadlines=fast) as served:
        writers = [await deaf(served.port) for _ in range(5)]
        await until(pollers, "the streams to begin")
        await until(lambda: not pollers(), "all of them to be dropped")
        for writer in writers:
            writer.transport.abort()


async def test_a_listener_that_does_not_read_is_disconnected_in_any_server(
    client: Client, often: None, large: None, until: Until, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(live, "UNREAD", 0.2)
    assert client.port is not None
    writer = await deaf(client.port)
    await until(pollers, "the stream to begin")
    await until(lambda: not pollers(), "it to be dropped")
    writer.transport.abort()


async def test_the_server_stops_at_once_although_a_listener_does_not_read(
    connection: Connection, often: None, large: None, until: Until
):
    async with serving(create_app(Queue("main", connection))) as served:
        writer = await deaf(served.port)
        await until(pollers, "the stream to begin")
        async with (
            ClientSession(f"http://localhost:{served.port}") as session,
            session.get("/jobs/stats/events") as other,
        ):
            for _ in range(30):  # Until the buffers of the silent listener are full.
                await next_event(other)
        served.stop.set()
        await asyncio.wait_for(served.task, 5)
        writer.transport.abort()
