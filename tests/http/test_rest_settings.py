"""Settings of the REST interface."""

from __future__ import annotations

from aiohttp.test_utils import TestClient, TestServer

from jobq import Connection, Queue, Settings, create_app


async def test_names_from_the_settings_are_answered_to(connection: Connection) -> None:
    settings = Settings(allowed_hosts="jobs.example.com, other.example.com")
    async with TestClient(TestServer(create_app(Queue("test", connection, settings=settings)))) as client:
        for host, status in (("jobs.example.com", 200), ("localhost", 200), ("evil.example.com", 421)):
            answer = await client.get("/jobs/stats", headers={"Host": host})
            assert answer.status == status, host


async def test_the_rate_of_the_settings_counts(connection: Connection) -> None:
    settings = Settings(rate=1)
    async with TestClient(TestServer(create_app(Queue("test", connection, settings=settings)))) as client:
        statuses = [(await client.get("/jobs/stats")).status for _ in range(3)]
        assert statuses[0] == 200
        assert statuses[-1] == 429


async def test_a_cursor_made_by_hand_is_a_bad_query(connection: Connection) -> None:
    async with TestClient(TestServer(create_app(Queue("test", connection)))) as client:
        answer = await client.get("/jobs?cursor=WyJ3YWl0aW5nIiwgIk5hTiIsICJ4Il0")
        assert answer.status == 422, await answer.text()
        assert (await answer.json())["type"] == "urn:jobq:problem:invalid-query"
