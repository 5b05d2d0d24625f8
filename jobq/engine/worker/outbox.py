"""Outcomes and words of a worker's runs on their way to Redis, and how much of them one trip carries."""

from __future__ import annotations

from typing import Any, Final

SETTLE_MAX: Final = 250
"""Outcomes per trip: far below Lua's limits, and no script holds Redis for long."""
HAND_BACK_MAX: Final = 100
"""Jobs handed back per trip: each touches the tables of two sets, which may be large."""
SETTLE_BYTES: Final = 1 << 20
"""Bytes of results per trip, for the same reason."""
SAY_MAX: Final = 20
"""Progress and log lines, of each, per trip: a line is 8 KiB at most and goes behind 64 KiB that stand already."""
FAIL_MAX: Final = 20
"""Failures per trip: each moves the errors of all earlier attempts, 64 KiB at most, which takes a tenth of a ms."""

OUTCOMES: Final = {
    "completed": (4, SETTLE_MAX),
    "retried": (5, FAIL_MAX),
    "failed": (5, FAIL_MAX),
    "released": (2, HAND_BACK_MAX),
    "deferred": (2, HAND_BACK_MAX),
}
"""Words per job, as its script takes them, and jobs per trip."""
WORDS: Final = ("progress", "logs")
"""What runs say: three words each."""


class Outbox:
    """As the flat arguments of the settling scripts."""

    __slots__ = ("counts", "repeated", *OUTCOMES, *WORDS)

    def __init__(self) -> None:
        self.completed: list[Any] = []
        self.retried: list[Any] = []
        self.failed: list[Any] = []
        self.released: list[Any] = []
        self.deferred: list[Any] = []
        self.progress: list[Any] = []
        self.logs: list[Any] = []
        self.counts: dict[bytes, int] = {}
        self.repeated = False
        """Some of it was sent before, with unknown fate."""

    def __bool__(self) -> bool:
        return bool(
            self.completed
            or self.retried
            or self.failed
            or self.released
            or self.deferred
            or self.progress
            or self.logs
        )

    def split(self) -> tuple[Outbox, Outbox]:
        """What one trip carries, and what stays for the next. Each list holds whole groups of its script's words."""
        if max(len(self.progress), len(self.logs)) > 3 * SAY_MAX:
            # words go before the outcome that ends their lease: some of the words now, the rest and all outcomes later
            now = Outbox()
            for name in WORDS:
                self._cut(name, 3 * SAY_MAX, now, self)
            return now, self
        rest = Outbox()
        for name, (size, jobs) in OUTCOMES.items():
            most = jobs * size
            self._cut(name, self._within(most) if name == "completed" else most, self, rest)
        return self, rest

    def _cut(self, name: str, at: int, now: Outbox, rest: Outbox) -> None:
        flat: list[Any] = getattr(self, name)
        if len(flat) > at or now is not self:
            setattr(now, name, flat[:at])
            setattr(rest, name, flat[at:])

    def _within(self, most: int) -> int:
        """How many of the words are groups whose results come to ``SETTLE_BYTES``; one group at least."""
        completed = self.completed
        size = 0
        for at in range(2, min(len(completed), most), 4):
            size += len(completed[at])
            if size > SETTLE_BYTES:
                return at + 2
        return most

    def put_before(self, newer: Outbox) -> None:
        """Its fate is unknown: all of it goes again, in front. What was executed is refused by its fence."""
        newer.repeated = True
        for name in (*OUTCOMES, *WORDS):
            setattr(newer, name, getattr(self, name) + getattr(newer, name))
        for bucket, count in self.counts.items():
            newer.counts[bucket] = newer.counts.get(bucket, 0) + count
