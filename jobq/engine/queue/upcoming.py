"""Waits for a time for the next item of an asynchronous generator."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

T = TypeVar("T")


class Upcoming(Generic[T]):
    """The next items of an asynchronous generator. Close it with ``aclose``, which closes the generator too.

    ``asyncio.timeout`` around ``anext`` would end the generator when the time is over. Here it goes on.
    """

    def __init__(self, items: AsyncGenerator[T]) -> None:
        self._items = items
        self._next: asyncio.Future[T | None] | None = None

    async def arrives(self, within: float) -> bool:
        """Wait for the next item, an error or the end, for so many seconds. Returns whether one of them is there."""
        if self._next is None:
            self._next = asyncio.ensure_future(anext(self._items, None))
        await asyncio.wait([self._next], timeout=within)
        return self._next.done()

    def peek(self) -> T | None:
        """What has arrived: the item, or None at the end.

        :raises Exception: the error of the generator.
        """
        return self._next.result() if self._next is not None else None

    def take(self) -> T | None:
        """The same. ``arrives`` then waits for the one after it."""
        item, self._next = self.peek(), None
        return item

    async def aclose(self) -> None:
        """End the generator. A caller that is cancelled meanwhile is cancelled once that is done: a generator that
        still runs cannot be closed, and the error about that would hide the cancellation."""
        coming, cancelled = self._next, False
        if coming is not None:
            coming.cancel()
            while not coming.done():
                try:
                    await asyncio.wait([coming])
                except asyncio.CancelledError:
                    cancelled = True
        await self._items.aclose()
        if cancelled:
            raise asyncio.CancelledError
