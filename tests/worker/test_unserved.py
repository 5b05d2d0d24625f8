"""Jobs whose type a worker does not know: handed back once, parked, and recalled by a worker that knows it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from tools import blocked, listening

from jobq import Concurrency, JobFailed, NewJob, Queue, State
from jobq.engine.worker import unserved
from jobq.engine.worker.outbox import Outbox
from jobq.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools import Gate

HOUR_MS = 3_600_000


async def backlog(redis_url: str, jobs: int) -> list[str]:
    """Enqueue jobs of the strange type by a program without its handler."""
    async with Queue("test", redis_url) as other:
        return [job.id for job in await other.submit_many([NewJob("strange") for _ in range(jobs)])]


def completions(queue: Queue, count: int) -> Callable[[], object]:
    """Whether so many jobs have completed."""

    async def look() -> bool:
        return (await queue.stats()).completed_total == count

    return look


def strange_to(queue: Queue) -> list[str]:
    """Give a queue the handler of the strange type. Returns the ids of the jobs in the order of their runs."""
    ran: list[str] = []

    @queue.task(name="strange")
    async def strange() -> None:
        ran.append("strange")

    return ran


async def test_a_backlog_of_an_unknown_type_is_handed_back_once_and_left_alone(
    queue: Queue, redis_url, start, until, logs
):
    @queue.task
    async def known(n: int) -> int:
        return n

    await backlog(redis_url, 1000)
    await start(concurrency=10)
    await start(concurrency=10)
    jobs = await known.enqueue_many([{"n": n} for n in range(20)])
    assert [await job.result(10) for job in jobs] == list(range(20)), "behind the backlog"
    stats = await queue.stats()
    assert (stats.unserved_total, stats.delayed) == (1000, 1000)
    assert stats.next_due_ms is not None
    assert stats.next_due_ms > 0.9 * HOUR_MS

    assert len(logs.all("this worker has no handler for its type", "WARNING")) <= 2, "one line of each worker"

    await known.enqueue(n=1)
    await until(completions(queue, 21))
    assert (await queue.stats()).unserved_total == 1000, "nobody touched them again"


class Source:
    """What ``Unserved`` needs of a source. Its timers fire when the test says so."""

    def __init__(self) -> None:
        self.name = "test"
        self.loop: Any = self
        self.outbox = Outbox()
        self.tasks: tuple[str, ...] = ()
        self.timers: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []

    def wake(self) -> None:
        """No lane listens."""

    def call_later(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        """As a loop's."""
        self.timers.append((seconds, call, args))

    def fire(self) -> None:
        """All timers that are set now."""
        timers, self.timers = self.timers, []
        for seconds, call, args in timers:
            assert seconds == unserved.LOG_SECONDS
            call(*args)


def test_a_type_has_one_line_in_the_log_for_each_minute_and_the_names_of_clients_are_bounded(logs):
    source: Any = Source()
    handed_back = unserved.Unserved(source)

    def defer(type_: str) -> None:
        run: Any = SimpleNamespace(id=b"1", token=b"5 w", name=f"{type_} 1", spec=SimpleNamespace(type=type_))
        handed_back.defer(run, "no handler", HOUR_MS)

    for _ in range(500):
        defer("strange")
    assert len(logs.all("was handed back", "WARNING")) == 1
    source.fire()
    assert logs.one("499 more jobs of type strange", "WARNING").count == 499
    source.fire()
    defer("strange")
    assert len(logs.all("was handed back", "WARNING")) == 2, "nothing came for a minute: a new beginning"
    for n in range(5000):
        defer(f"type-{n}")
    assert len(source.timers) <= unserved.TYPES_LOGGED + 1
    assert len(logs.all("", "WARNING")) <= unserved.TYPES_LOGGED + 4


async def test_a_worker_that_knows_the_type_runs_the_backlog_when_it_starts(queue: Queue, redis_url, start, until):
    @queue.task
    async def known() -> None: ...

    await backlog(redis_url, 300)
    await start()

    async def parked() -> bool:
        return (await queue.stats()).delayed == 300

    await until(parked)
    async with Queue("test", redis_url) as newer:
        ran = strange_to(newer)
        await start(newer, concurrency=10)
        await until(completions(queue, 300))
        assert len(ran) == 300
    # the other worker may have got hold of a few that were recalled, and handed them back at once
    assert (await queue.stats()).unserved_total < 450


async def test_a_busy_worker_recalls_no_more_than_it_has_room_for(
    queue: Queue, redis_url, admin, start, until, gate: Gate
):
    @queue.task
    async def known() -> None: ...

    async with Queue("test", redis_url) as newer:

        @newer.task(name="strange")
        async def strange() -> None:
            await gate.passing()

        await start(newer, concurrency=2)
        await until(lambda: listening(admin))
        await backlog(redis_url, 2)
        await gate.arrival()
        await gate.arrival()
        await start(queue)
        await until(lambda: listening(admin, 2))
        await backlog(redis_url, 100)

        async def parked() -> bool:
            return (await queue.stats()).delayed == 100

        await until(parked)
        assert (await queue.stats()).unserved_total == 100, "they do not circle while the worker is full"
        gate.open()
        await until(completions(queue, 102))
    assert (await queue.stats()).unserved_total < 300


async def test_recalled_jobs_keep_their_limits(queue: Queue, redis_url, start, until):
    @queue.task
    async def known() -> None: ...

    async with Queue("test", redis_url) as newer:
        running = most = 0

        @newer.task(limits=[Concurrency(1)])
        async def strange() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            # the others get their chance to start too early
            for _ in range(5):
                await asyncio.sleep(0)
            running -= 1

        await strange.enqueue_many([{} for _ in range(50)])
        await start(concurrency=10)

        async def parked() -> bool:
            return (await queue.stats()).delayed == 50

        await until(parked)
        await start(newer, concurrency=10)
        await until(completions(queue, 50))
        assert most == 1
    stats = await queue.stats()
    assert (stats.held, stats.delayed, stats.waiting) == (0, 0, 0)


async def test_whoever_knows_the_type_recalls_a_job_that_others_handed_back(
    queue: Queue, redis_url, admin, start, until
):
    @queue.task
    async def known() -> None: ...

    for _ in range(4):
        await start()
    await until(lambda: blocked(admin, 4), "workers that do not know the type")
    async with Queue("test", redis_url) as newer:

        @newer.task(name="newer")
        async def newer_task(n: int) -> int:
            return n + 1

        await start(newer)
        # the server gives a wake token to whoever has blocked for longest: four times not to this one
        await until(lambda: blocked(admin, 5), "a worker that knows it")
        await until(lambda: listening(admin, 5))
        job = await newer_task.enqueue(n=1)
        assert await job.result(10) == 2
        assert 1 <= (await job.row()).unserved <= 3


async def test_a_worker_that_was_deaf_for_a_while_recalls_when_it_hears_again(
    queue: Queue, redis_url, admin, start, until, monkeypatch
):
    @queue.task
    async def known() -> None: ...

    async with Queue("test", redis_url) as newer:
        strange_to(newer)
        await start(newer)
        await until(lambda: listening(admin))
        ids = await backlog(redis_url, 1)
        await until(completions(queue, 1))
        # as another worker leaves it, without the message
        keys, due = admin.keys, 10**15
        await admin.command(b"ZREM", keys["completed"], ids[0])
        await admin.command(b"ZADD", keys["delayed"], due, ids[0])
        await admin.command(b"HSET", keys["unserved"], ids[0], f"1 {HOUR_MS} strange")
        await admin.command(b"ZADD", keys["parked"], 0, f"strange\0{ids[0]}")
        await admin.command(b"CLIENT", b"KILL", b"TYPE", b"pubsub")
        await until(completions(queue, 2))


async def test_an_unknown_type_goes_back_uncharged(queue: Queue, redis_url, start, until, logs):
    @queue.task
    async def known() -> None: ...

    (job_id,) = await backlog(redis_url, 1)
    await start()
    for times in (1, 2, 3):

        async def handed_back(times: int = times) -> bool:
            row = await queue.get(job_id)
            return row.state is State.DELAYED and row.unserved == times

        await until(handed_back)
        row = await queue.get(job_id)
        assert (row.attempts_made, row.errors) == (0, [])
        assert (await queue.stats()).unserved_total == times
        await queue.promote(job_id)
    assert logs.one("no handler for its type", "WARNING").job_id == job_id

    async with Queue("test", redis_url) as newer:
        strange_to(newer)
        await start(newer)
        await until(completions(queue, 1))
    row = await queue.get(job_id)
    assert (row.attempts_made, row.result and bytes(row.result)) == (1, b"null")


@pytest.mark.parametrize("early", [False, True], ids=["in time", "promoted"])
async def test_only_the_time_that_a_job_was_parked_for_counts_as_unserved(redis_url, start, until, early):
    """A job that was delayed for longer than ``unserved_for``, or was promoted, is given its time all the same."""
    clock = ManualClock()
    async with Queue("test", redis_url, clock=clock, unserved_for=1) as queue:

        @queue.task
        async def known() -> None: ...

        async with Queue("test", redis_url, clock=clock) as other:
            job = await other.enqueue("strange", delay=3600)
        clock.advance(3601)
        await start(queue)

        async def handed_back(times: int) -> bool:
            row = await queue.get(job.id)
            return row.unserved == times and row.state is State.DELAYED

        times = 1
        await until(lambda: handed_back(1))
        if early:
            clock.advance(0.4)
            await queue.promote(job.id)
            times = 2
            await until(lambda: handed_back(2))
            assert (await queue.get(job.id)).run_at == int(clock()) + 600
        clock.advance(1)
        await queue.promote(job.id)
        with pytest.raises(JobFailed, match="no handler for its type"):
            await queue.result(job.id, timeout=5)
        assert (await queue.get(job.id)).unserved == times
