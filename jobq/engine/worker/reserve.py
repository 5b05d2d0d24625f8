"""Slots of a worker that are kept free for urgent jobs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from jobq.engine.model.job import PRIORITY_MAX, PRIORITY_MIN

_CONDITION = re.compile(r"priority\s*<\s*(-?\d{1,4})")
_TAKES: Final = "it takes one condition and a number of slots, such as {'priority<0': 20} or priority<0=20"


@dataclass(frozen=True)
class Reserve:
    """``slots`` of a worker are only for jobs whose priority is below ``below``."""

    below: int = 0
    slots: int = 0

    def __str__(self) -> str:
        """As the setting takes it."""
        return f"priority<{self.below}={self.slots}"


def read_reserve(given: Mapping[str, int] | str | None, concurrency: int) -> Reserve | None:
    """The reserve of a worker, as its argument or its setting gives it.

    :raises ValueError: it cannot be read, or leaves no slot for other jobs.
    """
    if not given:
        return None
    if isinstance(given, str):
        pairs = [given.rpartition("=")[::2]]
    else:
        pairs = list(given.items()) if isinstance(given, Mapping) else []  # pyright: ignore[reportUnnecessaryIsInstance]
    found = _CONDITION.fullmatch(str(pairs[0][0]).strip()) if len(pairs) == 1 else None
    if found is None:
        raise ValueError(f"reserve is {given!r:.80}: {_TAKES}")
    below, number = int(found[1]), pairs[0][1]
    if not PRIORITY_MIN < below <= PRIORITY_MAX:
        raise ValueError(f"reserve is {given!r:.80}: the priority takes {PRIORITY_MIN + 1} to {PRIORITY_MAX}")
    slots = int(number) if isinstance(number, str) and number.strip().isdecimal() else number
    if not isinstance(slots, int) or isinstance(slots, bool) or not 1 <= slots < concurrency:
        raise ValueError(
            f"reserve is {given!r:.80}: with a concurrency of {concurrency} it takes 1 to {concurrency - 1} slots, so"
            " that other jobs can run too"
        )
    return Reserve(below, slots)
