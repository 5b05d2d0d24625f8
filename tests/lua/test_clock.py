"""The clock of groups: new groups that keep coming neither starve an old one nor wait behind all of its jobs.

The ideal is a fair queue whose clock moves on by the work done, divided by the number of busy groups (generalised
processor sharing, Parekh and Gallager 1993). Start-time fair queueing takes the start tag of the job in service for the
clock: it stands still while groups come that have not been served yet.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from test_turns import Fair

if TYPE_CHECKING:
    from table import Bench


class Ideal:
    """The number of jobs that each group gets if all busy groups are served at the same time, at a rate of 1 in all."""

    def __init__(self) -> None:
        self.left: dict[str, float] = {}
        self.done: dict[str, float] = {}

    def add(self, group: str, n: int) -> None:
        self.left[group] = self.left.get(group, 0.0) + n

    def serve(self) -> None:
        work = 1.0
        while work > 1e-9:
            busy = [group for group, left in self.left.items() if left > 1e-9]
            if not busy:
                return
            share = min(work / len(busy), *(self.left[group] for group in busy))
            for group in busy:
                self.left[group] -= share
                self.done[group] = self.done.get(group, 0.0) + share
            work -= share * len(busy)


@pytest.fixture
def fair(bench: Bench) -> Fair:
    return Fair(bench)


@pytest.mark.parametrize("fresh", [1, 2])
async def test_new_groups_that_keep_coming_do_not_starve_an_old_one(fair: Fair, fresh: int):
    """Each call, as many new groups come as jobs are served, or twice as many."""
    ideal, got = Ideal(), []
    await fair.add("old", 200)
    ideal.add("old", 200)
    for n in range(150):
        for k in range(fresh):
            await fair.add(f"new{n:03}{k}")
            ideal.add(f"new{n:03}{k}", 1)
        got += await fair.claim()
        ideal.serve()
        assert got.count("old") >= ideal.done["old"] - 1.01, n


async def test_a_new_group_does_not_wait_for_the_backlogs_of_others(fair: Fair):
    for k in range(10):
        await fair.add(f"g{k}", 60)
    for n in range(60):
        await fair.add(f"new{n:02}")
        got: list[str] = []
        while f"new{n:02}" not in got:
            got += await fair.claim()
        assert len(got) <= 11, "each other group was served at most once"


async def test_a_group_keeps_its_place_while_the_clock_moves_on(fair: Fair):
    """Many groups in turns: each one is served once a round, although the clock is moved on by the others."""
    for k in range(25):
        await fair.add(f"g{k:02}", 12)
    await fair.add("", 12)
    got = await fair.all()
    for at in range(0, 26 * 12, 26):
        assert len(set(got[at : at + 26])) == 26, at


@pytest.mark.parametrize("seed", range(6))
async def test_no_group_is_far_behind_the_ideal(fair: Fair, seed: int):
    """A group has had at least what the ideal gave it, less one job for each time that it became busy."""
    draw = random.Random(seed)
    ideal, starts, got = Ideal(), dict[str, int](), dict[str, int]()
    names = [f"g{k}" for k in range(4)]
    for n in range(250):
        for _ in range(draw.choice((0, 1, 1, 2))):
            group, jobs = draw.choice([(draw.choice(names), draw.randrange(1, 9)), (f"new{n}", 1)])
            if ideal.left.get(group, 0.0) <= 1e-9:
                starts[group] = starts.get(group, 0) + 1
            await fair.add(group, jobs)
            ideal.add(group, jobs)
        for group in await fair.claim():
            got[group] = got.get(group, 0) + 1
        ideal.serve()
        for group, done in ideal.done.items():
            assert got.get(group, 0) >= done - 1.01 * starts[group] - 1, (n, group)
