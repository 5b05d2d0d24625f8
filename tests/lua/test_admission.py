"""Limits: what the scripts keep true together, under random moves and a clock that the test sets."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from jobq.engine.model.limits import Rule, parse_rule

if TYPE_CHECKING:
    from table import Bench

HOLDING = ("waiting", "active")


class World:
    """A queue with rules, seen from outside: what was enqueued, what runs, and when each job of a key started."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        bench.store.limited = True  # as a worker learns at its first claim
        self.random = random.Random(seed)
        self.rules: dict[str, Rule] = {}
        self.keys: dict[str, tuple[str, ...]] = {}
        self.tokens: dict[str, str] = {}
        """Leases of active jobs."""
        self.starts: dict[str, list[int]] = {}
        self.requests = 0
        self.left = 0
        self.ordered = False
        """Whether each trip checks the order of what it admits."""

    async def rule(self, name: str, text: str) -> None:
        cursor: str | bytes = ""
        while cursor := await self.bench.store.do(self.bench.store.rule("set", name, text, cursor, page=3)):
            pass
        rule = parse_rule(text)
        assert rule
        self.rules[name] = rule

    def rule_of(self, key: str) -> Rule:
        return self.rules.get(key.partition(":")[0], Rule())

    async def enqueue(self, job_id: str, *keys: str, priority: int = 0, delay: int = 0, group: str = "") -> None:
        if group:
            keys = (f"@{group}", *keys)
        options = f"{priority} 0 {delay}\v" + "\n".join(keys)
        assert await self.bench.do(self.bench.store.enqueue([job_id, b"{}", options])) == []
        self.keys[job_id] = keys

    async def trip(self, want: int, looks: int = 50) -> list[str]:
        """What a lane does: forward, admit, claim."""
        store = self.bench.store
        await store.do(store.forward(100))
        places: dict[str, float] = (await self.bench.dump()).get("held", {}) if self.ordered else {}
        _, _, self.left = await store.do(store.admit(want, looks, 1))
        if places:
            self.check_order(places, (await self.bench.dump()).get("held", {}))
        self.requests += 1
        claimed = await store.do(store.claim(want, 30_000, "w", "w:0", self.requests, repeated=False))
        if claimed is None:
            return []
        for raw in claimed.ids:
            self.tokens[raw.decode()] = claimed.token.decode()
            for key in self.keys[raw.decode()]:
                self.starts.setdefault(key, []).append(self.bench.now)
        return [raw.decode() for raw in claimed.ids]

    async def all_that_can(self, want: int = 7) -> list[str]:
        """Trips until nothing more comes."""
        got: list[str] = []
        for _ in range(1000):
            some = await self.trip(want)
            if not some and not self.left:
                return got
            got += some
        raise AssertionError("admit never comes to an end")

    async def end(self, job_id: str, how: str) -> None:
        token, store = self.tokens.pop(job_id), self.bench.store
        if how == "complete":
            await store.do(store.complete([job_id, token, b"r", ""], []))
        elif how == "fail":
            await store.do(store.fail([job_id, token, 1, b"{}", ""]))
        elif how == "reschedule":
            await store.do(store.reschedule([job_id, token, 1, 30, b"{}"]))
        elif how == "release":
            await store.do(store.release([job_id, token]))
        elif how == "snooze":
            await store.do(store.snooze([job_id, token, 25]))
        elif how == "defer":
            await store.do(store.defer([job_id, token, "", 0], 20, 50, b"[]"))
        elif how == "park":
            await store.do(store.defer([job_id, token, "t", 70], 20, 50, b'["t"]'))
        else:
            assert how == "kill"
            await store.do(store.kill([job_id], b"{}"))

    async def check(self, *, settled: bool) -> None:
        """The invariants. ``settled``: nothing more can be claimed now, so every held job must have a reason."""
        state = await self.bench.dump()
        admitted, unspent, held_by = (set(state.get(column, {})) for column in ("admitted", "unspent", "held_by"))
        counting = {job for column in HOLDING for job in state.get(column, {})}
        assert admitted == {f"{key}\0{job}" for job in counting for key in self.keys[job]}
        assert unspent == {
            f"{key}\0{job}" for job in state.get("waiting", {}) for key in self.keys[job] if self.rule_of(key).rate
        }
        assert sorted(member.split("\0")[2] for member in held_by) == sorted(state.get("held", {}))
        self.check_lines(state)
        for key in {key for keys in self.keys.values() for key in keys}:
            rule = self.rule_of(key)
            count = sum(key in self.keys[job] for job in counting)
            assert rule.concurrency is None or count <= rule.concurrency
            for band in rule.rate:
                times = self.starts.get(key, [])
                for i, first in enumerate(times):
                    for j in range(i, len(times)):
                        assert j - i + 1 <= band.burst + (times[j] - first) * band.count / band.per + 1e-4, key
        if not settled:
            return
        for job in state.get("held", {}):
            assert any(self.full(key, counting) for key in self.keys[job]), f"{job} is held without a reason"
        assert not {"arrivals", "openings", "turns", "open_lines"} & set(state)
        # what waits for a token has a time at which somebody looks again
        for member in state.get("full_lines", {}):
            key = member.split("\0")[0]
            if not self.waits_for_an_end(key, sum(key in self.keys[job] for job in counting)):
                assert key in state.get("reopens", {}), f"nothing opens {key} again"

    def check_order(self, before: dict[str, float], after: dict[str, float]) -> None:
        """Jobs with the same group and keys are admitted in their order."""
        first_left: dict[tuple[str, ...], float] = {}
        for job in before.keys() & after.keys():
            first_left[self.keys[job]] = min(before[job], first_left.get(self.keys[job], before[job]))
        for job in before.keys() - after.keys():
            assert before[job] < first_left.get(self.keys[job], float("inf")), f"{job} overtook another job"

    def waits_for_an_end(self, key: str, count: int) -> bool:
        """Whether the end of one of the ``count`` jobs that count under the key opens it."""
        rule = self.rule_of(key)
        return rule.concurrency is not None and count >= rule.concurrency

    def check_lines(self, state: dict[str, Any]) -> None:
        """Each line with held jobs has arrived, or stands in one place; each group with open lines has a turn."""
        held_lines = {member.split("\0")[0] for member in state.get("held_by", {})}
        spots = state.get("lines", {})
        stands = {spot[0] + spot[1:] for name, spot in spots.items() if name[0] == "="}
        open_lines, full_lines = state.get("open_lines", {}), state.get("full_lines", {})
        assert stands == {f"o{member}" for member in open_lines} | {f"f{member}" for member in full_lines}
        assert held_lines <= {name[1:] for name in spots if name[0] == "="} | set(state.get("arrivals", {}))
        assert {member.split("\0")[0] for member in open_lines} <= {name[1:] for name in spots if name[0] == "@"}
        assert {spot for name, spot in spots.items() if name[0] == "@"} == set(state.get("turns", {}))

    def full(self, key: str, counting: set[str]) -> bool:
        rule = self.rule_of(key)
        if rule.concurrency is not None and sum(key in self.keys[job] for job in counting) >= rule.concurrency:
            return True
        for band in rule.rate:
            interval, arrival = band.per / band.count, 0.0
            for at in self.starts.get(key, []):
                arrival = max(arrival, at) + interval
            if arrival - self.bench.now > (band.burst - 1) * interval + 2e-3:
                return True
        return False


RULES = {
    "one": "1",
    "two": "2",
    "rate": "- 1/10/1",
    "odd": "- 6/1000/2",
    "bands": "- 4/40/2 6/100/6",
    "both": "2 5/50/3",
}
KEYS = ("one", "two:a", "two:b", "rate:a", "rate:b", "odd", "bands", "both:x", "free")


@pytest.mark.parametrize("grouped", [False, True], ids=["", "groups"])
@pytest.mark.parametrize("seed", range(12))
async def test_random_moves_keep_every_limit_and_hold_nothing_without_a_reason(bench: Bench, seed: int, grouped: bool):
    world = World(bench, seed)
    for name, text in RULES.items():
        await world.rule(name, text)
    draw = world.random
    for step in range(120):
        what = draw.random()
        if what < 0.4:
            keys = draw.sample(KEYS, draw.choice((0, 1, 1, 1, 2, 3)))
            await world.enqueue(
                f"j{step}",
                *keys,
                priority=draw.choice((0, 0, 0, -3, 5)),
                delay=draw.choice((0, 0, 20)),
                group=draw.choice(("", "a", "b", "c")) if grouped else "",
            )
        elif what < 0.6:
            await world.trip(draw.choice((1, 3, 10)), draw.choice((1, 4, 50)))
        elif what < 0.9 and world.tokens:
            how = draw.choice(
                ("complete", "complete", "complete", "fail", "reschedule", "release", "snooze", "defer", "park", "kill")
            )
            await world.end(draw.choice(sorted(world.tokens)), how)
        elif what < 0.93:
            await bench.store.do(bench.store.recall(draw.choice((1, 3)), ["t"]))
        else:
            bench.now += draw.choice((1, 5, 30, 200))
        await world.check(settled=False)
        if step % 10 == 9:
            await world.all_that_can()
            await world.check(settled=True)
    for _ in range(400):
        # time passes, jobs end: in the end nothing is held
        await world.all_that_can()
        await world.check(settled=True)
        for job in sorted(world.tokens):
            await world.end(job, "complete")
        bench.now += 10
    state = await bench.dump()
    assert not {"held", "held_by", "waiting", "delayed", "parked", "active", "admitted", "unspent"} & set(state)


@pytest.mark.parametrize("grouped", [False, True], ids=["", "groups"])
@pytest.mark.parametrize("seed", range(5))
async def test_random_moves_of_many_lines(bench: Bench, seed: int, grouped: bool):
    """With many open lines or groups, admit finds their jobs at the head of held."""
    world = World(bench, 100 + seed)
    world.ordered = True
    for name, text in {"two": "2", "rate": "- 1/10/1", "wide": "9"}.items():
        await world.rule(name, text)
    draw, jobs = world.random, 0
    for _ in range(30):
        what = draw.random()
        if what < 0.4:
            for _ in range(draw.choice((1, 20, 40))):
                jobs += 1
                keys = draw.choice(
                    ((f"two:{draw.randrange(25)}",), (f"two:{draw.randrange(25)}", "wide"), (f"rate:{jobs % 3}",), ())
                )
                group = f"g{draw.randrange(25)}" if grouped and draw.random() < 0.9 else ""
                priority = draw.choice((0, 0, 0, 0, -3, 5))
                await world.enqueue(f"j{jobs}", *keys, priority=priority, group=group)
        elif what < 0.7:
            await world.trip(draw.choice((1, 10, 40)), draw.choice((4, 50, 250)))
        elif what < 0.9:
            for job in draw.sample(sorted(world.tokens), len(world.tokens) * 2 // 3):
                await world.end(job, draw.choice(("complete", "complete", "release", "kill", "reschedule")))
        elif what < 0.95 and (held := sorted((await bench.dump()).get("held", {}))):
            await bench.store.do(bench.store.kill(draw.sample(held, min(len(held), 5)), b"{}"))
        else:
            bench.now += draw.choice((1, 5, 30, 200))
        await world.check(settled=False)
    while {"held", "waiting", "delayed"} & set(state := await bench.dump()):
        await world.all_that_can(20)
        await world.check(settled=True)
        for job in sorted(world.tokens):
            await world.end(job, "complete")
        bench.now += 100
    assert not {"held", "held_by", "waiting", "delayed", "active", "admitted", "unspent"} & set(state)


async def trips(bench: Bench, *rules: tuple[str, str]) -> World:
    world = World(bench, 0)
    for name, text in rules:
        await world.rule(name, text)
    return world


async def test_a_more_urgent_job_takes_the_place_of_one_that_has_not_started(bench: Bench):
    world = await trips(bench, ("one", "1"))
    await world.enqueue("late", "one", priority=5)
    # another worker admits it and claims something else
    await bench.do(bench.store.admit(5, 50, 1))
    assert list((await bench.dump())["waiting"]) == ["late"]
    await world.enqueue("urgent", "one", priority=-5)
    assert await world.all_that_can() == ["urgent"]
    await world.check(settled=True)
    await world.end("urgent", "complete")
    assert await world.all_that_can() == ["late"]


async def test_a_more_urgent_job_takes_the_token_of_one_that_has_not_started(bench: Bench):
    world = await trips(bench, ("r", "- 1/1000/1"))
    await world.enqueue("late", "r", priority=5)
    await bench.do(bench.store.admit(5, 50, 1))
    await world.enqueue("urgent", "r", priority=-5)
    assert await world.all_that_can() == ["urgent"]
    await world.check(settled=True)
    bench.now += 1000
    assert await world.all_that_can() == ["late"]


async def test_a_token_that_was_spent_is_taken_from_nobody(bench: Bench):
    """One band is short of tokens that are spent. Then it is in vain to take those of another band away."""
    world = await trips(bench, ("r", "- 1/1000/2"), ("s", "- 1/1000/1"))
    await world.enqueue("ran", "s")
    assert await world.all_that_can() == ["ran"]
    for number in range(2):
        await world.enqueue(f"late{number}", "r", priority=5)
    await bench.do(bench.store.admit(5, 50, 1))
    await world.enqueue("urgent", "s", "r", priority=-5)
    await bench.do(bench.store.admit(5, 50, 1))
    assert list((await bench.dump())["waiting"]) == ["late0", "late1"]


async def test_a_job_that_is_less_urgent_displaces_nobody(bench: Bench):
    world = await trips(bench, ("one", "1"))
    await world.enqueue("first", "one")
    await bench.do(bench.store.admit(5, 50, 1))
    await world.enqueue("second", "one")
    await bench.do(bench.store.admit(5, 50, 1))
    assert list((await bench.dump())["waiting"]) == ["first"]


async def test_a_lowered_rule_takes_back_jobs_that_have_not_started(bench: Bench):
    world = await trips(bench, ("r", "5"))
    for n in range(6):
        await world.enqueue(f"j{n}", "r")
    assert await bench.do(bench.store.admit(10, 50, 1)) == [5, -1, 0]
    await world.rule("r", "2")
    await bench.do(bench.store.admit(10, 50, 1))
    assert list((await bench.dump())["waiting"]) == ["j0", "j1"]
    await world.check(settled=True)


async def test_only_jobs_that_the_claim_would_take_are_admitted(bench: Bench):
    world = await trips(bench, ("r", "9"))
    for n in range(4):
        await world.enqueue(f"plain{n}", priority=-1)
        await world.enqueue(f"held{n}", "r")
    assert await bench.do(bench.store.admit(4, 50, 1)) == [0, -1, 0]
    assert await bench.do(bench.store.admit(5, 50, 1)) == [4, -1, 0], "up to the horizon of one more job"


async def test_many_open_lines_let_more_urgent_jobs_go_first(bench: Bench):
    world = await trips(bench, ("r", "9"))
    for n in range(40):
        await world.enqueue(f"held{n}", f"r:{n}")
    assert await world.trip(1) == ["held0"]
    for n in range(4):
        await world.enqueue(f"plain{n}", priority=-1)
    assert await bench.do(bench.store.admit(4, 50, 1)) == [0, -1, 0]
    assert await world.trip(6) == ["plain0", "plain1", "plain2", "plain3", "held1", "held2"]


@pytest.mark.parametrize("group", ["", "g"])
async def test_a_key_that_one_line_leaves_open_is_used_before_later_jobs_start(bench: Bench, group: str):
    """The first line that waits for the key is refused by another rule. The next one starts in the same trip, before
    jobs without limits that came later."""
    world = await trips(bench, ("pool", "1"), ("rate", "- 1/60000/1"))
    for job_id, keys in {"a": ("pool",), "b": ("rate",), "c": ("pool", "rate"), "d": ("pool",), "e": ("pool",)}.items():
        await world.enqueue(job_id, *keys, group=group)
    assert await world.trip(2) == ["a", "b"]
    assert await world.all_that_can() == []
    await world.enqueue("later", group=group)
    await world.end("a", "complete")
    assert await world.trip(1) == ["d"]


async def test_the_order_under_a_key_holds_after_a_job_that_waits_for_it_was_killed(bench: Bench):
    """The line of the killed job waits for the key at its place. Its next job came later than that of another line."""
    world = await trips(bench, ("one", "1"), ("two", "2"))
    for job_id, keys in {"runs": ("one",), "killed": ("one", "two"), "next": ("one",), "last": ("one", "two")}.items():
        await world.enqueue(job_id, *keys)
    assert await world.all_that_can() == ["runs"]
    await bench.store.do(bench.store.kill(["killed"], b"{}"))
    await world.end("runs", "complete")
    assert await world.trip(1) == ["next"]
    await world.end("next", "complete")
    assert await world.trip(1) == ["last"]


async def test_a_line_stays_open_no_longer_than_jobs_are_held(bench: Bench):
    """A call that finds jobs at the head of held does not look whether more jobs of their lines follow."""
    world = await trips(bench, ("r", "9"))
    for n in range(60):
        await world.enqueue(f"j{n}", f"r:{n}")
    assert await world.trip(1, 250) == ["j0"]
    for _ in range(2):
        assert len(await world.trip(20, 250)) == 20
        state = await bench.dump()
        assert len(state["open_lines"]) == len(state["held"])


async def test_the_most_urgent_jobs_of_all_keys_are_admitted_first(bench: Bench):
    world = await trips(bench, ("r", "9"))
    for n, priority in enumerate((5, -5, 0, -5, 3)):
        await world.enqueue(f"j{n}", f"r:{n % 3}", priority=priority)
    assert await bench.do(bench.store.admit(3, 50, 2)) == [3, -1, 1]
    assert list((await bench.dump())["waiting"]) == ["j1", "j3", "j2"]


async def test_a_refused_job_takes_no_token_of_its_other_keys(bench: Bench):
    world = await trips(bench, ("rate", "- 1/1000/1"), ("full", "0"))
    await world.enqueue("refused", "rate", "full")
    assert await world.all_that_can() == []
    assert "spent" not in await bench.dump()
    await world.enqueue("free", "rate")
    assert await world.all_that_can() == ["free"]


async def test_nothing_bursts_after_a_time_without_workers(bench: Bench):
    world = await trips(bench, ("rate", "- 10/1000/3"))
    for n in range(30):
        await world.enqueue(f"j{n}", "rate")
    bench.now += 1_000_000
    assert len(await world.all_that_can()) == 3
    bench.now += 100
    assert len(await world.all_that_can()) == 1


async def test_a_key_whose_tokens_are_all_promised_opens_when_a_job_starts(bench: Bench):
    """Its bucket is full and its jobs do not start, so time brings no token. No worker looks in vain meanwhile."""
    world = await trips(bench, ("rate", "- 1/100/2"))
    for n in range(3):
        await world.enqueue(f"j{n}", "rate")
    assert await bench.do(bench.store.admit(10, 50, 1)) == [2, -1, 0]
    bench.now += 10_000
    assert await bench.do(bench.store.admit(10, 50, 1)) == [0, -1, 0]
    assert await world.trip(1) == ["j0"]
    found = await bench.dump()
    assert found["reopens"] == {"rate": bench.now}
    assert "wake" in found
    assert await world.all_that_can() == ["j1"], "the second token was promised to it"
    await world.check(settled=True)
    bench.now += 100
    assert await world.all_that_can() == ["j2"]


async def test_a_worker_is_called_for_a_key_that_a_claim_opens(bench: Bench):
    """The claim takes all jobs of waiting. Only the next token of the key says that there is work."""
    world = await trips(bench, ("rate", "- 1/100/2"))
    for n in range(3):
        await world.enqueue(f"j{n}", "rate")
    for _ in range(2):
        await bench.do(bench.store.admit(10, 50, 1))
    await bench.admin.command(b"DEL", bench.store.keys["wake"])
    claimed = await bench.store.do(bench.store.claim(2, 30_000, "w", "w:0", 1, repeated=False))
    assert claimed is not None
    assert claimed.ids == [b"j0", b"j1"]
    assert "wake" in await bench.dump()


@pytest.mark.parametrize(
    ("column", "damaged"),
    [("full_lines", "r\0x"), ("full_lines", "r\0" + "0" * 20 + "\x001\0r"), ("open_lines", "g\0x"), ("turns", "0x")],
)
async def test_a_damaged_member_of_an_index_is_removed_and_stops_nothing(bench: Bench, column: str, damaged: str):
    world = await trips(bench, ("r", "1"), ("s", "1"))
    for job_id, keys in {"a": ("r",), "b": ("s",), "c": ("r",), "d": ("s",)}.items():
        await world.enqueue(job_id, *keys, group="g")
    assert await world.all_that_can() == ["a", "b"]
    await bench.admin.command(b"ZADD", bench.store.keys[column], 0, damaged.encode())
    for job_id in ("a", "b"):
        await world.end(job_id, "complete")
    assert await world.all_that_can() == ["c", "d"]
    assert column not in await bench.dump()


async def test_looks_bound_the_work_of_a_call(bench: Bench):
    """Jobs of an open key that are all refused by another one: each call looks at some, and says that more are left."""
    world = await trips(bench, ("open", "100"), ("full", "0"))
    for n in range(10):
        await world.enqueue(f"j{n}", "open", f"full:{n}")
    assert (await bench.do(bench.store.admit(10, 4, 1)))[2] == 1
    for _ in range(20):
        if (await bench.do(bench.store.admit(10, 4, 1)))[2] == 0:
            break
    else:
        raise AssertionError("it never ends")
    await world.check(settled=True)


async def test_the_rule_of_the_queue_bounds_every_claim(bench: Bench):
    store, world = bench.store, await trips(bench, ("queue", "3 10/1000/5"))
    for n in range(9):
        await world.enqueue(f"j{n}")

    async def claim(want: int) -> list[Any]:
        world.requests += 1
        return await bench.do(store.claim(want, 30_000, "w", "w:0", world.requests, repeated=False))

    token, _, ids, *rest = await claim(2)
    assert (ids, len(rest)) == (["j0", "j1"], 3), "all that it asked for"
    _, _, ids, _, _, _, limited = await claim(5)
    assert (ids, limited) == (["j2"], -1), "until a job ends"
    assert await claim(5) == ["limited", bench.now, [], [], [], [], -1]
    await bench.do(store.complete(["j0", token, "r", "", "j1", token, "r", ""], []))
    _, _, ids, _, _, _, limited = await claim(9)
    assert (ids, limited) == (["j3", "j4"], 100), "the fifth token of the burst is spent"
    assert "wake" in await bench.dump(), "of the enqueues"


async def test_a_paused_queue_admits_nothing_and_a_lowered_rule_holds_what_was_admitted(bench: Bench):
    world = await trips(bench, ("r", "5"))
    for n in range(5):
        await world.enqueue(f"j{n}", "r")
    await bench.do(bench.store.pause())
    assert await bench.do(bench.store.admit(10, 50, 1)) == [0, -1, 0]
    await bench.do(bench.store.resume())
    assert (await bench.do(bench.store.admit(10, 50, 1)))[0] == 5
    await world.rule("r", "0")
    assert await world.all_that_can() == []
    await world.check(settled=True)
    await world.rule("r", "2")
    assert await world.all_that_can() == ["j0", "j1"]


async def test_a_displaced_job_is_admitted_again_if_the_urgent_one_is_held_by_another_key(bench: Bench):
    world = await trips(bench, ("r", "1"), ("s", "0"))
    await world.enqueue("first", "r")
    await bench.do(bench.store.admit(5, 50, 1))
    await world.enqueue("urgent", "r", "s", priority=-5)
    assert await world.all_that_can() == ["first"]
    await world.check(settled=True)


async def test_a_raised_rate_acts_at_once(bench: Bench):
    world = await trips(bench, ("r", "- 1/86400000/1"))
    for n in range(3):
        await world.enqueue(f"j{n}", "r")
    assert await world.all_that_can() == ["j0"]
    world.starts.clear()
    await world.rule("r", "- 100/1000/10")
    assert await world.all_that_can() == ["j1"]
    bench.now += 10
    assert await world.all_that_can() == ["j2"]


async def test_a_clock_that_was_set_back_stops_no_rate_for_longer_than_its_burst(bench: Bench):
    world = await trips(bench, ("r", "- 1/10/2"))
    bench.now += 10_000_000
    await world.enqueue("a", "r")
    assert await world.all_that_can() == ["a"]
    bench.now -= 9_000_000
    world.starts.clear()
    await world.enqueue("b", "r")
    assert await world.all_that_can() == ["b"]


async def test_a_rule_that_loses_its_rate_leaves_no_promise_of_a_token(bench: Bench):
    world = await trips(bench, ("r", "- 1/60000/1"))
    await world.enqueue("a", "r")
    await bench.do(bench.store.admit(5, 50, 1))
    await world.rule("r", "5")
    assert await world.all_that_can() == ["a"]
    assert "unspent" not in await bench.dump()


MANY = 40
"""Jobs that end in one call. Above 32 keys Redis is made to convert the set of keys that opened."""
ENDS: dict[str, Any] = {
    "complete": lambda store, pairs: store.complete([w for pair in pairs for w in (*pair, b"r", "")], []),
    "fail": lambda store, pairs: store.fail([w for pair in pairs for w in (*pair, 1, b"{}", "")]),
    "reschedule": lambda store, pairs: store.reschedule([w for pair in pairs for w in (*pair, 1, 500, b"{}")]),
    "release": lambda store, pairs: store.release([w for pair in pairs for w in pair]),
    "defer": lambda store, pairs: store.defer([w for pair in pairs for w in (*pair, "", 0)], 500, 500, b"[]"),
    "snooze": lambda store, pairs: store.snooze([w for pair in pairs for w in (*pair, 500)]),
    "throttle": lambda store, pairs: store.throttle([w for pair in pairs for w in (*pair, 500, "job")]),
}


@pytest.mark.parametrize("how", ENDS)
async def test_many_jobs_that_end_together_open_their_keys_and_no_others(bench: Bench, how: str):
    store = bench.store
    await bench.do(store.rule("set", "r", "1"))
    store.limited = True
    await bench.do(store.enqueue([word for n in range(MANY) for word in (f"j{n}", b"{}", f"0 0 0\vr:{n}")]))
    await bench.do(store.admit(MANY, 250, 1))
    assert set((await bench.dump())["admitted"]) == {f"r:{n}\0j{n}" for n in range(MANY)}
    claimed = await store.do(store.claim(MANY, 30_000, "w", "w:0", 1, repeated=False))
    assert claimed
    state = await bench.dump()
    assert set(state["active"]) == set(state["leases"]) == {f"j{n}" for n in range(MANY)}
    assert await bench.do(ENDS[how](store, [(job_id.decode(), claimed.token) for job_id in claimed.ids])) is not None
    state = await bench.dump()
    assert set(state["openings"]) == {f"r:{n}" for n in range(MANY)}
    assert not {"admitted", "active", "leases"} & set(state)


async def test_many_jobs_whose_keys_were_closed_go_back_together(bench: Bench):
    store = bench.store
    await bench.do(store.rule("set", "r", "1"))
    store.limited = True
    await bench.do(store.enqueue([word for n in range(MANY) for word in (f"j{n}", b"{}", f"0 0 0\vr:{n}")]))
    await bench.do(store.admit(MANY, 250, 1))
    for n in range(MANY):
        await bench.do(store.close(f"r:{n}", 50))
    assert await store.do(store.claim(MANY, 30_000, "w", "w:0", 1, repeated=False)) is None
    state = await bench.dump()
    assert (set(state["openings"]), len(state["held"])) == ({f"r:{n}" for n in range(MANY)}, MANY)
    assert not {"admitted", "waiting"} & set(state)
