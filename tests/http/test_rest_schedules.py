"""Schedules over REST."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from rest import problem

from jobq import Queue
from jobq.engine.queue.declaring import declare_schedules
from jobq.engine.queue.firing import Firing
from tests.conftest import on_all

if TYPE_CHECKING:
    from rest import Client, NewClient

    from jobq import Connection
    from jobq.engine.store import Store
    from tests.conftest import Until

BODY = {"type": "report", "payload": {"n": 1}, "cron": "30 2 * * *", "tz": "Europe/Berlin", "priority": -2}


async def call(client: Client, method: str, path: str, body: Any = None, status: int = 200) -> Any:
    response = await client.request(method, path, json=body)
    assert response.status == status, await response.text()
    return await response.json()


async def test_a_schedule_is_written_read_and_removed(client: Client):
    row = await call(client, "PUT", "/schedules/nightly", BODY | {"catch_up": "none", "jitter": 0, "limit": 9})
    assert (row["type"], row["payload"], row["cron"], row["tz"]) == (
        "report",
        {"n": 1},
        ["30 2 * * *"],
        "Europe/Berlin",
    )
    assert (row["source"], row["options"], row["words"]) == ("operator", {"priority": -2}, "At 02:30 every day")
    assert (len(row["next"]), row["last"], row["paused"], row["orphan"]) == (5, [], None, False)
    assert await call(client, "GET", "/schedules/nightly") == row
    await call(client, "PUT", "/schedules/other", {"type": "report", "every": 60_000})
    page = await call(client, "GET", "/schedules?limit=1")
    assert [one["name"] for one in page["schedules"]] == ["nightly"]
    assert page["after"] == "nightly"
    page = await call(client, "GET", "/schedules?after=nightly")
    assert ([one["name"] for one in page["schedules"]], page["after"]) == (["other"], None)
    assert await call(client, "DELETE", "/schedules/nightly") == {"name": "nightly", "declared": False}
    await problem(await client.get("/schedules/nightly"), 404, "schedule-not-found")


async def test_pause_resume_run_and_backfill(client: Client):
    await call(client, "PUT", "/schedules/s", {"type": "report", "every": 60_000})
    assert await call(client, "POST", "/schedules/s/pause") == {"name": "s", "paused": True}
    await call(client, "POST", "/schedules/s/resume")
    await call(client, "POST", "/schedules/s/pause", {"note": "a reason"})
    row = await call(client, "GET", "/schedules/s")
    assert (row["paused"]["note"], row["next"]) == ("a reason", [])
    assert row["paused"]["by"]
    assert await call(client, "POST", "/schedules/s/resume") == {"name": "s", "paused": False}
    job = await call(client, "POST", "/schedules/s/run", status=201)
    shown = await call(client, "GET", f"/jobs/{job['id']}")
    assert (shown["schedule"]["name"], shown["schedule"]["how"]) == ("s", "run")
    until = int(datetime.now(UTC).timestamp()) // 60 * 60_000 - 60_000
    filled = await call(client, "POST", "/schedules/s/backfill", {"from": until - 120_000, "until": until})
    assert len(filled["ids"]) == 3
    assert await call(client, "POST", "/schedules/s/backfill", {"from": until - 120_000, "until": until}) == {"ids": []}
    last = (await call(client, "GET", "/schedules/s"))["last"]
    assert [one["how"] for one in last] == ["backfill"] * 3 + ["run"]


async def test_preview(client: Client):
    after = int(datetime(2027, 3, 27, 12, tzinfo=UTC).timestamp()) * 1000
    body = {"cron": "30 2 * * *", "tz": "Europe/Berlin", "after": after, "count": 2}
    assert await call(client, "POST", "/schedules/preview", body) == {
        "times": ["2027-03-28T03:00:00+02:00", "2027-03-29T02:30:00+02:00"],
        "words": "At 02:30 every day",
    }


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"cron": "0 0 30 2 *"}, "invalid-schedule"),
        ({"cron": "* * * * * * *"}, "invalid-schedule"),
        ({"cron": "*" * 257}, "invalid-field"),
        ({"cron": ["* * * * *"] * 17}, "invalid-schedule"),
        ({"tz": "Mars/Olympus"}, "invalid-schedule"),
        ({"tz": "../etc/passwd"}, "invalid-schedule"),
        ({"every": 60_000}, "invalid-schedule"),
        ({"cron": None}, "invalid-schedule"),
        ({"overlap": "never"}, "invalid-field"),
        ({"limits": ["nobody"]}, "unknown-rule"),
        ({"id": "mine"}, "invalid-schedule"),
        ({"run_at": "2030-01-31T08:00:00Z"}, "invalid-schedule"),
        ({"nothing": 1}, "unknown-field"),
        ({"priority": 9999}, "invalid-field"),
        ({"from": 2_000_000_000_000, "until": 1_900_000_000_000}, "invalid-schedule"),
        ({"until": 1_000}, "invalid-schedule"),
    ],
)
async def test_what_cannot_be_used_is_a_422(client: Client, change: dict[str, Any], kind: str):
    await problem(await client.put("/schedules/s", json=BODY | change), 422, kind)
    assert await call(client, "GET", "/schedules") == {"schedules": [], "after": None}


async def test_a_problem_names_the_fields_as_rest_does(client: Client):
    answer = await problem(await client.post("/schedules/s/backfill", json={}), 422, "missing-field")
    assert answer["allowed"] == ["from", "until"]
    answer = await problem(await client.put("/schedules/s", json=BODY | {"start": 1}), 422, "unknown-field")
    assert "from" in answer["allowed"]
    assert "start" not in answer["allowed"]
    answer = await problem(await client.put("/schedules/s", json=BODY | {"overlap": "never"}), 422, "invalid-field")
    assert answer["detail"].endswith("it takes allow, kill, queue_one, skip")


async def test_orphans_are_removed_on_request(queue: Queue, new_client: NewClient):
    @queue.schedule(every=60)
    @queue.task
    async def gone() -> None: ...

    client = await new_client(queue)
    await declare_schedules(queue.store, queue.declared_schedules, started=True)
    assert await call(client, "POST", "/schedules/prune") == {"names": []}
    # Long ago a program said that its code declares the schedule; a moment ago one said that it does not.
    await queue.store.command(b"ZADD", queue.store.keys["schedule_seen"], 1, b"gone")
    assert (await call(client, "GET", "/schedules/gone"))["orphan"]
    assert await call(client, "POST", "/schedules/prune") == {"names": ["gone"]}
    await problem(await client.get("/schedules/gone"), 404, "schedule-not-found")


async def test_a_server_with_tasks_fires_schedules_although_no_worker_lives(
    queue: Queue, new_client: NewClient, until: Until
):
    @queue.schedule("* * * * * *", overlap="allow")
    @queue.task
    async def tick() -> None: ...

    client = await new_client(queue)

    async def fired(name: str, count: int) -> bool:
        rows = (await call(client, "GET", "/schedules"))["schedules"]
        return any(row["name"] == name and row["count"] >= count for row in rows)

    await until(lambda: fired("tick", 2), "two slots of a schedule that code declares", 20)
    await call(client, "PUT", "/schedules/mine", {"type": "tick", "every": 1000, "overlap": "allow"})
    await until(lambda: fired("mine", 2), "two slots of a schedule that an operator wrote", 20)
    assert (await queue.stats()).workers == 0


async def test_one_connection_hears_of_the_schedules_of_all_queues(
    connection: Connection, new_client: NewClient, until: Until, admin: Store
):
    queues = [Queue(f"q{n}", connection) for n in range(30)]
    for queue in queues:

        @queue.task
        async def tick() -> None: ...

    client = await new_client(*queues)

    async def subscriptions() -> list[str]:
        answers = await on_all(admin.connection, (b"CLIENT", b"LIST"))
        rows = [row for answer in answers for row in answer.decode().splitlines()]
        return [word for row in rows for word in row.split() if word.startswith("sub=") and word != "sub=0"]

    async def subscribed() -> bool:
        return await subscriptions() == ["sub=30"]

    async def ran() -> bool:
        return (await call(client, "GET", "/queues/q29/schedules/mine"))["count"] > 0

    await until(subscribed, "one subscription to all channels")
    await call(client, "PUT", "/queues/q29/schedules/mine", {"type": "tick", "every": 1000, "overlap": "allow"})
    await until(ran, "the schedule of one queue to be heard of", 20)
    # The server ends the subscription.
    await admin.command(b"CLIENT", b"KILL", b"TYPE", b"pubsub")
    await until(subscribed, "the same subscription again")


async def test_a_server_without_tasks_leaves_schedules_to_others(queue: Queue, client: Client, until: Until):
    """It knows neither the handlers nor the options of their types."""
    await call(client, "PUT", "/schedules/s", {"type": "report", "every": 1000, "overlap": "allow"})
    async with Queue("main", queue.store.connection) as other:
        store = other.store

        async def is_due() -> bool:
            return float(await store.command(b"ZSCORE", store.keys["schedules"], b"s")) < store.now_ms() - 1000

        await until(is_due, "the slot to be a second late", 20)
        assert (await call(client, "GET", "/schedules/s"))["count"] == 0

        @other.task
        async def report() -> None: ...

        await Firing(other).fire_due()
    assert (await call(client, "GET", "/schedules/s"))["count"] == 1


async def test_names_that_cannot_be_used(client: Client):
    await problem(await client.put("/schedules/a~b", json=BODY), 422, "invalid-schedule")
    for verb in ("resume", "run"):
        await problem(await client.post(f"/schedules/s/{verb}"), 404, "schedule-not-found")
    await problem(await client.post("/schedules/s/backfill", json={"from": 0, "until": 1}), 404, "schedule-not-found")
    await problem(await client.delete("/schedules/s"), 404, "schedule-not-found")
