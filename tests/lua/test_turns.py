"""Fair groups: whose turn it is, with the real scripts and a clock that the test sets."""

from __future__ import annotations

import random
from itertools import combinations
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from table import Bench

    from jobq.engine.store.calls import Argument


class Fair:
    """A queue whose jobs have groups. ``claim`` does what the lane of a worker does."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        bench.store.limited = True
        self.requests = self.jobs = 0
        self.group_of: dict[str, str] = {}

    async def add(self, group: str, n: int = 1, *, priority: int = 0, keys: str = "") -> None:
        rows: list[Argument] = []
        for _ in range(n):
            self.jobs += 1
            job_id = f"j{self.jobs:06}"
            self.group_of[job_id] = group
            names = "\n".join(name for name in (f"@{group}" if group else "", keys) if name)
            rows += (job_id, b"{}", f"{priority} 0 0" + (f"\v{names}" if names else "") if names or priority else "")
        assert [name for name in await self.bench.do(self.bench.store.enqueue(rows)) if name == "full"] == []

    async def claim(self, want: int = 1) -> list[str]:
        """The groups of the jobs that a worker with ``want`` free slots gets, in their order. The jobs end at once."""
        store = self.bench.store
        await store.do(store.admit(want, 250, 1))
        self.requests += 1
        claimed = await store.do(store.claim(want, 30_000, "w", "w:0", self.requests, repeated=False))
        if claimed is None:
            return []
        for raw in claimed.ids:
            assert await store.do(store.complete([raw, claimed.token, b"r", ""], [])) != []
        return [self.group_of[raw.decode()] for raw in claimed.ids]

    async def all(self, want: int = 1, most: int = 10_000) -> list[str]:
        """Claims until nothing is left, or ``most`` jobs came."""
        got: list[str] = []
        while len(got) < most and (some := await self.claim(want)):
            got += some
        return got

    async def set(self, group: str, row: str) -> None:
        cursor: str | bytes = ""
        while cursor := await self.bench.store.do(self.bench.store.group(group, row, cursor, page=2)):
            assert cursor != b"full"


@pytest.fixture
def fair(bench: Bench) -> Fair:
    return Fair(bench)


@pytest.mark.parametrize("want", [1, 10])
async def test_a_large_backlog_delays_another_groups_first_job_by_one_claim(fair: Fair, want: int):
    await fair.add("a", 500)
    await fair.all(want, most=50)
    await fair.add("b")
    assert "b" in await fair.claim(want) + await fair.claim(want)


async def test_groups_take_turns(fair: Fair):
    for group in "abc":
        await fair.add(group, 30)
    got = await fair.all()
    assert len(got) == 90
    for at in range(0, 90, 3):
        assert sorted(got[at : at + 3]) == ["a", "b", "c"]


@pytest.mark.parametrize("want", [1, 7])
async def test_jobs_without_a_group_are_one_more_group(fair: Fair, want: int):
    await fair.add("", 200)
    await fair.add("a", 100)
    await fair.add("b", 100)
    got = await fair.all(want, most=150)
    for group in ("", "a", "b"):
        assert abs(got.count(group) - len(got) / 3) <= want


async def test_jobs_without_a_group_that_come_late_do_not_overtake_for_long(fair: Fair):
    await fair.add("a", 300)
    await fair.all(5, most=100)
    await fair.add("", 100)
    got = await fair.all(5, most=100)
    assert abs(got.count("") - 50) <= 5


async def test_an_idle_group_saves_no_turns_and_pays_for_none(fair: Fair):
    await fair.add("a", 300)
    await fair.add("b", 3)
    await fair.all(1, most=100)  # b is idle meanwhile
    await fair.add("b", 50)
    got = await fair.all(1, most=40)
    assert abs(got.count("b") - 20) <= 1


async def test_a_group_with_a_higher_weight_gets_more_turns(fair: Fair):
    await fair.set("a", "3 0 -")
    await fair.add("a", 200)
    await fair.add("b", 200)
    got = await fair.all(1, most=80)
    assert abs(got.count("a") - 60) <= 1


async def test_another_weight_acts_at_once_on_jobs_that_wait(fair: Fair):
    await fair.add("a", 300)
    await fair.add("b", 300)
    await fair.all(1, most=100)
    await fair.set("a", "9 0 -")
    got = await fair.all(1, most=100)
    assert abs(got.count("a") - 90) <= 1
    await fair.set("a", "")
    assert abs((await fair.all(1, most=100)).count("a") - 50) <= 1


async def test_a_priority_is_strict_across_groups(fair: Fair):
    await fair.add("a", 20)
    await fair.add("", 20)
    await fair.add("b", 20, priority=-1)
    await fair.add("c", 20, priority=1)
    got = await fair.all(3)
    assert got[:20] == ["b"] * 20
    assert got[60:] == ["c"] * 20
    assert abs(got[20:40].count("a") - 10) <= 3


async def test_priority_and_order_hold_inside_a_group(fair: Fair):
    bench = fair.bench
    await fair.add("a", 3)
    await fair.add("a", 2, priority=-5)
    await bench.do(bench.store.admit(9, 250, 1))
    order = sorted((score, job) for job, score in (await bench.dump())["waiting"].items())
    assert [job for _, job in order] == ["j000004", "j000005", "j000001", "j000002", "j000003"]


async def test_a_paused_group_waits_and_the_others_go_on(fair: Fair):
    await fair.add("a", 5)
    await fair.add("b", 5)
    await fair.bench.do(fair.bench.store.admit(4, 250, 1))
    await fair.set("a", "1 1 -")
    assert await fair.all(3) == ["b"] * 5, "also jobs of the group that were admitted wait"
    await fair.add("a", 2)
    assert await fair.all(3) == []
    await fair.set("a", "1 0 -")
    assert await fair.all(3) == ["a"] * 7


@pytest.mark.parametrize("row", ["garbage", "0 0 -", "1e9 0 -", "-3 0 -", "nan 0 -"])
async def test_a_damaged_row_counts_as_weight_one(fair: Fair, row: str):
    await fair.bench.seed({"groups": {"a": row}})
    await fair.add("a", 50)
    await fair.add("b", 50)
    assert abs((await fair.all(1, most=40)).count("a") - 20) <= 1


async def test_a_full_key_is_shared_fairly_by_the_groups(fair: Fair):
    """All jobs of two groups count under one key. Its places go to both groups in turns, however long one waits."""
    bench = fair.bench
    await bench.do(bench.store.rule("set", "stripe", "1"))
    await fair.add("a", 40, keys="stripe")
    got = await fair.all(5, most=10)
    await fair.add("b", 10, keys="stripe")
    got = await fair.all(5, most=20)
    assert abs(got.count("b") - 10) <= 2


async def test_full_groups_cost_others_nothing(fair: Fair):
    """Many groups whose keys are full: the job of another group is admitted by the first call."""
    bench = fair.bench
    await bench.do(bench.store.rule("set", "tenant", "0"))
    for n in range(400):
        await fair.add(f"t{n}", 3, keys=f"tenant:{n}")
    while (await bench.do(bench.store.admit(10, 250, 1)))[2]:
        pass
    await fair.add("free")
    assert await bench.do(bench.store.admit(10, 1, 1)) == [1, -1, 0]


async def test_no_more_jobs_than_the_group_may_hold_are_enqueued(fair: Fair):
    bench = fair.bench
    await fair.set("a", "1 0 3")
    rows: list[Argument] = [
        part for n in range(5) for part in (f"x{n}", b"{}", "0 0 0\v@a" + ("\nkey" if n % 2 else ""))
    ]
    assert await bench.do(bench.store.enqueue(rows)) == [4, "", "full", 5, "", "full"]
    assert await bench.do(bench.store.enqueue(["y", b"{}", "0 0 0\v@b"])) == []
    await bench.do(bench.store.admit(1, 250, 1))
    assert await bench.do(bench.store.enqueue(["x5", b"{}", "0 0 0\v@a", "x6", b"{}", "0 0 0\v@a"])) == [2, "", "full"]
    assert await bench.do(bench.store.enqueue(["x0", b"{}", "0 0 0\v@a"])) == [1, "x0", "-"], "it is known already"


@pytest.mark.parametrize("seed", range(8))
async def test_the_bound_of_start_time_fair_queueing_holds(fair: Fair, seed: int):
    """In any time in which two groups both have jobs, their shares differ by no more than one job of each.

    Goyal, Vin, Cheng: Start-time Fair Queueing (1996), theorem 1: |W_f/w_f - W_g/w_g| <= l_f/w_f + l_g/w_g.
    """
    draw = random.Random(seed)
    weights = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 0.5}
    for group, weight in weights.items():
        await fair.set(group, f"{weight} 0 -")
    left = dict.fromkeys(weights, 0)
    log: list[tuple[str, frozenset[str]]] = []  # the group served, and the groups that had jobs before and after
    for _ in range(250):
        if draw.random() < 0.3:
            group = draw.choice(sorted(weights))
            n = draw.choice((1, 3, 20))
            await fair.add(group, n)
            left[group] += n
        busy = frozenset(group for group, n in left.items() if n)
        for group in await fair.claim():
            left[group] -= 1
            log.append((group, busy))
        assert busy == frozenset() or log, "work is never left undone"
    for one, other in combinations(weights, 2):
        # spans in which both are busy without a break
        bound = 1 / weights[one] + 1 / weights[other] + 0.01
        shares = [0.0]
        for served, busy in log:
            if one not in busy or other not in busy:
                shares = [0.0]
                continue
            step = (served == one) / weights[one] - (served == other) / weights[other]
            shares.append(shares[-1] + step)
            assert max(shares) - min(shares) <= bound, (one, other)


async def test_a_group_is_not_passed_over_by_groups_that_come_later(fair: Fair):
    """Groups with equal tags are served in the order of their jobs, not of their names."""
    await fair.add("z")
    for n in range(20):
        await fair.add(f"a{n}")
        if "z" in await fair.claim():
            return
    raise AssertionError("never served")


async def test_jobs_at_the_front_without_a_group_take_turns_too(fair: Fair):
    bench = fair.bench
    await fair.add("a", 100)
    got: list[str] = []
    for n in range(40):
        fair.group_of[f"l{n}"] = ""
        await bench.do(bench.store.enqueue([f"l{n}", b"{}", "0 1 0"]))
        got += await fair.claim()
    assert abs(got.count("a") - 20) <= 1


async def test_a_rule_of_the_queue_leaves_the_turns_as_they_are(fair: Fair):
    bench = fair.bench
    await bench.do(bench.store.rule("set", "queue", "1"))
    await fair.add("a", 100)
    await fair.claim(50)
    await fair.add("b")
    assert "b" in await fair.claim(50) + await fair.claim(50) + await fair.claim(50)


async def test_nothing_is_kept_of_groups_that_are_done(fair: Fair):
    for n in range(60):
        await fair.add(f"g{n}")
        await fair.claim()
    found = await fair.bench.dump()
    assert not {"finish", "turns", "lines", "open_lines", "held", "admitted"} & set(found)


async def test_a_pause_gives_back_all_places_of_a_job_with_several_slots(fair: Fair):
    bench = fair.bench
    await bench.do(bench.store.rule("set", "k", "4"))
    await bench.do(bench.store.enqueue(["j", b"{}", "0 0 0\v@a\nk\v4"]))
    await bench.do(bench.store.admit(9, 250, 1))
    assert "admitted" in await bench.dump()
    await fair.set("a", "1 1 -")
    assert "admitted" not in await bench.dump()


async def test_lines_of_removed_jobs_are_forgotten_while_their_group_is_paused(fair: Fair):
    bench = fair.bench
    await fair.set("a", "1 1 -")
    for n in range(5):
        await fair.add("a", keys=f"u:{n}")
    while (await bench.do(bench.store.admit(9, 250, 1)))[2]:
        pass
    await bench.do(bench.store.remove(sorted(fair.group_of)))
    cursor = ""
    for _ in range(20):
        cursor, _ = await bench.do(bench.store.recount(100, cursor))
    assert not {"lines", "full_lines"} & set(await bench.dump())


async def test_settings_of_a_group_that_are_not_named_stay(bench: Bench):
    store = bench.store
    for row, stored in (("3 0 5", "3 0 5"), ("= 1 =", "3 1 5"), ("= = -", "3 1 -"), ("0.5 0 =", "0.5 0 -")):
        await store.do(store.group("a", row))
        assert (await bench.dump())["groups"] == {"a": stored}
    await store.do(store.group("b", "= = 7"))
    assert (await bench.dump())["groups"]["b"] == "1 0 7"
