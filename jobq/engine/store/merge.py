"""Makes one reply of those of all partitions. Each function takes the replies in the order of the partitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobq.engine.model.breaker import state_of
from jobq.engine.model.history import read_arrivals, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Replies = Sequence[Any]

_SIZES = range(1, 8)
"""The sizes of the states in a reply of stats.lua."""


def first(replies: Replies) -> Any:
    """The reply of the first partition, which tells of the whole queue."""
    return replies[0]


def largest(replies: Replies) -> Any:
    """The largest number. A caller that pages goes on as long as any partition had a full page."""
    return max(replies)


def changed(replies: Replies) -> list[str]:
    """One word: the state of those that were changed, or '' if none was."""
    return [next((word for reply in replies for word in reply if word), "")]


def latest(replies: Replies) -> bytes:
    """Until when the key was closed, at the latest."""
    return max(replies, key=lambda reply: float(reply or 0))


def lapsed(replies: Replies) -> list[Any]:
    """Whether more jobs may be late, and the ids of all."""
    return [max(reply[0] for reply in replies), *(job_id for reply in replies for job_id in reply[1:])]


def dropped(replies: Replies) -> list[int]:
    """Jobs of all partitions. Workers and schedules are those of the first one, where all of them are."""
    _, workers, schedules, _ = replies[0]
    return [sum(reply[0] for reply in replies), workers, schedules, min(reply[3] for reply in replies)]


def stats(replies: Replies) -> list[Any]:
    """Sizes and counts are added. The oldest jobs are those of all partitions."""
    merged = list(replies[0])
    for place in _SIZES:
        merged[place] = sum(reply[place] for reply in replies)
    merged[9] = max((reply[9] for reply in replies), key=lambda until: whole(until or b""))
    merged[11] = [word for reply in replies for word in reply[11]]
    merged[12] = min((reply[12] for reply in replies if reply[12]), key=float, default=None)
    merged[13] = _added([reply[13] for reply in replies])
    merged[14] = b"\n".join(reply[14] for reply in replies)
    merged[15] = [word for reply in replies for word in reply[15]]
    return merged


def numbers(replies: Replies) -> list[Any]:
    """Counts are added. If the types were listed, each is listed once."""
    now = replies[0][0]
    new = sum(whole(reply[1]) for reply in replies)
    arrivals = [read_arrivals(reply[0], reply[2], reply[3]) for reply in replies]
    arrived = sum(one.total for one in arrivals)
    # Each partition has notes of other moments. One note that gives the same rate stands for all of them.
    rate = sum(one.per_second() for one in arrivals)
    note = b"%d:%d" % (now - 60_000, arrived - round(rate * 60)) if rate else b""
    found = [reply[4] for reply in replies]
    if all(isinstance(word, bytes) for flat in found for word in flat):
        listed = list({name: None for flat in found for name in flat})
        return [now, b"%d" % new, b"%d" % arrived, note, listed]
    flat: list[Any] = []
    for place in range(0, len(found[0]), 2):
        flat += (b"\n".join(of[place] for of in found), _added([of[place + 1] for of in found]))
    return [now, b"%d" % new, b"%d" % arrived, note, flat]


def demand(replies: Replies) -> list[Any]:
    """Jobs are added. A key is in one partition, but "queue" and the keys of breakers are in each."""
    merged = list(replies[0])
    for place in (1, 2, 3, 4):
        merged[place] = sum(reply[place] for reply in replies)
    merged[6] = [word for reply in replies for word in reply[6]]
    keys: dict[bytes, list[Any]] = {}
    for reply in replies:
        for key, rule, count, shut in zip(*[iter(reply[7])] * 4, strict=True):
            if key in keys:
                keys[key][2] += count
                keys[key][3] = max(keys[key][3], shut)
            else:
                keys[key] = [key, rule, count, shut]
    merged[7] = [word for four in keys.values() for word in four]
    return merged


def sample(replies: Replies) -> list[Any]:
    """The chosen jobs of each partition stand for all of its jobs."""
    sizes: dict[bytes, float] = {}
    for size, *pairs in replies:
        chosen = sum(pairs[1::2])
        for name, count in zip(pairs[::2], pairs[1::2], strict=True):
            sizes[name] = sizes.get(name, 0) + count * size / chosen
    return [sum(reply[0] for reply in replies), *(word for pair in sizes.items() for word in (pair[0], round(pair[1])))]


def groups(page: int) -> Callable[[Replies], list[Any]]:
    """The first ``page`` groups of all partitions, in the order of their names."""

    def merge(replies: Replies) -> list[Any]:
        rows: dict[bytes, list[Any]] = {}
        for reply in replies:
            for at in range(0, len(reply), 6):
                row = rows.get(reply[at])
                if row is None:
                    rows[reply[at]] = list(reply[at : at + 6])
                    continue
                row[1] += reply[at + 1]
                row[2] += reply[at + 2]
                if not row[4]:
                    row[4:] = reply[at + 4 : at + 6]
        return [word for name in sorted(rows)[:page] for word in rows[name]]

    return merge


def limits(width: int) -> Callable[[Replies], list[Any]]:
    """Rows of limits.lua for each rule (six words) or key (five words). Numbers of jobs are added."""
    counted = range(2, 4) if width == 6 else range(1, 3)

    def merge(replies: Replies) -> list[Any]:
        rows: dict[bytes, list[Any]] = {}
        for reply in replies:
            for at in range(0, len(reply), width):
                row = rows.get(reply[at])
                if row is None:
                    rows[reply[at]] = list(reply[at : at + width])
                    continue
                for place in counted:
                    row[place] += reply[at + place]
                if width == 6:
                    row[4] = _closed(row[4], reply[at + 4])
                for place in range(width - 1 if width == 6 else 3, width):
                    row[place] = latest([row[place], reply[at + place]])
        return [word for row in rows.values() for word in row]

    return merge


def _closed(one: bytes, other: bytes) -> bytes:
    """Keys that handlers and operators have closed. What operators close is closed in all partitions."""
    handlers, operators = zip(map(int, one.split()), map(int, other.split()), strict=True)
    return b"%d %d" % (sum(handlers), max(operators))


def breakers(replies: Replies) -> list[Any]:
    """The state of a breaker that began last holds in all partitions. The outcomes shown are those of the one in which
    most of the last runs failed, because it opens next."""
    rows: dict[bytes, list[Any]] = {}
    for _, flat in replies:
        for name, row, held, active in zip(*[iter(flat)] * 4, strict=True):
            known = rows.setdefault(name, [name, row, 0, 0])
            known[1] = max(known[1], row, key=_order)
            known[2] += held
            known[3] += active
    return [replies[0][0], [word for row in rows.values() for word in row]]


def _order(row: bytes) -> tuple[tuple[int, int], int, int]:
    outcomes = row.rpartition(b" ")[2]
    return state_of(row), outcomes.count(b"1"), len(outcomes)


def why(replies: Replies) -> list[Any]:
    """What is said of the queue alone. Workers serve all partitions, so those of the first one are all."""
    merged = list(replies[0])
    queue = merged[1] = list(merged[1])
    for place in range(4, 10):
        queue[place] = sum(int(reply[1][place] or 0) for reply in replies)
    queue[10] = min((reply[1][10] for reply in replies if reply[1][10]), key=float, default=None)
    merged[3] = max((reply[3] for reply in replies), key=lambda runs: len(runs[0]))
    merged[4] = [moment for reply in replies for moment in reply[4]]
    return merged


def _added(flats: list[list[bytes]]) -> list[bytes]:
    """Flat pairs of names and counts. A count that cannot be read stays as it is, so that its reader reports it."""
    found: dict[bytes, bytes] = {}
    for flat in flats:
        for name, count in zip(flat[::2], flat[1::2], strict=True):
            before = found.get(name)
            if before is None or not before.isdigit():
                found[name] = count
            elif count.isdigit():
                found[name] = b"%d" % (int(before) + int(count))
    return [word for pair in found.items() for word in pair]
