"""How fast and how well the types of a queue run, and how many jobs of each type there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from jobq.engine.model.history import (
    ALL,
    OTHER,
    Arrivals,
    Performance,
    numbers,
    read_arrivals,
    read_counts,
    whole,
    window_of,
)
from jobq.engine.model.job import State
from jobq.engine.model.unreadable import as_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobq.engine.model.history import Counts
    from jobq.engine.store import Store

TYPES_PAGE: Final = 16
"""Types whose history one call reads."""


class PerformanceVerbs(ABC):
    """What monitoring asks."""

    name: str

    @property
    @abstractmethod
    def store(self) -> Store:
        """The verbs underneath."""

    async def performance(self, window: str = "1h") -> Performance:
        """Throughput, failures and latencies of each type in a window that ends now: "1h", "24h" or "7d".

        They are counted when a run ends, so they do not depend on how long finished jobs are kept.

        :raises InvalidQuery: there is no such window.
        """
        length = window_of(window)
        now, _, counted = await read_counted(self.store)
        rows = {name: numbers(name, counts.of(length, now)) for name, counts in counted.items()}
        queue = rows.pop(ALL)
        types = sorted((row for row in rows.values() if row.runs), key=lambda row: (-row.runs, row.type))
        return Performance(self.name, window, length.since(now), now, queue, types)

    async def types_by_state(self) -> dict[State, dict[str, int]]:
        """How many jobs of each type there are in each state. '' stands for jobs whose type is not known.

        Up to 300 jobs of a state are counted exactly. If there are more, 300 of them are chosen at random, and the
        numbers are estimated from their shares.
        """
        store = self.store
        replies = await store.do_all([store.sample(str(state)) for state in State])
        found: dict[State, dict[str, int]] = {}
        for state, (size, *pairs) in zip(State, replies, strict=True):
            shares = {as_text(name): int(count) for name, count in zip(pairs[::2], pairs[1::2], strict=True)}
            found[state] = _scaled(shares, size)
        return found


async def read_counted(
    store: Store, types: Sequence[str] | None = None
) -> tuple[int, tuple[int, Arrivals], dict[str, Counts]]:
    """The server's time; the number of jobs that were enqueued so far, and how many arrived; and what was counted of
    each type, with ``ALL`` for all together. ``types``: only of these."""
    if types is None:
        listed = (await store.do(store.numbers(())))[-1]
        types = [ALL, *sorted({as_text(name) for name in listed} - {OTHER}), OTHER]
    found: dict[str, Counts] = {}
    now, enqueued, arrivals = 0, 0, Arrivals(0, 0, ())
    for at in range(0, len(types), TYPES_PAGE):
        page = types[at : at + TYPES_PAGE]
        now, new, arrived, notes, flat = await store.do(store.numbers(page))
        enqueued, arrivals = whole(new), read_arrivals(now, arrived, notes)
        for name, row, live in zip(page, flat[::2], flat[1::2], strict=True):
            found[name] = read_counts(row, live)
    return now, (enqueued, arrivals), found


def _scaled(shares: dict[str, int], size: int) -> dict[str, int]:
    """Whole numbers in the proportion of the shares. Their sum is ``size``."""
    chosen = sum(shares.values())
    if not chosen or chosen == size:
        return shares
    found: dict[str, int] = {}
    left, right = size, chosen
    for name, share in sorted(shares.items(), key=lambda pair: -pair[1]):
        found[name] = round(left * share / right)
        left, right = left - found[name], right - share
    return found
