"""How much waiting a step of priority is worth in a queue."""

from __future__ import annotations

from typing import Any, Final

from jobq.engine.model.times import to_ms
from jobq.errors import InvalidJob

AGING_MAX_MS: Final = 24 * 60 * 60 * 1000
AGING_JOBS_MAX: Final = 1000
"""Jobs that may wait when it changes. One call gives all of them new places, and may not block Redis for long."""


def aging_ms(given: Any) -> int:
    """``aging`` as the scripts read it, in ms. None is 0: priorities are absolute.

    :raises InvalidJob: it is no time of at most a day.
    """
    if given is None:
        return 0
    ms = -1 if isinstance(given, bool) else to_ms(given)
    if not 1 <= ms <= AGING_MAX_MS:
        raise InvalidJob(f"aging is {given!r:.80}: it takes 0.001 to {AGING_MAX_MS // 1000} seconds, or None")
    return ms


def aging_text(ms: int) -> str:
    """For messages."""
    return f"aging={ms / 1000:g}" if ms else "no aging"
