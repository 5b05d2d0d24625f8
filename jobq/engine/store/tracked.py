"""A connection on which the server also tells which keys have changed (RESP3 pushes)."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import hiredis

from jobq.engine.store.wire import taken_over
from jobq.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import AbstractConnection

_UNFINISHED: Final = object()


class TrackedWire(asyncio.Protocol):
    """Commands may be sent at any time. Each answer goes to the function that was given with its command.

    Answers and changes are taken in the order in which the server sent them. So a change that comes behind an answer
    is never taken for an earlier one. ``heard`` gets the kind of a push and its first argument, ``broke`` an error.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        heard: Callable[[bytes, Any], None],
        broke: Callable[[Exception], None],
        timeout: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader: Any = hiredis.Reader(notEnoughData=_UNFINISHED)
        self._heard = heard
        self._broke = broke
        self._timeout = timeout
        self._takers: deque[tuple[float, Callable[[Any], None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        self._writer = taken_over(connection, self)
        self._transport = self._writer.transport

    def send(self, piece: bytes, taker: Callable[[Any], None]) -> None:
        """Send a packed command. ``taker`` gets its answer, or a ``StoreUnavailable`` if the connection is lost."""
        if self._ended:
            taker(StoreUnavailable("no answer from Redis: the connection was lost"))
            return
        self._transport.write(piece)
        self._takers.append((self._loop.time(), taker))
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout, self._overdue)

    def data_received(self, data: bytes) -> None:
        """Answers and pushes, or parts of them."""
        reader = self._reader
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _UNFINISHED and not self._ended:
                if isinstance(reply, hiredis.PushNotification):
                    self._push(reply)
                else:
                    self._takers.popleft()[1](reply)
        except (hiredis.ProtocolError, IndexError) as error:
            self.fail(StoreUnavailable(f"not a reply of Redis: {error}"))

    def _push(self, words: Any) -> None:
        if words[0] == b"ssubscribe":
            # It is the answer to the command, which others do not get as a push.
            self._takers.popleft()[1](words)
        else:
            self._heard(words[0], words[1])

    def _overdue(self) -> None:
        self._timer = None
        if not self._takers:
            return
        left = self._takers[0][0] + self._timeout - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._overdue)
        else:
            self.fail(StoreUnavailable("no answer from Redis: the node did not answer in time"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The server, or the network, closed it."""
        self.fail(StoreUnavailable(f"no answer from Redis: {exc or 'the connection was closed by the server'}"))

    def fail(self, error: Exception) -> None:
        """Close it, and tell everybody who waits for an answer."""
        if not self._ended:
            self._broke(error)
            self.close()

    def close(self) -> None:
        """Close at once. Those who wait for an answer get an error."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._transport.abort()
        takers, self._takers = self._takers, deque()
        for _, taker in takers:
            taker(StoreUnavailable("no answer from Redis: the connection was lost"))
