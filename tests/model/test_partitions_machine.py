"""A state machine over the real server for one queue of several partitions, with operators whose calls are cut.

The model is one queue: it knows partitions only as the places where jobs are. A second program has the queue open and
does not hear of new partitions unless a rule says so. ``JOBQ_TEST_SEED`` repeats a run.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import seed
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from test_machine import PROFILES

from jobq import Connection, InvalidJob, Queue, State
from jobq.engine.model.ids import partition_of
from jobq.engine.model.spread import home
from jobq.engine.queue import session
from jobq.engine.queue.settled import counts_of, settings_of
from jobq.engine.queue.settling import settle
from jobq.engine.store.packing import pack
from tests.chaos.invariants import broken

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Server

    from jobq.engine.store import Store

LEASE = 3_600_000
UNFINISHED = ("waiting", "held", "active")
PRIORITIES = st.sampled_from([0, 0, 0, -3, 5])
KEYS = st.sampled_from(["a", "b", "c", "d", "e"])
MOST = 6
"""The most partitions that are tried."""


@dataclass
class Job:
    """What the model knows of a job. ``came`` is its place among all jobs. ``waits``: it has not started."""

    partition: int
    priority: int
    came: int
    key: str | None = None
    pool: bool = False
    state: str = "waits"
    token: str = ""


class PartitionsMachine(RuleBasedStateMachine):
    """One queue and its model."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.connection, self.admin = Connection(server.url), Connection(server.admin_url)
        self.run(self.admin.trip(pack((b"FLUSHALL",)), 1))
        self.jobs: dict[str, Job] = {}
        self.homes = 0
        self.paused = False
        self.concurrency = 2
        self.groups: dict[str, float] = {}
        self.closed = False
        self.came = self.request = 0
        self.known = 1
        """The partitions that the second program knows of."""
        self.cut = False
        """Whether a call was cut, and no worker has finished it yet."""

    def run(self, coro: Any) -> Any:
        return self.runner.run(coro)

    def here(self, call: Callable[[], Any]) -> Any:
        """The result of a call that must be made in the event loop."""

        async def make() -> Any:
            result = call()
            return await result if isinstance(result, Awaitable) else result

        return self.run(make())

    def teardown(self) -> None:
        for queue in (self.queue, self.other):
            self.run(queue.aclose())
        self.run(self.connection.aclose())
        self.run(self.admin.aclose())
        self.runner.close()

    @initialize(count=st.sampled_from([2, 3, 4]))
    def begin(self, count: int) -> None:
        self.count = self.most = self.known = count
        self.queue = Queue("model", self.connection, partitions=count)
        self.run(self.queue.open())
        self.run(self.queue.set_limit("pool", concurrency=2))
        self.other = Queue("model", self.connection)
        self.run(self.other.open())

    @property
    def parts(self) -> list[Store]:
        return self.here(lambda: self.queue.store.parts)

    # -- producers -------------------------------------------------------------------------------------------------

    def add(self, job_id: str, priority: int, **more: Any) -> None:
        assert job_id not in self.jobs
        self.came += 1
        self.jobs[job_id] = Job(partition_of(job_id), priority, self.came, **more)

    @rule(priority=PRIORITIES, stale=st.booleans(), number=st.sampled_from([1, 1, 3]))
    def enqueue(self, priority: int, stale: bool, number: int) -> None:
        queue, count = (self.other, self.most) if stale else (self.queue, self.count)
        news = [queue.new("t", priority=priority) for _ in range(number)]
        for job in self.here(lambda: queue.enqueue_many(news)):
            self.add(job.id, priority)
            assert partition_of(job.id) < count

    @rule(priority=PRIORITIES, stale=st.booleans(), key=KEYS)
    def enqueue_with_a_key(self, priority: int, stale: bool, key: str) -> None:
        queue, count = (self.other, self.most) if stale else (self.queue, self.count)
        job = self.here(lambda: queue.enqueue("t", priority=priority, key=key))
        self.decide(count)
        holder = next(
            (name for name, one in self.jobs.items() if one.key == key and one.state in ("waits", "active")), None
        )
        if holder is not None:
            assert job.id == holder
        else:
            self.add(job.id, priority, key=key)
        assert partition_of(job.id) == home(key, self.homes)

    @rule(priority=PRIORITIES, stale=st.booleans())
    def enqueue_under_a_limit(self, priority: int, stale: bool) -> None:
        queue, count = (self.other, self.most) if stale else (self.queue, self.count)
        job = self.here(lambda: queue.enqueue("t", priority=priority, limits=["pool"]))
        self.decide(count)
        self.add(job.id, priority, pool=True)
        assert partition_of(job.id) == home("pool", self.homes)

    def decide(self, count: int) -> None:
        """The first job with a key decides the homes. The program that enqueues it learns how many there are."""
        del count
        if not self.homes:
            self.homes = self.count

    @rule()
    def hear_of_partitions(self) -> None:
        self.run(self.other.refresh_partitions())
        self.known = self.count

    # -- workers ---------------------------------------------------------------------------------------------------

    @rule(data=st.data(), want=st.sampled_from([1, 2, 5]))
    def claim(self, data: st.DataObject, want: int) -> None:
        part = data.draw(st.sampled_from(self.parts))
        waiting = sorted(
            (job.priority, job.came, job_id)
            for job_id, job in self.jobs.items()
            if job.partition == part.partition and job.state == "waits"
        )
        running = sum(job.pool and job.state == "active" for job in self.jobs.values())
        expected: list[str] = []
        for _, _, job_id in waiting:
            pool = self.jobs[job_id].pool
            if len(expected) < want and (not pool or running < self.concurrency):
                expected.append(job_id)
                running += pool
        if self.cut:
            # It is not said what the partition has heard of. It takes nothing that it must not take.
            assert set(self.take(part, want)) <= {job_id for _, _, job_id in waiting}
        else:
            assert self.take(part, want) == ([] if self.paused or self.closed else expected)

    def take(self, part: Store, want: int) -> list[str]:
        part.limited = True  # as a worker learns at its first claim
        self.request += 1
        self.run(part.do(part.admit(want, 250, 1)))
        claimed = self.run(part.do(part.claim(want, LEASE, "w", "0", self.request, repeated=False)))
        ids = [job_id.decode() for job_id in claimed.ids] if claimed else []
        for job_id in ids:
            self.jobs[job_id].state, self.jobs[job_id].token = "active", claimed.token
        return ids

    @rule(data=st.data(), works=st.booleans())
    def end(self, data: st.DataObject, works: bool) -> None:
        active = sorted(job_id for job_id, job in self.jobs.items() if job.state == "active")
        if not active:
            return
        job_id = data.draw(st.sampled_from(active))
        job = self.jobs[job_id]
        part = self.parts[job.partition]
        call: Any = (
            part.complete([job_id, job.token, b'[1,1,"w"]', ""], [])
            if works
            else part.fail([job_id, job.token, 1, b"{}", ""], [])
        )
        self.run(part.do(call))
        job.state = "completed" if works else "failed"

    @rule()
    def look(self) -> None:
        """A worker looks at the settings of all partitions."""
        self.run(settle(self.here(lambda: self.queue.store)))
        self.cut = False

    # -- operators -------------------------------------------------------------------------------------------------

    @rule(data=st.data(), verb=st.sampled_from(["kill", "remove", "retry"]))
    def act_on_a_job(self, data: st.DataObject, verb: str) -> None:
        states = {"kill": ("waits", "active"), "remove": ("waits", "completed", "failed"), "retry": ("failed",)}[verb]
        found = sorted(
            job_id
            for job_id, job in self.jobs.items()
            if job.state in states and not (verb == "retry" and job.key is not None)
        )
        if not found:
            return
        job_id = data.draw(st.sampled_from(found))
        self.run(getattr(self.queue, verb)(job_id))
        if verb == "remove":
            del self.jobs[job_id]
        elif verb == "kill":
            self.jobs[job_id].state = "failed"
        else:
            self.came += 1
            self.jobs[job_id].state, self.jobs[job_id].came = "waits", self.came

    @rule(paused=st.booleans(), reached=st.sampled_from([None, None, 0, 1, 2]))
    def pause(self, paused: bool, reached: int | None) -> None:
        """``reached``: the call is cut when it has reached so many partitions behind the first one."""
        if reached is None:
            self.run(self.queue.pause() if paused else self.queue.resume())
        else:
            self.cut_after(reached, lambda part: part.pause() if paused else part.resume())
        self.paused = paused

    @rule(concurrency=st.sampled_from([0, 1, 2, 3]), reached=st.sampled_from([None, None, 0, 1, 2]))
    def set_limit(self, concurrency: int, reached: int | None) -> None:
        if reached is None:
            self.run(self.queue.set_limit("pool", concurrency=concurrency))
        else:
            self.cut_after(reached, lambda part: part.rule("set", "pool", str(concurrency)))
        self.concurrency = concurrency

    @rule(weight=st.sampled_from([1.0, 2.0]), reached=st.sampled_from([None, None, 0, 1, 2]))
    def set_group(self, weight: float, reached: int | None) -> None:
        if reached is None:
            self.run(self.queue.set_group("g", weight=weight))
        else:
            self.cut_after(reached, lambda part: part.group("g", f"{weight:g} 0 -"))

    @rule(closed=st.booleans(), reached=st.sampled_from([None, None, 0, 1, 2]))
    def close(self, closed: bool, reached: int | None) -> None:
        ms = LEASE if closed else 0
        if reached is None:
            self.run(self.queue.close_limit("queue", LEASE / 1000) if closed else self.queue.open_limit("queue"))
        else:
            self.cut_after(reached, lambda part: part.close("queue", ms))
        self.closed = closed

    def cut_after(self, reached: int, call: Any) -> None:
        for part in self.parts[: reached + 1]:
            self.run(part.do(call(part)))
        self.cut = True

    @rule(count=st.integers(1, MOST))
    def set_partitions(self, count: int) -> None:
        if count < self.homes:
            with pytest.raises(InvalidJob):
                self.run(self.queue.set_partitions(count))
            return
        row = self.run(self.queue.set_partitions(count))
        self.count, self.most = count, max(self.most, count)
        self.cut = False  # It looks at all settings, too.
        assert (row.partitions, row.homes, row.most) == (count, self.homes, self.most)

    # -- what always holds -----------------------------------------------------------------------------------------

    @invariant()
    def all_jobs_are_there(self) -> None:
        stats = self.run(self.queue.stats())
        states = [job.state for job in self.jobs.values()]
        assert stats.waiting + stats.held == states.count("waits")
        assert (stats.active, stats.completed, stats.failed) == tuple(
            states.count(state) for state in ("active", "completed", "failed")
        )
        assert stats.partitions == self.count

    @rule()
    def list_all(self) -> None:
        for state in (State.WAITING, State.HELD, State.ACTIVE, State.COMPLETED, State.FAILED):
            page = self.run(self.queue.page(state, limit=500))
            ids = {row.id for row in page.jobs}
            model = "waits" if state in (State.WAITING, State.HELD) else state.value
            assert ids <= {job_id for job_id, job in self.jobs.items() if job.state == model}
            if state not in (State.WAITING, State.HELD):
                assert len(ids) == sum(job.state == model for job in self.jobs.values())
        for part in self.parts:
            assert self.run(broken(part)) == []

    @invariant()
    def settings_are_the_same(self) -> None:
        first, *others = self.run(counts_of(self.parts))
        follow = all(counts.follows(first) for counts in others)
        wanted = self.run(settings_of(self.parts[0]))
        assert (wanted.paused, "queue" in wanted.closed) == (self.paused, self.closed)
        same = all(wanted.same(self.run(settings_of(part))) for part in self.parts[1:])
        assert same or not follow, "a difference that no worker would find"
        if not self.cut:
            assert follow, "a call that was not cut leaves nothing to do"


def test_a_queue_of_partitions_is_one_queue(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "FRESH_SECONDS", 1e9)
    number = int(os.environ.get("JOBQ_TEST_SEED") or random.getrandbits(63))
    profile = os.environ.get("HYPOTHESIS_PROFILE", "dev")
    print(f"JOBQ_TEST_SEED={number} HYPOTHESIS_PROFILE={profile}")

    @seed(number)
    def machine() -> PartitionsMachine:
        return PartitionsMachine(server)

    run_state_machine_as_test(machine, settings=PROFILES[profile])  # pyright: ignore[reportArgumentType]
