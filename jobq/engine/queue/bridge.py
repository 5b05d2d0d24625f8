"""Calls from synchronous code. One event loop per process, in its own thread, serves all threads.

A call hands a coroutine function to that loop and waits for its result. So a queue has one connection for all threads,
and the calls of many threads share trips to Redis as those of many coroutines do. After a fork the child makes its own
loop.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

R = TypeVar("R")

CLOSING: Final = 5.0
"""Seconds that the interpreter's exit may wait for the connections to be closed."""


class Openable(Protocol):
    """The methods of a queue that the bridge uses."""

    async def open(self) -> Any: ...
    async def aclose(self) -> None: ...


class Bridge:
    """The event loop of this process's synchronous callers."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._kept: set[Openable] = set()
        """Queues that stay open until the process ends."""
        self._scopes: Counter[Openable] = Counter()
        """The number of ``with`` blocks that keep a queue open."""
        # A daemon thread, because the interpreter would wait for any other thread for ever at its exit.
        self._thread = threading.Thread(target=self._loop.run_forever, name="jobq-sync", daemon=True)
        self._thread.start()

    def run(self, make: Callable[[], Awaitable[R]]) -> R:
        """Await ``make()`` in the loop, and wait for the result."""

        async def go() -> R:
            return await make()

        future = asyncio.run_coroutine_threadsafe(go(), self._loop)
        try:
            return future.result()
        except BaseException:
            # For example Ctrl-C: nobody waits for the result any more.
            future.cancel()
            raise

    def call(self, queue: Openable, make: Callable[[], Awaitable[R]]) -> R:
        """Await ``make()`` in the loop while the queue is open there.

        The first call outside of a ``with`` block keeps the queue open for the calls after it.
        """
        return self.run(lambda: self._call(queue, make))

    async def _call(self, queue: Openable, make: Callable[[], Awaitable[R]]) -> R:
        await queue.open()
        try:
            return await make()
        finally:
            if queue in self._kept or self._scopes[queue]:
                await queue.aclose()
            else:
                self._kept.add(queue)

    def enter(self, queue: Openable) -> None:
        """Open the queue for a ``with`` block."""

        async def enter() -> None:
            await queue.open()
            self._scopes[queue] += 1

        self.run(enter)

    def leave(self, queue: Openable) -> None:
        """Close the queue at the end of a ``with`` block."""

        async def leave() -> None:
            self._scopes[queue] -= 1
            if not self._scopes[queue]:
                del self._scopes[queue]
            await queue.aclose()

        self.run(leave)

    def close(self) -> None:
        """Close the open queues, and end the loop and its thread."""

        async def close() -> None:
            for queue in self._kept:
                await queue.aclose()

        try:
            asyncio.run_coroutine_threadsafe(close(), self._loop).result(CLOSING)
        except (concurrent.futures.TimeoutError, OSError):
            pass  # The process ends, so the system closes the connections.
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSING)
            if not self._thread.is_alive():
                self._loop.close()


class _Process:
    """The bridge of this process, once it is needed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.bridge: Bridge | None = None


_process = _Process()
_inherited: Final[list[_Process]] = []
"""Bridges of parent processes. They are kept, because collecting one would close a selector that the parent uses."""


def _forget_parent() -> None:
    global _process  # noqa: PLW0603 - there is one for each process
    _inherited.append(_process)
    _process = _Process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)


@atexit.register
def _close() -> None:
    bridge, _process.bridge = _process.bridge, None
    if bridge is not None:
        bridge.close()


def bridge(called: str, instead: str) -> Bridge:
    """The bridge of this process. ``called`` and ``instead`` are for the error's text.

    :raises RuntimeError: an event loop runs in this thread, and the call would block it.
    """
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - the public function raises if there is none
        raise RuntimeError(
            f"{called} would block the event loop that runs in this thread: write 'await {instead}' instead"
        )
    process = _process
    with process.lock:
        if process.bridge is None:
            process.bridge = Bridge()
        return process.bridge
