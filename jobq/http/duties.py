"""The background work of a server for its queues. None of it may end unseen: failures are logged, counted for /metrics,
and named at /readyz."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final

from jobq.engine.log import get_logger
from jobq.engine.worker.meter import SECONDS, Histogram

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobq.engine.queue.queue import Queue

log = get_logger("jobq.http")

AGAIN = 1.0
"""Seconds until a duty that failed starts again. They double with each failure, up to ``AGAIN_MAX``."""
AGAIN_MAX: Final = 60.0
STEADY: Final = 60.0
"""Seconds without a failure after which a duty works again. The rarest one does something every 30 seconds."""
SAMPLE: Final = 0.5
"""Seconds between two looks at the event loop."""


class Duties:
    """The duties of one application, how often each failed, and how late the event loop answers."""

    def __init__(self) -> None:
        self.failures: Counter[tuple[str, str]] = Counter()
        """Duty and queue -> how often it failed. All duties that were begun are here."""
        self.lag = Histogram(SECONDS)
        """By how much timers of the event loop were late."""
        self._failing: dict[tuple[str, str], float] = {}
        """Duty and queue -> until when it counts as failing, in the loop's time."""

    def is_failing(self, duty: str, queue: str) -> bool:
        """Whether a duty has failed, and has not worked for a minute since then."""
        return self._failing.get((duty, queue), 0.0) > asyncio.get_running_loop().time()

    @property
    def failing(self) -> list[str]:
        """The names of the duties that fail for any queue."""
        return sorted({duty for duty, queue in self._failing if self.is_failing(duty, queue)})

    def begun(self, duty: str, queue: str) -> None:
        """Note that there is this duty."""
        self.failures[duty, queue] += 0

    def failed(self, duty: str, queue: str, wait: float = AGAIN_MAX) -> None:
        """Note a failure that is in the log. It is tried again after ``wait`` seconds."""
        self.failures[duty, queue] += 1
        self._failing[duty, queue] = asyncio.get_running_loop().time() + wait + STEADY

    async def keep_running(self, duty: Callable[..., Awaitable[None]], *queues: Queue) -> None:
        """Run a duty for these queues until it ends by itself or is cancelled. After an error it is logged, and started
        again after a pause.

        Redis being away is no such error: each duty waits for it by itself.
        """
        loop = asyncio.get_running_loop()
        failures = 0
        first, *others = names = [queue.name for queue in queues]
        name = f"{first} and {len(others)} more" if others else first
        for one in names:
            self.begun(duty.__name__, one)
        while True:
            began = loop.time()
            try:
                await duty(*queues)
            except Exception as error:
                if loop.time() - began > STEADY:
                    failures = 0
                wait = min(AGAIN_MAX, AGAIN * 2 ** min(failures, 10))
                failures += 1
                for one in names:
                    self.failed(duty.__name__, one, wait)
                log.exception(
                    f"The server's work {duty.__name__!r} for queue {name} failed and starts again in {wait:g} s",
                    queue=first, error=str(error), in_s=wait,
                )  # fmt: skip
                await asyncio.sleep(wait)
            else:
                return

    async def watch_loop(self) -> None:
        """Measure the event loop until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + SAMPLE
            await asyncio.sleep(SAMPLE)
            self.lag.add(max(0.0, loop.time() - due))
