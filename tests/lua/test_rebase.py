"""rebase: the positions in waiting are made small again before a sequence reaches the next priority."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from columns import State, also
from table import Bench, Case, jobs, place, table

from jobq.engine.store.store import SEQUENCE_BOUND

if TYPE_CHECKING:
    from jobq.engine.store import Store

HIGH = SEQUENCE_BOUND + 7


def rebase(page: int = 100, bound: int = SEQUENCE_BOUND) -> Any:
    return lambda store: store.rebase(page, bound)


def counters(fifo: int, lifo: int = 0, **others: str) -> State:
    return {"meta": {"fifo": str(fifo), "lifo": str(lifo)} | others}


@table(
    [
        Case("an empty queue", {}, rebase(), {}, 0),
        Case(
            "far from the bound nothing is touched",
            {"waiting": {"a": place(HIGH - 9)}} | counters(SEQUENCE_BOUND, SEQUENCE_BOUND),
            rebase(),
            {},
            0,
        ),
        Case("nothing waits: the counters start anew", counters(HIGH, 5), rebase(), counters(0, 0), 0),
        Case(
            "FIFO: the same order, from 1 on",
            {"waiting": {"a": place(5), "b": place(HIGH - 1), "c": place(HIGH)}} | counters(HIGH, 3),
            rebase(),
            {"waiting": {"a": place(1), "b": place(2), "c": place(3)}} | counters(3, 0),
            0,
        ),
        Case(
            "LIFO: the same order, from -1 on",
            {"waiting": {"a": place(-HIGH), "b": place(-9), "c": place(4)}} | counters(4, HIGH),
            rebase(),
            {"waiting": {"a": place(-2), "b": place(-1), "c": place(1)}} | counters(1, 2),
            0,
        ),
        Case(
            "each priority by itself, from one end of the range to the other",
            {"waiting": {"a": place(HIGH, -1024), "b": place(-HIGH, 1023), "c": place(7), "d": place(HIGH + 1, 1023)}}
            | counters(HIGH + 1, HIGH),
            rebase(),
            {"waiting": {"a": place(1, -1024), "b": place(-1, 1023), "c": place(1), "d": place(1, 1023)}}
            | counters(1, 1),
            0,
        ),
        Case(
            "a page: how far it came is kept, and the counters stay",
            {"waiting": {"a": place(5), "b": place(9), "c": place(HIGH)}} | counters(HIGH),
            rebase(2),
            {"waiting": {"a": place(1), "b": place(2), "c": place(HIGH)}} | counters(HIGH, rebase="0:2:0"),
            1,
        ),
        Case(
            "it goes on where it was, and what has gone meanwhile leaves no hole to fall into",
            {"waiting": {"b": place(2), "c": place(HIGH), "n": place(HIGH + 1)}}
            | counters(HIGH + 1, rebase="0:2:0 7:5:4"),
            rebase(9),
            {"waiting": {"b": place(2), "c": place(3), "n": place(4)}} | counters(5, 4),
            0,
        ),
    ]
)
async def test_rebase(case: Case, bench: Bench):
    await bench.check(case)


async def drained(store: Store) -> list[str]:
    """All waiting jobs in the order of claims."""
    order: list[str] = []
    request = 0
    while True:
        request += 1
        claimed = await store.do(store.claim(50, 30_000, "w", "w:0", request, repeated=False))
        if claimed is None:
            return order
        order += [job_id.decode() for job_id in claimed.ids]


@pytest.mark.parametrize("seed", range(6))
async def test_the_order_is_kept_while_jobs_are_added_and_claimed(bench: Bench, seed: int):
    """Compared with a second queue that is not rebased: the same calls give the same order of claims."""
    draw = random.Random(seed)
    store, admin = bench.store, bench.admin
    await bench.seed(counters(2**41 - 500, 2**41 - 500))
    expected: list[tuple[int, int, str]] = []
    turn = 0

    async def enqueue(count: int) -> None:
        nonlocal turn
        for _ in range(count):
            turn += 1
            priority, lifo = draw.choice([-1024, -1, 0, 0, 1023]), draw.random() < 0.3
            job_id = f"j{turn:03}"
            await store.do(store.enqueue([job_id, "{}", f"{priority} {int(lifo)} 0"]))
            expected.append((priority, -turn if lifo else turn, job_id))

    await enqueue(60)
    calls = 0
    request = 1000
    while await store.do(store.rebase(draw.randint(1, 9))):
        calls += 1
        if calls < 25:
            await enqueue(draw.randint(0, 3))
        if draw.random() < 0.3:
            request += 1
            claimed = await store.do(store.claim(2, 30_000, "v", "v:0", request, repeated=False))
            expected.sort()
            assert claimed is not None
            assert [job_id.decode() for job_id in claimed.ids] == [job_id for _, _, job_id in expected[:2]]
            del expected[:2]
    assert calls > 5
    fifo, lifo, state = await admin.command(b"HMGET", admin.keys["meta"], "fifo", "lifo", "rebase")
    assert int(fifo) < 200
    assert int(lifo) < 200
    assert state is None
    await enqueue(5)
    assert await drained(store) == [job_id for _, _, job_id in sorted(expected)]


async def test_a_sequence_at_its_end_does_not_reach_the_next_priority(bench: Bench):
    """Without rebasing, the next job of priority 0 would get priority 1."""
    await bench.seed(also(jobs("a"), {"waiting": {"a": place(2**41 - 1)}}, counters(2**41 - 1)))
    assert await bench.do(bench.store.rebase(100)) == 0
    await bench.do(bench.store.enqueue(["b", "B", "", "u", "U", "1 0 0"]))
    assert (await bench.dump())["waiting"] == {"a": place(1), "b": place(2), "u": place(3, 1)}
