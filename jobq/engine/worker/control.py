"""The control channels of a worker's queues: kills, changed schedules, room for large jobs.

One connection listens to all channels of a server or cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from jobq.engine.model.backoff import pause
from jobq.engine.store import listen_together
from jobq.errors import StoreError

if TYPE_CHECKING:
    from jobq.engine.worker.source import Source


class Control:
    """Listens to the channels of the sources of one server or cluster."""

    def __init__(self) -> None:
        self._sources: list[Source] = []
        self._failures = 0
        self._listening: asyncio.Timeout | None = None

    def add(self, source: Source) -> None:
        """Listen to the channel of one more source."""
        self._sources.append(source)
        if self._listening is not None:
            self._listening.reschedule(0)

    def serves(self, source: Source) -> bool:
        """Whether it can also listen to the channel of this source."""
        return source.store.connection is self._sources[0].store.connection

    async def run(self) -> None:
        """Pass on messages until cancelled. Without the channel the worker would learn of kills at the next renewal."""
        while True:
            sources = list(self._sources)
            try:
                async with asyncio.timeout(None) as self._listening:
                    await listen_together({source.store: source.heard for source in sources}, self._catch_up)
            except TimeoutError:
                continue  # Another source joins. Subscribe again, to all of them.
            except StoreError:
                pass
            finally:
                self._listening = None
            self._failures += 1
            await asyncio.sleep(pause(self._failures))

    async def _catch_up(self) -> None:
        """Messages may have been missed while nobody listened."""
        self._failures = 0
        for source in self._sources:
            source.recall()
            source.firing.look()
            source.grown.set()
        for source in self._sources:
            if source.runs:
                with contextlib.suppress(StoreError):  # The next renewal finds the lost leases, too.
                    await source.look_for_lost_leases()
