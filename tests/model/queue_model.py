"""A model of a queue in plain Python, with which the state machine compares Redis.

Each method has the name and arguments of the store's method. It changes the model as the script changes Redis, and
returns the expected reply. It does not copy the scripts: order is a pair (priority, turn) and not a packed number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

UNFINISHED = ("waiting", "delayed", "active")
FINISHED = ("completed", "failed")
SPAN = 2**42
"""Places of a priority. With aging, numbers begin here."""
NOTHING = ["", 0, [], [], [], []]
"""The reply of a claim that must be sent again, with all keys or after lapse."""


@dataclass
class Job:
    """A job. ``at``: due, end of the lease, or finished, depending on its state. ``turn``: its position within its
    priority."""

    id: str
    spec: str
    state: str
    at: int = 0
    turn: int = 0
    priority: int = 0
    lifo: bool = False
    shown: bool = False
    """Whether it has a row in the priorities column."""
    token: str | None = None
    attempts: int = 0
    since: int | None = None
    """The time since which it can run, if it was released or retried after its enqueue."""
    errors: list[str] = field(default_factory=list)
    result: str | None = None
    progress: str | None = None
    logs: list[str] = field(default_factory=list)
    logged: tuple[str, int] = ("", 0)
    """The fence of the run that logged last, and how many of its lines were received."""
    unserved: int = 0
    snoozes: int = 0
    rate_limited: int = 0
    front: bool = False
    """Whether it goes to the front of its priority when it is due."""
    spent: int = 0
    """Ms that it was delayed because no worker could run it."""
    parked: str | None = None
    """The type under which it is parked."""
    keys: list[tuple[str, bool]] = field(default_factory=list)
    """Name, and whether it has its own ttl."""
    expires: int | None = None
    reruns: list[str] = field(default_factory=list)
    """The jobs that run it again, newest first."""

    @property
    def charged(self) -> str | None:
        """Its row in the attempts column."""
        if self.since is not None:
            put_off = f" {self.snoozes}" if self.snoozes or self.rate_limited else ""
            put_off += f" {self.rate_limited}" if self.rate_limited else ""
            return f"{self.attempts} {self.since}{put_off}"
        return str(self.attempts) if self.attempts else None


@dataclass
class Row:
    """A job to enqueue. ``keys``: name and ttl (ms; None: while the job is unfinished).

    A name in capitals is the key of a request: it has a fingerprint, and outlives the job's row.
    """

    id: str
    priority: int = 0
    lifo: bool = False
    delay: int = 0
    keys: list[tuple[str, int | None]] = field(default_factory=list)
    start_by: int | None = None
    end_by: int | None = None
    rerun_of: str = ""

    @property
    def spec(self) -> str:
        return f"spec of {self.id}"

    @property
    def options(self) -> str:
        times = "{} {}".format(*("-" if by is None else by for by in (self.start_by, self.end_by)))
        life = f"\v\v\v{times} {self.rerun_of}" if times != "- -" or self.rerun_of else ""
        head = f"{self.priority} {int(self.lifo)} {self.delay}"
        return head + life if life or self.priority or self.lifo or self.delay else ""

    @property
    def uniqueness(self) -> str:
        """As enqueue_unique.lua takes it: a line for the job's own key, and one for the key of its request."""
        own, request = "", ""
        for name, ttl in self.keys:
            if name.isupper():
                request = f"\n{ttl} {fingerprint(name)} {name}"
            else:
                own = f"{'unfinished 0' if ttl is None else f'enqueued {ttl}'} return -1 -1 {len(self.spec)} {name}"
        return own + request


def fingerprint(key: str) -> str:
    """The fingerprint: two requests with this key are the same if it is equal."""
    return f"print-of-{key}" if key.isupper() else "-"


class Model:
    """One queue. ``now`` is unix ms."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.jobs: dict[str, Job] = {}
        self.unique: dict[str, tuple[str, str]] = {}
        self.until: dict[str, int] = {}
        self.claims: dict[str, tuple[int, str, list[str]]] = {}
        self.requests: dict[str, tuple[int, list[Any]]] = {}
        """Requests of operators: time and answer."""
        self.removed: dict[str, int] = {}
        """Ids of removed jobs, and when."""
        self.types: dict[str, list[tuple[int, str, str]]] = {}
        """What is published of a type: when, by whom, and what."""
        self.types_seen: dict[str, int] = {}
        self.totals: dict[str, int] = {}
        self.start_by: dict[str, int] = {}
        """By when jobs must have started. Negative: the job ran when that time came."""
        self.end_by: dict[str, int] = {}
        self.limited = False
        """Whether a job had such a time, so that claims must come with all keys."""
        self.all_keys = False
        """Whether claims come with all keys."""
        self.paused = False
        self.closed: int | None = None
        """Until when claims take nothing."""
        self.fence = 0
        self.swept: int | None = None
        self.reap_from = 0
        self.front = 0
        self.back = 0
        self.aging = 0
        """How much waiting a step of priority is worth, ms. 0: priorities are absolute."""
        self.aged = 0

    # -- questions -------------------------------------------------------------------------------------------------

    def of(self, state: str) -> list[Job]:
        """The jobs of a state in the order of their set."""
        found = [job for job in self.jobs.values() if job.state == state]
        if state == "waiting":
            return sorted(found, key=lambda job: (*self.place(job), job.id))
        return sorted(found, key=lambda job: (job.at, job.id))

    def place(self, job: Job) -> tuple[int, int]:
        """Its place among the waiting jobs. With aging it is one number, a time in us."""
        return (job.priority * 1000 * self.aging + job.turn, 0) if self.aging else (job.priority, job.turn)

    def unfinished(self, job_id: str) -> bool:
        return job_id in self.jobs and self.jobs[job_id].state in UNFINISHED

    def holder(self, key: str) -> tuple[str, str] | None:
        """The holder of a deduplication key."""
        if key not in self.unique:
            return None
        owner, fingerprint = self.unique[key]
        held = self.until[key] > self.now if key in self.until else self.unfinished(owner)
        held = held and (owner in self.jobs or fingerprint != "-")
        return (owner, fingerprint) if held else None

    def columns(self) -> dict[str, Any]:
        """The state that Redis should have."""
        jobs = list(self.jobs.values())
        return {
            "waiting": [(job.id, self.place(job)[0]) for job in self.of("waiting")],
            **{
                state: {job.id: job.at for job in self.of(state)}
                for state in ("delayed", "active", "completed", "failed")
            },
            "jobs": {job.id: job.spec for job in jobs},
            "leases": {job.id: job.token for job in jobs if job.token},
            "priorities": {job.id: f"{job.priority}{'L' * job.lifo}{'F' * job.front}" for job in jobs if job.shown},
            "attempts": {job.id: job.charged for job in jobs if job.charged},
            "errors": {job.id: "\n".join(job.errors) for job in jobs if job.errors},
            "results": {job.id: job.result for job in jobs if job.result is not None},
            "progress": {job.id: job.progress for job in jobs if job.progress is not None},
            "logs": {job.id: "\n".join(["{} {}".format(*job.logged), *job.logs]) for job in jobs if job.logs},
            "unserved": {
                job.id: f"{job.unserved} {job.spent}" + (f" {job.parked}" if job.parked else "")
                for job in jobs
                if job.unserved
            },
            "parked": {f"{job.parked}\0{job.id}": 0 for job in jobs if job.parked},
            "keys": {job.id: "\n".join("\t" * timed + name for name, timed in job.keys) for job in jobs if job.keys},
            "unique": {name: " ".join(value) for name, value in self.unique.items()},
            "unique_until": dict(self.until),
            "removed": dict(self.removed),
            "start_by": dict(self.start_by),
            "end_by": dict(self.end_by),
            "reruns": {job.id: " ".join(job.reruns) for job in jobs if job.reruns},
            "expires": {job.id: job.expires for job in jobs if job.expires is not None},
            "claims": {
                lane: f"{number} {token} {' '.join(ids)}" if ids else str(number)
                for lane, (number, token, ids) in self.claims.items()
            },
            "requests": {request: at for request, (at, _) in self.requests.items()},
            "answers": {
                request: "".join(f"{word}\n" for word in answer) for request, (_, answer) in self.requests.items()
            },
            "types": {
                name: "\n".join(f"{seen}\t{publisher}\t{row}" for seen, publisher, row in lines)
                for name, lines in self.types.items()
            },
            "types_seen": dict(self.types_seen),
            "totals": dict(self.totals),
            "paused": self.paused,
            "closed": self.closed,
            "fence": self.fence,
        }

    # -- small moves -----------------------------------------------------------------------------------------------

    def _count(self, what: str, n: int) -> None:
        if n:
            self.totals[what] = self.totals.get(what, 0) + n

    def _numbers(self, count: int) -> range:
        """The next numbers of waiting. With aging they are times in us, each larger than the one before."""
        if not self.aging:
            self.back += count
            return range(self.back - count + 1, self.back + 1)
        first = SPAN + 1000 * self.now
        if not first <= self.aged <= first + 60_000_000 - count:
            self.aged = first
        self.aged += count
        return range(self.aged - count + 1, self.aged + 1)

    def _to_waiting(self, job: Job, number: int | None = None, *, front: bool = False) -> None:
        job.state, job.at = "waiting", 0
        front, job.front = front or job.front, False
        if front or job.lifo:
            self.front -= 1
            job.turn = self.front
        else:
            job.turn = self._numbers(1)[0] if number is None else number

    def _held(self, flat: list[Any], size: int, lost: list[str]) -> Iterator[tuple[Job, list[Any]]]:
        """From groups (id, token, rest), those with the token of the lease. The ids of the others are added to
        ``lost``."""
        for i in range(0, len(flat), size):
            job_id, token, *rest = flat[i : i + size]
            job = self.jobs.get(job_id)
            if job and job.token == token:
                yield job, rest
            else:
                lost.append(job_id)

    def _finish(self, job: Job, state: str, retention: Any = "") -> None:
        job.state, job.at, job.token = state, self.now, None
        if retention != "":
            job.expires = self.now + retention
        self._count(state, 1)

    def _take(self, jobs: list[Job], lease: int, who: str) -> list[Any]:
        """Lease jobs. Returns the reply of claim and reap, without the holders."""
        self.fence = max(self.fence + 1, self.now * 1000)
        token = f"{self.fence} {who}"
        for job in jobs:
            job.state, job.at, job.token = "active", self.now + lease, token
        return self._taken(token, jobs)

    def _taken(self, token: str, jobs: list[Job]) -> list[Any]:
        any_charged = any(job.charged for job in self.jobs.values())
        charged = [job.charged for job in jobs] if any_charged else []
        return [token, self.now, [job.id for job in jobs], [job.spec for job in jobs], charged, []]

    def _forget(self, job: Job) -> None:
        del self.jobs[job.id]
        self.start_by.pop(job.id, None)
        self.end_by.pop(job.id, None)
        for name, _ in job.keys:
            if self.unique.get(name, ("",))[0] == job.id:
                del self.unique[name]
                self.until.pop(name, None)

    def _forget_answers(self, page: int) -> int:
        old = sorted((at, request) for request, (at, _) in self.requests.items() if at <= self.now - 120_000)[:page]
        for _, request in old:
            del self.requests[request]
        return len(old)

    def asked(self, request: str, verb: str, *args: Any, **named: Any) -> list[Any]:
        """Run an operator's verb. The same request changes nothing more, and gets the same answer."""
        if request not in self.requests:
            answer: list[Any] = getattr(self, verb)(*args, **named)
            if verb == "lapse" and len(answer) == 1:
                return answer
            self.requests[request] = (self.now, answer)
            self._forget_answers(100)
            return answer
        return self.requests[request][1]

    # -- verbs -----------------------------------------------------------------------------------------------------

    def enqueue(self, rows: list[Row], *, repeated: bool = False) -> list[Any]:
        refused: list[Any] = []
        numbers = self._numbers(len(rows))
        for number, row in enumerate(rows, 1):
            known = row.id in self.jobs or (repeated and row.id in self.removed)
            earlier = (row.id, "-") if known else None
            for name, _ in sorted(row.keys, key=lambda one: not one[0].isupper()):
                if earlier:
                    break
                earlier = self.holder(name)
                if earlier and not name.isupper():
                    self._count("duplicates", 0 if repeated else 1)
                    # The request gets the same answer again.
                    for request, time in row.keys:
                        if request.isupper() and time is not None:
                            self.unique[request] = (earlier[0], fingerprint(request))
                            self.until[request] = self.now + time
            if earlier:
                refused += [number, *earlier]
                continue
            job = Job(row.id, row.spec, "delayed", self.now + row.delay, priority=row.priority, lifo=row.lifo)
            job.shown = bool(row.priority or row.lifo)
            self.jobs[row.id] = job
            self._live(row)
            if not row.delay:
                self._to_waiting(job, numbers[number - 1])
            for name, ttl in row.keys:
                if not name.isupper():
                    job.keys.append((name, ttl is not None))
                self.unique[name] = (row.id, fingerprint(name))
                self.until.pop(name, None)
                if ttl is not None:
                    self.until[name] = self.now + ttl
        return refused

    def _live(self, row: Row) -> None:
        for times, by in ((self.start_by, row.start_by), (self.end_by, row.end_by)):
            if by is not None:
                times[row.id] = by
                self.limited = True
        if row.rerun_of in self.jobs:
            earlier = self.jobs[row.rerun_of]
            earlier.reruns = [row.id, *earlier.reruns][:20]

    def is_late(self, job_id: str) -> bool:
        return any(job_id in times and abs(times[job_id]) <= self.now for times in (self.start_by, self.end_by))

    def lapse(self, page: int, expired: bytes, missed: bytes) -> list[Any]:
        more, ids = 0, []
        for times in (self.start_by, self.end_by):
            stands = sorted((by, job_id) for job_id, by in times.items())
            late = [job_id for by, job_id in stands if 0 <= by <= self.now][:page]
            more |= len(late) == page
            ran = [job_id for by, job_id in stands if by < 0]
            first = self.now % len(ran) if len(ran) > page else 0
            ids += late + ran[first : first + page]
        if not self.start_by and not self.end_by:
            return [0]
        ids += [job.id for job in self.of("waiting")[:page]]
        ended = [job_id for job_id in dict.fromkeys(ids) if self._lapse(job_id, expired.decode(), missed.decode())]
        return [int(more), *ended] if ids else [0]

    def _lapse(self, job_id: str, expired: str, missed: str) -> bool:
        job = self.jobs.get(job_id)
        late, over = (job_id in times and abs(times[job_id]) <= self.now for times in (self.start_by, self.end_by))
        if late and job and job.attempts:
            del self.start_by[job_id]  # it has started
            late = False
        if not (late or over):
            return False
        if job and job.state == "active":
            for is_due, times in ((late, self.start_by), (over, self.end_by)):
                if is_due:
                    times[job_id] = -abs(times[job_id])
            return False
        self.start_by.pop(job_id, None)
        self.end_by.pop(job_id, None)
        if job is None or job.state in FINISHED:
            return False
        self._unpark(job)
        job.errors.append(missed if over else expired)
        self._finish(job, "failed")
        self._count("expired", 1)
        return True

    def claim(self, want: int, lease: int, worker: str, lane: str, request: int, *, repeated: bool) -> Any:
        last, token, ids = self.claims.get(lane, (-1, "", []))
        if last > request or (last == request and not repeated):
            return None
        if last == request:
            held = [job for job, _ in self._held([word for job_id in ids for word in (job_id, token)], 2, [])]
            return self._taken(token, held) if held else None
        if repeated:
            self.claims[lane] = (request, "", [])
        if self.paused:
            return ["paused", self.now, [], [], [], []] if want else None
        if self.closed is not None and self.closed > self.now:
            return ["closed", self.now, [], [], [], [], self.closed - self.now]
        self.closed = None
        if self.limited and not self.all_keys:
            self.all_keys = want > 0
            return NOTHING if want else None
        first = self.of("waiting")[:want]
        if not first:
            return None
        late = next((at for at, job in enumerate(first) if self.is_late(job.id)), len(first))
        if not late:
            self.all_keys = True
            return NOTHING
        first = first[:late]
        reply = self._take(first, lease, worker)
        self.claims[lane] = (request, reply[0], reply[2])
        return reply

    def complete(self, jobs: list[Any], counts: list[Any]) -> list[Any]:
        lost: list[str] = []
        quads = [tuple(jobs[i : i + 4]) for i in range(0, len(jobs), 4)]
        # The store groups jobs by token, so the lost ones come in that order.
        said = list(dict.fromkeys((token, retention) for _, token, _, retention in quads))
        quads.sort(key=lambda quad: said.index((quad[1], quad[3])))
        for job, (result, retention) in self._held([word for quad in quads for word in quad], 4, lost):
            self._finish(job, "completed", retention)
            job.result = result
        if len(lost) < len(jobs) / 4:
            for name, count in zip(counts[::2], counts[1::2], strict=True):
                self._count(f"s:{self.now // 300_000}:{name}", count)
        return [len(self.of("completed")), lost]

    def reschedule(self, jobs: list[Any]) -> list[str]:
        lost: list[str] = []
        for job, (attempt, delay, record) in self._held(jobs, 5, lost):
            job.attempts = attempt
            job.errors.append(record)
            job.state, job.token = "delayed", None
            job.at = job.since = self.now + delay
            self._count("retried", 1)
        return lost

    def fail(self, jobs: list[Any]) -> list[Any]:
        lost: list[str] = []
        for job, (attempt, record, retention) in self._held(jobs, 5, lost):
            job.attempts = attempt
            job.errors.append(record)
            self._finish(job, "failed", retention)
        return [len(self.of("failed")), lost]

    def snooze(self, jobs: list[Any]) -> list[str]:
        lost: list[str] = []
        for job, (delay,) in self._held(jobs, 3, lost):
            job.snoozes += 1
            job.state, job.token = "delayed", None
            job.at = job.since = self.now + delay
            self._count("snoozed", 1)
        return lost

    def throttle(self, jobs: list[Any]) -> list[list[str]]:
        lost: list[str] = []
        alone: list[str] = []
        last_first = [word for i in reversed(range(0, len(jobs), 4)) for word in jobs[i : i + 4]]
        for job, (delay, scope) in self._held(last_first, 4, lost):
            job.rate_limited += 1
            job.token, job.since = None, self.now + delay
            if scope == "queue":
                self.closed = max(self.closed or 0, self.now + delay)
                self._to_waiting(job, front=True)
            else:
                job.state, job.at, job.front, job.shown = "delayed", self.now + delay, True, True
                alone += [job.id] * (scope == "key")
            self._count("rate_limited", 1)
        return [lost, alone]

    def close(self, _key: str, ms: int) -> str:
        before, self.closed = self.closed, self.now + ms if ms else None
        return str(before) if before is not None and before > self.now else ""

    def release(self, jobs: list[str]) -> list[str]:
        lost: list[str] = []
        last_first = [word for i in reversed(range(0, len(jobs), 2)) for word in jobs[i : i + 2]]
        for job, _ in self._held(last_first, 2, lost):
            job.token, job.since = None, self.now
            self._to_waiting(job, front=True)
        return lost

    def defer(self, jobs: list[Any], first: int, longest: int, _types: bytes) -> list[str]:
        lost: list[str] = []
        for job, (kind, park) in self._held(jobs, 4, lost):
            job.unserved += 1
            job.state, job.token = "delayed", None
            delay = park if kind else min(longest, first * 2 ** (job.unserved - 1))
            job.at = job.since = self.now + delay
            job.spent += delay
            job.parked = kind or None
            self._count("unserved", 1)
        return lost

    def recall(self, limit: int, types: list[str]) -> int:
        parked = [
            job
            for kind in types
            for job in sorted((job for job in self.of("delayed") if job.parked == kind), key=lambda job: job.id)
        ][:limit]
        for job in reversed(parked):
            self._unpark(job)
            job.since = self.now
            self._to_waiting(job, front=True)
        return len(parked)

    def _unpark(self, job: Job) -> None:
        if job.parked:
            job.spent = max(0, job.spent - max(0, job.at - self.now))
            job.parked = None

    def renew(self, jobs: list[str], lease: int) -> list[str]:
        lost: list[str] = []
        for job, _ in self._held(jobs, 2, lost):
            job.at = self.now + lease
        return lost

    def progress(self, jobs: list[str]) -> list[str]:
        lost: list[str] = []
        for job, (value,) in self._held(jobs, 3, lost):
            job.progress = value
        return lost

    def log(self, jobs: list[str]) -> list[str]:
        lost: list[str] = []
        for job, (first, until, lines) in self._held(jobs, 5, lost):
            fence = str(job.token).split()[0]
            received = job.logged[1] if job.logged[0] == fence else 0
            new = lines.split("\n")[max(0, received - first) :]
            if new:
                job.logs += new
                job.logged = (fence, until)
        return lost

    def forward(self, limit: int) -> list[int]:
        due = [job for job in self.of("delayed") if job.at <= self.now][:limit]
        if due and self.limited and not self.all_keys:
            self.all_keys = True
            return [0, -1, 1]
        for job in reversed(due):
            self._unpark(job)
            if job.front:
                self._to_waiting(job)
        for i, (job, number) in enumerate(zip(due, self._numbers(len(due)), strict=True)):
            if job.state == "delayed":
                # With aging a job has waited since it was due.
                since = SPAN + 1000 * job.at + i % 1000
                self._to_waiting(job, min(number, since) if self.aging else number)
        later = self.of("delayed")
        return [len(due), max(0, later[0].at - self.now) if later else -1, 0]  # no job of this machine has limits

    def reap(self, limit: int, lease: int, sweeper: str, gap: int, grace: int) -> Any:
        if self.swept is None or self.now - self.swept > gap:
            self.reap_from = self.now + grace
        self.swept = self.now
        over = [job for job in self.of("active") if job.at < self.now][:limit]
        if self.now < self.reap_from or not over:
            return None
        holders = [job.token for job in over]
        reply = self._take(over, lease, sweeper)
        reply[5] = holders
        return reply

    def set_aging(self, ms: int) -> list[int]:
        """At the beginning, before there are jobs."""
        self.aging = ms
        self.aged = SPAN + 1000 * self.now if ms else 0
        return [ms, 0]

    def rebase(self, _page: int, _bound: int) -> int:
        if self.aging:
            return 0
        self.back = self.front = 0
        jobs = self.of("waiting")
        for priority in {job.priority for job in jobs}:
            for side in (1, -1):
                ones = sorted(
                    (job for job in jobs if job.priority == priority and job.turn * side > 0),
                    key=lambda job: (job.turn, job.id),
                    reverse=side < 0,
                )
                for turn, job in enumerate(ones, 1):
                    job.turn = turn * side
                self.back = max(self.back, len(ones) if side > 0 else 0)
                self.front = min(self.front, -len(ones) if side < 0 else 0)
        return 0

    def kill(self, ids: list[str], record: bytes) -> list[str]:
        return [self._kill(self.jobs.get(job_id), record.decode()) for job_id in ids]

    def _kill(self, job: Job | None, record: str) -> str:
        if job is None or job.state in FINISHED:
            return ""
        state = job.state
        self._unpark(job)
        if state == "active":
            job.attempts += 1
        job.errors.append(record)
        self._finish(job, "failed")
        return state

    def retry(self, ids: list[str]) -> list[str]:
        return [self._retry(self.jobs.get(job_id)) for job_id in ids]

    def _retry(self, job: Job | None) -> str:
        if job is None or job.state not in FINISHED:
            return ""
        own = [name for name, timed in job.keys if not timed]
        for name in own:
            other = self.holder(name)
            if other and other[0] != job.id:
                return f"key {other[0]}"
        for name in own:
            self.unique[name] = (job.id, "-")
            self.until.pop(name, None)
        state = job.state
        job.attempts, job.unserved, job.snoozes, job.rate_limited = 0, 0, 0, 0
        job.result = job.progress = job.expires = None
        job.spent = 0
        job.since = self.now
        self.start_by.pop(job.id, None)
        if abs(self.end_by.get(job.id, self.now + 1)) <= self.now:
            del self.end_by[job.id]
        self._to_waiting(job)
        return state

    def promote(self, ids: list[str]) -> list[str]:
        states: list[str] = []
        for job_id in ids:
            job = self.jobs.get(job_id)
            moved = job is not None and job.state == "delayed"
            if job and moved:
                self._unpark(job)
                job.since = self.now
                self._to_waiting(job)
            states.append("delayed" if moved else "")
        return states

    def reprioritise(self, ids: list[str], priority: int) -> list[str]:
        states: list[str] = []
        for job_id in ids:
            job = self.jobs.get(job_id)
            if job is None or job.state not in ("waiting", "delayed"):
                states.append("")
                continue
            job.priority, job.shown = priority, True
            states.append(job.state)
        return states

    def remove(self, ids: list[str]) -> list[str]:
        states: list[str] = []
        for job_id in ids:
            job = self.jobs.get(job_id)
            if job is None or job.state == "active":
                states.append("")
                continue
            states.append(job.state)
            self._forget(job)
            self.removed[job_id] = self.now
        return states

    def trim(self, keep_completed: int, keep_failed: int, age: int, page: int, young_ms: int, young: int) -> int:
        ended = [job for job in self.jobs.values() if job.expires is not None and job.expires <= self.now]
        if len(ended) <= young:
            ended = [job for job in ended if (job.expires or 0) <= self.now - young_ms]
        gone = sorted(ended, key=lambda job: (job.expires, job.id))[:page]
        for job in gone:
            self._forget(job)
        for state, keep in (("completed", keep_completed), ("failed", keep_failed)):
            oldest = self.of(state)
            over = max(len(oldest) - keep, sum(job.at <= self.now - age for job in oldest), 0)
            over = min(over, max(sum(job.at <= self.now - young_ms for job in oldest), len(oldest) - young))
            for job in oldest[: min(over, page - len(gone))]:
                self._forget(job)
                gone.append(job)
        return len(gone)

    def expire(self, page: int) -> int:
        over = sorted((at, name) for name, at in self.until.items() if at <= self.now)[:page]
        for _, name in over:
            del self.until[name]
            del self.unique[name]
        gone = sorted((at, job_id) for job_id, at in self.removed.items() if at <= self.now - 120_000)[:page]
        for _, job_id in gone:
            del self.removed[job_id]
        for name in [name for name, seen in self.types_seen.items() if seen <= self.now - 86_400_000]:
            del self.types_seen[name], self.types[name]
        return max(len(over), len(gone), self._forget_answers(page))

    def publish(self, publisher: str, rows: list[str], *, started: bool) -> list[str]:
        differing: list[str] = []
        for name, row in zip(rows[::2], rows[1::2], strict=True):
            others: list[tuple[int, str, str]] = []
            place = None
            for line in self.types.get(name, []):
                seen, other, theirs = line
                if theirs == row:
                    place = len(others)
                elif seen > self.now - 120_000 and len(others) < 3:
                    others.append(line)
                    differing += [name, other, theirs]
            others.insert(0 if started else len(others) if place is None else place, (self.now, publisher, row))
            self.types[name], self.types_seen[name] = others, self.now
        return differing

    def drop(self, *, force: bool) -> list[int]:
        jobs = len(self.jobs)
        if jobs and not force:
            return [jobs, 0, 0, 0]
        new = Model(self.now)
        new.requests, new.all_keys = self.requests, self.all_keys
        self.__dict__ = new.__dict__
        return [jobs, 0, 0, 1]

    def pause(self) -> list[str]:
        was, self.paused = self.paused, True
        return ["" if was else "running"]

    def resume(self) -> list[str]:
        was, self.paused = self.paused, False
        return ["paused" if was else ""]
