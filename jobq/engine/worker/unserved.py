"""Hands back jobs that this worker cannot run, so that a worker that can run them gets them soon.

A job of a type that the worker does not know is parked: it stays delayed for an hour, and costs nothing meanwhile. The
control channel names the parked types. A worker that knows one of them recalls these jobs with its next claims, as many
as it has room for. A worker that starts, or joins the channel again, recalls the jobs of all its types. So a job is
handed back once for each worker that claims it and cannot run it, even if no worker knows its type for a long time.

A job whose type is known but whose payload or row cannot be read here is delayed for twice as long each time.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Protocol

from jobq.engine.log import get_logger
from jobq.engine.model.ids import time_of
from jobq.engine.worker.outbox import DEFERRED, PARK_MS
from jobq.errors import StoreError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Container

    from jobq.engine.queue.queue import Queue
    from jobq.engine.store import Store
    from jobq.engine.worker.outbox import Outbox
    from jobq.engine.worker.run import Run
    from jobq.engine.worker.timers import DueTimer

log = get_logger("jobq.worker")

LOG_SECONDS: Final = 60.0
"""Each type has at most one line in the log in this time."""
TYPES_LOGGED: Final = 100
"""The number of types that have their own lines at a time. It is bounded, because clients choose the names."""
OTHERS: Final = ""
"""Stands for all types beyond that number."""


class Host(Protocol):
    """The part of a source that this file uses."""

    name: str
    loop: asyncio.AbstractEventLoop
    queue: Queue
    store: Store
    outbox: Outbox
    timer: DueTimer

    @property
    def tasks(self) -> Container[str]:
        """The types that this worker knows."""
        ...

    @property
    def wake(self) -> Any:
        """Wakes the lane."""
        ...

    def server_ms(self, moment: float, /) -> int:
        """A ``perf_counter`` moment on the server's clock, unix ms."""
        ...


class Unserved:
    """The jobs of one source that this worker hands back."""

    def __init__(self, source: Host) -> None:
        self._source = source
        self._counts: dict[str, int] = {}
        """Types that have a line in the log, and how many of their jobs were handed back after it."""

    def defer(self, run: Run, why: str, left_ms: int) -> None:
        """Hand a job back, uncharged. ``left_ms``: the time for which it may still be handed back."""
        source = self._source
        parks = run.spec is not None and run.spec.type not in source.tasks
        kind = run.spec.type if run.spec is not None else OTHERS
        source.outbox.rows[DEFERRED] += (run.id, run.token, kind if parks else "", min(PARK_MS, left_ms))
        if not parks:
            source.timer.hesitate()
        source.wake()
        if kind not in self._counts and len(self._counts) >= TYPES_LOGGED:
            kind = OTHERS
        first = kind not in self._counts
        if first:
            self._counts[kind] = 0
            source.loop.call_later(LOG_SECONDS, self._summarise, kind)
        else:
            self._counts[kind] += 1
        (log.warning if first else log.debug)(
            f"Job {run.name} was handed back for workers of another version: {why}",
            queue=source.name, job_id=run.id.decode(), type=kind, why=why,
        )  # fmt: skip

    def _summarise(self, kind: str) -> None:
        count = self._counts.pop(kind)
        if not count:
            return
        self._counts[kind] = 0
        source = self._source
        source.loop.call_later(LOG_SECONDS, self._summarise, kind)
        log.warning(
            f"{count} more jobs of {f'type {kind}' if kind else 'other types'} were handed back for workers of another"
            f" version in the last {LOG_SECONDS:g} s",
            queue=source.name, type=kind, count=count,
        )  # fmt: skip

    async def spent_ms(self, run: Run) -> int:
        """The time for which a job was delayed because no worker could run it."""
        source, spec = self._source, run.spec
        if spec is not None and source.server_ms(perf_counter()) < (
            (spec.at or time_of(run.id)) + source.queue.unserved_for_ms
        ):
            # Most jobs are too young for this to matter, and need no trip.
            return 0
        try:
            row = await source.store.unserved(run.id)
            return int(row.split(b" ")[1])
        except (StoreError, ValueError, IndexError):
            return 0
