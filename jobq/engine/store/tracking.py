"""Hears from the nodes of a cluster when keys change, so that idle queues need not be asked about again and again.

One command asks about one hash slot, so a worker of many queues in a cluster would need a blocked connection, or a
command every few seconds, for each of them. Redis and Valkey tell a client when a key changes that it has read (CLIENT
TRACKING). One connection to each node hears it for all queues there. docs/decisions/0087 says more.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from redis import exceptions
from redis.crc import key_slot

from jobq.engine.log import get_logger
from jobq.engine.model.backoff import pause
from jobq.engine.store.cluster import is_refusal
from jobq.engine.store.packing import pack
from jobq.engine.store.refusals import translate
from jobq.engine.store.tracked import TrackedWire
from jobq.errors import StoreError, StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from jobq.engine.store.link import Connection
    from jobq.engine.store.waiting import Waiting

    Keys = tuple[bytes, ...]
    """Keys of one hash slot, about which one EXISTS asks."""

log = get_logger("jobq.store")

ANSWER_SECONDS: Final = 1.0
"""How long a question about many queues waits for nodes that do not answer. Their queues then count as having jobs."""
PING_SECONDS: Final = 5.0
"""Each node is asked so often for a sign of life. A connection through which nothing comes any more is also silent."""
MOVING_SECONDS: Final = 0.1
"""A queue whose hash slot is on the move is asked so often, because no node tells its changes then."""


class Tracker:
    """What one node said about keys, until it said that they have changed."""

    def __init__(self, node: Connection, owner: Trackers) -> None:
        self.node = node
        self.known: dict[Keys, bool] = {}
        self.changed: set[Keys] = set()
        """Keys of which none existed, and which have changed since."""
        self._owner = owner
        self._asked: set[Keys] = set()
        self._channels: dict[bytes, Keys] = {}
        """Channels of hash slots, with the keys that are asked about. The node tells when it has their slot no more."""
        self._groups: dict[bytes, set[Keys]] = {}
        self._wire: TrackedWire | None = None
        self._connecting = False
        self._failures = 0

    def ask(self, keys: Keys) -> None:
        """Ask whether any of the keys exists. ``known`` has the answer later."""
        if keys in self._asked:
            return
        self._asked.add(keys)
        for key in keys:
            self._groups.setdefault(key, set()).add(keys)
        if self._wire is not None:
            self._ask(self._wire, keys)
        elif not self._connecting:
            self._connecting = True
            self._owner.start(self._connect())

    def listen(self, channel: bytes, keys: Keys) -> None:
        """Hear when the hash slot of this channel and these keys moves away."""
        if channel not in self._channels:
            self._channels[channel] = keys
            if self._wire is not None:
                self._listen(self._wire, channel)

    def pop(self, keys: Keys) -> asyncio.Future[Any]:
        """Take the token of a queue, and ask again whether there is one. The future gets the server's answer."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._wire is None:
            future.set_exception(StoreUnavailable("no answer from Redis: the connection was lost"))
            return future

        def took(answer: Any) -> None:
            if not future.done():
                (future.set_exception if isinstance(answer, StoreError) else future.set_result)(answer)

        self.changed.discard(keys)
        self.known.pop(keys, None)
        self._wire.send(pack((b"ZPOPMIN", keys[0])), took)
        # This command removes the key from those whose changes the node tells. The question adds it again.
        self._ask(self._wire, keys)
        return future

    def ping(self) -> None:
        """Ask for a sign of life. Without one the connection counts as lost."""
        if self._wire is not None:
            self._wire.send(pack((b"PING",)), _ignore)

    def close(self) -> None:
        """Close the connection."""
        if self._wire is not None:
            self._wire.close()

    async def _connect(self) -> None:
        try:
            wire = await self.node.take(
                lambda connection: TrackedWire(connection, self._heard, self._broke, self.node.timeout),
                self.node.timeout,
            )
        except (exceptions.RedisError, OSError, TimeoutError, EOFError) as error:
            self._broke(translate(error))
            return
        finally:
            self._connecting = False
        if self._owner.closed or self.node.is_closed:
            wire.close()
            return
        self._wire = wire
        wire.send(pack((b"HELLO", 3)), _ignore)
        wire.send(pack((b"CLIENT", b"TRACKING", b"ON", b"NOLOOP")), self._tracks)
        for channel in self._channels:
            self._listen(wire, channel)
        for keys in self._asked:
            self._ask(wire, keys)

    def _listen(self, wire: TrackedWire, channel: bytes) -> None:
        wire.send(pack((b"SSUBSCRIBE", channel)), lambda answer: self._listens(channel, answer))

    def _listens(self, channel: bytes, answer: Any) -> None:
        if is_refusal(answer):
            # The node does not have the hash slot now, so it would not tell that it moves away. It may come back later.
            keys = self._channels.pop(channel, None)
            if keys is not None and self.known.pop(keys, None) is not None:
                self._owner.tell()
        elif isinstance(answer, Exception) and not isinstance(answer, StoreError):
            self._owner.hears_no_moves(answer)

    def _ask(self, wire: TrackedWire, keys: Keys) -> None:
        wire.send(pack((b"EXISTS", *keys)), lambda answer: self._answered(keys, answer))

    def _tracks(self, answer: Any) -> None:
        if isinstance(answer, StoreError):
            return  # The connection was lost.
        if isinstance(answer, Exception) and self._wire is not None:
            log.warning(
                f"A node of the cluster does not tell this user which keys change, so jobs may start up to five seconds"
                f" late: {answer}",
                error=str(answer),
            )
            self._wire.fail(StoreRefused(str(answer)))
        else:
            self._failures = 0

    def _answered(self, keys: Keys, answer: Any) -> None:
        if isinstance(answer, StoreError):
            return  # The connection was lost.
        self._asked.discard(keys)
        self.changed.discard(keys)
        if isinstance(answer, Exception):
            self._owner.refused(self.node, keys, answer)
        else:
            self.known[keys] = bool(answer)
            self._owner.tell()

    def _heard(self, what: bytes, of: Any) -> None:
        """The node tells that keys have changed, or that a hash slot has moved away."""
        if what == b"invalidate" and of is not None:
            for key in of:
                for keys in self._groups.get(key, ()):
                    if self.known.pop(keys, None) is False:
                        self.changed.add(keys)
        elif what in (b"invalidate", b"sunsubscribe"):
            self.known.clear()
            if of is not None:
                self._channels.pop(of, None)
        self._owner.tell()

    def _broke(self, error: Exception) -> None:
        self._wire = None
        self.known.clear()
        self.changed.clear()
        self._asked.clear()
        self._failures += 1
        if not self._owner.closed:
            self.node.doubted = True
            self._owner.disconnected(self.node, pause(self._failures))


class Trackers:
    """The trackers of all nodes of a cluster, for one connection of jobq."""

    def __init__(self, connection: Connection) -> None:
        self.closed = False
        self._connection = connection
        self._of: dict[Connection, Tracker] = {}
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._resting: set[Connection] = set()
        """Nodes that are asked again only after a pause."""
        self._moving: dict[Keys, float] = {}
        """Keys that a node could not say anything about -> when they are asked for again."""
        self._following: set[int] = set()
        self._ping_at = 0.0
        self._hears_moves = True
        self.waiting = 0
        """Workers that wait for a token now."""

    def tell(self) -> None:
        """Wake those who wait: there is an answer, or a change."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task until it ends, or until ``close``."""
        task = asyncio.get_running_loop().create_task(work, name="jobq-tracking")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait(self, stores: Sequence[Waiting], block: float) -> int | None:
        """Wait until one of these queues has a wake token, for up to ``block`` seconds, and take it. Returns the place
        of the queue, None if no token came.

        :raises StoreUnavailable: no answer came, so a token may have been taken.
        :raises StoreError: the server refuses to give it.
        """
        self.waiting += 1
        try:
            return await self._wait(stores, block)
        finally:
            self.waiting -= 1

    async def _wait(self, stores: Sequence[Waiting], block: float) -> int | None:
        now = asyncio.get_running_loop().time
        end = now() + block
        for node in [node for node in self._of if node.is_closed]:
            self._of.pop(node).close()
        groups = [(store.keys["wake"],) for store in stores]
        while True:
            news = self._news
            place = next((i for i, store in enumerate(stores) if self._may_have(store, groups[i])), None)
            if place is None:
                if now() >= end:
                    return None
                self._ping(now())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(min(end, self._ping_at)):
                        await news.wait()
            elif await self._pop(stores[place], groups[place]):
                return place

    async def having(self, stores: Sequence[Waiting], columns: Sequence[str]) -> list[int]:
        """The places of the queues that have one of these columns, or of which that is not known."""
        now = asyncio.get_running_loop().time
        end = now() + ANSWER_SECONDS
        groups = [tuple(store.keys[column] for column in columns) for store in stores]
        # A worker without free slots does not wait for tokens, and must also notice that a connection is dead.
        self._ping(now())
        while True:
            news = self._news
            answers = [self._state(store, keys) for store, keys in zip(stores, groups, strict=True)]
            if None not in answers:
                break
            try:
                async with asyncio.timeout_at(end):
                    await news.wait()
            except TimeoutError:
                break
        return [place for place, answer in enumerate(answers) if answer is not False]

    def close(self) -> None:
        """Close the connections. They are made again when somebody waits."""
        self.closed = True
        for task in self._tasks:
            task.cancel()
        for tracker in self._of.values():
            tracker.close()
        self._of.clear()

    def _ping(self, now: float) -> None:
        if now >= self._ping_at:
            self._ping_at = now + PING_SECONDS
            for tracker in self._of.values():
                tracker.ping()
                if not self._hears_moves:
                    # A node says nothing more of a queue that has moved away. So ask for all of them again.
                    tracker.known.clear()

    # -- what is known ---------------------------------------------------------------------------------------------

    def _tracker(self, store: Waiting) -> Tracker | None:
        node = store.node
        if node in self._resting:
            return None
        if node.doubted:
            # Perhaps another node has its hash slots now.
            self.disconnected(node, 0.0)
            return None
        tracker = self._of.get(node)
        if tracker is None:
            tracker = self._of[node] = Tracker(node, self)
        return tracker

    def _state(self, store: Waiting, keys: Keys) -> bool | None:
        """Whether any of the keys exists; None if it is not known. Then it is asked for."""
        if (until := self._moving.get(keys)) is not None:
            if asyncio.get_running_loop().time() < until:
                return True
            del self._moving[keys]
        tracker = self._tracker(store)
        if tracker is None:
            return None
        known = tracker.known.get(keys)
        if known is None:
            tracker.ask(keys)
        return known

    def _may_have(self, store: Waiting, keys: Keys) -> bool:
        """Whether to try to take the token of this queue."""
        if (until := self._moving.get(keys)) is not None:
            return asyncio.get_running_loop().time() >= until
        tracker = self._tracker(store)
        if tracker is None:
            return False
        if keys in tracker.changed:
            return True
        known = tracker.known.get(keys)
        if known is None:
            tracker.ask(keys)
        tracker.listen(store.keys["control"], keys)
        return known is True

    async def _pop(self, store: Waiting, keys: Keys) -> bool:
        tracker = self._tracker(store)
        if tracker is not None and self._moving.pop(keys, None) is None:
            answer = await tracker.pop(keys)
            if isinstance(answer, Exception) and not is_refusal(answer):
                raise translate(answer)
            if not isinstance(answer, Exception):
                return bool(answer)
        # The hash slot is on the move. This way follows it.
        token = await store.command(b"ZPOPMIN", keys[0])
        return bool(token)

    # -- what trackers report --------------------------------------------------------------------------------------

    def refused(self, node: Connection, keys: Keys, answer: Exception) -> None:
        """The node did not answer a question."""
        if str(answer).startswith("MOVED "):
            hash_slot = key_slot(keys[0])
            if hash_slot not in self._following:
                self._following.add(hash_slot)
                self.start(self._follow(hash_slot, node, str(answer)))
            return
        self._moving[keys] = asyncio.get_running_loop().time() + MOVING_SECONDS
        asyncio.get_running_loop().call_later(MOVING_SECONDS, self.tell)

    def hears_no_moves(self, answer: Exception) -> None:
        """A node refuses to tell when hash slots move away."""
        if self._hears_moves:
            self._hears_moves = False
            log.warning(
                "The cluster does not tell this user when slots move, so jobs of a queue that moves may start some"
                f" seconds late. Give the user the right to SSUBSCRIBE: {answer}",
                error=str(answer),
            )

    async def _follow(self, hash_slot: int, node: Connection, refusal: str) -> None:
        try:
            await self._connection.follow(hash_slot, node, refusal)
        except StoreError as error:
            log.debug("The hash slots of the cluster could not be read", error=str(error))
            await asyncio.sleep(MOVING_SECONDS)
        finally:
            self._following.discard(hash_slot)
        self.tell()

    def disconnected(self, node: Connection, rest: float) -> None:
        """The connection to a node broke, or none could be made. Ask which node has its hash slots now."""
        self.tell()
        if node not in self._resting:
            self._resting.add(node)
            self.start(self._find(node, rest))

    async def _find(self, node: Connection, rest: float) -> None:
        try:
            await asyncio.sleep(rest)
            node.doubted = False
            await self._connection.find(0)
        except StoreError as error:
            log.debug("The hash slots of the cluster could not be read", error=str(error))
            await asyncio.sleep(pause(3))
        finally:
            self._resting.discard(node)
        self.tell()


def trackers_of(connection: Connection) -> Trackers:
    """The trackers of a connection to a cluster."""
    tracking = connection.tracking
    if not isinstance(tracking, Trackers) or tracking.closed:
        tracking = connection.tracking = Trackers(connection)
    return tracking


def stop_tracking(connection: Connection) -> None:
    """A worker has stopped. If no other one waits, the connections are closed. Whoever waits later makes new ones."""
    if isinstance(connection.tracking, Trackers) and not connection.tracking.waiting:
        connection.tracking.close()


def _ignore(answer: Any) -> None:
    """The answer says nothing that is needed."""
