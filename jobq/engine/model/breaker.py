"""Circuit breakers: a type whose runs fail too often starts no more jobs for a time."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from jobq.engine.model.times import option_ms
from jobq.errors import InvalidJob

RUNS_MAX: Final = 1000
"""The most outcomes that a breaker remembers."""


class Breaker:
    """Opens when ``rate`` of the last ``runs`` runs failed, and holds the jobs of the type for ``open_for``.

    Then one job runs. If it works the breaker closes, and if it fails the breaker opens again. ``open_for`` takes
    seconds, a ``timedelta`` or a text such as ``"30s"``.

    :raises InvalidJob: a number is out of its range.
    """

    def __init__(self, *, rate: float = 0.5, runs: int = 20, open_for: Any = 30.0) -> None:
        if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 < rate <= 1:  # pyright: ignore[reportUnnecessaryIsInstance] - users without types
            raise InvalidJob(f"rate is {rate!r:.80}: it takes a share of failed runs above 0 and up to 1")
        if not isinstance(runs, int) or isinstance(runs, bool) or not 1 <= runs <= RUNS_MAX:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidJob(f"runs is {runs!r:.80}: it takes a whole number from 1 to {RUNS_MAX}")
        self.rate = float(rate)
        self.runs = runs
        self.open_ms = open_ms("open_for", open_for)

    def __repr__(self) -> str:
        return f"Breaker(rate={self.rate:g}, runs={self.runs}, open_for={self.open_ms / 1000:g})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Breaker) and self.text() == other.text()

    def __hash__(self) -> int:
        return hash(self.text())

    def text(self) -> str:
        """As the scripts read it."""
        return f"{self.rate:.6f} {self.runs} {self.open_ms}"


def open_ms(name: str, value: Any) -> int:
    """A time for which a breaker is open, in ms.

    :raises InvalidJob: it is not a time, less than 1 ms, or more than ten years.
    """
    return option_ms(name, value, 1)


class BreakerRow(msgspec.Struct, frozen=True):
    """The circuit breaker of a type, as operators see it. Times are unix ms and ms.

    ``state``: "closed" (jobs run), "open" (none starts before ``open_until``) or "half-open" (one job finds out).
    ``since``: when the breaker was opened or closed last. ``failed`` of the last ``seen`` runs failed, up to ``runs``.
    ``held``: jobs that wait for it. ``active``: jobs of the type that run or are about to.
    """

    type: str
    state: Literal["closed", "open", "half-open"]
    rate: float
    runs: int
    open_for: int
    failed: int
    seen: int
    since: int
    open_until: int | None
    held: int
    active: int


def read_breaker(name: str, row: str, now: int, held: int = 0, active: int = 0) -> BreakerRow | None:
    """A row of breaker.lua. None if it is damaged."""
    try:
        rate, runs, ms, till, since, outcomes = row.split(" ")
        until = int(till)
        state = "closed" if not until else "open" if until > now else "half-open"
        failed = outcomes.count("1")
        seen = failed + outcomes.count("0")
        return BreakerRow(
            name, state, float(rate), int(runs), int(ms), failed, seen, int(since), until or None, held, active
        )
    except ValueError:
        return None


def state_of(row: bytes) -> tuple[int, int]:
    """When the state of a breaker began (0: with its declaration), and until when it is open. Of two the larger one
    holds. A damaged row has none."""
    words = row.split(b" ")
    if len(words) != 6 or not words[3].isdigit() or not words[4].isdigit() or words[4].startswith(b"0"):
        return 0, 0
    return int(words[4]), int(words[3])
