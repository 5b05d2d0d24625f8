"""Accepts only JSON that all parsers read in the same way.

msgspec refuses NaN, lone surrogates, raw control characters and trailing commas. But it skips a ``msgspec.Raw``
without reading it, so bytes that are not UTF-8 and numbers beyond a double pass. Like most parsers it also lets the
last of two equal keys win. A payload is read later by a worker in another process, so it must be sound before it is
accepted.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobq.engine.model.encoding import deeper_than

if TYPE_CHECKING:
    from collections.abc import Collection

PIECE: Final = 1 << 16
"""Bytes that are checked without a pause. That takes about 2 ms."""
_MOST_VALUES: Final = 1 << 13
MAX_DEPTH: Final = 100
"""Levels of arrays and objects. This is far below every parser's recursion limit, even when its caller's stack is
deep."""

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_outermost = msgspec.json.Decoder(list[msgspec.Raw] | dict[str, msgspec.Raw]).decode


class BadJSON(ValueError):
    """The text is not JSON, or it is JSON that parsers read differently."""


async def check_body(text: bytes, level: int = 0) -> None:
    """As ``check_json``, but in pieces, so that other requests are served while a large text is checked.

    ``level``: how deep in a larger text it stands.

    :raises BadJSON: saying what is wrong.
    """
    if len(text) <= PIECE:
        check_json(text, level)
        return
    values = _split(text, level)
    await asyncio.sleep(0)
    if values is None:
        await asyncio.to_thread(check_json, text, level)
        return
    small: list[msgspec.Raw] = []
    size = 0
    for value in values:
        if len(value) > PIECE:
            await check_body(bytes(value), level + 1)
            continue
        small.append(value)
        size += len(value)
        if size > PIECE or len(small) == _MOST_VALUES:
            check_json(b"[%b]" % b",".join(small), level)
            await asyncio.sleep(0)
            small.clear()
            size = 0
    check_json(b"[%b]" % b",".join(small), level)


def _split(text: bytes, level: int) -> Collection[msgspec.Raw] | None:
    """The values of an array, or of an object whose keys are unique. None if the text must be checked as a whole."""
    try:
        found: list[msgspec.Raw] | dict[str, msgspec.Raw] = _outermost(text)
    except msgspec.ValidationError:
        return None  # The text is one long string or number.
    except REFUSALS as error:
        raise refusal(error) from None
    if level >= MAX_DEPTH:
        raise _too_deep()
    if isinstance(found, list):
        return found
    # Count colons as check_json does. Values are copied verbatim, so only an escape in a key here can hide one.
    if b"\\u003" in text and any(":" in key for key in found):
        return None
    if _encode(found).count(b":") != text.count(b":"):
        return None  # check_json reports which key is there twice.
    return found.values()


def check_json(text: bytes, level: int = 0) -> None:
    """Refuse what is not sound JSON. ``level``: how deep in a larger text it stands.

    :raises BadJSON: saying what is wrong and where.
    """
    if not text.strip():
        raise BadJSON("the body is empty; send a JSON document")
    most = MAX_DEPTH - level
    try:
        value = _decode(text)
        # A document has one colon per key, unless an escape hides one. If all keys are unique, the document encoded
        # again has as many colons as before. Otherwise the slow check decides.
        if b"\\u003" in text or _encode(value).count(b":") != text.count(b":"):
            json.loads(text, object_pairs_hook=_unique)
        # Each level takes two characters.
        if len(text) > 2 * most and text.count(b"[") + text.count(b"{") > most and deeper_than(value, most):
            raise _too_deep()
    except REFUSALS as error:
        raise refusal(error) from None


REFUSALS: Final = (RecursionError, UnicodeDecodeError, msgspec.DecodeError)
"""The exceptions that msgspec raises for a text that it cannot read."""


def refusal(error: Exception) -> BadJSON:
    """The error that tells the client about one of ``REFUSALS``."""
    if isinstance(error, RecursionError):
        return _too_deep()
    if isinstance(error, UnicodeDecodeError):
        return BadJSON(f"the body is not UTF-8: {error.reason} at byte {error.start}")
    if isinstance(error, msgspec.ValidationError):
        return BadJSON(f"{error}: send numbers beyond a double as strings")
    return BadJSON(f"{error}")


def _too_deep() -> BadJSON:
    return BadJSON(f"the body is nested deeper than {MAX_DEPTH} levels; flatten it or send it as a string")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise BadJSON(f"the key {twice[:80]!r} is there twice in one object; parsers would read different values")
    return found
