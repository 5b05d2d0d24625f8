"""Turns facts into reasons, the one that decides first before the others, and into an estimate of the start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobq.engine.model.estimate import closed_then, jobs_ahead, until_start, until_token
from jobq.engine.model.job import State
from jobq.engine.model.outcome import EXPIRED, KILLED
from jobq.engine.model.why import Reason, ReasonCode, Why
from jobq.engine.model.wording import ago, in_time, many, span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobq.engine.model.facts import JobFacts, KeyFacts, QueueFacts
    from jobq.engine.model.views import JobBrief

TEXT_MAX: Final = 300
"""Characters of an error that a reason quotes."""
TYPES_NAMED: Final = 20

_NEVER: Final = frozenset(
    {
        ReasonCode.QUEUE_PAUSED, ReasonCode.GROUP_PAUSED, ReasonCode.NO_WORKER, ReasonCode.TYPE_UNSERVED,
        ReasonCode.PARKED, ReasonCode.LATE,
    }
)  # fmt: skip
"""Nobody can know when these end."""


_ENDS: Final = {
    KILLED: (ReasonCode.KILLED, "It was killed"),
    EXPIRED: (ReasonCode.EXPIRED, "It has expired"),
    "Dropped": (ReasonCode.DROPPED, "It had no room under a limit, so it was dropped"),
    "Replaced": (ReasonCode.REPLACED, "A newer job took its place under a limit"),
}
"""The error type of a job that did not run to its end by itself -> what is said of it."""


def why_job(row: JobBrief, queue: QueueFacts, job: JobFacts, last_start: int | None = None) -> Why:
    """Why a job does not run, or what it does. ``last_start``: it expires if it has not started by then, unix ms."""
    if job.state in (State.COMPLETED, State.FAILED):
        return Why(job.state, [_ended(row)])
    if job.state is State.ACTIVE:
        return Why(job.state, [_running(row, queue), *_late(queue, job, last_start)])
    found = [*_late(queue, job, last_start), *_waits_for(row, queue, job), *_obstacles(queue, row.type)]
    if job.state in (State.WAITING, State.HELD):
        found += [*_limits(queue, job), *_slots(queue, row)]
        counted = max((reason.ahead or 0 for reason in found), default=0)
        found += [reason for reason in _line(queue, job, row) if (reason.ahead or 0) > counted]
    elif job.state is State.DELAYED:
        found += [_closed(key, queue.now) for key in closed_then(job)]
    starts = until_start(row, queue, job)
    if not found:
        known = "A worker takes it with its next claim." if starts is not None else "Nothing is in its way."
        found = [Reason(code=ReasonCode.READY, detail=known)]
    if any(reason.code in _NEVER for reason in found):
        starts = None
    if last_start is not None and last_start > queue.now:
        before = starts is not None and queue.now + starts > last_start
        when = "before it would start" if before else "unless it has started by then"
        detail = f"It expires {in_time(last_start, queue.now)}, {when}."
        found.append(Reason(code=ReasonCode.EXPIRES, detail=detail, until=last_start))
        starts = None if before else starts
    return Why(job.state, found, None if starts is None else max(0, round(starts)))


def why_queue(queue: QueueFacts) -> Why:
    """Why a queue runs no job, or no more than it does."""
    found = [*_obstacles(queue, None), *_own_rule(queue, 0)]
    if not queue.waiting + queue.held + queue.delayed + queue.active:
        found.append(Reason(code=ReasonCode.NO_JOBS, detail="The queue has no unfinished jobs."))
    elif not queue.waiting + queue.active and queue.held:
        which = "The only job" if queue.held == 1 else f"All {queue.held:,} jobs"
        are = "is" if queue.held == 1 else "are"
        detail = f"{which} that could run {are} held by limits, breakers or paused groups."
        found.append(Reason(code=ReasonCode.ONLY_HELD, detail=detail, count=queue.held))
    elif not queue.waiting + queue.active + queue.held:
        when = in_time(queue.due, queue.now) if queue.due else "later"
        detail = f"All {queue.delayed:,} unfinished jobs are delayed; the first one is due {when}."
        if queue.delayed == 1:
            detail = f"The only unfinished job is delayed; it is due {when}."
        found.append(Reason(code=ReasonCode.ONLY_DELAYED, detail=detail, count=queue.delayed, until=queue.due))
    if queue.parked:
        waits = "waits" if queue.parked == 1 else "wait"
        detail = f"{many(queue.parked, 'delayed job')} {waits} for a worker that knows the type.{_served(queue)}"
        types = _types(queue)
        found.append(Reason(code=ReasonCode.PARKED, detail=detail, count=queue.parked, types=types))
    if queue.waiting or queue.held:
        found += _slots(queue, None)
    return Why(None, found)


# -- the queue and its workers -----------------------------------------------------------------------------------------


def _obstacles(queue: QueueFacts, type: str | None) -> Iterator[Reason]:
    """What keeps every job of the type from starting."""
    if queue.paused_since is not None:
        detail = "The queue is paused: no worker takes a job until it is resumed."
        yield Reason(code=ReasonCode.QUEUE_PAUSED, detail=detail, since=queue.paused_since or None)
    if queue.closed_until:
        detail = (
            f"The queue is closed and opens {in_time(queue.closed_until, queue.now)}: a handler was rate limited, or an"
            " operator closed it."
        )
        yield Reason(code=ReasonCode.QUEUE_CLOSED, detail=detail, until=queue.closed_until)
    if not queue.alive:
        last = f" The last one was heard of {span(queue.now - queue.last_seen)} ago." if queue.last_seen else ""
        detail = f"No worker is alive: nothing runs until one starts (jobq work TARGET).{last}"
        yield Reason(code=ReasonCode.NO_WORKER, detail=detail, since=queue.last_seen)
    elif type is not None and not queue.serving(type):
        types = _types(queue)
        detail = f'No live worker knows the type "{type}"; they know: {_names(types)}. Start one that has the task.'
        yield Reason(code=ReasonCode.TYPE_UNSERVED, detail=detail, type=type, types=types)


def _types(queue: QueueFacts) -> list[str]:
    return sorted({name for row in queue.workers for name in row.types})


def _names(types: list[str]) -> str:
    more = f" and {len(types) - TYPES_NAMED} more" if len(types) > TYPES_NAMED else ""
    return ", ".join(types[:TYPES_NAMED]) + more or "none"


def _served(queue: QueueFacts) -> str:
    return f" Live workers know: {_names(_types(queue))}." if queue.alive else ""


def _slots(queue: QueueFacts, row: JobBrief | None) -> Iterator[Reason]:
    """All slots are busy."""
    kind, priority = (row.type, row.priority) if row else (None, 0)
    slots = queue.slots(kind, priority)
    if not queue.alive or not slots or queue.used < slots:
        return
    usual = queue.usual_ms(kind)
    lately = "" if usual is None else f" Such jobs took {span(usual)} lately."
    busy = (
        "The only slot of the live workers is busy."
        if slots == 1
        else f"All {slots:,} slots of the live workers are busy."
    )
    detail = busy + lately
    known = None if usual is None else round(usual)
    yield Reason(code=ReasonCode.SLOTS_BUSY, detail=detail, count=queue.used, limit=slots, type=kind, usual_ms=known)


# -- limits, groups, order ---------------------------------------------------------------------------------------------


def _limits(queue: QueueFacts, job: JobFacts) -> Iterator[Reason]:
    """Limits that refuse the job now. The one that its line waits for comes first."""
    if job.paused:
        detail = f'The group "{job.group}" is paused: none of its jobs starts until it is resumed.'
        yield Reason(code=ReasonCode.GROUP_PAUSED, detail=detail, group=job.group)
    if job.state is State.HELD:
        for key in sorted(job.keys, key=lambda one: not one.stands):
            yield from _key(key, job, queue)
    yield from _own_rule(queue, job.ahead)


def _own_rule(queue: QueueFacts, ahead: int) -> Iterator[Reason]:
    """The rule of the whole queue refuses every job now."""
    own, rule = queue.own, queue.own.rule
    if rule.concurrency is not None and own.count >= rule.concurrency:
        yield _full(own, 1, ahead)
    if rule.rate and (wait := until_token(rule.rate, own, queue.now, 0, {})) > 0:
        yield _spent(own, queue.now, wait, ahead)


def _key(key: KeyFacts, job: JobFacts, queue: QueueFacts) -> Iterator[Reason]:
    now = queue.now
    if key.closed_until:
        yield _closed(key, now)
    if key.name.startswith("!"):
        return
    most = key.rule.concurrency
    if most is not None and (most == 0 or key.count + min(job.slots, most) > most):
        yield _full(key, job.slots, key.ahead)
    if key.rule.rate and (wait := until_token(key.rule.rate, key, now, 0, job.costs)) > 0:
        yield _spent(key, now, wait, key.ahead)


def _closed(key: KeyFacts, now: int) -> Reason:
    if key.name.startswith("!"):
        return _breaker(key, now)
    detail = (
        f'The key "{key.key}" is closed and opens {in_time(key.closed_until, now)}: a handler was rate limited, or an'
        f" operator closed it.{_more(key.ahead)}"
    )
    return Reason(
        code=ReasonCode.KEY_CLOSED, detail=detail, rule=key.name, key=key.key, until=key.closed_until, ahead=key.ahead
    )


def _full(key: KeyFacts, slots: int, ahead: int) -> Reason:
    most = key.rule.concurrency or 0
    needs = f" It needs {slots} places." if slots > 1 else ""
    detail = (
        f'This partition\'s share of the rule "queue" is {most} of {key.whole.concurrency}, and {key.count} run.'
        f"{needs} Shares move to where jobs wait.{_more(ahead)}"
        if key.whole is not None and key.whole.concurrency
        else f"The rule {_rule(key)} allows no job to run."
        if most == 0
        else f"The rule {_rule(key)} is full: {key.count} of {most} run.{needs}{_more(ahead)}"
    )
    return Reason(
        code=ReasonCode.CONCURRENCY_FULL, detail=detail, rule=key.name, key=key.key, count=key.count, limit=most,
        ahead=ahead,
    )  # fmt: skip


def _spent(key: KeyFacts, now: int, wait: float, ahead: int) -> Reason:
    until = now + round(wait)
    rates = ", ".join(f"{band.count} {band.unit or 'jobs'} per {span(band.per)}" for band in key.rule.rate)
    detail = f"The rate of {_rule(key)} ({rates}) is used up; its next token comes {in_time(until, now)}.{_more(ahead)}"
    return Reason(
        code=ReasonCode.RATE_SPENT, detail=detail, rule=key.name, key=key.key, until=until,
        limit=key.rule.rate[0].count, ahead=ahead,
    )  # fmt: skip


def _breaker(key: KeyFacts, now: int) -> Reason:
    kind = key.name[1:]
    if key.closed_until > now:
        detail = (
            f'The circuit breaker of the type "{kind}" is open: too many runs failed, or an operator tripped it. One'
            f" job runs {in_time(key.closed_until, now)} to find out.{_more(key.ahead)}"
        )
        return Reason(code=ReasonCode.BREAKER_OPEN, detail=detail, type=kind, until=key.closed_until, ahead=key.ahead)
    detail = f'The circuit breaker of the type "{kind}" is half-open: one job runs to find out whether it works again.'
    return Reason(
        code=ReasonCode.BREAKER_HALF_OPEN, detail=f"{detail}{_more(key.ahead)}", type=kind, count=key.count,
        ahead=key.ahead,
    )  # fmt: skip


def _rule(key: KeyFacts) -> str:
    if key.whole is not None:
        return '"queue", of which this partition has a share,'
    if key.key == "queue":
        return '"queue", which holds for all jobs,'
    return f'"{key.name}"' if key.key == key.name else f'"{key.name}" for the key "{key.key}"'


def _more(ahead: int) -> str:
    return f" {many(ahead, 'job')} under it {'goes' if ahead == 1 else 'go'} before this one." if ahead else ""


def _line(queue: QueueFacts, job: JobFacts, row: JobBrief) -> Iterator[Reason]:
    """Other jobs come first."""
    ahead = jobs_ahead(queue, job)
    if queue.groups > 0 and job.state is State.HELD and ahead and (job.group or job.turn >= 0):
        name = f'of the group "{job.group}"' if job.group else "without a group"
        others = max(0, job.turn)
        detail = (
            f"The groups take turns: {many(job.in_group, 'job')} {name} and {many(others, 'other group')} come before"
            f" it, so about {many(ahead, 'job')} in all."
        )
        yield Reason(
            code=ReasonCode.GROUP_TURN, detail=detail, group=job.group or None, ahead=ahead, groups=others,
            priority=row.priority,
        )  # fmt: skip
    elif ahead:
        urgent = f", {job.urgent} of them with a more urgent priority" if job.urgent else ""
        detail = f"{many(ahead, 'job')} {'stands' if ahead == 1 else 'stand'} before it{urgent}{_worth(job.aging)}."
        yield Reason(code=ReasonCode.BEHIND, detail=detail, ahead=ahead, urgent=job.urgent, priority=row.priority)


def _worth(aging: int) -> str:
    return f", by priority and by waiting time: a step of priority is worth {span(aging)} of waiting" if aging else ""


# -- the job's own state -----------------------------------------------------------------------------------------------


def _waits_for(row: JobBrief, queue: QueueFacts, job: JobFacts) -> Iterator[Reason]:
    """What a delayed or blocked job waits for."""
    if job.state is State.BLOCKED:
        detail = "Another job with the same key runs. This one has the newest data, and runs when that one has ended."
        usual = queue.usual_ms(row.type)
        yield Reason(
            code=ReasonCode.KEY_RUNNING, detail=detail, job=job.awaited, since=job.awaited_since,
            usual_ms=None if usual is None else round(usual),
        )  # fmt: skip
    if job.state is not State.DELAYED:
        return
    until = int(job.score)
    when = in_time(until, queue.now) if until > queue.now else "now: a live worker moves it to waiting within a second"
    last = row.error
    if job.parked:
        detail = (
            f'No worker that took it knew the type "{row.type}". A worker that knows it takes it as soon as it starts;'
            f" otherwise it is offered again {when}."
        )
        yield Reason(code=ReasonCode.PARKED, detail=detail, until=until, type=row.type, types=_types(queue))
    elif row.unserved and not row.attempts_made and not row.snoozes and not row.rate_limited:
        detail = f"{many(row.unserved, 'time')} a worker could not read it. It is offered again {when}."
        yield Reason(code=ReasonCode.PARKED, detail=detail, until=until, type=row.type)
    elif row.rate_limited:
        detail = f"A service refused its last run for a time (RateLimited). It is due again {when}."
        yield Reason(code=ReasonCode.RATE_LIMITED, detail=detail, until=until, count=row.rate_limited)
    elif row.snoozes:
        detail = f"Its handler has put it off {many(row.snoozes, 'time')}. That charges no attempt. It is due {when}."
        yield Reason(code=ReasonCode.SNOOZED, detail=detail, until=until, count=row.snoozes)
    elif last and row.attempts_made:
        of = "any number" if row.attempts is None else row.attempts
        detail = f"Attempt {row.attempts_made} of {of} failed with {_error(row)}. The next one is due {when}."
        yield Reason(
            code=ReasonCode.RETRYING, detail=detail, until=until, attempt=row.attempts_made + 1, limit=row.attempts
        )
    else:
        yield Reason(code=ReasonCode.DELAYED, detail=f"It is delayed and due {when}.", until=until)


def _late(queue: QueueFacts, job: JobFacts, last_start: int | None) -> Iterator[Reason]:
    """It should have started or ended by now, and nobody has ended it yet."""
    if last_start is None or last_start > queue.now:
        return
    if job.state is State.ACTIVE:
        detail = f"Its deadline was {ago(last_start, queue.now)}: its worker cancels the run, and no attempt follows."
    else:
        detail = (
            f"It had to start {ago(last_start, queue.now)}, so it never starts. A worker or server that runs"
            " ends it as expired within 30 seconds."
        )
    yield Reason(code=ReasonCode.LATE, detail=detail, until=last_start)


def _running(row: JobBrief, queue: QueueFacts) -> Reason:
    silent = queue.now - (row.lease_until or 0)
    if silent > 0:
        detail = (
            f"Its worker has not renewed the lease for {span(silent)}: it is about to be taken from it and run"
            " elsewhere."
        )
        return Reason(code=ReasonCode.WORKER_SILENT, detail=detail, worker=row.worker, until=row.lease_until)
    of = "any number" if row.attempts is None else row.attempts
    age = "" if row.started_at is None else f" for {span(queue.now - row.started_at)}"
    usual = queue.usual_ms(row.type)
    detail = f"It has been running{age} on {row.worker or 'a worker'}: attempt {row.attempts_made} of {of}."
    return Reason(
        code=ReasonCode.RUNNING, detail=detail, worker=row.worker, since=row.started_at, attempt=row.attempts_made,
        limit=row.attempts, usual_ms=None if usual is None else round(usual),
    )  # fmt: skip


def _ended(row: JobBrief) -> Reason:
    attempts = f"{row.attempts_made} of {'any number' if row.attempts is None else row.attempts}"
    if row.state is State.COMPLETED:
        took = "" if row.duration is None else f" in {span(row.duration)}"
        detail = f"It has completed: attempt {attempts}{took}."
        return Reason(code=ReasonCode.COMPLETED, detail=detail, since=row.finished_at, attempt=row.attempts_made)
    code, how = _ENDS.get(row.error.type if row.error else "", (ReasonCode.FAILED, ""))
    if how:
        detail = f"{how}: {_error(row)}. A retry runs it again."
    else:
        detail = f"It has failed for good after attempt {attempts}: {_error(row)}. A retry gives it fresh attempts."
    return Reason(code=code, detail=detail, since=row.finished_at, attempt=row.attempts_made)


def _error(row: JobBrief) -> str:
    if row.error is None:
        return "no record of the error is left"
    text = f"{row.error.type}: {row.error.message}".replace("\n", " ").rstrip(". ")
    return text if len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]}..."
