"""A worker with queues on two Redis servers: faults of one server must not affect the jobs on the other."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from jobq import Backoff, Queue, State, StoreRefused, StoreUnavailable, Worker
from jobq.engine.worker import lane, waker
from jobq.engine.worker.slots import Slots
from jobq.engine.worker.timers import DueTimer

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


@pytest.mark.usefixtures("impatient")
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
        return await lease_end(admin) > before + 4

    await until(renewed, "two leases", timeout=30)
    row = await job.row()
    assert (row.state, row.attempts_made, row.errors) == (State.ACTIVE, 1, [])
    assert gate.arrivals.empty(), "the job was started a second time"
    thaw(other)


@pytest.mark.usefixtures("impatient")
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


async def test_a_claim_that_a_frozen_server_does_not_answer_stops_no_wait_on_the_other_server(
    redis_url: str, other, start, monkeypatch
):
    """It reserves all slots, for a moment. A job that comes to the other server meanwhile starts after it."""
    monkeypatch.setattr(waker, "BLOCK", 60.0)
    monkeypatch.setattr(lane, "RESERVED_SECONDS", 1.0)
    noted, reserved = asyncio.Event(), asyncio.Event()
    not_later, reserve = DueTimer.not_later, Slots.reserve

    def note(self: DueTimer, due_ms: int) -> None:
        not_later(self, due_ms)
        if due_ms > 0:
            noted.set()

    def reserve_and_tell(self: Slots, jobs: int) -> None:
        reserve(self, jobs)
        if self.free() <= 0:
            reserved.set()

    async with AsyncExitStack() as stack:
        urls = [redis_url, redis_url, other.url]
        first, _, away = queues = [Queue(f"q{n}", url) for n, url in enumerate(urls)]
        for queue in queues:

            @queue.task
            async def work() -> str:
                return "done"

            await stack.enter_async_context(queue)
        await start(*queues, concurrency=1)
        for queue in queues:
            assert await (await queue.enqueue("work")).result(10) == "done"
        monkeypatch.setattr(DueTimer, "not_later", note)
        due = await away.enqueue("work", delay=1)
        await asyncio.wait_for(noted.wait(), 10)
        monkeypatch.setattr(Slots, "reserve", reserve_and_tell)
        freeze(other)
        await asyncio.wait_for(reserved.wait(), 10)
        assert await (await first.enqueue("work")).result(10) == "done"
        thaw(other)
        assert await due.result(10) == "done"


async def test_a_worker_starts_while_one_of_its_servers_is_down_and_joins_it_later(
    queue: Queue, other, gate, start, until, logs
):
    began: list[str] = []
    absent = Queue("absent", other.url)

    @queue.task
    async def here() -> str:
        return "here"

    @absent.task
    async def there(wait: bool) -> str:
        if wait:
            await gate.passing()
        return "there"

    for one in (queue, absent):
        one.on_startup(lambda one=one: began.append(f"start {one.name}"))
        one.on_shutdown(lambda one=one: began.append(f"stop {one.name}"))
    other.kill()
    worker = await start(absent, queue, lease=2)
    assert await (await here.enqueue()).result(10) == "here"
    assert worker.state == "running"
    assert began == ["start test"]
    assert logs.one("Queue absent is not served yet", "WARNING").queue == "absent"

    other.start()
    async with Queue("absent", other.url) as producer:
        quick, slow = [await producer.enqueue("there", {"wait": wait}) for wait in (False, True)]
        assert await quick.result(20) == "there"
        assert logs.one("Queue absent is served now", "WARNING").queue == "absent"
        assert began == ["start test", "start absent"]
        await gate.arrival()

        async def lease() -> int:
            return (await slow.row()).lease_until or 0

        first = await lease()

        async def renewed() -> bool:
            return await lease() > first

        await until(renewed, "the heartbeat renews there as well")
        assert [row.id for row in await producer.workers()] == [worker.name]
        await slow.kill()
        await until(lambda: logs.all("because it was killed"), "the control channel is heard there as well")
        worker.stop()
        await worker.finished()
        assert await producer.workers() == []
    assert began[2:] == ["stop absent", "stop test"]
    assert len(logs.all("is not served yet")) == len(logs.all("is served now")) == 1


async def test_a_worker_whose_servers_are_all_down_fails_at_its_start(other, away):
    other.kill()
    with pytest.raises(StoreUnavailable):
        await Worker(*away[:2]).run()
    with pytest.raises(StoreUnavailable):
        async with Worker(*away[:2]):
            raise AssertionError("it cannot be entered")


async def test_a_server_that_refuses_is_an_error_at_the_start_although_another_one_works(queue: Queue, other):
    wrong = Queue("wrong", other.url.replace("unix://", "unix://nobody:wrong@").replace("jobq:jobq@", ""))
    for run in (Worker(queue, wrong).run(), Worker(wrong, queue).run()):
        with pytest.raises(StoreRefused, match="refuses this user"):
            await run
    async with Queue("newer", other.url) as newer:
        await newer.store.register()
        await newer.store.command(b"HSET", newer.store.keys["meta"], b"layout", 99)
    with pytest.raises(StoreRefused, match="has layout 99"):
        await Worker(queue, Queue("newer", other.url)).run()


async def test_a_server_that_comes_and_refuses_is_logged_and_the_others_are_served(
    queue: Queue, other, start, until, logs
):
    @queue.task
    async def here() -> str:
        return "here"

    other.kill()
    worker = await start(Queue("absent", other.url), queue)
    await until(lambda: worker.state == "running")
    unfit = type(other)("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru", folder=other.folder).start()
    await until(lambda: logs.all("Queue absent is not served: maxmemory-policy", "ERROR"))
    assert await (await here.enqueue()).result(10) == "here"
    assert len(logs.all("Queue absent is not served: maxmemory-policy", "ERROR")) == 1
    unfit.kill()


async def test_a_worker_that_stops_while_a_server_is_away_stops_at_once(queue: Queue, other, logs):
    other.kill()
    async with Worker(Queue("absent", other.url), queue) as worker:
        worker.start()
        worker.stop()
        await worker.finished()
    assert worker.state == "stopped"
