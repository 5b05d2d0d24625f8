"""Shares of a queue's own rule: how many slots and tokens each partition may use of those of the whole queue.

No partition knows how many jobs run in the others. So one worker at a time looks at all of them, lowers the shares of
those that need less, and only then raises others, by no more than is free. All shares together, and the running jobs
of partitions whose share was lowered below these, never exceed the rule.
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, NamedTuple

from jobq.engine.model.limits import Band, Rule, parse_rule

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCKED = Rule(concurrency=0)
"""The share of a partition that may start nothing now."""
KEPT = 20
"""One part in so many of the rule is kept for partitions without jobs, so that a first job need not wait."""


class Usage(NamedTuple):
    """What a partition uses.

    ``running``: slots of its running jobs. ``waiting``: jobs that could start. ``share``: what it may use; None if it
    has no share of the rule of now.
    """

    running: int
    waiting: int
    share: Rule | None


def fair(total: int, needs: Sequence[int], turn: int = 0) -> list[int]:
    """Divide ``total`` max-min fairly: nobody gets more than it needs while another one that needs more has less.

    The algorithm is progressive filling (Bertsekas and Gallager, Data Networks, section 6.5.2). What nobody needs is
    spread evenly. ``turn``: with whom odd ones begin, so that with fewer than there are takers each gets its turn.
    """
    count = len(needs)
    order = [(number + turn) % count for number in range(count)]
    given = [0] * count
    left = total
    by_need = sorted(order, key=lambda number: needs[number])
    for place, number in enumerate(by_need):
        given[number] = min(needs[number], left // (count - place))
        left -= given[number]
    for number in order:
        if left and given[number] < needs[number]:
            given[number] += 1
            left -= 1
    even, odd = divmod(left, count)
    for place, number in enumerate(order):
        given[number] += even + (place < odd)
    return given


def goals(rule: Rule, usages: Sequence[Usage], turn: int) -> list[Rule]:
    """The share that each partition should have."""
    slots: Sequence[int | None] = [None] * len(usages)
    if rule.concurrency is not None:
        kept = rule.concurrency // KEPT // len(usages)
        slots = fair(rule.concurrency, [max(kept, one.running + one.waiting) for one in usages], turn)
    bursts: list[list[int]] = []
    for band in rule.rate:
        kept = band.burst // KEPT // len(usages)
        bursts.append(fair(band.burst, [max(kept, one.waiting) for one in usages], turn))
    return [share_of(rule, slots[number], [burst[number] for burst in bursts]) for number in range(len(usages))]


def share_of(rule: Rule, slots: int | None, bursts: Sequence[int]) -> Rule:
    """So many slots and tokens of a rule. Its rates are the same part of the whole as its tokens are."""
    if slots == 0 or 0 in bursts:
        return BLOCKED
    bands: list[Band] = []
    for band, burst in zip(rule.rate, bursts, strict=True):
        count, per = band.count * burst, band.per * band.burst
        common = gcd(count, per)
        bands.append(Band(count // common, per // common, burst))
    return Rule(slots, tuple(bands))


def lowered(rule: Rule, share: Rule | None, goal: Rule) -> Rule:
    """The smaller of both in each respect."""
    if share is None:
        return BLOCKED
    slots = None if rule.concurrency is None else min(share.concurrency or 0, goal.concurrency or 0)
    return share_of(
        rule, slots, [min(pair) for pair in zip(bursts_of(rule, share), bursts_of(rule, goal), strict=True)]
    )


def bursts_of(rule: Rule, share: Rule) -> list[int]:
    """The tokens of a share in each band of the rule. A share that is blocked has none."""
    return [band.burst for band in share.rate] if len(share.rate) == len(rule.rate) else [0] * len(rule.rate)


def raised(rule: Rule, usages: Sequence[Usage], wanted: Sequence[Rule]) -> list[Rule]:
    """The shares once they were lowered, raised towards ``wanted`` by what is free."""
    shares = [one.share or BLOCKED for one in usages]
    taken = [max(one.running, share.concurrency or 0) for one, share in zip(usages, shares, strict=True)]
    free = (rule.concurrency or 0) - sum(taken)
    bursts = [bursts_of(rule, share) for share in shares]
    free_bursts = [band.burst - sum(burst[at] for burst in bursts) for at, band in enumerate(rule.rate)]
    result: list[Rule] = []
    for number, (share, goal) in enumerate(zip(shares, wanted, strict=True)):
        slots = None
        if rule.concurrency is not None:
            slots = share.concurrency or 0
            more = min(max(0, (goal.concurrency or 0) - slots), max(0, free))
            slots += more
            # Jobs that run beyond its share have some of these slots already.
            free -= max(0, slots - taken[number])
        for at, burst in enumerate(bursts_of(rule, goal)):
            more = min(max(0, burst - bursts[number][at]), max(0, free_bursts[at]))
            free_bursts[at] -= more
            bursts[number][at] += more
        result.append(share_of(rule, slots, bursts[number]))
    return result


def read_usage(reply: Sequence[bytes | int], whole: str) -> Usage:
    """From a reply of share.lua."""
    running, waiting, share, of = reply[:4]
    assert isinstance(running, int)
    assert isinstance(waiting, int)
    assert isinstance(share, bytes)
    assert isinstance(of, bytes)
    text = share.decode(errors="replace")
    # A queue that had one partition has no share yet. Then its rule is the whole.
    known = of.decode(errors="replace") == whole or (not of and text == whole)
    return Usage(running, waiting, parse_rule(text) if known else None)
