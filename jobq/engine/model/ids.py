"""Job ids. They are short, unique and ordered by time. The producer makes them, so repeating an enqueue is harmless.

    0htk3v9c2   004    7qm2x
    |           |      +-- 5 digits: the maker of the id (25 random bits)
    |           +--------- 3 digits: counter of the maker
    +--------------------- 9 digits: unix ms

The digits are Crockford's base 32 in lower case (https://www.crockford.com/base32.html). They sort like their values.
The ids of one maker only grow, so they are unique. Ids of two makers can be equal if both drew the same 25 bits and
their counters met in the same millisecond. enqueue.lua notices it, and the producer draws another id.

Users may give ids of their own: 1 to 64 characters that a URL can contain without encoding.

In a queue of several partitions an id ends with the number of its partition: ``0htk3v9c20047qm2x~3``. An id without
such an ending belongs to partition 0.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from typing import Final

_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [a + b for a in _DIGITS for b in _DIGITS]
_TRIPLES = [a + b for a in _DIGITS for b in _PAIRS]
_PYTHONS = "0123456789abcdefghijklmnopqrstuv"
_TO_PYTHONS = bytes(
    ord(_PYTHONS[_DIGITS.index(chr(byte))]) if chr(byte) in _DIGITS else ord("~") for byte in range(256)
)
"""Translates these digits to those that ``int`` reads, and everything else to a character that it refuses."""
LENGTH: Final = 17
COUNTS: Final = 1 << 15
"""Values of the counter."""
PARTITIONS_MAX: Final = 256
"""Partitions of a queue."""
_ID = re.compile(r"[A-Za-z0-9._~-]{1,64}")
_PARTITION = re.compile(r"~([1-9][0-9]{0,2})$")


class IdMaker:
    """Makes ids that only grow. It must be used by one thread only, and not after a fork."""

    def __init__(self) -> None:
        self.ms = -1
        """The time in the last id, unix ms."""
        self.redraw()

    def redraw(self) -> None:
        """Draw the random digits again."""
        bits = secrets.randbits(25)
        self._node = _TRIPLES[bits >> 10] + _PAIRS[bits & 1023]
        self._count = secrets.randbits(15)

    def new(self, ms: int) -> str:
        """A new id that sorts by ``ms``, unix time.

        If the clock stands or goes back and the counter is used up, the id contains a later time, so that ids grow.
        """
        self._count = count = self._count + 1
        if ms > self.ms:
            self._set(ms)
            self._count = count = count & (COUNTS - 1)
        elif count >= COUNTS:
            self._set(self.ms + 1)
            self._count = count = 0
        return self._stamp + _TRIPLES[count] + self._node

    def _set(self, ms: int) -> None:
        self.ms = ms
        self._stamp = _TRIPLES[ms >> 30 & 32767] + _TRIPLES[ms >> 15 & 32767] + _TRIPLES[ms & 32767]


OPEN: Final = "?"
"""The end of an id whose partition is not chosen yet. No id contains it."""


class OpenIds(IdMaker):
    """Makes ids for a queue of several partitions. The partition is chosen last, when the job has its keys."""

    def redraw(self) -> None:
        """Draw the random digits again. The open end is kept with them, so that making an id costs nothing more."""
        super().redraw()
        self._node += OPEN


class _Makers(threading.local):
    def __init__(self) -> None:
        self.maker = IdMaker()


_makers = _Makers()


def _forget_parent() -> None:
    global _makers  # noqa: PLW0603 - each process has its own makers
    _makers = _Makers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)


def new_id() -> str:
    """A new job id, for ``id=``. Make the id first if you may have to repeat an enqueue.

    The ids of one thread only grow.
    """
    return _makers.maker.new(time.time_ns() // 1_000_000)


def time_of(job_id: str | bytes) -> int:
    """The unix time in ms at which an id was made. 0 if the id was not made by jobq."""
    if len(job_id) != LENGTH and (len(job_id) > LENGTH + 4 or not partition_of(job_id, LENGTH)):
        return 0
    try:
        stamp = (job_id.encode() if isinstance(job_id, str) else job_id)[:9]
        return int(stamp.translate(_TO_PYTHONS), 32)
    except ValueError:
        return 0


def is_id(text: object) -> bool:
    """Whether a value can be the id of a job."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def partition_of(job_id: str | bytes, length: int | None = None) -> int:
    """The partition that an id names. ``length``: only if so many characters stand before its ending.

    An ending beyond the most partitions that a queue can have belongs to an id of a user.
    """
    text = job_id if isinstance(job_id, str) else job_id.decode(errors="replace")
    found = _PARTITION.search(text, max(0, len(text) - 4))
    if found is None or (length is not None and found.start() != length):
        return 0
    number = int(found[1])
    return number if number < PARTITIONS_MAX else 0


def in_partition(job_id: str, partition: int) -> str:
    """The id that names this partition."""
    return f"{job_id}~{partition}" if partition else job_id
