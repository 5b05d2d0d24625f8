"""Cron expressions in time zones, by the rule of Debian's cron.

The library ``cronsim`` reads expressions and does the arithmetic of the calendar, without a time zone. This module maps
its times to instants. The rule, for changes of less than three hours:

- If the fields of minute and hour do not begin with ``*``, the expression means fixed times. A time that does not exist
  on a day comes right after the gap, once. A time that exists twice comes once, the first time.
- All other expressions follow the clock on the wall.

A change of three hours or more is a correction of the clock: all expressions follow the wall.
"""

from __future__ import annotations

import copy
import difflib
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError

from jobq.errors import InvalidJob

TEXT_MAX: Final = 256
"""Characters of an expression. More would take long to read."""
YEARS: Final = 50
"""Years after which a search for the next time gives up. February 29 on a Monday comes every 28 years, or 40."""
CORRECTION: Final = 3 * 3600
"""Seconds from which on a change of the clock is a correction."""
DAY: Final = 86_400
LATEST: Final = 7_258_118_400
"""The year 2200, in unix seconds. Nothing is scheduled after it."""

KEYWORDS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
"""Names for expressions, as in crontab files."""
_STEPS: Final = {"second": 59, "minute": 59, "hour": 23, "day of the month": 31, "month": 12, "day of the week": 7}
"""The fields, and the longest step of each."""

_ZONE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+/-]{0,63}")
_EPOCH = datetime(1970, 1, 1)


@lru_cache(maxsize=1024)
def zone(name: str) -> ZoneInfo:
    """The IANA time zone with this name.

    :raises InvalidJob: there is no such zone. The text names similar ones.
    """
    # A name becomes the name of a file.
    if _ZONE.fullmatch(name):
        try:
            return ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass
    names = sorted(available_timezones())
    near = difflib.get_close_matches(name[:64], names, 3, cutoff=0.6) or ["UTC", "Europe/Berlin", "America/New_York"]
    raise InvalidJob(f"tz is {name!r:.80}: there is no such time zone; there are, for example, {', '.join(near)}")


@lru_cache(maxsize=4096)
def cron_of(text: str, tz: ZoneInfo) -> Cron:
    """As ``Cron``, kept for the next time."""
    return Cron(text, tz)


class Cron:
    """One expression: 5 fields, or 6 with seconds first.

    :raises InvalidJob: it cannot be read, or no day fits it.
    """

    def __init__(self, text: str, tz: ZoneInfo) -> None:
        fields = KEYWORDS.get(text.strip().lower(), text).split()
        if len(text) > TEXT_MAX:
            raise InvalidJob(f"cron has {len(text)} characters: it takes {TEXT_MAX} at most")
        if len(fields) not in (5, 6):
            raise InvalidJob(
                f"cron is {text!r}: it takes 5 fields (minute hour day month weekday), 6 with seconds first,"
                f" or one of {', '.join(KEYWORDS)}"
            )
        _check_steps(text, fields)
        self.text = text
        self._written = fields
        self._tz = tz
        self.minutes_only = len(fields) == 5
        self._fixed = not fields[-5].startswith("*") and not fields[-4].startswith("*")
        try:
            self._fields = CronSim(" ".join(fields), _EPOCH)
        except (CronSimError, ValueError, AssertionError, OverflowError) as error:
            raise InvalidJob(f"cron is {text!r}: {_explained(str(error))}") from None
        if self._wall_after(datetime(2000, 1, 1)) is None:
            raise InvalidJob(f"cron is {text!r}: no such day comes in {YEARS} years")

    def words(self) -> str:
        """The expression in English."""
        try:
            return CronSim(" ".join(self._written), _EPOCH).explain()
        except Exception:  # noqa: BLE001 - an explanation is a courtesy
            return self.text

    def after(self, moment: int) -> int | None:
        """The first time after a moment, both unix seconds. None if there is none."""
        tz, wall = self._tz, self._wall(moment)
        found: int | None = None
        at: datetime | None = wall
        while found is None:
            at = self._wall_after(at)
            if at is None:
                break
            found = self._instant(at, moment)
            if found is None:
                at = self._end_of_change(at)
        # If the clock is set back soon, times that have passed on the wall come again before the one that was found.
        till = moment + DAY if found is None else min(found, moment + DAY)
        back = _offset(tz, moment) - _offset(tz, till)
        if back > 0 and (not self._fixed or back >= CORRECTION):
            change = _change(tz, moment, till)
            again = self._wall_after(self._wall(change - 1) - timedelta(seconds=back))
            if again is not None:
                instant = _unix(again) - _offset(tz, change)
                if instant >= change and (found is None or instant < found):
                    found = instant
        return found if found is not None and found <= LATEST else None

    def matches(self, moment: int) -> bool:
        """Whether the time on the wall fits the expression. Without a field of seconds, all seconds of a minute do."""
        wall, fields = self._wall(moment), self._fields
        return (
            (self.minutes_only or wall.second in fields.seconds)
            and wall.minute in fields.minutes
            and wall.hour in fields.hours
            and wall.month in fields.months
            and fields.match_day(wall.date())
        )

    def left(self, moment: int) -> int:
        """Seconds from a moment that fits until the next one that may not fit, as whole minutes, hours or days."""
        wall, fields = self._wall(moment), self._fields
        if not self.minutes_only and len(fields.seconds) < 60:
            return 1
        left = 60 - wall.second
        if len(fields.minutes) == 60:
            left += 60 * (59 - wall.minute)
            if len(fields.hours) == 24:
                left += 3600 * (23 - wall.hour)
        return left if _offset(self._tz, moment) == _offset(self._tz, moment + left) else 1

    def _wall(self, moment: int) -> datetime:
        return datetime.fromtimestamp(moment, self._tz).replace(tzinfo=None)

    def _wall_after(self, wall: datetime) -> datetime | None:
        try:
            # Reading the expression again would take longer than the search.
            search = copy.copy(self._fields)
            search.dt = wall.replace(microsecond=0)
            return next(search)
        except (StopIteration, CronSimError, OverflowError, ValueError):
            return None

    def _instant(self, wall: datetime, after: int) -> int | None:
        """The first instant after a moment at which the wall shows this time. None if there is none."""
        tz = self._tz
        first, second = _offsets(tz, wall)
        early, late = _unix(wall) - first, _unix(wall) - second
        if first == second:
            return early if early > after else None
        if first > second:  # The wall shows this time twice.
            if early > after:
                return early
            follows = not self._fixed or first - second >= CORRECTION
            return late if follows and late > after else None
        # The wall does not show this time.
        if not self._fixed or second - first >= CORRECTION:
            return None
        end = _change(tz, late, early)
        return end if end > after else None

    def _end_of_change(self, wall: datetime) -> datetime:
        """The last time on the wall that is skipped or repeated together with this one.

        All of them could be looked at one by one. A whole day was skipped on Samoa, and it has 86,400 seconds.
        """
        first, second = _offsets(self._tz, wall)
        early, late = _unix(wall) - first, _unix(wall) - second
        if first < second:
            return self._wall(_change(self._tz, late, early)) - timedelta(seconds=1)
        return self._wall(_change(self._tz, early, late) - 1) if first > second else wall


def _check_steps(text: str, fields: list[str]) -> None:
    """Refuse a step that is longer than its field. ``*/90`` would mean every hour, which nobody wants to say so."""
    for field, (name, most) in zip(reversed(fields), reversed(_STEPS.items()), strict=False):
        for step in re.findall(r"/([0-9]+)", field):
            if int(step) > most:
                raise InvalidJob(
                    f"cron is {text!r}: the {name} has the step {step}, and {most} is the longest one; for other times"
                    " between slots give every="
                )


def _explained(message: str) -> str:
    """The library says "Bad day-of-month"."""
    field = message.removeprefix("Bad ")
    return f"the field of the {field} cannot be read, or no day fits it" if message.startswith("Bad ") else message


def _unix(wall: datetime) -> int:
    return round((wall - _EPOCH).total_seconds())


def _offset(tz: ZoneInfo, moment: int) -> int:
    return round((datetime.fromtimestamp(moment, UTC).astimezone(tz).utcoffset() or timedelta()).total_seconds())


def _offsets(tz: ZoneInfo, wall: datetime) -> tuple[int, int]:
    """The offsets that a time on the wall has the first and the second time. They are equal for nearly all times."""
    first, second = (wall.replace(tzinfo=tz, fold=fold).utcoffset() or timedelta() for fold in (0, 1))
    return round(first.total_seconds()), round(second.total_seconds())


def _change(tz: ZoneInfo, low: int, high: int) -> int:
    """The first second of the new offset, if there is one change after ``low`` and until ``high``."""
    old = _offset(tz, low)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(tz, middle) == old:
            low = middle
        else:
            high = middle
    return high
