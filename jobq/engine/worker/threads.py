"""The threads of sync handlers.

A thread cannot be stopped. If a run is given up (a timeout, a kill), its thread may run for ever, and handlers that
sometimes hang would fill the process with threads. So their number is bounded: as many as the worker has slots may
run in addition to the slots. Each further one keeps a slot until one of them ends.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from jobq.engine.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

log = get_logger("jobq.worker")

THREADS_MAX: Final = 1_000_000
"""The executor needs no bound, because the slots bound the threads in use. It starts a thread only if none is idle."""


class Threads:
    """``widen`` adds to the number of the worker's slots."""

    def __init__(self, loop: asyncio.AbstractEventLoop, slots: int, widen: Callable[[int], None]) -> None:
        self._loop = loop
        self._most = slots
        self._widen = widen
        self._executor: ThreadPoolExecutor | None = None
        self.left = 0
        """Threads that still run although their runs were given up."""

    async def run(self, call: Callable[[], Any]) -> Any:
        """Call a function in a thread. After a cancellation the thread continues and is counted."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="jobq")
        future = self._executor.submit(call)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.done():
                self._leave(future)
            raise

    def _leave(self, future: Future[Any]) -> None:
        self.left += 1
        if self.left > self._most:
            log.error(
                f"{self.left} threads of handlers that timed out or were killed still run, and {self._most} may:"
                f" {self.left - self._most} of this worker's slots stay taken until some end."
                " Give the blocking calls in these handlers a timeout, or let them look at context.lost",
                threads=self.left,
            )
            self._widen(-1)
        future.add_done_callback(self._ended)

    def _ended(self, _: Future[Any]) -> None:
        """Runs in the thread itself, possibly long after the worker's end."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._came_back)

    def _came_back(self) -> None:
        self.left -= 1
        if self.left >= self._most:
            self._widen(1)

    def close(self) -> None:
        """Start no more threads. Those that still run cannot be stopped, and are not awaited."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
