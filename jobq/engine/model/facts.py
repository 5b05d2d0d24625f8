"""The facts that ``why`` reasons about: the reply of why.lua, with names and types."""

from __future__ import annotations

from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobq.engine.model.job import State
from jobq.engine.model.limits import Band, Rule, parse_rule
from jobq.engine.model.rows import worker_row
from jobq.engine.model.unreadable import as_text, slots_of

if TYPE_CHECKING:
    from jobq.engine.model.views import WorkerRow

URGENT: Final = "priority<"
"""How the reserve of a worker begins."""


class Arrival(msgspec.Struct, frozen=True):
    """The stored time of GCRA of one band. ``debt``: when it was written and the interval then; only with a unit."""

    spent: float = 0.0
    debt: tuple[float, float] | None = None

    def moment(self, band: Band, now: int) -> float:
        """The theoretical arrival time, unix ms. It is computed as in admit.lua, which says why."""
        interval = band.per / band.count
        if band.unit and self.spent > now and self.debt and self.debt[1] > 0:
            at, before = self.debt
            return max(now, min(at, now) + (self.spent - at) / before * interval)
        if self.spent > now + band.burst * interval + 1:
            return now + (band.burst - 1) * interval
        return max(now, self.spent)


class KeyFacts(msgspec.Struct, frozen=True):
    """A limit key of the job. ``count``: places that are taken. ``unspent``: jobs that start soon and take tokens then.

    ``ahead``: held jobs that go before. ``stands``: the job's line waits for this key. ``claimed``: when its running
    jobs were claimed, unix ms. ``breaker``: the type whose circuit breaker it is. ``whole``: the queue's own rule, if
    ``rule`` is the share of it that a partition has.
    """

    key: str
    rule: Rule
    count: int
    unspent: int
    closed_until: int
    ahead: int
    stands: bool
    arrivals: tuple[Arrival, ...]
    claimed: tuple[int, ...]
    breaker: str | None = None
    whole: Rule | None = None

    @property
    def name(self) -> str:
        """The name of the rule."""
        return self.key.partition(":")[0]


class QueueFacts(msgspec.Struct, frozen=True):
    """A queue. ``running`` and ``workers`` are samples of at most ``LOOKS``. ``groups`` -1: it has no groups.

    ``active`` counts jobs, and ``used`` their slots. ``runs``: type and ms of the last completed jobs.
    """

    now: int
    paused_since: int | None
    closed_until: int
    own: KeyFacts
    waiting: int
    delayed: int
    active: int
    held: int
    parked: int
    used: int
    due: int | None
    groups: int
    workers: list[WorkerRow]
    alive: int
    last_seen: int | None
    running: tuple[int, ...]
    runs: list[tuple[str, int]]
    histogram: list[tuple[int, int]]

    def usual_ms(self, type: str | None = None) -> float | None:
        """How long jobs of the type took lately, on average. Without runs of the type: all jobs. None: not known."""
        own = [ms for kind, ms in self.runs if kind == type] or [ms for _, ms in self.runs]
        if own:
            return sum(own) / len(own)
        total = sum(count for _, count in self.histogram)
        # A bucket has the times of one bit length in us. Take the middle of each.
        return sum(count * 0.75 * 2**bits / 1000 for bits, count in self.histogram) / total if total else None

    def serving(self, type: str | None) -> list[WorkerRow]:
        """Living workers that know the type. A row that another version wrote may not list its types."""
        return [row for row in self.workers if type is None or type in row.types or row.unreadable]

    def slots(self, type: str | None, priority: int) -> int:
        """Slots of the living workers for such a job, without those that other queues of the same workers use now."""
        workers = self.serving(type)
        if not workers:
            return 0
        total = sum(max(1, row.concurrency - _reserved(row, priority) - row.elsewhere) for row in workers)
        # The sample is the last workers that were heard of. The others are taken to be like them.
        return total * self.alive // max(1, len(self.workers))


class JobFacts(msgspec.Struct, frozen=True):
    """The place of a job. See why.lua for the fields. ``awaited``: the job whose end it waits for, which was claimed at
    ``awaited_since``."""

    state: State
    score: float
    ahead: int
    urgent: int
    held_before: int
    in_line: int
    in_group: int
    turn: int
    others: int
    weight: float
    paused: bool
    group: str
    slots: int
    costs: dict[str, int]
    parked: bool
    awaited: str | None
    awaited_since: int | None
    aging: int
    keys: list[KeyFacts]


def read_facts(job_id: str, reply: list[Any]) -> tuple[QueueFacts, JobFacts | None]:
    """The reply of why.lua."""
    now, queue, (alive, last_seen, *workers), (*runs, histogram), running, *rest = reply
    paused, closed, own, arrivals, waiting, delayed, active, held, parked, extra, due, groups = queue
    facts = QueueFacts(
        now=now,
        paused_since=None if paused is None else int(_number(paused)),
        closed_until=_closed(closed, now),
        own=_key([b"queue", own or b"", active + extra, 0, None, 0, 0, None, arrivals, running], now),
        waiting=waiting,
        delayed=delayed,
        active=active,
        held=held,
        parked=parked,
        used=active + extra,
        due=None if due is None else int(_number(due)),
        groups=groups,
        workers=[_worker(info, seen) for info, seen in _in_pairs(workers) if info is not None],
        alive=alive,
        last_seen=None if last_seen is None else int(_number(last_seen)),
        running=tuple(running),
        runs=[(as_text(kind), int(_number(ms))) for kind, ms in _in_pairs(runs)],
        histogram=[(bits, count) for bits, count in _in_pairs(histogram)],
    )
    return facts, _job(job_id, rest[0], rest[1], now) if rest else None


def _job(job_id: str, row: list[Any], keys: list[Any], now: int) -> JobFacts:
    (
        state,
        score,
        ahead,
        urgent,
        held_before,
        in_line,
        in_group,
        turn,
        others,
        settings,
        group,
        weights,
        parked,
        holder,
        awaited_since,
        aging,
    ) = row
    words = as_text(settings).split(" ")
    # The row of a deduplication key: the holder, its fingerprint, when it is due at the latest, and another job.
    holders = as_text(holder or b"").split(" ")
    awaited = [one for one in (holders[0], *holders[3:4]) if one and one != job_id]
    return JobFacts(
        state=State(state.decode()),
        score=_number(score),
        ahead=ahead,
        urgent=urgent,
        held_before=held_before,
        in_line=in_line,
        in_group=in_group,
        turn=turn,
        others=others,
        weight=_number(words[0].encode()) or 1.0,
        paused=len(words) > 1 and words[1] == "1",
        group=as_text(group),
        slots=slots_of(weights),
        costs=_estimates(weights),
        parked=bool(parked),
        awaited=awaited[0] if awaited else None,
        awaited_since=awaited_since,
        aging=aging,
        keys=[_key(key, now) for key in keys],
    )


def _key(row: list[Any], now: int) -> KeyFacts:
    key, text, count, unspent, closed, ahead, stands, breaker, arrivals, claimed = row
    name = as_text(key)
    rule = parse_rule(as_text(text)) or Rule()
    return KeyFacts(
        key=name,
        rule=rule,
        count=count,
        unspent=unspent,
        # An open breaker stays closed as a key when its time has passed, until a job has found out.
        closed_until=int(_number(closed)) if name.startswith("!") else _closed(closed, now),
        ahead=ahead,
        stands=bool(stands),
        arrivals=tuple(_arrival(spent, debt) for spent, debt in _in_pairs(arrivals)),
        claimed=tuple(claimed),
        breaker=name[1:] if name.startswith("!") and breaker is not None else None,
    )


def _worker(info: bytes, seen: bytes) -> WorkerRow:
    return worker_row(b"?", info, int(_number(seen)), alive=True)


def _estimates(weights: bytes | None) -> dict[str, int]:
    """What the job is charged in each unit when it starts. What an earlier run really cost does not count."""
    lines = [line.split(" ") for line in as_text(weights or b"").split("\n")[1:]]
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal()}


def _arrival(spent: bytes | None, debt: bytes | None) -> Arrival:
    at, _, interval = (debt or b"").partition(b" ")
    return Arrival(_number(spent), (_number(at), _number(interval)) if interval else None)


def _closed(till: bytes | None, now: int) -> int:
    """Until when something is closed; 0 if it is open. A damaged time, or one that has passed, counts as open."""
    moment = _number(till)
    return ceil(moment) if now < moment < now + 1e12 else 0


def _number(raw: bytes | None) -> float:
    """A stored number; 0 if there is none, or it is damaged."""
    try:
        value = float(raw or b"0")
    except ValueError:
        return 0.0
    return value if abs(value) < 2**63 else 0.0  # not for NaN and infinity either


def _in_pairs(flat: list[Any]) -> list[tuple[Any, Any]]:
    return list(pairwise(flat))[::2]


def _reserved(row: WorkerRow, priority: int) -> int:
    """The slots that a worker keeps free for jobs that are more urgent than this one."""
    condition, _, number = row.reserve.rpartition("=")
    if not condition.startswith(URGENT) or not number.isdigit():
        return 0
    below = condition.removeprefix(URGENT)
    return 0 if priority < int(_number(below.encode())) else int(number)
