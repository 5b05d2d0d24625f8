"""What an open queue has in one event loop. Sockets, locks and futures of one loop are of no use to another one."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakSet

from jobq.engine.model.ids import IdMaker
from jobq.engine.model.options import check_durability
from jobq.engine.queue.pages import Pager
from jobq.engine.queue.producer import Producer
from jobq.engine.queue.published import Defaults
from jobq.engine.queue.results import Waiters

if TYPE_CHECKING:
    from jobq.engine.model.job import Durability
    from jobq.engine.queue.connect import ConnectionUse
    from jobq.engine.store import Store


class Session:
    """A queue's connection in one event loop, and all that works on it.

    ``loop`` is None in a forked child: the session is the parent's, and nothing of it may be used or closed here.
    """

    _all: ClassVar[WeakSet[Session]] = WeakSet()
    _inherited: ClassVar[list[Session]] = []
    """Sessions of the parent process. They are kept for ever: collecting them would close the parent's sockets."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: asyncio.AbstractEventLoop | None = loop
        self.depth = 0
        """How many times the queue was opened here, less how many times it was closed."""
        self.opening = asyncio.Lock()
        self.is_open = False
        self._all.add(self)

    def begin(self, use: ConnectionUse, store: Store, durability: Durability, durability_timeout_ms: int) -> None:
        """Use an open store. ``durability`` is the queue's, which the server is known to give."""
        self.use = use
        self.store = store
        self.ids = IdMaker()
        self.pager = Pager(store)
        self.waiters = Waiters(store)
        self.defaults = Defaults(store)
        self.producer = Producer(store, durability, durability_timeout_ms, checked=True)
        self._producers: dict[Durability | None, Producer] = {None: self.producer, durability: self.producer}
        self._durability_timeout_ms = durability_timeout_ms
        self.is_open = True

    def producer_for(self, durability: Durability | None) -> Producer:
        """The producer that waits for this durability. None stands for the queue's own.

        :raises InvalidJob: there is no such durability.
        """
        producer = self._producers.get(durability)
        if producer is None:
            assert durability is not None
            check_durability(durability)
            producer = Producer(self.store, durability, self._durability_timeout_ms, checked=durability == "none")
            self._producers[durability] = producer
        return producer

    async def aclose(self) -> None:
        """Finish what is being sent, and let the connection go."""
        if not self.is_open:
            return
        self.is_open = False
        try:
            await self.waiters.aclose()
            await self.defaults.aclose()
            for producer in set(self._producers.values()):
                await producer.drain()
        finally:
            await self.use.release()

    async def abandon(self) -> None:
        """The event loop of this session was closed first: give back what can be given back without it."""
        if self.is_open:
            self.is_open = False
            await self.use.abandon()

    @classmethod
    def forget_parent(cls) -> None:
        """In a forked child: no session is this process's own."""
        for session in list(cls._all):
            session.loop = None
            cls._inherited.append(session)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Session.forget_parent)
