"""Which Redis a queue uses: a shared connection, a URL, or the embedded server of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobq.engine.store import Connection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobq.settings import Settings


class Lease:
    """A connection in use; ``release`` when done."""

    def __init__(self, connection: Connection, release: Callable[[], Awaitable[None]]) -> None:
        self.connection = connection
        self.release = release


async def _keep() -> None:
    """A connection made by the user is the user's to close."""


async def acquire(redis: str | Connection | None, settings: Settings) -> Lease:
    """The connection for a queue.

    :raises NoServer: no URL is given and no server can be started.
    :raises SettingsError: the URL cannot be used.
    """
    if isinstance(redis, Connection):
        return Lease(redis, _keep)
    url = redis or settings.redis_url
    if url is not None:
        connection = Connection(url)
        return Lease(connection, connection.aclose)
    from jobq.engine.server.embedded import EmbeddedServer

    server = await EmbeddedServer.join_or_start(settings.data_path)
    connection = Connection(server.url)

    async def close() -> None:
        await connection.aclose()
        await server.stop()

    return Lease(connection, close)
