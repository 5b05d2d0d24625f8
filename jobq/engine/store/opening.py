"""Opening a queue: checks the server and the layout of the data, reads the server's clock, keeps the registry."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from jobq.engine.log import get_logger
from jobq.engine.model.aging import AGING_JOBS_MAX, aging_text
from jobq.engine.model.spread import Spread, read_spread
from jobq.engine.store.calls import Call, read_as_is
from jobq.engine.store.fitness import QUESTIONS, check_fitness, is_of_cluster
from jobq.engine.store.keys import LAYOUT, registry_key
from jobq.engine.store.listening import Listening
from jobq.engine.store.migrations import MIGRATIONS
from jobq.engine.store.route import Route
from jobq.errors import StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jobq.engine.store.link import Connection
    from jobq.engine.store.migrations import Migration
    from jobq.engine.store.packing import Argument


log = get_logger("jobq.store")


class Opening(Listening):
    """The part of a store that opens and registers the queue, and knows the time.

    ``clock`` gives ``now`` (unix ms as text). Without one, the server's time counts. ``aging_ms``: the aging that the
    program declares; 0: none.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        *,
        prefix: str = "jobq",
        clock: Callable[[], str] | None = None,
        aging_ms: int = 0,
        charge: str | None = None,
        partition: int = 0,
        partitions: int = 0,
        events: str | None = None,
    ) -> None:
        super().__init__(connection, name, prefix, partition)
        self.partitions = partitions
        """Over how many partitions the queue is spread when it is registered, if nothing else is stored; 0: it is left
        as it is."""
        self.registry = Route(connection, registry_key(prefix))
        """The registry is one key for all queues, so it is in a slot of its own."""
        self._aging_ms = aging_ms
        self._charge = charge
        self._events_level = events
        self._told: set[str] = set()
        """Settings of which a warning said that another value is stored. Workers register again and again."""
        self._clock = clock
        self._offset_ms: float | None = None

    @property
    def now(self) -> Argument:
        """The ``now`` argument of a script."""
        return self._clock() if self._clock else b""

    def now_ms(self) -> int:
        """An estimate of the server's time, unix ms: its clock when last read, advanced by the monotonic clock."""
        if self._clock:
            return int(self._clock())
        if self._offset_ms is None:
            return time.time_ns() // 1_000_000
        return int(time.monotonic() * 1000 + self._offset_ms)

    async def open(
        self, durability: str = "none", *, wanted: int = LAYOUT, migrations: Mapping[int, Migration] = MIGRATIONS
    ) -> None:
        """Check the server, migrate the layout to the ``wanted`` version, and read the server's clock.

        It writes nothing for a queue that was never used: ``register`` writes the layout.

        If a process dies during a migration, the old version stays, and the next process to open the queue continues.

        :raises StoreRefused: the server is unfit (see fitness.py), the layout is newer than this program's, or it is
            older and cannot be migrated, or the queue has another aging than the program declares.
        """
        await self.prepare(durability)
        target, migrated_from = wanted, ""
        while (layout := int(await self.do(Call("open", [target, migrated_from], read_as_is)))) < wanted:
            if layout not in migrations:
                raise StoreRefused(
                    f"queue {self.name!r} has layout {layout}, and this version of jobq cannot migrate it to layout"
                    f" {wanted}: drain it with the jobq that made it, or use another prefix"
                )
            while await migrations[layout](self):
                pass
            target, migrated_from = layout + 1, str(layout)
        self._check_layout(layout, wanted)
        if self._aging_ms and await self.command(b"HEXISTS", self.keys["meta"], b"layout"):
            stored, wanted = await self._declare_aging(), self._aging_ms
            if stored != wanted:
                raise StoreRefused(
                    f"queue {self.name!r} has {aging_text(stored)}, and this program declares {aging_text(wanted)}: all"
                    f" programs must agree. To change it for all: jobq aging {wanted / 1000:g}s --queue {self.name}"
                )
        await self.look_at_clock()

    async def prepare(self, durability: str = "none") -> None:
        """Check the server, and give it the scripts.

        :raises StoreRefused: the server is unfit (see fitness.py).
        """
        await self.check(durability)
        if not self.node.loaded:
            await self.node.once.do("load", self.load)
            self.node.loaded = True

    def aging(self, ms: int, *, declared: bool = False) -> Call[list[int]]:
        """Set the aging of the queue, unless it is only ``declared`` and another value is stored. Returns what is
        stored now, and how many jobs wait if these are too many for a change."""
        return Call("aging", [self.now, ms, int(declared), AGING_JOBS_MAX], read_as_is)

    def spread(self, count: int, *, who: str = "code") -> Call[Spread]:
        """Set over how many partitions the queue is spread, if ``who`` may, or decide the homes of jobs with keys (0;
        see spread.lua). Returns what is stored."""
        return Call("spread", [count, who], read_spread)

    def setting(self, field: str = "", value: str = "") -> Call[Any]:
        """Set one word that operators set, '' to remove it. Without a field it only counts as a change."""
        return Call("setting", [field, value], read_as_is)

    def settings(self, changes: bytes, own: bytes) -> Call[int]:
        """Note that this partition has the settings of the first one, at these counts of changes in both (see
        settings.lua). Returns 0 if it was changed meanwhile."""
        return Call("settings", [changes, own], int)

    async def stored_spread(self) -> Spread:
        """Over how many partitions the queue is spread. A queue for which nothing is stored has one."""
        return read_spread(await self.command(b"HGET", self.keys["meta"], b"partitions"))

    async def _declare_aging(self) -> int:
        """Store the aging that the program declares, unless one is stored. Returns the one that is stored now.

        :raises StoreRefused: too many jobs wait in the order of absolute priorities.
        """
        stored, waiting = await self.do(self.aging(self._aging_ms, declared=True))
        if waiting:
            raise StoreRefused(
                f"{waiting} jobs of queue {self.name!r} wait in the order of absolute priorities, and aging can be"
                f" introduced while {AGING_JOBS_MAX} wait at most: let the workers finish some of them first"
            )
        return stored

    async def _declare_charge(self, wanted: str) -> None:
        if stored := await self._stored_instead("charge", wanted):
            log.warning(
                f"Groups of queue {self.name} are charged by {stored}, and this program declares {wanted}: the stored"
                f" one counts. To change it for all: jobq groups charge {wanted} --queue {self.name}",
                queue=self.name,
            )

    async def _declare_events(self, wanted: str) -> None:
        if stored := await self._stored_instead("events", wanted):
            log.warning(
                f"Queue {self.name} tells {stored} as events, and this program declares {wanted}: the stored one"
                f" counts. To change it for all: jobq events --tell {wanted} --queue {self.name}",
                queue=self.name,
            )

    async def _stored_instead(self, field: str, wanted: str) -> str | None:
        """Store what the program declares, unless a program or an operator has stored a value.

        Returns that value if it is another one, but only once, so that the warning is not repeated.
        """
        meta = self.keys["meta"]
        if await self.command(b"HSETNX", meta, field, wanted):
            return None
        stored = (await self.command(b"HGET", meta, field) or b"").decode(errors="replace")
        if stored == wanted or field in self._told:
            return None
        self._told.add(field)
        return stored

    def _check_layout(self, layout: int, wanted: int) -> None:
        if layout > wanted:
            raise StoreRefused(
                f"queue {self.name!r} has layout {layout}, this jobq knows {wanted}: update jobq, or use another prefix"
            )

    async def check(self, durability: str) -> None:
        """Check the server.

        :raises StoreRefused: it is unfit (``DurabilityRefused``: it cannot give the ``durability``).
        """
        if self.connection.in_cluster:
            await self.connection.join()
        answers = await self._ask()
        if is_of_cluster(answers) and not self.connection.in_cluster:
            # The URL of one node. Look at the one that the queue is on.
            await self.connection.join()
            answers = await self._ask()
        check_fitness(answers, self.node, durability)

    async def _ask(self) -> list[Any]:
        return await self.node.once.do("questions", lambda: self.commands(*QUESTIONS))

    async def is_registered(self) -> bool:
        """Whether the queue is in the registry."""
        return bool(await self.registry.command(*self._is_registered))

    @property
    def _is_registered(self) -> tuple[Argument, ...]:
        return (b"SISMEMBER", registry_key(self.prefix), self.name)

    async def trip_and_look(self, *calls: Call[Any]) -> tuple[list[Any], bool]:
        """Send the calls as ``trip`` does, and ask whether the queue is in the registry. One server gets both in one
        write. In a cluster the registry may be on another node; while it does not answer, the queue counts as known.

        :raises StoreUnavailable: no attempt got an answer.
        """
        if not self.connection.in_cluster:
            *answers, known = await self.trip(*calls, extra=self._is_registered)
            return answers, known != 0
        answers = await self.trip(*calls)
        try:
            return answers, await self.is_registered()
        except StoreUnavailable:
            return answers, True

    async def register(self) -> None:
        """Add the queue to the registry and write its layout. This happens at the first enqueue, pause or worker, so
        that reading from a mistyped name creates no queue.

        :raises StoreFull: the queue is new, and Redis is at maxmemory.
        :raises StoreRefused: the layout is newer than this program's, or too many jobs wait when its aging is declared.
        """
        # Check before writing. At maxmemory writes are refused, and a worker must be able to start in order to drain
        # the queue.
        meta = self.keys["meta"]
        layout = await self.command(b"HGET", meta, b"layout")
        if self.partitions > 1 and layout is None:
            # Before the layout is written: only a queue that was never used can spread the jobs with keys.
            await self.do(self.spread(self.partitions))
        elif self.partitions > 1 and not await self.command(b"HEXISTS", meta, b"partitions"):
            await self.do(self.spread(self.partitions))
        if layout is None:
            await self.command(b"HSETNX", meta, b"layout", LAYOUT)
        else:
            self._check_layout(int(layout), LAYOUT)
        if self._aging_ms:
            await self._declare_aging()
        if self._charge:
            await self._declare_charge(self._charge)
        if self._events_level:
            await self._declare_events(self._events_level)
        if not await self.is_registered():
            await self.registry.command(b"SADD", registry_key(self.prefix), self.name)

    async def unregister(self) -> None:
        """Remove a dropped queue from the registry, unless it has been used again meanwhile."""
        registry = registry_key(self.prefix)
        await self.registry.command(b"SREM", registry, self.name)
        if await self.command(b"EXISTS", self.keys["jobs"], self.keys["workers"]):
            await self.registry.command(b"SADD", registry, self.name)

    def follow_clock(self, other: Opening) -> None:
        """Take over what another store knows of the server's clock, until this one reads it."""
        self._offset_ms = other._offset_ms

    async def server_ms(self) -> int:
        """The server's time at this moment, unix ms."""
        if self._clock:
            return int(self._clock())
        seconds, micros = await self.command(b"TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def look_at_clock(self) -> None:
        """Read the server's clock. The error is half the round trip at most."""
        before = time.monotonic()
        seconds, micros = await self.command(b"TIME")
        if time.monotonic() - before > 0.5:
            # The call was sent again, so the round trip says nothing about the error.
            before = time.monotonic()
            seconds, micros = await self.command(b"TIME")
        middle = (before + time.monotonic()) / 2
        self._offset_ms = int(seconds) * 1000 + int(micros) / 1000 - middle * 1000

    async def queues(self) -> list[str]:
        """All queues under the prefix, sorted."""
        return sorted(name.decode() for name in await self.registry.command(b"SMEMBERS", registry_key(self.prefix)))


async def unregistered(stores: Sequence[Opening]) -> list[Opening]:
    """Those of the stores whose queue is not in the registry. All are on one server or cluster, which gets one command.

    :raises StoreError: no answer.
    """
    by_prefix: dict[str, list[Opening]] = {}
    for store in stores:
        by_prefix.setdefault(store.prefix, []).append(store)
    missing: list[Opening] = []
    for prefix, some in by_prefix.items():
        known = await some[0].registry.command(b"SMISMEMBER", registry_key(prefix), *(store.name for store in some))
        missing += [store for store, one in zip(some, known, strict=True) if not one]
    return missing
