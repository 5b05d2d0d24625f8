"""Settings of the REST interface."""

from __future__ import annotations

from typing import Any

from aiohttp.test_utils import TestClient, TestServer
from rest import Client, problem

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


async def test_aging_is_set_shown_and_refused(client: Client):
    response = await client.put("/aging", json={"aging": 60_000})
    assert (response.status, await response.json()) == (200, {"queue": "main", "aging": 60_000})
    assert (await (await client.get("/jobs/stats")).json())["aging_ms"] == 60_000
    response = await client.post("/jobs/enqueue", json={"type": "echo", "payload": {}, "lifo": True})
    body = await problem(response, 422, "invalid-job")
    assert "this queue has aging" in body["detail"]
    for wrong in ({"aging": -1}, {"aging": 86_400_001}, {"aging": "60s"}, {}):
        assert (await client.put("/aging", json=wrong)).status == 422
    assert (await (await client.put("/aging", json={"aging": 0})).json())["aging"] == 0


async def test_the_charge_of_groups_is_set_and_shown(client: Client):
    async def shown() -> Any:
        return await (await client.get("/charge")).json()

    assert await shown() == {"queue": "main", "charge": "count"}
    response = await client.put("/charge", json={"charge": "actual"})
    assert (response.status, await response.json()) == (200, {"queue": "main", "charge": "actual"})
    assert await shown() == {"queue": "main", "charge": "actual"}
    for wrong in ({"charge": "time"}, {"charge": None}, {}):
        assert (await client.put("/charge", json=wrong)).status == 422
    assert await shown() == {"queue": "main", "charge": "actual"}


async def test_partitions_are_set_and_shown(client: Client):
    new = {"queue": "main", "partitions": 1, "homes": 1, "most": 1, "jobs": [0]}
    assert await (await client.get("/partitions")).json() == new
    response = await client.put("/partitions", json={"partitions": 3})
    wanted = {"queue": "main", "partitions": 3, "homes": 0, "most": 3, "jobs": [0, 0, 0]}
    assert (response.status, await response.json()) == (200, wanted)
    ids = [
        (await (await client.post("/jobs/enqueue", json={"type": "echo", "payload": {"word": "a"}})).json())["id"]
        for _ in range(3)
    ]
    assert sorted(job_id[-2:] for job_id in ids)[1:] == ["~1", "~2"]
    for job_id in ids:
        assert (await client.get(f"/jobs/{job_id}")).status == 200
    assert len((await (await client.get("/jobs?state=waiting")).json())["jobs"]) == 3
    assert (await (await client.get("/jobs/stats")).json())["waiting"] == 3
    assert "main" in await (await client.get("/metrics")).text()
    assert [row["name"] for row in (await (await client.get("/queues")).json())["queues"]] == ["main"]
    job = {"type": "echo", "payload": {"word": "a"}, "partition_by": "acme", "limits": []}
    answer = await (await client.post("/jobs/enqueue", json=job)).json()
    assert (await (await client.get(f"/jobs/{answer['id']}")).json())["partition_by"] == "acme"
    for wrong in ("", "a" * 201, 7):
        assert (await client.post("/jobs/enqueue", json=job | {"partition_by": wrong})).status == 422
    for wrong in (0, 257, "3", None):
        assert (await client.put("/partitions", json={"partitions": wrong})).status == 422
