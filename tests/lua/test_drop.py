"""drop.lua and ``Queue.drop``: an unused queue is removed completely, a used one only with ``force``."""

from __future__ import annotations

import pytest
from columns import also
from table import NOW, Bench, Case, held, standing, table, waiting

from jobq import Queue
from jobq.engine.store import Store
from jobq.errors import QueueInUse

USED = also(waiting("a"), standing("delayed", "d"), held("h"), standing("completed", "c"), {"meta": {"layout": "1"}})


@table(
    [
        Case("an empty queue", {"meta": {"layout": "1"}}, lambda s: s.drop(force=False), {"meta": {}}, [0, 0, 0, 1]),
        Case("nothing at all, as when it is repeated", {}, lambda s: s.drop(force=False), {}, [0, 0, 0, 1]),
        Case("one with jobs is refused", USED, lambda s: s.drop(force=False), {}, [4, 0, 0, 0]),
        Case(
            "one with jobs, forced", USED, lambda s: s.drop(force=True), {column: {} for column in USED}, [4, 0, 0, 1]
        ),
        Case(
            "one with a living worker is refused",
            {"workers": {"w": NOW}},
            lambda s: s.drop(force=False),
            {},
            [0, 1, 0, 0],
        ),
        Case(
            "one with schedules only is refused",
            {"schedule_rows": {"s": "1 5"}, "schedules": {"s": 5}},
            lambda s: s.drop(force=False),
            {},
            [0, 0, 1, 0],
        ),
        Case(
            "one with schedules, forced",
            {"schedule_rows": {"s": "1 5"}, "schedules": {"s": 5}},
            lambda s: s.drop(force=True),
            {"schedule_rows": {}, "schedules": {}},
            [0, 0, 1, 1],
        ),
        Case(
            "a dead worker does not count",
            {"workers": {"w": NOW}},
            lambda s: s.drop(force=False),
            {"workers": {}},
            [0, 0, 0, 1],
            now=NOW + 60_000,
        ),
    ]
)
async def test_drop(case: Case, bench: Bench):
    await bench.check(case)


async def test_no_key_is_left_and_the_name_is_forgotten(bench: Bench):
    async with Queue("test", bench.store.connection) as queue, Queue("other", bench.store.connection) as other:
        await queue.enqueue_many([queue.new("x", key=f"k{n}") for n in range(5)])
        await other.enqueue("x")
        with pytest.raises(QueueInUse, match=r"queue 'test' has 5 jobs; force removes it anyway"):
            await queue.drop()
        await queue.drop(force=True)
        assert await queue.queues() == ["other"]
        keys = [key for column, key in bench.store.keys.items() if column not in ("requests", "answers")]
        assert await bench.admin.command(b"EXISTS", *keys) == 0
        await queue.drop()


async def test_the_recorded_answers_of_a_dropped_queue_go_after_two_minutes(bench: Bench):
    """Redis removes them: there may be no worker that does. Those of a new queue of the name stay."""

    async def times_to_live() -> list[int]:
        return [await bench.admin.command(b"PTTL", bench.store.keys[column]) for column in ("requests", "answers")]

    await bench.do(bench.store.drop(force=False))
    assert all(110_000 < ms <= 120_000 for ms in await times_to_live())
    await bench.do(bench.store.pause())
    assert await times_to_live() == [-1, -1]
    await bench.do(bench.store.drop(force=True))
    assert (await bench.dump())["answers"] == {"r1": "0\n0\n0\n1\n", "r2": "running\n", "r3": "0\n0\n0\n1\n"}


async def test_a_refused_drop_leaves_the_answers_of_a_queue_in_use(bench: Bench):
    await bench.seed(waiting("a"))
    await bench.do(bench.store.drop(force=False))
    assert await bench.admin.command(b"PTTL", bench.store.keys["answers"]) == -1


async def test_a_queue_that_is_used_again_during_its_drop_stays_listed(bench: Bench):
    async with Queue("test", bench.store.connection) as queue:
        await queue.enqueue("x")
        await Store(bench.store.connection, "test").unregister()
        assert await queue.queues() == ["test"]


async def test_a_large_queue_is_dropped_without_holding_redis(bench: Bench):
    """The keys are unlinked and not deleted, so the call does not hold the server."""
    async with Queue("test", bench.store.connection) as queue:
        await queue.enqueue_many([queue.new("x") for _ in range(20_000)])
        await bench.admin.command(b"CONFIG", b"RESETSTAT")
        await queue.drop(force=True)
        stats = (await bench.admin.command(b"INFO", b"commandstats")).decode()
    assert "cmdstat_unlink:calls=1," in stats
    assert "cmdstat_del:" not in stats
