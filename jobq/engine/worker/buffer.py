"""Jobs that are claimed before a slot is free. They stay here for a few ms only, because another worker may be idle."""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from jobq.engine.worker.run import Run

HOLD_SECONDS: Final = 0.01
"""Seconds after which a job that has not started is handed back."""


class Buffer:
    """First in, first out. Calls ``overdue`` when the first job has waited for too long."""

    def __init__(self, loop: asyncio.AbstractEventLoop, overdue: Callable[[], None]) -> None:
        self._loop = loop
        self._overdue = overdue
        self._runs: deque[Run] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._runs)

    def extend(self, runs: Sequence[Run]) -> None:
        """Put the runs of a claim at the end, but before those of a later claim of their queue. The replies of a lane
        and of its waker may arrive in another order than their claims were executed."""
        later: list[Run] = []
        while runs and (last := self._last()) is not None and last.source is runs[0].source and _later(last, runs[0]):
            # The heartbeat thread may have taken it meanwhile.
            if self.remove(last):
                later.append(last)
        self._runs.extend(runs)
        self._runs.extend(reversed(later))

    def _last(self) -> Run | None:
        try:
            return self._runs[-1]
        except IndexError:
            return None

    def pop(self) -> Run | None:
        """Take the first run, or return None if there is none. Do not check first: the heartbeat thread empties the
        buffer concurrently."""
        try:
            return self._runs.popleft()
        except IndexError:
            return None

    def first(self) -> Run | None:
        """The next run, which stays in the buffer."""
        try:
            return self._runs[0]
        except IndexError:
            return None

    def remove(self, run: Run) -> bool:
        """Take a run out. Returns False when it is not in the buffer."""
        try:
            self._runs.remove(run)
        except (ValueError, IndexError):  # IndexError: the heartbeat thread took it meanwhile.
            return False
        return True

    def take_all(self) -> list[Run]:
        """Take all runs out, to hand them back. Safe from any thread."""
        runs: list[Run] = []
        while (run := self.pop()) is not None:
            run.ended = True
            run.reason = "shutdown"
            runs.append(run)
        return runs

    def watch(self) -> None:
        """Check after ``HOLD_SECONDS`` whether the first job still waits."""
        if self._runs and self._timer is None:
            self._timer = self._loop.call_later(HOLD_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        try:
            waited = perf_counter() - self._runs[0].claimed
        except IndexError:
            return
        if waited < HOLD_SECONDS:
            self._timer = self._loop.call_later(HOLD_SECONDS - waited, self._look)
        else:
            self._overdue()

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()


def _later(one: Run, other: Run) -> bool:
    """Whether a run was claimed after another one of its queue. The fence of a queue grows with each claim."""
    return int(one.token.partition(b" ")[0]) > int(other.token.partition(b" ")[0])
