"""Options as people give them (seconds, timedelta) made into options as they are kept (ms), and checked."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, TypedDict, get_args

import msgspec

from jobq.engine.model.encoding import encode
from jobq.engine.model.job import (
    ATTEMPTS_MAX,
    DELAY_MAX_MS,
    NAME_MAX,
    PRIORITY_MAX,
    PRIORITY_MIN,
    Backoff,
    Durability,
    Options,
    Seconds,
)
from jobq.errors import InvalidJob


class Given(TypedDict, total=False):
    """The options of Python's doors. Times in seconds or ``timedelta``."""

    priority: int
    delay: Seconds
    attempts: int
    backoff: Backoff
    timeout: Seconds | None
    lifo: bool
    key: str | None
    key_ttl: Seconds | None
    retention: Seconds | None
    run_at: datetime | None
    metadata: dict[str, Any] | None


_TIMES = ("delay", "timeout", "key_ttl", "retention")


def to_ms(value: Seconds) -> int:
    """Seconds or a ``timedelta`` in ms, rounded."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    try:
        return round(seconds * 1000)
    except (OverflowError, ValueError, TypeError):
        raise InvalidJob(f"{value!r} is no time: give seconds as a number, or a timedelta") from None


def count_of(name: str, value: Any, least: int = 0) -> int:
    """A whole number that a queue is made with.

    :raises InvalidJob: it is none, or less than ``least``.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidJob(f"{name} is {value!r:.80}: it takes a whole number from {least} on")
    return value


def time_given(name: str, value: Any) -> int:
    """A time that a queue is made with, in ms.

    :raises InvalidJob: it is none, or negative.
    """
    if isinstance(value, bool) or (ms := to_ms(value)) < 0:
        raise InvalidJob(f"{name} is {value!r:.80}: it takes seconds from 0 on, or a timedelta")
    return ms


def to_unix_ms(name: str, moment: datetime) -> int:
    """A point in time as unix ms.

    :raises InvalidJob: it is no datetime, or has no timezone.
    """
    if not isinstance(moment, datetime):  # pyright: ignore[reportUnnecessaryIsInstance] - users without types
        raise InvalidJob(f"{name} is {moment!r:.80}: it takes a datetime with a timezone")
    if moment.utcoffset() is None:
        raise InvalidJob(f"{name} has no timezone, so it could be any hour: datetime.now(UTC), or tzinfo=ZoneInfo(...)")
    return round(moment.timestamp() * 1000)


def merge(base: Options, given: Given) -> Options:
    """``base`` with what is given put over it.

    :raises InvalidJob: an option is out of its range, or there is no such option.
    """
    if not given:
        return base
    changes: dict[str, Any] = dict(given)
    for name in _TIMES:
        if changes.get(name) is not None:
            changes[name] = _time(name, changes[name])
    if changes.get("run_at") is not None:
        changes["run_at"] = to_unix_ms("run_at", changes["run_at"])
        changes.setdefault("delay", 0)  # not the task's default
    elif changes.get("delay"):
        changes.setdefault("run_at", None)
    try:
        merged: Options = msgspec.structs.replace(base, **changes)
    except TypeError:
        unknown = sorted(set(changes) - set(Options.__struct_fields__))
        raise InvalidJob(
            f"no such option: {', '.join(unknown)}; there are {', '.join(Options.__struct_fields__)}"
        ) from None
    check(merged)
    return merged


def _time(name: str, value: Seconds) -> int:
    """A time in ms. A wrong one is refused in the unit that was used to give it."""
    ms = to_ms(value)
    least = 1 if name in ("timeout", "key_ttl") else 0
    if not least <= ms <= DELAY_MAX_MS:
        raise InvalidJob(
            f"{name} is {value!r:.80}: it takes {least / 1000:g} to {DELAY_MAX_MS // 1000} seconds (ten years)"
        )
    return ms


def _whole(name: str, value: Any, least: int, most: int, unit: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidJob(f"{name} is {value!r:.80}: it takes {least} to {most}{unit}")


def _kind(name: str, value: Any, kind: type | tuple[type, ...], takes: str) -> None:
    if not isinstance(value, kind):
        raise InvalidJob(f"{name} is {value!r:.80}: it takes {takes}")


def check(options: Options) -> None:
    """Check every option against its range.

    :raises InvalidJob: naming the option and what it takes.
    """
    _whole("priority", options.priority, PRIORITY_MIN, PRIORITY_MAX, " (a lower number runs first)")
    _whole("delay", options.delay, 0, DELAY_MAX_MS, " ms (ten years)")
    _whole("attempts", options.attempts, 1, ATTEMPTS_MAX, " (the total number of runs)")
    for name in ("timeout", "key_ttl"):
        value = getattr(options, name)
        if value is not None:
            _whole(name, value, 1, DELAY_MAX_MS, " ms")
    if options.retention is not None:
        _whole("retention", options.retention, 0, DELAY_MAX_MS, " ms")
    if options.run_at is not None:
        _whole("run_at", options.run_at, 0, 1 << 45, " ms since 1970")
        if options.delay:
            raise InvalidJob("delay and run_at are given: both say when the job is to run, so give one of them")
    # a row with anything else in these could not be read back
    _kind("lifo", options.lifo, bool, "True or False")
    if options.metadata is not None:
        _kind("metadata", options.metadata, dict, "a dict")
        try:
            encode(options.metadata)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidJob(f"metadata has no JSON form: {error}") from None
    if options.backoff is not None:
        _kind("backoff", options.backoff, Backoff, "a Backoff")
        if options.backoff.type not in ("fixed", "exponential"):
            raise InvalidJob(f"backoff.type is {options.backoff.type!r:.80}: it takes 'fixed' or 'exponential'")
        _whole("backoff.delay", options.backoff.delay, 0, DELAY_MAX_MS, " ms")
        _whole("backoff.max", options.backoff.max, 0, DELAY_MAX_MS, " ms")
        _kind("backoff.jitter", options.backoff.jitter, (int, float), "0 to 1")
        if not 0 <= options.backoff.jitter <= 1:
            raise InvalidJob(f"backoff.jitter is {options.backoff.jitter!r}: it takes 0 to 1")
    if options.key is not None:
        _kind("key", options.key, str, "a text")
        check_key("key", options.key)
    elif options.key_ttl is not None:
        raise InvalidJob("key_ttl is given without key: it says how long the key holds")


def check_key(name: str, key: str) -> None:
    """A deduplication key: 1 to 512 bytes, no control characters (a line break would end it).

    :raises InvalidJob: it is not.
    """
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidJob(f"{name}: lone surrogates are no text") from None
    if not 1 <= size <= 512 or any(ord(c) < 32 or ord(c) == 127 for c in key):
        raise InvalidJob(f"{name}: 1 to 512 bytes without control characters")


def check_durability(durability: str) -> None:
    """One of ``Durability``; a misspelt one must not be a weaker one.

    :raises InvalidJob: it is not.
    """
    if durability not in get_args(Durability):
        raise InvalidJob(f"durability is {durability!r:.80}: it takes none, fsynced or replicated")


def check_type(name: str) -> None:
    """A job type: 1 to 128 printable characters.

    :raises InvalidJob: it is not.
    """
    if not 1 <= len(name) <= NAME_MAX or not name.isprintable():
        raise InvalidJob(f"type {name[:80]!r}: 1 to {NAME_MAX} printable characters")
