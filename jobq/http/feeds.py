"""The stats of a queue once a second, for the dashboard. All listeners of a queue share one request to Redis."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from jobq.http import problems

if TYPE_CHECKING:
    from collections.abc import Generator

    from jobq.engine.queue.queue import Queue

INTERVAL = 1.0
"""Seconds between two events."""
HEARTBEAT: Final = 10.0
"""Seconds without an event, for example while Redis hangs, until a comment is sent to keep the stream open."""
MOST: Final = 500
"""Most streams of one process. An event wakes all of them, which takes about 15 ms for this number."""
QUIET: Final = b": nothing new\n\n"
_encode = msgspec.json.Encoder().encode


def problem_event(error: Exception) -> bytes:
    """An error, as listeners are told of it."""
    return b"event: problem\ndata: %b\n\n" % problems.encode(problems.describe(error)[1])


class Feed:
    """The stats of one queue. Redis is asked only while somebody listens."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._listeners = 0
        self._last = b""
        self._next: asyncio.Future[bytes]
        self._poller: asyncio.Task[None]

    @contextmanager
    def heard(self) -> Generator[None]:
        """Count one listener while the block runs."""
        self._listeners += 1
        if self._listeners == 1:
            loop = asyncio.get_running_loop()
            self._last, self._next = b"", loop.create_future()
            self._poller = loop.create_task(self._poll(), name=f"jobq-events-{self._queue.name}")
        try:
            yield
        finally:
            self._listeners -= 1
            if not self._listeners:
                self._poller.cancel()

    @property
    def last(self) -> bytes:
        """The newest event, or empty before the first one."""
        return self._last

    async def following(self) -> bytes:
        """The next event, or a comment if none comes in time."""
        coming = self._next
        await asyncio.wait([coming], timeout=HEARTBEAT)
        return coming.result() if coming.done() else QUIET

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            event = await self._event()
            coming, self._last, self._next = self._next, event, loop.create_future()
            coming.set_result(event)
            await asyncio.sleep(INTERVAL)

    async def _event(self) -> bytes:
        try:
            return b"event: stats\ndata: %b\n\n" % _encode(await self._queue.stats())
        except Exception as error:  # noqa: BLE001 - listeners are told of the error, and of the next success
            return problem_event(error)


class Feeds:
    """All streams of one application."""

    def __init__(self) -> None:
        self._feeds: dict[str, Feed] = {}
        self._streams = 0

    @contextmanager
    def stream(self) -> Generator[None]:
        """Count one more stream while the block runs.

        :raises HttpProblem: there are ``MOST`` streams already.
        """
        if self._streams >= MOST:
            detail = f"this process has {MOST} event streams open; repeat later, or ask for /jobs/stats"
            raise problems.HttpProblem(problems.BUSY, detail)
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    def of(self, queue: Queue) -> Feed:
        """The stats of a queue."""
        return self._feeds.setdefault(queue.name, Feed(queue))
