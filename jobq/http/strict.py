"""JSON that every parser reads alike, or none at all.

msgspec refuses NaN, lone surrogates, raw control characters and trailing commas, but a ``msgspec.Raw`` is
only skipped, not read: bytes that are no UTF-8 and numbers beyond a double pass. And like most parsers it
lets the last of two equal keys win. What is stored here is read later by a worker in another process, so it
has to be sound before it is accepted.
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

import msgspec

MAX_DEPTH: Final = 100
"""Levels of arrays and objects. Far below any parser's recursion limit, whatever its caller's stack looks
like."""

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class BadJSON(ValueError):
    """The text is not JSON, or it is JSON that parsers read differently."""


def check_json(text: bytes) -> None:
    """Refuse what is not sound JSON.

    :raises BadJSON: saying what is wrong and where.
    """
    if not text.strip():
        raise BadJSON("the body is empty; send a JSON document")
    try:
        value = _decode(text)
        # One colon per key, as long as none hides behind an escape: written anew, a document whose keys are
        # unique has as many as before. Anything else is looked at slowly.
        if b"\\u003" in text or _encode(value).count(b":") != text.count(b":"):
            json.loads(text, object_pairs_hook=_unique)
        if text.count(b"[") + text.count(b"{") > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
            _too_deep()
    except RecursionError:
        _too_deep()
    except UnicodeDecodeError as error:
        raise BadJSON(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except msgspec.ValidationError as error:
        raise BadJSON(f"{error}: send numbers beyond a double as strings") from None
    except msgspec.DecodeError as error:
        raise BadJSON(f"{error}") from None


def _too_deep() -> NoReturn:
    raise BadJSON(f"the body is nested deeper than {MAX_DEPTH} levels; flatten it or send it as a string") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise BadJSON(f"the key {key[:80]!r} stands twice in one object; which one counts differs between parsers")
        seen[key] = value
    return seen


def _deeper_than(value: Any, most: int) -> bool:
    level: list[Any] = [value]
    for _ in range(most):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
            elif isinstance(item, list):
                inner += item
        level = inner
    return any(isinstance(item, dict | list) for item in level)
