"""A worker with queues on two Redis servers: faults of one server must not affect the jobs on the other."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest

from jobq import Backoff, Queue, State, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Server


@pytest.fixture
def other(server: Server) -> Iterator[Server]:
    """A second server, which may be frozen or killed."""
    other = type(server)().start()
    yield other
    assert other.process is not None
    other.process.send_signal(signal.SIGCONT)
    other.stop()


@pytest.fixture
def away(other: Server) -> list[Queue]:
    """Eight queues on the second server. Waiting for one after the other would take longer than a lease."""
    queues = [Queue(f"away-{number}", other.url) for number in range(8)]
    for queue in queues:

        @queue.task
        async def never() -> None: ...

    return queues


def freeze(server: Server) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)


def thaw(server: Server) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGCONT)


async def lease_end(admin) -> float:
    """The time at which the lease of the only active job of the queue "test" ends, in seconds on the server's clock."""
    ((_, end),) = [await admin.command(b"ZRANGE", admin.keys["active"], 0, 0, b"WITHSCORES")]
    return float(end) / 1000


@pytest.mark.parametrize("fault", ["frozen", "dead"])
async def test_leases_are_renewed_while_another_server_is_away(
    queue: Queue, away, other, admin, gate, start, until, connection, fault
):
    @queue.task(attempts=1)
    async def slow() -> str:
        await gate.passing()
        return "once"

    # The queues that are away come first. Renewals one after another would wait for them.
    await start(*away, queue, lease=2)
    twin = Queue("test", connection)
    twin.tasks = queue.tasks
    job = await slow.enqueue()
    await gate.arrival()
    await start(twin, lease=2)  # This worker would recover the job if its lease ran out.
    if fault == "frozen":
        freeze(other)
    else:
        other.kill()
    before = await lease_end(admin)

    async def renewed() -> bool:
        return await lease_end(admin) > before + 8

    await until(renewed, "four leases", timeout=30)
    row = await job.row()
    assert (row.state, row.attempts_made, row.errors) == (State.ACTIVE, 1, [])
    assert gate.arrivals.empty(), "the job was started a second time"
    thaw(other)


@pytest.mark.parametrize("fault", ["frozen", "dead"])
async def test_a_stop_settles_and_leaves_on_the_healthy_server_while_the_other_is_away(
    queue: Queue, away, other, gate, until, fault
):
    @queue.task(attempts=1)
    async def slow() -> str:
        await gate.passing()
        return "once"

    worker = Worker(*away[:2], queue, lease=2, grace=20)
    running = asyncio.create_task(worker.run())
    job = await slow.enqueue()
    await gate.arrival()
    assert [row.id for row in await queue.workers()] == [worker.name]
    if fault == "frozen":
        freeze(other)
    else:
        other.kill()
    worker.stop()
    gate.open()
    assert await job.result(10) == "once"

    async def left() -> bool:
        return await queue.workers() == []

    await until(left, "its row to go from the healthy server", timeout=30)
    thaw(other)
    await asyncio.wait_for(running, 60)
    assert worker.state == "stopped"


async def test_jobs_of_a_dead_worker_are_recovered_while_another_server_is_frozen(
    queue: Queue, away, other, start, until
):
    @queue.task(attempts=2, backoff=Backoff(type="fixed", delay=0, jitter=0))
    async def work() -> str:
        return "recovered"

    job = await work.enqueue()
    claimed = await queue.store.do(queue.store.claim(1, 500, "dead", "dead:0", 1, repeated=False))
    assert claimed is not None
    worker = await start(*away, queue, lease=1)
    await until(lambda: worker.state == "running")
    freeze(other)
    assert await job.result(20) == "recovered"
    assert [error.type for error in (await job.row()).errors] == ["LeaseExpired"]
    thaw(other)
