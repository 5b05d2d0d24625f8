"""Partitions are added and given up while producers and workers run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from jobq import Concurrency, Queue
from jobq.engine.model.ids import partition_of
from jobq.engine.model.spread import home
from jobq.engine.queue import session
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


async def test_a_queue_that_is_made_again_with_other_homes_is_known_after_a_while(
    admin: Any, connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    """A program that has it open asks how many partitions there are when it enqueues, from time to time."""
    monkeypatch.setattr(session, "FRESH_SECONDS", 0.0)
    async with Queue("spread", connection, partitions=4) as program:
        await program.enqueue("t", key="a")
        async with Queue("spread", connection) as operator:
            await operator.drop(force=True)
        async with Queue("spread", connection, partitions=2) as again:
            await again.enqueue("t", key="a")
            names = [f"k{n}" for n in range(20)]

            async def known() -> bool:
                jobs = [await program.enqueue("t", key=name, key_ttl=0.001) for name in names]
                return [partition_of(job.id) for job in jobs] == [home(name, 2) for name in names]

            await wait_until(known, "the program to use the new homes")
