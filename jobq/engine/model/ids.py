"""Job ids: made by the producer, so that repeating an enqueue is harmless; short, time-ordered, unique.

    0htk3v9c2   004    7qm2x
    |           |      +-- 5 digits: which process (25 random bits, drawn again after a fork)
    |           +--------- 3 digits: counter of the process, wraps after 32,768
    +--------------------- 9 digits: unix ms

Digits are Crockford's base 32 in lower case (https://www.crockford.com/base32.html), whose order is the order of the
values. Two ids can only be equal when two processes drew the same 25 bits and made them in the same millisecond with
the same count; one process would have to make 32,768 ids in a millisecond.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from typing import Final

_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [a + b for a in _DIGITS for b in _DIGITS]
_TRIPLES = [a + b for a in _DIGITS for b in _PAIRS]
_PYTHONS = "0123456789abcdefghijklmnopqrstuv"
_TO_PYTHONS = bytes(
    ord(_PYTHONS[_DIGITS.index(chr(byte))]) if chr(byte) in _DIGITS else ord("~") for byte in range(256)
)
"""From these digits to those that ``int`` reads, and from anything else to none of them."""
LENGTH: Final = 17
_ID = re.compile(rf"[{_DIGITS}]{{{LENGTH}}}")


class _Process:
    node = ""
    count = 0
    ms = -1
    stamp = ""


_process = _Process()


def _draw_node() -> None:
    bits = secrets.randbits(25)
    _process.node = _TRIPLES[bits >> 10] + _PAIRS[bits & 1023]
    _process.count = secrets.randbits(15)


_draw_node()
os.register_at_fork(after_in_child=_draw_node)


def new_id(ms: int | None = None) -> str:
    """A new id; ``ms`` is the unix time in ms that it sorts by, by default the machine's."""
    if ms is None:
        ms = time.time_ns() // 1_000_000
    if ms != _process.ms:
        _process.ms = ms
        _process.stamp = _TRIPLES[ms >> 30 & 32767] + _TRIPLES[ms >> 15 & 32767] + _TRIPLES[ms & 32767]
    _process.count = count = (_process.count + 1) & 32767
    return _process.stamp + _TRIPLES[count] + _process.node


def time_of(job_id: str | bytes) -> int:
    """The unix time in ms that an id was made at; 0 when it has not the form of one."""
    if len(job_id) != LENGTH:
        return 0
    try:
        stamp = (job_id.encode() if isinstance(job_id, str) else job_id)[:9]
        return int(stamp.translate(_TO_PYTHONS), 32)
    except ValueError:
        return 0


def is_id(text: str) -> bool:
    """Whether the text has the form of an id."""
    return _ID.fullmatch(text) is not None
