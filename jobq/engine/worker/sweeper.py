"""The sweeper: recovers jobs whose lease ran out, and removes finished jobs beyond their retention.

Every worker has one. A recovered job is a failed attempt like any other: ``judge`` decides whether it is tried again.
"""

from __future__ import annotations

import asyncio
import random
from time import perf_counter
from typing import TYPE_CHECKING, Final

import msgspec

from jobq.engine.log import get_logger
from jobq.engine.model.unreadable import read_spec
from jobq.engine.queue.late import end_late
from jobq.engine.queue.published import Publisher
from jobq.engine.store import FOLD_PAGE
from jobq.engine.worker.lane import TRIM_PAGE
from jobq.errors import LeaseExpired, StoreError
from jobq.redact import misfit

if TYPE_CHECKING:
    from jobq.engine.worker.pool import Pool
    from jobq.engine.worker.source import Source

log = get_logger("jobq.sweeper")

PAGE: Final = 100
REBASE_PAGE: Final = 1000
PUBLISH_SECONDS: Final = 30.0
TIDY_SECONDS: Final = 15.0
RECOUNT_PAGES: Final = 4
"""Pages of limits that are compared each time, so that a million held jobs cost a worker little."""


def interval(lease_ms: int) -> float:
    """Seconds between two sweeps of one worker: a share of the lease, at most five."""
    return min(5.0, lease_ms / 6000)


class Sweeper:
    """Sweeps the sources of one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._lease_ms = pool.lease_ms
        self._interval = interval(pool.lease_ms)

    async def run(self, source: Source) -> None:
        """Sweep one source until cancelled. Each has a task, so that a server that does not answer delays no other."""
        # Types and schedules of a queue are in its first partition.
        first = not source.store.partition
        publisher = Publisher(
            source.queue.tasks if first else {},
            source.queue.rules,
            source.name,
            self._pool.worker,
            source.queue.declared_schedules if first else {},
            source.queue.declared_breakers,
        )
        published = tidied = float("-inf")
        while True:
            try:
                if perf_counter() - published > PUBLISH_SECONDS:
                    published = perf_counter()
                    await publisher.publish(source.store)
                # A random delay, so that workers do not sweep at the same time.
                await asyncio.sleep(self._interval * random.uniform(0.7, 1.3))
                while await self.reap(source):
                    pass
                await end_late(source.queue, source.store)
                if perf_counter() - tidied > TIDY_SECONDS:
                    tidied = perf_counter()
                    await self.tidy(source)
            except StoreError as error:
                log.warning(
                    f"The sweep of queue {source.name} failed and is repeated: {error}",
                    queue=source.name, error=str(error),
                )  # fmt: skip

    async def reap(self, source: Source) -> int:
        """Recover up to a page of jobs whose lease ran out. Returns how many."""
        claimed = await source.store.do(
            source.store.reap(
                PAGE,
                self._lease_ms,
                self._pool.worker,
                gap_ms=max(round(self._interval * 3000), 1000),
                grace_ms=round(self._lease_ms / 3),
            )
        )
        if claimed is None:
            return 0
        for run, holder in zip(source.took(claimed, perf_counter()), claimed.holders, strict=True):
            # The job does not start here. Only its outcome is stored.
            run.ended = True
            worker = holder.partition(b" ")[2].decode() if holder else "unknown"
            try:
                run.spec = run.in_time(read_spec(run.raw))
            except msgspec.ValidationError as error:
                # A newer version wrote it, and knows the number of its attempts.
                source.deferred(run, f"this version of jobq cannot read the job's row: {misfit(error)}")
                continue
            except Exception:  # noqa: BLE001 - an unreadable job must also end in failed
                job_id = run.id.decode()
                log.warning(f"Job {job_id} cannot be read and ends in failed", queue=source.name, job_id=job_id)
            source.failed(
                run, LeaseExpired(f"worker {worker} stopped renewing the lease: it died, hung or lost its network")
            )
        return len(claimed.ids)

    async def _recount(self, source: Source) -> None:
        """Compare what limits count with the jobs, a few pages each time."""
        for _ in range(RECOUNT_PAGES):
            source.recounted, mended = await source.store.do(source.store.recount(TRIM_PAGE, source.recounted))
            if mended:
                log.warning(
                    f"{mended} places under the limits of queue {source.name} were counted wrongly and are mended",
                    queue=source.name, mended=mended,
                )  # fmt: skip
            if not source.recounted:
                return

    async def tidy(self, source: Source) -> None:
        """Remove jobs whose retention has ended, and keep the positions in waiting low. Both are done in pages."""
        store, queue = source.store, source.queue
        while (
            await store.do(store.trim(queue.keep_completed, queue.keep_failed, queue.keep_for_ms, TRIM_PAGE))
            == TRIM_PAGE
        ):
            pass
        while await store.do(store.expire(TRIM_PAGE)) == TRIM_PAGE:
            pass
        while await store.do(store.rebase(REBASE_PAGE)):
            pass
        while await store.do(store.fold()) == FOLD_PAGE:
            pass
        if source.store.limited:
            await self._recount(source)
        await store.look_at_clock()
        source.firing.check_clock()
