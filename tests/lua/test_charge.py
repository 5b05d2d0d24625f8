"""charge="actual": groups pay for run time. A simulation with slots, unequal run times and a clock that is set."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from table import Bench

    from jobq.engine.store.calls import Argument


class World:
    """Slots that run jobs of groups, each for the time of its group."""

    def __init__(self, bench: Bench, slots: int, times: dict[str, int]) -> None:
        self.bench, self.slots, self.times = bench, slots, times
        bench.store.limited = True
        self.running: list[tuple[int, str, str, bytes]] = []
        self.request = 0
        self.used = dict.fromkeys(times, 0)

    async def fill(self, jobs: int) -> None:
        await self.bench.admin.command(b"HSET", self.bench.admin.keys["meta"], b"charge", b"actual")
        for n in range(jobs):
            rows: list[Argument] = []
            for group in self.times:
                rows += (f"{group}{n:05}", b"{}", f"0 0 0\v@{group}" if group != "-" else "0 0 0")
            await self.bench.do(self.bench.store.enqueue(rows))

    async def run(self, ms: int) -> None:
        store, till = self.bench.store, self.bench.now + ms
        while self.bench.now < till:
            free = self.slots - len(self.running)
            await store.do(store.admit(free, 250, 1))
            self.request += 1
            claimed = await store.do(store.claim(free, 30_000_000, "w", "w:0", self.request, repeated=False))
            for raw in claimed.ids if claimed else []:
                assert claimed
                job_id = raw.decode()
                end = self.bench.now + self.times[job_id[0]]
                heapq.heappush(self.running, (end, job_id, job_id[0], claimed.token))
            at, job_id, group, token = heapq.heappop(self.running)
            self.bench.now = at
            self.used[group] += self.times[group]
            await store.do(store.complete([job_id, token, b"r", ""], []))


@pytest.mark.parametrize("times", [{"a": 10, "b": 1000}, {"a": 20, "b": 300, "c": 3000}, {"-": 10, "b": 200}])
@pytest.mark.parametrize("slots", [1, 8])
async def test_groups_with_unequal_run_times_get_the_same_time(bench: Bench, times: dict[str, int], slots: int):
    world = World(bench, slots, times)
    bench.now = 1_000_000
    await world.fill(4000 if slots == 1 else 9000)
    await world.run(20_000 if slots == 1 else 8_000)
    total = sum(world.used.values())
    for group, used in world.used.items():
        assert abs(used - total / len(times)) <= slots * max(times.values()), (group, world.used)


ENDS = ["complete", "fail", "reschedule", "snooze", "defer", "park", "kill", "lost"]


@pytest.mark.parametrize("how", ENDS)
async def test_a_run_is_paid_however_it_ended(bench: Bench, how: str):
    """Group a ran for 5 s. So the next jobs are those of b, until b has had as much, and nothing stays unpaid."""
    world = World(bench, 1, {"a": 5000, "b": 100})
    bench.now = 1_000_000
    await world.fill(80)
    store = bench.store
    job_id, token = await claim(world)
    assert job_id[0] == "a"
    bench.now += 5000
    await end(world, job_id, token, how)
    for _ in range(45):
        job_id, token = await claim(world)
        assert job_id[0] == "b"
        bench.now += 100
        await store.do(store.complete([job_id, token, b"r", ""], []))
    names = [(await claim(world, complete=True))[0][0] for _ in range(12)]
    assert "a" in names
    await store.do(store.admit(0, 250, 1))
    assert (await bench.dump()).get("billing", {}) == {}


async def claim(world: World, *, complete: bool = False) -> tuple[str, bytes]:
    """Claim one job. ``complete``: it ends after 100 ms."""
    bench, store = world.bench, world.bench.store
    await store.do(store.admit(1, 250, 1))
    world.request += 1
    claimed = await store.do(store.claim(1, 4000, "w", "w:0", world.request, repeated=False))
    assert claimed
    job_id = claimed.ids[0].decode()
    if complete:
        bench.now += 100
        await store.do(store.complete([job_id, claimed.token, b"r", ""], []))
    return job_id, claimed.token


async def end(world: World, job_id: str, token: bytes, how: str) -> None:
    store = world.bench.store
    match how:
        case "complete":
            await store.do(store.complete([job_id, token, b"r", ""], []))
        case "fail":
            await store.do(store.fail([job_id, token, 1, b"{}", ""]))
        case "reschedule":
            await store.do(store.reschedule([job_id, token, 1, 10**6, b"{}"]))
        case "snooze":
            await store.do(store.snooze([job_id, token, 10**6]))
        case "defer":
            await store.do(store.defer([job_id, token, "", 0], 10**6, 10**6, b"[]"))
        case "park":
            await store.do(store.defer([job_id, token, "t", 10**6], 10**6, 10**6, b'["t"]'))
        case "kill":
            await store.do(store.kill([job_id], b"{}"))
        case _:
            lost = await store.do(store.reap(10, 30_000, "sweeper", 10**9, 0))
            assert lost
            assert lost.ids == [job_id.encode()]
            await store.do(store.reschedule([job_id, lost.token, 1, 10**6, b"{}"]))
