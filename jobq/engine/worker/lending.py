"""Slots of handlers that wait for other jobs.

A handler that awaits the result of a job of the same worker does nothing meanwhile, but would keep its slot. If all
slots were kept in this way, the awaited jobs could never start, and the worker would stand still for ever. So a
waiting handler lends its slot to another job. When its wait ends it continues at once, so for a moment more handlers
than ``concurrency`` may run.
"""

from __future__ import annotations

from contextlib import suppress
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Final

from jobq.engine.log import get_logger
from jobq.errors import TooManyWaiting

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from jobq.engine.task.context import Context
    from jobq.engine.worker.run import Run

log = get_logger("jobq.worker")

LENT_MAX: Final = 1000
"""Handlers of one worker that may wait for other jobs. Each uses memory, and its lease is renewed."""


class Lending:
    """The slots that one worker's handlers have lent. ``widen`` adds to the number of slots.

    Thread-safe: a handler in a thread gets its ``TooManyWaiting`` there, without waiting for the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, widen: Callable[[int], None], size: int) -> None:
        self._loop = loop
        self._thread = get_ident()
        self._lock = Lock()
        self._change = widen
        self.size = size
        """The slots of the worker. A handler that takes more of them runs alone."""
        self._waits: dict[Context, list[str]] = {}
        self._lent: dict[Context, int] = {}
        self.served: set[str] = set()
        """The queues of the worker. For jobs of other queues a lent slot would not help."""

    def begin(self, run: Run, queue: str, job_id: str) -> None:
        """A handler starts to wait for a job, and lends its slot until ``end``.

        :raises TooManyWaiting: too many others wait already.
        """
        context = run.context
        if queue not in self.served or run.ended or context is None:
            return
        with self._lock:
            first = context not in self._waits
            if first and len(self._waits) >= LENT_MAX:
                raise TooManyWaiting(run.name, job_id, len(self._waits))
            self._waits.setdefault(context, []).append(job_id)
            slots = self._lent.setdefault(context, min(run.slots, self.size))
        if first:
            self._widen(slots)
            log.debug(
                f"Job {run.name} waits for job {job_id} of this worker; its slot is lent to another job",
                queue=run.source.name, job_id=run.id.decode(), awaited=job_id,
            )  # fmt: skip

    def end(self, context: Context, job_id: str) -> None:
        """The wait is over, successfully or not. The run may have ended before."""
        with self._lock:
            waits = self._waits.get(context, [])
            if job_id not in waits:
                return
            waits.remove(job_id)
            if waits:
                return
            del self._waits[context]
            slots = self._lent.pop(context)
        self._widen(-slots)

    def _widen(self, by: int) -> None:
        if get_ident() == self._thread:
            self._change(by)
        else:
            with suppress(RuntimeError):  # The worker's loop is closed.
                self._loop.call_soon_threadsafe(self._change, by)
