"""A server removes jobs past their own retention, and ends late jobs, because there may be no worker that does."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from jobq.engine.queue.late import end_late
from jobq.engine.store import FOLD_PAGE
from jobq.errors import StoreError

if TYPE_CHECKING:
    from jobq.engine.queue.queue import Queue

TIDY_SECONDS: Final = 30.0
PAGE: Final = 250


async def tidy(queue: Queue) -> None:
    """Tidy an open queue until cancelled.

    The retention of the queue itself is left to its workers. A server may have been started without the code, and then
    it does not know how many jobs the queue is to keep.
    """
    while True:
        await asyncio.sleep(TIDY_SECONDS)
        store = queue.store  # It may have more partitions now.
        with suppress(StoreError):  # Redis is away, which others report
            while await store.do(store.trim_expired(PAGE)) == PAGE:
                pass
            while await store.do(store.expire(PAGE)) == PAGE:
                pass
            while await store.do(store.fold()) == FOLD_PAGE:
                pass
            if not any(worker.alive for worker in await queue.workers()):
                # A worker would call the hooks of the jobs, so this is left to workers if there are any.
                await end_late(queue)
