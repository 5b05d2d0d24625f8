"""The effect of each route, over a real socket and on a real server."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from rest import Client, NewClient, Until, enqueue, problem, working

from jobq import Connection, Context, Queue, Snooze, inject
from jobq.http import tidy
from jobq.http.routes import ROUTES
from jobq.testing import ManualClock


async def get(client: Client, path: str, status: int = 200) -> Any:
    response = await client.get(path)
    assert response.status == status, await response.text()
    return await response.json()


async def post(client: Client, path: str, body: Any = None, status: int = 200) -> Any:
    response = await client.post(path, json=body) if body is not None else await client.post(path)
    assert response.status == status, await response.text()
    return await response.json()


async def test_enqueue_answers_with_an_id_that_carries_its_queue(client: Client):
    answer = await post(client, "/jobs/enqueue", {"type": "send", "payload": {"to": "x"}}, 201)
    assert answer["id"].startswith("main:")
    assert answer["duplicate"] is False


async def test_every_option_comes_back(client: Client):
    options: dict[str, Any] = {
        "priority": -7, "delay": 60_000, "attempts": 5, "timeout": 1500, "lifo": True, "key": "k", "retention": 9000,
        "backoff": {"type": "fixed", "delay": 10, "max": 20, "jitter": 0.5}, "metadata": {"trace": "abc"},
    }  # fmt: skip
    job = await get(client, f"/jobs/{await enqueue(client, key_ttl=5000, **options)}")
    assert {name: job[name] for name in options} == options
    assert job["state"] == "delayed"
    # These are two clocks: ours and the server's.
    assert job["run_at"] == pytest.approx(job["enqueued_at"] + 60_000, abs=1000)


PAYLOADS = [
    b'{"b": 1,  "a":[1.0, 1e2, 12345678901234567890, -0]}', b"null", b"[]",
    b'"\\u00e9 \xc3\xa9 \\u0000"', b" 7 ", b"{ }",
    b'{"nested": {"a": [[[]]], "colon": "a:b", "escaped\\u003a": 1}}', b"1.0", b'"' + b"x" * 100_000 + b'"',
]  # fmt: skip


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
async def test_payload_is_kept_byte_for_byte(client: Client, payload: bytes):
    response = await client.post(
        "/jobs/enqueue", data=b'{"type":"t","payload":%b}' % payload, headers={"Content-Type": "application/json"}
    )
    assert response.status == 201, await response.text()
    job = await client.get(f"/jobs/{(await response.json())['id']}")
    assert b'"payload":%b,"priority"' % payload.strip() in await job.read()


async def test_the_same_key_is_answered_with_the_existing_job(client: Client):
    first = await enqueue(client, key="one")
    again = await post(client, "/jobs/enqueue", {"type": "any", "key": "one"}, 200)
    assert again == {"id": first, "duplicate": True, "state": "waiting", "done": "returned"}


async def test_bulk_answers_each_job_in_its_place(client: Client):
    answers = await post(
        client, "/jobs/enqueue", [{"type": "a"}, {"type": "b", "priority": 5000}, {"typ": "c"}, {"type": "d"}], 207
    )
    assert [sorted(one)[0] for one in answers] == ["duplicate", "detail", "allowed", "duplicate"]
    assert [one.get("status") for one in answers] == [None, 422, 422, None]
    assert (await get(client, "/jobs/stats"))["waiting"] == 2


async def test_bulk_of_good_jobs_is_created(client: Client):
    answers = await post(client, "/jobs/enqueue", [{"type": "a", "payload": n} for n in range(1000)], 201)
    assert len({one["id"] for one in answers}) == 1000
    assert (await get(client, "/jobs/stats"))["waiting"] == 1000


async def test_bulk_has_a_limit(client: Client):
    for count in (0, 1001):
        response = await client.post("/jobs/enqueue", json=[{"type": "a"}] * count)
        assert (await problem(response, 413, "too-large"))["limit"] == 1000
    assert (await get(client, "/jobs/stats"))["waiting"] == 0


async def test_idempotency_key_enqueues_once(client: Client):
    headers = {"Idempotency-Key": "order-7"}
    body = {"type": "pay", "payload": {"amount": 3}}
    first = await client.post("/jobs/enqueue", json=body, headers=headers)
    again = await client.post("/jobs/enqueue", json=body, headers=headers)
    assert (first.status, again.status) == (201, 200)
    assert (await first.json())["id"] == (await again.json())["id"]
    other = await client.post("/jobs/enqueue", json=body | {"priority": 1}, headers=headers)
    assert (await problem(other, 422, "idempotency-conflict"))["job_id"] in (await first.json())["id"]
    assert (await get(client, "/jobs/stats"))["waiting"] == 1


async def test_idempotency_key_of_an_array_counts_for_each_place(client: Client):
    headers = {"Idempotency-Key": "import-1"}
    rows = [{"type": "row", "payload": n} for n in range(3)]
    first = await client.post("/jobs/enqueue", json=rows, headers=headers)
    rows[1]["payload"] = "other"
    again = await client.post("/jobs/enqueue", json=rows, headers=headers)
    assert (first.status, again.status) == (201, 207)
    a, b = await first.json(), await again.json()
    assert [a[0]["id"], a[2]["id"]] == [b[0]["id"], b[2]["id"]]
    assert b[1]["type"] == "urn:jobq:problem:idempotency-conflict"


async def test_list_filters_and_pages(client: Client):
    for n in range(5):
        await enqueue(client, type=f"t{n % 2}", priority=n)
    await enqueue(client, type="t0", delay=60_000)
    listed = await get(client, "/jobs?state=waiting&limit=3")
    rest = await get(client, f"/jobs?state=waiting&limit=3&cursor={listed['cursor']}")
    assert [job["priority"] for job in listed["jobs"] + rest["jobs"]] == [0, 1, 2, 3, 4]
    assert rest["cursor"] is None
    assert "payload" not in listed["jobs"][0]
    assert [job["type"] for job in (await get(client, "/jobs?type=t1"))["jobs"]] == ["t1", "t1"]
    assert len((await get(client, "/jobs"))["jobs"]) == 6
    assert [job["state"] for job in (await get(client, "/jobs?state=delayed"))["jobs"]] == ["delayed"]


async def test_stats_count_every_state(client: Client):
    await enqueue(client)
    await enqueue(client, delay=60_000)
    stats = await get(client, "/jobs/stats")
    names = ("waiting", "delayed", "active", "completed", "failed", "blocked", "paused")
    assert [stats[name] for name in names] == [1, 1, 0, 0, 0, 0, False]


async def test_pause_and_resume(client: Client):
    assert await post(client, "/jobs/pause") == {"queue": "main", "paused": True}
    assert (await get(client, "/jobs/stats"))["paused"] is True
    assert await post(client, "/jobs/resume") == {"queue": "main", "paused": False}
    assert (await get(client, "/jobs/stats"))["paused"] is False


async def test_kill_then_retry_then_delete(client: Client):
    job = await enqueue(client)
    assert await post(client, f"/jobs/{job}/kill") == {"id": job, "state": "failed"}
    [failed] = (await get(client, "/jobs/failed/jobs"))["jobs"]
    assert (failed["id"], failed["error"]) == (job, "Killed: killed by an operator")
    assert await post(client, f"/jobs/{job}/retry") == {"id": job, "state": "waiting"}
    assert (await client.delete(f"/jobs/{job}")).status == 204
    await problem(await client.get(f"/jobs/{job}"), 404, "job-not-found")


async def test_promote_and_priority(client: Client):
    job = await enqueue(client, delay=60_000)
    assert await post(client, f"/jobs/{job}/priority", {"priority": -3}) == {"id": job, "priority": -3}
    assert await post(client, f"/jobs/{job}/promote") == {"id": job, "state": "waiting"}
    shown = await get(client, f"/jobs/{job}")
    assert (shown["state"], shown["priority"]) == ("waiting", -3)


async def test_many_jobs_are_retried_and_removed_in_pages(client: Client):
    for job in [await enqueue(client) for _ in range(5)]:
        await post(client, f"/jobs/{job}/kill")
    assert await post(client, "/jobs/retry?state=failed&limit=2") == {"count": 2}
    assert await post(client, "/jobs/retry?older_than=3600000") == {"count": 0}
    assert await post(client, "/jobs/retry") == {"count": 3}
    response = await client.delete("/jobs?state=waiting&limit=4")
    assert await response.json() == {"count": 4}
    assert (await get(client, "/jobs/stats"))["waiting"] == 1


async def test_failed_jobs_show_error_attempts_and_traceback(
    new_client: NewClient, connection: Connection, until: Until
):
    queue = Queue("main", connection)

    @queue.task(attempts=1)
    async def broken() -> None:
        raise ValueError("out of paper")

    client = await new_client(queue)
    job = await enqueue(client, type="broken")
    async with working(queue):
        await until(lambda: stats_reach(client, failed=1), "the job to fail")
    [failed] = (await get(client, "/jobs/failed/jobs"))["jobs"]
    assert (failed["id"], failed["error"], failed["attempts_made"]) == (job, "ValueError: out of paper", 1)
    assert 'raise ValueError("out of paper")' in failed["traceback"]
    result = await problem(await client.get(f"/jobs/{job}/result"), 409, "job-failed")
    assert (result["error_type"], result["error_message"]) == ("ValueError", "out of paper")


async def test_attempts_without_a_limit_and_a_list_of_delays(
    new_client: NewClient, connection: Connection, until: Until
):
    queue = Queue("main", connection)
    runs = 0

    @queue.task(attempts=1)
    async def stubborn() -> str:
        nonlocal runs
        runs += 1
        if runs <= 4:  # more than the default of three attempts, and than the task's one
            raise ValueError("not yet")
        return "done"

    client = await new_client(queue)
    backoff = {"delays": [1, 2], "jitter": 0}
    job = await enqueue(client, type="stubborn", attempts=None, backoff=backoff)
    row = await get(client, f"/jobs/{job}")
    assert row["attempts"] is None
    assert row["backoff"] | backoff == row["backoff"]
    async with working(queue):
        await until(lambda: stats_reach(client, completed=1, retried_total=4), "the job to succeed")
    row = await get(client, f"/jobs/{job}")
    assert (row["state"], row["attempts"], row["attempts_made"], row["result"]) == ("completed", None, 5, "done")
    [brief] = (await get(client, "/jobs?state=completed"))["jobs"]
    assert (brief["attempts"], brief["attempts_made"]) == (None, 5)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"attempts": 0}, "attempts"),
        ({"attempts": "unlimited"}, "attempts"),
        ({"backoff": {"delays": [-1]}}, "delays"),
        ({"backoff": {"delays": [1] * 101}}, "delays"),
        ({"backoff": {"delays": ["1s"]}}, "delays"),
        ({"backoff": {"delays": None}}, "delays"),
    ],
)
async def test_attempts_and_delays_that_cannot_be_used(client: Client, fields: dict[str, Any], named: str):
    response = await client.post("/jobs/enqueue", json={"type": "any"} | fields)
    assert response.status in (400, 422), await response.text()
    assert named in await response.text()


async def test_how_often_a_job_was_snoozed(new_client: NewClient, connection: Connection, until: Until):
    queue = Queue("main", connection)

    @queue.task
    async def later() -> None:
        raise Snooze(60, "not yet")

    client = await new_client(queue)
    job = await enqueue(client, type="later")
    async with working(queue):
        await until(lambda: stats_reach(client, delayed=1, snoozed_total=1, retried_total=0), "the job to be put off")
    row = await get(client, f"/jobs/{job}")
    assert (row["state"], row["snoozes"], row["attempts_made"], row["errors"]) == ("delayed", 1, 0, [])
    [brief] = (await get(client, "/jobs?state=delayed"))["jobs"]
    assert (brief["id"], brief["snoozes"]) == (job, 1)


async def stats_reach(client: Client, **counts: int) -> bool:
    stats = await get(client, "/jobs/stats")
    return all(stats[state] == count for state, count in counts.items())


async def test_a_running_job_is_killed_and_only_then_deleted(
    new_client: NewClient, connection: Connection, until: Until
):
    queue = Queue("main", connection)
    started, cancelled = asyncio.Event(), asyncio.Event()

    @queue.task
    async def endless(ctx: Context = inject) -> None:
        ctx.log("here I am")
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    client = await new_client(queue)
    job = await enqueue(client, type="endless")
    async with working(queue) as worker:
        await asyncio.wait_for(started.wait(), 5)
        body = await problem(await client.delete(f"/jobs/{job}"), 409, "wrong-state")
        assert body["state"] == "active"
        assert "active" not in body["allowed"]
        assert "kill it first" in body["detail"]
        await until(lambda: shown(client, worker.name), "the worker's row")
        await post(client, f"/jobs/{job}/kill")
        await asyncio.wait_for(cancelled.wait(), 5)
        await problem(await client.get(f"/jobs/{job}/result"), 409, "job-killed")
        assert (await client.delete(f"/jobs/{job}")).status == 204


async def shown(client: Client, name: str) -> bool:
    return name in [row["id"] for row in (await get(client, "/workers"))["workers"]]


async def test_logs_are_read_back(new_client: NewClient, connection: Connection):
    queue = Queue("main", connection)

    @queue.task
    async def talk(ctx: Context = inject) -> None:
        ctx.log("one")
        ctx.log("two")

    client = await new_client(queue)
    job = await enqueue(client, type="talk")
    assert await get(client, f"/jobs/{job}/logs") == {"logs": []}
    async with working(queue):
        await get(client, f"/jobs/{job}/result?wait=5000")
    assert [line["message"] for line in (await get(client, f"/jobs/{job}/logs"))["logs"]] == ["one", "two"]


async def test_result_is_waited_for(new_client: NewClient, connection: Connection):
    queue = Queue("main", connection)

    @queue.task
    async def add(a: int, b: int) -> dict[str, int]:
        return {"sum": a + b}

    client = await new_client(queue)
    job = await enqueue(client, {"type": "add", "payload": {"a": 1, "b": 2}})
    assert await get(client, f"/jobs/{job}/result", 202) == {"id": job, "state": "waiting"}
    assert await get(client, f"/jobs/{job}/result?wait=1", 202) == {"id": job, "state": "waiting"}
    waiting = asyncio.create_task(client.get(f"/jobs/{job}/result?wait=20000"))
    async with working(queue):
        response = await asyncio.wait_for(waiting, 10)
    assert (response.status, await response.read()) == (200, b'{"sum":3}')
    assert await get(client, f"/jobs/{job}/result") == {"sum": 3}


async def test_options_that_are_not_given_have_the_tasks_defaults(new_client: NewClient, connection: Connection):
    queue = Queue("main", connection)

    @queue.task(attempts=7, timeout=3)
    async def typed(a: int = 0) -> None: ...

    client = await new_client(queue)
    job = await get(client, f"/jobs/{await enqueue(client, type='typed')}")
    assert (job["attempts"], job["timeout"]) == (7, 3000)
    job = await get(client, f"/jobs/{await enqueue(client, type='typed', timeout=None, attempts=1)}")
    assert (job["attempts"], job["timeout"]) == (1, None)


async def test_the_same_routes_exist_under_each_queue(new_client: NewClient, connection: Connection):
    client = await new_client(Queue("main", connection), Queue("other", connection))
    answer = await post(client, "/queues/other/jobs/enqueue", {"type": "x"}, 201)
    job = answer["id"]
    bare = job.removeprefix("other:")
    assert job == f"other:{bare}"
    for path in (f"/jobs/{job}", f"/queues/other/jobs/{bare}", f"/queues/other/jobs/{job}"):
        assert (await get(client, path))["id"] == job
    for path in (f"/jobs/{bare}", f"/queues/main/jobs/{job}", f"/jobs/nowhere:{bare}", f"/jobs/:{bare}x", "/jobs/x"):
        await problem(await client.get(path), 404, "job-not-found")
    queues = (await get(client, "/queues"))["queues"]
    assert [(one["name"], one["default"], one["waiting"]) for one in queues] == [("main", True, 0), ("other", False, 1)]
    body = await problem(await client.get("/queues/nowhere/jobs"), 404, "unknown-queue")
    assert body["known"] == ["main", "other"]


async def test_health(client: Client):
    assert await get(client, "/healthz") == {"ok": True}
    assert await get(client, "/readyz") == {"failing": [], "ok": True}


async def test_head_is_get_without_a_body(client: Client):
    response = await client.head("/jobs")
    assert (response.status, await response.read()) == (200, b"")


def test_every_route_of_the_issue_is_in_the_table():
    wanted = """POST /jobs/enqueue, GET /jobs/{id}, GET /jobs, GET /jobs/stats, GET /jobs/failed/jobs, POST /jobs/pause,
        POST /jobs/resume, POST /jobs/{id}/kill, DELETE /jobs/{id}, POST /jobs/{id}/retry, GET /jobs/{id}/result,
        GET /jobs/{id}/logs, GET /jobs/{id}/why, GET /why, POST /jobs/{id}/promote, POST /jobs/{id}/priority,
        POST /jobs/retry, DELETE /jobs, POST /jobs/{id}/rerun,
        GET /limits, GET /limits/{rule}, PUT /limits/{rule}, DELETE /limits/{rule}, GET /limits/{rule}/keys,
        POST /jobs/kill, POST /jobs/promote, POST /jobs/priority, PUT /aging, GET /charge, PUT /charge,
        GET /partitions, PUT /partitions,
        GET /groups, GET /groups/{group}, PUT /groups/{group}, PATCH /groups/{group}, DELETE /groups/{group},
        POST /limits/{key}/close, POST /limits/{key}/open,
        GET /schedules, POST /schedules/preview, POST /schedules/prune, GET /schedules/{name}, PUT /schedules/{name},
        DELETE /schedules/{name}, POST /schedules/{name}/pause, POST /schedules/{name}/resume,
        POST /schedules/{name}/run, POST /schedules/{name}/backfill,
        GET /breakers, POST /breakers/{type}/trip, POST /breakers/{type}/reset, DELETE /breakers/{type},
        GET /performance, GET /scale, GET /metrics,
        GET /queues, GET /workers, GET /types, GET /events, PUT /events, GET /jobs/stats/events,
        GET /webhooks, GET /webhooks/{name}, PUT /webhooks/{name}, DELETE /webhooks/{name},
        GET /webhooks/{name}/deliveries, POST /webhooks/{name}/rotate, POST /webhooks/{name}/test,
        GET /healthz, GET /readyz"""
    table = {f"{route.method} {route.path}" for route in ROUTES}
    assert table == {" ".join(line.split()) for line in wanted.split(",")}


async def test_a_job_runs_at_a_time_with_an_offset(client: Client):
    when = datetime.now(timezone(timedelta(hours=1))).replace(microsecond=0) + timedelta(days=1)
    job_id = await enqueue(client, run_at=when.isoformat())
    row = await (await client.get(f"/jobs/{job_id}")).json()
    assert (row["state"], row["run_at"]) == ("delayed", round(when.timestamp() * 1000))
    for wrong in ("2100-01-31T08:00:00", "tomorrow", 5):
        body = {"type": "a", "run_at": wrong}
        assert (await problem(await client.post("/jobs/enqueue", json=body), 422, "invalid-field"))["field"] == "run_at"
    body = {"type": "a", "run_at": when.isoformat(), "delay": 5}
    await problem(await client.post("/jobs/enqueue", json=body), 422, "invalid-job")


async def test_an_id_of_the_clients_own_makes_an_enqueue_repeatable(client: Client):
    job = {"type": "a", "id": "order-7", "payload": {"n": 1}}
    for _ in range(2):
        response = await client.post("/jobs/enqueue", json=job)
        assert await response.json() == {"id": "main:order-7", "duplicate": False}
    assert (await (await client.get("/jobs/order-7")).json())["id"] == "main:order-7"
    other = job | {"payload": {"n": 2}}
    await problem(await client.post("/jobs/enqueue", json=other), 409, "job-id-taken")
    response = await client.post("/jobs/enqueue", json=[other, {"type": "b"}, job])
    answers = await response.json()
    assert response.status == 207
    assert answers[0]["type"] == "urn:jobq:problem:job-id-taken"
    assert answers[2]["id"] == "main:order-7"
    bad = {"type": "a", "id": "a:b"}
    assert (await problem(await client.post("/jobs/enqueue", json=bad), 422, "invalid-field"))["field"] == "id"


async def test_types_are_published_and_used_by_a_server_without_the_code(
    new_client: NewClient, connection: Connection, until: Until
):
    code = Queue("main", connection)

    @code.task(attempts=7, timeout=5)
    async def send(to: str) -> None: ...

    with_code, without = await new_client(code), await new_client(Queue("main", connection))

    async def types() -> list[Any]:
        return (await (await without.get("/queues/main/types")).json())["types"]

    await until(types, "published types")
    (row,) = await types()
    assert (row["type"], row["options"]["attempts"], row["differing"]) == ("send", 7, [])
    assert row["publisher"].startswith("server ")
    assert row["schema"]["$defs"]["send"]["required"] == ["to"]
    for client in (with_code, without):
        job_id = await enqueue(client, {"type": "send", "payload": {"to": "a"}, "timeout": None})
        shown = await (await client.get(f"/jobs/{job_id}")).json()
        assert (shown["attempts"], shown["timeout"]) == (7, None)


async def test_a_server_removes_jobs_past_their_own_retention_while_no_worker_runs(
    new_client: NewClient, connection: Connection, until: Until, monkeypatch: pytest.MonkeyPatch
):
    """It leaves the others: it may not know how many the queue is to keep."""
    monkeypatch.setattr(tidy, "TIDY_SECONDS", 0.01)
    clock = ManualClock()
    async with Queue("main", connection, clock=clock, keep_failed=0) as queue:
        await new_client(queue)
        gone, kept = await queue.enqueue("send", retention=0), await queue.enqueue("send")
        for job in (gone, kept):
            await job.kill()
        clock.advance(6)

        async def stored() -> list[bytes]:
            return await queue.store.command(b"HKEYS", queue.store.keys["jobs"])

        async def trimmed() -> bool:
            return await stored() == [kept.id.encode()]

        await until(trimmed, "the job past its retention to be removed")


async def test_a_server_tidies_page_by_page_until_nothing_is_left(
    connection: Connection, until: Until, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tidy, "PAGE", 2)
    monkeypatch.setattr(tidy, "TIDY_SECONDS", 0)
    clock = ManualClock()
    async with Queue("main", connection, clock=clock) as queue:
        jobs = [await queue.enqueue("send", retention=0, key=f"k{n}", key_ttl=1) for n in range(7)]
        for job in jobs:
            await job.kill()
        clock.advance(6)
        task = asyncio.create_task(tidy.tidy(queue))
        try:
            await asyncio.sleep(0)  # its first wait has begun, and the next one is too long for this test
            monkeypatch.setattr(tidy, "TIDY_SECONDS", 3600)

            async def tidied() -> bool:
                keys = queue.store.keys
                counts = [await queue.store.command(b"HLEN", keys[name]) for name in ("jobs", "unique")]
                return counts == [0, 0]

            await until(tidied, "all jobs and keys to be removed")
        finally:
            task.cancel()


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}])
async def test_each_payload_of_an_array_is_checked_once(
    new_client: NewClient, connection: Connection, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    queue = Queue("main", connection)

    @queue.task
    async def send(to: str) -> None: ...

    client, checked = await new_client(queue), 0
    check = send.check

    def counted(payload: Any) -> None:
        nonlocal checked
        checked += 1
        check(payload)

    monkeypatch.setattr(send, "check", counted)
    body = [{"type": "send", "payload": {"to": str(n)}} for n in range(10)]
    assert (await client.post("/jobs/enqueue", json=body, headers=headers)).status == 201
    assert checked == 10
