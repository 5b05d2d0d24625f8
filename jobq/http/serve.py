"""``serve`` runs an application until it is told to stop, with deadlines that aiohttp's own runner lacks.

A connection is closed after a while if it starts a request and does not finish its head, or if it does not read its
answer. Connections over the limit are closed at once. (A body has its own deadline, in ``call.py``.) Bytes that are not
HTTP are answered with a problem, like any other error.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

from jobq.http import problems
from jobq.http.auth import check_bind
from jobq.http.call import HUB

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import StreamReader

_OTHER_FILES: Final = 100
"""Files that the process needs for other things: connections to Redis, its log, the listener, the embedding program."""
_IN_HAND: Final = 4
"""Turns of the event loop until a connection over the limit is closed again."""


class Deadlines(msgspec.Struct, frozen=True):
    """Deadlines in seconds. ``head``: from a request's first byte to the end of its head. ``write``: for a client to
    read its answer. ``idle``: between requests. ``close``: for running requests when the server stops."""

    head: float = 10.0
    write: float = 30.0
    idle: float = 75.0
    close: float = 10.0


class _Connection(web.RequestHandler):
    """aiohttp's connection, which also records for how long it has been waiting for its client."""

    def __init__(self, connections: _Connections, **options: Any) -> None:
        super().__init__(connections.server, loop=connections.loop, **options)
        self._connections = connections
        self.busy = False
        """Whether a request is being answered. Data that arrives meanwhile is its body or the next request."""
        self.body: StreamReader | None = None
        """The body of the last request. It may be answered before all of its body has arrived."""
        self.head_begun = False
        self.head_since: float | None = None
        """When the watch first saw that a head had begun. Reading the clock for each request would cost more."""
        self.unread_since: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.opened(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connections.alive.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.busy and (self.body is None or self.body.is_eof()):
            self.head_begun = True
        super().data_received(data)

    def resume_reading(self, resume_parser: bool = True) -> None:
        # aiohttp calls this at every read of a body and goes through parser and transport even if nothing was paused,
        # which takes a tenth of an enqueue's time. It has no public way to ask. Without the private attribute, call it.
        if getattr(self, "_reading_paused", True):
            super().resume_reading(resume_parser)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.unread_since = self._connections.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.unread_since = None

    def refuse(self, problem: problems.HttpProblem) -> None:
        """Answer before there is a request, and close."""
        if self.transport is not None:
            self.transport.write(_raw(problem))
            self.transport.close()

    def drop(self) -> None:
        """Close without waiting for the client to read the rest."""
        if self.transport is not None:
            self.transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a malformed request with a problem."""
        if status >= 500 or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        said = (message or "").partition("\n")[0].rstrip(": ")[:200]
        detail = f"{said or 'not HTTP'}; send HTTP/1.1 as RFC 9112 defines it"
        response = problems.response(problems.HttpProblem(problems.MALFORMED_REQUEST, detail))
        response.force_close()
        return response


class _Connections:
    """All connections of a server, and the timer that watches them."""

    def __init__(self, server: web.Server, most: int, deadlines: Deadlines) -> None:
        self.server = server
        self.loop = asyncio.get_running_loop()
        self._answer = server.request_handler
        server.request_handler = self.answer
        self.alive: set[_Connection] = set()
        self._most = most
        self._deadlines = deadlines

    def __call__(self) -> _Connection:
        return _Connection(
            self,
            access_log=None,
            keepalive_timeout=self._deadlines.idle,
            lingering_time=min(5.0, self._deadlines.head),
            # Compressed bodies are refused. Inflating one first would delay all other requests.
            auto_decompress=False,
        )

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Let the application answer a request whose head has arrived."""
        connection = request.protocol
        assert isinstance(connection, _Connection)
        connection.busy, connection.body = True, request.content
        connection.head_begun, connection.head_since = False, None
        try:
            return await self._answer(request)
        finally:
            connection.busy = False

    def opened(self, connection: _Connection) -> None:
        self.alive.add(connection)
        if len(self.alive) > self._most:
            detail = f"this process serves {self._most} connections at once; repeat later"
            connection.refuse(problems.HttpProblem(problems.BUSY, detail))

    async def watch(self) -> None:
        """Close the connections that exceed their deadlines."""
        head, write = self._deadlines.head, self._deadlines.write
        while True:
            await asyncio.sleep(min(head, write, 4.0) / 4)
            now = self.loop.time()
            for connection in list(self.alive):
                if connection.unread_since is not None:
                    if now - connection.unread_since > write:
                        connection.drop()
                elif connection.head_begun and connection.head_since is None:
                    connection.head_since = now
                elif connection.head_since is not None and now - connection.head_since > head:
                    detail = f"the head of the request did not arrive within {head:g} s"
                    connection.refuse(problems.HttpProblem(problems.TIMEOUT, detail))


def _raw(problem: problems.HttpProblem) -> bytes:
    answer = problems.response(problem)
    body = problems.encode(problems.describe(problem)[1])
    lines = [f"HTTP/1.1 {answer.status} {answer.reason}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode() + body


def _share_files(connections: int, backlog: int) -> tuple[int, int]:
    """The most connections of this process, and the most that it accepts in one turn. The limit of open files may
    reduce both.

    At that limit the process could neither accept a connection to refuse it, nor connect to Redis again.
    """
    wanted = connections + _IN_HAND * backlog + _OTHER_FILES
    files = _files(wanted)
    if files >= wanted:
        return connections, backlog
    at_once = max(1, min(backlog, files // (4 * _IN_HAND)))
    return max(1, files - _IN_HAND * at_once - _OTHER_FILES), at_once


def _files(wanted: int) -> int:
    """The number of files that this process may have open. Raises its soft limit if necessary and allowed."""
    try:
        import resource
    except ImportError:  # This system has no such limits.
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with suppress(ValueError, OSError):  # macOS has a lower limit that getrlimit does not report.
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return soft


async def serve(
    app: web.Application,
    host: str = "127.0.0.1",
    port: int = 7800,
    *,
    stop: asyncio.Event | None = None,
    started: Callable[[str, int], None] | None = None,
    reuse_port: bool = False,
    backlog: int = 1024,
    max_connections: int = 10_000,
    deadlines: Deadlines | None = None,
) -> None:
    """Serve until ``stop`` is set or the task is cancelled. Then let running requests end, and close the queues.

    ``port``: 0 takes a free one. ``started`` is called with the address and the port once connections are accepted.
    ``max_connections``: of this process. The soft limit of open files is raised for them; a lower hard limit reduces
    them. ``reuse_port``: several processes serve one port, and the kernel distributes connections (SO_REUSEPORT).

    :raises SettingsError: other machines can reach the address, and the application has no API keys.
    :raises OSError: the address cannot be bound.
    :raises StoreError: a queue cannot be opened.
    """
    hub = app.get(HUB)  # An application that mounts ours has no hub; it checks its own callers.
    if hub is not None:
        check_bind(host, hub.guard.keys)
    deadlines = deadlines or Deadlines()
    stop = stop or asyncio.Event()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=deadlines.close)
    await runner.setup()
    try:
        assert runner.server is not None
        most, at_once = _share_files(max_connections, backlog)
        connections = _Connections(runner.server, most, deadlines)
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(connections, host, port, backlog=at_once, reuse_port=reuse_port or None)
        for sock in listener.sockets:
            # asyncio also accepts at most ``backlog`` connections in one turn. The kernel may queue more than that.
            with socket.socket(fileno=os.dup(sock.fileno())) as same:
                same.listen(backlog)
        watch = loop.create_task(connections.watch(), name="jobq-http-watch")
        try:
            if started:
                name: tuple[str, int] = listener.sockets[0].getsockname()[:2]
                started(*name)
            await stop.wait()
        finally:
            listener.close()
            watch.cancel()
            await asyncio.wait([watch])
    finally:
        await runner.cleanup()


def free_port(host: str = "127.0.0.1") -> int:
    """A port that was free a moment ago, for several processes on one port. They cannot each ask for port 0."""
    with socket.create_server((host, 0)) as probe:
        return probe.getsockname()[1]
