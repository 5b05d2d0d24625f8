"""Counts what operators set of a queue, so that a call that was cut between two partitions is finished by workers."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from jobq.engine.store import Store


@asynccontextmanager
async def changing(store: Store) -> AsyncGenerator[None]:
    """Around a change of settings in all partitions. If it is cut, the numbers differ, and ``settle`` finishes it.

    It counts at its begin and at its end. Somebody who copied older settings to a partition in between has noted the
    number of its begin, so they are copied again. A queue of one partition counts too: another program may be giving
    it more just now.

    :raises StoreError: Redis is away.
    """
    first, *others = store.parts
    begun = await first.do(first.settings())
    yield
    ended = await first.do(first.settings())
    if ended == begun + 1:  # Otherwise somebody else has changed settings, perhaps in another order in each partition.
        await asyncio.gather(*(part.do(part.settings(begun - 1, ended)) for part in others))
