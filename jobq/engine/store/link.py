"""Trips to Redis: several commands out in one write, their replies back in one read.

redis-py makes and authenticates the connections. Its command layer (a pool lock, a retry object and several coroutines
per command) and its streams are not used, because they cost more than the trip itself: docs/decisions/0002 and 0015.
Two trips never share a connection at the same time, so a cancelled trip closes only its own connection.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, cast

import hiredis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from jobq.engine.store.cluster import Cluster
from jobq.engine.store.once import Once
from jobq.engine.store.refusals import translate
from jobq.engine.store.subscription import Subscription
from jobq.engine.store.url import is_cluster, make_pool, nodes_of
from jobq.engine.store.wire import Wire
from jobq.errors import StoreError, StoreUnavailable
from jobq.redact import redact

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from redis.asyncio.connection import AbstractConnection
    from redis.asyncio.sentinel import Sentinel

T = TypeVar("T")


class Tracking(Protocol):
    """What hears of changed keys in a cluster."""

    def close(self) -> None:
        """Close its connections."""
        ...


class Connection:
    """A connection that several queues share: ``Queue(name, redis=Connection(url))``.

    ``timeout`` (seconds) bounds every trip, with the time to get a free connection and to connect. So no call hangs.

    For a cluster it has a connection to each node, and ``node_of`` returns the one for a hash slot. Then
    ``max_connections`` is per node. A URL of one server also leads to a cluster, if that server is one of its nodes.

    Sockets belong to one event loop of one process. ``here`` gives each loop its own; after a fork the child forgets
    those of its parent, and touches none of them.
    """

    _all: ClassVar[weakref.WeakSet[Connection]] = weakref.WeakSet()
    _inherited: ClassVar[list[object]] = []
    """Connections of the parent process. They are kept for ever: when collected, closing TLS connections and removing
    its sockets from the epoll instance that both processes share would disturb the parent."""
    _inherited_loops: ClassVar[set[asyncio.AbstractEventLoop]] = set()

    def __init__(self, url: str, *, timeout: float = 5.0, max_connections: int = 16) -> None:
        self.url = url
        self.timeout = timeout
        self.max_connections = max_connections
        self.looked_at = False
        """Whether the server was checked, and warnings about its settings were logged."""
        self.doubted = False
        """Whether the last trip failed. In a cluster, another node may have the hash slots of this one now."""
        self._begin()
        self._all.add(self)

    def _begin(self) -> None:
        """Start again without a loop and without sockets. Earlier sockets are dropped without being closed."""
        options: dict[str, Any] = {
            "protocol": 2,
            # Switch off redis-py's own retries. It would repeat a script whose reply was lost up to ten times.
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": None,
            "socket_connect_timeout": self.timeout,
            "socket_keepalive": True,
            "decode_responses": False,
            "client_name": "jobq",
        }
        if self.url.startswith("unix:"):
            options.pop("socket_keepalive")
        self._pool = make_pool(self.url, options)
        self._cluster: Cluster[Connection] | None = self._new_cluster() if is_cluster(self.url) else None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._others: dict[asyncio.AbstractEventLoop, Connection] = {}
        self._users = 0
        self._lock = threading.Lock()
        self._idle: list[Wire] = []
        self._free = self.max_connections
        self._queue: deque[asyncio.Future[None]] = deque()
        self.once = Once()
        self.tracking: Tracking | None = None
        """What hears of changed keys in a cluster. It is closed with the connection."""
        self.loaded = False
        """Whether the scripts were loaded once. A server that has lost them since says so, and gets them again."""
        self._closed = False
        self._subscription = Subscription(self.timeout)

    def __repr__(self) -> str:
        return f"Connection({redact(self.url)!r})"

    def _new_cluster(self) -> Cluster[Connection]:
        return Cluster(nodes_of(self.url), self._connect_to_node)

    def _connect_to_node(self, url: str) -> Connection:
        node = Connection(url, timeout=self.timeout, max_connections=self.max_connections)
        node._loop = self._loop
        return node

    def another(self, timeout: float) -> Connection:
        """A connection of its own to the same server. It knows that the server is a node of a cluster, if this one
        does."""
        other = Connection(self.url, timeout=timeout, max_connections=self.max_connections)
        if self._cluster is not None:
            other._cluster = other._new_cluster()
        return other

    @property
    def in_cluster(self) -> bool:
        """Whether it is known to lead to a cluster."""
        return self._cluster is not None

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, or is the connection to a node that has no hash slots any more."""
        return self._closed

    def node_of(self, hash_slot: int) -> Connection:
        """The connection to the node that has the hash slot. Without a cluster: this one."""
        return self if self._cluster is None else self._cluster.node(hash_slot)

    def nodes(self) -> list[Connection]:
        """The connections to the nodes that have hash slots, as far as is known. Without a cluster: this one."""
        return [self] if self._cluster is None else self._cluster.connections()

    async def find(self, hash_slot: int) -> Connection:
        """The same after a failure: ask first which node has the hash slot now.

        :raises StoreUnavailable: no node of the cluster answers.
        """
        self.doubted = False
        if self._cluster is not None:
            await self._cluster.look()
        return self.node_of(hash_slot)

    async def know_nodes(self) -> None:
        """Ask which node has which hash slot, unless that is known.

        :raises StoreUnavailable: no node of the cluster answers.
        """
        if self._cluster is not None and not self._cluster.is_known:
            await self._cluster.look()

    async def join(self) -> None:
        """The server is a node of a cluster, so ask for the others.

        :raises StoreUnavailable: no node of the cluster answers.
        """
        if self._cluster is None:
            self.close_idle()
            self._cluster = self._new_cluster()
        await self._cluster.look()

    async def follow(self, hash_slot: int, sender: Connection, refusal: str) -> tuple[Connection, bool]:
        """Where to send a command that ``sender`` refused, and whether ASKING must come before it.

        :raises StoreUnavailable: no node of the cluster answers.
        """
        self._cluster = self._cluster or self._new_cluster()
        return await self._cluster.follow(hash_slot, sender, refusal)

    def here(self) -> Connection:
        """The connection for the event loop that runs now: this one in the first loop, a twin in each further one.

        Give it back with ``leave``.

        :raises StoreError: the loop was made before a fork, in the parent process.
        """
        loop = asyncio.get_running_loop()
        if loop in self._inherited_loops:
            raise StoreError(
                "this event loop belongs to the parent process: start a new one in the child, as asyncio.run() does"
            )
        with self._lock:
            if self._loop is not None and self._loop is not loop and self._loop.is_closed():
                # Its sockets belonged to that loop, and cannot be closed without it.
                others = self._others
                self._begin()
                self._others = others
            if self._loop is None:
                self._loop = loop
            if self._loop is loop:
                self._users += 1
                return self
            for other in [other for other in self._others if other.is_closed()]:
                del self._others[other]
            twin = self._others.get(loop)
            if twin is None:
                twin = Connection(self.url, timeout=self.timeout, max_connections=self.max_connections)
                self._others[loop] = twin
                twin._loop, twin.looked_at = loop, self.looked_at
            twin._users += 1
            return twin

    async def leave(self, connection: Connection) -> None:
        """Give back the connection that ``here`` returned. The last user closes its sockets; then the loop can end."""
        with self._lock:
            connection._users -= 1
            if connection._users:
                return
            self._others = {loop: twin for loop, twin in self._others.items() if twin is not connection}
        if connection is self:
            self.close_idle()
        else:
            await connection.aclose()

    async def trip(
        self, payload: bytes, replies: int, *, patience: float = 0.0, within: float | None = None
    ) -> list[Any]:
        """Write the packed commands, read their replies. A command's own error is returned in its place.

        ``patience``: seconds that the server may keep a blocking command on top of the timeout. ``within``: seconds for
        all of it, where that is less than the timeout.

        :raises StoreUnavailable: no answer came, so the commands may have been executed or not.
        :raises StoreRefused: the server refuses this user.
        """
        timeout = self.timeout if within is None else within
        if patience:
            # A blocking command keeps its connection for seconds. It must not take one from the pool of the trips.
            return await self._trip(payload, replies, timeout + patience)
        if self._free:
            self._free -= 1
        else:
            timeout = await self._wait_for_a_free_one(timeout)
        try:
            return await self._trip(payload, replies, timeout)
        finally:
            self._hand_on()

    async def _wait_for_a_free_one(self, timeout: float) -> float:
        """Queue for a connection. Returns what is left of the timeout.

        :raises StoreUnavailable: less than a tenth of the timeout is left, which is too little to wait for a reply.
        """
        began = time.monotonic()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            async with asyncio.timeout(timeout):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._hand_on()  # A connection became free just now.
            if isinstance(error, TimeoutError):
                raise StoreUnavailable(
                    f"no answer from Redis: all {self.max_connections} connections waited for one for {timeout:.3g} s"
                ) from None
            raise
        left = timeout - (time.monotonic() - began)
        if left < timeout / 10:
            self._hand_on()
            raise StoreUnavailable(f"no answer from Redis: a free connection came only after {timeout:.3g} s")
        return left

    def _hand_on(self) -> None:
        """Give a free connection to the trip that has waited longest, if there is one."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    async def _trip(self, payload: bytes, replies: int, timeout: float) -> list[Any]:
        wire, clean = None, False
        try:
            while self._idle and (wire is None or wire.closed):
                wire = self._idle.pop()
            if wire is None or wire.closed:
                began = time.monotonic()
                wire = await self.take(Wire, timeout)
                timeout -= time.monotonic() - began
            answers = await wire.trip(payload, replies, timeout)
            for answer in answers:
                if isinstance(answer, hiredis.ReplyError) and str(answer).startswith("READONLY "):
                    # A failover made this node a replica. Look for the new master on a new connection.
                    raise answer
            clean = not self._closed
        except (exceptions.RedisError, hiredis.ReplyError, OSError, TimeoutError, EOFError) as error:
            self.doubted = True
            raise translate(error) from error
        finally:
            # After any other error or a cancellation there are replies left in the socket, so never use it again.
            if wire is not None:
                if clean:
                    self._idle.append(wire)
                else:
                    wire.close()
        return answers

    async def take(self, take_over: Callable[[AbstractConnection], T], timeout: float) -> T:
        """Connect, and let ``take_over`` have the connection."""
        connection = self._pool.make_connection()
        try:
            async with asyncio.timeout(timeout):
                await connection.connect()
            return take_over(connection)
        finally:
            await connection.disconnect(nowait=True)

    async def listen(
        self,
        channels: Sequence[bytes],
        heard: Callable[[bytes, bytes], None],
        joined: Callable[[], Awaitable[None]],
        is_current: Callable[[], bool] = lambda: True,
    ) -> None:
        """Subscribe and call ``heard`` with channel and message, until cancelled. ``joined`` runs once the subscription
        stands.

        Returns after a silence in which ``is_current`` became false.

        :raises StoreUnavailable: the connection broke, or was silent beyond the timeout and did not answer a PING.
        """
        connection = self._pool.make_connection()
        try:
            await self._subscription.listen(connection, channels, heard, joined, is_current)
        except (exceptions.RedisError, OSError, TimeoutError, EOFError) as error:
            self.doubted = True
            raise translate(error) from error
        finally:
            await connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        """Close idle connections. Trips that are under way close theirs."""
        self._closed = True
        running = asyncio.get_running_loop()
        if self._loop in (None, running):
            self.close_idle()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.close_idle)
        for node in self.nodes() if self._cluster else ():
            await node.aclose()
        await self._pool.disconnect()
        # A Sentinel's pool has its own connections for queries.
        sentinel: Sentinel | None = getattr(self._pool, "sentinel_manager", None)
        for client in sentinel.sentinels if sentinel else ():
            await cast("Any", client).aclose()

    def retire(self) -> None:
        """Close idle connections, in the loop that they belong to. Trips that are under way close theirs."""
        self._closed = True
        self.close_idle()

    def close_idle(self) -> None:
        """Close idle connections, in the loop that they belong to."""
        while self._idle:
            self._idle.pop().close()
        if self.tracking is not None:
            self.tracking.close()
        if self._cluster is not None:
            self._cluster.close_idle()

    def disown(self) -> None:
        """In a forked child: start without connections, and keep those of the parent untouched."""
        loops = [*self._others, self._loop] if self._loop else [*self._others]
        self._inherited_loops.update(loops)
        self._inherited.append(dict(vars(self)))
        self._begin()

    @classmethod
    def disown_all(cls) -> None:
        """In a forked child: the sockets are the parent's, and locks may be held by threads that are not here."""
        for connection in list(cls._all):
            connection.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Connection.disown_all)
