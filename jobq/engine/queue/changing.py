"""Around a change of what operators set, which goes to all partitions of a queue."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from jobq.engine.queue.settled import note_settled

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from jobq.engine.store import Store


@asynccontextmanager
async def changing(store: Store) -> AsyncGenerator[None]:
    """Around a change of settings, which is made in the first partition first. When it has reached all partitions, they
    note this. Where there is no note, ``settle`` finishes it.

    :raises StoreError: Redis is away.
    """
    yield
    if len(store.parts) > 1:
        await note_settled(store)
