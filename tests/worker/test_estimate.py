"""When a job starts: estimates against what then happens, in a simulation with a clock of its own and on real workers.

The simulation runs the scripts on a real server. Its workers take and end jobs at times that the test chooses. So it
needs no sleeps, and its figures, which docs/why.md states, are the same on every machine.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Breaker, Concurrency, Queue, Rate, Unique
from jobq.engine.store.calls import Claimed
from jobq.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from jobq import Connection
    from jobq.engine.store import Store
    from tests.conftest import Until

NOTHING = Claimed(b"", 0, [], [], [], [])
USUAL = 1000
"""How long a job of the simulation takes, ms."""


class Simulation:
    """A queue whose workers exist only as calls of scripts. ``starts``: when each job started, unix ms."""

    def __init__(self, queue: Queue, clock: ManualClock, seed: int = 0) -> None:
        self.queue = queue
        self.clock = clock
        self.slots = 4
        self.spread = 1.0
        """Durations are spread over this factor."""
        self.starts: dict[str, int] = {}
        self._random = random.Random(seed)
        self._running: list[tuple[int, bytes, bytes, int]] = []
        self._requests = 0
        queue.store.limited = True

    async def beat(self) -> None:
        """The worker's heartbeat."""
        row = b'{"id":"w","host":"h","pid":1,"queues":["test"],"types":["job"],"concurrency":%d,"running":%d,'
        row += b'"started":1,"seen":1}'
        await self.queue.store.do(self.queue.store.heartbeat("w", row % (self.slots, len(self._running))))

    def _duration(self) -> int:
        # As often shorter as longer, by a factor up to the root of the spread. The mean is about USUAL.
        half = self.spread**0.5
        return round(USUAL * self._random.uniform(2 / (1 + half**2), 2 * half**2 / (1 + half**2)))

    async def step(self) -> bool:
        """Claim what can be claimed now, then wait for the next event. Returns False if there is none."""
        store: Store = self.queue.store
        free = self.slots - len(self._running)
        _, due, _ = await store.do(store.forward(100))
        _, token, left = await store.do(store.admit(free, 250, 1))
        self._requests += 1
        claimed = await store.do(store.claim(free, 10**9, "w", "w:0", self._requests, repeated=False))
        if claimed is None:
            claimed = NOTHING
        for job_id in claimed.ids:
            self.starts[job_id.decode()] = self.clock.now
            ms = self._duration()
            heapq.heappush(self._running, (self.clock.now + ms, job_id, claimed.token, ms))
        await self.beat()
        if (left and free) or claimed.ids:
            return True
        limited = claimed.limited_ms or -1
        waits = [ms for ms in (due, token, limited) if ms >= 0] if free else []
        if self._running:
            waits.append(self._running[0][0] - self.clock.now)
        if not waits:
            return False
        self.clock.now += max(0, min(waits))
        while self._running and self._running[0][0] <= self.clock.now:
            _, job_id, lease, ms = heapq.heappop(self._running)
            record = b'[%d,%d,"w"]' % (self.clock.now - ms, ms)
            await store.do(store.complete([job_id, lease, record, ""], []))
        return True

    async def until_started(self, jobs: Iterable[str]) -> None:
        """Steps until these jobs have started."""
        wanted = set(jobs)
        for _ in range(5000):
            if wanted <= self.starts.keys():
                return
            assert await self.step(), f"{len(wanted - self.starts.keys())} jobs never start"
        raise AssertionError("the simulation does not come to its end")

    async def learn(self) -> None:
        """Run some jobs, so that their usual time is known, and stop while the slots are busy."""
        jobs = await self.queue.submit_many([self.queue.new("job") for _ in range(40)])
        await self.until_started(job.id for job in jobs)

    async def compared(self, jobs: Iterable[str]) -> list[tuple[int, int]]:
        """For each job that waits: its estimate now, and after how many ms it then started."""
        now, found = self.clock.now, {}
        for job_id in jobs:
            found[job_id] = (await self.queue.why(job_id)).starts_in_ms
        await self.until_started(found)
        assert None not in found.values(), found
        return [(said or 0, self.starts[job_id] - now) for job_id, said in found.items()]


@pytest.fixture
async def world(connection: Connection) -> AsyncIterator[Simulation]:
    """An empty queue, and the clock of its simulation."""
    clock = ManualClock()
    async with Queue("test", connection, clock=clock) as queue:
        yield Simulation(queue, clock)


async def enqueued(world: Simulation, count: int, **options: Any) -> list[str]:
    jobs = await world.queue.submit_many([world.queue.new("job", **options) for _ in range(count)])
    return [job.id for job in jobs]


def check(pairs: list[tuple[int, int]], near: float, far: float) -> None:
    """Each error is at most ``near`` usual times, or the part ``far`` of the real wait."""
    for said, was in pairs:
        assert abs(said - was) <= max(near * USUAL, far * was), f"{said} ms was said, {was} ms it was: {pairs}"


@pytest.mark.parametrize(("spread", "near", "far"), [(1.0, 0.1, 0.01), (2.0, 0.5, 0.25), (10.0, 1.5, 0.5)])
async def test_busy_slots(world: Simulation, spread: float, near: float, far: float):
    world.spread = spread
    await world.learn()
    pairs = await world.compared(await enqueued(world, 40))
    check(pairs, near, far)
    # All of them together are nearer than each of them.
    assert median(said / was for said, was in pairs if was) == pytest.approx(1, abs=0.35)


async def test_a_more_urgent_job_is_before_the_others(world: Simulation):
    await world.learn()
    jobs = await enqueued(world, 10)
    urgent = await enqueued(world, 2, priority=-1)
    check(await world.compared([*jobs, *urgent]), 0.1, 0.01)


@pytest.mark.parametrize("spread", [1.0, 2.0])
async def test_the_places_of_a_key(world: Simulation, spread: float):
    world.slots, world.spread = 20, spread
    await world.learn()
    await world.queue.set_limit("r", concurrency=3)
    jobs = await enqueued(world, 12, limits=["r"])
    while sum(job in world.starts for job in jobs) < 3:
        await world.step()
    held = [job for job in jobs if job not in world.starts]
    assert len(held) == 9
    check(await world.compared(held), *((0.1, 0.01) if spread == 1.0 else (0.75, 0.25)))


async def test_tokens_of_a_rate(world: Simulation):
    world.slots = 50
    await world.learn()
    await world.queue.set_limit("r", rate=Rate(60, per="1m", burst=3))
    jobs = await enqueued(world, 20, limits=["r"])
    assert await world.compared(jobs[:0]) == []
    for _ in range(2):
        await world.step()
    held = [job for job in jobs if job not in world.starts]
    assert len(held) >= 16
    pairs = await world.compared(held)
    assert max(abs(said - was) for said, was in pairs) <= 2, pairs


async def test_tokens_that_are_costs(world: Simulation):
    world.slots = 50
    await world.learn()
    await world.queue.set_limit("r", rate=Rate(600, per="1m", burst=50, unit="tokens"))
    jobs = await enqueued(world, 10, limits=["r"], costs={"tokens": 20})
    for _ in range(2):
        await world.step()
    held = [job for job in jobs if job not in world.starts]
    pairs = await world.compared(held)
    assert max(abs(said - was) for said, was in pairs) <= 2, pairs


async def test_the_rule_of_the_whole_queue(world: Simulation):
    world.slots = 50
    await world.learn()
    await world.queue.set_limit("queue", rate=Rate(2, per="1s"))
    jobs = await enqueued(world, 10)
    await world.step()
    pairs = await world.compared([job for job in jobs if job not in world.starts])
    assert max(abs(said - was) for said, was in pairs) <= 2, pairs


async def test_several_rules(world: Simulation):
    world.slots = 20
    await world.learn()
    await world.queue.set_limit("places", concurrency=2)
    await world.queue.set_limit("tokens", rate=Rate(1, per="3s"))
    jobs = await enqueued(world, 8, limits=["places", "tokens"])
    for _ in range(3):
        await world.step()
    check(await world.compared([job for job in jobs if job not in world.starts]), 0.5, 0.25)


async def test_groups(world: Simulation):
    await world.learn()
    jobs: dict[str, list[str]] = {}
    for group in ("a", "b", "c", "d"):
        jobs[group] = await enqueued(world, 10, group=group)
    late = await enqueued(world, 1, group="e")
    await world.queue.set_group("d", weight=2)
    for _ in range(3):
        await world.step()
    waiting = [job for ids in (*jobs.values(), late) for job in ids if job not in world.starts]
    check(await world.compared(waiting), 1.01, 0.1)


async def test_delays_and_closed_keys(world: Simulation):
    world.slots = 20
    await world.learn()
    await world.queue.set_limit("r", concurrency=5)
    await world.queue.close_limit("r", 60)
    later = await enqueued(world, 1, delay=30)
    held = await enqueued(world, 3, limits=["r"])
    pairs = await world.compared([*later, *held])
    assert max(abs(said - was) for said, was in pairs) <= 2, pairs


async def test_a_job_behind_the_running_one_with_its_key(world: Simulation):
    await world.learn()
    key = Unique(key="k", while_="unfinished", on="keep_last")
    [first] = await enqueued(world, 1, unique=key)
    await world.until_started([first])
    [second] = await enqueued(world, 1, unique=key)
    world.clock.now += USUAL // 4
    check(await world.compared([second]), 0.1, 0.01)


async def test_the_first_job_of_an_open_breaker_and_a_delayed_one(world: Simulation):
    @world.queue.task(breaker=Breaker(open_for="20s"))
    async def job() -> None: ...

    world.slots = 20
    await world.learn()
    await world.queue.trip_breaker("job", 20)
    [first, second] = await enqueued(world, 2)
    # It is due before the breaker opens, and other jobs go first.
    [later] = await enqueued(world, 1, delay=5)
    assert [(await world.queue.why(one)).starts_in_ms for one in (second, later)] == [None, None]
    assert [reason.code for reason in (await world.queue.why(later)).reasons] == ["delayed", "breaker_open"]
    check(await world.compared([first]), 0.1, 0.01)


async def test_a_delayed_job_whose_key_or_breaker_is_closed_longer(world: Simulation):
    @world.queue.task(breaker=Breaker(open_for="20s"))
    async def job() -> None: ...

    world.slots = 20
    await world.learn()
    await world.queue.set_limit("r", concurrency=5)
    await world.queue.close_limit("r", 60)
    [closed] = await enqueued(world, 1, delay=30, limits=["r"])
    [reason, key] = (await world.queue.why(closed)).reasons
    assert (reason.code, key.code, key.key) == ("delayed", "key_closed", "r")
    await world.queue.trip_breaker("job", 20)
    [first] = await enqueued(world, 1, delay=5)
    pairs = await world.compared([first, closed])
    assert max(abs(said - was) for said, was in pairs) <= 2, pairs


async def test_a_run_that_is_late_goes_on_for_as_long_as_it_is_late(world: Simulation):
    world.slots = 1
    await world.learn()
    [job] = await enqueued(world, 1)
    for age, left in ((0.2, 0.8), (0.9, 0.1), (1.5, 0.5), (3, 2)):
        world.clock.now = next(reversed(world.starts.values())) + round(age * USUAL)
        await world.beat()
        assert (await world.queue.why(job)).starts_in_ms == pytest.approx(left * USUAL, abs=5)


async def test_on_real_workers(queue: Queue, start: Callable[..., Any], until: Until):
    """The order of the estimates is that of the starts, and the last one is right within a factor of two and a half."""
    loop = asyncio.get_running_loop()
    starts: dict[int, float] = {}

    @queue.task
    async def work(n: int) -> None:
        starts[n] = loop.time()
        await asyncio.sleep(0.15)

    @queue.task(limits=[Concurrency(1)])
    async def alone(n: int) -> None:
        starts[n] = loop.time()
        await asyncio.sleep(0.15)

    await start(concurrency=3)
    for job in await work.enqueue_many([{"n": n} for n in range(-6, 0)]):
        await job.result(10)
    for kind in (work, alone):
        starts.clear()
        jobs = await kind.enqueue_many([{"n": n} for n in range(12)])
        asked = loop.time()
        await until(lambda: running(queue), "the first jobs to run")
        said = [(await queue.why(job.id)).starts_in_ms for job in jobs]
        for job in jobs:
            await job.result(30)
        waited = [(starts[n] - asked) * 1000 for n in range(12)]
        # The estimates were asked for one after the other, so a later one may be a moment less.
        waits = [ms for ms in said if ms is not None]
        assert len(waits) >= 8
        assert all(later > earlier - 50 for earlier, later in pairwise(waits)), said
        assert 0.4 < waits[-1] / waited[-1] < 2.5, (said, waited)


async def running(queue: Queue) -> bool:
    return (await queue.stats()).active > 0
