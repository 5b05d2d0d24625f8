"""open.lua and the store's door: which data and which server it takes."""

from __future__ import annotations

import pytest
from table import Bench, Case, table

from jobq import Queue
from jobq.engine.store import Call
from jobq.errors import StoreFull, StoreRefused


@table(
    [
        Case("the first writes the layout", {}, lambda _: Call("open", [1], int), {"meta": {"layout": "1"}}, 1),
        Case("the others read it", {"meta": {"layout": "1"}}, lambda _: Call("open", [2], int), {}, 1),
        Case("also a newer one", {"meta": {"layout": "7"}}, lambda _: Call("open", [1], int), {}, 7),
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


async def test_queues_are_known_from_their_first_job_on(bench: Bench):
    async with Queue("mistyped", bench.store.connection):
        for name in ("b", "a"):
            async with Queue(name, bench.store.connection) as queue:
                await queue.enqueue("x")
                known = await queue.queues()
    assert known == ["a", "b"]


async def test_a_worker_started_at_maxmemory_can_open_the_queue_it_has_to_drain(bench: Bench):
    async with Queue("test", bench.store.connection):
        pass
    await bench.admin.command(b"CONFIG", b"SET", b"maxmemory", 1)
    try:
        async with Queue("test", bench.store.connection) as queue:
            with pytest.raises(StoreFull, match="Redis is at maxmemory and takes no new jobs"):
                await queue.enqueue("x")
        async with Queue("new", bench.store.connection) as queue:
            with pytest.raises(StoreFull):
                await queue.enqueue("x")
            assert await queue.queues() == []
    finally:
        await bench.admin.command(b"CONFIG", b"SET", b"maxmemory", 0)
