"""The JSON form of users' values: payloads, metadata, results, progress.

Everybody must be able to read what is stored. msgspec encodes two things that break this: it copies the bytes of a
``msgspec.Raw`` even if they are not JSON, and it writes NaN and the infinities as ``null``, so that another value is
read than was written. This module refuses both.
"""

from __future__ import annotations

import sys
from enum import Enum
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection

DEPTH_MAX: Final = 500
"""Levels of arrays and objects in a value that no encoder made."""
_SCALARS: Final = frozenset((type(None), bool, int, str))
_LEAVES: Final = _SCALARS | {float, bytes, bytearray, msgspec.Raw}


def encode_hook(value: Any) -> Any:
    """Called by msgspec for values that it does not know. A pydantic model becomes what its class can read again.

    :raises TypeError: the value is not a pydantic model.
    """
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or not isinstance(value, pydantic.BaseModel):
        raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")
    return value.model_dump(mode="json", by_alias=True, round_trip=True)


_encode = msgspec.json.Encoder(enc_hook=encode_hook).encode


def encode(value: Any) -> bytes:
    """A value as JSON.

    :raises TypeError: it cannot be encoded as JSON.
    :raises ValueError: it holds NaN or an infinity, or a ``msgspec.Raw`` that is not one JSON value.
    """
    data = _encode(value)
    if type(value) in _SCALARS:
        return data
    if _holds_raw(value):
        check_sound(data)
    if b"null" in data:
        refuse_non_finite(value)
    return data


def check_sound(data: bytes | msgspec.Raw) -> None:
    """Check JSON that was not made by an encoder. All of it is read: what only skips over it accepts 1e999.

    :raises ValueError: not everybody could read it.
    """
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"a msgspec.Raw in it is not one JSON value: {error}") from None
    text = bytes(data)
    if text.count(b"[") + text.count(b"{") > DEPTH_MAX and deeper_than(value, DEPTH_MAX):
        # The limit of a Python decides how deep its decoder can read, and it differs between versions.
        raise ValueError(
            f"a msgspec.Raw in it is not one JSON value that everybody can read: it has more than {DEPTH_MAX} levels"
        )


def deeper_than(value: Any, most: int) -> bool:
    """Whether a decoded value has more levels of arrays and objects than ``most``."""
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


def _holds_raw(value: Any) -> bool:
    found: list[Collection[Any]] = [(value,)]
    while found:
        values = found.pop()
        kinds = set(map(type, values))
        if msgspec.Raw in kinds:
            return True
        if not kinds <= _LEAVES:
            found += [_inside(one) for one in values if type(one) not in _LEAVES]
    return False


def refuse_non_finite(value: Any) -> None:
    """Search a value for NaN and the infinities, which would be encoded as ``null``.

    It is slow. Call it only if the encoded value contains ``null``.

    :raises ValueError: the value contains NaN or an infinity.
    """
    found: list[Collection[Any]] = [(value,)]
    while found:
        values = found.pop()
        kinds = set(map(type, values))
        if float in kinds:
            for one in values:
                if type(one) is float and not isfinite(one):
                    raise ValueError(f"{one} cannot be encoded as JSON; use None or a text in its place")
        if not kinds <= _LEAVES:
            found += [_inside(one) for one in values if type(one) not in _LEAVES]


def _inside(value: Any) -> Collection[Any]:
    """The parts of a value that msgspec would encode."""
    if isinstance(value, dict):
        return cast("dict[Any, Any]", value).values()
    if isinstance(value, list | tuple | set | frozenset):
        return cast("Collection[Any]", value)
    if isinstance(value, Enum) or hasattr(cast("object", value), "model_dump"):
        return (value.value if isinstance(value, Enum) else encode_hook(value),)
    if isinstance(value, msgspec.Struct):
        return [getattr(value, name) for name in value.__struct_fields__]
    if fields := getattr(value, "__dataclass_fields__", None):
        return [getattr(value, name, None) for name in fields]
    return [getattr(value, field.name, None) for field in getattr(value, "__attrs_attrs__", ())]
