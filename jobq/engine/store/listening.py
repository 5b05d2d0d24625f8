"""The events and the control channel of a queue. These methods block, and run no script."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobq.engine.store.sender import Sender

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping


class Listening(Sender):
    """The methods of a store that listen."""

    async def last_event(self) -> bytes:
        """Id of the newest entry in the events stream."""
        newest = await self.command(b"XREVRANGE", self.keys["events"], b"+", b"-", b"COUNT", 1)
        return newest[0][0] if newest else b"0-0"

    async def events(self, after: bytes, *, block: float) -> tuple[bytes, list[list[bytes]], bool]:
        """Read entries after the one with id ``after``. Wait up to ``block`` seconds for the first.

        Returns the id to continue from, the flat fields of the entries, and whether entries in between may have been
        trimmed.
        """
        count = 256
        reply = await self.command(
            b"XREAD",
            b"COUNT",
            count,
            b"BLOCK",
            max(1, int(block * 1000)),
            b"STREAMS",
            self.keys["events"],
            after,
            patience=block,
        )
        if not reply:
            return after, [], False
        entries = reply[0][1]
        return entries[-1][0], [fields for _, fields in entries], len(entries) == count

    async def listen(self, heard: Callable[[bytes], None], joined: Callable[[], Awaitable[None]]) -> None:
        """Pass the messages of the control channel to ``heard`` until cancelled.

        :raises StoreUnavailable: the connection broke.
        """
        await listen_together({self: heard}, joined)


async def listen_together(
    heard: Mapping[Listening, Callable[[bytes], None]], joined: Callable[[], Awaitable[None]]
) -> None:
    """Pass the messages of the control channels of several queues to their functions until cancelled. The queues are
    on one server or cluster, and one connection serves all of them.

    :raises StoreUnavailable: the connection broke.
    """
    first = next(iter(heard))
    functions = {store.keys["control"]: function for store, function in heard.items()}
    while True:
        # The nodes of a cluster pass messages on to one another, but one that was removed hears nothing any more. So
        # listen where a queue is.
        node = await first.current()
        await node.listen(
            list(functions),
            lambda channel, message: functions[channel](message),
            joined,
            lambda node=node: first.node is node,
        )
