"""Server-Sent Events: how a stream is written, and the stats of a queue once a second, which the dashboard shows.

All listeners of a queue share one reader, or one request for stats, to Redis. The memory of a stream is bounded: its
connection buffers little, and a listener that does not read is disconnected. A stream ends after ``LIFE``, and the
client has to send its key again.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import aclosing, contextmanager, suppress
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from jobq.http import problems

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from jobq.engine.queue.queue import Queue
    from jobq.http.call import ApiCall

INTERVAL = 1.0
"""Seconds between two events."""
HEARTBEAT: Final = 10.0
"""Seconds without an event, for example while Redis hangs, until a comment is sent to keep the stream open."""
UNREAD: Final = 30.0
"""Seconds that a listener may leave an event unread."""
LIFE: Final = 3600.0
"""Seconds until a stream ends. EventSource opens it again by itself."""
MOST: Final = 500
"""Most streams of one process. An event wakes all of them, which takes about 15 ms for this number."""
_BUFFER: Final = 1 << 16

_HEADERS = problems.COMMON_HEADERS | {
    "Content-Type": "text/event-stream; charset=utf-8",
    "X-Accel-Buffering": "no",  # Otherwise nginx buffers the events.
}
QUIET: Final = b": nothing new\n\n"
_encode = msgspec.json.Encoder().encode


def problem_event(error: Exception) -> bytes:
    """An error, as listeners are told of it."""
    return b"event: problem\ndata: %b\n\n" % problems.encode(problems.describe(error)[1])


class Feed:
    """The stats of one queue. Redis is asked only while somebody listens."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._listeners = 0
        self._last = b""
        self._next: asyncio.Future[bytes]
        self._poller: asyncio.Task[None]

    @contextmanager
    def heard(self) -> Generator[None]:
        """Count one listener while the block runs."""
        self._listeners += 1
        if self._listeners == 1:
            loop = asyncio.get_running_loop()
            self._last, self._next = b"", loop.create_future()
            self._poller = loop.create_task(self._poll(), name=f"jobq-events-{self._queue.name}")
        try:
            yield
        finally:
            self._listeners -= 1
            if not self._listeners:
                self._poller.cancel()

    @property
    def last(self) -> bytes:
        """The newest event, or empty before the first one."""
        return self._last

    async def following(self) -> bytes:
        """The next event, or a comment if none comes in time."""
        coming = self._next
        await asyncio.wait([coming], timeout=HEARTBEAT)
        return coming.result() if coming.done() else QUIET

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            event = await self._event()
            coming, self._last, self._next = self._next, event, loop.create_future()
            coming.set_result(event)
            await asyncio.sleep(INTERVAL)

    async def _event(self) -> bytes:
        try:
            return b"event: stats\ndata: %b\n\n" % _encode(await self._queue.stats())
        except Exception as error:  # noqa: BLE001 - listeners are told of the error, and of the next success
            return problem_event(error)


class Feeds:
    """All streams of one application."""

    def __init__(self) -> None:
        self._feeds: dict[str, Feed] = {}
        self._streams = 0

    @contextmanager
    def stream(self) -> Generator[None]:
        """Count one more stream while the block runs.

        :raises HttpProblem: there are ``MOST`` streams already.
        """
        if self._streams >= MOST:
            detail = f"this process has {MOST} event streams open; repeat later, or ask for /jobs/stats"
            raise problems.HttpProblem(problems.BUSY, detail)
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    def of(self, queue: Queue) -> Feed:
        """The stats of a queue."""
        return self._feeds.setdefault(queue.name, Feed(queue))


async def stats_events(call: ApiCall) -> web.StreamResponse:
    """GET /jobs/stats/events."""
    return await stream(call, _stats(call.hub.feeds.of(call.queue)))


async def _stats(feed: Feed) -> AsyncGenerator[bytes]:
    with feed.heard():
        if feed.last:
            yield feed.last
        while True:
            yield await feed.following()


async def stream(call: ApiCall, pieces: AsyncGenerator[bytes]) -> web.StreamResponse:
    """Answer with a stream of events."""
    request = call.request
    async with aclosing(pieces):
        if request.method == "HEAD":
            return web.Response(headers=_HEADERS)
        response = web.StreamResponse(headers=_HEADERS)
        response.force_close()
        with call.hub.feeds.stream(), suppress(TimeoutError, ConnectionError):
            async with call.hub.polling(LIFE):
                _bound(request)
                await response.prepare(request)
                await response.write(b"retry: 2000\n\n")
                async for piece in pieces:
                    async with asyncio.timeout(UNREAD):
                        await response.write(piece)
    if request.transport is not None and request.transport.get_write_buffer_size():
        request.transport.abort()  # The client does not read, so waiting for it would not end.
    return response


def _bound(request: web.Request) -> None:
    """Let the kernel buffer little for a client that does not read."""
    connection: socket.socket | None = request.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
