"""Listening to channels of Redis on one connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from redis import exceptions

from jobq.engine.log import get_logger
from jobq.engine.store.packing import pack

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from redis.asyncio.connection import AbstractConnection

log = get_logger("jobq.store")


class Subscription:
    """Subscribes to channels. ``timeout``: seconds of silence until a PING is sent, and that its reply may take."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._unheard: set[bytes] = set()
        """Channels that this user may not listen to."""

    async def listen(
        self,
        connection: AbstractConnection,
        channels: Sequence[bytes],
        heard: Callable[[bytes, bytes], None],
        joined: Callable[[], Awaitable[None]],
        is_current: Callable[[], bool],
    ) -> None:
        """As ``Connection.listen``, on a new connection."""
        async with asyncio.timeout(self._timeout):
            await connection.connect()
            # One command for each, because a user who may not listen to one of them would hear nothing of all.
            pieces = [pack((b"SUBSCRIBE", channel)) for channel in channels]
            await connection.send_packed_command(b"".join(pieces), check_health=False)
            errors = [await _refusal(connection) for _ in channels]
        refusals = [error for error in errors if error is not None]
        if len(refusals) == len(channels):
            raise refusals[0]
        for channel, error in zip(channels, errors, strict=True):
            self._tell_refusal(channel, error)
        await joined()
        while True:
            message = await self._hear(connection)
            if message is None and not is_current():
                return
            if message is None:
                # A half-open socket is also silent. So send a PING and wait for the reply.
                await connection.send_packed_command(pack((b"PING",)), check_health=False)
                message = await self._hear(connection)
            if message is None:
                raise TimeoutError("the server did not answer a PING")
            if message[0] == b"message":
                heard(message[1], message[2])

    def _tell_refusal(self, channel: bytes, error: Exception | None) -> None:
        """Log once that this user may not listen to a channel."""
        if error is not None and channel not in self._unheard:
            self._unheard.add(channel)
            name = channel.decode(errors="replace")
            log.warning(
                f"This user may not listen to the channel {name}, so kills and changed schedules of its queue are seen"
                f" late. Give the user the channel (&{name}): {error}",
                channel=name, error=str(error),
            )  # fmt: skip

    async def _hear(self, connection: AbstractConnection) -> Any:
        """The next message, or None after a timeout. It does not cancel the read, which would end the subscription."""
        return cast("Any", await connection.read_response(timeout=self._timeout, disconnect_on_error=False))


async def _refusal(connection: AbstractConnection) -> Exception | None:
    """The refusal of one SUBSCRIBE, or None."""
    try:
        await connection.read_response()
    except exceptions.NoPermissionError as error:
        return error
    return None
