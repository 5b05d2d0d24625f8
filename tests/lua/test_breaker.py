"""Circuit breakers: when they open, that they let one job through, and that nothing keeps a job for ever."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from test_closing import Closing

if TYPE_CHECKING:
    from table import Bench


class Breaking(Closing):
    """A queue with jobs of types that have breakers. It knows what each breaker should do."""

    def __init__(self, bench: Bench, seed: int) -> None:
        super().__init__(bench, seed)
        self.breakers: dict[str, tuple[float, int, int]] = {}
        self.outcomes: dict[str, list[bool]] = {}
        self.until: dict[str, int] = {}
        """When each breaker that is not closed lets a job through."""

    async def declare(self, name: str, rate: float, runs: int, ms: int) -> None:
        row = await self.bench.do(self.bench.store.breaker("declare", name, f"{rate} {runs} {ms}"))
        assert row.startswith(f"{rate} {runs} {ms} ")
        self.breakers[f"!{name}"] = (rate, runs, ms)
        self.outcomes.setdefault(f"!{name}", [])

    async def trip(self, want: int, looks: int = 50) -> list[str]:
        before = {key: sum(key in self.keys[job] for job in self.tokens) for key in self.breakers}
        started = await super().trip(want, looks)
        for key in self.breakers:
            mine = [job for job in started if key in self.keys[job]]
            if key in self.until and mine:
                assert self.until[key] <= self.bench.now, f"{mine} started while {key} was open"
                assert len(mine) + before[key] == 1, f"{key} let more than one job through"
        return started

    async def end(self, job_id: str, how: str) -> None:
        await super().end(job_id, how)
        if how in ("complete", "fail", "reschedule"):
            for key in self.keys[job_id]:
                if key in self.breakers:
                    self.see(key, failed=how != "complete")

    def see(self, key: str, *, failed: bool) -> None:
        rate, runs, ms = self.breakers[key]
        if key in self.until:
            if self.until[key] > self.bench.now:
                return
            del self.until[key]
            self.outcomes[key] = []
            opens = failed
        else:
            last = self.outcomes[key] = [*self.outcomes[key], failed][-runs:]
            opens = len(last) == runs and sum(last) >= rate * runs
        if opens:
            self.until[key] = self.bench.now + ms
            self.outcomes[key] = []

    def full(self, key: str, counting: set[str]) -> bool:
        if key in self.until:
            return self.until[key] > self.bench.now or any(key in self.keys[job] for job in counting)
        return super().full(key, counting)

    def waits_for_an_end(self, key: str, count: int) -> bool:
        if key in self.until:
            return self.until[key] <= self.bench.now and count > 0
        return super().waits_for_an_end(key, count)

    async def check(self, *, settled: bool) -> None:
        state = await self.bench.dump()
        for key in self.breakers:
            *_, until, _, outcomes = state["breakers"][key[1:]].split(" ")
            assert int(until) == self.until.get(key, 0)
            assert outcomes == ("".join("01"[failed] for failed in self.outcomes[key]) or "-")
            assert state.get("closed", {}).get(key) == self.until.get(key)
        await super().check(settled=settled)


@pytest.mark.parametrize("seed", range(10))
async def test_random_moves_open_and_close_the_breakers_as_they_should(bench: Bench, seed: int):
    world = Breaking(bench, seed)
    await world.declare("a", 0.5, 4, 60)
    await world.declare("b", 1.0, 1, 25)
    await world.rule("two", "2")
    draw = random.Random(seed + 2000)
    for step in range(150):
        what = draw.random()
        if what < 0.35:
            keys = draw.choice((("!a",), ("!a",), ("!b",), ("!a", "two"), ("two",), ()))
            await world.enqueue(f"j{step}", *keys, priority=draw.choice((0, 0, -3)))
        elif what < 0.55:
            await world.trip(draw.choice((1, 3, 10)))
        elif what < 0.6:
            await bench.store.do(bench.store.admit(draw.choice((1, 5)), 50, 1))
        elif what < 0.85 and world.tokens:
            job = draw.choice(sorted(world.tokens))
            await world.end(
                job, draw.choice(("complete", "complete", "fail", "fail", "reschedule", "release", "snooze", "kill"))
            )
        elif what < 0.88:
            await bench.store.do(bench.store.expire(10))
        else:
            bench.now += draw.choice((1, 10, 30, 90))
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
    assert not {"held", "held_by", "waiting", "delayed", "active", "admitted"} & set(state)


async def breaking(bench: Bench, rate: float = 0.5, runs: int = 4, ms: int = 100) -> Breaking:
    world = Breaking(bench, 0)
    await world.declare("t", rate, runs, ms)
    for n in range(8):
        await world.enqueue(f"j{n}", "!t")
    return world


async def test_it_opens_at_its_rate_lets_one_job_through_and_closes(bench: Bench):
    world = await breaking(bench)
    first, second, third, fourth = await world.trip(4)
    await world.end(first, "fail")
    await world.end(second, "complete")
    await world.end(third, "complete")
    assert (await bench.dump())["breakers"]["t"] == "0.5 4 100 0 01000 100", "too few runs"
    await world.end(fourth, "reschedule")
    assert (await bench.dump())["breakers"]["t"] == "0.5 4 100 1100 1000 -"
    assert await world.all_that_can() == []
    assert await bench.do(bench.store.admit(5, 50, 1)) == [0, 100, 0], "one look when its time is over"
    now, rows = await bench.do(bench.store.breakers())
    assert (now, rows[:1], rows[2:]) == (1000, ["t"], [4, 0])
    bench.now += 100
    assert await world.all_that_can() == ["j4"], "one job finds out"
    await world.end("j4", "fail")
    assert await world.all_that_can() == []
    bench.now += 100
    assert await world.all_that_can() == ["j5"]
    await world.end("j5", "complete")
    assert len(await world.all_that_can()) == 3, "the others at once"
    assert "closed" not in await bench.dump()


async def test_jobs_that_were_admitted_before_it_opened_do_not_all_start_when_its_time_is_over(bench: Bench):
    world = await breaking(bench)
    await bench.do(bench.store.admit(5, 50, 1))
    await bench.do(bench.store.breaker("trip", "t", "0"))
    world.until["!t"] = bench.now + 100
    bench.now += 100
    assert await world.trip(5) == []
    assert await world.all_that_can() == ["j0"]


async def test_a_run_that_ends_while_it_is_open_does_not_count(bench: Bench):
    world = await breaking(bench)
    assert len(await world.trip(2)) == 2
    await bench.do(bench.store.breaker("trip", "t", "40"))
    world.until["!t"] = bench.now + 40
    await world.end("j0", "complete")
    await world.end("j1", "fail")
    assert (await bench.dump())["breakers"] == {"t": "0.5 4 100 1040 1000 -"}


@pytest.mark.parametrize("how", ["snooze", "release", "kill", "defer"])
async def test_a_job_that_finds_nothing_out_makes_room_for_the_next_one(bench: Bench, how: str):
    world = await breaking(bench)
    await bench.do(bench.store.breaker("trip", "t", "10"))
    world.until["!t"] = bench.now + 10
    bench.now += 10
    assert await world.all_that_can() == ["j0"]
    await world.end("j0", how)
    assert len(await world.all_that_can()) == 1
    assert (await bench.dump())["closed"] == {"!t": 1010}


async def test_a_job_that_the_next_one_with_its_key_kills_finds_nothing_out(bench: Bench):
    """on="kill_running": the kill is no failure, and the new job is let through in place of the killed one."""
    world = await breaking(bench)
    await bench.do(bench.store.breaker("trip", "t", "10"))
    world.until["!t"] = bench.now + 10
    bench.now += 10
    assert await world.all_that_can() == ["j0"]
    before = (await bench.dump())["breakers"]
    await bench.seed({"keys": {"j0": "k"}, "unique": {"k": "j0 -"}})
    rule = "unfinished 0 kill_running -1 -1 1 k"
    await bench.do(bench.store.enqueue_unique(["new", "N", "-1000 0 0\v!t", rule]))
    state = await bench.dump()
    assert (set(state["failed"]), state["breakers"], state["closed"]) == ({"j0"}, before, {"!t": 1010})
    await bench.do(bench.store.admit(5, 50, 1))
    assert list((await bench.dump())["waiting"]) == ["new"], "one job is let through"


async def test_an_operator_resets_it_and_removes_it(bench: Bench):
    world = await breaking(bench)
    store = bench.store
    assert await bench.do(store.breaker("trip", "t", "0")) == "0.5 4 100 1100 1000 -"
    assert await bench.do(store.breaker("trip", "t", "5000")) == "0.5 4 100 6000 1001 -"
    assert await world.all_that_can() == []
    bench.now += 7
    assert await bench.do(store.breaker("reset", "t", "")) == "0.5 4 100 0 1007 -"
    assert len(await world.all_that_can()) == 8
    await bench.do(store.breaker("trip", "t", "0"))
    assert await bench.do(store.breaker("remove", "t", "")) == ""
    assert not {"closed", "breakers"} & set(await bench.dump())
    for verb in ("trip", "reset"):
        assert await bench.do(store.breaker(verb, "t", "0")) == ""
    assert "breakers" not in await bench.dump()


async def test_a_new_rule_keeps_the_state_and_the_latest_outcomes(bench: Bench):
    store = bench.store
    await bench.seed({"breakers": {"t": "0.5 4 100 0 900 0110", "damaged": "x"}})
    assert await bench.do(store.breaker("declare", "t", "0.9 2 50")) == "0.9 2 50 0 900 10"
    assert await bench.do(store.breaker("declare", "t", "0.9 2 50")) == "0.9 2 50 0 900 10"
    assert await bench.do(store.breaker("declare", "damaged", "0.9 2 50")) == "0.9 2 50 0 01000 -"


async def test_a_thousand_breakers_at_most(bench: Bench):
    await bench.seed({"breakers": {f"t{n}": "0.5 4 100 0 900 -" for n in range(1000)}})
    assert await bench.do(bench.store.breaker("declare", "t", "0.5 4 100")) == "full"
    assert (await bench.do(bench.store.breaker("declare", "t3", "0.1 4 100"))).startswith("0.1 ")


async def test_a_rate_limit_does_not_close_a_breaker(bench: Bench):
    world = await breaking(bench)
    await world.trip(1)
    [job] = world.tokens
    assert await bench.do(bench.store.throttle([job, world.tokens[job], 50, "key"])) == [[], [job]]
    assert "closed" not in await bench.dump()


@pytest.mark.parametrize("how", ["fail", "reschedule"])
async def test_the_reply_tells_what_opened_and_what_closed(bench: Bench, how: str):
    world = await breaking(bench, 1, 1)
    store = bench.store
    first, second = await world.trip(2)

    def end(job: str) -> Any:
        token = world.tokens.pop(job)
        if how == "fail":
            return store.fail([job, token, 1, b"{}", ""])
        return store.reschedule([job, token, 1, 5000, b"{}"])

    reply = await bench.do(end(first))
    assert reply == ([1, ["!t 100"]] if how == "fail" else ["!t 100"])
    reply = await bench.do(end(second))
    assert reply == ([2, []] if how == "fail" else []), "the outcome of a run that began before does not count"
    bench.now += 100
    [probe] = await world.trip(5)
    token = world.tokens.pop(probe)
    assert await bench.do(store.complete([probe, token, b"r", ""], [])) == [1, ["!t 0"]]
