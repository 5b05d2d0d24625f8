"""fold, numbers and sample: what is counted of types, in bounded space, and the number of jobs that were enqueued."""

from __future__ import annotations

import random

import pytest
from columns import State, also
from table import NOW, TOKEN, Bench, Case, held, jobs, table

from jobq.engine.model.history import ALL, OTHER, WINDOWS, Counts, read_arrivals, read_counts

FIVE = 300_000
HOUR = 3_600_000


def fold(page: int = 10):
    return lambda store: store.fold(page)


@table(
    [
        Case("nothing", {}, fold(), {}, 0),
        Case("five minutes that are not over stay", {"metrics": {"s:0:run3:t": "1"}}, fold(), {}, 0),
        Case(
            "five minutes that are over",
            {"metrics": {"s:0:run3:t": "1", "s:0:wait_us:t": "7", "s:1:run3:t": "1", "completed": "5", "m:0:x": "1"}},
            fold(),
            {
                "metrics": {"s:1:run3:t": "1", "completed": "5", "m:0:x": "1"},
                "history": dict.fromkeys(
                    ("", "t"),
                    "f 0 run3=1 wait_us=7\nh 0 run3=1 wait_us=7\nq 0 run3=1 wait_us=7\nt 0 run3=1 wait_us=7",
                ),
            },
            1,
            now=FIVE,
        ),
        Case(
            "added to what was there, and what is too old goes",
            {
                "metrics": {"s:100:failed:a:b": "2"},
                "history": {"a:b": "f 88 failed=1\nf 89 failed=4\nh 7 failed=5\ndamaged\nq 1 failed=5\nt 0 failed=9 x"},
            },
            fold(),
            {
                "metrics": {},
                "history": {
                    "a:b": "f 100 failed=2\nf 89 failed=4\nh 7 failed=5\nh 8 failed=2\nq 1 failed=7\nt 0 failed=11",
                    "": "f 100 failed=2\nh 8 failed=2\nq 1 failed=2\nt 0 failed=2",
                },
            },
            1,
            now=101 * FIVE,
        ),
        Case(
            "five minutes of a clock that was set back",
            {"metrics": {"s:9:lost:t": "2"}},
            fold(),
            {"metrics": {}, "history": dict.fromkeys(("", "t"), "f 9 lost=2\nh 0 lost=2\nq 0 lost=2\nt 0 lost=2")},
            1,
            now=FIVE,
        ),
    ]
)
async def test_fold(case: Case, bench: Bench):
    await bench.check(case)


async def test_a_page_of_types(bench: Bench):
    await bench.seed({"metrics": {f"s:0:run3:t{n}": "1" for n in range(25)}})
    bench.now = FIVE
    assert [await bench.do(bench.store.fold(10)) for _ in range(4)] == [10, 10, 5, 0]
    found = await bench.dump()
    assert "metrics" not in found
    assert len(found["history"]) == 26
    assert found["history"][""].endswith("t 0 run3=25")


async def test_types_beyond_the_bound_are_counted_together(bench: Bench):
    await bench.seed({"metrics": {f"s:0:run3:t{n}": "1" for n in range(300)}})
    bench.now = FIVE
    while await bench.do(bench.store.fold()):
        pass
    history = (await bench.dump())["history"]
    assert len(history) == 258
    assert history[OTHER].endswith("t 0 run3=44")
    assert history[ALL].endswith("t 0 run3=300")


async def test_types_that_have_not_run_for_a_week_leave_room_for_new_ones(bench: Bench):
    week = 7 * 24 * HOUR
    await bench.seed({"metrics": {f"s:0:run3:t{n:03}": "2" for n in range(300)}})
    bench.now = FIVE
    while await bench.do(bench.store.fold()):
        pass
    kept = f"s:{week // FIVE}:run3:t000"
    bench.now = week + 5 * HOUR
    await bench.admin.command(b"HSET", bench.store.keys["metrics"], kept, 1, kept.replace("t000", "new"), 1)
    assert await bench.do(bench.store.fold()) == 2
    history = (await bench.dump())["history"]
    assert "new" not in history, "the week and the slot that it began in are not over"
    assert history[OTHER].endswith("t 0 run3=89")
    bench.now += 6 * HOUR
    at = bench.now // FIVE - 1
    fields = [word for n in range(5) for word in (f"s:{at}:run3:new{n}", "1")]
    await bench.admin.command(b"HSET", bench.store.keys["metrics"], *fields, f"s:{at}:run3:t001", "1")
    assert await bench.do(bench.store.fold()) == 6
    history = (await bench.dump())["history"]
    assert {f"new{n}" for n in range(5)} <= set(history)
    assert {"t000", "t001"} <= set(history), "they have run"
    assert len(history) == 258
    assert history[OTHER].endswith("t 0 run3=99"), "the earlier runs of five types are among the other ones"
    assert history[ALL].endswith("t 0 run3=608")


async def test_a_type_that_runs_again_after_a_week_keeps_its_row(bench: Bench):
    bench.now = 8 * 24 * HOUR
    at, now = bench.now // FIVE - 1, bench.now // (6 * HOUR)
    recent = {f"t{n}": f"q {now} run3=1\nt 0 run3=1" for n in range(255)}
    await bench.seed(
        {
            "history": recent | {ALL: "t 0 run3=260", "old": "q 0 run3=5\nt 0 run3=5"},
            "metrics": {f"s:{at}:run3:new": "1", f"s:{at}:run3:old": "1"},
        }
    )
    assert await bench.do(bench.store.fold()) == 2
    history = (await bench.dump())["history"]
    assert history["old"].endswith("t 0 run3=6")
    assert history[OTHER].endswith("t 0 run3=1")


async def numbers(bench: Bench, *types: str) -> dict[str, Counts]:
    *_, flat = await bench.store.do(bench.store.numbers(types))
    return {name: read_counts(row, live) for name, row, live in zip(types, flat[::2], flat[1::2], strict=True)}


@pytest.mark.parametrize("seed", range(8))
async def test_windows_forget_what_is_older_and_nothing_else(bench: Bench, seed: int):
    """Each window counts all of its own time, at most one slot more, and each run once: folded or not."""
    draw = random.Random(seed)
    longest = (FIVE, HOUR, 8 * HOUR, 60 * HOUR)[seed % 4]
    steps = [(draw.choice("tu"), draw.randrange(longest)) for _ in range(40)]
    bench.now = 1_700_000_000_000
    ended: list[tuple[str, int]] = []
    for kind, pause in steps:
        bench.now += pause
        field = f"s:{bench.now // FIVE}:run3:{kind}"
        await bench.admin.command(b"HINCRBY", bench.store.keys["metrics"], field, 1)
        ended.append((kind, bench.now))
        if pause % 2:
            await bench.do(bench.store.fold())
        found = await numbers(bench, ALL, "t", "u")
        for name, length in (("1h", HOUR), ("24h", 24 * HOUR), ("7d", 168 * HOUR)):
            window = WINDOWS[name]
            for asked in (ALL, "t", "u"):
                own = [at for one, at in ended if asked in (ALL, one)]
                count = found[asked].of(window, bench.now).get("run3", 0)
                assert sum(at > bench.now - length for at in own) <= count
                assert count <= sum(at > bench.now - length - window.interval_ms for at in own)
                assert count == sum(at >= window.since(bench.now) for at in own)
                assert found[asked].of(None, bench.now).get("run3", 0) == len(own)
    size = await bench.admin.command(b"HSTRLEN", bench.store.keys["history"], ALL)
    assert size <= 66 * 40


async def test_the_types_that_were_counted(bench: Bench):
    await bench.seed(
        {"metrics": {"s:9:run3:t": "1", "s:9:run3:a:b": "2", "completed": "9"}, "history": {"": "", "u": ""}}
    )
    now, *_, types = await bench.do(bench.store.numbers(()))
    assert (now, sorted(types)) == (NOW, ["a:b", "t", "u"])
    found = await numbers(bench, ALL, "t", "a:b", "none")
    assert found[ALL].live == {"s:9:run3": 3}
    assert (found["t"].live, found["a:b"].live, found["none"].live) == ({"s:9:run3": 1}, {"s:9:run3": 2}, {})


async def test_counts_come_with_their_outcome_once(bench: Bench):
    """A repeated call settles no job, so it counts none."""
    await bench.seed(held("a", "b", "c"))
    for _ in range(2):
        await bench.do(bench.store.complete(["a", TOKEN, "r", ""], ["run3:t", 1, "run_us:t", 5]))
        await bench.do(bench.store.fail(["b", TOKEN, 1, "e", ""], ["failed:t", 1, "bad_us:t", 7]))
        await bench.do(bench.store.reschedule(["c", TOKEN, 1, 5, "e"], ["retried:t", 1, "lost:t", 1]))
    counts = (await numbers(bench, "t"))["t"].of(WINDOWS["1h"], NOW)
    assert counts == {"run3": 1, "run_us": 5, "failed": 1, "bad_us": 7, "retried": 1, "lost": 1}


# -- enqueued and arrived ----------------------------------------------------------------------------------------------


async def totals(bench: Bench) -> tuple[int, int]:
    _, new, arrived, _, _ = await bench.do(bench.store.numbers([ALL]))
    return int(new), int(arrived)


async def test_each_job_is_counted_once_when_it_is_enqueued_and_when_it_can_run(bench: Bench):
    do, store = bench.do, bench.store
    await do(store.enqueue(["a", "A", ""]))
    assert await totals(bench) == (1, 1), "one plain job"
    await do(store.enqueue(["b", "B", "", "c", "C", ""]))
    assert await totals(bench) == (3, 3), "several"
    await do(store.enqueue(["b", "B", "", "d", "D", "1 1 0"]))
    assert await totals(bench) == (4, 4), "one of them was known, and the other one is LIFO"
    await do(store.enqueue(["e", "E", "0 0 500", "f", "F", "0 0 0"]))
    assert await totals(bench) == (6, 5), "one is delayed"
    bench.now += 500
    await do(store.forward(10))
    assert await totals(bench) == (6, 6), "it is due"
    own = "queued 0 return -1 -1 1 k"
    await do(store.enqueue_unique(["g", "G", "", own, "h", "H", "", own, "i", "I", "0 0 900", ""]))
    assert await totals(bench) == (8, 7), "one has the key of another one, and one is delayed"
    await do(store.promote(["i"]))
    assert await totals(bench) == (8, 8)
    claim = await do(store.claim(1, 30_000, "w", "w:0", 1, repeated=False))
    await do(store.reschedule([claim[2][0], claim[0], 1, 100, "e"]))
    bench.now += 100
    await do(store.forward(10))
    assert await totals(bench) == (8, 9), "a retry arrives again, and is not enqueued again"
    before = await totals(bench)
    while await do(store.rebase(100, -1)):
        pass
    assert await totals(bench) == before, "the places of waiting jobs have changed"


async def test_jobs_of_schedules_are_enqueued_and_arrive(bench: Bench):
    await bench.seed({"schedules": {"every": 900}, "schedule_rows": {"every": "1 5\n{}\n\n{}"}})
    fire = ["every", "1 5", b"1 6\n{}", 6000, b"1 6\n{}", 6000, "allow", 0, 1, "every~x", "E", "", ""]
    assert await bench.do(bench.store.schedule_fire(fire)) == ["fired"]
    assert await totals(bench) == (1, 0)
    await bench.do(bench.store.forward(10))
    assert await totals(bench) == (1, 1)


async def test_arrivals_are_noted_from_time_to_time(bench: Bench):
    bench.now = 1_700_000_000_000
    await bench.do(bench.store.fold())
    assert "meta" not in await bench.dump(), "nothing to note"
    for second in range(1200):
        bench.now += 1000
        await bench.do(bench.store.enqueue([f"j{second}", "J", ""]))
        if second % 15 == 0:
            await bench.do(bench.store.fold())
    now, _, arrived, notes, _ = await bench.store.do(bench.store.numbers([ALL]))
    found = read_arrivals(now, arrived, notes)
    assert found.per_second() == pytest.approx(1, rel=0.01)
    assert 10 <= len(found.notes) <= 17
    bench.now += 600_000
    now, _, arrived, notes, _ = await bench.store.do(bench.store.numbers([ALL]))
    assert read_arrivals(now, arrived, notes).per_second() == 0, "the notes are too old to tell"


# -- sample ------------------------------------------------------------------------------------------------------------


def typed(*types: str) -> State:
    names = [f"j{n}" for n in range(len(types))]
    return {
        "waiting": {name: n for n, name in enumerate(names)},
        "jobs": {name: f'{{"type":"{kind}","at":1}}' for name, kind in zip(names, types, strict=True)},
    }


async def sample(bench: Bench, **bounds: int) -> tuple[int, dict[str, int]]:
    size, *flat = await bench.do(bench.store.sample("waiting", **bounds))
    return size, dict(zip(flat[::2], flat[1::2], strict=True))


async def test_sample(bench: Bench):
    assert await sample(bench) == (0, {})
    await bench.seed(typed("t", "t", "u"))
    assert await sample(bench) == (3, {"t": 2, "u": 1})
    size, some = await sample(bench, jobs=2)
    assert (size, sum(some.values())) == (3, 2)
    await bench.seed(also({"waiting": {"gone": 5}}, jobs("x")))
    assert (await sample(bench))[1] == {"t": 2, "u": 1, "": 1}


async def test_large_specs_are_not_read(bench: Bench):
    await bench.seed(typed("t") | {"jobs": {"j0": '{"type":"t","payload":"' + "x" * 5000 + '"}'}})
    assert await sample(bench, size=5000) == (1, {"": 1})
    assert await sample(bench, size=6000) == (1, {"t": 1})
