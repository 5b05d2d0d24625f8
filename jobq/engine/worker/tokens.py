"""Wake tokens that this worker took and cannot use go back, so that another worker wakes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from jobq.engine.store import give_wake_back, give_wakes_back
from jobq.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobq.engine.store import Connection
    from jobq.engine.worker.source import Source


async def leave(sources: Sequence[Source]) -> None:
    """Wake other workers, because the stopping one may have taken tokens or watched for due jobs.

    It gives up after a second. The others check by themselves every few seconds.
    """
    by_server: dict[Connection, list[Source]] = {}
    for source in sources:
        by_server.setdefault(source.store.connection, []).append(source)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            # Do this concurrently. A server that does not answer must not keep workers of the others asleep.
            await asyncio.gather(
                *(give_wakes_back([source.store for source in some]) for some in by_server.values()),
                return_exceptions=True,
            )


async def pass_on(source: Source) -> None:
    """Wake another worker, because there may be work."""
    try:
        await give_wake_back(source.store)
    except StoreError as error:
        source.warn("Another idle worker could not be woken", error)
