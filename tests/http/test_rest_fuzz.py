"""No input causes a 500: unusual text in every place that takes text, and bytes that are not HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from aiohttp import ClientSession
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest import Served, serving
from yarl import URL

from jobq import Connection, Queue
from jobq.http.app import create_app
from jobq.http.routes import ROUTES
from jobq.http.schema import Enqueue
from jobq.http.strict import BadJSON, check_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import ClientResponse

    from jobq.http.route import Route

LIMITS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NASTY = ["", "\x00", "\n", "\r\nX: 1", ":", "::", "{}", "{queue}", "..", "../..", "%2e", "a:b:c", "\u202e", "#?&;"]
text = st.one_of(
    st.sampled_from([*NASTY, "x" * 10_000]), st.text(max_size=40), st.text(alphabet=":{}%/.\x00\r\n ", max_size=10)
)
numbers = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, text),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(text, inner, max_size=4)),
    max_leaves=12,
)
jobs = st.dictionaries(st.sampled_from([*Enqueue.__struct_fields__, "other"]), values)
bodies = st.one_of(values, jobs, st.lists(st.just({"type": "a"}) | jobs | values, max_size=4))
METHODS = ["GET", "POST", "DELETE", "PUT", "OPTIONS", "PATCH", "TRACE", "BREW"]


@pytest.fixture
async def served(connection: Connection) -> AsyncIterator[Served]:
    """An application behind ``serve``."""
    async with serving(create_app(Queue("main", connection))) as served:
        yield served


@pytest.fixture
async def client(served: Served) -> AsyncIterator[ClientSession]:
    """An HTTP session with the application."""
    async with ClientSession(f"http://127.0.0.1:{served.port}") as session:
        yield session


async def sound(response: ClientResponse) -> None:
    """The answer is JSON, and a problem if its content type says so."""
    body = await response.read()
    assert response.status < 500, (response.status, body)
    assert response.headers["Server"] == "jobq"
    if response.status >= 400:
        assert response.content_type == "application/problem+json"
        problem = json.loads(body)
        assert problem["status"] == response.status
        assert len(problem["detail"]) < 2000
    elif body:
        json.loads(body)


def address(served: Served, path: str, query: str = "") -> URL:
    return URL(f"http://127.0.0.1:{served.port}{path}{query}", encoded=True)


@LIMITS
@given(route=st.sampled_from(ROUTES), one=text, other=text)
async def test_paths(client: ClientSession, served: Served, route: Route, one: str, other: str):
    path = route.paths()[-1].replace("{queue}", quote(one, safe="")).replace("{id}", quote(other, safe=""))
    await sound(await client.request(route.method, address(served, path)))


@LIMITS
@given(path=text, method=st.sampled_from(METHODS))
async def test_any_path_and_method(client: ClientSession, served: Served, path: str, method: str):
    await sound(await client.request(method, address(served, f"/{quote(path)}")))


# A stream of events does not end. test_rest_events.py reads it.
ASKED = [route for route in ROUTES if route.query and not route.path.endswith("/events")]


@LIMITS
@given(route=st.sampled_from(ASKED), names=st.dictionaries(text, text, max_size=3))
async def test_queries(client: ClientSession, served: Served, route: Route, names: dict[str, str]):
    assert route.query
    known = route.query.__struct_fields__
    spelt = [(known[len(name) % len(known)] if len(value) % 2 else name, value) for name, value in names.items()]
    query = "?" + "&".join(f"{quote(name[:50])}={quote(value[:1000])}" for name, value in spelt)
    path = route.path.replace("{id}", "00000000000000000")
    await sound(await client.request(route.method, address(served, path, query)))


@LIMITS
@given(body=bodies)
async def test_bodies(client: ClientSession, body: Any):
    await sound(await client.post("/jobs/enqueue", json=body))


@LIMITS
@given(
    raw=st.one_of(st.binary(max_size=60), st.binary(max_size=20).map(lambda raw: b'{"type":"a","payload":%b}' % raw))
)
async def test_bytes(client: ClientSession, raw: bytes):
    await sound(await client.post("/jobs/enqueue", data=raw, headers={"Content-Type": "application/json"}))


@LIMITS
@given(payload=values)
async def test_accepted_json_comes_back_unchanged(client: ClientSession, payload: Any):
    sent = json.dumps(payload, ensure_ascii=False).encode()
    try:
        check_json(sent)
    except BadJSON:
        return  # For example, two keys that are the same after unescaping.
    headers = {"Content-Type": "application/json"}
    response = await client.post("/jobs/enqueue", data=b'{"type":"a","payload":%b}' % sent, headers=headers)
    assert response.status == 201
    shown = await (await client.get(f"/jobs/{(await response.json())['id']}")).read()
    assert b'"payload":%b,"priority"' % sent in shown
    assert json.loads(shown)["payload"] == payload


NAMES = "Idempotency-Key Authorization Content-Type Host Origin Sec-Fetch-Site Accept Expect Content-Length"
HEADERS = NAMES.encode().split()


@LIMITS
@given(name=st.sampled_from(HEADERS), value=st.binary(max_size=40))
async def test_headers(served: Served, name: bytes, value: bytes):
    head = b"POST /jobs/enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    await survives(served, head + name + b": " + value + b"\r\nContent-Length: 12\r\n\r\n" + b'{"type":"a"}')


@LIMITS
@given(raw=st.one_of(st.binary(max_size=200), st.binary(max_size=50).map(lambda raw: b"GET /" + raw + b" HTTP/1.1")))
async def test_bytes_on_the_wire(served: Served, raw: bytes):
    await survives(served, raw + b"\r\n\r\n")


async def survives(served: Served, raw: bytes) -> None:
    """The answer is not a 5xx, and the next client is served."""
    reader, writer = await served.connect()
    writer.write(raw)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(65536), 10)
    writer.close()
    assert not answer.startswith((b"HTTP/1.1 5", b"HTTP/1.0 5")), answer
