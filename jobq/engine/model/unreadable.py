"""Reads stored values that may be damaged, or written by another version of jobq.

A value that cannot be read must not hide other values, and must not keep its job from ending.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from jobq.engine.model.job import SLOTS_MAX, Spec

if TYPE_CHECKING:
    from collections.abc import Callable

_spec = msgspec.json.Decoder(Spec).decode
_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_fields = {field.encode_name: field for field in msgspec.structs.fields(Spec)}

UNREADABLE_SHOWN: Final = 200
"""Characters shown of a stored value that cannot be read."""

FAULTS = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, LookupError)
"""Exceptions that reading a damaged row may raise. ``UnicodeDecodeError`` is a ``ValueError``."""

T = TypeVar("T")


def read_spec(raw: bytes) -> Spec:
    """The spec of a job, for the worker that runs it.

    :raises msgspec.MsgspecError: this version of jobq cannot read the row.
    """
    return _spec(raw)


def slots_of(weight: bytes | None) -> int:
    """The slots of a row of ``weights``. A job without a row takes one, and so does one with a damaged row."""
    first = (weight or b"").partition(b"\n")[0]
    return int(first) if first.isdigit() and 0 < int(first[:9]) <= SLOTS_MAX else 1


UNREADABLE: Final = Spec(type="?", at=0, attempts=1)
"""Used in place of a spec that cannot be read. Its job must still end, and operators must still see it."""


class Unreadable:
    """Collects the unreadable columns of one row, so that one damaged column does not hide the others."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def read(self, column: str, raw: bytes | None, decode: Callable[[bytes], T], otherwise: T) -> T:
        """The decoded value, or ``otherwise`` if there is no value or it cannot be read."""
        if raw is None:
            return otherwise
        try:
            return strictly(decode, raw)
        except FAULTS:
            self.found[column] = shown(raw)
            return otherwise

    def spec(self, raw: bytes | None) -> Spec:
        """The spec. If another version wrote it or it is damaged: every field that can be read."""
        if raw is None:
            # The job is in a set and is counted. It is shown, so that an operator can remove it.
            self.found["spec"] = "it is missing"
            return UNREADABLE
        try:
            return strictly(_spec, raw or b"")
        except FAULTS:
            pass
        try:
            parts = _object(raw or b"")
        except FAULTS:
            self.found["spec"] = shown(raw or b"")
            return UNREADABLE
        values: dict[str, Any] = {}
        for name, part in parts.items():
            if field := _fields.get(name):
                otherwise = getattr(UNREADABLE, field.name)
                decoder = msgspec.json.Decoder(field.type)
                values[field.name] = self.read(name, bytes(part), decoder.decode, otherwise)
        if "type" not in values:
            self.found["spec"] = shown(raw or b"")
        return msgspec.structs.replace(UNREADABLE, **values)


def strictly(decode: Callable[[bytes], T], raw: bytes) -> T:
    """Decode, and check that everything is UTF-8. msgspec does not check the text inside a ``Raw``."""
    raw.decode()
    return decode(raw)


def shown(raw: bytes) -> str:
    """A stored value that cannot be read, as a text that is cut and can always be encoded."""
    text = raw[:UNREADABLE_SHOWN].decode(errors="backslashreplace")
    return text if len(raw) <= UNREADABLE_SHOWN else f"{text}... ({len(raw)} bytes)"


def as_text(raw: bytes) -> str:
    """An id or a name as text, even if its bytes are not UTF-8."""
    return raw.decode(errors="backslashreplace")


def whole(raw: bytes) -> int:
    """A whole number as HINCRBY writes it."""
    count = int(raw)
    if not -(2**63) <= count < 2**63:
        raise OverflowError
    return count


NEVER_RUN: Final = (0, None, 0, 0)
"""The value of a job without a row in the attempts column."""


def read_attempts(raw: bytes | None) -> tuple[int, int | None, int, int]:
    """The number of charged runs, since when the job can run (unix ms), how often it was snoozed, and rate limited.

    None in place of the time stands for the job's enqueue and its delay.

    :raises ValueError: the row is damaged.
    """
    if raw is None:
        return NEVER_RUN
    charged, *rest = map(whole, raw.split(b" ", 3))
    since = rest[0] if rest else None
    return charged, since, rest[1] if len(rest) > 1 else 0, rest[2] if len(rest) > 2 else 0


def shown_attempts(raw: bytes | None) -> tuple[int, int | None, int, int]:
    """As ``read_attempts``, but a damaged row counts as absent, because the job must run or fail all the same."""
    try:
        return read_attempts(raw)
    except FAULTS:
        return NEVER_RUN
