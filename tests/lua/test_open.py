"""open.lua and opening a store: which data and which servers are accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from table import Bench, Case, table

from jobq import Queue
from jobq.engine.store import Call
from jobq.errors import StoreFull, StoreRefused
from tests.conftest import on_all

if TYPE_CHECKING:
    from jobq.engine.store.sender import Sender


@table(
    [
        Case("a new queue is left without a trace", {}, lambda _: Call("open", [1, ""], int), {}, 1),
        Case("the others read it", {"meta": {"layout": "1"}}, lambda _: Call("open", [2, ""], int), {}, 1),
        Case("also a newer one", {"meta": {"layout": "7"}}, lambda _: Call("open", [1, ""], int), {}, 7),
        Case(
            "who has migrated writes the next one",
            {"meta": {"layout": "1"}},
            lambda _: Call("open", [2, "1"], int),
            {"meta": {"layout": "2"}},
            2,
        ),
        Case("another one was first", {"meta": {"layout": "3"}}, lambda _: Call("open", [2, "1"], int), {}, 3),
    ]
)
async def test_open(case: Case, bench: Bench):
    await bench.check(case)


async def test_a_newer_layout_is_refused_and_nothing_is_touched(bench: Bench):
    await bench.seed({"meta": {"layout": "2"}})
    with pytest.raises(
        StoreRefused, match="queue 'test' has layout 2, this jobq knows 1: update jobq, or use another prefix"
    ):
        await Queue("test", bench.store.connection).open()
    assert await bench.dump() == {"meta": {"layout": "2"}}


class Crash(Exception):
    """Stands for the death of the process that migrates."""


async def test_a_layout_is_migrated_in_pages_and_continues_after_a_crash(bench: Bench):
    """Layouts of these tests: progress moves into the logs, two jobs per page, and then a third layout follows."""
    progress, logs = bench.store.keys["progress"], bench.store.keys["logs"]
    await bench.seed({"meta": {"layout": "1"}, "progress": {f"j{n}": str(n) for n in range(5)}})
    pages: list[int] = []

    async def to_2(store: Sender) -> bool:
        found = await store.command(b"HGETALL", progress)
        rows = list(zip(found[::2], found[1::2], strict=True))[:2]
        for job_id, value in rows:
            await store.command(b"HSET", logs, job_id, value)
            if len(pages) == 1:
                pages.append(0)
                raise Crash
            await store.command(b"HDEL", progress, job_id)
        pages.append(len(rows))
        return len(rows) == 2

    async def to_3(store: Sender) -> bool:
        await store.command(b"HSET", store.keys["unserved"], "seen", 1)
        return False

    with pytest.raises(Crash):
        await bench.store.open(wanted=3, migrations={1: to_2, 2: to_3})
    assert (await bench.dump())["meta"] == {"layout": "1"}, "the old layout stands until all of it is done"
    await bench.store.open(wanted=3, migrations={1: to_2, 2: to_3})
    assert pages == [2, 0, 2, 1]
    assert await bench.dump() == {
        "meta": {"layout": "3"},
        "logs": {f"j{n}": str(n) for n in range(5)},
        "unserved": {"seen": "1"},
    }
    await bench.store.open(wanted=3, migrations={})


async def test_a_layout_that_cannot_be_migrated_is_refused(bench: Bench):
    await bench.seed({"meta": {"layout": "1"}})
    with pytest.raises(StoreRefused, match="has layout 1, and this version of jobq cannot migrate it to layout 2"):
        await bench.store.open(wanted=2)
    assert await bench.dump() == {"meta": {"layout": "1"}}


async def test_reading_an_unused_queue_writes_nothing(bench: Bench):
    async with Queue("test", bench.store.connection) as queue:
        await queue.stats()
        await queue.page()
        await queue.workers()
        assert await queue.retry_all() == 0
        assert await bench.dump() == {}
        await queue.pause()
        assert await queue.queues() == ["test"], "a paused queue must be found by who resumes it"
        state = await bench.dump()
    assert state["meta"]["layout"] == "1"


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("options", [{}, {"priority": 1}])
async def test_a_dropped_queue_is_listed_again_at_the_next_enqueue_of_an_open_producer(
    bench: Bench, count: int, options: Any
):
    async with Queue("test", bench.store.connection) as queue:
        for _ in range(2):
            await queue.enqueue_many([queue.new("x", **options) for _ in range(count)])
            assert await queue.queues() == ["test"]
            assert (await bench.dump())["meta"]["layout"] == "1"
            await queue.drop(force=True)
            assert await queue.queues() == []


async def test_a_queue_is_listed_from_its_first_job_on(bench: Bench):
    async with Queue("mistyped", bench.store.connection):
        for name in ("b", "a"):
            async with Queue(name, bench.store.connection) as queue:
                await queue.enqueue("x")
                known = await queue.queues()
    assert known == ["a", "b"]


async def test_a_worker_started_at_maxmemory_can_open_the_queue_it_has_to_drain(bench: Bench):
    async with Queue("test", bench.store.connection):
        pass
    await on_all(bench.admin.connection, (b"CONFIG", b"SET", b"maxmemory", b"1"))
    try:
        async with Queue("test", bench.store.connection) as queue:
            with pytest.raises(StoreFull, match="Redis is at maxmemory and accepts no new jobs"):
                await queue.enqueue("x")
        async with Queue("new", bench.store.connection) as queue:
            with pytest.raises(StoreFull):
                await queue.enqueue("x")
            assert await queue.queues() == []
    finally:
        await on_all(bench.admin.connection, (b"CONFIG", b"SET", b"maxmemory", b"0"))
