"""``?durability=`` of enqueue requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from rest import problem

from jobq import Connection, Queue

if TYPE_CHECKING:
    from rest import Client, NewClient

ONE: dict[str, Any] = {"type": "send"}
KEYED = {"Idempotency-Key": "k"}


@pytest.fixture
async def hasty(new_client: NewClient, connection: Connection) -> Client:
    """A client of an application that soon stops waiting for a replica. There is no replica."""
    return await new_client(Queue("main", connection, durability_timeout=0.02))


async def waiting(client: Client) -> int:
    return (await (await client.get("/jobs/stats")).json())["waiting"]


@pytest.mark.parametrize(
    ("body", "headers"), [(ONE, {}), ([ONE, ONE], {}), ([ONE, ONE], KEYED)], ids=["one", "many", "many with keys"]
)
async def test_not_confirmed_in_time(hasty: Client, body: Any, headers: dict[str, str]):
    path = "/jobs/enqueue?durability=replicated"
    await problem(await hasty.post(path, json=body, headers=headers), 504, "unconfirmed")
    assert await waiting(hasty) == (len(body) if isinstance(body, list) else 1)
    assert (await hasty.post("/queues/main/jobs/enqueue?durability=none", json=body)).status == 201


@pytest.mark.parametrize("body", [ONE, [ONE, ONE]], ids=["one", "many"])
async def test_a_server_that_cannot(client: Client, body: Any):
    """The server has no append-only file. The error comes before anything is written and says what to change."""
    answer = await client.post("/jobs/enqueue?durability=fsynced", json=body)
    assert "durability='fsynced' needs" in (await problem(answer, 422, "durability-refused"))["detail"]
    assert await waiting(client) == 0


async def test_a_request_may_ask_for_less_than_its_queue(new_client: NewClient, connection: Connection):
    client = await new_client(Queue("main", connection, durability="replicated", durability_timeout=0.02))
    assert (await client.post("/jobs/enqueue?durability=none", json=ONE)).status == 201
    await problem(await client.post("/jobs/enqueue", json=ONE), 504, "unconfirmed")


@pytest.mark.parametrize(
    ("query", "slug"),
    [
        ("durability=fsync", "invalid-field"),
        ("durability=", "invalid-field"),
        ("durable=yes", "unknown-field"),
        ("durability=none&durability=fsynced", "invalid-query"),
    ],
)
async def test_a_misspelt_durability_is_refused(client: Client, query: str, slug: str):
    await problem(await client.post(f"/jobs/enqueue?{query}", json=ONE), 422, slug)
    assert await waiting(client) == 0
