"""What a run in one partition says about the whole queue: a breaker opened or closed, or a service refuses all jobs.

The script that stores the outcome knows one partition only. Here the others hear of it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from jobq.engine.log import get_logger
from jobq.engine.model.limits import QUEUE_RULE
from jobq.engine.model.unreadable import as_text
from jobq.engine.queue.breakers import pass_breaker_on
from jobq.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jobq.engine.queue.queue import Queue
    from jobq.engine.store import Store

log = get_logger("jobq.worker")


class Whole:
    """Tells the other partitions of a queue what ``store``, one of them, has learned."""

    def __init__(self, queue: Queue, store: Store) -> None:
        self._queue = queue
        self._store = store
        self._telling: set[asyncio.Task[None]] = set()

    async def close(self, rows: Sequence[Any]) -> None:
        """Close all partitions before outcomes are stored that say so. ``rows``: those of ``THROTTLED``.

        The first partition is closed first. If this worker dies then, others close the rest, and the jobs whose
        outcomes were not stored say it again. What is refused here is closed in the partition of the job alone.
        """
        if len(self._queue.store.parts) == 1:
            return
        ms = max((ms for ms, scope in zip(rows[2::4], rows[3::4], strict=True) if scope == "queue"), default=0)
        if ms:
            store = self._queue.store
            try:
                await store.do(store.close(QUEUE_RULE, ms, "longer"))
            except StoreError as error:
                self._warn(f"A handler was rate limited, but some partitions of queue {store.name} are open", error)

    def tell(self, types: Iterable[str]) -> None:
        """The breakers of these types opened or closed here."""
        if len(self._queue.store.parts) == 1:
            return
        for type_ in types:
            task = asyncio.create_task(self._tell(type_), name="jobq-breaker")
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _tell(self, type_: str) -> None:
        try:
            row = await self._store.command(b"HGET", self._store.keys["breakers"], type_)
            await pass_breaker_on(self._queue.store, type_, as_text(row or b""))
        except StoreError as error:
            self._warn(f"Not all partitions of queue {self._queue.name} know the breaker of type {type_} yet", error)

    def _warn(self, what: str, error: StoreError) -> None:
        log.warning(f"{what}: {error}", queue=self._queue.name, error=str(error))
