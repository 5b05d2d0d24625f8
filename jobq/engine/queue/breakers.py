"""Circuit breakers of types: declared by code when a worker or server starts, seen, tripped and reset by operators."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from jobq.engine.log import get_logger
from jobq.engine.model.breaker import BreakerRow, open_ms, read_breaker, state_of
from jobq.engine.model.unreadable import as_text
from jobq.engine.queue.changing import changing
from jobq.engine.store import send_each
from jobq.errors import UnknownBreaker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobq.engine.model.breaker import Breaker
    from jobq.engine.model.job import Seconds
    from jobq.engine.model.types import TypeRow
    from jobq.engine.store import Store

log = get_logger("jobq.queue")


class BreakerVerbs(ABC):
    """What operators ask about breakers and change."""

    declared_breakers: dict[str, Breaker]

    @property
    @abstractmethod
    def store(self) -> Store:
        """The verbs underneath."""

    async def breakers(self) -> list[BreakerRow]:
        """The circuit breakers of all types, by their names.

        :raises StoreError: Redis is away.
        """
        now, flat = await self.store.do(self.store.breakers())
        rows = [
            read_breaker(as_text(name), as_text(row), now, held, active)
            for name, row, held, active in zip(*[iter(flat)] * 4, strict=True)
        ]
        return sorted((row for row in rows if row is not None), key=lambda row: row.type)

    async def trip_breaker(self, type: str, time: Seconds | str | None = None) -> BreakerRow:
        """Open the breaker of a type by hand. Running jobs go on. When the time is over, one job runs to find out.

        ``time``: how long it is open, as seconds, a ``timedelta`` or a text such as "5m"; by default as it is declared.

        :raises InvalidJob: the time is not from 1 ms to ten years.
        :raises UnknownBreaker: the type has none.
        """
        return await self._change_breaker("trip", type, "0" if time is None else str(open_ms("the time", time)))

    async def reset_breaker(self, type: str) -> BreakerRow:
        """Close the breaker of a type. It forgets the outcomes so far.

        :raises UnknownBreaker: the type has none.
        """
        return await self._change_breaker("reset", type, "")

    @abstractmethod
    async def types(self) -> list[TypeRow]:
        """The published types."""

    async def remove_breaker(self, type: str) -> bool:
        """Remove the breaker of a type that the code does not declare any more.

        Returns whether the type was published with a breaker in the last day: as long as its workers or servers run,
        they declare it again within 30 seconds.

        :raises UnknownBreaker: the type has none.
        """
        await self._check_breaker(type)
        returns = any(row.type == type and row.options.breaker for row in await self.types())
        async with changing(self.store):
            await self.store.do(self.store.breaker("remove", type, ""))
        return returns

    async def _change_breaker(self, verb: str, type: str, text: str) -> BreakerRow:
        await self._check_breaker(type)
        first = self.store.parts[0]
        await pass_breaker_on(self.store, type, as_text(await first.do(first.breaker(verb, type, text))))
        found = await self.breakers()
        for row in found:
            if row.type == type:
                return row
        raise UnknownBreaker(type, [row.type for row in found])

    async def _check_breaker(self, type: str) -> None:
        """Check that a type has a breaker. If the code of this program declares it and no worker or server has written
        it yet, it is written now.

        :raises UnknownBreaker: it has none.
        """
        names = {as_text(name) for name in await self.store.breaker_names()}
        if type in names:
            return
        if type not in self.declared_breakers:
            raise UnknownBreaker(type, sorted(names | set(self.declared_breakers)))
        await self.store.register()
        await declare_breakers(self.store, {type: self.declared_breakers[type]})


async def pass_breaker_on(store: Store, type: str, row: str) -> None:
    """Give the state of a breaker to all partitions. The state that began last holds.

    :raises StoreError: Redis is away. Workers pass on what has not reached all partitions.
    """
    state = " ".join(row.split(" ")[3:5])
    if len(store.parts) > 1 and state:
        await asyncio.gather(*(part.do(part.breaker("follow", type, state)) for part in store.parts))


async def agree_on_breakers(store: Store) -> None:
    """Pass on the states of breakers that have not reached all partitions, because a program died meanwhile.

    :raises StoreError: Redis is away.
    """
    if len(store.parts) == 1 or not await store.breaker_names():
        return
    answers = await send_each(store.parts, lambda part: (b"HGETALL", part.keys["breakers"]))
    states: dict[str, list[tuple[int, int, str]]] = {}
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
        for name, row in zip(answer[::2], answer[1::2], strict=True):
            states.setdefault(as_text(name), []).append((*state_of(row), as_text(row)))
    for name, found in states.items():
        since, till, row = max(found)
        if any(state[:2] != (since, till) for state in found):
            await pass_breaker_on(store, name, row)


async def declare_breakers(store: Store, breakers: Mapping[str, Breaker]) -> None:
    """Write what the code of a worker or server declares.

    :raises StoreError: Redis is away.
    """
    for name, breaker in breakers.items():
        if await store.do(store.breaker("declare", name, breaker.text())) == b"full":
            log.warning(
                f"The breaker of type {name} was not declared: a queue has {store.breakers_max:,} breakers at most"
                " (JOBQ_MAX_BREAKERS)",
                queue=store.name, type=name,
            )  # fmt: skip
