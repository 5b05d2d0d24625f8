"""Closed limit keys: no job of one starts before its time, all places are kept, and somebody knows when it opens."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from table import WAKE
from test_admission import KEYS, RULES, World

if TYPE_CHECKING:
    from table import Bench


class Closing(World):
    """A queue whose jobs are rate limited and whose keys are closed and opened."""

    def __init__(self, bench: Bench, seed: int) -> None:
        super().__init__(bench, seed)
        self.closed: dict[str, int] = {}

    async def trip(self, want: int, looks: int = 50) -> list[str]:
        started = await super().trip(want, looks)
        for job in started:
            for key in self.keys[job]:
                assert self.closed.get(key, 0) <= self.bench.now, f"{job} started while {key} was closed"
        return started

    async def all_that_can(self, want: int = 7) -> list[str]:
        """A claim that gives jobs back to held wakes a worker, although it has nothing."""
        got: list[str] = []
        for _ in range(50):
            await self.bench.admin.command(b"DEL", self.bench.store.keys["wake"])
            some = await self.trip(want)
            got += some
            if not some and "wake" not in await self.bench.dump():
                return got
        raise AssertionError("it never ends")

    async def throttle(self, job: str, ms: int) -> None:
        await self.bench.store.do(self.bench.store.throttle([job, self.tokens.pop(job), ms, "key"]))
        for key in self.keys[job]:
            self.closed[key] = max(self.closed.get(key, 0), self.bench.now + ms)

    async def close(self, key: str, ms: int) -> None:
        await self.bench.store.do(self.bench.store.close(key, ms))
        self.closed[key] = self.bench.now + ms

    def full(self, key: str, counting: set[str]) -> bool:
        return self.closed.get(key, 0) > self.bench.now or super().full(key, counting)


@pytest.mark.parametrize("seed", range(10))
async def test_random_moves_start_no_job_of_a_closed_key_and_hold_none_for_longer(bench: Bench, seed: int):
    world = Closing(bench, seed)
    for name, text in RULES.items():
        await world.rule(name, text)
    draw = random.Random(seed + 1000)
    for step in range(120):
        what = draw.random()
        if what < 0.4:
            await world.enqueue(
                f"j{step}", *draw.sample(KEYS, draw.choice((0, 1, 1, 2))), priority=draw.choice((0, 0, -3, 5))
            )
        elif what < 0.55:
            await world.trip(draw.choice((1, 3, 10)), draw.choice((1, 4, 50)))
        elif what < 0.6:
            # another worker admits, and its claim comes later
            await bench.store.do(bench.store.admit(draw.choice((1, 5)), 50, 1))
        elif what < 0.85 and world.tokens:
            job = draw.choice(sorted(world.tokens))
            if draw.random() < 0.3:
                await world.throttle(job, draw.choice((0, 5, 40, 300)))
            else:
                await world.end(job, draw.choice(("complete", "fail", "release", "kill", "snooze")))
        elif what < 0.9:
            await world.close(draw.choice(KEYS), draw.choice((0, 10, 100)))
        elif what < 0.93:
            await bench.store.do(bench.store.expire(10))
        else:
            bench.now += draw.choice((1, 5, 30, 200))
        await world.check(settled=False)
        if step % 10 == 9:
            await world.all_that_can()
            await world.check(settled=True)
    for _ in range(400):
        await world.all_that_can()
        await world.check(settled=True)
        for job in sorted(world.tokens):
            await world.end(job, "complete")
        bench.now += 10
    state = await bench.dump()
    assert not {"held", "held_by", "waiting", "delayed", "active", "admitted", "unspent"} & set(state)
    while await bench.store.do(bench.store.expire(10)):
        pass
    assert "closed" not in await bench.dump()


async def closing(bench: Bench, *rules: tuple[str, str]) -> Closing:
    world = Closing(bench, 0)
    for name, text in rules:
        await world.rule(name, text)
    return world


async def test_a_rate_limited_job_comes_back_in_front_of_the_others_when_its_keys_open(bench: Bench):
    world = await closing(bench, ("r", "1"), ("s", "5"))
    for n in range(3):
        await world.enqueue(f"j{n}", "r", "s")
    await world.enqueue("other", "s")
    assert await world.all_that_can() == ["j0", "other"]
    await world.throttle("j0", 100)
    assert await bench.do(bench.store.admit(5, 50, 1)) == [0, 100, 0], "one look when it opens, and none before"
    await world.enqueue("later", "s")
    assert await world.all_that_can() == [], "the second key is closed too"
    bench.now += 99
    assert await world.all_that_can() == []
    bench.now += 1
    assert await world.all_that_can() == ["j0", "later"]
    assert (await bench.dump())["attempts"]["j0"] == "0 1100 0 1"


async def test_jobs_that_were_admitted_before_their_key_was_closed_do_not_start(bench: Bench):
    world = await closing(bench, ("r", "9"))
    for n in range(3):
        await world.enqueue(f"j{n}", "r")
    await world.enqueue("free")
    await bench.do(bench.store.admit(3, 50, 1))
    await world.close("r", 50)
    await bench.admin.command(b"DEL", bench.store.keys["wake"])
    assert await world.trip(4) == ["free"]
    state = await bench.dump()
    assert state["wake"] == WAKE["wake"], "there may be other jobs behind those that went back to held"
    assert list(state["held"]) == ["j0", "j1", "j2"]
    assert "admitted" not in state
    bench.now += 50
    assert await world.all_that_can() == ["j0", "j1", "j2"]


async def test_a_job_with_several_slots_that_goes_back_to_held_leaves_none_of_its_places(bench: Bench):
    await bench.do(bench.store.rule("set", "r", "9"))
    bench.store.limited = True
    await bench.do(bench.store.enqueue(["large", b"{}", "0 0 0\vr\v3"]))
    await bench.do(bench.store.admit(3, 50, 1))
    assert len((await bench.dump())["admitted"]) == 3
    await bench.do(bench.store.close("r", 50))
    assert await bench.store.do(bench.store.claim(3, 30_000, "w", "w:0", 1, repeated=False)) is None
    state = await bench.dump()
    assert (list(state["held"]), "admitted" in state) == (["large"], False)


async def test_only_an_operator_makes_a_closing_time_shorter(bench: Bench):
    world = await closing(bench, ("r", "2"))
    for n in range(2):
        await world.enqueue(f"j{n}", "r")
    await world.all_that_can()
    await world.throttle("j0", 1000)
    await world.throttle("j1", 10)
    assert (await bench.dump())["closed"] == {"r": 2000}
    assert await bench.do(bench.store.close("r", 5)) == "2000"
    assert (await bench.dump())["closed"] == {"r": 1004.5}, "half a ms says that it was an operator"
    assert await bench.do(bench.store.close("r", 0)) == "1005"
    assert await bench.do(bench.store.close("r", 0)) == "", "a repetition finds it open"
    world.closed.clear()
    assert await world.all_that_can() == ["j1", "j0"]


async def test_a_closed_queue_is_claimed_from_when_it_opens(bench: Bench):
    store = bench.store
    await bench.do(store.enqueue(["a", b"{}", ""]))
    assert await bench.do(store.close("queue", 30)) == ""
    claim = store.claim(1, 30_000, "w", "w:0", 1, repeated=False)
    assert await bench.do(claim) == ["closed", bench.now, [], [], [], [], 30]
    bench.now += 29
    assert (await bench.do(store.claim(1, 30_000, "w", "w:0", 2, repeated=False)))[-1] == 1
    bench.now += 1
    assert (await bench.do(store.claim(1, 30_000, "w", "w:0", 3, repeated=False)))[2] == ["a"]
    assert "closed" not in (await bench.dump())["meta"]


async def test_jobs_that_wait_alone_come_back_to_the_front_in_their_order(bench: Bench):
    store = bench.store
    await bench.do(store.enqueue(["a", b"{}", "", "b", b"{}", "0 1 0", "c", b"{}", ""]))
    token = (await bench.do(store.claim(2, 30_000, "w", "w:0", 1, repeated=False)))[0]
    await bench.do(store.throttle(["a", token, 20, "job", "b", token, 20, "job"]))
    await bench.do(store.enqueue(["d", b"{}", "0 1 0"]))
    assert (await bench.dump())["priorities"] == {"a": "0F", "b": "0LF", "d": "0L"}
    bench.now += 20
    assert await bench.do(store.forward(10)) == [2, -1, 0]
    state = await bench.dump()
    assert list(state["waiting"]) == ["a", "b", "d", "c"]
    assert state["priorities"] == {"a": "0", "b": "0L", "d": "0L"}, "the mark is for one time"


async def test_a_promoted_job_goes_to_the_front_and_a_new_priority_keeps_the_mark(bench: Bench):
    store = bench.store
    await bench.do(store.enqueue(["a", b"{}", "", "b", b"{}", "", "c", b"{}", ""]))
    token = (await bench.do(store.claim(2, 30_000, "w", "w:0", 1, repeated=False)))[0]
    await bench.do(store.throttle(["a", token, 20, "job", "b", token, 20, "job"]))
    await bench.do(store.reprioritise(["a"], 0))
    assert await bench.do(store.promote(["a"])) == ["delayed"]
    await bench.do(store.reprioritise(["b"], 1))
    state = await bench.dump()
    assert list(state["waiting"]) == ["a", "c"]
    assert state["priorities"] == {"a": "0", "b": "1F"}
