"""Partitions: over how many a queue is spread, and what operators change of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import msgspec

from jobq.engine.log import get_logger
from jobq.engine.model.spread import check_partitions
from jobq.engine.model.stats import read_stats
from jobq.engine.queue.settling import copy_settings, settle
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from jobq.engine.queue.session import Sessions
    from jobq.engine.store import Store

log = get_logger("jobq.queue")


class PartitionRow(msgspec.Struct, frozen=True):
    """The partitions of a queue. ``partitions``: those that get new jobs. ``homes``: the first ones, which alone get
    jobs with keys, limits, a group or ``partition_by``; 0: there was no such job yet. ``most``: the most that there
    ever were; workers serve all of them. ``jobs``: how many unfinished jobs each of them has."""

    partitions: int
    homes: int
    most: int
    jobs: list[int]


class PartitionVerbs(ABC):
    """What operators ask about partitions and set."""

    name: str
    _sessions: Sessions

    @property
    @abstractmethod
    def store(self) -> Store:
        """The verbs underneath."""

    async def register(self) -> None:
        """Make the queue known, with all its partitions.

        :raises StoreError: Redis is away, or refuses.
        """
        session = self._sessions.here
        await session.store.register()
        await session.refresh()
        for part in session.store.parts[1:]:
            await part.register()

    async def refresh_partitions(self) -> None:
        """Ask how many partitions there are now. An open queue asks every few seconds while it is used.

        :raises StoreError: Redis is away.
        """
        await self._sessions.here.refresh()

    async def get_partitions(self) -> PartitionRow:
        """Over how many partitions the queue is spread, and how many jobs each has.

        :raises StoreError: Redis is away.
        """
        session = self._sessions.here
        await session.refresh()
        stored = await session.first.stored_spread()
        found = [read_stats(self.name, await part.do(part.stats())) for part in self.store.parts]
        jobs = [one.waiting + one.delayed + one.held + one.active + one.blocked for one in found]
        return PartitionRow(stored.count, stored.homes, stored.most, jobs)

    async def set_partitions(self, partitions: int) -> PartitionRow:
        """Set over how many partitions the queue is spread. It acts while the queue is in use, and no job moves.

        More: other processes learn of it within seconds. Fewer: those beyond the number get no new jobs, and workers
        drain them. Jobs with keys, limits or a group stay in the first ``homes`` partitions, so there cannot be fewer.

        :raises InvalidJob: the number is out of range, or there are more homes.
        """
        check_partitions(partitions)
        session = self._sessions.here
        await session.refresh()
        before = await session.first.stored_spread()
        if partitions < before.homes:
            raise InvalidJob(
                f"queue {self.name!r} keeps the jobs with keys, limits or groups in {before.homes} partitions, and keys"
                f" cannot move: it takes {before.homes} or more. To have fewer, let the workers empty the queue, drop"
                " it and declare it again"
            )
        known = len(self.store.parts)
        fresh = [session.make(number) for number in range(known, partitions)]
        for part in fresh:
            await copy_settings(session.first, part, new=True)
        after = await session.first.do(session.first.spread(partitions, who="operator"))
        await session.first.register()
        session.learn(after)
        # A call that changed settings meanwhile did not know of them.
        await settle(self.store)
        if after != before:
            log.info(f"Queue {self.name} is spread over {partitions} partitions from now on", queue=self.name)
        return await self.get_partitions()
