"""The slots of a schedule: the times at which it enqueues a job. All times are unix seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from jobq.engine.schedule.cron import LATEST, Cron, cron_of, zone
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Sequence
    from zoneinfo import ZoneInfo

COUNTED: Final = 1000
"""The most slots that are counted one by one. A schedule with one slot a second may have millions of them."""
TRIES: Final = 2000
"""The most excluded slots in a row. Whole days that are excluded count as one."""
COMPUTED: Final = 8000
"""The most times of expressions that one search computes: a quarter of a second."""
SHOWN_TRIES: Final = 8000
"""The most times that are computed for one answer to a reader. A hostile schedule would hold the event loop."""


class Times(Protocol):
    """What a definition says of its times."""

    @property
    def cron(self) -> Sequence[str]: ...
    @property
    def exclude(self) -> Sequence[str]: ...
    @property
    def tz(self) -> str: ...
    @property
    def every(self) -> int | None: ...
    @property
    def at(self) -> Sequence[int]: ...
    @property
    def start(self) -> int | None: ...
    @property
    def until(self) -> int | None: ...


class Timing:
    """The slots of a definition.

    :raises InvalidJob: an expression or the time zone cannot be read.
    """

    def __init__(self, definition: Times) -> None:
        self._tz = zone(definition.tz)
        self._crons = [cron_of(text, self._tz) for text in definition.cron]
        self._excluded = [_excluded(text, self._tz) for text in definition.exclude]
        self._every = None if definition.every is None else definition.every // 1000
        self._at = sorted({-(-moment // 1000) for moment in definition.at})
        self._from = None if definition.start is None else -(-definition.start // 1000)
        self._following: list[tuple[int, int | None]] = [(LATEST, None)] * len(self._crons)
        """For each expression a moment, and its first time after it."""
        self.tries = 0
        """Times that were computed so far. Excluded ones cost as much as slots."""
        self._last: tuple[int, int | None] | None = None
        """The last answer of ``after``. Planning asks for the same slot several times."""
        self._until = LATEST if definition.until is None else definition.until // 1000

    def after(self, moment: int) -> int | None:
        """The first slot after a moment. None if there is none."""
        if self._last is None or self._last[0] != moment:
            self._last = (moment, self._search(moment))
        return self._last[1]

    def _search(self, moment: int) -> int | None:
        if self._from is not None:
            moment = max(moment, self._from - 1)
        enough = self.tries + COMPUTED
        for _ in range(TRIES):
            self.tries += 1
            slot = self._next(moment)
            if self.tries > enough or slot is None or slot > self._until:
                return None
            left = [cron.left(slot) for cron in self._excluded if cron.matches(slot)]
            if not left:
                return slot
            moment = slot + max(left) - 1
        return None

    def up_to(self, slot: int, end: int) -> tuple[int, int]:
        """The last slot from ``slot`` to ``end``, and how many slots there are (``COUNTED`` at most)."""
        if self._every is not None and not self._excluded:
            count = (min(end, self._until) - slot) // self._every
            return slot + count * self._every, min(count + 1, COUNTED)
        last = slot
        for count in range(1, COUNTED + 1):
            following = self.after(last)
            if following is None or following > end:
                return last, count
            last = following
        # Search for the last one instead of counting on.
        high = end
        while (following := self.after(last)) is not None and following <= high:
            middle = (following + high + 1) // 2
            jump = self.after(middle - 1)
            if jump is not None and jump <= high:
                last = jump
            else:
                last, high = following, middle - 1
        return last, COUNTED

    def between(self, first: int, end: int, most: int) -> list[int]:
        """The slots from ``first`` to ``end``, ``most`` at most."""
        slots: list[int] = []
        slot = self.after(first - 1)
        while slot is not None and slot <= end and len(slots) < most:
            slots.append(slot)
            slot = self.after(slot)
        return slots

    def words(self) -> str:
        """When the slots are, in English."""
        if self._every is not None:
            return f"Every {span(self._every)}"
        if self._at:
            return "Once" if len(self._at) == 1 else f"{len(self._at)} times"
        said = "; ".join(cron.words() for cron in self._crons)
        return f"{said}; not: {'; '.join(cron.words() for cron in self._excluded)}" if self._excluded else said

    def _next(self, moment: int) -> int | None:
        if self._every is not None:
            # Counted from a fixed time, so that a deploy or an edit does not move the slots.
            base = self._from or 0
            return base + ((moment - base) // self._every + 1) * self._every
        if self._at:
            return next((at for at in self._at if at > moment), None)
        found: int | None = None
        for place, cron in enumerate(self._crons):
            # Most expressions of a schedule have not come since the last search.
            before, slot = self._following[place]
            if moment < before or (slot is not None and slot <= moment):
                slot = cron.after(moment)
                self.tries += 1
                self._following[place] = moment, slot
            if slot is not None and (found is None or slot < found):
                found = slot
        return found


def _excluded(text: str, tz: ZoneInfo) -> Cron:
    try:
        return cron_of(text, tz)
    except InvalidJob as error:
        raise InvalidJob(f"exclude: {error}") from None


def span(seconds: int) -> str:
    """A time in words, such as "5 minutes"."""
    for unit, size in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds % size == 0:
            count = seconds // size
            return f"{count} {unit}s" if count > 1 else unit
    return f"{seconds} seconds" if seconds > 1 else "second"


def check_slots(timing: Timing, now: int) -> None:
    """Check that a schedule has a slot at all.

    :raises InvalidJob: the times, the bounds and the exclusions leave none.
    """
    if timing.after(now) is None and timing.after(0) is None:
        raise InvalidJob("the schedule never comes: its times, from, until and exclude leave no slot")
