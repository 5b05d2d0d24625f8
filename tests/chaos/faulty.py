"""A connection whose trips can be cut at any point, before or after the server executed them."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from jobq import Connection
from jobq.engine.store import lua
from jobq.errors import StoreUnavailable


class Fault(StrEnum):
    """The fault of the trip that is hit."""

    REQUEST_LOST = "request lost"
    REPLY_LOST = "reply lost"
    CRASH_BEFORE = "crash before"
    """The process dies before it sends this trip. Nothing passes from here on."""
    CRASH_AFTER = "crash after"
    """The server executes this trip, and nothing passes from here on."""


class FaultyConnection(Connection):
    """Counts trips, and breaks trip number ``at`` (from 0) with ``fault``."""

    def __init__(self, url: str, *, at: int = -1, fault: Fault = Fault.REQUEST_LOST) -> None:
        super().__init__(url)
        self.at = at
        self.fault = fault
        self.trips = 0
        self.dead = False
        self.next_of = ""
        """Names of scripts. The next trip that carries one of them is hit."""
        self.hit = ""
        """The content of the broken trip: its scripts, or its command."""

    async def trip(
        self, payload: bytes, replies: int, *, patience: float = 0.0, within: float | None = None
    ) -> list[Any]:
        """As ``Connection.trip``, with the fault."""
        if self.dead:
            raise StoreUnavailable("the connection is dead")
        number = self.trips
        self.trips += 1
        if self.next_of and any(lua.scripts()[name].sha.encode() in payload for name in self.next_of.split()):
            self.next_of, self.at = "", number
        if number != self.at:
            return await super().trip(payload, replies, patience=patience, within=within)
        names = [script.name for script in lua.scripts().values() if script.sha.encode() in payload]
        self.hit = ", ".join(names) or payload[:80].decode(errors="replace")
        if self.fault in (Fault.REPLY_LOST, Fault.CRASH_AFTER):
            await super().trip(payload, replies, patience=patience, within=within)
        self.dead = self.fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)
        raise StoreUnavailable(f"{self.fault} at trip {number}")
