"""How many workers a queue needs: from the rate of arrivals, the length of runs, and the jobs that wait.

Jobs that a limit holds need no worker. More workers would not start them.
"""

from __future__ import annotations

from math import ceil, inf, isfinite
from typing import Any, Final, NamedTuple

import msgspec

from jobq.engine.model.limits import Rule, parse_rule
from jobq.engine.model.unreadable import as_text

BUSY: Final = 0.8
"""The share of its slots that a worker should use. The rest is for what changes between two looks."""
BUSY_ENOUGH: Final = 0.7
"""Workers are removed only as far as the others then use less than this share. Without the difference to ``BUSY`` their
number would go up and down."""


class Scale(msgspec.Struct, frozen=True):
    """How many workers the queue needs, and why.

    ``replicas``: workers that are needed. ``workers``: those that are alive; ``idle_workers`` run no job now.
    ``slots``: jobs that a worker runs at a time. ``backlog``: jobs that could start now. ``held``: jobs that a limit or
    a paused group holds, which need no worker. ``arrivals_per_second``: of the last minutes. ``mean_seconds``: how long
    a run takes; None if none has ended. ``target``: seconds in which the backlog should be done.
    """

    queue: str
    replicas: int
    workers: int
    idle_workers: int
    slots: int
    backlog: int
    active: int
    held: int
    arrivals_per_second: float
    mean_seconds: float | None
    target: float


class Demand(NamedTuple):
    """The jobs of a queue that could run. ``backlog``: jobs that could start in the ``target`` time. ``held``: others
    that wait. ``most``: how many may run at once. ``limited``: a limit holds jobs back."""

    backlog: int
    active: int
    held: int
    most: float
    limited: bool


def read_demand(reply: list[Any], target: float) -> Demand:
    """The reply of demand.lua."""
    _, waiting, due, active, held, stopped, lines, flat = reply
    room: dict[str, float] = {}
    most = inf
    for key, text, count, shut in zip(*[iter(flat)] * 4, strict=True):
        rule = parse_rule(as_text(text)) or Rule()
        name = as_text(key)
        room[name] = 0.0 if shut else _room(rule, count, target)
        if name == "queue" and rule.concurrency is not None:
            most = rule.concurrency
    free = 0
    for line, jobs in zip(lines[::2], lines[1::2], strict=True):
        keys = [key for key in as_text(line).split("\n") if key and not key.startswith("@")]
        starts = min([jobs, *(room.get(key, inf) for key in keys)])
        for key in keys:
            room[key] = room.get(key, inf) - starts
        free += int(starts)
    if stopped is not None:
        return Demand(0, active, held + waiting + due, most, limited=True)
    ready = waiting + due + free
    # The rule of the whole queue lets so many of them start.
    starts = int(min(ready, max(0, room["queue"])))
    return Demand(starts, active, held - free + ready - starts, most, limited=held > free or ready > starts)


def _room(rule: Rule, count: int, target: float) -> float:
    """How many jobs a key lets start in the target time, while those that count under it run."""
    bands = [band.burst + band.count * target * 1000 / band.per for band in rule.rate if not band.unit]
    return min([inf if rule.concurrency is None else max(0, rule.concurrency - count), *bands])


class Load(NamedTuple):
    """What comes to a queue. ``arrivals`` and ``ended``: jobs per second of the last minutes."""

    arrivals: float
    ended: float
    mean: float | None
    """Seconds of a run."""


def replicas(demand: Demand, load: Load, *, workers: int, slots: int, target: float, least: int, most: int) -> int:
    """The number of workers that are needed."""
    # Jobs that come to a limit do not need workers at the rate at which they come.
    rate = min(load.arrivals, load.ended) if demand.limited else load.arrivals
    if load.mean is None:
        # Nobody knows how long a run takes. One worker finds out.
        needed = max(workers, 1) if demand.backlog or demand.active or rate else 0
    else:
        busy = min(rate * load.mean + demand.backlog * load.mean / target, demand.most) / slots
        out, into = _whole(busy / BUSY), _whole(busy / BUSY_ENOUGH)
        needed = out if out >= workers else min(workers, into)
        needed = max(needed, 1 if demand.backlog else 0)
    # Running jobs keep their workers: a stop would hand long ones back.
    needed = max(needed, _whole(min(demand.active / slots, workers)))
    return max(least, min(most, needed))


def _whole(number: float) -> int:
    return ceil(number - 1e-9) if isfinite(number) else 0
