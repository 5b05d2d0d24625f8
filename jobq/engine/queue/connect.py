"""Finds the Redis of a queue: a shared connection, a URL, or the embedded server of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobq.engine.store import Connection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobq.settings import Settings


class ConnectionUse:
    """A connection that the event loop which runs now uses. Call ``release`` at the end.

    If the event loop was closed first, call ``abandon`` instead. It does not touch the sockets of that loop.
    """

    def __init__(
        self,
        connection: Connection,
        release: Callable[[], Awaitable[None]],
        abandon: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.connection = connection
        self.release = release
        self.abandon = abandon or _nothing


async def _nothing() -> None:
    """Do nothing."""


async def acquire(redis: str | Connection | None, settings: Settings) -> ConnectionUse:
    """The connection for a queue in the event loop that runs now.

    :raises NoServer: no URL is given and no server can be started.
    :raises SettingsError: the URL cannot be used.
    """
    if isinstance(redis, Connection):
        shared = redis
        mine = shared.here()
        return ConnectionUse(mine, lambda: shared.leave(mine))
    url = redis or settings.redis_url
    if url is not None:
        connection = Connection(url).here()
        return ConnectionUse(connection, connection.aclose)
    from jobq.engine.server.embedded import EmbeddedServer

    server = await EmbeddedServer.join_or_start(settings.data_path)
    connection = Connection(server.url).here()

    async def close() -> None:
        await connection.aclose()
        await server.stop()

    return ConnectionUse(connection, close, server.stop)
