"""A model of limits in plain Python, with which test_limits_machine.py compares Redis.

It knows nothing of lines, seats or places under keys. It looks at all held jobs in their order and starts those that
fit under all of their keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import floor
from typing import Any

UNFINISHED = ("held", "waiting", "delayed", "active", "blocked")
Life = tuple[int | None, int | None]
"""In how many ms a job must have started, and in how many it must have ended."""


@dataclass
class Rule:
    """A rule: at most ``concurrency`` jobs of a key at once, and ``count`` starts in ``per`` ms, ``burst`` at once."""

    concurrency: int | None = None
    band: tuple[int, int, int] | None = None
    over: str = "wait"

    @property
    def text(self) -> str:
        """As the scripts read it."""
        words = ["-" if self.concurrency is None else str(self.concurrency)]
        words += ["{}/{}/{}".format(*self.band)] if self.band else []
        return " ".join(words + ([self.over] if self.over != "wait" else []))


@dataclass
class Job:
    """A job. ``turn``: its place within its priority. ``counted``: an action was decided about it, and it has not
    started since."""

    id: str
    keys: tuple[str, ...]
    priority: int
    state: str
    turn: int = 0
    at: int = 0
    token: str = ""
    attempted: bool = False
    counted: bool = False
    admitted: bool = False
    """It has limits, and is in waiting: admitted, and not claimed by a worker that took others."""
    error: str = ""
    start_by: int | None = None
    end_by: int | None = None
    charged: bool = False
    """An attempt was charged, so it has started."""
    taken: int = 0
    """When it took the deduplication key, as a number that grows; 0: it never did."""
    behind: str = ""
    """The job with its key for whose end it waits."""

    @property
    def place(self) -> tuple[int, int, str]:
        return self.priority, self.turn, self.id


@dataclass
class LimitsModel:
    """One queue with rules. ``now`` is unix ms."""

    now: int
    rules: dict[str, Rule]
    jobs: dict[str, Job] = field(default_factory=dict[str, Job])
    undecided: set[str] = field(default_factory=set[str])
    closed: dict[str, int] = field(default_factory=dict[str, int])
    arrivals: dict[str, float] = field(default_factory=dict[str, float])
    """The theoretical arrival time of each key with a rate (GCRA)."""
    answers: dict[str, str] = field(default_factory=dict[str, str])
    paused: bool = False
    fence: int = 0
    front: int = 0
    back: int = 0
    takes: int = 0

    # -- questions -------------------------------------------------------------------------------------------------

    def of(self, *states: str) -> list[Job]:
        """The jobs of these states, the first one first."""
        return sorted((job for job in self.jobs.values() if job.state in states), key=lambda job: job.place)

    def rule(self, key: str) -> Rule:
        return self.rules[key.partition(":")[0]]

    def running(self, key: str) -> list[Job]:
        """The jobs of a key that run, in the order in which they started."""
        jobs = [job for job in self.jobs.values() if job.state == "active" and key in job.keys]
        return sorted(jobs, key=lambda job: (int(job.token.split()[0]), job.id))

    def unstarted(self, key: str) -> list[Job]:
        """The jobs of a key that have a place under it and have not started, the oldest first: in the order of their
        arrival, then those that were put in front, which came last."""
        jobs = [job for job in self.jobs.values() if job.admitted or job.counted]
        jobs = [job for job in jobs if key in job.keys and job.state in ("held", "waiting")]
        return sorted(jobs, key=lambda job: (job.turn <= 0, abs(job.turn), job.id))

    def tokens(self, key: str) -> int:
        """How many jobs of the key may start now by its rate."""
        band = self.rule(key).band
        if band is None:
            return 1_000_000
        count, per, burst = band
        interval = per / count
        return floor(((burst - 1) * interval - (self.arrival(key) - self.now) + 0.001) / interval) + 1

    def arrival(self, key: str) -> float:
        """The theoretical arrival time of a key with a rate. If it is further away than a full burst, then the rule was
        changed, and one token is free."""
        count, per, burst = self.rule(key).band or (1, 1, 1)
        interval, stored = per / count, self.arrivals.get(key, 0.0)
        if stored > self.now + burst * interval + 1:
            return self.now + (burst - 1) * interval
        return max(self.now, stored)

    def is_closed(self, key: str) -> bool:
        return self.closed.get(key, 0) > self.now

    def fits(self, key: str) -> bool:
        """Whether one more job of the key may start now."""
        most = self.rule(key).concurrency
        return not self.is_closed(key) and (most is None or len(self.running(key)) < most) and self.tokens(key) > 0

    def acting(self, job: Job) -> list[str]:
        """The keys of a job whose rules have an action."""
        return [key for key in job.keys if self.rule(key).over != "wait"]

    # -- producers and operators -----------------------------------------------------------------------------------

    def _arrive(self, job: Job) -> None:
        self.back += 1
        job.turn = self.back
        job.state = "held" if job.keys else "waiting"

    def enqueue(self, job_id: str, keys: tuple[str, ...], priority: int, delay: int, life: Life) -> bool:
        """Returns whether an action must be decided about the job."""
        job = self.jobs[job_id] = Job(job_id, keys, priority, "delayed", at=self.now + delay)
        job.start_by, job.end_by = (None if ms is None else self.now + ms for ms in life)
        if delay:
            self.back += 1
            return False
        self._arrive(job)
        if self.acting(job):
            self.undecided.add(job_id)
        return job_id in self.undecided

    def holders(self) -> list[Job]:
        """The unfinished jobs with the deduplication key. The one that took it last holds it."""
        jobs = [job for job in self.jobs.values() if job.taken and job.state in UNFINISHED]
        return sorted(jobs, key=lambda job: -job.taken)

    def enqueue_unique(self, job_id: str, keys: tuple[str, ...], priority: int, on: str) -> list[Any]:
        """One job holds the key while it is unfinished. Returns what became of the new one, [] if it is written."""
        new = Job(job_id, keys, priority, "delayed", at=self.now)
        for holder in self.holders()[:1]:
            state, done = holder.state, "returned"
            if on == "fail":
                return [1, holder.id, "-", state, on]
            if on == "kill_running":
                for one in self.holders():
                    if one.state == "active":
                        self._fail(one, "Killed")
                if state == "active":
                    break
                state = holder.state
            if on == "keep_last" and state == "active":
                new.state, new.behind = "blocked", holder.id
                break
            if on != "return" and state != "active":
                done = "replaced"
                if on == "replace_all" and keys != holder.keys:
                    holder.keys, holder.admitted = keys, False
                    if state in ("held", "waiting"):
                        holder.state = "held" if keys else "waiting"
            return [1, holder.id, "-", state, done]
        self.jobs[job_id] = new
        self._take_key(new)
        if not new.behind:
            self._arrive(new)
        return []

    def _take_key(self, job: Job) -> None:
        self.takes += 1
        job.taken = self.takes

    def _follow(self, job_id: str) -> None:
        """The job that waits for the end of this one is due."""
        for job in self.of("blocked"):
            if job.behind == job_id:
                job.state, job.at, job.behind = "delayed", max(self.now, job.at), ""

    def overflow(self, ids: list[str]) -> list[str]:
        """Decide about these jobs. The answer of a decided one stays the same."""
        return [self._answer(job_id) for job_id in ids]

    def _answer(self, job_id: str) -> str:
        if job_id not in self.undecided:
            return self.answers.get(job_id, "")
        self.undecided.remove(job_id)
        job = self.jobs.get(job_id)
        word = self._decide(job) if job is not None and job.state == "held" else ""
        if word:
            self.answers[job_id] = word
        return word

    def _has_room(self, key: str, *, kills: bool = False) -> bool:
        most = self.rule(key).concurrency
        taken = len(self.running(key)) + len(self.unstarted(key))
        return (kills or not self.is_closed(key)) and (most is None or taken < most)

    def _decide(self, job: Job) -> str:
        under, done = self.acting(job), ""
        if any(self.rule(key).over == "drop" and not self._has_room(key) for key in under):
            self._fail(job, "Dropped")
            return "dropped"
        for key in under:
            kills = self.rule(key).over == "kill_running"
            if self.rule(key).over == "drop":
                continue
            for _ in range(16):
                if self._has_room(key, kills=kills):
                    break
                if kills and self.running(key):
                    self._fail(self.running(key)[0], "Killed")
                    done = "killed_running"
                elif unstarted := self.unstarted(key):
                    self._fail(unstarted[0], "Replaced")
                    done = done or "replaced_oldest"
                else:
                    break
        job.counted = bool(under)
        return done

    def _fail(self, job: Job, error: str) -> None:
        job.state, job.error, job.token, job.counted, job.admitted = "failed", error, "", False, False
        self._follow(job.id)

    def kill(self, job_id: str) -> str:
        job = self.jobs.get(job_id)
        if job is None or job.state not in UNFINISHED:
            return ""
        before = job.state
        self._fail(job, "Killed")
        return before

    def remove(self, job_id: str) -> str:
        job = self.jobs.get(job_id)
        if job is None or job.state == "active":
            return ""
        del self.jobs[job_id]
        self._follow(job_id)
        return job.state

    def retry(self, job_id: str) -> str:
        job = self.jobs.get(job_id)
        if job is None or job.state not in ("completed", "failed"):
            return ""
        if job.taken and (holders := self.holders()):
            return f"key {holders[0].id}"
        if job.taken:
            self._take_key(job)
        before, job.error, job.attempted = job.state, "", True
        job.start_by, job.charged = None, False
        job.end_by = None if job.end_by is None or job.end_by <= self.now else job.end_by
        self._arrive(job)
        return before

    def close(self, key: str, ms: int) -> None:
        self.closed[key] = self.now + ms

    # -- workers ---------------------------------------------------------------------------------------------------

    def trip(self, want: int) -> list[str]:
        """Forward, overflow, admit and claim, as the lane of a worker does. Returns the ids of the claimed jobs."""
        for job in sorted(self.of("delayed"), key=lambda job: (job.at, job.id)):
            if job.at <= self.now:
                self._arrive(job)
                if self.acting(job) and not job.attempted:
                    self.undecided.add(job.id)
        self.lapse()
        for job_id in sorted(
            self.undecided, key=lambda job_id: self.jobs[job_id].place if job_id in self.jobs else (0,)
        ):
            self._answer(job_id)
        if self.paused:
            return []
        started: list[Job] = []
        for job in self.of("held", "waiting"):
            if len(started) < want and all(map(self.fits, job.keys)):
                self.start(job)
                started.append(job)
        return [job.id for job in started]

    def start(self, job: Job) -> None:
        job.state, job.counted, job.admitted = "active", False, False
        job.token = f"{max(self.fence + 1, self.now * 1000)} w"
        for key in job.keys:
            if not key.startswith("@") and (band := self.rule(key).band):
                self.arrivals[key] = self.arrival(key) + band[1] / band[0]

    def lapse(self) -> None:
        """Jobs that did not start or end in time end, unless they run."""
        for job in self.of("held", "waiting", "delayed", "blocked"):
            if job.end_by is not None and job.end_by <= self.now:
                self._fail(job, "DeadlineExceeded")
            elif job.start_by is not None and job.start_by <= self.now and not job.charged:
                self._fail(job, "Expired")

    def settle(self, verb: str, job_id: str, token: str, delay: int) -> bool:
        """End a run. Returns whether the token was that of the lease."""
        job = self.jobs.get(job_id)
        if job is None or job.state != "active" or job.token != token:
            return False
        job.token = ""
        if verb == "complete":
            job.state = "completed"
            self._follow(job_id)
        elif verb == "fail":
            self._fail(job, "Error")
        elif verb == "reschedule":
            job.state, job.at, job.attempted, job.charged = "delayed", self.now + delay, True, True
        else:  # release
            self.front -= 1
            job.turn, job.attempted = self.front, True
            job.state = "held" if job.keys else "waiting"
        return True

    def admit(self, waiting: set[str]) -> None:
        """Which of the held jobs are in waiting now. More may be admitted than a claim takes."""
        for job in self.of("held", "waiting"):
            if job.keys:
                job.admitted = job.id in waiting
                job.counted &= not job.admitted
                job.state = "waiting" if job.admitted else "held"

    def state(self) -> dict[str, Any]:
        """What Redis should have: the jobs of each state, the errors, and the places under keys."""
        names = ("held", "waiting", "delayed", "active", "blocked", "completed", "failed")
        return {
            **{name: {job.id for job in self.of(name)} for name in names},
            "errors": {job.id: job.error for job in self.of("failed")},
            "admitted": {f"{key}\0{job.id}" for job in self.of("active", "waiting") for key in job.keys},
            "leases": {job.id: job.token for job in self.of("active")},
        }
