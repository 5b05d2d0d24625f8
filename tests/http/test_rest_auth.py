"""API keys, scopes, hosts, origins and rates: admission of requests, and the audit log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from rest import enqueue, problem

from jobq import Connection, Queue, Settings
from jobq.errors import SettingsError
from jobq.http import dashboard
from jobq.http.app import SCOPE, create_app
from jobq.http.auth import ApiKey, Keyring, Scope, check_bind, hash_key, new_key, parse_keys
from jobq.http.guard import Rate, host_name
from jobq.http.problems import HttpProblem
from jobq.http.routes import ROUTES

if TYPE_CHECKING:
    from rest import Client, NewClient


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


READ, WRITE, ADMIN = (new_key(name, Scope[name.upper()]) for name in ("read", "write", "admin"))
KEYS = [key for _, key in (READ, WRITE, ADMIN)]


@pytest.fixture
async def locked(new_client: NewClient, connection: Connection) -> Client:
    """An application with a key for each scope."""
    return await new_client(Queue("main", connection), Queue("other", connection), api_keys=KEYS)


def test_every_route_of_the_router_declares_its_scope(connection: Connection):
    app = create_app(Queue("main", connection))
    scopes = {(route.method, path): route.scope for route in ROUTES for path in route.paths()}
    scopes |= {(door.method, door.path): door.scope for door in dashboard.DOORS}
    public = {"/docs", "/openapi.json", "/{path}", "/healthz", "/readyz"}
    public |= {f"/dashboard{path}" for path in ("", "/", "/style.css", "/login", "/logout")}
    public |= {f"/dashboard/{name}" for name in dashboard.SCRIPTS}
    seen = 0
    for route in app.router.routes():
        scope = getattr(route.handler, SCOPE)
        path = route.resource.canonical if route.resource else ""
        method = "GET" if route.method == "HEAD" else route.method
        assert scope is scopes.get((method, path), Scope.PUBLIC)
        assert scope is not Scope.PUBLIC or path in public, path
        seen += 1
    assert seen > len(scopes)


def test_the_scope_of_each_route_fits_its_effect():
    for route in ROUTES:
        if route.scope is Scope.PUBLIC:
            assert route.path in ("/healthz", "/readyz")
        elif route.path.startswith("/webhooks"):
            # their addresses may be secrets
            assert route.scope is Scope.ADMIN
        elif route.method == "GET" or route.path == "/schedules/preview":
            # a preview takes a body, but changes nothing
            assert route.scope is Scope.READ
        else:
            assert route.scope >= Scope.WRITE
        if route.method == "DELETE" or "pause" in route.path:
            assert route.scope is Scope.ADMIN


def filled(path: str) -> str:
    return path.replace("{queue}", "main").replace("{id}", "main:00000000000000000")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_each_route_needs_its_scope(locked: Client, route: Any):
    for path in map(filled, route.paths()):
        if route.scope is Scope.PUBLIC:
            assert (await locked.request(route.method, path)).status == 200
            continue
        response = await locked.request(route.method, path)
        await problem(response, 401, "unauthenticated")
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
        for secret, key in (READ, WRITE, ADMIN):
            response = await locked.request(route.method, path, headers=bearer(secret))
            if key.scope < route.scope:
                assert (await problem(response, 403, "forbidden"))["scope"] == route.scope.name.lower()
            else:
                assert response.status not in (401, 403), key


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic abc",
        "bearer",
        pytest.param(f"Token {READ[0]}", id="another scheme"),
        "Bearer \u00e9",
        pytest.param(f"Bearer {READ[0]}x", id="one character more"),
    ],
)
async def test_an_invalid_key_is_401(locked: Client, header: str):
    await problem(await locked.get("/jobs", headers={"Authorization": header}), 401, "unauthenticated")


async def test_keys_work_in_the_header_only(locked: Client):
    await problem(await locked.get(f"/jobs?api_key={ADMIN[0]}"), 401, "unauthenticated")
    assert (await locked.get("/jobs", headers={"Authorization": f"bearer  {READ[0]}"})).status == 200


async def test_a_key_is_valid_for_its_queues_only(new_client: NewClient, connection: Connection):
    secret, key = new_key("mail", Scope.ADMIN, ["mail-*", "news"])
    queues = [Queue(name, connection) for name in ("main", "mail-in", "news")]
    client = await new_client(*queues, api_keys=[key])
    client.session.headers.update(bearer(secret))
    assert (await client.get("/queues/mail-in/jobs")).status == 200
    assert (await client.get("/queues/news/jobs/stats")).status == 200
    for path in ("/jobs", "/jobs/00000000000000000", "/workers"):
        await problem(await client.get(path), 403, "forbidden")
    await problem(await client.post("/jobs/enqueue", json={"type": "a"}), 403, "forbidden")
    await problem(await client.get("/queues/main/jobs"), 404, "unknown-queue")
    await problem(await client.get("/jobs/main:00000000000000000"), 404, "job-not-found")
    await problem(await client.get("/jobs/news:00000000000000000"), 404, "job-not-found")
    listed = await (await client.get("/queues")).json()
    assert [queue["name"] for queue in listed["queues"]] == ["mail-in", "news"]
    assert "main" not in (await problem(await client.get("/queues/x/jobs"), 404, "unknown-queue"))["known"]


async def test_an_expired_key_is_refused_while_its_successor_is_valid(new_client: NewClient, connection: Connection):
    old, new = new_key("app", expires=1.0), new_key("app")
    client = await new_client(Queue("main", connection), api_keys=f"{old[1].entry()}, {new[1].entry()}")
    assert (await client.get("/jobs", headers=bearer(new[0]))).status == 200
    body = await problem(await client.get("/jobs", headers=bearer(old[0])), 401, "unauthenticated")
    assert "expired" in body["detail"]


def test_expiry_is_a_moment():
    secret, key = new_key("a", expires=1000.0)
    now = [999.9]
    ring = Keyring([key], now=lambda: now[0])
    assert ring.find(f"Bearer {secret}").name == "a"
    now[0] = 1000.0
    with pytest.raises(HttpProblem, match="expired"):
        ring.find(f"Bearer {secret}")


def test_keys_are_random_and_kept_as_hashes():
    secret, key = new_key("app", Scope.READ, ["a*", "b"], expires=1893456000.0)
    assert key.sha256 == hash_key(secret)
    assert secret not in key.entry()
    assert len({new_key("x")[0] for _ in range(100)}) == 100
    assert parse_keys(key.entry()) == [key]
    assert key.entry().endswith(":read:a*|b:2030-01-01T00:00:00+00:00")
    assert parse_keys(f"n:{key.sha256}:write:*:2030-01-01")[0].expires == 1893456000.0
    assert parse_keys(f"n:{key.sha256.upper()}:admin") == [ApiKey("n", key.sha256, Scope.ADMIN)]
    assert parse_keys("") == []
    assert parse_keys(" , ") == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("secret", "name:sha256"),
        ("n:secret:write", "never the key itself"),
        (f"n:{'a' * 64}:root", "read, write or admin"),
        (f"n n:{'a' * 64}:read", "the name"),
        (f"n:{'a' * 64}:read:*:soon", "2030-12-31"),
        (f"n:{'a' * 64}:public", "read, write"),
    ],
)  # fmt: skip
def test_keys_that_cannot_be_read(text: str, says: str):
    with pytest.raises(SettingsError, match=says) as caught:
        parse_keys(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.9.9.9", "LOCALHOST"])
def test_this_machine_needs_no_keys(host: str):
    check_bind(host, [])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.7", "example.com", "localhost.example.com"])
def test_a_public_address_needs_keys(host: str):
    for none in ([], "", None):
        with pytest.raises(SettingsError, match="JOBQ_API_KEYS"):
            check_bind(host, none)  # pyright: ignore[reportArgumentType]
    check_bind(host, KEYS)


# -- Host and origin -------------------------------------------------------------------------------------------------

LOCAL = ["localhost", "LOCALHOST:7800", "127.0.0.1", "127.0.0.1:1", "[::1]:7800", "[::1]", "localhost."]
FOREIGN = [
    "evil.example",
    "127.0.0.1.evil.example",
    "localhost.evil.example:7800",
    "",
    "evil.example:7800",
    "127.0.0.1@evil",
]


@pytest.mark.parametrize("host", LOCAL)
async def test_local_host_names_are_allowed(client: Client, host: str):
    assert (await client.get("/jobs", headers={"Host": host})).status == 200


@pytest.mark.parametrize("host", FOREIGN)
async def test_other_host_names_are_refused(client: Client, host: str):
    await problem(await client.get("/jobs", headers={"Host": host}), 421, "host-not-allowed")
    assert (await client.get("/healthz", headers={"Host": host})).status == 200  # Probes use an address as the host.


async def test_allowed_hosts_can_be_named(new_client: NewClient):
    client = await new_client(allowed_hosts=["jobs.example"])
    assert (await client.get("/jobs", headers={"Host": "Jobs.example:443"})).status == 200
    await problem(await client.get("/jobs", headers={"Host": "localhost"}), 421, "host-not-allowed")


async def test_a_public_address_with_keys_answers_to_any_name(new_client: NewClient, connection: Connection):
    settings = Settings(http_host="0.0.0.0")
    client = await new_client(Queue("main", connection), settings=settings, api_keys=KEYS)
    assert (await client.get("/jobs", headers={"Host": "jobs.example"} | bearer(READ[0]))).status == 200


def test_host_names():
    assert [host_name(host) for host in ("A.b:80", "[::1]:80", "[::1]", "a.", "a:b:c")] == [
        "a.b",
        "::1",
        "::1",
        "a",
        "a:b",
    ]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://[bad"}, {"Sec-Fetch-Site": "cross-site", "Origin": "SELF"},
    ],
)  # fmt: skip
async def test_pages_of_other_origins_change_nothing(client: Client, headers: dict[str, str]):
    if headers.get("Origin") == "SELF":
        headers = headers | {"Origin": str(client.make_url("")).rstrip("/")}
    for method, path in (("POST", "/jobs/pause"), ("POST", "/jobs/enqueue"), ("DELETE", "/jobs?state=failed")):
        await problem(await client.request(method, path, headers=headers), 403, "cross-origin")
    assert (await (await client.get("/jobs/stats")).json())["paused"] is False
    response = await client.get("/jobs", headers=headers)
    assert response.status == 200  # Without CORS headers the page cannot read the answer.
    assert "Access-Control-Allow-Origin" not in response.headers


async def test_requests_of_our_own_pages_are_allowed(client: Client):
    origin = str(client.make_url("")).rstrip("/")
    for headers in (
        {"Origin": origin, "Sec-Fetch-Site": "same-origin"},
        {"Origin": origin},
        {"Sec-Fetch-Site": "none"},
    ):
        assert (await client.post("/jobs/pause", headers=headers)).status == 200


# -- rates, audit, tracebacks ----------------------------------------------------------------------------------------


def test_a_rate_bucket_holds_one_second_of_calls_and_fills_again():
    now = [0.0]
    rate = Rate(5, now=lambda: now[0])
    assert [rate.wait("a") for _ in range(5)] == [0.0] * 5
    assert rate.wait("a") == pytest.approx(0.2)
    assert rate.wait("b") == 0.0
    now[0] += 0.21
    assert rate.wait("a") == 0.0
    assert rate.wait("a") > 0
    for caller in range(25_000):  # Old callers are forgotten, so the memory is bounded.
        rate.wait(str(caller))
    assert len(rate._buckets) <= 10_000  # noqa: SLF001


async def test_too_many_calls_of_one_key_are_429_for_this_key_only(new_client: NewClient, connection: Connection):
    client = await new_client(Queue("main", connection), api_keys=KEYS, rate=3)
    answers = [await client.get("/jobs", headers=bearer(READ[0])) for _ in range(10)]
    assert [answer.status for answer in answers[:3]] == [200, 200, 200]
    await problem(answers[-1], 429, "rate-limited")
    assert int(answers[-1].headers["Retry-After"]) >= 1
    assert (await client.get("/jobs", headers=bearer(WRITE[0]))).status == 200


async def test_destructive_calls_are_written_to_the_audit_log(locked: Client, caplog: pytest.LogCaptureFixture):
    headers = bearer(ADMIN[0])
    locked.session.headers.update(headers)
    job = await enqueue(locked)
    with caplog.at_level("INFO", "jobq.audit"):
        await locked.post(f"/jobs/{job}/kill")
        await locked.post(f"/jobs/{job}/retry")
        await locked.post("/jobs/pause")
        await locked.post("/jobs/resume")
        await locked.post("/jobs/retry")
        await locked.delete(f"/jobs/{job}")
        await locked.delete("/jobs?state=failed")
        await locked.get("/jobs")
    events = ["kill", "retry", "pause", "resume", "retry many", "remove", "remove many"]
    logs = [vars(record) for record in caplog.records if record.name == "jobq.audit"]
    assert [entry["action"] for entry in logs] == events
    assert logs[0]["msg"] == f"REST: kill by key admin from 127.0.0.1: queue main, job {job.removeprefix('main:')}"
    assert {(entry["key"], entry["queue"], entry["remote"]) for entry in logs} == {("admin", "main", "127.0.0.1")}
    assert logs[0]["job"] in job
    assert ADMIN[0] not in str(logs)


async def test_tracebacks_need_the_scope_write(new_client: NewClient, connection: Connection):
    queue = Queue("main", connection)
    client = await new_client(queue, api_keys=KEYS)
    client.session.headers.update(bearer(WRITE[0]))
    job = await enqueue(client, attempts=1)
    await fail_with_traceback(queue, job.removeprefix("main:"))
    for secret, sees in ((WRITE[0], True), (READ[0], False)):
        for path in (f"/jobs/{job}", "/jobs/failed/jobs", f"/jobs/{job}/result", f"/jobs/{job}/result?wait=1000"):
            text = await (await client.get(path, headers=bearer(secret))).text()
            assert ("the_inside" in text) is sees, path
            assert "ValueError" in text


async def fail_with_traceback(queue: Queue, job_id: str) -> None:
    from rest import working

    @queue.task(name="any")
    async def fail() -> None:
        the_inside = ValueError("no")
        raise the_inside  # The traceback shows this line of the source.

    async with working(queue):
        with pytest.raises(Exception, match="no"):
            await queue.result(job_id, timeout=10)


async def test_idempotency_keys_of_two_api_keys_have_nothing_in_common(new_client: NewClient, connection: Connection):
    ada, ben = new_key("ada", Scope.WRITE), new_key("ben", Scope.WRITE)
    client = await new_client(Queue("main", connection), api_keys=[ada[1], ben[1]])
    ids: list[str] = []
    for secret, _ in (ada, ben, ada):
        headers = bearer(secret) | {"Idempotency-Key": "order-7"}
        response = await client.post("/jobs/enqueue", json={"type": "a"}, headers=headers)
        ids.append((await response.json())["id"])
    assert ids[0] == ids[2] != ids[1]
