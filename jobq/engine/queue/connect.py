"""Finds the Redis of a queue: a shared connection, a URL, or the embedded server of this machine."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

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
        use = _Shared.of(url)
        return ConnectionUse(use.connection, use.release)
    from jobq.engine.server.embedded import EmbeddedServer

    server = await EmbeddedServer.join_or_start(settings.data_path)
    shared_use = _Shared.of(server.url)

    async def close() -> None:
        await shared_use.release()
        await server.stop()

    return ConnectionUse(shared_use.connection, close, server.stop)


class _Shared:
    """The connection of all queues with the same URL in one event loop. The last one closes it."""

    def __init__(self, url: str) -> None:
        self.connection = Connection(url).here()
        self._key = url, asyncio.get_running_loop()
        self._users = 0

    @classmethod
    def of(cls, url: str) -> _Shared:
        """The one of the event loop that runs now, with one more user.

        :raises SettingsError: the URL cannot be used.
        """
        for key in [key for key in list(_by_url) if key[1].is_closed()]:
            _by_url.pop(key, None)  # nobody closed its queues
        key = url, asyncio.get_running_loop()
        shared = _by_url.get(key)
        if shared is None:
            shared = _by_url[key] = cls(url)
        shared._users += 1
        return shared

    async def release(self) -> None:
        """One user less."""
        self._users -= 1
        if not self._users:
            # Forget it first, so that a queue that opens meanwhile gets a new one.
            if _by_url.get(self._key) is self:
                del _by_url[self._key]
            await self.connection.aclose()


_by_url: Final[dict[tuple[str, asyncio.AbstractEventLoop], _Shared]] = {}

if hasattr(os, "register_at_fork"):
    # The connections of the parent process are not for the child.
    os.register_at_fork(after_in_child=_by_url.clear)
