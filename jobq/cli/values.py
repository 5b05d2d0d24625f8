"""Types of the command line's arguments. Each parses a word, or raises an error that says which values it takes."""

from __future__ import annotations

import argparse
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from jobq.duration import to_seconds
from jobq.engine.model.backoff import Backoff
from jobq.engine.model.limits import Rate
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Callable


def integer(word: str) -> int:
    """A whole number in plain digits. ``int`` also takes spaces, underscores and the digits of other scripts.

    :raises ArgumentTypeError: it is none.
    """
    if not re.fullmatch(r"-?[0-9]{1,18}", word):
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number; write it in digits, like 12")
    return int(word)


def seconds(word: str) -> float:
    """Parse "5s", "1.5s", "10m", "2h", "7d" or "250ms" into seconds. A number without a unit is seconds."""
    found = to_seconds(word)
    if found is None:
        raise argparse.ArgumentTypeError(f"{word!r} is not a time; write 5s, 250ms, 10m, 2h or 7d")
    return found


def since(word: str) -> str | float:
    """Parse a cursor of an event, which has a dash, or a time ago such as "5m"."""
    return word if "-" in word else seconds(word)


def seconds_or_off(word: str) -> float | None:
    """Parse a time as above, or "off"."""
    return None if word == "off" else seconds(word)


def moment(word: str) -> datetime:
    """Parse a time with its offset, such as "2030-01-31T08:00:00+01:00"."""
    try:
        value = datetime.fromisoformat(word)
    except ValueError:
        value = None
    if value is None or value.utcoffset() is None:
        raise argparse.ArgumentTypeError(
            f"{word!r} is not a time with an offset; write it like 2030-01-31T08:00:00+01:00"
        )
    return value


def by_when(word: str) -> float | datetime:
    """A time from now on such as "10m", or a moment with its offset."""
    found = to_seconds(word)
    if found is not None:
        return found
    try:
        return moment(word)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{word!r} is not a time; write 5s, 10m, 2h or 7d, or a moment such as 2030-01-31T08:00:00+01:00"
        ) from None


def positive_seconds(word: str) -> float:
    """A time above zero."""
    found = seconds(word)
    if not found:
        raise argparse.ArgumentTypeError(f"{word!r} is not a time above 0; write it like 500ms")
    return found


def rate(word: str) -> Rate:
    """ "100/1m" or "100/1m/20": a count, a time, and how many may start at once; or costs: "90000/1m/900/tokens"."""
    count, _, rest = word.partition("/")
    per, _, rest = rest.partition("/")
    burst, _, unit = rest.partition("/")
    try:
        if word.endswith("/"):
            integer("")
        return Rate(integer(count), per=seconds(per), burst=integer(burst or "1"), unit=unit or None)
    except (argparse.ArgumentTypeError, InvalidJob) as error:
        raise argparse.ArgumentTypeError(
            f"{word!r}: it takes COUNT/TIME, COUNT/TIME/BURST or COUNT/TIME/BURST/UNIT, such as 100/1m/20"
        ) from error


def number(word: str) -> float:
    """A number of 0 or more. ``float`` takes much more, such as nan."""
    if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?", word):
        raise argparse.ArgumentTypeError(f"{word!r:.80} is not a number of 0 or more; write it like 2 or 0.5")
    return float(word)


def cost(word: str) -> tuple[str, int]:
    """ "tokens=500": a unit and a number."""
    unit, _, number = word.partition("=")
    try:
        return unit, whole(0)(number) if unit else integer("")
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{word!r}: it takes UNIT=N, such as tokens=500") from None


def whole(least: int) -> Callable[[str], int]:
    """A whole number, not below ``least``."""

    def number(word: str) -> int:
        try:
            value = integer(word)
        except argparse.ArgumentTypeError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{word!r} is not a whole number of {least} or more")
        return value

    return number


def whole_or_any(word: str) -> int | str:
    """A whole number from 0 on, or "any"."""
    return word if word == "any" else whole(0)(word)


def weight(word: str) -> tuple[str, int]:
    """Parse "email=3" into the queue's name and its weight."""
    name, _, number = word.partition("=")
    try:
        return name, whole(1)(number) if name else integer("")
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{word!r} is not a weight; write QUEUE=N with a whole number N of 1 or more"
        ) from None


def attempts(word: str) -> int | str:
    """Parse a number of runs, or "unlimited"."""
    if word == "unlimited":
        return word
    try:
        return integer(word)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{word!r} is not a number of runs; write a whole number or unlimited"
        ) from None


def backoff(word: str) -> Backoff:
    """ "fixed:5s", "exponential:1s:1h" (first delay, longest delay), or a list of delays: "1s,5s,1m"."""
    kind, colon, rest = word.partition(":")
    times = rest.split(":")
    try:
        if not colon and kind not in ("fixed", "exponential"):
            return Backoff(delays=[seconds(time) for time in word.split(",")])
        if kind == "fixed" and colon and len(times) == 1:
            return Backoff("fixed", seconds(times[0]))
        if kind == "exponential" and colon and len(times) <= 2:
            delay, *longest = [seconds(time) for time in times]
            return Backoff(delay=delay, max=longest[0] if longest else max(delay, 3600.0))
    except InvalidJob as error:
        raise argparse.ArgumentTypeError(f"{word!r}: {error}") from None
    raise argparse.ArgumentTypeError(
        f"{word!r} is not a backoff; write fixed:DELAY, exponential:DELAY[:LONGEST] or DELAY,DELAY,..."
    )


def json(word: str) -> msgspec.Raw:
    """A JSON document, unchanged. "-" reads it from stdin."""
    text = sys.stdin.read() if word == "-" else word
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"this is not JSON: {error}") from None
    return msgspec.Raw(text.strip().encode())


def payload(word: str) -> msgspec.Raw:
    """The arguments of a handler: a JSON object, unchanged. "-" reads it from stdin."""
    document = json(word)
    if not bytes(document).startswith(b"{"):
        raise argparse.ArgumentTypeError("the payload is not a JSON object; write the handler's arguments by name")
    return document


def payloads(name: str) -> list[msgspec.Raw]:
    """The payloads of a file, one a line. "-" reads them from stdin. Empty lines are left out."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text()
    except (OSError, UnicodeError) as error:
        raise argparse.ArgumentTypeError(f"{name!r} cannot be read: {error}") from None
    found: list[msgspec.Raw] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if line.strip() == "-":
            raise argparse.ArgumentTypeError(f"line {number}: this is not JSON")
        try:
            found.append(payload(line))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"line {number}: {error}") from None
    return found


def json_object(word: str) -> dict[str, object]:
    """A JSON object."""
    try:
        return msgspec.json.decode(word, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"this is not a JSON object: {error}") from None
