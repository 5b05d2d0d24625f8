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

    A queue of one partition counts too: another program may be giving it more just now.

    :raises StoreError: Redis is away.
    """
    first, *others = store.parts
    number = await first.do(first.settings())
    yield
    await asyncio.gather(*(part.do(part.settings(number - 1, number)) for part in others))
