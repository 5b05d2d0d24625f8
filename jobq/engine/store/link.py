"""Trips to Redis: several commands out in one write, their replies back in one read.

redis-py makes and authenticates the connections; what is left out is its command layer (a pool lock, a retry object and
several coroutines per command) and its streams, which cost more than the trip itself: docs/decisions/0002 and 0015.
Connections are never shared by two trips at once, so a cancelled trip spoils its own connection only.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import hiredis
from redis import exceptions
from redis.asyncio.connection import ConnectionPool
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from jobq.engine.store.wire import Wire
from jobq.errors import SettingsError, StoreError, StoreFull, StoreRefused, StoreUnavailable
from jobq.redact import redact

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from redis.asyncio.connection import AbstractConnection

Argument = bytes | str | int | float
pack: Callable[[tuple[Argument, ...]], bytes] = cast("Any", hiredis.pack_command)

_TRANSIENT = (
    "BUSY ",
    "LOADING ",
    "MASTERDOWN ",
    "CLUSTERDOWN ",
    "TRYAGAIN ",
    "READONLY ",
    "MISCONF ",
    "UNBLOCKED ",
)
_REFUSED = ("NOAUTH ", "NOPERM ", "WRONGPASS ")


def translate(error: Exception) -> StoreError:
    """Redis's and redis-py's errors in jobq's words."""
    text = redact(str(error)) or type(error).__name__
    if text.startswith("OOM "):
        return StoreFull("Redis is at maxmemory and takes no new jobs; free memory or raise maxmemory")
    refusals = exceptions.AuthenticationError | exceptions.NoPermissionError
    if isinstance(error, refusals) or text.startswith(_REFUSED):
        return StoreRefused(f"Redis refuses this user: {text}")
    if text.startswith(_TRANSIENT):
        return StoreUnavailable(f"Redis cannot write now: {text}")
    if isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError | OSError | TimeoutError | EOFError):
        return StoreUnavailable(f"no answer from Redis: {text}")
    return StoreError(f"Redis: {text}")


def _make_pool(url: str, options: dict[str, Any]) -> ConnectionPool:
    """A redis-py pool used only to make connections.

    ``redis+sentinel://host:port,host:port/service?db=0&password=...`` leads to the master that Sentinel names.
    """
    scheme = urlsplit(url).scheme
    if scheme == "valkey":
        url = "redis" + url.removeprefix("valkey")
    elif scheme == "valkeys":
        url = "rediss" + url.removeprefix("valkeys")
    if scheme != "redis+sentinel":
        return ConnectionPool.from_url(url, **options)
    parts = urlsplit(url)
    nodes = parts.netloc.rpartition("@")[2].split(",")
    addresses = [(node.rpartition(":")[0] or node, int(node.rpartition(":")[2] or 26379)) for node in nodes]
    service = parts.path.strip("/") or "mymaster"
    sentinel = Sentinel(addresses, username=parts.username, password=parts.password, **options)
    return sentinel.master_for(service).connection_pool


class Connection:
    """Shared by the queues made on it: ``Queue(name, redis=Connection(url))``.

    ``timeout`` (seconds) bounds every trip, connecting included: no wait is for ever.
    """

    def __init__(self, url: str, *, timeout: float = 5.0, max_connections: int = 16) -> None:
        self.url = url
        self.timeout = timeout
        options: dict[str, Any] = {
            "protocol": 2,
            # redis-py would repeat a script whose reply was lost, ten times, without asking
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": None,
            "socket_connect_timeout": timeout,
            "socket_keepalive": True,
            "decode_responses": False,
            "client_name": "jobq",
        }
        if url.startswith("unix:"):
            options.pop("socket_keepalive")
        try:
            self._pool = _make_pool(url, options)
        except (ValueError, exceptions.RedisError) as error:
            raise SettingsError(
                f"Redis URL {redact(url)!r}: {redact(str(error))} (redis://host:6379/0, rediss://, unix:///path, valkey://)"
            ) from None
        self._idle: list[Wire] = []
        self._free = asyncio.Semaphore(max_connections)
        self._closed = False
        self.looked_at = False
        """Whether the server's operator has been warned of what may disappoint."""

    def __repr__(self) -> str:
        return f"Connection({redact(self.url)!r})"

    async def trip(self, payload: bytes, replies: int, *, patience: float = 0.0) -> list[Any]:
        """Write the packed commands, read their replies. A command's own error is returned in its place.

        ``patience``: seconds that the server may keep a blocking command on top of the timeout.

        :raises StoreUnavailable: nothing can be said of what ran.
        :raises StoreRefused: the server refuses this user.
        """
        if patience:
            # a blocked command keeps its connection for seconds: it must not use up what trips share
            return await self._trip(payload, replies, self.timeout + patience)
        await self._free.acquire()  # `async with` takes two more coroutines
        try:
            return await self._trip(payload, replies, self.timeout)
        finally:
            self._free.release()

    async def _trip(self, payload: bytes, replies: int, timeout: float) -> list[Any]:
        wire, clean = None, False
        try:
            while self._idle and (wire is None or wire.lost):
                wire = self._idle.pop()
            if wire is None or wire.lost:
                began = time.monotonic()
                wire = await self._connect(timeout)
                timeout -= time.monotonic() - began
            answers = await wire.trip(payload, replies, timeout)
            for answer in answers:
                if isinstance(answer, hiredis.ReplyError) and str(answer).startswith("READONLY "):
                    # a failover made this node a replica: look for the new master on a new connection
                    raise answer
            clean = not self._closed
        except (exceptions.RedisError, hiredis.ReplyError, OSError, TimeoutError, EOFError) as error:
            raise translate(error) from error
        finally:
            # anything else (a cancellation too) leaves replies in the socket: never used again
            if wire is not None:
                if clean:
                    self._idle.append(wire)
                else:
                    wire.close()
        return answers

    async def _connect(self, timeout: float) -> Wire:
        connection = self._pool.make_connection()
        try:
            async with asyncio.timeout(timeout):
                await connection.connect()
            return Wire(connection)
        finally:
            await connection.disconnect(nowait=True)

    async def listen(
        self, channels: Sequence[bytes], heard: Callable[[bytes], None], joined: Callable[[], Awaitable[None]]
    ) -> None:
        """Subscribe and call ``heard`` for each message, until cancelled. ``joined`` runs once the subscription stands.

        :raises StoreUnavailable: the connection broke, or was silent beyond the timeout and did not answer a PING.
        """
        connection = self._pool.make_connection()
        try:
            async with asyncio.timeout(self.timeout):
                await connection.connect()
                await connection.send_packed_command(pack((b"SUBSCRIBE", *channels)), check_health=False)
                for _ in channels:
                    await connection.read_response()
            await joined()
            while True:
                message = await self._hear(connection)
                if message is None:
                    # a half-open socket is silent too: make the server say something
                    await connection.send_packed_command(pack((b"PING",)), check_health=False)
                    message = await self._hear(connection)
                if message is None:
                    raise TimeoutError("the server did not answer a PING")
                if message[0] == b"message":
                    heard(message[2])
        except (exceptions.RedisError, OSError, TimeoutError, EOFError) as error:
            raise translate(error) from error
        finally:
            await connection.disconnect(nowait=True)

    async def _hear(self, connection: AbstractConnection) -> Any:
        """The next message; None: a whole timeout of silence. Not by cancellation: that would end the subscription."""
        return cast("Any", await connection.read_response(timeout=self.timeout, disconnect_on_error=False))

    async def aclose(self) -> None:
        """Close what is idle; trips under way close their own."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()
        await self._pool.disconnect()
        # a Sentinel's pool asks over connections of its own
        sentinel: Sentinel | None = getattr(self._pool, "sentinel_manager", None)
        for client in sentinel.sentinels if sentinel else ():
            await cast("Any", client).aclose()
