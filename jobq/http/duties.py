"""The background work of a server for its queues. None of it may end unseen."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from jobq.engine.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobq.engine.queue.queue import Queue

log = get_logger("jobq.http")

AGAIN = 1.0
"""Seconds until a duty that failed starts again. They double with each failure, up to ``AGAIN_MAX``."""
AGAIN_MAX: Final = 60.0


async def keep_running(duty: Callable[..., Awaitable[None]], *queues: Queue) -> None:
    """Run a duty for these queues until it ends by itself or is cancelled. After an error it is logged, and started
    again after a pause.

    Redis being away is no such error: each duty waits for it by itself.
    """
    failures = 0
    first, *others = (queue.name for queue in queues)
    name = f"{first} and {len(others)} more" if others else first
    while True:
        try:
            await duty(*queues)
        except Exception as error:
            wait = min(AGAIN_MAX, AGAIN * 2 ** min(failures, 10))
            failures += 1
            log.exception(
                f"The server's work {duty.__name__!r} for queue {name} failed and starts again in {wait:g} s",
                queue=first, error=str(error), in_s=wait,
            )  # fmt: skip
            await asyncio.sleep(wait)
        else:
            return
