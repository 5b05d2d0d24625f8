"""demand: how many jobs could run now if there were workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobq.engine.model.scale import read_demand

if TYPE_CHECKING:
    from table import Bench


async def demand(bench: Bench) -> tuple[int, int]:
    found = read_demand(await bench.store.do(bench.store.demand()), 60.0)
    return found.backlog, found.held


async def enqueue(bench: Bench, *lines: str) -> None:
    rows: list[Any] = []
    for number, line in enumerate(lines):
        rows += (f"{line.strip('@')}{number}", "{}", f"0 0 0\v{line}")
    await bench.do(bench.store.enqueue(rows))


async def test_jobs_of_groups_could_run(bench: Bench):
    await enqueue(bench, "@a", "@a", "@b")
    assert await demand(bench) == (3, 0)
    await bench.do(bench.store.group("a", "1 1 -"))
    assert await demand(bench) == (1, 2), "not those of a paused one"


async def test_a_limit_lets_as_many_start_as_it_has_room_for(bench: Bench):
    await bench.do(bench.store.rule("set", "r", "2"))
    await enqueue(bench, "r", "r", "r", "r", "other")
    assert await demand(bench) == (3, 2), "two under the rule, before any worker has come; and one without a rule"
    await bench.do(bench.store.admit(10, 100, 0))
    assert await demand(bench) == (3, 2), "they are in waiting now"
    await bench.do(bench.store.close("r", 5000))
    assert (await demand(bench))[1] >= 2


async def test_a_closed_key_lets_none_start(bench: Bench):
    await bench.do(bench.store.rule("set", "r", "9"))
    await enqueue(bench, "r", "r")
    await bench.do(bench.store.close("r", 5000))
    assert await demand(bench) == (0, 2)
    bench.now += 5001
    assert await demand(bench) == (2, 0)


async def test_delayed_jobs_count_when_they_are_due(bench: Bench):
    await bench.do(bench.store.enqueue(["a", "A", "0 0 500"]))
    assert await demand(bench) == (0, 0)
    bench.now += 500
    assert await demand(bench) == (1, 0)


async def test_a_paused_or_closed_queue_starts_none(bench: Bench):
    await bench.do(bench.store.enqueue(["a", "A", ""]))
    await bench.do(bench.store.pause())
    assert await demand(bench) == (0, 1)
    await bench.do(bench.store.resume())
    await bench.do(bench.store.close("queue", 5000))
    assert await demand(bench) == (0, 1)
