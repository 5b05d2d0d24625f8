"""The nodes of a Redis or Valkey Cluster, and which of them has which hash slot.

All keys of a queue are in one hash slot, so the calls of a queue go to one node. Which node that is changes: a hash
slot is moved, a replica takes over, nodes come and go. A node that does not have the slot says where it is. When a node
does not answer, the others are asked. docs/decisions/0061 says why this is not the cluster client of redis-py.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

import hiredis

from jobq.engine.log import get_logger
from jobq.errors import StoreError, StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobq.engine.store.url import Nodes

log = get_logger("jobq.store")

SLOTS: Final = 16384
ASKED_AT_ONCE: Final = 5
"""Nodes that are asked for the hash slots at the same time. The first answer counts."""
ASK_SECONDS: Final = 1.0
"""Time that they have to answer. A node that hangs must not delay the answer of another one for long."""
PAUSE_SECONDS: Final = 0.1
"""All queues of a node that died ask for its hash slots. So long after an answer, nobody asks again."""
_CLUSTER_SLOTS: Final = b"*2\r\n$7\r\nCLUSTER\r\n$5\r\nSLOTS\r\n"
_REFUSALS: Final = ("MOVED ", "ASK ", "TRYAGAIN ", "CLUSTERDOWN ")


def is_refusal(answer: Any) -> bool:
    """Whether a node of a cluster has not executed the command, because the hash slot is elsewhere or on the move."""
    return isinstance(answer, hiredis.ReplyError) and str(answer).startswith(_REFUSALS)


class Node(Protocol):
    """The interface of a connection to a node."""

    url: str
    timeout: float
    doubted: bool

    async def trip(self, payload: bytes, replies: int, *, within: float | None = None) -> list[Any]:
        """Write the packed commands, read their replies."""
        ...

    def retire(self) -> None:
        """Close idle connections. Trips that are under way close theirs."""
        ...

    def close_idle(self) -> None:
        """Close idle connections."""
        ...


N = TypeVar("N", bound=Node)


class Cluster(Generic[N]):
    """The hash slots of one cluster. ``connect`` makes the connection to a node from its URL."""

    def __init__(self, nodes: Nodes, connect: Callable[[str], N]) -> None:
        self._urls = nodes
        self._connect = connect
        self._nodes: dict[str, N] = {}
        """Connections by URL."""
        self._hash_slots: list[N | None] = [None] * SLOTS
        self._known: set[str] = set()
        """URLs of all nodes, with the replicas."""
        self._looking: asyncio.Task[None] | None = None
        self._looked_at = 0.0

    def node(self, hash_slot: int) -> N:
        """The node that has the hash slot. If none is known, one that was reached before or is named in the URL."""
        return self._hash_slots[hash_slot] or next(iter(self._nodes.values()), None) or self._at(self._urls.seeds[0])

    @property
    def is_known(self) -> bool:
        """Whether a node has said who has which hash slot."""
        return self._looked_at > 0

    def connections(self) -> list[N]:
        """The connections to the nodes."""
        return list(self._nodes.values())

    def close_idle(self) -> None:
        """Close idle connections, and ask for hash slots no longer."""
        if self._looking is not None:
            self._looking.cancel()
        for node in self._nodes.values():
            node.close_idle()

    def _at(self, url: str) -> N:
        node = self._nodes.get(url)
        if node is None:
            node = self._nodes[url] = self._connect(url)
        return node

    async def follow(self, hash_slot: int, sender: N, refusal: str) -> tuple[N, bool]:
        """Where to send a command that ``sender`` refused, and whether ASKING must come before it.

        :raises StoreUnavailable: no node answers.
        """
        kind, *words = refusal.split(" ")
        if kind in ("MOVED", "ASK"):
            host, _, port = words[1].rpartition(":")
            # A node that knows no name for itself or another one leaves it out. Then it is the one that was asked.
            url = self._urls.url(host.strip("[]"), int(port)) if host else self._beside(sender, int(port))
            if kind == "ASK":
                return self._at(url), True
            if url not in self._nodes or not self._looked_at:
                # A new node, so more may have changed. This is no more than a hint: go on if nobody answers.
                await self._look_quietly()
            # The refusal names the hash slot of the command, which is not the caller's if all queues share the key.
            target = self._hash_slots[int(words[0])] = self._at(url)
            return target, False
        if kind == "CLUSTERDOWN":
            # Perhaps only this node is cut off from the others, and one of them has its hash slots now.
            sender.doubted = True
            await self.look()
        return self.node(hash_slot), False

    async def _look_quietly(self) -> None:
        try:
            await self.look()
        except StoreError as error:
            log.debug("The hash slots of the cluster could not be read", error=str(error))

    def _beside(self, sender: N, port: int) -> str:
        return self._urls.reached_at(urlsplit(sender.url).hostname or "127.0.0.1", port)

    async def look(self) -> None:
        """Ask the nodes who has which hash slot. Callers that come meanwhile share the question.

        :raises StoreUnavailable: no node answers.
        :raises StoreRefused: the user may not ask, or the server is no cluster.
        """
        if time.monotonic() - self._looked_at < PAUSE_SECONDS:
            return
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look(), name="jobq-cluster")
            self._looking.add_done_callback(_heard)
        # A caller that is cancelled must not take the answer from the others.
        await asyncio.shield(self._looking)

    async def _look(self) -> None:
        doubted = {node.url for node in self._nodes.values() if node.doubted}
        urls = list({*self._urls.seeds, *self._nodes, *self._known})
        random.shuffle(urls)
        urls.sort(key=lambda url: url in doubted)
        error: StoreError = StoreUnavailable("no answer from Redis: no node of the cluster is known")
        for first in range(0, len(urls), ASKED_AT_ONCE):
            some = [self._at(url) for url in urls[first : first + ASKED_AT_ONCE]]
            asking = [asyncio.ensure_future(self._ask(node)) for node in some]
            try:
                for answer in asyncio.as_completed(asking):
                    try:
                        hash_slots = await answer
                    except StoreError as reason:
                        error = reason
                    else:
                        self._learn(hash_slots)
                        return
            finally:
                for one in asking:
                    one.cancel()
                await asyncio.gather(*asking, return_exceptions=True)
        raise error

    async def _ask(self, node: N) -> list[tuple[int, int, list[str]]]:
        """Ranges of hash slots with the URLs of the nodes that have them, the primary first, as ``node`` knows them."""
        (answer,) = await node.trip(_CLUSTER_SLOTS, 1, within=min(node.timeout, ASK_SECONDS))
        if isinstance(answer, Exception):
            text = str(answer)
            if text.startswith("NOPERM"):
                raise StoreRefused(f"Redis refuses this user, who needs the right to CLUSTER SLOTS: {text}")
            raise StoreUnavailable(f"no answer from the cluster: {text}")
        if not answer:
            # A node that was removed from the cluster. It knows of no hash slots.
            raise StoreUnavailable("no answer from Redis: this node of the cluster knows of no hash slots")
        return [(first, last, [self._announced(node, one) for one in nodes]) for first, last, *nodes in answer]

    def _announced(self, asked: N, node: Sequence[Any]) -> str:
        host, port = node[:2]
        name = host.decode() if host else ""
        return self._urls.url(name, port) if name not in ("", "?") else self._beside(asked, port)

    def _learn(self, ranges: list[tuple[int, int, list[str]]]) -> None:
        hash_slots: list[N | None] = [None] * SLOTS
        for first, last, urls in ranges:
            hash_slots[first : last + 1] = [self._at(urls[0])] * (last + 1 - first)
        self._hash_slots = hash_slots
        self._looked_at = time.monotonic()
        self._known = {url for _, _, urls in ranges for url in urls}
        used = {urls[0] for _, _, urls in ranges}
        for url in [url for url in self._nodes if url not in used]:
            # Its trips under way still end. It was removed, or a replica took its place.
            self._nodes.pop(url).retire()
        for node in self._nodes.values():
            # Each gets another try. If it still does not answer, the others are asked again.
            node.doubted = False


def _heard(looking: asyncio.Task[None]) -> None:
    """If all callers were cancelled, nobody else looks at the error."""
    if not looking.cancelled():
        looking.exception()
