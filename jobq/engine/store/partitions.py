"""The store of a queue that is spread over several partitions.

A partition is an ordinary store with keys of its own, in a slot of its own. The scripts do not know of it. Here each
call finds its way: to the partition that a job's id names, to all of them, or to the first one. What belongs to the
whole queue is in the first one, partition 0: its number of partitions, workers, types and schedules, and a copy of all
that operators set.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from jobq.engine.model.ids import partition_of
from jobq.engine.store import merge
from jobq.engine.store.calls import Call
from jobq.engine.store.listing import page_of_all
from jobq.engine.store.store import Store
from jobq.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobq.engine.model.spread import Spread
    from jobq.engine.store.packing import Argument

T = TypeVar("T")

BY_ID: Final = {
    "rows": 2, "results": 0, "kill": 4, "retry": 2, "promote": 2, "reprioritise": 3, "remove": 2,
}  # fmt: skip
"""Scripts about jobs -> the place of the first id in their arguments."""
WORDS: Final = {"results": 2}
"""Words of the reply for each id; one, if the script is not listed."""


class Way(NamedTuple):
    """How a script acts on all partitions. ``order``: "all" at the same time, or the first one before or after all
    others, because it tells what the queue is."""

    merge: Callable[[Sequence[Any]], Any]
    order: str = "all"


TO_ALL: Final = {
    "stats": Way(merge.stats),
    "numbers": Way(merge.numbers),
    "demand": Way(merge.demand),
    "sample": Way(merge.sample),
    "breakers": Way(merge.breakers),
    # If a process dies in between, a queue that was to be paused counts as paused, and one that was to be resumed too.
    "pause": Way(merge.changed, "first"),
    "resume": Way(merge.changed, "last"),
    "drop": Way(merge.dropped, "last"),
    # The first one is right: workers copy to the others what a call that was interrupted has changed there.
    "breaker": Way(merge.first, "first"),
    "close": Way(merge.latest, "first"),
    "lapse": Way(merge.lapsed),
    "trim": Way(merge.largest),
    "expire": Way(merge.largest),
    "fold": Way(merge.largest),
}
"""Scripts that act on the whole queue. Those that are not listed act on the first partition."""


class Partitions(Store):
    """The store of all partitions of a queue. ``first`` is the store of partition 0, ``make`` makes those of others."""

    def __init__(self, first: Store, make: Callable[[int], Store], spread: Spread) -> None:
        super().__init__(first.connection, first.name, prefix=first.prefix)
        self._first = first
        self._make = make
        self._parts = [first]
        self.spread_now = spread
        self.learn(spread)

    def learn(self, spread: Spread) -> None:
        """There are so many partitions now."""
        self.spread_now = spread
        self._first.partitions = spread.count
        while len(self._parts) < spread.most:
            part = self._make(len(self._parts))
            part.follow_clock(self._first)
            self._parts.append(part)

    @property
    def parts(self) -> list[Store]:
        """The stores of the partitions."""
        return self._parts

    def part_of(self, job_id: str | bytes) -> Store:
        """The partition that the id names. If it is beyond all that are known, the job is in none of them."""
        partition = partition_of(job_id)
        return self._parts[partition] if partition < len(self._parts) else self._first

    # -- the first one ---------------------------------------------------------------------------------------------

    @property
    def now(self) -> Argument:
        """The ``now`` argument of a script."""
        return self._first.now

    def now_ms(self) -> int:
        """An estimate of the server's time, unix ms."""
        return self._first.now_ms()

    async def server_ms(self) -> int:
        """The latest time of the partitions' servers at this moment, unix ms."""
        return max(await asyncio.gather(*(part.server_ms() for part in self._parts)))

    async def look_at_clock(self) -> None:
        """Read the server's clock."""
        await self._first.look_at_clock()

    async def register(self) -> None:
        """Register the first partition, which stands for the queue. The others are registered when they are used."""
        await self._first.register()

    async def decide_homes(self) -> None:
        """Learn how many partitions get jobs with keys. The first such job of the queue decides it.

        :raises StoreError: Redis is away, or refuses.
        """
        if not self.spread_now.homes:
            await self._first.register()
            self.learn(await self._first.do(self._first.spread(0)))

    async def unregister(self) -> None:
        """Remove a dropped queue from the registry, unless one of its partitions has been used again meanwhile."""
        await self._first.unregister()
        used = await asyncio.gather(*(part.command(b"EXISTS", part.keys["jobs"]) for part in self._parts[1:]))
        if any(used):
            await self._first.register()

    # -- calls -----------------------------------------------------------------------------------------------------

    async def do(self, call: Call[T], *, within: float | None = None) -> T:
        """Send one call to the partitions that it is about.

        :raises StoreError: the error of one of them.
        """
        if call.script == "page":
            return await page_of_all(self._parts, call)
        place = BY_ID.get(call.script)
        if place is not None:
            return await self._by_id(call, place, within)
        way = _way(call)
        if way is not None:
            return await self._to_all(call, way, within)
        return await (self._only(call) or self._first).do(call, within=within)

    async def do_all(self, calls: Sequence[Call[T]], *, within: float | None = None) -> list[T]:
        """Send several calls. Those about jobs of one partition go in one write.

        :raises StoreError: the error of one call; the others may have been executed.
        """
        about = {self._only(call) for call in calls}
        if len(about) == 1 and (part := about.pop()) is not None:
            return await part.do_all(calls, within=within)
        return await asyncio.gather(*(self.do(call, within=within) for call in calls))

    async def trip(self, *calls: Call[Any], **_: Any) -> list[Any]:
        """As ``do_all``, but a call's own error stands in its place."""
        answers = await asyncio.gather(*(self.do(call) for call in calls), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, StoreError):
                raise answer
        return answers

    def _only(self, call: Call[Any]) -> Store | None:
        """The partition of all jobs that the call is about."""
        if call.script == "why" and call.args[2]:
            return self.part_of(str(call.args[2]))
        place = BY_ID.get(call.script)
        if place is None:
            return None
        parts = {self.part_of(_text(job_id)) for job_id in call.args[place:]}
        return parts.pop() if len(parts) == 1 else None

    async def _by_id(self, call: Call[T], place: int, within: float | None) -> T:
        only = self._only(call)
        if only is not None:
            return await only.do(call, within=within)
        ids = call.args[place:]
        by_part: dict[Store, list[int]] = {}
        for number, job_id in enumerate(ids):
            by_part.setdefault(self.part_of(_text(job_id)), []).append(number)
        width = WORDS.get(call.script, 1)
        answers: dict[int, Any] = {}
        replies: list[Any] = await asyncio.gather(
            *(
                part.do(_copy(call, [*call.args[:place], *(ids[number] for number in numbers)]), within=within)
                for part, numbers in by_part.items()
            )
        )
        for numbers, reply in zip(by_part.values(), replies, strict=True):
            for at, number in enumerate(numbers[: len(reply) // width]):
                answers[number] = reply[at * width : at * width + width]
        merged: list[Any] = []
        for number in range(len(ids)):
            if number not in answers:
                break  # Large rows make a reply shorter. Its caller asks again for the rest.
            merged += answers[number]
        return merged  # pyright: ignore[reportReturnType] - these scripts return lists

    async def _to_all(self, call: Call[T], way: Way, within: float | None) -> T:
        first, *others = self._parts
        calls = [_copy(call, call.args, part) for part in others]
        before = [await first.do(call, within=within)] if way.order == "first" else []
        if way.order == "all":
            everywhere = zip(self._parts, [call, *calls], strict=True)
            return way.merge(await asyncio.gather(*(part.do(one, within=within) for part, one in everywhere)))
        replies: list[Any] = await asyncio.gather(
            *(part.do(one, within=within) for part, one in zip(others, calls, strict=True))
        )
        if call.script == "drop" and not all(reply[3] for reply in replies):
            # The first one knows how many there are. As long as one of them has jobs, it stays.
            return way.merge([[0, 0, 0, 0], *replies])
        if not before:
            before = [await first.do(call, within=within)]
        return way.merge([*before, *replies])

    # -- plain commands --------------------------------------------------------------------------------------------

    async def logs(self, job_id: str) -> bytes:
        """The lines of one job, JSON, one a line."""
        return await self.part_of(job_id).logs(job_id)

    async def score(self, state: str, job_id: bytes) -> bytes | None:
        """The score of a job in the set of a state, None if it is not there."""
        return await self.part_of(job_id).score(state, job_id)

    async def of_group(self, ids: Sequence[bytes], group: str) -> list[bytes]:
        """Those of the jobs that belong to the group."""
        parts = self._by_part(ids)
        found = await asyncio.gather(*(part.of_group(some, group) for part, some in parts))
        chosen = {job_id for some in found for job_id in some}
        return [job_id for job_id in ids if job_id in chosen]

    async def priorities(self, ids: Sequence[bytes]) -> list[int | None]:
        """The priorities of jobs; None if one cannot be read."""
        parts = self._by_part(ids)
        found = await asyncio.gather(*(part.priorities(some) for part, some in parts))
        known = {
            job_id: number
            for (_, some), numbers in zip(parts, found, strict=True)
            for job_id, number in zip(some, numbers, strict=True)
        }
        return [known[job_id] for job_id in ids]

    def _by_part(self, ids: Sequence[bytes]) -> list[tuple[Store, list[bytes]]]:
        by_part: dict[Store, list[bytes]] = {}
        for job_id in ids:
            by_part.setdefault(self.part_of(job_id), []).append(job_id)
        return list(by_part.items())


def _way(call: Call[Any]) -> Way | None:
    """How the call acts on all partitions; None if it is about one of them."""
    match call.script, call.args:
        case "why", [_, _, "", *_]:
            return Way(merge.why)
        case "groups", [_, page, *_]:
            return Way(merge.groups(int(page)))
        case "limits", [_, rule, *_]:
            return Way(merge.limits(5 if rule else 6))
        case _:
            return TO_ALL.get(call.script)


def _text(word: Argument) -> str | bytes:
    return word if isinstance(word, str | bytes) else str(word)


def _copy(call: Call[T], args: list[Argument], part: Store | None = None) -> Call[T]:
    """The same call for another partition."""
    keys = call.keys
    if keys is not None and part is not None:
        keys = tuple(part.keys[key.decode().rpartition(":")[2]] for key in keys)
    return Call(call.script, list(args), call.read, keys, call.repeat, short=call.short)
