"""Server-Sent Events: how a stream is written.

The memory of a stream is bounded: its connection buffers little, and a listener that does not read is disconnected. A
stream ends after ``LIFE``, and the client has to send its key again.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Final

from aiohttp import web

from jobq.http import problems

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from jobq.http.call import ApiCall
    from jobq.http.feeds import Feed

UNREAD: Final = 30.0
"""Seconds that a listener may leave an event unread."""
LIFE: Final = 3600.0
"""Seconds until a stream ends. EventSource opens it again by itself."""
_BUFFER: Final = 1 << 16

_HEADERS = problems.COMMON_HEADERS | {
    "Content-Type": "text/event-stream; charset=utf-8",
    "X-Accel-Buffering": "no",  # Otherwise nginx buffers the events.
}


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
