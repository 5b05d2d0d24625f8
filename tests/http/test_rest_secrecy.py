"""Information that an API key, an unknown caller or a log line must not reveal."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from rest import enqueue, problem, serving, working
from yarl import URL

from jobq import Connection, Queue, create_app
from jobq.errors import JobFailed, SettingsError
from jobq.http.auth import Scope, new_key
from jobq.http.call import ApiCall
from jobq.http.guard import FAILURES_AT_ONCE, address_of
from jobq.http.serve import serve

if TYPE_CHECKING:
    from rest import Client, NewClient, Until

MAIL = new_key("mail", Scope.ADMIN, ["mail"])
ALL = new_key("all", Scope.ADMIN)
READER = new_key("reader", Scope.READ)
KEYS = [MAIL[1], ALL[1], READER[1]]


def bearer(key: tuple[str, object]) -> dict[str, str]:
    return {"Authorization": f"Bearer {key[0]}"}


# -- where it is served ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "example.com"])
async def test_a_public_address_is_refused_without_keys(connection: Connection, host: str):
    with pytest.raises(SettingsError, match=r"JOBQ_API_KEYS .* api_keys=.* 127\.0\.0\.1"):
        await serve(create_app(Queue("main", connection)), host, 0)


async def test_with_keys_any_address_is_served(connection: Connection):
    async with serving(create_app(Queue("main", connection), api_keys=KEYS), host="0.0.0.0") as served:
        assert served.port


# -- queues of others -----------------------------------------------------------------------------------------------


async def test_a_queue_of_another_key_looks_like_one_that_does_not_exist(new_client: NewClient, connection: Connection):
    client = await new_client(*(Queue(name, connection) for name in ("main", "mail", "secret")), api_keys=KEYS)
    job = (await enqueue_as(client, ALL, "/queues/secret/jobs/enqueue")).rpartition(":")[2]
    routes = [
        ("GET", "/jobs"), ("GET", "/jobs/stats"), ("GET", "/workers"), ("GET", "/events"),
        ("GET", "/jobs/stats/events"), ("POST", "/jobs/pause"),
        ("GET", f"/jobs/{job}"), ("DELETE", f"/jobs/{job}"),
    ]  # fmt: skip
    for method, path in routes:
        bodies = []
        for name in ("secret", "absent"):
            response = await client.request(method, f"/queues/{name}{path}", headers=bearer(MAIL))
            bodies.append((await response.text()).replace(name, "NAME"))
            assert response.status == 404
        assert bodies[0] == bodies[1]
    for method, tail in (("GET", ""), ("GET", "/result"), ("POST", "/kill"), ("DELETE", "")):
        bodies = []
        for name in ("secret", "absent"):
            response = await client.request(method, f"/jobs/{name}:{job}{tail}", headers=bearer(MAIL))
            bodies.append((await response.text()).replace(name, "NAME"))
            assert response.status == 404
        assert bodies[0] == bodies[1]
    body = await problem(await client.get("/jobs", headers=bearer(MAIL)), 403, "forbidden")
    assert "main" not in str(body)


async def enqueue_as(client: Client, key: tuple[str, object], path: str) -> str:
    response = await client.post(path, json={"type": "any"}, headers=bearer(key))
    assert response.status == 201
    return (await response.json())["id"]


async def test_the_workers_of_a_queue_reveal_no_other_queues(
    new_client: NewClient, connection: Connection, until: Until
):
    mail, secret = Queue("mail", connection), Queue("secret", connection)
    mail.task(name="send")(lambda: None)
    secret.task(name="acquire_company")(lambda: None)
    client = await new_client(mail, secret, api_keys=KEYS)
    async with working(mail, secret):

        async def listed() -> bool:
            return bool((await (await client.get("/queues/mail/workers", headers=bearer(MAIL))).json())["workers"])

        await until(listed, "the worker to be listed")
        text = await (await client.get("/queues/mail/workers", headers=bearer(MAIL))).text()
        assert "send" in text
        assert "secret" not in text
        assert "acquire_company" not in text


# -- tracebacks -----------------------------------------------------------------------------------------------------


async def test_a_waiter_sees_the_same_error_whoever_else_is_waiting(new_client: NewClient, connection: Connection):
    queue = Queue("main", connection)

    @queue.task(attempts=1)
    async def fails() -> None:
        raise ValueError("no")

    client = await new_client(queue, api_keys=KEYS)
    job = await enqueue_as_type(client, "fails")
    waits = [client.get(f"/jobs/{job}/result?wait=20000", headers=bearer(key)) for key in (READER, ALL, READER, ALL)]
    answers = [asyncio.create_task(wait) for wait in waits]
    local = asyncio.create_task(queue.result(job.rpartition(":")[2]))
    async with working(queue):
        bodies = [await problem(await answer, 409, "job-failed") for answer in answers]
        assert [body["traceback"] is None for body in bodies] == [True, False, True, False]
        with pytest.raises(JobFailed) as caught:
            await local
        assert caught.value.traceback is not None


async def enqueue_as_type(client: Client, type_: str) -> str:
    response = await client.post("/jobs/enqueue", json={"type": type_}, headers=bearer(ALL))
    return (await response.json())["id"]


# -- guesses --------------------------------------------------------------------------------------------------------


async def test_failed_authentications_are_limited_and_valid_keys_are_not(
    new_client: NewClient, connection: Connection, caplog: pytest.LogCaptureFixture
):
    client = await new_client(Queue("main", connection), api_keys=KEYS)
    wrong = [
        {"headers": {"Authorization": "Bearer wrong"}},
        {"headers": {"Cookie": "jobq_session=1.a"}},
        {"headers": {}},
    ]
    statuses = [(await client.get("/jobs", **wrong[n % 3])).status for n in range(int(FAILURES_AT_ONCE) + 5)]
    assert statuses[: int(FAILURES_AT_ONCE)] == [401] * int(FAILURES_AT_ONCE)
    last = await client.post("/dashboard/login", json={"key": "wrong"})
    await problem(last, 429, "rate-limited")
    assert int(last.headers["Retry-After"]) >= 1
    assert "login refused" not in caplog.text
    assert (await client.get("/jobs", headers=bearer(ALL))).status == 200
    assert (await client.post("/dashboard/login", json={"key": ALL[0]})).status == 204


@pytest.mark.parametrize(
    ("remote", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"), ("::ffff:192.0.2.7", "::ffff:192.0.2.7"), ("", ""), (None, ""),
    ],
)  # fmt: skip
def test_an_ipv6_network_counts_as_one_address(remote: str | None, counted: str):
    request: Any = type("Request", (), {"remote": remote})()
    assert address_of(request) == counted


# -- clients that leave ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("abort", [False, True])
async def test_a_client_that_leaves_during_its_body_causes_no_error_log(
    connection: Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, framing: str, abort: bool
):
    begun, left = asyncio.Event(), asyncio.Event()
    read = ApiCall.read

    async def watched(call: ApiCall, limit: int) -> bytes:
        begun.set()
        try:
            return await read(call, limit)
        finally:
            left.set()

    monkeypatch.setattr(ApiCall, "read", watched)
    app = create_app(Queue("main", connection))
    async with serving(app) as served:
        _, writer = await served.connect()
        head = f"POST /jobs/enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{framing}\r\n\r\n"
        writer.write(head.encode() + b'3e8\r\n{"type":')
        await writer.drain()
        await asyncio.wait_for(begun.wait(), 10)
        if abort:
            writer.transport.abort()
        else:
            writer.close()
        await asyncio.wait_for(left.wait(), 10)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


# -- odd ids --------------------------------------------------------------------------------------------------------

ODD = [
    *(f"%{n:02X}" for n in range(256)), "{", "}", "{id}", "%7Bid%7D", "a%2Fb", "%2F", "%252F", "%", "%zz", "a%00b",
    "%E2%80%AE", "%C3%28", "a;b", "a:b:c", "main:", ":", "main:%2F", "x%2Fresult", "%0A", "a%0Ab", "~",
    "*", "%3F", "%23",
]  # fmt: skip
VERBS = [
    ("GET", ""), ("DELETE", ""), ("GET", "/result"), ("GET", "/logs"), ("GET", "/why"), ("POST", "/kill"),
    ("POST", "/retry"), ("POST", "/promote"), ("POST", "/priority"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "tail"), VERBS)
async def test_an_unusual_id_is_404(client: Client, method: str, tail: str):
    draw = random.Random(7)
    drawn = ["".join(draw.choice("{}%2Fab:.~/;'\"\\<>|^`[]") for _ in range(8)).replace("/", "%2F") for _ in range(60)]
    for odd in [*ODD, *(text for text in drawn if "%" not in text.replace("%2F", ""))]:
        for start in ("/jobs/", "/queues/main/jobs/"):
            body = {"priority": 1} if tail == "/priority" else None
            response = await client.request(method, URL(f"{start}{odd}{tail}", encoded=True), json=body)
            found = await problem(response, 404, "job-not-found")
            assert found["detail"]


async def test_an_unusual_queue_name_is_404(client: Client):
    for odd in ODD:
        response = await client.get(URL(f"/queues/{odd}/jobs", encoded=True))
        await problem(response, 404, "unknown-queue")


async def test_an_id_that_exists_is_found_however_it_is_escaped(client: Client):
    job = await enqueue(client)
    for written in (job, job.replace(":", "%3A"), "".join(f"%{ord(char):02x}" for char in job)):
        response = await client.get(URL(f"/jobs/{written}", encoded=True))
        assert (await response.json())["id"] == job
