"""forward, promote, reprioritise, pause, resume: moves that need no lease."""

from __future__ import annotations

from typing import Any

import pytest
from columns import also
from table import WAKE, Bench, Case, held, jobs, place, standing, table, waiting


def forward(limit: int):
    return lambda store: store.forward(limit)


DUE = jobs("a", "b", "c") | {"delayed": {"b": 998, "a": 999, "c": 1000}}


@table(
    [
        Case("nothing is delayed", {}, forward(10), {}, [0, -1, 0]),
        Case("nothing is due: ms until the first", standing("delayed", "a", score=1001), forward(10), {}, [0, 1, 0]),
        Case(
            "a due time with a fraction is not called early",
            standing("delayed", "a", score=1001.5),  # type: ignore[arg-type]
            forward(10),
            {},
            [0, 2, 0],
        ),
        Case(
            "in the order of their due times, behind what waits; due means now too",
            also(DUE, waiting("w")) | {"meta": {"fifo": "1"}},
            forward(10),
            {"delayed": {}, "waiting": {"w": place(1), "b": place(2), "a": place(3), "c": place(4)}}
            | {"meta": {"fifo": "4"}}
            | WAKE,
            [3, -1, 0],
        ),
        Case(
            "a page: more is due already",
            DUE,
            forward(2),
            {"delayed": {"c": 1000}, "waiting": {"b": place(1), "a": place(2)}, "meta": {"fifo": "2"}} | WAKE,
            [2, 0, 0],
        ),
        Case(
            "and the next one is due later",
            also(DUE, {"delayed": {"c": 1700}}),
            forward(10),
            {"delayed": {"c": 1700}, "waiting": {"b": place(1), "a": place(2)}, "meta": {"fifo": "2"}} | WAKE,
            [2, 700, 0],
        ),
        Case(
            "each to its priority, LIFO to the front",
            DUE | {"priorities": {"a": "-7", "c": "3L", "z": "9"}},
            forward(10),
            {"delayed": {}, "waiting": {"a": place(2, -7), "b": place(1), "c": place(-1, 3)}}
            | {"meta": {"fifo": "3", "lifo": "1"}}
            | WAKE,
            [3, -1, 0],
        ),
        Case(
            "paused or not: forwarding is not claiming",
            also(standing("delayed", "a"), {"meta": {"paused": "900"}}),
            forward(10),
            {"delayed": {}, "waiting": {"a": place(1)}, "meta": {"fifo": "1", "paused": "900"}} | WAKE,
            [1, -1, 0],
        ),
    ]
)
async def test_forward(case: Case, bench: Bench):
    await bench.check(case)


@table(
    [
        Case(
            "to waiting before its time",
            also(standing("delayed", "a", "b", "c", score=9000), waiting("w")),
            lambda store: store.promote(["a", "w", "nobody", "a", "b"]),
            {"delayed": {"c": 9000}, "waiting": {"a": place(1), "b": place(2), "w": place(1)}, "meta": {"fifo": "2"}}
            | {"attempts": {"a": "0 1000", "b": "0 1000"}}
            | WAKE,
            ["delayed", "", "", "", "delayed"],
        ),
        Case(
            "each to its priority, LIFO to the front",
            standing("delayed", "a", "b", score=9000) | {"priorities": {"a": "-1024L", "b": "1023"}},
            lambda store: store.promote(["a", "b"]),
            {"delayed": {}, "waiting": {"a": place(-1, -1024), "b": place(1, 1023)}, "meta": {"fifo": "1", "lifo": "1"}}
            | {"attempts": {"a": "0 1000", "b": "0 1000"}}
            | WAKE,
            ["delayed", "delayed"],
        ),
        Case(
            "the runs that were charged stay so, and a damaged row of priorities stops nobody",
            standing("delayed", "a", score=9000) | {"priorities": {"a": "oops"}, "attempts": {"a": "2 9000 3"}},
            lambda store: store.promote(["a"]),
            {"delayed": {}, "waiting": {"a": place(1)}, "meta": {"fifo": "1"}, "attempts": {"a": "2 1000 3"}} | WAKE,
            ["delayed"],
        ),
        Case("nothing to move wakes nobody", waiting("a"), lambda store: store.promote(["a"]), {}, [""]),
    ]
)
async def test_promote(case: Case, bench: Bench):
    await bench.check(case)


def reprioritise(priority: int, *ids: str):
    return lambda store: store.reprioritise(list(ids), priority)


@table(
    [
        Case(
            "it keeps its place in time",
            waiting("a", "b", "c"),
            reprioritise(-3, "c", "b"),
            {"waiting": {"b": place(2, -3), "c": place(3, -3), "a": place(1)}, "priorities": {"b": "-3", "c": "-3"}},
            ["waiting", "waiting"],
        ),
        Case(
            "from one end of the range to the other, in front of the middle of its sequence",
            {"waiting": {"a": place(-5, 1023)}, "priorities": {"a": "1023L"}},
            reprioritise(-1024, "a"),
            {"waiting": {"a": place(-5, -1024)}, "priorities": {"a": "-1024L"}},
            ["waiting"],
        ),
        Case(
            "back to 0",
            {"waiting": {"a": place(4, -1024)}, "priorities": {"a": "-1024"}},
            reprioritise(0, "a"),
            {"waiting": {"a": place(4)}, "priorities": {"a": "0"}},
            ["waiting"],
        ),
        Case(
            "delayed and blocked jobs take it with them",
            also(standing("delayed", "a"), standing("blocked", "b"), {"priorities": {"a": "4L"}}),
            reprioritise(2, "a", "b"),
            {"priorities": {"a": "2L", "b": "2"}},
            ["delayed", "blocked"],
        ),
        Case(
            "what runs, is finished or gone is left alone",
            also(held("a"), standing("completed", "b"), standing("failed", "c")),
            reprioritise(2, "a", "b", "c", "d"),
            {},
            ["", "", "", ""],
        ),
    ]
)
async def test_reprioritise(case: Case, bench: Bench):
    await bench.check(case)


@table(
    [
        Case(
            "pause is a flag",
            waiting("a"),
            lambda store: store.pause(),
            {"meta": {"paused": "1000", "changes": "1"}},
            ["running"],
        ),
        Case("paused already", {"meta": {"paused": "7"}}, lambda store: store.pause(), {}, [""]),
        Case(
            "sixteen digits stay",
            {},
            lambda store: store.pause(),
            {"meta": {"paused": "1722470400123456", "changes": "1"}},
            ["running"],
            now=1722470400123456,
        ),
        Case(
            "resume takes it away, and one worker is told",
            waiting("a") | {"meta": {"paused": "7", "fifo": "1"}},
            lambda store: store.resume(),
            {"meta": {"fifo": "1", "changes": "1"}} | WAKE,
            ["paused"],
        ),
        Case("running already", waiting("a"), lambda store: store.resume(), WAKE, [""]),
    ]
)
async def test_pause(case: Case, bench: Bench):
    await bench.check(case)


@pytest.mark.parametrize("verb", ["enqueue", "forward", "promote", "release", "retry"])
async def test_a_paused_queue_accepts_jobs_and_gives_out_none(verb: str, bench: Bench):
    """Every way into waiting, followed by a claim."""
    do, store = bench.do, bench.store
    calls: dict[str, Any] = {
        "enqueue": (waiting("w"), lambda: store.enqueue(["a", "A", ""])),
        "forward": (standing("delayed", "a"), lambda: store.forward(9)),
        "promote": (standing("delayed", "a"), lambda: store.promote(["a"])),
        "release": (held("a"), lambda: store.release(["a", "5 w"])),
        "retry": (standing("failed", "a"), lambda: store.retry(["a"])),
    }
    before, call = calls[verb]
    await bench.seed(before)
    await do(store.pause())
    await do(call())
    full = await bench.dump()
    assert "a" in full["waiting"]
    assert (await do(store.claim(9, 30_000, "w", "w:0", 1, repeated=False)))[:3] == ["paused", 1000, []]
    assert await bench.dump() == full
    await do(store.resume())
    assert "a" in (await do(store.claim(9, 30_000, "w", "w:0", 2, repeated=False)))[2]


async def test_forwarding_again_moves_nothing_twice(bench: Bench):
    await bench.seed(DUE)
    await bench.do(bench.store.forward(10))
    after = await bench.dump()
    assert await bench.do(bench.store.forward(10)) == [0, -1, 0]
    assert await bench.dump() == after
