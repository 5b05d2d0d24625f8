"""Partitions are added and given up while producers and workers run."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from jobq import Concurrency, Queue, State
from jobq.engine.model.aging import AGING_JOBS_MAX
from jobq.engine.model.ids import partition_of
from jobq.engine.queue import session
from jobq.engine.queue.changing import changing
from jobq.engine.queue.settling import number_of, settle
from jobq.engine.worker import sweeper
from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from tools import Gate

    from jobq.engine.store import Connection


async def test_more_and_fewer_while_the_queue_is_in_use(
    admin: Any, connection: Connection, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(session, "FRESH_SECONDS", 0.05)
    ran: dict[str, int] = {}
    done = asyncio.Event()
    jobs: list[Any] = []
    async with Queue("spread", connection, partitions=4) as queue, Queue("spread", connection) as operator:
        running: dict[int, int] = {}
        most = 0

        @queue.task(limits=[Concurrency(2, by="of")])
        async def keyed(of: int, n: int) -> int:
            nonlocal most
            running[of] = running.get(of, 0) + 1
            most = max(most, running[of])
            await asyncio.sleep(0)
            running[of] -= 1
            return n

        @queue.task()
        async def plain(n: int) -> int:
            ran[str(n)] = ran.get(str(n), 0) + 1
            return n

        for _ in range(2):
            await start(queue, concurrency=10)

        async def produce() -> None:
            n = 0
            while not done.is_set():
                for _ in range(5):
                    jobs.append(await plain.enqueue(n))
                    n += 1
                jobs.append(await keyed.enqueue(n % 7, n))
                jobs.extend(await plain.enqueue_many([{"n": n + one} for one in range(20)]))
                n += 20

        async def named(partition: int) -> bool:
            return any(partition_of(job.id) == partition for job in jobs[-200:])

        producer = asyncio.create_task(produce())
        await wait_until(lambda: len(jobs) > 100, "the first jobs")
        homes = {partition_of(job.id) for job in jobs}
        assert homes <= set(range(4))
        row = await operator.set_partitions(8)
        assert (row.partitions, row.homes, row.most) == (8, 4, 8)
        await wait_until(lambda: named(7), "jobs in the new partitions")
        await operator.set_partitions(4)
        at = len(jobs)
        await wait_until(
            lambda: len(jobs) > at + 300 and {partition_of(job.id) for job in jobs[-100:]} <= set(range(4)),
            "no new jobs in the partitions that are given up",
        )
        done.set()
        await producer
        # Workers drain all of them, and nothing is lost or runs twice.
        results = await asyncio.gather(*(job.result(timeout=20) for job in jobs))
        assert len(results) == len(jobs)
        assert set(ran.values()) == {1}
        assert most <= 2
        assert sum((await operator.get_partitions()).jobs) == 0


async def test_new_partitions_know_what_operators_have_set(admin: Any, connection: Connection, start: Any, gate: Gate):
    async with Queue("plain", connection) as queue, Queue("plain", connection) as operator:

        @queue.task()
        async def run(n: int) -> int:
            await gate.passing(n)
            return n

        worker = await start(queue)
        job = await run.enqueue(0)
        assert await gate.arrival() == 0
        await operator.set_limit("api", concurrency=1)
        await operator.set_group("g", weight=2)
        await operator.set_aging(60)
        await operator.pause()
        await operator.set_partitions(3)
        for part in operator.store.parts:
            assert (await part.do(part.pause()))[0] == ""
            assert await part.rule_names() == [b"api"]
            assert await part.group_row("g") == await operator.store.parts[0].group_row("g") != b""
            assert (await part.do(part.aging(60_000, declared=True)))[0] == 60_000
        jobs = [await operator.enqueue("run", {"n": n}) for n in range(1, 7)]
        gate.open()
        assert await job.result(timeout=10) == 0
        await operator.resume()
        assert sorted(await asyncio.gather(*(job.result(timeout=10) for job in jobs))) == [1, 2, 3, 4, 5, 6]
        assert worker.running == 0


async def test_priority_holds_in_each_partition(admin: Any, connection: Connection, start: Any):
    """A job of another partition may start first, whatever its priority. One of the same partition may not."""
    order: list[tuple[int, int]] = []
    async with Queue("spread", connection, partitions=4) as queue:

        @queue.task()
        async def run(priority: int, partition: int) -> None:
            order.append((priority, partition))

        for part in range(4):
            for n in range(30):
                job_id = f"low{n}~{part}" if part else f"low{n}"
                await queue.enqueue("run", {"priority": 9, "partition": part}, priority=9, id=job_id)
        urgent = [
            await queue.enqueue("run", {"priority": 1, "partition": part}, priority=1, id=f"high~{part}")
            for part in range(1, 4)
        ]
        await start(queue, concurrency=5)
        await asyncio.gather(*(job.result(timeout=10) for job in urgent))
        for part in range(1, 4):
            assert next(priority for priority, of in order if of == part) == 1


async def test_a_copy_of_older_settings_does_not_count_as_the_newest(admin: Any, connection: Connection):
    """A worker meets a call that has just begun. It writes what it read before the call wrote."""
    async with Queue("spread", connection, partitions=2) as queue:
        await queue.resume()
        first, other = queue.store.parts
        async with changing(queue.store):
            number = await number_of(first)
            await queue.store.do(queue.store.pause())
            await other.do(other.resume())
            await other.do(other.settings(await number_of(other), number))
        assert await settle(queue.store) == await number_of(first)
        assert await other.command(b"HEXISTS", other.keys["meta"], b"paused")


async def test_two_changes_at_once_leave_the_same_in_all_partitions(admin: Any, connection: Connection):
    async with Queue("spread", connection, partitions=2) as queue:
        await queue.resume()
        first, other = queue.store.parts
        async with AsyncExitStack() as one, AsyncExitStack() as two:
            await one.enter_async_context(changing(queue.store))
            await two.enter_async_context(changing(queue.store))
            await first.do(first.pause())
            await first.do(first.resume())
            await other.do(other.resume())
            await other.do(other.pause())
            await one.aclose()
        assert await settle(queue.store) == await number_of(first)
        assert not await other.command(b"HEXISTS", other.keys["meta"], b"paused")


async def test_settings_that_a_partition_refuses_are_copied_later(
    admin: Any, connection: Connection, start: Any, monkeypatch: pytest.MonkeyPatch, logs: Any
):
    """While more than a thousand jobs wait in a partition, its aging cannot change."""
    monkeypatch.setattr(sweeper, "TIDY_SECONDS", 0.0)
    monkeypatch.setattr(sweeper, "interval", lambda lease_ms: 0.01)
    async with Queue("spread", connection, partitions=2) as queue:

        @queue.task()
        async def run() -> None: ...

        await queue.pause()
        first, other = queue.store.parts
        jobs = await queue.enqueue_many([queue.new("run", id=f"job{n}~1") for n in range(AGING_JOBS_MAX + 1)])
        await first.do(first.settings())
        await first.do(first.aging(60_000))
        await start(queue)
        await wait_until(lambda: logs.all("a call was interrupted"), "the first try")
        assert await number_of(other) != await number_of(first)
        await queue.remove_all(State.WAITING)
        assert len(jobs) > AGING_JOBS_MAX

        async def settled() -> bool:
            return await number_of(other) == await number_of(first)

        await wait_until(settled, "the next try")
        assert (await other.do(other.aging(60_000, declared=True)))[0] == 60_000


async def test_workers_finish_a_call_that_was_cut_between_two_partitions(
    admin: Any, connection: Connection, start: Any, monkeypatch: pytest.MonkeyPatch, logs: Any
):
    monkeypatch.setattr(sweeper, "TIDY_SECONDS", 0.0)
    monkeypatch.setattr(sweeper, "interval", lambda lease_ms: 0.01)
    async with Queue("spread", connection, partitions=3) as queue:

        @queue.task()
        async def run() -> None: ...

        await start(queue)
        first, *others = queue.store.parts
        # What a pause and a new rule leave behind whose process dies after the first partition.
        await first.do(first.settings())
        await first.do(first.pause())
        await first.do(first.rule("set", "api", "2"))

        async def finished() -> bool:
            for part in others:
                paused = await part.command(b"HEXISTS", part.keys["meta"], b"paused")
                if not paused or await part.rule_names() != [b"api"]:
                    return False
            return True

        await wait_until(finished, "all partitions to have them")
        assert logs.all("a call was interrupted")
