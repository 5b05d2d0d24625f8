"""How long a failed attempt waits for the next one.

Exponential backoff with jitter after Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015):
the jittered share of the delay is drawn evenly, so that jobs that failed together do not come back together.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from jobq.engine.model.job import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT = Backoff()


def pause(failures: int) -> float:
    """Seconds before a call to Redis that failed ``failures`` times in a row is tried again: two at most."""
    # bounded before it is raised to a power: after an outage of half an hour 2.0**failures is no float any more
    return min(2.0, 0.05 * 2 ** min(failures, 6))


def delay_ms(backoff: Backoff | None, attempt: int, draw: Callable[[], float] = random.random) -> int:
    """Delay in ms before the run after ``attempt`` (from 1). ``draw`` gives 0 <= x < 1."""
    plan = backoff or DEFAULT
    # 2**60 ms is beyond any max; the exponent is bounded so that attempt 1000 stays an int of sane size
    delay = plan.delay if plan.type == "fixed" else min(plan.max, plan.delay << min(attempt - 1, 60))
    return round(delay * (1 - plan.jitter * draw()))
