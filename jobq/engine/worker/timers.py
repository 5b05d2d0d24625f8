"""Timers: when delayed jobs of a source are due, and when the runs of a worker time out."""

from __future__ import annotations

import contextvars
from math import inf
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

LONGEST: Final = 60.0
"""Seconds after which a worker checks again, even if the next delayed job is due later."""
HESITATE: Final = 0.05
"""Seconds for which a worker lets others claim first, if it may be unable to read a due job."""
HESITANT_SECONDS: Final = 120.0
"""Seconds after a job that it could not read during which this worker lets others claim due jobs first."""

BETWEEN_TIMEOUTS: Final = 0.01
"""Seconds between two checks for runs that time out. Each check reads all runs with a timeout."""


class Deadlines:
    """The deadlines of runs, with one timer for all of them. A timer for each run would cost a short run more than
    its claim."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._runs: dict[Any, float] = {}
        """Runs and their deadlines."""
        self._timer: asyncio.TimerHandle | None = None
        self._next = inf
        """The time of the timer."""
        # Use the worker's context. Log lines of a stopped run must not have the job id of the run that set the timer.
        self._variables = contextvars.copy_context()

    def add(self, run: Any, seconds: float) -> None:
        """Stop the run with the reason "timeout" after this number of seconds."""
        self._runs[run] = deadline = self._loop.time() + seconds
        if deadline < self._next:
            self._look_at(deadline)

    def remove(self, run: Any) -> None:
        """The run has ended. Keep the timer, because another run may have nearly the same deadline."""
        self._runs.pop(run, None)

    def close(self) -> None:
        """Cancel the timer."""
        self._runs.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _look_at(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = moment
        self._timer = self._loop.call_at(moment, self._look, context=self._variables)

    def _look(self) -> None:
        self._timer, self._next = None, inf
        now = self._loop.time()
        for run in [run for run, deadline in self._runs.items() if deadline <= now]:
            self.remove(run)
            run.stop("timeout")
        if self._runs:
            self._look_at(max(min(self._runs.values()), now + BETWEEN_TIMEOUTS))


class DueTimer:
    """Calls ``look`` when the next delayed job is due."""

    def __init__(self, loop: asyncio.AbstractEventLoop, look: Callable[[], None]) -> None:
        self._loop = loop
        self._look = look
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0
        self._hesitant_until = 0.0

    def set(self, due_ms: int) -> None:
        """The next delayed job is due in this number of ms. A negative number means that there is none."""
        self.cancel()
        if due_ms >= 0:
            self.not_later(due_ms)

    def not_later(self, due_ms: int) -> None:
        """A job is due in this number of ms. Check then, or earlier if another job is due before it."""
        due = min(due_ms / 1000, LONGEST)
        at = self._loop.time() + due
        if self._timer is not None:
            # Timers of uvloop that are due within half a ms cannot tell their time.
            if self._at <= at:
                return
            self._timer.cancel()
        self._at, self._timer = at, self._loop.call_later(due, self._due)

    def hesitate(self) -> None:
        """Let other workers claim due jobs first, because there are jobs that this worker cannot read."""
        self._hesitant_until = self._loop.time() + HESITANT_SECONDS

    def cancel(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        self._timer = None
        if self._loop.time() < self._hesitant_until:
            # This is probably a job that this worker handed back. A worker that can read it should get it first.
            self._at = self._loop.time() + HESITATE
            self._timer = self._loop.call_later(HESITATE, self._after_hesitation)
        else:
            self._look()

    def _after_hesitation(self) -> None:
        self._timer = None
        self._look()
