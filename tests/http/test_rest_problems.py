"""Every error is a problem: one case for each row of the table, and for each kind that jobq/http raises itself."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from aiohttp.http_exceptions import BadStatusLine
from aiohttp.test_utils import TestClient, TestServer
from rest import problem

from jobq import Connection, Queue, errors
from jobq.http import create_app, problems
from jobq.http.problems import KINDS, TABLE, HttpProblem
from jobq.http.routes import ROUTES
from jobq.http.strict import BadJSON

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rest import Client, NewClient

ROWS: dict[type[BaseException], tuple[Exception, int, str]] = {
    BadJSON: (BadJSON("no"), 400, "invalid-json"),
    errors.InvalidJob: (errors.InvalidJob("no"), 422, "invalid-job"),
    errors.WebhookNotFound: (errors.WebhookNotFound("a"), 404, "webhook-not-found"),
    errors.ScheduleNotFound: (errors.ScheduleNotFound("a"), 404, "schedule-not-found"),
    errors.UnknownBreaker: (errors.UnknownBreaker("a", ["b"]), 404, "unknown-breaker"),
    errors.GroupFull: (errors.GroupFull("a"), 429, "group-full"),
    errors.UnknownRule: (errors.UnknownRule("a", ["b"]), 422, "unknown-rule"),
    errors.UnknownType: (errors.UnknownType("a", ["b"]), 422, "unknown-type"),
    errors.PayloadTooLarge: (errors.PayloadTooLarge(2, 1), 413, "too-large"),
    errors.IdempotencyConflict: (errors.IdempotencyConflict("j"), 422, "idempotency-conflict"),
    errors.JobIdTaken: (errors.JobIdTaken("j"), 409, "job-id-taken"),
    errors.KeyTaken: (errors.KeyTaken("j", "k", "active"), 409, "key-taken"),
    errors.InvalidQuery: (errors.InvalidQuery("no"), 422, "invalid-query"),
    errors.JobNotFound: (errors.JobNotFound("j"), 404, "job-not-found"),
    errors.WrongState: (errors.WrongState("j", "kill", "failed", ["waiting"]), 409, "wrong-state"),
    errors.JobExpired: (errors.JobExpired("j", "E", "m"), 409, "job-expired"),
    errors.JobFailed: (errors.JobFailed("j", "E", "m", "t"), 409, "job-failed"),
    errors.JobKilled: (errors.JobKilled("j", "E", "m"), 409, "job-killed"),
    errors.UnreadableResult: (errors.UnreadableResult("j", "oops"), 409, "unreadable-result"),
    errors.StoreUnavailable: (errors.StoreUnavailable("redis://:secret@host"), 503, "redis-unavailable"),
    errors.StoreFull: (errors.StoreFull("secret"), 503, "redis-full"),
    errors.StoreRefused: (errors.StoreRefused("secret"), 503, "redis-unfit"),
    errors.DurabilityRefused: (errors.DurabilityRefused("set appendonly yes"), 422, "durability-refused"),
    errors.DurabilityUnavailable: (errors.DurabilityUnavailable("secret"), 504, "unconfirmed"),
    BadStatusLine: (BadStatusLine("x"), 400, "malformed-request"),
    web.RequestPayloadError: (web.RequestPayloadError("secret"), 400, "malformed-request"),
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.__name__)
def test_row(row: type[BaseException]):
    error, status, slug = ROWS[row]
    response = problems.response(error)
    body = json.loads(response.body)  # pyright: ignore
    assert (response.status, body["status"], body["type"]) == (status, status, f"urn:jobq:problem:{slug}")
    assert response.content_type == "application/problem+json"
    assert "secret" not in body["detail"]
    assert ("Retry-After" in response.headers) == (slug in ("redis-unavailable", "redis-full", "group-full"))


def test_every_row_has_its_case():
    assert {next(row for row in one.__mro__ if row in TABLE) for one in ROWS} == set(TABLE)


def test_fields_of_their_own():
    assert problems.describe(ROWS[errors.UnknownType][0])[1]["known"] == ["b"]
    assert problems.describe(ROWS[errors.WrongState][0])[1]["allowed"] == ("waiting",)
    failed = problems.describe(ROWS[errors.JobFailed][0])[1]
    assert (failed["error_type"], failed["error_message"], failed["traceback"]) == ("E", "m", "t")


def test_the_types_of_problems_are_distinct_and_complete():
    assert len({kind.type for kind in KINDS}) == len(KINDS)
    assert all(400 <= kind.status <= 599 and kind.title for kind in KINDS)


def test_unknown_exceptions_are_500_and_reveal_nothing(caplog: pytest.LogCaptureFixture):
    response = problems.response(RuntimeError("secret"))
    assert response.status == 500
    assert b"secret" not in response.body  # pyright: ignore
    assert "secret" in caplog.text  # The log contains the error.


def test_lone_surrogates_in_a_problem_are_escaped():
    response = problems.response(HttpProblem(problems.NOT_FOUND, "a\udc80b"))
    assert json.loads(response.body)["detail"] == "a\\udc80b"  # pyright: ignore


async def test_a_problem_leads_to_its_description_on_the_same_server(client: Client, connection: Connection):
    page = await (await client.get("/docs")).text()
    for kind in KINDS:
        assert f'<section id="{kind.slug}">' in page
    for path in ("/jobs/main:nobody", "/queues/main/jobs/nobody", "/jobs/a%2Fb"):
        assert (await problem(await client.get(path), 404, "job-not-found"))["help"] == "/docs#job-not-found"
    outer = web.Application()
    outer.add_subapp("/api/q", create_app(Queue("main", connection)))
    async with TestClient(TestServer(outer)) as mounted:
        found = await problem(await mounted.get("/api/q/jobs/nobody"), 404, "job-not-found")
        assert found["help"] == "/api/q/docs#job-not-found"
        assert (await mounted.get(found["help"])).status == 200
        for path in ("/jobs/enqueue", "/queues/main/jobs/enqueue"):
            [one] = await (await mounted.post(f"/api/q{path}", json=[{"type": 7}])).json()
            assert one["help"] == "/api/q/docs#invalid-field"


async def test_aiohttps_own_errors_are_problems_too(client: Client):
    await problem(await client.get("/nowhere"), 404, "not-found")
    response = await client.put("/jobs")
    body = await problem(response, 405, "method-not-allowed")
    assert (response.headers["Allow"], body["allowed"]) == ("DELETE, GET, HEAD", ["DELETE", "GET"])
    assert (await client.post("/jobs/stats")).headers["Allow"] == "GET, HEAD"
    assert (await client.post("/queues/main/jobs/stats")).headers["Allow"] == "GET, HEAD"
    await problem(await client.get("/jobs", headers={"Expect": "tea"}), 417, "expectation-failed")


async def test_expect_continue(client: Client):
    response = await client.post("/jobs/enqueue", json={"type": "a"}, expect100=True)
    assert response.status == 201


async def test_headers_of_every_answer(client: Client):
    for path in ("/jobs", "/nowhere", "/healthz", "/docs", "/openapi.json"):
        headers = (await client.get(path)).headers
        assert headers["Server"] == "jobq"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert not any(name.lower().startswith("access-control") for name in headers)


async def test_unknown_type_names_those_that_are_known(new_client: NewClient, connection: Connection):
    queue = Queue("main", connection)

    @queue.task
    async def send(to: str) -> None: ...

    client = await new_client(queue)
    response = await client.post("/jobs/enqueue", json={"type": "sned", "payload": {"to": "x"}})
    assert (await problem(response, 422, "unknown-type"))["known"] == ["send"]
    response = await client.post("/jobs/enqueue", json={"type": "send", "payload": {"too": "x"}})
    assert "too" in (await problem(response, 422, "invalid-job"))["detail"]


CRON = {"type": "a", "cron": "0 0 1 * *"}
REFUSED = [
    ("POST", "/jobs/enqueue", {"type": "a\n"}, problems.INVALID_JOB),
    ("PUT", "/limits/a:b", {"concurrency": 1}, problems.INVALID_LIMIT),
    ("PUT", "/limits/a:b?dry_run=1", {"concurrency": 1}, problems.INVALID_LIMIT),
    ("POST", "/limits/a:/close", {"time": 1}, problems.INVALID_LIMIT),
    ("POST", "/limits/a:/open", None, problems.INVALID_LIMIT),
    ("GET", f"/groups/{'x' * 201}", None, problems.INVALID_GROUP),
    ("PUT", f"/groups/{'x' * 201}", {"weight": 1}, problems.INVALID_GROUP),
    ("PATCH", f"/groups/{'x' * 201}", {"weight": 1}, problems.INVALID_GROUP),
    ("DELETE", f"/groups/{'x' * 201}", None, problems.INVALID_GROUP),
    ("POST", "/schedules/preview", {"cron": "61 * * * *"}, problems.INVALID_SCHEDULE),
    ("GET", "/schedules/a~b", None, problems.INVALID_SCHEDULE),
    ("PUT", "/schedules/a", CRON | {"tz": "Mars/Olympus"}, problems.INVALID_SCHEDULE),
    ("DELETE", "/schedules/a~b", None, problems.INVALID_SCHEDULE),
    ("POST", "/schedules/a~b/pause", {}, problems.INVALID_SCHEDULE),
    ("POST", "/schedules/a~b/resume", None, problems.INVALID_SCHEDULE),
    ("POST", "/schedules/a~b/run", None, problems.INVALID_SCHEDULE),
    ("POST", "/schedules/a~b/backfill", {"from": 1, "until": 2}, problems.INVALID_SCHEDULE),
    ("GET", "/webhooks/a~b", None, problems.INVALID_WEBHOOK),
    ("PUT", "/webhooks/a", {"url": "ftp://example.com"}, problems.INVALID_WEBHOOK),
    ("PUT", "/webhooks/a", {"url": "http://example.com", "events": ["no"]}, problems.INVALID_WEBHOOK),
    ("DELETE", "/webhooks/a~b", None, problems.INVALID_WEBHOOK),
    ("GET", "/webhooks/a~b/deliveries", None, problems.INVALID_WEBHOOK),
    ("POST", "/webhooks/a~b/rotate", None, problems.INVALID_WEBHOOK),
    ("POST", "/webhooks/a~b/test", None, problems.INVALID_WEBHOOK),
]


@pytest.mark.parametrize(("method", "path", "body", "kind"), REFUSED)
async def test_what_is_refused_is_named_by_its_kind(
    client: Client, method: str, path: str, body: Any, kind: problems.Kind
):
    """They were all "The job cannot be enqueued as given"."""
    for prefix in ("", "/queues/main"):
        answer = await problem(await client.request(method, prefix + path, json=body), 422, kind.slug)
        assert answer["title"] == kind.title
        assert answer["help"] == f"/docs#{kind.slug}"


async def test_a_setting_that_the_queue_refuses_is_named_as_such(client: Client):
    assert (await client.put("/partitions", json={"partitions": 4})).status == 200
    assert (await client.post("/jobs/enqueue", json={"type": "a", "key": "k"})).status == 201  # now keys have homes
    for path in ("/partitions", "/queues/main/partitions"):
        answer = await problem(await client.put(path, json={"partitions": 1}), 422, "invalid-setting")
        assert answer["title"] == problems.INVALID_SETTING.title


def test_every_route_that_has_such_a_kind_has_its_case():
    tried = {(method, kind) for method, _, _, kind in REFUSED} | {("PUT", problems.INVALID_SETTING)}
    routes = {(route.method, route.invalid) for route in ROUTES if route.invalid is not None}
    assert routes == tried
    assert {kind for _, kind in routes} == set(problems.INVALID)


async def test_a_wrong_state_is_answered_with_the_state_and_the_allowed_ones(client: Client):
    answer = await client.post("/jobs/enqueue", json={"type": "a"})
    job = (await answer.json())["id"]
    for verb, allowed in (("promote", ["delayed"]), ("retry", ["failed", "completed"])):
        body = await problem(await client.post(f"/jobs/{job}/{verb}"), 409, "wrong-state")
        assert (body["state"], body["allowed"]) == ("waiting", allowed)
    await client.post(f"/jobs/{job}/kill")
    body = await problem(await client.post(f"/jobs/{job}/kill"), 409, "wrong-state")
    assert (body["state"], body["allowed"]) == ("failed", ["waiting", "delayed", "held", "blocked", "active"])


# -- Redis away, Redis full -----------------------------------------------------------------------------------------


@pytest.fixture
async def own(server: Any) -> AsyncIterator[tuple[Any, Client]]:
    """A server of the test's own, and a client of an application on it."""
    mine = type(server)("--maxmemory", "6mb", "--maxmemory-policy", "noeviction").start()
    try:
        from jobq.http.app import create_app

        async with TestClient(TestServer(create_app(Queue("main", mine.url)))) as client:
            yield mine, client
    finally:
        mine.stop()


async def test_redis_away_is_503_and_back_is_201(own: tuple[Any, Client]):
    server, client = own
    job = (await (await client.post("/jobs/enqueue", json={"type": "a"})).json())["id"]
    server.kill()
    calls = [
        client.post("/jobs/enqueue", json={"type": "a"}), client.get("/jobs"), client.get(f"/jobs/{job}"),
        client.get("/readyz"),
        client.get("/jobs/stats"), client.post("/jobs/pause"), client.delete(f"/jobs/{job}"), client.get("/queues"),
        client.post("/jobs/enqueue", json=[{"type": "a"}]), client.get(f"/jobs/{job}/logs"),
    ]  # fmt: skip
    for response in await asyncio.wait_for(asyncio.gather(*calls), 30):
        await problem(response, 503, "redis-unavailable")
        assert response.headers["Retry-After"] == "1"
    assert (await client.get("/healthz")).status == 200
    server.start()
    assert (await client.post("/jobs/enqueue", json={"type": "a"})).status == 201


async def test_redis_full_refuses_new_jobs_only(own: tuple[Any, Client]):
    _, client = own
    job = (await (await client.post("/jobs/enqueue", json={"type": "a"})).json())["id"]
    body = {"type": "fill", "payload": "x" * 200_000}
    response = await client.post("/jobs/enqueue", json=body)
    for _ in range(200):
        if response.status != 201:
            break
        response = await client.post("/jobs/enqueue", json=body)
    await problem(response, 503, "redis-full")
    assert response.headers["Retry-After"]
    assert (await client.post("/jobs/enqueue", json=[body])).status == 503
    assert (await client.get("/jobs/stats")).status == 200
    assert (await client.post(f"/jobs/{job}/kill")).status == 200
    assert (await client.delete(f"/jobs/{job}")).status == 204
    assert (await client.delete("/jobs?state=waiting")).status == 200
    assert (await client.post("/jobs/enqueue", json=body)).status == 201
