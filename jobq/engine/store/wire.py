"""The bytes of one connection: commands out in one write, their replies back by one future.

redis-py opens the connection (TLS, ACL, unix sockets, Sentinel), and hiredis parses the replies. redis-py's streams are
not used, because they cost more than the trip itself. docs/decisions/0015 has the figures.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

import hiredis
import redis

from jobq.errors import StoreError

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

_UNFINISHED: Final = object()


def taken_over(connection: AbstractConnection, protocol: asyncio.Protocol) -> asyncio.StreamWriter:
    """Take the transport of a connected connection for ``protocol``. The caller must keep the writer.

    :raises StoreError: this version of redis-py keeps its transport elsewhere.
    """
    # redis-py has no public access to its transport. If it kept the transport, it would close it when collected.
    theirs = cast("Any", connection)
    writer: asyncio.StreamWriter | None = getattr(theirs, "_writer", None)
    if writer is None:
        raise StoreError(
            f"redis-py {redis.__version__} keeps the transport of its connections where jobq does not find it: install"
            " a version that jobq's dependencies allow (pip check)"
        )
    theirs._writer = theirs._reader = None  # noqa: SLF001
    writer.transport.set_protocol(protocol)
    return writer


class Wire(asyncio.Protocol):
    """A connected connection, taken over from redis-py. One trip at a time.

    ``closed``: by us or by the server.
    """

    __slots__ = (
        "_answers", "_deadline", "_future", "_loop", "_reader", "_timer", "_timer_at", "_transport", "_want", "_writer",
        "closed",
    )  # fmt: skip

    def __init__(self, connection: AbstractConnection) -> None:
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._reader: Any = hiredis.Reader(notEnoughData=_UNFINISHED)
        self._answers: list[Any] = []
        self._want = 0
        self._future: asyncio.Future[list[Any]] | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._writer = taken_over(connection, self)
        self._transport = self._writer.transport

    async def trip(self, payload: bytes, replies: int, timeout: float) -> list[Any]:
        """Write the packed commands and wait for their replies; a command's own error stands in its place.

        :raises ConnectionError: the connection is gone, or the server does not speak its protocol.
        :raises TimeoutError: not all of them came within ``timeout`` seconds.
        """
        if self.closed:
            raise ConnectionError("the connection was closed")
        # Write first, so that the server reads while this process does the rest.
        self._transport.write(payload)
        self._want = replies
        self._future = future = self._loop.create_future()
        # One timer serves all trips of a connection. A timer for each trip would cost more than the rest of it.
        self._deadline = deadline = self._loop.time() + timeout
        timer = self._timer
        if timer is None or self._timer_at > deadline:
            if timer is not None:
                timer.cancel()
            # Timers of uvloop that are due within half a ms cannot tell their time.
            self._timer_at = deadline
            self._timer = self._loop.call_at(deadline, self._overdue)
        try:
            return await future
        finally:
            self._future = None

    def _overdue(self) -> None:
        self._timer = None
        if self._future is None:
            return
        if self._deadline > self._loop.time():
            self._timer_at = self._deadline
            self._timer = self._loop.call_at(self._deadline, self._overdue)
        else:
            self._fail(TimeoutError("the server did not answer in time"))

    def data_received(self, data: bytes) -> None:
        """Replies, or parts of them."""
        reader, answers = self._reader, self._answers
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _UNFINISHED:
                answers.append(reply)
        except hiredis.ProtocolError as error:
            self._fail(ConnectionError(f"not a reply of Redis: {error}"))
            self.close()
            return
        if len(answers) >= self._want and self._future is not None:
            self._answers = []
            if not self._future.done():
                self._future.set_result(answers)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server, or the network, closed it."""
        self.closed = True
        self._fail(ConnectionError(f"connection lost: {exc or 'closed by the server'}"))

    def _fail(self, error: Exception) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_exception(error)

    def close(self) -> None:
        """Close at once. Replies that have not arrived are dropped."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._transport.abort()
