"""Inside ASGI: under a prefix of Starlette, FastAPI or Django, streamed both ways, with its dashboard."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from aiohttp import ClientSession, CookieJar, web
from aiohttp.test_utils import TestClient, TestServer
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path
from fastapi import FastAPI
from rest import problem, working
from starlette.applications import Starlette
from starlette.routing import Mount
from yarl import URL

from jobq import Connection, Queue, create_app
from jobq.http import asgi
from jobq.http.auth import Scope, new_key
from jobq.http.serve import free_port
from jobq.http.sessions import COOKIE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from rest import Until

    from jobq.http.bridge import Bridge


@asynccontextmanager
async def serving(app: Any, until: Until, **options: Any) -> AsyncIterator[str]:
    """Serve an ASGI application. Yields the URL."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", ws="none", **options))
    running = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started, "uvicorn to serve")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await running


def in_django(bridge: Bridge) -> Any:
    """As docs/embedding.md says: Django does not use the lifespan, so jobq gets it."""
    if not settings.configured:
        settings.configure(SECRET_KEY="for tests", ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__)
    django = get_asgi_application()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or scope["path"].startswith("/ops/jobq/"):
            await bridge({**scope, "root_path": "/ops/jobq"}, receive, send)
        else:
            await django(scope, receive, send)

    return application


urlpatterns = [path("hello", lambda request: HttpResponse(b"hello from Django at " + request.path.encode()))]


def mounted(kind: str, bridge: Bridge) -> Any:
    """The bridge mounted in another application, under /ops/jobq."""
    if kind == "django":
        return in_django(bridge)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async with bridge:
            yield

    if kind == "fastapi":
        app = FastAPI(lifespan=lifespan)
        app.mount("/ops/jobq", bridge)
        return app
    return Starlette(routes=[Mount("/ops", routes=[Mount("/jobq", app=bridge)])], lifespan=lifespan)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this test alone makes temporary files. Its name is short, because a socket is in it."""
    with tempfile.TemporaryDirectory(prefix="jobq-") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


def is_used(folder: Path) -> bool:
    return any(folder.iterdir())


async def test_the_rest_of_a_django_application_is_djangos(connection: Connection, until: Until):
    bridge = asgi(Queue("main", connection))
    async with serving(mounted("django", bridge), until) as base, ClientSession() as session:
        async with session.get(f"{base}/hello") as response:
            assert await response.text() == "hello from Django at /hello"
        async with session.get(f"{base}/nothing") as response:
            assert (response.status, response.headers["Content-Type"]) == (404, "text/html; charset=utf-8")
        async with session.get(f"{base}/ops/jobq/jobs/stats") as response:
            assert (await response.json())["waiting"] == 0


@pytest.mark.parametrize("kind", ["fastapi", "starlette", "django"])
async def test_rest_under_a_prefix(connection: Connection, until: Until, kind: str, folder: Path):
    queue = Queue("main", connection)

    @queue.task
    async def echo(data: str) -> str:
        return data

    bridge = asgi(queue)
    async with serving(mounted(kind, bridge), until) as base, ClientSession() as session:
        root = f"{base}/ops/jobq"
        assert queue.is_open
        assert is_used(folder)
        text = "\u00e9" * 100_000
        async with session.post(f"{root}/jobs/enqueue", json={"type": "echo", "payload": {"data": text}}) as response:
            assert response.status == 201
            job = (await response.json())["id"]
        async with working(queue), session.get(f"{root}/jobs/{job}/result?wait=20000") as response:
            assert await response.json() == text
        for path in (f"/jobs/{job}", f"/jobs/{job.replace(':', '%3A')}"):
            async with session.get(URL(root + path, encoded=True)) as response:
                assert (await response.json())["id"] == job
                assert len(response.headers.getall("Date")) == len(response.headers.getall("Server")) == 1
        for odd in ("a%2Fb", "%7B%7D", "%00", "main:%2F%2F"):
            async with session.get(URL(f"{root}/jobs/{odd}", encoded=True)) as response:
                await problem(response, 404, "job-not-found")
        async with session.get(f"{root}/jobs?limit=0") as response:
            await problem(response, 422, "invalid-field")
        async with session.head(f"{root}/jobs/stats") as response:
            assert response.status == 200
        async with session.put(f"{root}/jobs") as response:
            assert (await problem(response, 405, "method-not-allowed"))["allowed"] == ["DELETE", "GET"]
        async with session.delete(f"{root}/jobs/{job}") as response:
            assert (response.status, await response.read()) == (204, b"")
    assert not queue.is_open
    assert not is_used(folder)


async def test_bodies_come_in_pieces_and_too_large_ones_are_refused_before_their_end(
    connection: Connection, until: Until
):
    bridge = asgi(Queue("main", connection), max_body=100_000)

    async def pieces(count: int) -> AsyncIterator[bytes]:
        yield b'{"type":"a","payload":"'
        for _ in range(count):
            yield b"x" * 10_000
        yield b'"}'

    headers = {"Content-Type": "application/json"}
    async with serving(mounted("starlette", bridge), until) as base, ClientSession() as session:
        async with session.post(f"{base}/ops/jobq/jobs/enqueue", data=pieces(5), headers=headers) as response:
            assert response.status == 201
        async with session.post(f"{base}/ops/jobq/jobs/enqueue", data=pieces(50), headers=headers) as response:
            await problem(response, 413, "too-large")
        packed = headers | {"Content-Encoding": "gzip"}
        async with session.post(f"{base}/ops/jobq/jobs/enqueue", data=b"x" * 100, headers=packed) as response:
            await problem(response, 415, "unsupported-media-type")


async def test_events_stream_and_end_with_the_client(connection: Connection, until: Until):
    bridge = asgi(Queue("main", connection))
    async with serving(mounted("fastapi", bridge), until) as base, ClientSession() as session:
        async with session.get(f"{base}/ops/jobq/jobs/stats/events") as response:
            assert response.content_type == "text/event-stream"
            seen = b""
            while seen.count(b"event: stats") < 2:
                seen += await response.content.readany()
            assert polling()
        await until(lambda: not polling(), "the stream to end with its client")


def polling() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "jobq-events-main"]


async def test_a_client_that_leaves_during_its_body_causes_no_error_log(
    connection: Connection, until: Until, caplog: pytest.LogCaptureFixture
):
    bridge = asgi(Queue("main", connection))
    async with serving(mounted("starlette", bridge), until) as base:
        url = URL(base)
        _, writer = await asyncio.open_connection(url.host, url.port)
        head = "POST /ops/jobq/jobs/enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: 1000\r\n\r\n".encode() + b'{"type":')
        await writer.drain()
        await until(lambda: copying() == 1, "the body to be awaited")
        writer.close()
        await until(lambda: copying() == 0, "the request to end")
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


def copying() -> int:
    return sum("Bridge._copy" in repr(task) for task in asyncio.all_tasks())


@pytest.mark.parametrize("around", ["asgi", "aiohttp", "nothing"])
async def test_links_cookies_and_documents_follow_the_prefix(connection: Connection, until: Until, around: str):
    secret, key = new_key("ann", Scope.ADMIN)
    queue = Queue("main", connection)
    app = create_app(queue, api_keys=[key])
    async with contextlib.AsyncExitStack() as stack:
        prefix = "" if around == "nothing" else "/ops/jobq"
        if around == "asgi":
            base = await stack.enter_async_context(serving(mounted("starlette", asgi(queue, api_keys=[key])), until))
        else:
            outer = app
            if prefix:
                outer = web.Application()
                outer.add_subapp(prefix, app)
            client = await stack.enter_async_context(TestClient(TestServer(outer)))
            base = str(client.make_url("")).rstrip("/")
        session = await stack.enter_async_context(ClientSession(cookie_jar=CookieJar(unsafe=True)))
        root = base + prefix
        async with session.get(f"{root}/openapi.json") as response:
            assert (await response.json())["servers"] == [{"url": prefix or "/"}]
        async with session.post(f"{root}/dashboard/login", data={"key": secret}) as response:
            assert (response.status, response.url.path) == (200, f"{prefix}/dashboard"), "redirected to the page"
        async with session.post(f"{root}/dashboard/login", json={"key": secret}) as response:
            assert response.cookies[COOKIE]["path"] == (prefix or "/")
        async with session.get(f"{root}/dashboard/session") as response:
            assert (await response.json())["key"] == "ann"
        async with session.get(f"{root}/dashboard/", allow_redirects=False) as response:
            assert response.url.join(URL(response.headers["Location"])).path == f"{prefix}/dashboard"
        async with session.post(f"{root}/dashboard/logout", headers={"Origin": base}) as response:
            assert (response.status, response.cookies[COOKIE]["path"]) == (204, prefix or "/")
        async with session.get(f"{root}/jobs") as response:
            await problem(response, 401, "unauthenticated")


async def test_the_address_is_that_of_the_client_and_cannot_be_forged(
    connection: Connection, until: Until, caplog: pytest.LogCaptureFixture
):
    bridge = asgi(Queue("main", connection), api_keys=[new_key("a")[1]])
    with caplog.at_level("INFO", "jobq.audit"):
        async with serving(mounted("starlette", bridge), until) as base, ClientSession() as session:
            for told in ("x 192.0.2.7 https /evil", "", "a b c d e"):
                response = await session.post(
                    f"{base}/ops/jobq/dashboard/login", json={"key": "wrong"}, headers={"Jobq-Bridge": told}
                )
                await problem(response, 401, "unauthenticated")
    remotes = [record.remote for record in caplog.records if record.name == "jobq.audit"]  # pyright: ignore
    assert remotes == ["127.0.0.1"] * 3


async def test_without_a_lifespan_it_starts_with_the_first_requests(connection: Connection, until: Until):
    queue = Queue("main", connection)
    bridge = asgi(queue)
    app = Starlette(routes=[Mount("/jobq", app=bridge)])
    async with serving(app, until) as base, ClientSession() as session:
        assert not queue.is_open
        answers = await asyncio.gather(*(session.get(f"{base}/jobq/readyz") for _ in range(5)))
        assert [answer.status for answer in answers] == [200] * 5
    await bridge.aclose()
    assert not queue.is_open


async def test_as_the_only_application_it_follows_the_servers_lifespan(connection: Connection, until: Until):
    queue = Queue("main", connection)
    async with serving(asgi(queue), until, lifespan="on") as base, ClientSession() as session:
        assert queue.is_open
        async with session.get(f"{base}/healthz") as response:
            assert await response.json() == {"ok": True}
    assert not queue.is_open


def test_one_bridge_can_be_started_again_in_another_event_loop(redis_url: str):
    bridge = asgi(Queue("main", redis_url))
    scope = {"type": "http", "method": "GET", "path": "/readyz", "headers": [(b"host", b"localhost")]}

    async def once() -> list[Any]:
        said: list[Any] = []
        asked = iter([{"type": "http.request"}])

        async def receive() -> Any:
            return next(asked, None) or await asyncio.Event().wait()

        async def send(message: Any) -> None:
            said.append(message)

        async with bridge:
            await bridge(scope, receive, send)
        return said

    for _ in range(2):
        said = asyncio.run(once())
        assert (said[0]["status"], b"".join(part.get("body", b"") for part in said[1:])) == (
            200,
            b'{"failing":[],"ok":true}',
        )


def test_wrong_options_are_refused_at_once():
    with pytest.raises(ValueError, match="name of its own"):
        asgi()


async def test_redis_away_at_the_first_request_is_503(until: Until):
    app = Starlette(routes=[Mount("/jobq", app=asgi(Queue("main", "redis://127.0.0.1:1")))])
    async with serving(app, until) as base, ClientSession() as session:
        for _ in range(2):  # The second request tries again.
            async with session.get(f"{base}/jobq/jobs") as response:
                await problem(response, 503, "redis-unavailable")


@pytest.mark.parametrize(
    ("scope", "path"),
    [
        ({"path": "/a b/jobs/x", "raw_path": b"/a%20b/jobs/x", "root_path": "/a b"}, "/jobs/x"),
        ({"path": "/q/jobs/a/b", "raw_path": b"/q/jobs/a%2Fb", "root_path": "/q", "query_string": b"a=%20"},
         "/jobs/a%2Fb?a=%20"),
        ({"path": "/jobs/x", "raw_path": b"/jobs/x", "root_path": "/q"}, "/jobs/x"),
        ({"path": "/q", "raw_path": b"/q", "root_path": "/q"}, "/"),
        ({"path": "/q/", "raw_path": b"/q/", "root_path": "/q/"}, "/"),
        ({"path": "/queues/x", "raw_path": b"/queues/x", "root_path": "/q"}, "/queues/x"),
        ({"path": "/q/\u00e9"}, "/q/%C3%A9"),
    ],
)  # fmt: skip
async def test_the_path_below_the_prefix(scope: dict[str, Any], path: str):
    from jobq.http.bridge import _path

    assert _path(scope) == path


async def test_a_websocket_is_closed():
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    await asgi(Queue("main", "redis://127.0.0.1:1"))({"type": "websocket"}, None, send)  # pyright: ignore
    assert json.dumps(said) == '[{"type": "websocket.close", "code": 1000}]'
