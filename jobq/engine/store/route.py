"""Sends commands to the node that has their hash slot. Repeats those whose reply was lost, and follows a moving slot.

A server that is no cluster has all hash slots. Nothing here costs it more than the look at its answers.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, cast

from hiredis import ReplyError
from redis.crc import key_slot

from jobq.engine.store.cluster import is_refusal
from jobq.engine.store.packing import pack
from jobq.engine.store.refusals import translate
from jobq.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobq.engine.store.calls import Call
    from jobq.engine.store.link import Connection
    from jobq.engine.store.packing import Argument

PAUSES: Final = (0.02, 0.1, 0.3, 0.6)
"""Seconds between the attempts to send one call."""
_ASKING: Final = pack((b"ASKING",))


class Route:
    """The way to the hash slot of ``key``."""

    def __init__(self, connection: Connection, key: bytes) -> None:
        self.connection = connection
        self.hash_slot = key_slot(key)

    @property
    def node(self) -> Connection:
        """The connection to the node that has the hash slot, as far as is known."""
        return self.connection.node_of(self.hash_slot)

    async def send(
        self,
        pieces: list[bytes],
        calls: Sequence[Call[Any]] = (),
        packed_by: Callable[[Call[Any]], bytes] | None = None,
        *,
        patience: float = 0.0,
        within: float | None = None,
        waits: bool = False,
    ) -> list[Any]:
        """Send packed commands in one write. A command's own error stands in its place.

        A write that got no answer is sent again. ``calls``: the first pieces, which ``packed_by`` then packs again,
        marked as repeated. ``patience``, ``within``: as for ``Connection.trip``. ``waits``: the last command is a WAIT,
        which counts the writes before it.

        :raises StoreUnavailable: no attempt got an answer.
        """
        if not pieces:
            # No reply would ever come.
            return []
        # One deadline for all sendings. A refused connection is tried again soon; after a silence of a whole timeout
        # callers have waited enough.
        connection, hash_slot = self.connection, self.hash_slot
        began = time.monotonic()
        limit = connection.timeout if within is None else within
        for pause in (*PAUSES, None):
            try:
                node = connection.node_of(hash_slot)
                if node.doubted:
                    node = await connection.find(hash_slot)
                answers = await node.trip(b"".join(pieces), len(pieces), patience=patience, within=within)
                for answer in answers:
                    # The first test alone costs little. Every answer passes here.
                    if isinstance(answer, ReplyError) and is_refusal(answer):
                        await self._follow(node, pieces, answers, began + limit, patience, waits=waits)
                        break
            except StoreUnavailable:
                if pause is None:
                    raise
                within = limit - (time.monotonic() - began) - pause
                if within <= 0:
                    raise
                await asyncio.sleep(pause)
                if packed_by is not None:
                    for call in calls:
                        call.send_again()
                    pieces[: len(calls)] = [packed_by(call) for call in calls]
            else:
                return answers
        raise AssertionError("the last attempt returns or raises")

    async def current(self) -> Connection:
        """The connection to the node that has the hash slot. If the last trip to it failed, the others are asked first.

        :raises StoreUnavailable: no node of the cluster answers.
        """
        node = self.connection.node_of(self.hash_slot)
        return await self.connection.find(self.hash_slot) if node.doubted else node

    async def follow(
        self, node: Connection, pieces: list[bytes], answers: list[Any], patience: float = 0.0
    ) -> list[Any]:
        """The answers, once each command that ``node`` refused was sent elsewhere. ``patience``: as for ``send``.

        :raises StoreUnavailable: no node took them in time, or an answer was lost.
        """
        await self._follow(node, pieces, answers, time.monotonic() + self.connection.timeout, patience)
        return answers

    async def _follow(
        self,
        node: Connection,
        pieces: Sequence[bytes],
        answers: list[Any],
        deadline: float,
        patience: float = 0.0,
        *,
        waits: bool = False,
    ) -> None:
        """Send the commands elsewhere that ``node`` refused, and only those: it has not executed them, and the others
        it has. Puts the new answers in the places of the refusals.

        :raises StoreUnavailable: no node took them in time, or an answer was lost.
        """
        last = len(pieces) - 1
        for attempt in range(1000):
            refused = [i for i, answer in enumerate(answers) if is_refusal(answer)]
            if not refused:
                return
            refusal = str(answers[refused[0]])
            moving = refusal.startswith(("TRYAGAIN ", "CLUSTERDOWN "))
            # Nodes may disagree for a moment after a failover, and send us to one another.
            pause = PAUSES[min(attempt, len(PAUSES) - 1)] if moving or attempt > 1 else 0.0
            left = deadline - time.monotonic() - pause
            if left <= 0:
                raise translate(cast("Exception", answers[refused[0]]))
            if pause:
                await asyncio.sleep(pause)
            node, asking = await self.connection.follow(self.hash_slot, node, refusal)
            if waits and refused[-1] != last:
                refused.append(last)  # WAIT counts the writes of its own connection.
            sent = [part for i in refused for part in ((_ASKING, pieces[i]) if asking else (pieces[i],))]
            found = await node.trip(b"".join(sent), len(sent), patience=patience, within=left)
            alone = waits and len(refused) == len(pieces)
            for i, answer in zip(refused, found[1::2] if asking else found, strict=True):
                answers[i] = answer if i != last or not waits or alone else _fewer(answers[i], answer)

    async def command(self, *words: Argument, patience: float = 0.0) -> Any:
        """A plain command. With ``patience`` (it blocks that many seconds) it is sent once; others may be repeated.

        :raises StoreError: the server's error.
        """
        piece = pack(words)
        if patience:
            node = await self.current()
            answers = await node.trip(piece, 1, patience=patience)
            (answer,) = await self.follow(node, [piece], answers, patience)
        else:
            (answer,) = await self.send([piece])
        if isinstance(answer, Exception):
            raise translate(answer)
        return answer

    async def commands(self, *commands: tuple[Argument, ...]) -> list[Any]:
        """Plain commands in one write, repeated if a reply was lost. A command's own error stands in its place.

        :raises StoreUnavailable: no attempt got an answer.
        """
        return await self.send([pack(words) for words in commands])


def _fewer(one: Any, other: Any) -> Any:
    """The answer of two WAITs on different nodes: what both of them confirm."""
    if isinstance(one, Exception) or isinstance(other, Exception):
        return one if isinstance(one, Exception) else other
    if isinstance(one, list):
        return [min(pair) for pair in zip(cast("list[int]", one), cast("list[int]", other), strict=True)]
    return min(one, other)
