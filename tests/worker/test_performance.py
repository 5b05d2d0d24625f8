"""Throughput, failures and latencies of types in windows, and how many jobs of each type there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from jobq import Backoff, InvalidQuery, Queue, State, Worker
from jobq.testing import ManualClock, drain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from jobq import Connection, Performance
    from tests.conftest import Until

DAY = 24 * 3600


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still until it is advanced."""
    return ManualClock()


@pytest.fixture
async def queue(connection: Connection, clock: ManualClock) -> AsyncIterator[Queue]:
    """A queue with that clock, and two types."""
    async with Queue("performance", connection, clock=clock) as queue:

        @queue.task
        async def good() -> None: ...

        @queue.task(attempts=2, backoff=Backoff(type="fixed", delay=0, jitter=0))
        async def bad() -> None:
            raise ValueError("x")

        yield queue


def facts(found: Performance) -> dict[str, tuple[int, int, int]]:
    return {row.type: (row.completed, row.failed, row.retried) for row in (found.all, *found.types)}


async def test_runs_are_counted_by_type(queue: Queue, clock: ManualClock) -> None:
    await queue.enqueue("good")
    await queue.enqueue("good", delay=5)
    await queue.enqueue("bad")
    clock.advance(30)
    await drain(queue)
    found = await queue.performance()
    assert facts(found) == {"": (2, 1, 1), "good": (2, 0, 0), "bad": (0, 1, 1)}
    good = next(row for row in found.types if row.type == "good")
    assert good.run
    assert good.wait
    assert good.wait.count == good.run.count == 2
    assert good.wait.mean == pytest.approx(27_500, abs=100), "one has waited for 30 s, and one since it was due"
    stats = await queue.stats()
    assert (stats.wait, stats.run) == (found.all.wait, found.all.run), "the same numbers"
    assert found.since <= found.now - 3_600_000


async def test_windows_decay_and_do_not_depend_on_the_jobs_that_are_kept(queue: Queue, clock: ManualClock) -> None:
    await queue.enqueue("good")
    await drain(queue)
    await queue.remove_all(State.COMPLETED)
    seen: list[list[int]] = []
    for seconds in (0, 2 * 3600, 2 * DAY, 8 * DAY):
        clock.advance(seconds)
        await queue.store.do(queue.store.fold())
        seen.append([(await queue.performance(window)).all.completed for window in ("1h", "24h", "7d")])
    assert seen == [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]
    assert (await queue.stats()).completed_total == 1


async def test_an_unknown_window_says_which_there_are(queue: Queue) -> None:
    with pytest.raises(InvalidQuery, match="there is no window '2h'; the windows are 1h, 24h, 7d"):
        await queue.performance("2h")


async def test_types_that_no_code_knows_are_counted_together(queue: Queue, connection: Connection) -> None:
    """A client chooses the type of a job. Names of clients must not grow what is kept."""
    queue.unserved_for_ms = 0
    async with Queue(queue.name, connection, clock=queue.store.now_ms) as producer:
        for n in range(3):
            await producer.enqueue(f"unknown{n}")
    await drain(queue)
    assert facts(await queue.performance()) == {"": (0, 3, 0), "other": (0, 3, 0)}


async def test_a_lost_lease_is_counted(queue: Queue, connection: Connection, until: Until) -> None:
    async with Queue("leases", connection) as queue:

        @queue.task
        async def good() -> None: ...

        job = await good.enqueue()
        store = queue.store
        await store.do(store.claim(1, 1, "dead", "dead:0", 1, repeated=False))
        async with Worker(queue, lease=1) as worker:
            worker.start()
            await until(lambda: _counted(queue), "the lost lease is counted")
            await job.result(20)


async def _counted(queue: Queue) -> bool:
    found = await queue.performance()
    return [(row.type, row.lost, row.retried) for row in found.types] == [("good", 1, 1)]


async def test_types_by_state(queue: Queue) -> None:
    for _ in range(3):
        await queue.enqueue("good", delay=60)
    await queue.enqueue("bad")
    found = await queue.types_by_state()
    assert found[State.DELAYED] == {"good": 3}
    assert found[State.WAITING] == {"bad": 1}
    assert found[State.HELD] == {}


async def test_types_of_many_jobs_are_estimated(queue: Queue) -> None:
    await queue.enqueue_many([queue.new("good") for _ in range(1500)] + [queue.new("bad") for _ in range(500)])
    found = (await queue.types_by_state())[State.WAITING]
    assert sum(found.values()) == 2000
    assert 1200 < found["good"] < 1800, "eight standard errors"
