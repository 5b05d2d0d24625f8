"""Uniqueness over REST: the field ``unique``, its answers and its errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from jobq import Unique

if TYPE_CHECKING:
    from rest import Client, NewClient

    from jobq import Queue


async def send(client: Client, body: Any, **headers: str) -> tuple[int, Any]:
    response = await client.post("/jobs/enqueue", json=body, headers=headers)
    return response.status, await response.json()


def job(n: int = 0, **unique: Any) -> dict[str, Any]:
    return {"type": "x", "payload": {"n": n}, "unique": unique}


DEBOUNCE = {"key": "k", "while": "queued", "on": "replace", "delay": 60_000, "max_wait": 90_000}


async def test_a_duplicate_is_answered_with_the_holder_its_state_and_what_was_done(client: Client):
    status, first = await send(client, job(1, **DEBOUNCE))
    assert (status, first["duplicate"], set(first)) == (201, False, {"id", "duplicate"})
    again = await send(client, job(2, **DEBOUNCE))
    assert again == (200, {"id": first["id"], "duplicate": True, "state": "delayed", "done": "replaced"})
    row = await (await client.get(f"/jobs/{first['id']}")).json()
    assert (row["payload"], row["key"], row["delay"]) == ({"n": 2}, "k", 60_000)
    stats = await (await client.get("/jobs/stats")).json()
    assert stats["duplicates_total"] == 1


async def test_fail_is_a_409_that_names_the_holder(client: Client):
    _, first = await send(client, job(1, key="k"))
    status, problem = await send(client, job(2, key="k", on="fail"))
    assert (status, problem["type"]) == (409, "urn:jobq:problem:key-taken")
    assert (problem["job_id"], problem["key"], problem["state"]) == (first["id"], "k", "waiting")
    assert (await client.get(f"/jobs/{problem['job_id']}")).status == 200


async def test_in_an_array_the_others_go_on(client: Client):
    await send(client, job(1, key="k"))
    status, answers = await send(client, [job(2), job(3, key="k", on="fail"), {"type": "x"}, job(4, key="k")])
    assert status == 207
    assert [answer.get("status") for answer in answers] == [None, 409, None, None]
    assert (answers[3]["duplicate"], answers[3]["done"]) == (True, "returned")


async def test_without_a_key_all_jobs_of_the_type_have_one(client: Client):
    _, first = await send(client, job(1))
    _, again = await send(client, job(2, **{"for": 1000}))
    assert again["id"] == first["id"]


@pytest.mark.parametrize(
    ("unique", "detail"),
    [
        ({"while": "ended"}, "unique.while: Invalid enum value 'ended'; it takes queued, running, unfinished"),
        ({"on": "replase"}, "it takes extend, fail, keep_last, kill_running, replace, replace_all, return"),
        ({"by": "n"}, "unique.by"),
        ({"by": ["m"]}, "the payload has no 'm', which unique.by names; it has n"),
        ({"by": ["n"], "key": "k"}, "give one of them"),
        ({"delay": 0, "on": "replace"}, "unique.delay"),
        ({"while": "running", "on": "replace"}, "with while='running' it takes return, fail, kill_running"),
        ({"max_wait": 5, "on": "replace"}, "unique.max_wait is given without delay"),
        ({"key": "a\nb"}, "control characters"),
        ({"keys": "a"}, "there is no field 'unique.keys'; the fields are: key, while, for, on, delay, max_wait, by"),
    ],
)
async def test_what_cannot_be_is_a_422_that_says_what_can(client: Client, unique: dict[str, Any], detail: str):
    status, problem = await send(client, job(1, **unique))
    assert status == 422
    assert detail in problem["detail"]


async def test_an_idempotency_key_keeps_a_request_from_replacing_twice(client: Client):
    _, first = await send(client, job(1, **DEBOUNCE))
    for expected in ("replaced", "returned"):
        _, answer = await send(client, job(2, **DEBOUNCE), **{"Idempotency-Key": "once"})
        assert (answer["id"], answer["done"]) == (first["id"], expected)
        await send(client, job(3, **DEBOUNCE))
    row = await (await client.get(f"/jobs/{first['id']}")).json()
    assert row["payload"] == {"n": 3}


async def test_fields_of_the_payload_make_the_key(client: Client):
    _, first = await send(client, job(1, by=["n"]))
    _, other = await send(client, job(2, by=["n"]))
    _, again = await send(client, job(1, by=["n"], **{"while": "queued"}))
    assert (other["duplicate"], again["id"]) == (False, first["id"])
    assert (await (await client.get(f"/jobs/{first['id']}")).json())["key"] == "x:[1]"


async def test_a_rule_without_a_key_has_the_key_of_the_task(queue: Queue, new_client: NewClient):
    @queue.task(unique=Unique(by="user"))
    async def index(user: int = 7) -> None: ...

    client = await new_client(queue)
    first = await index.enqueue()
    status, problem = await send(client, {"type": "index", "unique": {"on": "fail"}})
    assert (status, problem["key"], problem["job_id"]) == (409, "index:[7]", f"{queue.name}:{first.id}")
    status, problem = await send(client, {"type": "index", "unique": {"by": ["usr"]}})
    assert (status, problem["detail"]) == (422, "by='usr' names no argument of 'index'; there are user")
