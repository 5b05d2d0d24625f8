"""The time between a failed attempt and the next one.

Exponential backoff with jitter, as in Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015):
a share of the delay is random, so that jobs that failed together do not run again together.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from jobq.engine.model.job import DELAYS_MAX, StoredBackoff
from jobq.engine.model.times import option_ms
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobq.engine.model.job import Seconds

DEFAULT: Final = StoredBackoff()


@dataclass(frozen=True, slots=True)
class Backoff:
    """The time between a failed attempt and the next one. Times are seconds or ``timedelta``.

    ``exponential``: ``delay``, twice as long after each further attempt, up to ``max``. ``fixed``: always ``delay``.
    ``delays`` replaces these three: one delay after the first attempt, the next one after the second, and so on; the
    last one repeats. Each delay is shortened at random by up to ``jitter`` of it, so that jobs that failed together
    do not run again together. 0 makes it exact.

    :raises InvalidJob: a value is out of its range.
    """

    type: Literal["fixed", "exponential"] = "exponential"
    delay: Seconds = 1.0
    max: Seconds = 3600.0
    jitter: float = 0.25
    delays: Sequence[Seconds] = ()

    def __post_init__(self) -> None:
        self.stored()

    def stored(self) -> StoredBackoff:
        """The same in ms, as stored rows and REST have it."""
        if self.type not in ("fixed", "exponential"):
            raise InvalidJob(f"backoff.type is {self.type!r:.80}: it takes 'fixed' or 'exponential'")
        jitter: Any = self.jitter
        if isinstance(jitter, bool) or not isinstance(jitter, int | float) or not 0 <= jitter <= 1:
            raise InvalidJob(f"backoff.jitter is {jitter!r:.80}: it takes 0 to 1")
        delay, longest = option_ms("backoff.delay", self.delay), option_ms("backoff.max", self.max)
        if self.type == "exponential" and delay > longest:
            raise InvalidJob(
                f"backoff.delay is {delay / 1000:g} s and backoff.max is {longest / 1000:g} s:"
                " give a max that is not smaller than delay"
            )
        return StoredBackoff(self.type, delay, longest, jitter, _delays(self.delays))


def _delays(given: Any) -> tuple[int, ...]:
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        raise InvalidJob(f"backoff.delays is {given!r:.80}: it takes a list of seconds or timedeltas")
    delays = cast("Sequence[Any]", given)
    if len(delays) > DELAYS_MAX:
        raise InvalidJob(
            f"backoff.delays has {len(delays)} delays: it takes at most {DELAYS_MAX}, and the last one repeats"
        )
    return tuple(option_ms(f"backoff.delays[{place}]", delay) for place, delay in enumerate(delays))


def stored_backoff(given: Any) -> StoredBackoff:
    """A ``Backoff``, or a list of delays, in ms.

    :raises InvalidJob: it is something else.
    """
    if isinstance(given, Backoff):
        return given.stored()
    if callable(given):
        raise InvalidJob(
            "a backoff function cannot be stored with a job: give it to the task, @queue.task(backoff=...)"
        )
    if not isinstance(given, Sequence) or isinstance(given, str | bytes) or not given:
        raise InvalidJob(f"backoff is {given!r:.80}: it takes a Backoff, or a list of delays in seconds")
    return Backoff(delays=cast("Sequence[Any]", given)).stored()


def pause(failures: int) -> float:
    """Seconds before a call to Redis is tried again that failed ``failures`` times in a row. At most two."""
    # Bound the exponent: after half an hour without Redis, 2.0**failures is too large for a float.
    return min(2.0, 0.05 * 2 ** min(failures, 6))


def delay_ms(backoff: StoredBackoff | None, attempt: int, draw: Callable[[], float] = random.random) -> int:
    """The delay in ms after attempt number ``attempt`` (from 1). ``draw`` returns 0 <= x < 1."""
    plan = backoff or DEFAULT
    if plan.delays:
        delay = plan.delays[min(attempt, len(plan.delays)) - 1]
    elif plan.type == "fixed":
        delay = plan.delay
    else:
        # 2**60 ms is more than any max. A bounded exponent keeps the integer small for late attempts.
        delay = min(plan.max, plan.delay << min(attempt - 1, 60))
    return round(delay * (1 - plan.jitter * draw()))
