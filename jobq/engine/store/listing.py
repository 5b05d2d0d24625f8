"""Lists the jobs of all partitions of a queue in one order: by score, by partition, and as each partition has them.

So one cursor, the score and the id of the last job, says for each partition where the next page begins.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jobq.engine.model.ids import partition_of, time_of
from jobq.engine.store.calls import Call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobq.engine.store.store import Store


_PLACES: Final = 1 << 42
"""Places of each priority in waiting. Each partition counts them for itself."""
_Listed = tuple[float, int, int, bytes]
"""A job in the order of a list: its score, its partition, its place there, and its id."""


class _Found(NamedTuple):
    """What one partition listed: its jobs with their scores, and where it stopped (None: at its end)."""

    jobs: list[tuple[float, bytes]]
    stopped: tuple[float, bytes] | None


async def page_of_all(parts: Sequence[Store], call: Call[Any]) -> Any:
    """The answer of page.lua for all partitions.

    :raises StoreError: the error of one of them.
    """
    reverse, limit, *_, score, last = call.args
    found = await asyncio.gather(*(_look(part, call, score, last) for part in parts))
    sign = -1 if reverse else 1
    # Behind the place where a partition stopped it may have more jobs. So the page ends at the first such place.
    ends = [(sign * one.stopped[0], number, one.stopped) for number, one in enumerate(found) if one.stopped is not None]
    end = min(ends, key=lambda one: one[:2], default=None)
    jobs = sorted(
        (sign * at, number, place, job_id)
        for number, one in enumerate(found)
        for place, (at, job_id) in enumerate(one.jobs)
    )
    if end is not None:
        jobs = [job for job in jobs if job[:2] <= end[:2]]
    most = int(limit)
    if len(jobs) > most:
        jobs = jobs[:most]
        at, _, _, job_id = jobs[-1]
        return [await _ids(parts[0], call, jobs), repr(sign * at).encode(), job_id]
    ids = await _ids(parts[0], call, jobs)
    if end is None:
        return [ids, b"", b""]
    at, job_id = end[2]
    return [ids, repr(at).encode(), job_id]


async def _ids(first: Store, call: Call[Any], jobs: list[_Listed]) -> list[bytes]:
    """The ids of the jobs of one page. Those that wait come by priority and enqueue, as in a queue of one partition."""
    counted = (call.keys or (b"",))[0].endswith((b":waiting", b":held")) and len({job[1] for job in jobs}) > 1
    if not counted or await first.command(b"HGET", first.keys["meta"], b"aging") not in (None, b"0"):
        return [job[3] for job in jobs]  # With aging the scores are times.
    return in_time(jobs)


def in_time(jobs: list[_Listed]) -> list[bytes]:
    """Jobs that wait, by priority and by the time in their ids. Jobs of one partition keep their order, because a
    retried one may come before older ones. A user's id has no time, and counts as the one before it."""
    lines: dict[int, list[tuple[float, int, bytes]]] = {}
    for score, partition, _, job_id in jobs:
        line = lines.setdefault(partition, [])
        line.append((score // _PLACES, time_of(job_id) or (line[-1][1] if line else 0), job_id))
    return [job_id for _, _, job_id in heapq.merge(*lines.values())]


async def _look(part: Store, call: Call[Any], score: Any, last: Any) -> _Found:
    column = (call.keys or (b"",))[0].decode().rpartition(":")[2]
    place = (score, last)
    if score != "" and partition_of(last) != part.partition:
        # The last job is in another partition. Jobs with its score come before it or behind it as their partition does.
        at = float(score)
        if part.partition < partition_of(last):
            at = math.nextafter(at, -math.inf if call.args[0] else math.inf)
        place = (repr(at), "")
    args = [*call.args[:5], *place]
    keys = (part.keys[column], part.keys["jobs"])
    ids, stopped_at, stopped = await part.do(Call("page", args, call.read, keys))
    if not ids:
        return _Found([], (float(stopped_at), stopped) if stopped else None)
    scores = await part.command(b"ZMSCORE", part.keys[column], *ids)
    jobs = [(float(at), job_id) for job_id, at in zip(ids, scores, strict=True) if at is not None]
    return _Found(jobs, (float(stopped_at), stopped) if stopped else None)
