"""``asgi``: an application of ours inside ASGI (Starlette, FastAPI, Django), under any prefix.

aiohttp has no public way to accept a request that it has not read from a connection itself. So the application is
served on a unix socket in a directory that only this user can enter. Each ASGI request is streamed over a connection
to it, in both directions (docs/decisions/0025).
"""

from __future__ import annotations

import asyncio
import hmac
import io
import secrets
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Self

import aiohttp
from aiohttp import web
from yarl import URL

from jobq.errors import StoreError
from jobq.http import problems
from jobq.http.app import create_app
from jobq.http.call import HUB, ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

P = ParamSpec("P")

_BETWEEN_TWO: Final = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "expect", "proxy-connection"}
)
"""Headers that are valid for one connection. The client's connection to the ASGI server is not ours."""
_SERVERS: Final = _BETWEEN_TWO | {"date", "server"}
"""Headers of an answer that the ASGI server adds by itself."""
_TOLD: Final = "Jobq-Bridge"
"""The header in which the bridge passes on what a unix socket hides: the client's address, the scheme, the prefix."""


class Bridge:
    """An ASGI application. It starts with the first request, with ASGI's lifespan, or as a context manager.

    ``make_app``: an aiohttp application serves one event loop and cannot be started again. So each start makes a new
    one, which test suites need that start a service for each test.
    """

    def __init__(self, make_app: Callable[[], web.Application]) -> None:
        self._make_app = make_app
        self._secret = secrets.token_hex(16)
        self._starting: asyncio.Task[None] | None = None

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the queues. Several callers share one start. After a failure the next call tries again.

        :raises StoreError: a queue cannot be opened.
        """
        if self._starting is None or (self._starting.done() and not self._is_started(self._starting)):
            self._starting = asyncio.create_task(self._start(), name="jobq-asgi-start")
        await asyncio.shield(self._starting)

    @staticmethod
    def _is_started(starting: asyncio.Task[None]) -> bool:
        return not starting.cancelled() and starting.exception() is None

    async def _start(self) -> None:
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="jobq-asgi-"))
            path = str(Path(folder) / "http")
            app = self._make_app()
            app[HUB].unwrap = self._unwrap
            runner = web.AppRunner(app, access_log=None, auto_decompress=False)
            stack.push_async_callback(runner.cleanup)
            await runner.setup()
            await web.UnixSite(runner, path).start()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path, limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            )
            stack.push_async_callback(self._session.close)
            self._stack = stack.pop_all()

    async def aclose(self) -> None:
        """Let running requests end, and close the queues."""
        if self._starting is not None:
            starting, self._starting = self._starting, None
            await asyncio.wait([starting])
            if self._is_started(starting):
                await self._stack.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # -- ASGI ------------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection scope of ASGI."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            await self._answer(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.start()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.start()
        except StoreError as error:
            await _send(send, problems.response(error))
            return
        body = _Body(receive)
        data = await body.begin()
        copying = asyncio.create_task(self._copy(scope, data, send))
        leaving = asyncio.create_task(body.left())
        try:
            await asyncio.wait([copying, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not copying.done():
                copying.cancel()
            await asyncio.wait([copying, leaving])
        if not copying.cancelled() and not (body.is_left and isinstance(copying.exception(), OSError)):
            copying.result()

    async def _copy(self, scope: Scope, data: io.BytesIO | AsyncIterator[bytes] | None, send: Send) -> None:
        url = URL(f"http://localhost{_path(scope)}", encoded=True)
        async with self._session.request(
            scope["method"], url, headers=self._headers(scope), data=data, allow_redirects=False
        ) as response:
            headers = [(name.lower(), value) for name, value in response.raw_headers]
            kept = [(name, value) for name, value in headers if name.decode() not in _SERVERS]
            await send({"type": "http.response.start", "status": response.status, "headers": kept})
            async for chunk in response.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    def _headers(self, scope: Scope) -> list[tuple[str, str]]:
        given = [(name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in scope["headers"]]
        kept = [(name, value) for name, value in given if name not in _BETWEEN_TWO and name != _TOLD.lower()]
        client = scope.get("client")
        root = URL.build(path=scope.get("root_path", "")).raw_path.rstrip("/")
        told = [self._secret, client[0] if client else "", scope.get("scheme", "http"), root]
        return [*kept, (_TOLD, " ".join(told))]

    def _unwrap(self, request: web.Request) -> web.Request:
        """The request with the client's address, the scheme and the prefix that the ASGI server reported."""
        told = request.headers.get(_TOLD, "").split(" ")
        if len(told) != 4 or not hmac.compare_digest(told[0].encode(), self._secret.encode()):
            return request
        _, remote, scheme, root = told
        unwrapped = request.clone(remote=remote, scheme=scheme)
        unwrapped[ROOT] = root
        return unwrapped


class _Body:
    """Reads an ASGI request: first its body, then whether the client leaves."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read = asyncio.Event()
        self.is_left = False

    async def begin(self) -> io.BytesIO | AsyncIterator[bytes] | None:
        """The whole body if it came in one piece, else a stream of it, or None without a body."""
        message = await self._receive()
        if message["type"] == "http.request" and message.get("more_body"):
            return self._stream(message.get("body", b""))
        self._end(message)
        body = message.get("body")
        return io.BytesIO(body) if body else None

    async def _stream(self, first: bytes) -> AsyncIterator[bytes]:
        yield first
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._end(message)
                raise ConnectionResetError("the client left in the middle of its request")
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body"):
                self._end(message)
                return

    def _end(self, message: MutableMapping[str, Any]) -> None:
        self.is_left = message["type"] == "http.disconnect"
        self._read.set()

    async def left(self) -> None:
        """Returns once the client has left."""
        await self._read.wait()
        while not self.is_left:
            self._end(await self._receive())


def _path(scope: Scope) -> str:
    """Path and query below the prefix, escaped as the client sent them."""
    raw = (scope.get("raw_path") or URL.build(path=scope["path"]).raw_path.encode()).decode("latin-1")
    root = scope.get("root_path", "").rstrip("/")
    if root and (scope["path"] + "/").startswith(root + "/"):
        # Count segments instead of characters: the raw path may escape characters of the prefix.
        raw = "/" + "/".join(raw.split("/")[root.count("/") + 1 :])
    query = scope.get("query_string", b"").decode("latin-1")
    return f"{raw}?{query}" if query else raw


async def _send(send: Send, response: web.Response) -> None:
    headers = [(name.lower().encode(), value.encode()) for name, value in response.headers.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    assert isinstance(response.body, bytes)
    await send({"type": "http.response.body", "body": response.body})


def _bridging(make: Callable[P, web.Application]) -> Callable[P, Bridge]:
    def asgi(*queues: P.args, **options: P.kwargs) -> Bridge:
        """As ``create_app``, for ASGI: ``api.mount("/jobq", asgi(queue))`` in Starlette and FastAPI.

        It opens its queues with the first request, because ASGI frameworks do not send lifespan events to mounted
        applications. Use ``async with bridge:`` in your own lifespan: a Redis that is away is then noticed at the
        start, and the queues are closed at the end. ``allowed_hosts=[...]`` lists names that the Host header may have.
        """
        make(*queues, **options)  # This reports wrong options now instead of at the first request.
        return Bridge(lambda: make(*queues, **options))

    return asgi


asgi = _bridging(create_app)
