"""When a job starts: an estimate from the facts, as docs/why.md describes it.

Each of these functions returns ms from now, or None if nobody can know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobq.engine.model.job import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jobq.engine.model.facts import JobFacts, KeyFacts, QueueFacts
    from jobq.engine.model.limits import Band
    from jobq.engine.model.views import JobBrief


def latest(moments: Iterable[float | None]) -> float | None:
    """The last of several moments that must all have come. None if one of them is not known."""
    found = list(moments)
    known = [moment for moment in found if moment is not None]
    return None if len(known) < len(found) else max(known, default=0.0)


def until_free(ahead: int, places: int, busy: int, ages: Sequence[float], usual: float | None) -> float | None:
    """When a place is free for a job that has so many others before it.

    ``places`` is how many jobs run at once, ``busy`` how many run now, and ``ages`` how long some of these have run.
    Each place is taken again at once, for the usual time. A run that takes longer than usual is taken to go on for as
    long as it has been late.
    """
    if places < 1:
        return None
    free = max(0, places - busy)
    if ahead < free:
        return 0.0
    if usual is None:
        return None
    left = sorted(abs(usual - age) for age in ages) or [usual / 2]
    taken = places - free
    rounds, place = divmod(ahead + max(0, busy - places), places)
    first = 0.0 if place < free else left[min(len(left) - 1, (place - free) * len(left) // taken)]
    return first + rounds * usual


def until_token(bands: Sequence[Band], facts: KeyFacts, now: int, ahead: int, costs: dict[str, int]) -> float:
    """When the rates of a key have a token for a job that has so many others before it. These cost what it costs."""
    moment = float(now)
    for band, arrival in zip(bands, facts.arrivals, strict=False):
        interval = band.per / band.count
        cost = costs.get(band.unit, 1) if band.unit else 1
        taken, needs = (facts.unspent + ahead) * cost, min(cost, band.burst)
        moment = max(moment, arrival.moment(band, now) + (taken + needs - band.burst) * interval)
    return moment - now


def until_key(key: KeyFacts, job: JobFacts, now: int, usual: float | None) -> float | None:
    """When a limit key has room for the job."""
    if key.name.startswith("!"):
        if key.closed_until == 0:
            return 0.0
        # One job finds out whether the type works again. What comes behind it depends on that.
        finds_out = key.ahead == 0 and (key.closed_until > now or not key.count)
        return max(0.0, key.closed_until - now) if finds_out else None
    waits: list[float | None] = [max(0.0, key.closed_until - now)]
    if key.rule.concurrency is not None:
        ages = [now - moment for moment in key.claimed]
        ahead = key.ahead + min(job.slots, key.rule.concurrency or 1) - 1
        waits.append(until_free(ahead, key.rule.concurrency, key.count, ages, usual))
    if key.rule.rate:
        waits.append(until_token(key.rule.rate, key, now, key.ahead, job.costs))
    return latest(waits)


def until_end(queue: QueueFacts, job: JobFacts, type: str) -> float | None:
    """When the job ends that a blocked one waits for."""
    since, usual = job.awaited_since, queue.usual_ms(type)
    return None if since is None else until_free(0, 1, 1, [queue.now - since], usual)


def until_slot(queue: QueueFacts, job: JobFacts, type: str, priority: int, ahead: int) -> float | None:
    """When a worker has a slot for the job, and the queue's own rule allows it."""
    usual = queue.usual_ms()
    ages = [queue.now - moment for moment in queue.running]
    slots = queue.slots(type, priority)
    waits = [until_free(ahead + min(job.slots, slots or 1) - 1, slots, queue.used, ages, usual)]
    own = queue.own
    if own.rule.concurrency is not None:
        places = own.rule.concurrency
        waits.append(until_free(ahead + min(job.slots, places or 1) - 1, places, own.count, ages, usual))
    if own.rule.rate:
        waits.append(until_token(own.rule.rate, own, queue.now, ahead, {}))
    return latest(waits)


def jobs_ahead(queue: QueueFacts, job: JobFacts) -> int:
    """About how many jobs go before this one."""
    if queue.groups < 1:
        found = job.ahead + job.held_before
    elif job.state == "waiting":
        found = job.ahead + job.others
    else:
        own = job.in_group if job.group else job.in_line
        # Jobs without a group take turns too, and are in waiting already. More urgent ones all go first.
        found = own + job.others + max(job.urgent, min(job.ahead, own + 1))
    itself = job.state in ("waiting", "held")
    return min(found, queue.waiting + queue.held - itself)


def closed_then(job: JobFacts) -> list[KeyFacts]:
    """The keys of a delayed job that are still closed when it is due."""
    return [key for key in job.keys if key.closed_until > job.score]


def until_start(row: JobBrief, queue: QueueFacts, job: JobFacts) -> float | None:
    """When the job starts, if nothing that ends at an unknown time is in its way."""
    waits: list[float | None] = [float(max(0, queue.closed_until - queue.now))]
    slot = until_slot(queue, job, row.type, row.priority, jobs_ahead(queue, job))
    if job.state is State.DELAYED:
        # How long today's load lasts may be unknown, and says little of a later time.
        due = max(0.0, job.score - queue.now)
        waits += [until_key(key, job, queue.now, None) for key in closed_then(job)]
        return latest([*waits, due, slot or 0.0])
    if job.state is State.BLOCKED:
        return latest([*waits, until_end(queue, job, row.type), job.score - queue.now, slot or 0.0])
    if job.state is State.HELD:
        usual = queue.usual_ms(row.type)
        waits += [until_key(key, job, queue.now, usual) for key in job.keys]
    return latest([*waits, slot])
