"""Reads many queues of one server together. Opening each of them would take several trips, and Python a millisecond."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from jobq.engine.model.spread import read_spread
from jobq.engine.model.stats import read_stats
from jobq.engine.store import LAYOUT, send_each, send_together

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jobq.engine.model.views import Stats
    from jobq.engine.queue.queue import Queue
    from jobq.engine.store import Connection, Store

PAGE: Final = 100
"""Queues that are read in one write."""


class Glance(NamedTuple):
    """What is read of a queue that is not open. ``had_workers``: it has workers, or had some in the last day."""

    stats: Stats
    had_workers: bool

    @property
    def quiet(self) -> bool:
        """Whether nothing waits or runs in the queue, nobody works on it, and nothing about it is out of order."""
        stats = self.stats
        work = stats.waiting + stats.held + stats.delayed + stats.active
        return not (work or self.had_workers or stats.workers or stats.paused or stats.unreadable)


async def glances(queues: Sequence[Queue], connection: Connection) -> list[Glance | None]:
    """The stats of queues that are not open, by their names only. All are on the server of the connection.

    None stands for a queue that must be opened to be read: it has partitions or an unknown layout, or its keys are
    broken. Then opening it says what is wrong.

    :raises StoreUnavailable: Redis does not answer.
    :raises StoreRefused: this jobq cannot use the server.
    """
    found: list[Glance | None] = []
    for number, page in enumerate(_pages(queues)):
        stores = [queue.new_store(connection) for queue in page]
        if not number:
            await stores[0].prepare()
        found += await _look(stores)
    return found


def _pages(queues: Sequence[Queue]) -> Iterator[Sequence[Queue]]:
    return (queues[at : at + PAGE] for at in range(0, len(queues), PAGE))


async def _look(stores: Sequence[Store]) -> list[Glance | None]:
    metas = await send_each(stores, lambda store: (b"HMGET", store.keys["meta"], b"layout", b"partitions"))
    workers = await send_each(stores, lambda store: (b"EXISTS", store.keys["workers"]))
    answers = await send_together([(store, [store.stats()]) for store in stores])
    found: list[Glance | None] = []
    for store, meta, worker, (stats,) in zip(stores, metas, workers, answers, strict=True):
        broken = any(isinstance(answer, Exception) for answer in (meta, worker, stats))
        if broken or meta[0] != b"%d" % LAYOUT or read_spread(meta[1]).most > 1:
            found.append(None)
        else:
            found.append(Glance(read_stats(store.name, stats), bool(worker)))
    return found
