"""Turns times as people give them (seconds, ``timedelta``, ``datetime``) into ms, and checks them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from jobq.duration import to_seconds
from jobq.engine.model.job import DELAY_MAX_MS
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from jobq.engine.model.job import Seconds


def to_ms(value: Seconds) -> int:
    """Seconds, a ``timedelta`` or a text such as "5m" in ms, rounded. All times that Python callers give come here.

    :raises InvalidJob: it is something else. True is not a time, although Python counts it as 1.
    """
    seconds = value
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, str):
        seconds = to_seconds(value.strip()[:40].replace(" ", ""))
    try:
        if not isinstance(seconds, bool):
            return round(cast("float", seconds) * 1000)
    except (OverflowError, ValueError, TypeError):
        pass
    raise InvalidJob(f"{value!r:.80} is not a time: give seconds as a number, a timedelta, or a text such as '5m'")


def time_given(name: str, value: Any) -> int:
    """A time among the settings of a queue, in ms.

    :raises InvalidJob: it is not a time, or negative.
    """
    if isinstance(value, bool) or (ms := to_ms(value)) < 0:
        raise InvalidJob(f"{name} is {value!r:.80}: it takes 0 seconds or more, a timedelta, or a text such as '5m'")
    return ms


def option_ms(name: str, value: Any, least: int = 0) -> int:
    """A time among the options of a job, in ms. The error for a wrong one uses the unit in which it was given.

    :raises InvalidJob: it is not a time, less than ``least`` ms, or more than ten years.
    """
    try:
        ms = to_ms(value)
    except InvalidJob as error:
        raise InvalidJob(f"{name}: {error}") from None
    if not least <= ms <= DELAY_MAX_MS:
        raise InvalidJob(
            f"{name} is {value!r:.80}: it takes {least / 1000:g} to {DELAY_MAX_MS // 1000} seconds (ten years)"
        )
    return ms


def to_unix_ms(name: str, moment: datetime) -> int:
    """A point in time as unix ms.

    :raises InvalidJob: it is not a datetime, or has no timezone.
    """
    if not isinstance(moment, datetime):  # pyright: ignore[reportUnnecessaryIsInstance] - users without type checks
        raise InvalidJob(f"{name} is {moment!r:.80}: it takes a datetime with a timezone")
    if moment.utcoffset() is None:
        raise InvalidJob(
            f"{name} has no timezone, so its hour is not known: give datetime.now(UTC), or tzinfo=ZoneInfo(...)"
        )
    return round(moment.timestamp() * 1000)
