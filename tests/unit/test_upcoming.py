"""Items of a generator that are waited for with a time limit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from jobq.engine.queue.upcoming import Upcoming

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

LONG = 10.0


class Source:
    """A generator whose items and whose end the test decides. ``ended``: it has run to its end."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[int | Exception | None] = asyncio.Queue()
        self.ending, self.may_end, self.ended = asyncio.Event(), asyncio.Event(), False
        self.may_end.set()

    async def read(self) -> AsyncGenerator[int]:
        try:
            while (item := await self.items.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.ending.set()
            await self.may_end.wait()
            self.ended = True


async def test_the_generator_goes_on_when_a_time_is_over() -> None:
    source = Source()
    upcoming = Upcoming(source.read())
    assert not await upcoming.arrives(0)
    source.items.put_nowait(1)
    assert await upcoming.arrives(LONG)
    assert (upcoming.peek(), upcoming.take()) == (1, 1)
    assert not await upcoming.arrives(0), "the one after it"
    source.items.put_nowait(None)
    assert await upcoming.arrives(LONG)
    assert upcoming.take() is None
    await upcoming.aclose()
    assert source.ended


async def test_an_error_of_the_generator_is_raised_when_it_is_taken() -> None:
    source = Source()
    upcoming = Upcoming(source.read())
    source.items.put_nowait(ValueError("no"))
    assert await upcoming.arrives(LONG)
    with pytest.raises(ValueError, match="no"):
        upcoming.take()
    await upcoming.aclose()
    assert source.ended


@pytest.mark.parametrize("reading", [True, False], ids=["while it waits for an item", "between two items"])
async def test_closing_ends_the_generator(reading: bool) -> None:
    source = Source()
    upcoming = Upcoming(source.read())
    source.items.put_nowait(1)
    assert await upcoming.arrives(LONG)
    upcoming.take()
    if reading:
        assert not await upcoming.arrives(0)
    await upcoming.aclose()
    assert source.ended


@pytest.mark.parametrize("times", [1, 2])
async def test_a_caller_that_is_cancelled_while_it_closes_ends_cancelled(times: int) -> None:
    """The generator was still running then, and the error about that hid the cancellation."""
    source = Source()
    source.may_end.clear()
    upcoming = Upcoming(source.read())
    assert not await upcoming.arrives(0)
    closing = asyncio.create_task(upcoming.aclose())
    await source.ending.wait()
    for _ in range(times):
        closing.cancel()
        await asyncio.sleep(0)
    assert not closing.done(), "it waits for the generator"
    source.may_end.set()
    await asyncio.wait([closing])
    assert closing.cancelled()
    assert source.ended
