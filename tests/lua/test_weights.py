"""Jobs that take several slots: what the scripts keep true together, under random moves."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from table import Bench

    from tests.conftest import Until

RULES = {"one": 1, "three": 3, "five": 5, "queue": 8}
KEYS = ("one", "three:a", "three:b", "five")
SIZE = 6
"""Slots of the worker."""


class World:
    """A queue with rules and one worker, seen from outside."""

    def __init__(self, bench: Bench, seed: int = 0) -> None:
        self.bench = bench
        bench.store.limited = True  # as a worker learns at its first claim
        self.random = random.Random(seed)
        self.rules: dict[str, int] = {}
        self.keys: dict[str, tuple[str, ...]] = {}
        self.slots: dict[str, int] = {}
        self.groups: dict[str, str] = {}
        self.tokens: dict[str, str] = {}
        """Leases of active jobs."""
        self.requests = 0

    async def rule(self, name: str, concurrency: int) -> None:
        cursor: str | bytes = ""
        while cursor := await self.bench.store.do(self.bench.store.rule("set", name, f"{concurrency}", cursor, page=3)):
            pass
        # Running jobs are not stopped when a rule is lowered.
        self.rules[name] = max(concurrency, self.rules.get(name, 0))

    async def enqueue(self, job_id: str, slots: int, *keys: str, priority: int = 0, group: str = "") -> None:
        weight = "" if slots == 1 else f"\v{slots}"
        line = (f"@{group}", *keys) if group else keys
        options = f"{priority} 0 0\v" + "\n".join(line) + weight
        assert await self.bench.do(self.bench.store.enqueue([job_id, b"{}", options])) == []
        self.keys[job_id], self.slots[job_id], self.groups[job_id] = keys, slots, group

    @property
    def free(self) -> int:
        return SIZE - sum(min(SIZE, self.slots[job]) for job in self.tokens)

    async def trip(self, looks: int = 50) -> list[str]:
        """What a lane does: admit, claim. It returns the claimed jobs."""
        store, free = self.bench.store, self.free
        if free < 1:
            return []
        await store.do(store.admit(free, looks, 1))
        self.requests += 1
        claimed = await store.do(store.claim(free, 30_000, "w", "w:0", self.requests, repeated=False, size=SIZE))
        if claimed is None:
            return []
        ids = [raw.decode() for raw in claimed.ids]
        self.tokens |= dict.fromkeys(ids, claimed.token.decode())
        assert self.free >= 0, "it took more than it has slots for"
        weights = claimed.weights or [None] * len(ids)
        assert [int(weight or 1) for weight in weights] == [self.slots[job] for job in ids]
        return ids

    async def all_that_can(self) -> list[str]:
        got: list[str] = []
        while some := await self.trip():
            got += some
        if self.free > 0:
            await self.rests()
        return got

    async def rests(self) -> None:
        """When nothing can start, a worker is told so soon. Otherwise it would ask again and again, at full speed."""
        if "waiting" in await self.bench.dump():
            return  # The claim says why it did not take these.
        replies = [await self.bench.do(self.bench.store.admit(self.free, 50, 1)) for _ in range(5)]
        assert replies[-1][2] == 0

    async def end(self, job_id: str, how: str) -> None:
        token, store = self.tokens.pop(job_id), self.bench.store
        calls = {
            "complete": lambda: store.complete([job_id, token, b"r", ""], []),
            "fail": lambda: store.fail([job_id, token, 1, b"{}", ""]),
            "reschedule": lambda: store.reschedule([job_id, token, 1, 0, b"{}"]),
            "release": lambda: store.release([job_id, token]),
            "snooze": lambda: store.snooze([job_id, token, 0]),
            "defer": lambda: store.defer([job_id, token, "", 0], 0, 0, b"[]"),
            "kill": lambda: store.kill([job_id], b"{}"),
        }
        await store.do(calls[how]())

    async def check(self) -> None:
        """Each place belongs to a job, each job has all its places, and no key has more than its rule allows."""
        state = await self.bench.dump()
        expected: set[str] = set()
        for column in ("waiting", "active"):
            for job in state.get(column, {}):
                for key in self.keys[job]:
                    expected |= {f"{key}\0{job}", *(f"{key}\0{job}\0{n}" for n in range(2, self.slots[job] + 1))}
                if self.groups[job]:
                    expected.add(f"@{self.groups[job]}\0{job}")
                if column == "active":
                    expected |= {f"queue\0{job}\0{n}" for n in range(2, self.slots[job] + 1)}
        assert set(state.get("admitted", {})) == expected
        for key in KEYS:
            jobs = [job for column in ("waiting", "active") for job in state.get(column, {}) if key in self.keys[job]]
            assert len(jobs) < 2 or sum(self.slots[job] for job in jobs) <= self.rules[key.partition(":")[0]], key
        active = list(state.get("active", {}))
        assert len(active) < 2 or sum(self.slots[job] for job in active) <= self.rules["queue"]


@pytest.mark.parametrize("seed", range(24))
async def test_random_moves_keep_every_limit_and_every_job_ends(bench: Bench, seed: int):
    """Each second seed has groups."""
    world = World(bench, seed)
    for name, concurrency in RULES.items():
        await world.rule(name, concurrency)
    draw, store = world.random, bench.store
    for step in range(120):
        what, waiting = draw.random(), list((await bench.dump()).get("waiting", {}))
        if what < 0.4:
            keys = draw.sample(KEYS, draw.choice((0, 1, 1, 2)))
            slots = draw.choice((1, 1, 1, 2, 4, 9))
            group = draw.choice(("", "a", "b")) if seed % 2 else ""
            await world.enqueue(f"j{step}", slots, *keys, priority=draw.choice((0, 0, -3, 5)), group=group)
        elif what < 0.6:
            await world.trip(draw.choice((1, 4, 50)))
        elif what < 0.9 and world.tokens:
            how = draw.choice(("complete", "complete", "fail", "reschedule", "release", "snooze", "defer", "kill"))
            await world.end(draw.choice(sorted(world.tokens)), how)
        elif what < 0.93 and waiting:
            job = draw.choice(waiting)
            await store.do(store.remove([job]) if draw.random() < 0.5 else store.kill([job], b"{}"))
        elif what < 0.96:
            await world.rule("five", draw.choice((5, 9)))
        else:
            await store.do(store.forward(100))
        await world.check()
    await world.rule("five", 5)
    for _ in range(200):
        await store.do(store.forward(100))
        await world.all_that_can()
        await world.check()
        if not world.tokens:
            break
        for job in sorted(world.tokens):
            await world.end(job, "complete")
    state = await bench.dump()
    assert not {"held", "held_by", "waiting", "delayed", "active", "admitted"} & set(state), "a job never ran"


async def test_small_jobs_do_not_overtake_a_job_that_needs_more_slots_than_are_free(bench: Bench):
    world = World(bench)
    await world.rule("five", 5)
    await world.enqueue("small", 1, "five")
    await world.enqueue("small too", 1, "five")
    assert await world.trip() == ["small", "small too"]
    await world.enqueue("large", 4, "five")
    await world.enqueue("next", 1, "five")
    assert await world.trip() == []
    await world.end("small", "complete")
    assert await world.trip() == ["large"]
    await world.end("small too", "complete")
    assert await world.trip() == ["next"]


async def test_lines_that_leave_their_keys_to_one_another_let_a_worker_rest(bench: Bench):
    """Each of two keys has room, but the first job there needs more slots. A line that could not go on left its other
    key to those that wait there, and one of these left the first key to the first line, and so on without end."""
    world = World(bench)
    for name in ("three", "five"):
        await world.rule(name, RULES[name])
    await world.enqueue("first", 2, "five", "three:a")
    assert await world.trip() == ["first"]
    await world.enqueue("large", 4, "five")
    await world.enqueue("small", 1, "five", "three:a")
    await world.enqueue("other", 2, "three:a", "five")
    assert await world.all_that_can() == []
    await world.end("first", "complete")
    assert await world.all_that_can() == ["large", "small"]
    await world.end("large", "complete")
    assert await world.all_that_can() == ["other"]


async def test_a_worker_does_not_wake_itself_for_jobs_behind_one_that_needs_more_slots(bench: Bench):
    """With groups, admit knows of turns behind the jobs that the claim takes. The claim took none of these, because
    the first one needs more slots than are free. The worker got its own token back, and asked again at full speed."""
    world = World(bench)
    await world.enqueue("running", 4)
    assert await world.trip() == ["running"]
    await world.enqueue("large", 3)
    for group in "abc":
        await world.enqueue(f"of {group}", 1, group=group)
    assert await world.trip() == []
    await bench.admin.command(b"DEL", bench.admin.keys["wake"])
    assert await world.trip() == []
    assert "wake" not in await bench.dump()


async def test_a_large_job_keeps_its_turn_under_each_of_its_keys(bench: Bench):
    """It is held under its second key. Jobs that come to this key by another one wait for it."""
    world = World(bench)
    await world.rule("five", 5)
    await world.rule("three", 3)
    await world.enqueue("small", 2, "five")
    assert await world.trip() == ["small"]
    await world.enqueue("large", 4, "three:a", "five")
    assert await world.trip() == []
    await world.enqueue("next", 1, "three:b", "five")
    assert await world.trip() == []
    await world.end("small", "complete")
    assert await world.trip() == ["large", "next"]


async def test_without_rules_a_large_job_at_the_head_waits_until_it_fits(
    bench: Bench, heard: list[bytes], until: Until
):
    world = World(bench)
    for job, slots in (("small", 3), ("large", 5), ("next", 1)):
        await world.enqueue(job, slots)
    assert await world.trip() == ["small"]
    assert await world.trip() == []
    await world.end("small", "complete")
    assert await world.trip() == ["large", "next"]
    await until(lambda: len(heard) >= 2, "two messages")
    assert heard == [b"room 5"] * 2, "other workers hear that a job needs more free slots"


async def test_a_job_with_more_slots_than_the_worker_or_the_rule_has_runs_alone(bench: Bench):
    world = World(bench)
    await world.rule("three", 3)
    await world.enqueue("first", 1, "three")
    await world.enqueue("huge", 100, "three")
    await world.enqueue("last", 1, "three")
    assert await world.all_that_can() == ["first"]
    await world.end("first", "complete")
    assert await world.all_that_can() == ["huge"]
    await world.end("huge", "complete")
    assert await world.all_that_can() == ["last"]


async def test_a_large_job_that_waits_is_displaced_by_a_more_urgent_one(bench: Bench):
    world = World(bench)
    await world.rule("three", 3)
    await world.enqueue("huge", 9, "three", priority=5)
    await bench.do(bench.store.admit(5, 50, 1))
    await world.check()
    await world.enqueue("less urgent", 1, "three", priority=7)
    await bench.do(bench.store.admit(5, 50, 1))
    assert list((await bench.dump())["waiting"]) == ["huge"], "it has its turn"
    await world.enqueue("urgent", 1, "three", priority=-5)
    assert await world.all_that_can() == ["urgent"]
    await world.check()


async def test_the_answer_of_a_repeated_claim_has_the_slots(bench: Bench):
    store, world = bench.store, World(bench)
    await world.enqueue("a", 4)
    first = await bench.do(store.claim(6, 30_000, "w", "w:0", 1, repeated=False, size=6))
    assert first[-2:] == [None, ["4"]]
    again = await store.do(store.claim(6, 30_000, "w", "w:0", 1, repeated=True, size=6))
    assert again is not None
    assert (again.ids, again.weights) == ([b"a"], [b"4"])


async def test_places_that_no_job_has_are_given_back(bench: Bench):
    world = World(bench)
    await world.rule("five", 5)
    await world.enqueue("a", 2, "five")
    assert await world.trip() == ["a"]
    await world.check()
    for member in ("five\0a\x003", "queue\0a\x003", "queue\0gone\x002"):
        await bench.admin.command(b"ZADD", bench.admin.keys["admitted"], 0, member)
    assert (await bench.do(bench.store.recount(10)))[1] == 3
    await world.check()


async def test_a_removed_job_leaves_no_weight(bench: Bench):
    world = World(bench)
    await world.enqueue("a", 4)
    assert (await bench.dump())["weights"] == {"a": "4"}
    await bench.do(bench.store.remove(["a"]))
    assert "weights" not in await bench.dump()


async def test_a_claim_leaves_reserved_slots_to_urgent_jobs(bench: Bench, heard: list[bytes], until: Until):
    world, requests = World(bench), itertools.count(1)
    for job, priority in (("u1", -1), ("u2", -7), ("n1", 0), ("n2", 0), ("n3", 5)):
        await world.enqueue(job, 1, priority=priority)

    async def claim(want: int, others: int) -> list[str]:
        call = bench.store.claim(
            want, 30_000, "w", "w:0", next(requests), repeated=False, size=6, reserve=(0, others, 3)
        )
        claimed = await bench.store.do(call)
        assert claimed is not None
        assert claimed.urgent == sum(job.startswith(b"u") for job in claimed.ids)
        return [job.decode() for job in claimed.ids]

    assert await claim(6, 1) == ["u2", "u1", "n1"]
    assert await claim(3, 0) == []
    await world.enqueue("u3", 1, priority=-1)
    assert await claim(3, 0) == ["u3"]
    assert await claim(2, 2) == ["n2", "n3"]
    await until(lambda: len(heard) >= 3, "three messages")
    assert heard == [b"room 1"] * 3, "workers with slots for others hear of the jobs that were left"


class Costs:
    """A queue with one key whose rate counts tokens, and what its jobs were charged."""

    def __init__(self, bench: Bench, *, count: int, per: int, burst: int) -> None:
        self.bench, self.count, self.per, self.burst = bench, count, per, burst
        bench.store.limited = True
        self.costs: dict[str, int] = {}
        self.charged: list[tuple[int, int]] = []
        """When and how much."""
        self.tokens: dict[str, str] = {}
        self.requests = itertools.count(1)

    async def begin(self) -> None:
        text = f"- {self.count}/{self.per}/{self.burst}/tokens"
        await self.bench.do(self.bench.store.rule("set", "model", text))

    async def enqueue(self, job_id: str, cost: int, *more: str) -> None:
        self.costs[job_id] = cost
        line = "\n".join(("model", *more))
        row = [job_id, b"{}", f"0 0 0\v{line}\v1\ntokens {cost}"]
        assert await self.bench.do(self.bench.store.enqueue(row)) == []

    async def trip(self, want: int = 5) -> list[str]:
        store = self.bench.store
        await store.do(store.admit(want, 50, 1))
        claimed = await store.do(store.claim(want, 30_000, "w", "w:0", next(self.requests), repeated=False))
        ids = [raw.decode() for raw in claimed.ids] if claimed else []
        for job_id in ids:
            assert claimed
            self.tokens[job_id] = claimed.token.decode()
            self.charged.append((self.bench.now, self.costs[job_id]))
        return ids

    async def spent(self, job_id: str, amount: int) -> list[str]:
        return await self.bench.do(self.bench.store.charge([job_id, self.tokens[job_id], f"tokens {amount}"]))

    def check(self) -> None:
        """In any window, the costs are within the band, but for what the last job costs beyond a burst."""
        for i, (first, _) in enumerate(self.charged):
            total = 0
            for at, cost in self.charged[i:]:
                total += cost
                bound = self.burst + (at - first) * self.count / self.per + max(0, cost - self.burst)
                # a token may come 0.001 ms too early
                assert total <= bound + 0.002 * self.count / self.per + 1e-6


@pytest.mark.parametrize("seed", range(10))
async def test_costs_stay_within_the_band_in_any_window_and_every_job_starts(bench: Bench, seed: int):
    draw = random.Random(seed)
    world = Costs(
        bench, count=draw.choice((7, 90, 1000)), per=draw.choice((100, 1000)), burst=draw.choice((1, 20, 100))
    )
    await world.begin()
    for step in range(60):
        if draw.random() < 0.5:
            await world.enqueue(f"j{step}", draw.choice((0, 1, 5, 19, 20, 21, 150)))
        await world.trip(draw.choice((1, 3, 10)))
        bench.now += draw.choice((0, 1, 7, 60, 300))
        world.check()
    for _ in range(3000):
        if len(world.charged) == len(world.costs):
            break
        (_, opens, left), _ = await bench.do(bench.store.admit(5, 50, 1)), await world.trip()
        # nothing polls: the answer says when the next job may start
        if opens > 0 and not left:
            bench.now += opens
        world.check()
    assert len(world.charged) == len(world.costs), "a job waits for ever"


@pytest.mark.parametrize("together", [False, True])
async def test_a_key_opens_as_soon_as_the_first_of_its_jobs_has_its_tokens(bench: Bench, together: bool):
    """A later job that costs more found the key full, too, and the key stayed closed until that one could start."""
    world = Costs(bench, count=10, per=1000, burst=10)
    await world.begin()
    await bench.do(bench.store.rule("set", "other", "5"))
    await world.enqueue("paid", 10)
    assert await world.trip() == ["paid"]
    bench.now += 200
    await world.enqueue("cheap", 4)
    if not together:
        assert (await bench.do(bench.store.admit(5, 50, 1)))[1] == 200
    await world.enqueue("expensive", 30, "other")
    assert (await bench.do(bench.store.admit(5, 50, 1)))[1] == 200
    bench.now += 200
    assert await world.trip() == ["cheap"]


async def test_a_key_opens_for_a_job_behind_one_that_was_killed(bench: Bench):
    """The token that the killed job waited for is too little for the next one."""
    world = Costs(bench, count=10, per=1000, burst=10)
    await world.begin()
    await bench.do(bench.store.rule("set", "other", "5"))
    await world.enqueue("paid", 10)
    await world.enqueue("killed", 1, "other")
    await world.enqueue("next", 8)
    assert await world.trip() == ["paid"]
    bench.now += 100
    await bench.do(bench.store.kill(["killed"], b"{}"))
    assert (await bench.do(bench.store.admit(5, 50, 1)))[1:] == [700, 0]
    bench.now += 700
    assert await world.trip() == ["next"]


async def test_the_real_cost_moves_the_rate_once_in_either_direction(bench: Bench):
    world = Costs(bench, count=10, per=1000, burst=10)
    await world.begin()
    for job in ("a", "b", "c"):
        await world.enqueue(job, 10)
    assert await world.trip() == ["a"]
    for _ in range(2):
        assert await world.spent("a", 4) == []
    assert (await bench.dump())["weights"]["a"] == "1\ntokens 10 4"
    bench.now += 399
    assert await world.trip() == []
    bench.now += 1
    assert await world.trip() == ["b"], "six tokens were given back"
    for _ in range(2):
        assert await world.spent("b", 15) == []
    bench.now += 1499
    assert await world.trip() == []
    bench.now += 1
    assert await world.trip() == ["c"], "five more were paid"


async def test_a_cost_of_a_run_that_lost_its_lease_changes_nothing(bench: Bench):
    world = Costs(bench, count=10, per=1000, burst=10)
    await world.begin()
    await world.enqueue("a", 10)
    await world.trip()
    before = await bench.dump()
    world.tokens["a"] = "4 w"
    assert await world.spent("a", 1) == ["a"]
    assert await bench.dump() == before


async def test_the_next_run_is_charged_for_the_estimate_again(bench: Bench):
    world = Costs(bench, count=10, per=1000, burst=10)
    await world.begin()
    await world.enqueue("a", 10)
    await world.trip()
    await world.spent("a", 2)
    await bench.do(bench.store.release(["a", world.tokens["a"]]))
    bench.now += 200
    assert await world.trip() == ["a"]
    state = await bench.dump()
    assert state["weights"]["a"] == "1\ntokens 10"
    assert state["spent"] == {"model\x001": bench.now + 1000}


async def test_a_cost_beyond_the_burst_starts_with_a_full_bucket_and_is_paid_back(bench: Bench):
    world = Costs(bench, count=10, per=1000, burst=10)
    await world.begin()
    for job, cost in (("small", 1), ("large", 25), ("next", 1)):
        await world.enqueue(job, cost)
    assert await world.trip() == ["small"]
    assert await world.trip() == []
    bench.now += 100
    assert await world.trip() == ["large"], "the bucket is full again"
    bench.now += 1599
    assert await world.trip() == []
    bench.now += 1
    assert await world.trip() == ["next"]


async def test_a_debt_is_paid_back_at_the_rate_of_now_and_despite_a_clock_that_was_set_back(bench: Bench):
    world = Costs(bench, count=10, per=1000, burst=10)
    await world.begin()
    bench.now += 10_000_000
    await world.enqueue("large", 1000)
    await world.enqueue("next", 1)
    assert await world.trip() == ["large"]
    bench.now -= 9_000_000
    await bench.do(bench.store.rule("set", "model", "- 1000/1000/10/tokens"))
    assert await world.trip() == []
    bench.now += 500
    assert await world.trip() == [], "what was written when the clock was set back counts from then on"
    bench.now += 491
    assert await world.trip() == ["next"]


async def test_costs_of_jobs_that_were_admitted_and_have_not_started_count(bench: Bench):
    world = Costs(bench, count=10, per=1000, burst=10)
    await world.begin()
    for job in ("a", "b"):
        await world.enqueue(job, 6)
        await bench.do(bench.store.admit(5, 50, 1))
        assert list((await bench.dump())["waiting"]) == ["a"]


async def test_cheap_jobs_of_other_lines_do_not_overtake_an_expensive_one(bench: Bench):
    world = Costs(bench, count=10, per=1000, burst=10)
    await world.begin()
    await bench.do(bench.store.rule("set", "r", "9"))
    await world.enqueue("first", 5)
    assert await world.trip() == ["first"]
    await world.enqueue("expensive", 10)
    world.costs["cheap"] = 1
    await bench.do(bench.store.enqueue(["cheap", b"{}", "0 0 0\vmodel\nr\v1\ntokens 1"]))
    assert await world.trip() == []
    assert await bench.do(bench.store.admit(5, 50, 1)) == [0, 500, 0]
    bench.now += 500
    assert await world.trip() == ["expensive"]
