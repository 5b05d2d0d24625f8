"""What sweeper and heartbeat do when something is damaged, refused, or more than a page."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from jobq import Connection, Queue, State
from jobq.engine.task.inject import Resources
from jobq.engine.worker import sweeper as sweeper_module
from jobq.engine.worker.children import Children
from jobq.engine.worker.heartbeat import Heartbeat
from jobq.engine.worker.outbox import RELEASED
from jobq.engine.worker.pool import Pool
from jobq.engine.worker.sweeper import Sweeper
from jobq.errors import StoreUnavailable
from jobq.testing import ManualClock

if TYPE_CHECKING:
    import pytest

HOUR = 3600


def serving(queue: Queue) -> Pool:
    """The parts of a worker named "w" that serves this queue. Nothing of it runs by itself."""
    pool = Pool(asyncio.get_running_loop(), 10, 30_000, "w")
    pool.add(queue, 1, Resources(), Children())
    return pool


async def test_a_damaged_row_of_a_dead_worker_ends_in_failed(queue: Queue, admin, start, until):
    job = await queue.enqueue("work", attempts=5)
    claimed = await queue.store.do(queue.store.claim(1, 1, "dead", "dead:0", 1, repeated=False))
    assert claimed is not None
    await admin.command(b"HSET", admin.keys["jobs"], job.id, b"oops")
    await start(lease=1)

    async def failed() -> bool:
        return (await queue.get(job.id)).state is State.FAILED

    await until(failed, "it cannot say how often it may be tried")
    row = await queue.get(job.id)
    assert ([error.type for error in row.errors], list(row.unreadable)) == (["LeaseExpired"], ["spec"])


async def test_one_tidy_removes_all_that_is_past_its_time(connection: Connection, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sweeper_module, "TRIM_PAGE", 2)
    clock = ManualClock()
    async with Queue("test", connection, clock=clock, keep_for=HOUR) as queue:
        for n in range(5):
            await queue.enqueue("work", key=f"k{n}", key_ttl=HOUR)
        claimed = await queue.store.do(queue.store.claim(5, 30_000, "w", "w:0", 1, repeated=False))
        assert claimed is not None
        rows: list[Any] = [word for job_id in claimed.ids for word in (job_id, claimed.token, b"[0,0,null]", b"")]
        await queue.store.do(queue.store.complete(rows, []))
        pool = serving(queue)
        sweeper = Sweeper(pool, pool.wakers[0])
        await sweeper.tidy(pool.sources[0])
        assert (await queue.stats()).completed == 5
        clock.advance(2 * HOUR)
        await sweeper.tidy(pool.sources[0])
        assert (await queue.stats()).completed == 0
        assert await queue.store.command(b"EXISTS", queue.store.keys["unique"]) == 0
        pool.close()


async def test_jobs_that_the_heartbeat_cannot_hand_back_are_kept_and_handed_back_by_the_loop(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A handler blocks the loop, and Redis is away as well."""
    pool = serving(queue)
    source = pool.sources[0]
    for _ in range(3):
        await queue.enqueue("work")
    claimed = await queue.store.do(queue.store.claim(3, 30_000, "w", "w:0", 1, repeated=False))
    assert claimed is not None
    runs = source.took(claimed, 0.0)
    heartbeat = Heartbeat(pool, cast("Any", None), 10.0, None)
    store = queue.new_store(queue.store.connection)

    async def away(call: Any) -> Any:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "do", away)
        await heartbeat._release(source, store, runs)  # noqa: SLF001 - the heartbeat's thread does it, at a bad time
    assert len(source.held()) == 3, "their leases are renewed until they are handed back"
    assert "could not be handed back yet: away" in caplog.text
    await asyncio.sleep(0)
    assert len(source.outbox.rows[RELEASED]) == 3 * RELEASED.width

    await heartbeat._release(source, store, runs)  # noqa: SLF001
    await asyncio.sleep(0)  # the thread of the loop forgets them
    assert source.held() == []
    assert (await queue.stats()).waiting == 3
    pool.close()
