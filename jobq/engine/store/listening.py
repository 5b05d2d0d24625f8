"""The events and the control channel of a queue. These methods block, and run no script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobq.engine.store.sender import Sender

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

EVENTS_KEPT: Final = 1000
"""The entries that the scripts keep in the events stream, at least."""
ENTRY_LATER_MS: Final = 1000
"""How much later than its script an entry may be: the process of the server may lose the CPU in between."""


def _number(entry_id: bytes) -> tuple[int, int]:
    ms, _, number = entry_id.partition(b"-")
    return int(ms), int(number)


class Listening(Sender):
    """The methods of a store that listen."""

    async def last_event(self) -> bytes:
        """Id of the newest entry in the events stream."""
        newest = await self.command(b"XREVRANGE", self.keys["events"], b"+", b"-", b"COUNT", 1)
        return newest[0][0] if newest else b"0-0"

    async def oldest_event(self) -> bytes | None:
        """Id of the oldest entry that is left."""
        oldest = await self.command(b"XRANGE", self.keys["events"], b"-", b"+", b"COUNT", 1)
        return oldest[0][0] if oldest else None

    async def events(self, after: bytes, *, block: float) -> tuple[list[tuple[bytes, list[bytes]]], bool]:
        """Read entries after the one with id ``after``. Wait up to ``block`` seconds for the first.

        Returns the entries as pairs of an id and flat fields, and whether there may be more.
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
        entries: list[tuple[bytes, list[bytes]]] = reply[0][1] if reply else []
        return [(entry_id, fields) for entry_id, fields in entries], len(entries) == count

    async def events_behind(self, first: bytes, count: int) -> tuple[list[tuple[bytes, list[bytes]]], bool]:
        """Read entries from the one with id ``first`` on, with that one. Do not wait. Returns them as ``events`` does,
        and whether entries behind ``first`` were dropped."""
        entries = await self.command(b"XRANGE", self.keys["events"], first, b"+", b"COUNT", count)
        # Look afterwards, so that entries that are dropped meanwhile are not overlooked.
        return [(entry_id, fields) for entry_id, fields in entries], await self.trimmed_behind(first)

    async def events_at(self, ms: int) -> list[tuple[bytes, list[bytes]]]:
        """The entries that are left of what scripts did at this time. A script reads the clock when it begins.
        Redis reads it again for the entry, which may be later."""
        entries = await self.command(b"XRANGE", self.keys["events"], ms, ms + ENTRY_LATER_MS, b"COUNT", 256)
        return [(entry_id, fields) for entry_id, fields in entries]

    async def trimmed_behind(self, entry_id: bytes) -> bool:
        """Whether entries after this one may have been dropped from the stream."""
        events = self.keys["events"]
        oldest = await self.oldest_event()
        # No entry is dropped before the stream is full.
        return (
            oldest is not None
            and _number(oldest) > _number(entry_id)
            and (await self.command(b"XLEN", events) >= EVENTS_KEPT)
        )

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
