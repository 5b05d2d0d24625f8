"""Aging: a step of priority is worth a time of waiting, so no job starves. The scripts are real, the clock is set."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from table import Bench, Case, place, table

from jobq.engine.model.aging import AGING_JOBS_MAX

if TYPE_CHECKING:
    from columns import State

    from jobq.engine.store.calls import Argument

STEP = 60_000
START = 1_700_000_000_000


def aged(at_us: int, priority: int = 0, step: int = STEP) -> int:
    """The score of a job with aging that came at this time."""
    return priority * 1000 * step + 2**41 + 2**42 + at_us


class Aging:
    """A queue with aging. ``claim`` does what the lane of a worker does."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        bench.now = START
        self.request = 0

    async def set(self, ms: int = STEP, *, declared: bool = False) -> list[int]:
        found: list[int] = await self.bench.do(self.bench.store.aging(ms, declared=declared))
        return found

    async def add(self, job_id: str, priority: int = 0, *, delay: int = 0, line: str = "", lifo: int = 0) -> Any:
        options = f"{priority} {lifo} {delay}" + (f"\v{line}" if line else "")
        row: list[Argument] = [job_id, b"{}", options if options != "0 0 0" else ""]
        return await self.bench.do(self.bench.store.enqueue(row))

    async def claim(self, want: int = 1, **more: Any) -> Any:
        store = self.bench.store
        store.limited = True
        await store.do(store.forward(1000))
        await store.do(store.admit(want, 250, 1))
        self.request += 1
        return await store.do(store.claim(want, 30_000, "w", "w:0", self.request, repeated=False, **more))

    async def order(self, *, most: int = 10_000) -> list[str]:
        """Claims one job after another until nothing is left. Each one ends at once."""
        got: list[str] = []
        while len(got) < most and (claimed := await self.claim()) and claimed.ids:
            await self.bench.do(self.bench.store.complete([claimed.ids[0], claimed.token, b"r", ""], []))
            got.append(claimed.ids[0].decode())
        return got


@pytest.fixture
def aging(bench: Bench) -> Aging:
    return Aging(bench)


async def test_a_job_that_has_waited_a_step_goes_before_a_new_one_of_the_next_priority(aging: Aging):
    await aging.set()
    await aging.add("low", 1)
    aging.bench.now += STEP - 1
    await aging.add("almost")
    aging.bench.now += 2
    await aging.add("later")
    await aging.add("urgent", -5)
    assert await aging.order() == ["urgent", "almost", "low", "later"]


@pytest.mark.parametrize("seed", range(12))
async def test_a_job_starts_before_each_one_that_came_a_step_of_waiting_later(aging: Aging, seed: int):
    """A job of priority p that can run since t starts before each job of priority q that can run since more than
    t + (p - q) * aging. Jobs of one priority start in the order in which they came."""
    draw = random.Random(seed)
    step = draw.choice([1, 7, 1000, STEP, 86_400_000])
    await aging.set(step)
    came: dict[str, tuple[int, int]] = {}
    started: list[tuple[str, int]] = []
    for n in range(150):
        aging.bench.now += draw.choice([0, 0, 1, step // 7, step])
        priority = draw.choice([-1024, -2, -1, 0, 0, 0, 1, 3, 1023])
        delay = draw.choice([0, 0, 0, step, 5])
        job_id, line = f"j{n:03}", draw.choice(["", "", "free:1"])
        await aging.add(job_id, priority, delay=delay, line=line)
        came[job_id] = aging.bench.now + delay, priority
        if draw.random() < 0.3:
            started += [(one, aging.bench.now) for one in await aging.order(most=draw.randrange(3))]
    aging.bench.now += 2 * step + 10
    started += [(one, aging.bench.now) for one in await aging.order()]
    assert len(started) == len(came)
    for place_of, (job_id, at) in enumerate(started):
        can, priority = came[job_id]
        for later, _ in started[place_of + 1 :]:
            other_can, other = came[later]
            # `later` could run when `job_id` started. It must not have had the better claim.
            assert other_can >= at or can <= other_can + (other - priority) * step, (job_id, later)
            if other == priority and other_can < at:
                assert can <= other_can


async def test_many_jobs_of_one_moment_keep_their_order_and_their_time(aging: Aging):
    await aging.set()
    names = [f"j{n:04}" for n in range(3000)]
    draw = random.Random(1)
    shuffled = draw.sample(names, len(names))
    for at in range(0, len(names), 250):
        rows: list[Argument] = []
        for name in shuffled[at : at + 250]:
            rows += (name, b"{}", "")
        await aging.bench.do(aging.bench.store.enqueue(rows))
    state = await aging.bench.dump()
    assert sorted(names, key=state["waiting"].__getitem__) == shuffled
    scores = list(state["waiting"].values())
    assert min(scores) > aged(START * 1000)
    assert max(scores) < aged((START + 10) * 1000), "the numbers do not run ahead of the clock"


async def test_jobs_with_a_key_that_come_in_one_ms_keep_their_order(aging: Aging):
    await aging.set()
    for n in range(3):
        row: list[Argument] = [f"j{9 - n}", b"{}", "", f"unfinished 0 return -1 -1 2 k{n}"]
        await aging.bench.do(aging.bench.store.enqueue_unique(row))
    scores = (await aging.bench.dump())["waiting"]
    assert [scores[f"j{n}"] - scores["j9"] for n in (9, 8, 7)] == [0, 1, 2]
    assert await aging.order() == ["j9", "j8", "j7"]


async def test_groups_take_turns_whatever_their_priorities_and_each_is_served_by_priority_and_age(aging: Aging):
    await aging.set()
    for n in range(6):
        await aging.add(f"a{n}", -10, line="@a")
    for n in range(3):
        await aging.add(f"b{n}", n % 2, line="@b")
        await aging.add(f"c{n}", 0)
    got = await aging.order()
    for at in range(0, 9, 3):
        assert sorted(job[0] for job in got[at : at + 3]) == ["a", "b", "c"]
    assert [job for job in got if job[0] == "b"] == ["b0", "b2", "b1"]


async def test_urgent_jobs_without_a_group_pay_for_their_turns(aging: Aging):
    """They come before those that were counted, so an order by places alone would let them run for nothing."""
    await aging.set()
    for n in range(50):
        await aging.add(f"g{n:02}", line="@g")
    await aging.add("c00")
    got: list[str] = []
    for n in range(1, 40):
        # More urgent with each one, so that it comes before all that were seen.
        await aging.add(f"c{n:02}", -n)
        await aging.add(f"d{n:02}", -n)
        got += await aging.order(most=2)
    assert 36 <= len([job for job in got if job[0] == "g"]) <= 42


@pytest.mark.parametrize("want", [1, 3])
async def test_a_job_of_waiting_is_counted_once(aging: Aging, want: int):
    """Calls that claim nothing must not let the jobs without a group pay again."""
    await aging.set()
    for n in range(20):
        await aging.add(f"g{n:02}", line="@g")
        await aging.add(f"c{n:02}", n % 3)
    await aging.order(most=2)
    store = aging.bench.store
    for _ in range(30):
        await store.do(store.admit(want, 250, 0))
    before = await aging.bench.dump()
    await store.do(store.admit(want, 250, 0))
    assert await aging.bench.dump() == before
    got = await aging.order(most=20)
    assert 9 <= len([job for job in got if job[0] == "c"]) <= 11


async def test_jobs_of_a_group_that_go_before_the_same_job_keep_their_order(aging: Aging):
    """They had equal places, so their ids decided."""
    store = aging.bench.store
    await aging.set(1)
    await aging.bench.admin.command(b"HSET", aging.bench.admin.keys["meta"], b"charge", b"actual")
    for n in range(3):
        await aging.add(f"u{n}")
    await aging.add("z", line="@g")
    claimed = await aging.claim()
    assert claimed.ids == [b"u0"]
    aging.bench.now += 5000
    await store.do(store.complete(["u0", claimed.token, b"r", ""], []))
    await aging.add("a", 5, line="@g")
    await aging.add("c", line="@g")
    await aging.add("b", line="@g")
    await store.do(store.admit(9, 250, 1))
    waiting = (await aging.bench.dump())["waiting"]
    assert sorted(waiting, key=lambda job: (waiting[job], job)) == ["z", "c", "b", "a", "u1", "u2"]


@pytest.mark.parametrize("seed", range(12))
async def test_jobs_without_a_group_get_half_the_turns_however_often_workers_look(aging: Aging, seed: int):
    """Jobs of waiting are counted again by none of the calls, also if more urgent ones come before those that were."""
    draw, store = random.Random(seed), aging.bench.store
    await aging.set(draw.choice([1, 1000, STEP]))
    for n in range(60):
        await aging.add(f"g{n:02}", line="@g")
        await aging.add(f"c{n:02}", draw.choice([0, 0, -1, 1, -n, n]))
        aging.bench.now += draw.choice([0, 0, 1, 1000])
    got: list[str] = []
    for n in range(60, 100):
        for _ in range(draw.choice([0, 1, 3])):
            await store.do(store.admit(draw.choice([1, 2, 10]), 250, draw.choice([0, 1, 2])))
        if draw.random() < 0.4:
            await aging.add(f"c{n}", draw.choice([0, -1, -n, -500]))
        if draw.random() < 0.2:
            await aging.add(f"g{n}", draw.choice([0, -1, -n, -500]), line="@g")
        got += await aging.order(most=draw.choice([1, 2]))
    assert abs(2 * sum(job[0] == "c" for job in got) - len(got)) <= 6


async def test_released_and_rate_limited_jobs_go_first_and_retried_ones_wait_since_they_were_due(aging: Aging):
    await aging.set()
    store = aging.bench.store
    await aging.add("first", 3)
    claimed = await aging.claim()
    await aging.add("second", -3)
    assert await aging.bench.do(store.release([b"first", claimed.token])) == []
    assert await aging.order(most=1) == ["first"]
    claimed = await aging.claim()
    # Due in a minute. A job that comes half a minute later waits longer, although nobody looks before both can run.
    await aging.bench.do(store.reschedule(["second", claimed.token, 1, 90_000, "e"]))
    aging.bench.now += 89_000
    await aging.add("earlier", -3)
    aging.bench.now += 2_000
    await aging.add("later", -3)
    aging.bench.now += 60_000
    assert await aging.order() == ["earlier", "second", "later"]


async def test_another_priority_keeps_the_time_of_waiting(aging: Aging):
    await aging.set()
    store = aging.bench.store
    await aging.add("a", 5)
    await aging.add("h", 5, line="free:1")
    aging.bench.now += 1_000
    await aging.add("b", 0)
    assert await aging.bench.do(store.reprioritise(["a", "h"], 0)) == ["waiting", "held"]
    assert await aging.order() == ["a", "h", "b"]


async def test_lifo_is_refused_and_nothing_is_written(aging: Aging):
    await aging.set()
    before = await aging.bench.dump()
    assert await aging.add("a", lifo=1) == [1, "", "lifo"]
    after = await aging.bench.dump()
    assert {**after, "meta": 0} == {**before, "meta": 0}
    unique = ["a", b"{}", "0 1 0", "unfinished 0 return -1 -1 2 k"]
    assert await aging.bench.do(aging.bench.store.enqueue_unique(unique)) == [1, "", "lifo", "", "lifo"]
    after = await aging.bench.dump()
    assert {**after, "meta": 0} == {**before, "meta": 0}


@pytest.mark.parametrize("how", ["due", "promoted", "retried"])
async def test_a_lifo_job_that_is_older_than_aging_waits_like_the_others(aging: Aging, how: str):
    store = aging.bench.store
    await aging.add("lifo", lifo=1, delay=100)
    if how == "retried":
        await store.do(store.kill(["lifo"], b"{}"))
    await aging.set()
    await aging.add("first")
    aging.bench.now += 100
    if how == "promoted":
        await store.do(store.promote(["lifo"]))
    elif how == "retried":
        assert await store.do(store.retry(["lifo"])) == ["failed"]
    aging.bench.now += 100
    await store.do(store.forward(10))
    aging.bench.now += 100
    await aging.add("last")
    assert await aging.order() == ["first", "lifo", "last"]


async def test_a_clock_that_was_set_back_keeps_the_order_and_a_wrong_one_is_forgotten(aging: Aging):
    await aging.set()
    await aging.add("a")
    aging.bench.now -= 30_000
    await aging.add("b")
    state = await aging.bench.dump()
    assert state["waiting"]["a"] < state["waiting"]["b"] < state["waiting"]["a"] + 10
    aging.bench.now -= 600_000
    await aging.add("c")
    state = await aging.bench.dump()
    assert 0 < state["waiting"]["c"] - aged(aging.bench.now * 1000) < 10


# -- the setting -------------------------------------------------------------------------------------------------------


@table(
    [
        Case(
            "nothing waits",
            {},
            lambda s: s.aging(STEP),
            {"meta": {"aging": "60000", "aged": str(2**42 + 1_000_000), "fifo": str(2**42), "changes": "1"}},
            [60_000, 0],
        ),
        Case("it was set to this", {"meta": {"aging": "60000"}}, lambda s: s.aging(60_000), {}, [60_000, 0]),
        Case(
            "code declares another one",
            {"meta": {"aging": "60000"}},
            lambda s: s.aging(1, declared=True),
            {},
            [60_000, 0],
        ),
        Case(
            "an operator switched it off, and code declares it",
            {"meta": {"aging": "0"}},
            lambda s: s.aging(1, declared=True),
            {},
            [0, 0],
        ),
        Case(
            "off is stored, so that code which declares it is refused",
            {},
            lambda s: s.aging(0),
            {"meta": {"aging": "0", "changes": "1"}},
            [0, 0],
        ),
        Case(
            "jobs keep their order, and count as enqueued now",
            {
                "waiting": {"a": place(9), "b": place(7, 1), "front": place(-2, 1)},
                "priorities": {"b": "1", "front": "1"},
                "meta": {"fifo": "9", "planned": "5"},
            },
            lambda s: s.aging(STEP),
            {
                "waiting": {
                    "a": aged(1_000_000 - 1),
                    "b": aged(1_000_000 - 2, 1),
                    "front": aged(-2, 1) - 2**42,
                },
                "meta": {
                    "aging": "60000",
                    "fifo": str(2**42 + 9),
                    "aged": str(2**42 + 1_000_000),
                    "changes": "1",
                },
                "wake": {"t": 0},
            },
            [60_000, 0],
        ),
        Case(
            "another worth of a priority",
            {"waiting": {"a": aged(5), "b": aged(4, 2)}, "priorities": {"b": "2"}, "meta": {"aging": "60000"}},
            lambda s: s.aging(10),
            {
                "waiting": {"a": aged(5), "b": aged(4, 2, 10)},
                "meta": {"aging": "10", "fifo": "0", "changes": "1"},
                "wake": {"t": 0},
            },
            [10, 0],
        ),
        Case(
            "absolute priorities again",
            {
                "waiting": {"a": aged(50), "b": aged(40, 2)},
                "priorities": {"b": "2"},
                "meta": {"aging": "60000", "fifo": str(2**42 + 50), "aged": "7"},
            },
            lambda s: s.aging(0),
            {
                "waiting": {"a": place(2), "b": place(1, 2)},
                "meta": {"aging": "0", "fifo": "2", "changes": "1"},
                "wake": {"t": 0},
            },
            [0, 0],
        ),
    ]
)
async def test_setting(case: Case, bench: Bench):
    await bench.check(case)


async def test_too_many_jobs_wait_for_a_change(bench: Bench):
    before: State = {"waiting": {f"j{n:04}": place(n) for n in range(1, AGING_JOBS_MAX + 2)}, "meta": {"fifo": "1"}}
    await bench.seed(before)
    assert await bench.do(bench.store.aging(STEP)) == [0, AGING_JOBS_MAX + 1]
    assert await bench.dump() == before


@pytest.mark.parametrize("grouped", [False, True])
async def test_held_jobs_keep_their_order_through_every_change(aging: Aging, grouped: bool):
    """Lines, turns and full keys have places too."""
    store = aging.bench.store
    await store.do(store.rule("declared", "one", "1"))
    for n in range(9):
        line = "\n".join([*[f"@{'xy'[n % 2]}"][: int(grouped)], f"one:{n % 3}"])
        await aging.add(f"j{n}", n % 2, line=line)
    running = await aging.claim(3)
    for ms in (STEP, 5, 0, STEP, 0):
        assert await aging.set(ms) == [ms, 0]
        aging.bench.now += 3
        await store.do(store.admit(3, 250, 1))
        await aging.add(f"n{aging.bench.now}", 1, line="one:0")
    for raw in running.ids:
        await aging.bench.do(store.complete([raw, running.token, b"r", ""], []))
    got = await aging.order()
    assert len(got) == 14 - len(running.ids)
    for key in range(3):
        own = [job for job in got if job[0] == "j" and int(job[1]) % 3 == key]
        assert own == sorted(own, key=lambda job: (int(job[1]) % 2, job)), own
    after = await aging.bench.dump()
    assert {"held", "held_by", "open_lines", "full_lines"} & set(after) == set()


async def test_a_damaged_sequence_is_mended_by_the_sweeper(aging: Aging):
    await aging.set()
    await aging.add("a")
    await aging.bench.admin.command(b"HDEL", aging.bench.admin.keys["meta"], b"fifo", b"aged")
    assert await aging.bench.do(aging.bench.store.rebase(100)) == 0
    aging.bench.now += 1
    await aging.add("b")
    assert await aging.order() == ["a", "b"]


# -- slots that are reserved -------------------------------------------------------------------------------------------


async def test_jobs_that_waited_may_take_reserved_slots(aging: Aging):
    await aging.set()
    for name in "ab":
        await aging.add(name)
    await aging.add("urgent", -1)
    reserve = (0, 0, 1)
    claimed = await aging.claim(3, reserve=reserve)
    assert claimed.ids == [b"urgent"]
    assert claimed.urgent == 1
    refused = await aging.claim(2, reserve=reserve)
    assert refused.token == b"slots"
    assert 59_000 < refused.limited_ms <= 60_001, "when the next job becomes urgent"
    aging.bench.now += refused.limited_ms + 1
    claimed = await aging.claim(2, reserve=reserve)
    assert claimed.ids == [b"a", b"b"]
    assert claimed.urgent == 2


async def test_new_jobs_and_arrivals_are_counted_through_every_change(aging: Aging):
    """They are the differences of ``fifo`` to ``moved`` and ``later``."""
    admin, n = aging.bench.admin, 0
    for ms in (0, STEP, 5, 0):
        await aging.set(ms)
        for row in (["", "0 0 0"], ["", ""], ["1 0 0", "0 0 50"]):
            jobs: list[Argument] = []
            for options in row:
                n += 1
                jobs += (f"j{n:03}", b"{}", options)
            await aging.bench.do(aging.bench.store.enqueue(jobs))
        n += 1
        await aging.add(f"j{n:03}")
        await aging.bench.do(aging.bench.store.enqueue([f"j{n:03}", b"{}", ""]))
        aging.bench.now += 100
        await aging.bench.do(aging.bench.store.forward(10))
        facts = await admin.command(b"HMGET", admin.keys["meta"], b"fifo", b"moved", b"later")
        fifo, moved, later = (int(fact or 0) for fact in facts)
        assert (fifo - moved, fifo - later) == (n, n)
