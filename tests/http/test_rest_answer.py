"""The answer that is written at once: its bytes are those of aiohttp, and changes by other code are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from rest import serving

from jobq.http.answer import Answer
from jobq.http.serve import Deadlines

if TYPE_CHECKING:
    from collections.abc import Callable

    from rest import Until

BODY = b'{"id":"a"}'


async def answer(_: web.Request) -> Answer:
    return Answer(BODY, 201)


def application(*middlewares: Any) -> web.Application:
    app = web.Application(middlewares=middlewares)
    app.router.add_get("/", answer)
    return app


async def look(_request: web.Request, _response: web.StreamResponse) -> None:
    """If an application wants to see every response, aiohttp sends it in the usual way."""


def parts(raw: bytes) -> list[tuple[bytes, list[bytes]]]:
    """Responses as status lines and their sorted headers. The second of the Date may differ."""
    found: list[tuple[bytes, list[bytes]]] = []
    for one in raw.split(b"HTTP/1.")[1:]:
        first, *rest = one.split(b"\r\n")
        found.append((first, sorted(line[:28] if line.startswith(b"Date: ") else line for line in rest)))
    return found


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n",
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n",
    ],
)
async def test_the_bytes_are_those_of_aiohttp(head: bytes):
    seen = application()
    seen.on_response_prepare.append(look)
    raw = head + b"\r\n" + head.replace(b"\r\nConnection: keep-alive", b"") + b"Connection: close\r\n\r\n"
    async with serving(application()) as ours, serving(seen) as theirs:
        here, there = await ours.exchange(raw), await theirs.exchange(raw)
    assert parts(here) == parts(there)
    assert len(parts(here)) == 2
    assert here.count(BODY) == (0 if head.startswith(b"HEAD") else 2)


CHANGES: dict[str, tuple[Callable[[web.Response], Any], Callable[[Any], bool]]] = {
    "a header": (
        lambda response: response.headers.update({"Cache-Control": "private", "X-Trace": "1"}),
        lambda response: (response.headers["Cache-Control"], response.headers["X-Trace"]) == ("private", "1"),
    ),
    "a header less": (
        lambda response: response.headers.popall("Server"),
        lambda response: response.headers["Server"] != "jobq",
    ),
    "a cookie": (
        lambda response: response.set_cookie("a", "b"),
        lambda response: response.cookies["a"].value == "b",
    ),
    "a status": (
        lambda response: response.set_status(202),
        lambda response: (response.status, response.reason) == (202, "Accepted"),
    ),
    "a reason": (
        lambda response: response.set_status(201, "Fine"),
        lambda response: response.reason == "Fine",
    ),
    "a body": (
        lambda response: setattr(response, "text", '{"id":"a"}'),
        lambda response: response.headers["Content-Length"] == "10",
    ),
    "compression": (
        lambda response: response.enable_compression(web.ContentCoding.gzip),
        lambda response: response.headers["Content-Encoding"] == "gzip",
    ),
    "chunks": (
        lambda response: response.enable_chunked_encoding(),
        lambda response: response.headers["Transfer-Encoding"] == "chunked",
    ),
    "the end": (
        lambda response: response.force_close(),
        lambda response: response.headers["Connection"] == "close",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_changes_of_an_outer_middleware_are_sent(name: str):
    change, shows = CHANGES[name]

    @web.middleware
    async def changing(request: web.Request, handler: Any) -> web.StreamResponse:
        response = await handler(request)
        change(response)
        return response

    async with TestClient(TestServer(application(changing))) as client:
        response = await client.get("/")
        assert shows(response)
        assert await response.read() == BODY
        assert (await client.get("/")).status in (201, 202), "the connection is in order, or there is a new one"


async def test_a_status_without_a_body_has_none():
    @web.middleware
    async def emptying(request: web.Request, handler: Any) -> web.StreamResponse:
        response = await handler(request)
        response.set_status(204)
        return response

    async with serving(application(emptying)) as served:
        raw = b"GET / HTTP/1.1\r\nHost: a\r\n"
        said = await served.exchange(raw + b"\r\n" + raw + b"Connection: close\r\n\r\n")
    assert said.count(b"HTTP/1.1 204") == 2
    assert BODY not in said
    assert b"Content-Length" not in said


async def test_a_signal_of_an_outer_application_sees_the_answer_before_it_is_sent():
    async def allow(_request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Access-Control-Allow-Origin"] = "https://a.example"

    outer = web.Application()
    outer.on_response_prepare.append(allow)
    outer.add_subapp("/q", application())
    async with TestClient(TestServer(outer)) as client:
        response = await client.get("/q/")
        assert response.headers["Access-Control-Allow-Origin"] == "https://a.example"
        assert await response.read() == BODY


async def test_a_middleware_may_send_it_itself():
    @web.middleware
    async def sending(request: web.Request, handler: Any) -> web.StreamResponse:
        response = await handler(request)
        await response.prepare(request)
        return response

    async with TestClient(TestServer(application(sending))) as client:
        for _ in range(2):
            assert await (await client.get("/")).read() == BODY


async def test_a_client_that_sends_requests_and_never_reads_has_to_wait(until: Until):
    asked = 0

    async def large(_: web.Request) -> Answer:
        nonlocal asked
        asked += 1
        return Answer(b'"' + 10_000 * b"x" + b'"', 200)

    app = web.Application()
    app.router.add_get("/", large)
    async with serving(app, deadlines=Deadlines(write=0.2)) as served:
        _, writer = await served.connect()
        writer.transport.pause_reading()  # pyright: ignore
        writer.write(20_000 * b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")

        def dropped() -> bool:
            writer.write(b"\r\n")  # The server's reset is noticed at a write.
            return writer.is_closing()

        await until(dropped, "the connection to be dropped")
        writer.close()
    assert 0 < asked < 5_000, "200 MB would have been kept for it"
