"""Timers: when delayed jobs of a source are due, and when the runs of a worker time out."""

from __future__ import annotations

import contextvars
from math import inf
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

LONGEST: Final = 60.0
"""Seconds after which a worker looks again, however far away the next delayed job is."""
HESITATE: Final = 0.05
"""Seconds that a worker leaves to others when a job is due whose type it may not know."""
HESITANT_SECONDS: Final = 120.0
"""For so long after a job of an unknown type, this worker lets others go first when something comes due."""

BETWEEN_TIMEOUTS: Final = 0.01
"""Seconds between two looks for runs that time out: each look goes through all runs that have a timeout."""


class Deadlines:
    """When runs time out: one timer for all of them. A timer of its own costs a short run more than its claim."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._runs: dict[Any, float] = {}
        """Runs, and the moments when they are stopped."""
        self._timer: asyncio.TimerHandle | None = None
        self._next = inf
        """When the timer looks."""
        # of the worker: what a stopped run logs must not carry the job of the run that set the timer
        self._variables = contextvars.copy_context()

    def add(self, run: Any, seconds: float) -> None:
        """Stop the run with the reason "timeout" in so many seconds."""
        self._runs[run] = deadline = self._loop.time() + seconds
        if deadline < self._next:
            self._look_at(deadline)

    def remove(self, run: Any) -> None:
        """The run has ended. The timer stays as it is: another run may have the same timeout soon."""
        self._runs.pop(run, None)

    def close(self) -> None:
        """Stop no more runs."""
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
        self._hesitant_until = 0.0

    def set(self, due_ms: int) -> None:
        """The next delayed job is due in so many ms; a negative number: there is none."""
        self.cancel()
        if due_ms >= 0:
            self.not_later(due_ms)

    def not_later(self, due_ms: int) -> None:
        """A job is due in so many ms: look then, or earlier if something else is due before it."""
        due = min(due_ms / 1000, LONGEST)
        if self._timer is not None:
            if self._timer.when() <= self._loop.time() + due:
                return
            self._timer.cancel()
        self._timer = self._loop.call_later(due, self._due)

    def hesitate(self) -> None:
        """Let other workers go first when something comes due: there are jobs whose type this worker does not know."""
        self._hesitant_until = self._loop.time() + HESITANT_SECONDS

    def cancel(self) -> None:
        """Do not look."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        self._timer = None
        if self._loop.time() < self._hesitant_until:
            # probably a job that this worker handed back: a worker that knows its type should get it first
            self._timer = self._loop.call_later(HESITATE, self._after_hesitation)
        else:
            self._look()

    def _after_hesitation(self) -> None:
        self._timer = None
        self._look()
