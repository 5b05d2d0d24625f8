"""A store over the emptied server, for one script at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

pytest.register_assert_rewrite("table")

from table import Bench  # noqa: E402 - rewritten first, so that a failed row shows what differs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from jobq import Connection
    from jobq.engine.store import Store


@pytest.fixture
def bench(connection: Connection, admin: Store) -> Bench:
    """An empty queue and a clock that stands still."""
    return Bench(connection, admin)


@pytest.fixture
async def heard(bench: Bench) -> AsyncIterator[list[bytes]]:
    """Messages of the control channel."""
    words: list[bytes] = []
    joined = asyncio.Event()

    async def on_joined() -> None:
        joined.set()

    listener = asyncio.create_task(bench.store.listen(words.append, on_joined))
    await joined.wait()
    yield words
    listener.cancel()
