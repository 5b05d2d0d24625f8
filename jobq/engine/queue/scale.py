"""How many workers the queue needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from jobq.engine.model.history import ALL, INTERVAL_MS, WINDOWS, Window, numbers
from jobq.engine.model.scale import Load, Scale, read_demand, replicas
from jobq.engine.queue.performance import read_counted
from jobq.errors import InvalidQuery

if TYPE_CHECKING:
    from jobq.engine.model.history import Counts
    from jobq.engine.model.views import WorkerRow
    from jobq.engine.store import Store
    from jobq.settings import Settings

TARGET_MAX: Final = 86_400.0
REPLICAS_MAX: Final = 10_000
SLOTS_MAX: Final = 100_000
_RECENT: Final = Window("f", INTERVAL_MS, 1)


class ScaleVerbs(ABC):
    """What autoscalers ask."""

    name: str
    settings: Settings

    @property
    @abstractmethod
    def store(self) -> Store:
        """The verbs underneath."""

    @abstractmethod
    async def workers(self) -> list[WorkerRow]:
        """The workers."""

    async def scale(self, *, target: float = 60.0, least: int = 0, most: int = 100, slots: int | None = None) -> Scale:
        """How many workers the queue needs for the jobs that arrive, and for those that wait within ``target`` seconds.

        ``least`` and ``most``: bounds of the answer. ``slots``: jobs that a worker runs at a time, by default as the
        living workers have them.

        :raises InvalidQuery: the target is not from 1 s to a day, or a bound is out of its range.
        """
        _check(target, least, most, slots)
        store = self.store
        (now, (_, arrivals), counted), reply = await read_counted(store, [ALL]), await store.do(store.demand())
        alive = [row for row in await self.workers() if row.alive]
        each = slots or (sum(row.concurrency for row in alive) // len(alive) if alive else self.settings.concurrency)
        load = Load(arrivals.per_second(), _ended(counted[ALL], now), _mean(counted[ALL], now))
        demand = read_demand(reply, target)
        return Scale(
            queue=self.name,
            replicas=replicas(
                demand, load, workers=len(alive), slots=max(1, each), target=target, least=least, most=most
            ),
            workers=len(alive),
            idle_workers=sum(row.running == 0 for row in alive),
            slots=max(1, each),
            backlog=demand.backlog,
            active=demand.active,
            held=demand.held,
            arrivals_per_second=round(load.arrivals, 3),
            mean_seconds=None if load.mean is None else round(load.mean, 6),
            target=target,
        )


def _check(target: float, least: int, most: int, slots: int | None) -> None:
    if not 1 <= target <= TARGET_MAX:
        raise InvalidQuery(f"target is {target!r:.40}: it takes 1 to 86400 seconds")
    if not 0 <= least <= most <= REPLICAS_MAX:
        raise InvalidQuery(f"min is {least!r:.40} and max {most!r:.40}: they take 0 to {REPLICAS_MAX}, min up to max")
    if slots is not None and not 1 <= slots <= SLOTS_MAX:
        raise InvalidQuery(f"slots is {slots!r:.40}: it takes 1 to {SLOTS_MAX}")


def _ended(counts: Counts, now: int) -> float:
    """Runs that ended per second in the last five to ten minutes."""
    return numbers(ALL, counts.of(_RECENT, now)).runs / max(1.0, (now - _RECENT.since(now)) / 1000)


def _mean(counts: Counts, now: int) -> float | None:
    """The mean time of a run in seconds, of the shortest window that has any."""
    for window in (_RECENT, *WINDOWS.values(), None):
        found = numbers(ALL, counts.of(window, now))
        if found.runs:
            return max(found.busy_ms, 1) / found.runs / 1000
    return None
