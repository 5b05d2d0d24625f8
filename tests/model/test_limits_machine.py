"""A state machine over the real server for limits: rules, rates, actions for jobs over a limit, closed keys, jobs
that must start or end in time, and jobs with one deduplication key.

The model starts the jobs that should start, in the order in which they should. So a place or a token that leaks, a job
that is passed over, and one that is started too early all show as a difference. ``JOBQ_TEST_SEED`` repeats a run.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import TYPE_CHECKING, Any

from columns import dump, text
from hypothesis import seed
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
from limits_model import Life, LimitsModel, Rule
from test_machine import PROFILES

from jobq import Connection
from jobq.engine.store import Store
from jobq.engine.store.packing import pack
from tests.chaos.invariants import broken_in

if TYPE_CHECKING:
    from conftest import Server

LEASE = 1000
KEYS = st.sampled_from(
    [
        (), ("pool",), ("pool",), ("tenant:a",), ("tenant:b",), ("rate",), ("drop",), ("latest",), ("kill",),
        ("pool", "rate"), ("pool", "tenant:a"), ("tenant:b", "latest"), ("drop", "pool"), ("drop", "kill"),
    ]
)  # fmt: skip
RULES = {
    "pool": [Rule(2), Rule(1), Rule(3), Rule(0)],
    "tenant": [Rule(1), Rule(2)],
    "rate": [Rule(band=(2, 1000, 2)), Rule(band=(10, 1000, 1)), Rule(1, (2, 1000, 1))],
    "drop": [Rule(2, over="drop"), Rule(1, over="drop")],
    "latest": [Rule(1, over="replace_oldest"), Rule(2, over="replace_oldest")],
    "kill": [Rule(1, over="kill_running"), Rule(2, over="kill_running")],
}
PRIORITIES = st.sampled_from([0, 0, 0, -1, 5])
DELAYS = st.sampled_from([0, 0, 0, 0, 1, 500])
PLAIN_KEYS = st.sampled_from([(), ("pool",), ("tenant:a",), ("rate",), ("pool", "rate")])
CONFLICTS = st.sampled_from(["return", "fail", "replace_all", "replace_all", "keep_last", "keep_last", "kill_running"])
LIVES = st.sampled_from([(None, None)] * 9 + [(1, None), (700, None), (None, 700), (700, 1500)])
JOBS = st.tuples(KEYS, PRIORITIES, DELAYS, LIVES, st.sampled_from([True, True, False]))
VERBS = st.sampled_from(["complete", "complete", "fail", "release", "reschedule"])
STALE = st.sampled_from([False] * 5 + [True])


class LimitsMachine(RuleBasedStateMachine):
    """One queue and its model."""

    ids: Bundle[str] = Bundle("ids")

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.model = self.new_model()
        self.runner = asyncio.Runner()
        self.connection, self.admin = Connection(server.url), Connection(server.admin_url)
        self.store = Store(self.connection, "limits", clock=lambda: str(self.model.now))
        self.store.limited = True  # as a worker learns at its first claim
        self.run(self.admin.trip(pack((b"FLUSHALL",)), 1))
        self.count = self.requests = 0
        self.tokens: dict[str, list[str]] = {}
        """All tokens that each job had."""
        self.claim: Any = None
        self.took: list[str] = []
        """What the last claim was, and which jobs it took."""

    def new_model(self) -> LimitsModel:
        return LimitsModel(1_700_000_000_000, {name: rules[0] for name, rules in RULES.items()})

    def run(self, coro: Any) -> Any:
        return self.runner.run(coro)

    def do(self, call: Any) -> Any:
        return self.run(self.store.do(call))

    def teardown(self) -> None:
        self.run(self.connection.aclose())
        self.run(self.admin.aclose())
        self.runner.close()

    # -- producers and operators -----------------------------------------------------------------------------------

    @initialize(target=ids, jobs=st.lists(JOBS, min_size=4, max_size=8))
    def begin(self, jobs: list[Any]) -> Any:
        for name, one in self.model.rules.items():
            self.write(name, one)
        return multiple(*[self.add(*job) for job in jobs])

    def write(self, name: str, new: Rule) -> None:
        cursor: str | bytes = ""
        while cursor := self.do(self.store.rule("set", name, new.text, cursor, 2)):
            assert cursor != b"full"

    @rule(target=ids, jobs=st.lists(JOBS, min_size=1, max_size=4))
    def enqueue(self, jobs: list[Any]) -> Any:
        return multiple(*[self.add(*job) for job in jobs])

    def add(self, keys: tuple[str, ...], priority: int, delay: int, life: Life, decides: bool) -> str:
        """``decides``: the producer lives to ask what happened to its job."""
        self.count += 1
        job_id = f"j{999 - self.count}"
        options = f"{priority} 0 {delay}" + ("\v" + "\n".join(keys) if keys else "")
        if life != (None, None):
            times = ["-" if ms is None else str(self.model.now + ms) for ms in life]
            options += "\v" * (3 - options.count("\v")) + " ".join(times) + " "
        row = [job_id, b'{"type":"t"}', options]
        reply = self.do(self.store.enqueue(row))
        reply = reply[3:] if reply[:1] == [0] else reply
        over = self.model.enqueue(job_id, keys, priority, delay, life)
        assert reply == ([1, b"", b"over"] if over else [])
        if over and decides:
            self.decide([job_id])
        return job_id

    @rule(target=ids, keys=PLAIN_KEYS, priority=PRIORITIES, on=CONFLICTS)
    def enqueue_unique(self, keys: tuple[str, ...], priority: int, on: str) -> str:
        """Jobs with one deduplication key. They change limits, wait for each other, and end each other."""
        self.count += 1
        job_id = f"u{999 - self.count}"
        options = f"{priority} 0 0" + ("\v" + "\n".join(keys) if keys else "")
        row: list[Any] = [job_id, f'{{"type":"t","payload":{self.count}}}', options, f"unfinished 0 {on} -1 -1 10 k"]
        reply = [text(word) if isinstance(word, bytes) else word for word in self.do(self.store.enqueue_unique(row))]
        assert reply[5 if reply[:1] == [0] else 0 :] == self.model.enqueue_unique(job_id, keys, priority, on)
        return job_id

    def decide(self, ids: list[str]) -> None:
        words = [word.decode() for word in self.do(self.store.overflow(ids))]
        assert words == self.model.overflow(ids)

    @rule(job_id=ids)
    def decide_again(self, job_id: str) -> None:
        """The reply to the producer was lost, or its job was decided about meanwhile."""
        self.decide([job_id])

    @rule(job_id=ids, verb=st.sampled_from(["kill", "remove", "retry"]))
    def operator(self, job_id: str, verb: str) -> None:
        words = (b'{"type":"Killed"}',) if verb == "kill" else ()
        (state,) = self.do(getattr(self.store, verb)([job_id], *words))
        assert state == getattr(self.model, verb)(job_id)

    @rule(name=st.sampled_from(sorted(RULES)), number=st.integers(0, 3))
    def change_rule(self, name: str, number: int) -> None:
        self.change(name, RULES[name][number % len(RULES[name])])

    def change(self, name: str, new: Rule) -> None:
        self.write(name, new)
        self.model.rules[name] = new
        self.look_who_is_admitted()  # jobs that have not started are held again, so that the new rule decides

    @rule(key=st.sampled_from(["pool", "tenant:a", "rate", "drop", "latest", "kill"]), ms=st.sampled_from([0, 1, 700]))
    def close(self, key: str, ms: int) -> None:
        self.do(self.store.close(key, ms))
        self.model.close(key, ms)

    @rule(pauses=st.sampled_from([False, False, True]))
    def pause(self, pauses: bool) -> None:
        self.do(self.store.pause() if pauses else self.store.resume())
        self.model.paused = pauses

    @rule()
    def flush_scripts(self) -> None:
        self.run(self.admin.trip(pack((b"SCRIPT", b"FLUSH")), 1))

    # -- workers ---------------------------------------------------------------------------------------------------

    @rule(want=st.sampled_from([1, 2, 10]))
    def trip(self, want: int) -> None:
        self.work(want)

    @rule(want=st.sampled_from([1, 2, 10]), verbs=st.lists(VERBS, min_size=1, max_size=4), delay=DELAYS)
    def run_jobs(self, want: int, verbs: list[str], delay: int) -> None:
        """The most frequent case: jobs end, and the next ones start."""
        self.work(want)
        for verb in verbs:
            self.end(0, verb, delay, stale=False)
        self.work(want)

    def work(self, want: int) -> None:
        """What the lane of a worker does."""
        store = self.store
        self.do(store.forward(100))
        self.do(store.lapse(100, b'{"type":"Expired"}', b'{"type":"DeadlineExceeded"}'))
        self.do(store.overflow(()))
        ids: list[str] = []
        while len(ids) < want:
            _, _, left = self.do(store.admit(want - len(ids), 250, 1))
            self.requests += 1
            self.claim = (want - len(ids), self.requests)
            self.took = self.claimed(repeated=False)
            ids += self.took
            # A claim may bring less although others may start: jobs that were admitted before their key was closed go
            # back to held. Then the wake token calls the worker again.
            if not left and not self.run(self.admin.trip(pack((b"ZPOPMIN", self.store.keys["wake"])), 1))[0]:
                break
        self.expect(ids, want)
        self.look_who_is_admitted()
        for job_id in ids:
            self.model.jobs[job_id].token = self.tokens[job_id][-1]

    def expect(self, ids: list[str], want: int) -> None:
        """A trip claimed these jobs."""
        assert ids == self.model.trip(want)

    def look_who_is_admitted(self) -> None:
        self.model.admit(set(self.run(dump(Store(self.admin, "limits"))).get("waiting", {})))

    def claimed(self, *, repeated: bool) -> list[str]:
        want, number = self.claim
        taken = self.do(self.store.claim(want, LEASE, "w", "w:0", number, repeated=repeated))
        ids = [raw.decode() for raw in taken.ids] if taken else []
        for job_id in ids:
            if taken.token.decode() not in self.tokens.setdefault(job_id, []):
                self.tokens[job_id].append(taken.token.decode())
        return ids

    @rule()
    def claim_again(self) -> None:
        """The reply was lost. The repetition takes no other job and no other token."""
        if self.claim is not None and self.took:
            before = self.model.state()
            assert set(self.claimed(repeated=True)) <= set(self.took)
            assert self.model.state() == before

    @rule(number=st.integers(0, 9), verb=VERBS, delay=DELAYS, stale=STALE)
    def settle(self, number: int, verb: str, delay: int, stale: bool) -> None:
        self.end(number, verb, delay, stale=stale)

    def end(self, number: int, verb: str, delay: int, *, stale: bool) -> None:
        """The end of a run. ``stale``: of one that has lost its lease."""
        active = [job for job in self.model.of("active") if job.id in self.tokens]
        if not active:
            return
        job = active[number % len(active)]
        token = self.tokens[job.id][0] if stale else job.token
        rest: tuple[Any, ...] = {"complete": (b"r", ""), "fail": (1, b'{"type":"Error"}', ""), "release": ()}.get(
            verb, (1, delay, b'{"type":"Error"}')
        )
        words = ([],) if verb == "complete" else ()
        self.do(getattr(self.store, verb)([job.id, token, *rest], *words))
        self.model.settle(verb, job.id, token, delay)

    @rule(limit=st.integers(1, 3))
    def lose_leases(self, limit: int) -> None:
        """Leases run out, and a sweeper takes the jobs. They still count under their keys."""
        self.model.now += LEASE + 1
        taken = self.do(self.store.reap(limit, LEASE, "w", 10**9, 0))
        for job_id in [raw.decode() for raw in taken.ids] if taken else []:
            self.model.jobs[job_id].token = taken.token.decode()
            self.tokens[job_id].append(taken.token.decode())
            self.model.fence = int(taken.token.split()[0])

    @rule()
    def recount(self) -> None:
        """The sweeper finds nothing to mend."""
        cursor: str | bytes = ""
        while True:
            cursor, mended = self.do(self.store.recount(10, cursor))
            assert mended == 0
            if not cursor:
                return

    @rule(ms=st.sampled_from([1, 100, 500, 700, 1000, 5000]))
    def advance(self, ms: int) -> None:
        self.model.now += ms

    # -- what holds at all times -----------------------------------------------------------------------------------

    @invariant()
    def redis_is_as_the_model_says(self) -> None:
        state = self.run(dump(Store(self.admin, "limits")))
        expected = self.model.state()
        errors = {
            name: text.rpartition('"type":"')[2].partition('"')[0] for name, text in state.get("errors", {}).items()
        }
        actual: dict[str, Any] = {
            name: set(state.get(name, {})) for name in expected if name not in ("errors", "leases")
        }
        actual["errors"] = {name: errors[name] for name in state.get("failed", {})}
        actual["leases"] = state.get("leases", {})
        assert actual == expected
        assert broken_in(state, set()) == []


def test_limits_do_what_their_model_says(server: Server) -> None:
    number = int(os.environ.get("JOBQ_TEST_SEED") or random.getrandbits(63))
    profile = os.environ.get("HYPOTHESIS_PROFILE", "dev")
    print(f"JOBQ_TEST_SEED={number} HYPOTHESIS_PROFILE={profile}")

    @seed(number)
    def machine() -> LimitsMachine:
        return LimitsMachine(server)

    run_state_machine_as_test(machine, settings=PROFILES[profile])  # pyright: ignore[reportArgumentType]
