"""The sweeper: recovers jobs whose lease ran out, and removes finished jobs beyond their retention.

Every worker has one. A recovered job is a failed attempt like any other: ``judge`` decides whether it is tried again.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from jobq.engine.log import get_logger
from jobq.engine.model.unreadable import read_spec
from jobq.engine.queue.breakers import agree_on_breakers
from jobq.engine.queue.late import end_late, late_call, tell_late
from jobq.engine.queue.published import Publisher
from jobq.engine.queue.settled import counts_of
from jobq.engine.queue.settling import settle
from jobq.engine.store import FOLD_PAGE, having, send_together
from jobq.engine.worker.lane import TRIM_PAGE
from jobq.errors import LeaseExpired, StoreError
from jobq.redact import misfit

if TYPE_CHECKING:
    from collections.abc import Generator

    from jobq.engine.store import Call, Claimed, Connection
    from jobq.engine.worker.pool import Pool
    from jobq.engine.worker.source import Source

log = get_logger("jobq.sweeper")

PAGE: Final = 100
REBASE_PAGE: Final = 1000
PUBLISH_SECONDS: Final = 30.0
PUBLISH_AT_ONCE: Final = 8
"""Queues whose types are published at the same time."""
TIDY_SECONDS: Final = 15.0
ALL_LOOKS: Final = 4
"""After so many times all partitions of a queue are asked for their settings."""
QUIET_SECONDS: Final = 240.0
"""The longest time after which a queue of many is tidied, in which this worker runs no jobs and finds nothing."""
RECOUNT_PAGES: Final = 4
"""Pages of limits that are compared each time, so that a million held jobs cost a worker little."""


def interval(lease_ms: int) -> float:
    """Seconds between two sweeps of one worker: a share of the lease, at most five."""
    return min(5.0, lease_ms / 6000)


class Served(Protocol):
    """The interface of a waker that the sweeper uses."""

    @property
    def sources(self) -> list[Source]:
        """The sources to sweep. They are on one server or cluster."""
        ...


class Sweeper:
    """Sweeps the sources of one waker, which are on one server or cluster. Idle ones cost it a command or two together.

    A server that does not answer delays no other one, because each has its own sweeper.
    """

    def __init__(self, pool: Pool, served: Served) -> None:
        self._pool = pool
        self._served = served
        self._lease_ms = pool.lease_ms
        self._interval = interval(pool.lease_ms)
        self._publishers: dict[Source, Publisher] = {}
        self._duties: dict[Source, Duty] = {}
        self._settled: dict[Source, tuple[bytes | None, int]] = {}
        """The changes of settings that are known to have reached all partitions (None: some have not), and how many
        partitions these are."""
        self._looks = 0

    async def run(self) -> None:
        """Sweep until cancelled."""
        published = read = float("-inf")
        while True:
            if (now := perf_counter()) - published > PUBLISH_SECONDS:
                published = now
                await self._publish(self._served.sources)
            else:
                await self._publish([source for source in self._served.sources if source not in self._publishers])
            # A random delay, so that workers do not sweep at the same time.
            await asyncio.sleep(self._interval * random.uniform(0.7, 1.3))
            sources = self._served.sources
            await self._recover(sources)
            now = perf_counter()
            if due := [source for source in sources if self._duty(source).is_due(source, now)]:
                await self._tidy_all(due)
            if now - read > TIDY_SECONDS:
                read = now
                await self._read_clock(sources)
                await self._settle(sources)

    async def _publish(self, sources: list[Source]) -> None:
        """Publish the tasks of the queues, a few at a time."""
        waiting = iter(sources)

        async def some() -> None:
            for source in waiting:
                with self._told(source):
                    await self._publisher(source).publish(source.store)

        await asyncio.gather(*(some() for _ in range(min(PUBLISH_AT_ONCE, len(sources)))))

    def _publisher(self, source: Source) -> Publisher:
        if source not in self._publishers:
            queue = source.queue
            # Types and schedules of a queue are in its first partition.
            first = not source.store.partition
            self._publishers[source] = Publisher(
                queue.tasks if first else {},
                queue.rules,
                source.name,
                self._pool.worker,
                queue.declared_schedules if first else {},
                queue.declared_breakers,
            )
        return self._publishers[source]

    def _duty(self, source: Source) -> Duty:
        duty = self._duties.get(source)
        if duty is None:
            duty = self._duties[source] = Duty(alone=len(self._served.sources) == 1)
        return duty

    @staticmethod
    @contextmanager
    def _told(source: Source) -> Generator[None]:
        """An error of one queue is logged, and does not stop the sweep of others."""
        try:
            yield
        except StoreError as error:
            log.warning(
                f"The sweep of queue {source.name} failed and is repeated: {error}",
                queue=source.name, error=str(error),
            )  # fmt: skip

    async def _recover(self, sources: list[Source]) -> None:
        """Recover jobs whose lease ran out, and end late ones. Queues that have neither are left out."""
        if len(sources) > 1:
            try:
                places = await having([source.store for source in sources], "active", "start_by", "end_by")
            except StoreError as error:
                log.warning(f"The sweep of {len(sources)} queues failed and is repeated: {error}", error=str(error))
                return
            sources = [sources[place] for place in places]
        parts = [(source.store, [self._reap_call(source), late_call(source.store)]) for source in sources]
        for source, (claimed, late) in zip(sources, await send_together(parts), strict=True):
            with self._told(source):
                if self._reaped(source, checked(claimed)):
                    while await self.reap(source):
                        pass
                if tell_late(source.queue, checked(late)):
                    await end_late(source.queue, source.store)

    async def reap(self, source: Source) -> int:
        """Recover up to a page of jobs whose lease ran out. Returns how many."""
        return self._reaped(source, await source.store.do(self._reap_call(source)))

    def _reap_call(self, source: Source) -> Call[Claimed | None]:
        return source.store.reap(
            PAGE,
            self._lease_ms,
            self._pool.worker,
            gap_ms=max(round(self._interval * 3000), 1000),
            grace_ms=round(self._lease_ms / 3),
        )

    def _reaped(self, source: Source, claimed: Claimed | None) -> int:
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
                source.defer(run, f"this version of jobq cannot read the job's row: {misfit(error)}")
                continue
            except Exception:  # noqa: BLE001 - an unreadable job must also end in failed
                job_id = run.id.decode()
                log.warning(f"Job {job_id} cannot be read and ends in failed", queue=source.name, job_id=job_id)
            source.fail(
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

    async def _tidy_all(self, sources: list[Source]) -> None:
        """Remove what is past its time from queues, one page of each in a few writes, and more pages one by one."""
        parts = [(source.store, self._tidy_calls(source)) for source in sources]
        alone = len(self._served.sources) == 1
        for source, answers in zip(sources, await send_together(parts), strict=True):
            duty = self._duty(source)
            with self._told(source):
                numbers = [checked(answer) for answer in answers]
                if numbers[0] == TRIM_PAGE or numbers[1] == TRIM_PAGE or numbers[2] or numbers[3] == FOLD_PAGE:
                    await self.tidy(source)
                elif source.store.limited:
                    await self._recount(source)
                duty.done(source, quiet=not alone and not any(numbers))

    @staticmethod
    def _tidy_calls(source: Source) -> list[Call[int]]:
        store, queue = source.store, source.queue
        return [
            store.trim(queue.keep_completed, queue.keep_failed, queue.keep_for_ms, TRIM_PAGE),
            store.expire(TRIM_PAGE),
            store.rebase(REBASE_PAGE),
            store.fold(),
        ]

    async def tidy(self, source: Source) -> None:
        """Remove jobs whose retention has ended, and keep the positions in waiting low. Both are done in pages."""
        trim, expire, rebase, fold = (0, 1, 2, 3)
        store = source.store
        for number, full in ((trim, TRIM_PAGE), (expire, TRIM_PAGE), (rebase, 1), (fold, FOLD_PAGE)):
            while await store.do(self._tidy_calls(source)[number]) == full:
                pass
        if store.limited:
            await self._recount(source)

    async def _settle(self, sources: list[Source]) -> None:
        """Finish calls that were cut between two partitions. Unless settings have changed, one read for each queue of
        several partitions says that there are none. Once a minute all partitions are asked: a call that was overtaken
        by another one may have changed one of them late."""
        self._looks += 1
        for source in sources:
            parts = source.queue.store.parts
            if source.store.partition or len(parts) == 1:
                continue
            with self._told(source):
                [counts] = await counts_of(parts[:1])
                if self._settled.get(source) != (counts.changes, len(parts)) or self._looks % ALL_LOOKS == 0:
                    self._settled[source] = (await settle(source.queue.store), len(parts))
                else:
                    await agree_on_breakers(source.queue.store)

    async def _read_clock(self, sources: list[Source]) -> None:
        """Read the clock of each server or node once for all of its queues. If it was set, schedules may be due."""
        by_node: dict[Connection, list[Source]] = {}
        for source in sources:
            by_node.setdefault(source.store.node, []).append(source)

        async def read(some: list[Source]) -> None:
            first = some[0]
            with self._told(first):
                await first.store.look_at_clock()
                for source in some:
                    source.store.follow_clock(first.store)
                    source.firing.check_clock()

        await asyncio.gather(*map(read, by_node.values()))


class Duty:
    """When a queue is tidied next. ``alone``: the worker serves no other queue.

    A worker of many queues that starts does not tidy all of them at once, because other workers may have done so. It
    tidies those in which it runs jobs soon, and the others one after the other.
    """

    def __init__(self, *, alone: bool) -> None:
        self._last = perf_counter()
        self._pause = TIDY_SECONDS if alone else QUIET_SECONDS
        self._due = float("-inf") if alone else self._last + random.uniform(0, QUIET_SECONDS)
        self._jobs = 0.0

    def is_due(self, source: Source, now: float) -> bool:
        """Whether to tidy it now."""
        return now >= self._due or (now >= self._last + TIDY_SECONDS and _jobs_of(source) != self._jobs)

    def done(self, source: Source, *, quiet: bool) -> None:
        """The queue was tidied. ``quiet``: nothing was found. Then it is tidied less and less often, until this worker
        runs jobs of it."""
        jobs = _jobs_of(source)
        self._pause = min(2 * self._pause, QUIET_SECONDS) if quiet and jobs == self._jobs else TIDY_SECONDS
        self._jobs = jobs
        self._last = perf_counter()
        self._due = self._last + self._pause


def _jobs_of(source: Source) -> float:
    meter = source.meter
    return meter.settled.sum + meter.claimed.sum


def checked(answer: Any) -> Any:
    """The answer of a call that was sent together with others.

    :raises StoreError: it is one.
    """
    if isinstance(answer, StoreError):
        raise answer
    return answer
