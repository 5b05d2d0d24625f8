"""A state machine over the real server. It calls every verb in any order, with any earlier token, with repetitions,
while time passes.

Redis runs scripts one at a time, so every race between workers is an order of script calls, and the machine explores
orders. A plain Python model predicts each reply and the whole state.

Profiles are set by HYPOTHESIS_PROFILE (dev, ci, nightly). JOBQ_TEST_SEED repeats a run.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import TYPE_CHECKING, Any

from columns import dump, text
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from queue_model import FINISHED, NOTHING, Model, Row

from jobq import Connection
from jobq.engine.store import Store
from jobq.engine.store.packing import pack

if TYPE_CHECKING:
    from conftest import Server

COMMON: Any = {
    "deadline": None,
    "stateful_step_count": 50,
    "suppress_health_check": list(HealthCheck),
    "print_blob": True,
    "report_multiple_bugs": False,
    "phases": (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
}
PROFILES = {
    "dev": settings(max_examples=25, **COMMON),
    "ci": settings(max_examples=150, **COMMON),
    "nightly": settings(max_examples=2000, **COMMON),
    # tests/mutations.py only needs to know that a script is broken, so there is no shrinking.
    "mutations": settings(max_examples=200, database=None, **COMMON | {"phases": (Phase.generate,)}),
}

LEASE = 1000
WORKERS = st.sampled_from(["ann", "bob"])
TIMES = st.sampled_from([0, 1, 400, LEASE, LEASE + 1, 3000])
PRIORITIES = st.sampled_from([0, -1024, 0, -1, 1, 0, 1023])
SETTLES = st.sampled_from(
    ["complete", "reschedule", "fail", "release", "defer", "reschedule", "complete", "snooze", "throttle"]
)
PARKED_AS = ("t", "", "t u")
"""Types of jobs that a worker does not know. The empty one: it knows the type, and cannot read the job."""
RETENTIONS = st.sampled_from(["", "", 0, 500])
ASKED = ("kill", "lapse", "retry", "promote", "remove", "reprioritise", "pause", "resume", "drop")
"""Operators' verbs. They have a request id, and a repeated request gets the recorded answer."""
MOVES_ON = ("reap", "trim", "expire", "forward", "recall", "close")
"""Verbs whose repetition handles the next page, or answers what the first call found."""
KEYS = st.sampled_from(
    [[]] * 10
    + [[("k", None)], [("k", None)], [("k", 1)], [("k", 2000)], [("l", None)], [("l", 700)]]
    + [[("R", 1500)], [("l", None), ("R", 1500)]]
)
LIVES = st.sampled_from(
    [(None, None)] * 6 + [(1, None), (900, None), (None, 900), (900, 900), (400, 3000), (1500, 700)]
)
"""In how many ms a job must have started and ended."""
JOBS = st.tuples(PRIORITIES, st.booleans(), st.sampled_from([0, 0, 0, 1, 500, 5000]), KEYS, LIVES)
AGINGS = st.sampled_from([0, 0, 1, 400, 60_000])
"""How much waiting a step of priority is worth, ms."""
Lease = tuple[str, str, int]
"""Id, token, and the number of the run."""


def runs_of(row: str) -> int:
    """The number of charged runs in a row of the attempts column."""
    return int(row.split()[0])


class Machine(RuleBasedStateMachine):
    """One queue and its model."""

    ids: Bundle[str] = Bundle("ids")
    leases: Bundle[Lease] = Bundle("leases")

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.model = Model(1_700_000_000_000)
        self.runner = asyncio.Runner()
        self.connection, self.admin = Connection(server.url), Connection(server.admin_url)
        self.store = Store(self.connection, "model", clock=lambda: str(self.model.now))
        self.run(self.admin.trip(pack((b"FLUSHALL",)), 1))
        self.count = 0
        self.timed = False
        """Whether jobs have times by which they must start and end. Without them claims come with fewer keys."""
        self.requests = {"ann:0": 0, "bob:0": 0}
        self.again: Any = None
        self.asked = 0
        self.sent: list[list[Row]] = []
        """What was enqueued last."""
        self.written: dict[tuple[str, str], int] = {}
        """How many log lines each run wrote."""
        self.earlier: list[Any] = []
        """The last requests of operators."""
        self.watch: int | None = None
        """The time until which an idle worker sleeps that knows the first due time."""
        self.seen_fence = 0
        self.seen_attempts: dict[str, int] = {}
        self.began = False

    def run(self, coro: Any) -> Any:
        return self.runner.run(coro)

    def teardown(self) -> None:
        self.run(self.connection.aclose())
        self.run(self.admin.aclose())
        self.runner.close()

    def do(self, verb: str, *args: Any, request: str | None = None, **named: Any) -> Any:
        """Run a verb on both; the replies must agree. ``request``: the operator's request that is repeated."""
        if verb in ASKED:
            self.asked += request is None
            request = request or f"q{self.asked}"
            self.store.request = lambda: request
            self.again = (verb, args, named | {"request": request})
            self.earlier = [*self.earlier[-5:], self.again]
            expected = self.model.asked(request, verb, *args, **named)
        else:
            self.again = (verb, args, dict(named))
            expected = getattr(self.model, verb)(*args, **named)
        again = named.pop("repeated", False) if verb == "enqueue" else False
        keyed = verb == "enqueue" and any(row.keys for row in args[0])
        if keyed:
            args = ([word for row in args[0] for word in (row.id, row.spec, row.options, row.uniqueness)],)
        elif verb == "enqueue":
            args = ([word for row in args[0] for word in (row.id, row.spec, row.options)],)
        call = getattr(self.store, "enqueue_unique" if keyed else verb)(*args, **named)
        if again:
            call.send_again()
        actual = plain(self.run(self.store.do(call)))
        if keyed:  # The model does not predict the state of the holder; tests/model/test_uniqueness_table.py does.
            actual = [word for i in range(0, len(actual), 5) for word in actual[i : i + 3]]
        if verb == "enqueue" and (actual[:1] == [0] or not self.began):
            # The first enqueue learns that the queue is new. So does one after a rebase of an empty queue, which does
            # no harm.
            assert actual[:3] == [0, "", "new"]
            self.began, actual = True, actual[3:]
        assert actual == expected, f"{verb}{args}"
        return actual

    # -- producers and operators -----------------------------------------------------------------------------------

    def rows(self, jobs: list[tuple[int, bool, int, list[Any], Any]], rerun_of: str = "") -> Any:
        # Ids are not in alphabetical order, so that an order by id is not mistaken for the order of arrival.
        rows: list[Row] = []
        for i, (priority, lifo, delay, keys, life) in enumerate(jobs):
            start_by, end_by = [self.model.now + ms if ms and self.timed else None for ms in life]
            first = lifo and not self.model.aging  # with aging such a job is refused
            rows.append(Row(f"j{999 - self.count - i}", priority, first, delay, keys, start_by, end_by, rerun_of))
        self.count += len(rows)
        self.sent = [*self.sent[-3:], rows]
        self.do("enqueue", rows)
        return multiple(*[row.id for row in rows if row.id in self.model.jobs])

    @initialize(target=ids, jobs=st.lists(JOBS, min_size=4, max_size=8), timed=st.booleans(), aging=AGINGS)
    def begin(self, jobs: list[Any], timed: bool, aging: int) -> Any:
        self.timed = timed
        if aging:
            assert self.run(self.store.do(self.store.aging(aging))) == self.model.set_aging(aging)
            self.began = True  # only a queue without settings is new
        return self.rows(jobs)

    @rule(target=ids, job_id=ids, job=JOBS)
    def rerun(self, job_id: str, job: Any) -> Any:
        """A job is run again as a new one. It may have been removed."""
        return self.rows([job], job_id)

    @rule(target=ids, jobs=st.lists(JOBS, min_size=1, max_size=3))
    def enqueue(self, jobs: list[Any]) -> Any:
        return self.rows(jobs)

    @rule(number=st.integers(0, 3))
    def enqueue_again(self, number: int) -> None:
        """The reply was lost, some time ago: the jobs may have run and been removed meanwhile."""
        if number < len(self.sent):
            removed = {row.id for row in self.sent[number] if row.id in self.model.removed}
            self.do("enqueue", self.sent[number], repeated=True)
            assert not removed & set(self.model.jobs), "a removed job came back"

    @rule(
        ids=st.lists(ids, min_size=1, max_size=3),
        verb=st.sampled_from(["kill", "retry", "retry", "promote", "remove", "reprioritise"]),
        priority=PRIORITIES,
    )
    def operator(self, ids: list[str], verb: str, priority: int) -> None:
        self.operate(ids, verb, priority)

    def operate(self, ids: list[str], verb: str, priority: int) -> None:
        words = {"kill": [b"killed"], "reprioritise": [priority]}.get(verb, [])
        states = self.do(verb, ids, *words)
        if verb == "retry":
            self.seen_attempts |= {job_id: 0 for job_id, state in zip(ids, states, strict=True) if state in FINISHED}

    @rule(target=ids, job_id=ids, priority=PRIORITIES)
    def succeed(self, job_id: str, priority: int) -> Any:
        """A job is killed, another one takes its keys, and the first is retried."""
        job = self.model.jobs.get(job_id)
        keys: list[Any] = [(name, 700 if timed else None) for name, timed in job.keys] if job else []
        self.do("kill", [job_id], b"killed")
        successor = self.rows([(priority, False, 0, keys or [("k", None)], (900, None))])
        self.operate([job_id], "retry", 0)
        return successor

    @rule(verb=st.sampled_from(["resume", "resume", "pause"]))
    def pause(self, verb: str) -> None:
        self.do(verb)

    @rule(ms=st.sampled_from([0, 0, 1, 1000]))
    def close(self, ms: int) -> None:
        """An operator opens the queue, or closes it for a time."""
        self.do("close", "queue", ms)

    @rule(force=st.sampled_from([False] * 7 + [True]))
    def drop(self, force: bool) -> None:
        if self.do("drop", force=force)[3]:
            # the numbers of a new queue start again
            self.began, self.watch = False, None
            self.seen_fence, self.seen_attempts = 0, {}

    @rule(
        publisher=WORKERS,
        rows=st.lists(st.tuples(st.sampled_from(["t", "u"]), st.sampled_from("12345")), min_size=1, max_size=3),
        started=st.booleans(),
    )
    def publish(self, publisher: str, rows: list[tuple[str, str]], started: bool) -> None:
        self.do("publish", publisher, [word for pair in rows for word in pair], started=started)

    @rule(number=st.integers(0, 5))
    def operator_again(self, number: int) -> None:
        """The reply to an operator was lost some time ago. The jobs have changed since, and the repetition must not
        change them."""
        if number < len(self.earlier):
            verb, args, named = self.earlier[number]
            if named["request"] in self.model.requests:
                before = self.model.columns()
                self.do(verb, *args, **named)
                assert self.model.columns() == before

    # -- workers ---------------------------------------------------------------------------------------------------

    def took(self, reply: Any) -> Any:
        if reply is None:
            return multiple()
        token, _, ids, _, charged, *_ = reply
        return multiple(
            *[(job_id, token, runs_of((charged and charged[i]) or "0") + 1) for i, job_id in enumerate(ids)]
        )

    def take(self, worker: str, want: int, *, repeated: bool = False) -> Any:
        lane = f"{worker}:0"
        self.requests[lane] += not repeated
        recorded = repeated and self.model.claims.get(lane, (-1,))[0] == self.requests[lane]
        reply = self.do("claim", want, LEASE, worker, lane, self.requests[lane], repeated=repeated)
        if reply == NOTHING:
            # The queue has jobs with times since the last claim, or the first job is late.
            self.do("lapse", 2, b"expired", b"missed")
            return self.take(worker, want)
        if reply and len(reply[2]) == want and not recorded:
            self.watch = None  # The worker may have been the one that watched, and may be full now.
        return self.took(reply)

    @rule(target=leases, worker=WORKERS, want=st.integers(1, 3))
    def claim(self, worker: str, want: int) -> Any:
        return self.take(worker, want)

    @rule(target=leases, worker=WORKERS, want=st.integers(1, 3))
    def claim_again(self, worker: str, want: int) -> Any:
        """The reply to the lane's last claim was lost some time ago."""
        return self.take(worker, want, repeated=True)

    @rule(worker=WORKERS, want=st.integers(1, 3))
    def claim_late(self, worker: str, want: int) -> None:
        """The lane's last claim is executed late, without the flag of a repetition."""
        lane = f"{worker}:0"
        if self.model.claims.get(lane, (-1,))[0] == self.requests[lane]:
            assert self.do("claim", want, LEASE, worker, lane, self.requests[lane], repeated=False) is None

    @rule(target=leases, worker=WORKERS, want=st.integers(1, 3))
    def wake(self, worker: str, want: int) -> Any:
        """An idle worker takes the token, claims, and sleeps until the next due time unless it is full."""
        self.run(self.store.command(b"ZPOPMIN", self.store.keys["wake"]))
        _, due_in, again = self.do("forward", 100)
        if again:
            # The queue has jobs with times since the last call.
            _, due_in, _ = self.do("forward", 100)
        taken = self.take(worker, want)
        if len(taken.values) < want:
            moments = [self.model.now + due_in] if due_in >= 0 else []
            moments += [self.model.closed] if self.model.closed else []
            self.watch = min(moments, default=None)
        return taken

    @rule(
        leases=st.lists(leases, min_size=1, max_size=3, unique_by=lambda lease: lease[:2]),
        verb=SETTLES,
        delay=TIMES,
        retention=RETENTIONS,
    )
    def settle(self, leases: list[Lease], verb: str, delay: int, retention: Any) -> None:
        """With any earlier token. Most of them no longer hold a lease."""
        self.end(leases, verb, delay, retention)

    @rule(target=leases, worker=WORKERS, want=st.integers(1, 3), verb=SETTLES, delay=TIMES, retention=RETENTIONS)
    def work(self, worker: str, want: int, verb: str, delay: int, retention: Any) -> Any:
        """The most frequent case: settle jobs that were just claimed."""
        taken = self.take(worker, want)
        if taken.values:
            self.end(list(taken.values), verb, delay, retention)
        return taken

    def end(self, leases: list[Lease], verb: str, delay: int, retention: Any) -> None:
        rest = {
            "complete": lambda run: (f"result {run}", retention),
            "reschedule": lambda run: (run, delay, f"error {run}"),
            "snooze": lambda _: (delay,),
            "throttle": lambda run: (delay, ("job", "queue", "key")[run % 3]),
            "fail": lambda run: (run, f"error {run}", retention),
            "defer": lambda run: (PARKED_AS[run % 3], 700),
        }.get(verb, lambda _: ())
        words = {"complete": [["run7:t", len(leases)]], "defer": [300, 1000, b"[]"]}.get(verb, [])
        self.do(verb, [word for job_id, token, run in leases for word in (job_id, token, *rest(run))], *words)

    @rule(
        leases=st.lists(leases, min_size=1, max_size=3, unique_by=lambda lease: lease[:2]),
        verb=st.sampled_from(["renew", "renew", "progress", "log", "log"]),
        resent=st.sampled_from([0, 0, 1, 3]),
    )
    def hold(self, leases: list[Lease], verb: str, resent: int) -> None:
        said = {"renew": (), "progress": (f"at {self.model.now}",)}
        words = [LEASE] if verb == "renew" else []
        flat: list[Any] = []
        for job_id, token, _ in leases:
            flat += (job_id, token, *(said[verb] if verb in said else self.lines(job_id, token, resent)))
        self.do(verb, flat, *words)

    def lines(self, job_id: str, token: str, resent: int) -> tuple[int, int, str]:
        """A run's next line, with some of those before it: their reply was lost."""
        number = self.written[job_id, token] = self.written.get((job_id, token), 0) + 1
        first = max(0, number - 1 - resent)
        return first, number, "\n".join(f"line {n} of {job_id}" for n in range(first, number))

    @rule(job_id=ids, lease=leases)
    def settle_with_the_token_of_another(self, job_id: str, lease: Lease) -> None:
        self.do("complete", [job_id, lease[1], "stolen", ""], [])

    # -- duties ----------------------------------------------------------------------------------------------------

    @rule(limit=st.integers(1, 3))
    def forward(self, limit: int) -> None:
        self.do("forward", limit)

    @rule(limit=st.integers(1, 3), types=st.sampled_from([["t"], ["t u"], ["u", "t u", "t"]]))
    def recall(self, limit: int, types: list[str]) -> None:
        self.do("recall", limit, types)

    @rule(target=leases, limit=st.integers(1, 3), gap=st.sampled_from([500, 10**9]), grace=st.sampled_from([0, 300]))
    def reap(self, limit: int, gap: int, grace: int) -> Any:
        return self.took(self.do("reap", limit, LEASE, "sweeper", gap, grace))

    @rule(
        keep=st.integers(0, 3),
        age=st.sampled_from([1, 1000, 10**9]),
        page=st.integers(1, 4),
        young=st.sampled_from([(0, 9), (700, 1), (700, 9)]),
        keys=st.booleans(),
    )
    def tidy(self, keep: int, age: int, page: int, young: tuple[int, int], keys: bool) -> None:
        if keys:
            self.do("expire", page)
        else:
            self.do("trim", keep, keep, age, page, *young)

    @rule(page=st.integers(1, 3))
    def lapse(self, page: int) -> None:
        self.do("lapse", page, b"expired", b"missed")

    @rule()
    def rebase(self) -> None:
        self.do("rebase", 10_000, -1)

    @rule(ms=st.one_of(TIMES, st.sampled_from([LEASE, 3000, 130_000, 90_000_000])))
    def advance(self, ms: int) -> None:
        self.model.now += ms
        self.again = None

    @rule(target=leases)
    def send_again(self) -> Any:
        """The reply to the last call was lost, and the call is repeated at once."""
        if self.again is None:
            return multiple()
        verb, args, named = self.again
        if verb in ("claim", "enqueue"):
            named = named | {"repeated": True}
        before = self.model.columns()
        # An answer without jobs is not recorded, and the repetition looks at the next page.
        moves_on = verb in MOVES_ON or (verb == "lapse" and named["request"] not in self.model.requests)
        reply = self.do(verb, *args, **named)
        if not moves_on:
            after = self.model.columns()
            if verb == "claim":
                # A repetition that finds nothing is recorded too, so that the original cannot be executed after it.
                after["claims"] = before["claims"]
            assert after == before, "a repeated call has no effect of its own"
        return self.took(reply) if verb in ("claim", "reap") else multiple()

    # -- what holds at all times -----------------------------------------------------------------------------------

    @invariant()
    def redis_is_as_the_model_says(self) -> None:
        state = self.run(dump(Store(self.admin, "model")))
        meta, metrics = state.pop("meta", {}), state.pop("metrics", {})
        self.token_lies_there = "wake" in state
        for column in ("wake", "events"):
            state.pop(column, None)
        actual = {column: state.pop(column, {}) for column in self.model.columns() if column not in DERIVED}
        assert not state, "nothing else stands in Redis"
        # The high bits of the score are the priority. The order of jobs shows the position below them. With aging the
        # whole score is the place.
        aged = self.model.aging > 0
        actual["waiting"] = [
            (job_id, int(score) - 2**41 if aged else score // 2**42)
            for job_id, score in (actual["waiting"] or {}).items()
        ]
        actual["totals"] = {name: int(count) for name, count in metrics.items() if not name.startswith("m:")}
        actual["paused"] = "paused" in meta
        actual["closed"] = int(meta["closed"]) if "closed" in meta else None
        actual["fence"] = int(meta.get("fence", 0))
        assert actual == self.model.columns()
        self.one_place_for_each(actual)

    def one_place_for_each(self, actual: dict[str, Any]) -> None:
        """Checks Redis without the model."""
        waiting = [job_id for job_id, _ in actual["waiting"]]
        places = waiting + [job for state in ("delayed", "active", *FINISHED) for job in actual[state]]
        assert sorted(places) == sorted(actual["jobs"]), "each job stands in one set, and no other does"
        assert set(actual["active"]) == set(actual["leases"]), "active and leased are the same"
        for column in ("priorities", "attempts", "errors", "results", "progress", "logs", "unserved", "keys", "reruns"):
            assert set(actual[column]) <= set(actual["jobs"]), f"{column} knows a removed job"
        assert set(actual["types"]) == set(actual["types_seen"])
        assert all(value.count("\n") < 4 for value in actual["types"].values()), "too many rows of a type"
        parked = {member.rpartition("\0")[2] for member in actual["parked"]}
        assert parked <= set(actual["delayed"]), "parked jobs are delayed"
        assert set(actual["expires"]) <= {*actual["completed"], *actual["failed"]}
        assert set(actual["unique_until"]) <= set(actual["unique"])
        for name, value in actual["unique"].items():
            assert (name.isupper() and name in actual["unique_until"]) or value.split()[0] in actual["jobs"], (
                "a key left over"
            )
        assert actual["fence"] >= self.seen_fence, "fences only grow"
        self.seen_fence = actual["fence"]
        attempts = {job_id: runs_of(row) for job_id, row in actual["attempts"].items()}
        for job_id in actual["jobs"]:
            assert attempts.get(job_id, 0) >= self.seen_attempts.get(job_id, 0), "attempts never fall"
        self.seen_attempts = attempts

    @invariant()
    def somebody_will_look(self) -> None:
        """No wake-up is lost: if a job can be claimed there is a token, and if one is delayed there is a token or a
        watcher."""
        if self.model.of("waiting") and not self.model.paused:
            opens = self.watch is not None and self.model.closed is not None and self.watch <= self.model.closed
            assert self.token_lies_there or opens, "jobs wait, and nobody is told"
        delayed = self.model.of("delayed")
        if delayed:
            watched = self.watch is not None and self.watch <= delayed[0].at
            assert self.token_lies_there or watched, "nobody knows the next due time"


DERIVED = ("totals", "paused", "closed", "fence")
"""Columns of the model that are not keys in Redis."""


def plain(reply: Any) -> Any:
    """A reply as text, lists and numbers."""
    if isinstance(reply, bytes):
        return text(reply)
    if isinstance(reply, list):
        return [plain(one) for one in reply]
    if hasattr(reply, "__struct_fields__"):
        return [
            plain(getattr(reply, name))
            for name in reply.__struct_fields__
            if name not in ("limited_ms", "weights", "urgent") or getattr(reply, name) not in (None, [], 0)
        ]
    return reply


def test_a_queue_does_what_its_model_says(server: Server) -> None:
    number = int(os.environ.get("JOBQ_TEST_SEED") or random.getrandbits(63))
    profile = os.environ.get("HYPOTHESIS_PROFILE", "dev")
    print(f"JOBQ_TEST_SEED={number} HYPOTHESIS_PROFILE={profile}")

    @seed(number)
    def machine() -> Machine:
        return Machine(server)

    run_state_machine_as_test(machine, settings=PROFILES[profile])  # pyright: ignore[reportArgumentType]
