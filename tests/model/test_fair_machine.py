"""The machine of limits with groups, aging and charges for run time, together.

The model does not know whose turn it is among the groups. It follows what Redis starts, and checks each start: there is
room under all keys, and no job of the same group and keys comes before it. In the end no job is left that may start.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

from hypothesis import seed
from hypothesis import strategies as st
from hypothesis.stateful import initialize, multiple, rule, run_state_machine_as_test
from limits_model import Job, LimitsModel, Rule
from test_limits_machine import DELAYS, LIVES, PRIORITIES, LimitsMachine
from test_machine import PROFILES

if TYPE_CHECKING:
    from conftest import Server

KEYS = st.sampled_from(
    [(), ("@a",), ("@a",), ("@b",), ("@a", "pool"), ("@b", "pool"), ("@b", "rate"), ("@c", "tenant:a"), ("pool",)]
)
JOBS = st.tuples(KEYS, PRIORITIES, DELAYS, LIVES, st.just(True))
RULES = {
    "pool": [Rule(2), Rule(1), Rule(3), Rule(0)],
    "tenant": [Rule(1), Rule(2)],
    "rate": [Rule(band=(2, 1000, 2)), Rule(band=(10, 1000, 1)), Rule(1, (2, 1000, 1))],
}
FIRST = 2**42
"""With aging, places are times in us from here on."""


class FairModel(LimitsModel):
    """Limits and groups. ``aging``: how much waiting a step of priority is worth, ms."""

    aging = 0
    aged = 0

    def __init__(self, now: int) -> None:
        super().__init__(now, {name: rules[0] for name, rules in RULES.items()})
        self.stopped: set[str] = set()
        """Keys of paused groups."""

    def fits(self, key: str) -> bool:
        return key not in self.stopped if key.startswith("@") else super().fits(key)

    def acting(self, job: Job) -> list[str]:
        return []

    def numbers(self, count: int) -> list[int]:
        """The next places of a priority."""
        if not self.aging:
            self.back += count
            return list(range(self.back - count + 1, self.back + 1))
        first = FIRST + 1000 * self.now
        if not first <= self.aged <= first + 60_000_000 - count:
            self.aged = first
        self.aged += count
        return list(range(self.aged - count + 1, self.aged + 1))

    def _arrive(self, job: Job) -> None:
        job.turn = self.numbers(1)[0]
        job.state = "held" if job.keys else "waiting"

    def place(self, job: Job) -> tuple[int, int, str]:
        """Its place among the jobs of its group and keys."""
        return (0, job.priority * 1000 * self.aging + job.turn, job.id) if self.aging else job.place

    def due(self) -> None:
        """Jobs that are due arrive, and late ones end."""
        due = sorted((job for job in self.of("delayed") if job.at <= self.now), key=lambda job: (job.at, job.id))
        for i, (job, number) in enumerate(zip(due, self.numbers(len(due)) if due else [], strict=True)):
            # With aging a job has waited since it was due.
            job.turn = min(number, FIRST + 1000 * job.at + i % 1000) if self.aging else number
            job.state = "held" if job.keys else "waiting"
        self.lapse()

    def started(self, ids: list[str], want: int) -> None:
        """Start these jobs. They are the right ones, and there are as many as there can be."""
        for job_id in ids:
            job = self.jobs[job_id]
            assert not self.paused
            assert job.state in ("held", "waiting")
            assert all(map(self.fits, job.keys)), job
            earlier = [
                one for one in self.of("held", "waiting") if one.keys == job.keys and self.place(one) < self.place(job)
            ]
            assert not earlier, f"{job} started before {earlier}"
            self.start(job)
        if len(ids) < want and not self.paused:
            left = [job for job in self.of("held", "waiting") if all(map(self.fits, job.keys))]
            assert not left, f"{left} could start"


class FairMachine(LimitsMachine):
    """One queue and its model."""

    model: FairModel

    def new_model(self) -> FairModel:
        return FairModel(1_700_000_000_000)

    @initialize(
        target=LimitsMachine.ids,
        jobs=st.lists(JOBS, min_size=4, max_size=8),
        aging=st.sampled_from([0, 1, 400, 60_000]),
        charge=st.sampled_from(["actual", "actual", "count"]),
    )
    def begin_fair(self, jobs: list[Any], aging: int, charge: str) -> Any:
        for name, one in self.model.rules.items():
            self.write(name, one)
        self.do(self.store.aging(aging))
        self.do(self.store.setting("charge", charge))
        self.model.aging = aging
        self.model.aged = FIRST + 1000 * self.model.now if aging else 0
        return multiple(*[self.add(*job) for job in jobs])

    begin = None  # pyright: ignore[reportAssignmentType]

    @rule(target=LimitsMachine.ids, jobs=st.lists(JOBS, min_size=1, max_size=4))
    def enqueue(self, jobs: list[Any]) -> Any:
        return multiple(*[self.add(*job) for job in jobs])

    @rule(name=st.sampled_from(sorted(RULES)), number=st.integers(0, 3))
    def change_rule(self, name: str, number: int) -> None:
        self.change(name, RULES[name][number % len(RULES[name])])

    @rule(group=st.sampled_from("abc"), row=st.sampled_from(["1 0 -", "5 0 -", "0.5 0 -", "1 1 -", ""]))
    def change_group(self, group: str, row: str) -> None:
        cursor: str | bytes = ""
        while cursor := self.do(self.store.group(group, row, cursor, 2)):
            assert cursor != b"full"
        (self.model.stopped.add if " 1 " in row else self.model.stopped.discard)(f"@{group}")
        self.look_who_is_admitted()

    def expect(self, ids: list[str], want: int) -> None:
        self.model.due()
        self.model.started(ids, want)


def test_groups_with_aging_and_charges_do_what_their_model_says(server: Server) -> None:
    number = int(os.environ.get("JOBQ_TEST_SEED") or random.getrandbits(63))
    profile = os.environ.get("HYPOTHESIS_PROFILE", "dev")
    print(f"JOBQ_TEST_SEED={number} HYPOTHESIS_PROFILE={profile}")

    @seed(number)
    def machine() -> FairMachine:
        return FairMachine(server)

    run_state_machine_as_test(machine, settings=PROFILES[profile])  # pyright: ignore[reportArgumentType]
