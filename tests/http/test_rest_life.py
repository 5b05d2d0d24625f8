"""Job life over REST: expires, deadline, a spread bulk."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from jobq.engine.queue.late import end_late

if TYPE_CHECKING:
    from rest import Client, NewClient

    from jobq import Queue


async def send(client: Client, body: Any, query: str = "", **headers: str) -> tuple[int, Any]:
    response = await client.post(f"/jobs/enqueue{query}", json=body, headers=headers)
    return response.status, await response.json()


async def row(client: Client, job_id: str) -> Any:
    return await (await client.get(f"/jobs/{job_id}")).json()


async def test_times_from_now_on_and_points_in_time(client: Client):
    _, first = await send(client, {"type": "x", "expires": 60_000, "deadline": 90_000})
    found = await row(client, first["id"])
    assert (found["expires_at"], found["deadline_at"]) == (found["enqueued_at"] + 60_000, found["enqueued_at"] + 90_000)
    at = datetime.now(UTC) + timedelta(hours=1)
    _, second = await send(client, {"type": "x", "expires_at": at.isoformat(), "deadline_at": at.isoformat()})
    found = await row(client, second["id"])
    assert (found["expires_at"], found["deadline_at"]) == (round(at.timestamp() * 1000), round(at.timestamp() * 1000))


async def test_an_expired_job(new_client: NewClient, queue: Queue):
    client = await new_client(queue)
    _, answer = await send(client, {"type": "x", "expires": 1})
    await asyncio.sleep(0.01)
    await end_late(queue)
    found = await row(client, answer["id"])
    assert (found["state"], found["attempts_made"], found["errors"][0]["type"]) == ("failed", 0, "Expired")
    response = await client.get(f"/jobs/{answer['id']}/result")
    assert (response.status, (await response.json())["type"]) == (409, "urn:jobq:problem:job-expired")
    stats = await (await client.get("/jobs/stats")).json()
    assert stats["expired_total"] == 1
    failed = await (await client.get("/jobs?state=failed")).json()
    assert failed["jobs"][0]["error"] == "Expired: the job did not start within its expires"
    await client.post(f"/jobs/{answer['id']}/retry")
    assert (await row(client, answer["id"]))["state"] == "waiting"


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"expires": 0}, "expires"),
        ({"expires": "5m"}, "expires"),
        ({"deadline_at": "2030-01-01T00:00:00"}, "deadline_at"),
        ({"expires": 5, "expires_at": "2030-01-01T00:00:00Z"}, "expires and expires_at are both given"),
        ({"expires": 5, "delay": 5}, "expires is 0.005 s and delay is 0.005 s, so the job could never start"),
    ],
)
async def test_bad_times(client: Client, body: Any, detail: str):
    status, answer = await send(client, {"type": "x"} | body)
    assert status == 422
    assert detail in f"{answer['detail']} {answer.get('field')}"


async def test_the_times_of_a_request_replace_those_of_the_task(new_client: NewClient, queue: Queue):
    @queue.task(expires=60, deadline="1h")
    async def x() -> None: ...

    client = await new_client(queue)
    _, first = await send(client, {"type": "x"})
    found = await row(client, first["id"])
    assert found["expires_at"] == found["enqueued_at"] + 60_000
    _, second = await send(client, {"type": "x", "expires": None, "deadline_at": "2099-01-01T00:00:00Z"})
    found = await row(client, second["id"])
    assert (found["expires_at"], found["deadline_at"]) == (None, 4_070_908_800_000)


async def test_a_bulk_is_spread_and_repeated_as_the_same_jobs(client: Client):
    bulk = [{"type": "x", "payload": {"n": n}} for n in range(4)]
    status, first = await send(client, bulk, "?spread=20000", **{"Idempotency-Key": "k"})
    assert status == 201
    rows = [await row(client, one["id"]) for one in first]
    assert [one["delay"] for one in rows] == [0, 5000, 10_000, 15_000]
    status, again = await send(client, bulk, "?spread=20000", **{"Idempotency-Key": "k"})
    assert [one["id"] for one in again] == [one["id"] for one in first]
    status, answer = await send(client, bulk[0], "?spread=20000")
    assert (status, answer["field"]) == (422, "spread")


async def test_a_refused_job_of_a_spread_bulk_leaves_its_place_empty(client: Client):
    status, answers = await send(client, [{"type": "x"}, {"type": "x", "delay": -1}, {"type": "x"}], "?spread=30000")
    assert status == 207
    assert (await row(client, answers[2]["id"]))["delay"] == 20_000


async def rerun(client: Client, job_id: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    response = await client.post(f"/jobs/{job_id}/rerun", json=body or {}, headers=headers)
    return response.status, await response.json()


async def test_a_rerun_with_an_empty_body_is_the_same_job_again(client: Client):
    body = {"type": "x", "payload": {"n": 12345678901234567890}, "priority": 5, "group": "g", "metadata": {"by": "me"}}
    _, first = await send(client, body | {"delay": 60_000, "attempts": 9, "timeout": 7, "slots": 2, "costs": {"t": 4}})
    response = await client.post(f"/jobs/{first['id']}/rerun")
    assert response.status == 201
    again = await response.json()
    old, new = await row(client, first["id"]), await row(client, again["id"])
    assert (new["rerun_of"], old["reruns"], old["rerun_of"], new["reruns"]) == (first["id"], [again["id"]], None, [])
    for name in ("type", "payload", "priority", "group", "metadata", "attempts", "timeout", "slots", "costs"):
        assert new[name] == old[name]
    assert (new["delay"], new["state"]) == (0, "held")


async def test_a_rerun_with_another_payload_and_other_options(client: Client):
    _, first = await send(client, {"type": "x", "payload": {"n": 1}, "attempts": 9, "priority": 5})
    _, again = await rerun(client, first["id"], {"payload": {"n": 2}, "priority": -1, "expires": 60_000})
    new = await row(client, again["id"])
    assert (new["payload"], new["priority"], new["attempts"]) == ({"n": 2}, -1, 9)
    assert new["expires_at"] == new["enqueued_at"] + 60_000
    status, answer = await rerun(client, first["id"], {"type": "y"})
    assert (status, "type" in answer["detail"]) == (422, True)
    status, answer = await rerun(client, "main:nobody")
    assert (status, answer["type"]) == (404, "urn:jobq:problem:job-not-found")


async def test_a_rerun_whose_key_is_held_names_the_holder(client: Client):
    _, first = await send(client, {"type": "x", "key": "k"})
    status, answer = await rerun(client, first["id"])
    assert (status, answer["type"]) == (409, "urn:jobq:problem:key-taken")
    assert first["id"].split(":")[1] in answer["detail"]
    status, other = await rerun(client, first["id"], {"key": None})
    assert (status, (await row(client, other["id"]))["key"]) == (201, None)
    await client.post(f"/jobs/{first['id']}/kill")
    status, again = await rerun(client, first["id"])
    assert (status, (await row(client, again["id"]))["key"]) == (201, "k")


async def test_a_repeated_rerun_is_one_job(client: Client):
    _, first = await send(client, {"type": "x"})
    answers = [await rerun(client, first["id"], {}, **{"Idempotency-Key": "k"}) for _ in range(2)]
    assert [status for status, _ in answers] == [201, 200]
    assert answers[0][1]["id"] == answers[1][1]["id"]
    assert len((await row(client, first["id"]))["reruns"]) == 1
