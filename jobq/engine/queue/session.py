"""The sessions of an open queue, one for each event loop, because loops cannot share sockets, locks and futures."""

from __future__ import annotations

import asyncio
import os
from time import monotonic
from typing import TYPE_CHECKING, ClassVar, Final
from weakref import WeakSet

from jobq.engine.log import get_logger
from jobq.engine.model.entry import EntryMaker
from jobq.engine.model.ids import IdMaker, OpenIds
from jobq.engine.model.options import check_durability
from jobq.engine.queue.limits import Declared
from jobq.engine.queue.pages import Pager
from jobq.engine.queue.producer import Producer
from jobq.engine.queue.published import Defaults
from jobq.engine.queue.reader import EventReaders
from jobq.engine.queue.results import Waiters, WaitersOfAll
from jobq.engine.queue.spreader import Spreader
from jobq.engine.store import Partitions
from jobq.engine.task.events import HookCalls
from jobq.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobq.engine.model.job import Durability, Options
    from jobq.engine.model.spread import Spread
    from jobq.engine.queue.connect import ConnectionUse
    from jobq.engine.store import Store
    from jobq.engine.task.events import Hooks

log = get_logger("jobq.queue")

FRESH_SECONDS: Final = 5.0
"""After so long, an open queue asks again for the number of its partitions."""


class Session:
    """A queue's connection in one event loop, and everything that uses it.

    ``loop`` is None in a forked child. The session is then the parent's, and the child must not use or close it.
    """

    _all: ClassVar[WeakSet[Session]] = WeakSet()
    _inherited: ClassVar[list[Session]] = []
    """Sessions of the parent process. They are kept for ever: collecting them would close the parent's sockets."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: asyncio.AbstractEventLoop | None = loop
        self.depth = 0
        """How many times the queue was opened in this loop, less how many times it was closed."""
        self.opening = asyncio.Lock()
        self._looking: asyncio.Task[None] | None = None
        self.is_open = False
        self._all.add(self)

    def begin(
        self,
        use: ConnectionUse,
        store: Store,
        durability: Durability,
        durability_timeout_ms: int,
        hooks: Hooks,
        default_options: Options,
    ) -> None:
        """Use an open store. ``durability`` is the queue's, which the server is known to give."""
        self.use = use
        self.first = self.store = store
        self.entries = EntryMaker(IdMaker())
        self.pager = Pager(store)
        self.readers = EventReaders()
        self.waiters: Waiters | WaitersOfAll = Waiters(store, self.readers.of(store))
        self.defaults = Defaults(store, default_options)
        self.declared = Declared(store)
        self.hook_calls = HookCalls(store.name, hooks)
        self.producer: Producer | Spreader = Producer(
            store, durability, durability_timeout_ms, checked=True, before=self.look, learn=self.find_partitions
        )
        self._producers: dict[Durability, Producer | Spreader] = {durability: self.producer}
        self._alone: list[Producer] = []
        """The producers from before the queue had partitions."""
        self._durability: Durability = durability
        self._durability_timeout_ms = durability_timeout_ms
        self.is_open = True

    def producer_for(self, durability: Durability | None) -> Producer | Spreader:
        """The producer that waits for this durability. None stands for the queue's own.

        :raises InvalidJob: there is no such durability.
        """
        if durability is None:
            return self.producer
        producer = self._producers.get(durability)
        if producer is None:
            check_durability(durability)
            producer = Producer(
                self.first,
                durability,
                self._durability_timeout_ms,
                checked=durability == "none",
                learn=self.find_partitions,
            )
            if isinstance(self.store, Partitions):
                producer = Spreader(self.store, producer, self._maker(durability), self.look)
            self._producers[durability] = producer
        return producer

    # -- partitions ------------------------------------------------------------------------------------------------

    def watch(self, spread: Spread, make: Callable[[int], Store]) -> None:
        """Use so many partitions, and look from time to time whether there are more. ``make`` makes their stores."""
        self.make = make
        self._looked_at = monotonic()
        self.learn(spread)

    def look(self) -> None:
        """Ask in the background for the number of partitions, if it was asked for long ago."""
        if monotonic() - self._looked_at > FRESH_SECONDS and self.is_open:
            self._looked_at = monotonic()
            self._looking = asyncio.get_running_loop().create_task(self._look(), name="jobq-partitions")

    async def refresh(self) -> None:
        """Ask for the number of partitions now.

        :raises StoreError: Redis does not answer.
        """
        self._looked_at = monotonic()
        stored = await self.first.stored_spread()
        if stored.who:
            self.learn(stored)

    async def find_partitions(self) -> bool:
        """Ask for the number of partitions. Returns whether there are several.

        :raises StoreError: Redis does not answer.
        """
        await self.refresh()
        return isinstance(self.store, Partitions)

    async def _look(self) -> None:
        try:
            await self.refresh()
        except StoreError as error:
            log.debug("The number of partitions could not be read", queue=self.first.name, error=str(error))

    def learn(self, spread: Spread) -> None:
        """There are so many partitions now."""
        store = self.store
        if isinstance(store, Partitions):
            store.learn(spread)
        elif spread.most > 1:
            self.store = store = Partitions(self.first, self.make, spread)
            self.entries = EntryMaker(OpenIds())
            self.pager = Pager(store)
            self.declared = Declared(store)
            self.waiters = WaitersOfAll(store, self.waiters, self.readers)
            for durability, producer in self._producers.items():
                assert isinstance(producer, Producer)
                # It may have rows that were made without partitions. They must not become rows of the first one.
                self._alone.append(producer)
                make = self._maker(durability)
                self._producers[durability] = Spreader(store, make(self.first), make, self.look)
            self.producer = self._producers[self._durability]

    def _maker(self, durability: Durability) -> Callable[[Store], Producer]:
        """Makes the producers of partitions."""

        def make(part: Store) -> Producer:
            # Each node of a cluster may be able to give another durability.
            known = durability == self._durability and not part.connection.in_cluster
            checked = durability == "none" or known
            return Producer(part, durability, self._durability_timeout_ms, checked=checked, whole=self.first)

        return make

    async def aclose(self) -> None:
        """Finish what is being sent, and release the connection."""
        if not self.is_open:
            return
        # a hook may use the queue
        await self.hook_calls.ended()
        self.is_open = False
        if self._looking is not None:
            self._looking.cancel()
        try:
            await self.waiters.aclose()
            await self.readers.aclose()
            await self.defaults.aclose()
            for producer in (*self._alone, *self._producers.values()):
                await producer.drain()
        finally:
            await self.use.release()

    async def abandon(self) -> None:
        """The event loop of this session was closed first: release what can be released without it."""
        if self.is_open:
            self.is_open = False
            await self.use.abandon()

    @classmethod
    def forget_parent(cls) -> None:
        """Called in a forked child: none of the sessions belongs to this process."""
        for session in list(cls._all):
            session.loop = None
            cls._inherited.append(session)


class Sessions:
    """The sessions of one queue: one for each event loop that has it open. ``connect`` begins a new one."""

    def __init__(self, queue: str, connect: Callable[[Session], Awaitable[None]]) -> None:
        self._queue = queue
        self._connect = connect
        self._by_loop: dict[asyncio.AbstractEventLoop, Session] = {}
        self._last: Session | None = None
        """The session that was used last. Nearly always it is the only one."""

    @property
    def here(self) -> Session:
        """The session of the event loop that runs now.

        :raises StoreError: the queue is not open there.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise StoreError(
                f"queue {self._queue!r} is used outside of an event loop: await it in a coroutine"
            ) from None
        session = self._last
        if session is None or session.loop is not loop or not session.is_open:
            session = self._by_loop.get(loop)
            if session is None or session.loop is not loop or not session.is_open:
                elsewhere = " in this event loop (each loop opens it for itself)" if self._by_loop else ""
                raise StoreError(
                    f"queue {self._queue!r} is not open{elsewhere}: use 'async with queue:' or 'await queue.open()'"
                )
            self._last = session
        return session

    @property
    def is_open(self) -> bool:
        """Whether there is an open session for the event loop that runs now. Without a running loop: for any loop."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return any(one.is_open and one.loop and not one.loop.is_closed() for one in list(self._by_loop.values()))
        session = self._by_loop.get(loop)
        return session is not None and session.is_open and session.loop is loop

    async def open(self) -> None:
        """Open a session in the event loop that runs now, or count one more user of the open one."""
        loop = asyncio.get_running_loop()
        dead = self._take_dead()
        session = self._by_loop.get(loop)
        if session is None:
            session = self._by_loop[loop] = Session(loop)
        session.depth += 1
        try:
            async with session.opening:
                if not session.is_open:
                    await self._connect(session)
            self._last = session
        except BaseException:
            session.depth -= 1
            if not session.depth:
                self._by_loop.pop(loop, None)
            raise
        finally:
            # Not earlier: an embedded server that a dead loop used must not stop before this session uses it.
            for one in dead:
                await one.abandon()

    async def aclose(self) -> None:
        """Count one user less, and close the session with the last one."""
        loop = asyncio.get_running_loop()
        session = self._by_loop.get(loop)
        if session is None or session.loop is None:
            return
        session.depth -= 1
        if not session.depth:
            # Forget it before closing it, so that an opening meanwhile makes a new session.
            del self._by_loop[loop]
            await session.aclose()

    def _take_dead(self) -> list[Session]:
        """Forget the sessions of closed loops: asyncio.run() may have ended before the queue was closed.

        After a fork the parent's sessions are forgotten too. They are not returned, because they are the parent's.
        """
        dead: list[Session] = []
        for loop, session in list(self._by_loop.items()):
            if session.loop is None or loop.is_closed():
                del self._by_loop[loop]
                if session.loop is not None:
                    dead.append(session)
        return dead


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Session.forget_parent)
