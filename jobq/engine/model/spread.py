"""Over how many partitions a queue is spread, and which partition is the home of a job."""

from __future__ import annotations

import re
from binascii import crc32
from typing import TYPE_CHECKING, Final

import msgspec

from jobq.engine.model.ids import PARTITIONS_MAX
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from jobq.engine.model.entry import Entry

SCHEDULED: Final = "schedule:"
"""How the limit key of a schedule begins that runs one job at a time. All schedules are in partition 0."""
_STORED: Final = re.compile(r"(\d{1,3}) (\d{1,3}) (\d{1,3}) (code|operator)")


class Spread(msgspec.Struct, frozen=True, gc=False):
    """``count``: partitions that get new jobs. ``homes``: those of them that get jobs with keys, limits or a group.
    The first of these jobs decides their number (0: there was none), and then it never changes, so no key moves.
    ``most``: the most partitions that there ever were. All of them may have jobs. ``who``: who said so, "code" or
    "operator"; '' if nothing is stored."""

    count: int = 1
    homes: int = 1
    most: int = 1
    who: str = ""


def read_spread(stored: bytes | None) -> Spread:
    """As it is stored. What cannot be read counts as not stored."""
    found = _STORED.fullmatch((stored or b"").decode(errors="replace"))
    return Spread() if found is None else Spread(int(found[1]), int(found[2]), int(found[3]), found[4])


def check_partitions(count: int) -> int:
    """Check and return a number of partitions.

    :raises InvalidJob: it is out of range.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= PARTITIONS_MAX:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidJob(f"partitions is {count!r:.40}: it takes a whole number, 1 to {PARTITIONS_MAX}")
    return count


def has_home(entry: Entry) -> bool:
    """Whether the keys of a job, or its ``partition_by``, say where it goes.

    :raises InvalidJob: as for ``home_of``.
    """
    return home_of(entry, 1) is not None


def home_of(entry: Entry, homes: int) -> int | None:
    """The partition in which the jobs with the keys of this one are; None if it may be in any.

    ``partition_by`` alone decides if it is given. Otherwise a deduplication key comes before limit keys, these before a
    group, and an idempotency key is last. Breakers count in each partition for itself.

    :raises InvalidJob: its keys belong to different partitions.
    """
    _, _, options_row, _, uniqueness, partition_by = entry
    if partition_by is not None:
        return home(partition_by, homes)
    if not options_row and not uniqueness:
        return None
    first = options_row.partition("\v")[2].partition("\v")[0]
    lines = first.split("\n") if first else []
    own, _, request = uniqueness.partition("\n")
    # The value of a limit key decides, so all keys with the value of one field are together.
    keys = [line.partition(":")[2] or line for line in lines if not line.startswith(("@", "!", SCHEDULED))]
    if own:
        keys.append(own.split(" k:", 1)[1])
    exact = {home(key, homes) for key in keys}
    if any(line.startswith(SCHEDULED) for line in lines):
        exact.add(0)
    if len(exact) > 1:
        raise InvalidJob(
            "the keys of the job belong to different partitions of the queue, and each key is exact only in its own:"
            " take limit keys with the same value (such as limits by one field), or the deduplication key alone, or say"
            ' with partition_by="..." where the job goes: its keys then count among the jobs of that partition'
        )
    if exact:
        return exact.pop()
    if group := next((line for line in lines if line.startswith("@")), None):
        return home(group[1:], homes)
    return home(request.split(" i:", 1)[1], homes) if request else None


def home(key: str, homes: int) -> int:
    """The partition of a key. All programs must agree, so it is a checksum, and no hash of Python."""
    return crc32(key.encode()) % homes
