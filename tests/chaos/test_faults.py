"""Faults of servers and networks. Each lasts longer than a lease, and tests one promise."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Connection, Context, Queue, Worker
from jobq.engine.store.packing import pack
from jobq.errors import StoreError, StoreFull, StoreUnavailable
from tests.chaos.invariants import broken
from tests.chaos.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.chaos.conftest import NewServer
    from tests.conftest import Server, Until

LEASE = 0.9
"""Seconds."""
BEYOND = 1.4
"""Seconds, longer than the lease."""


async def command(server: Server, *words: str | int) -> Any:
    """Send one command on its own connection."""
    connection = Connection(server.admin_url, timeout=20)
    try:
        answer = (await connection.trip(pack(words), 1))[0]
        assert not isinstance(answer, Exception), answer
        return answer
    finally:
        await connection.aclose()


class Bench:
    """Two workers with one job each that waits for ``let_go``. A second start means that a living worker's job was
    recovered."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.starts: list[str] = []
        self.let_go = asyncio.Event()
        self.jobs: list[Any] = []

        @queue.task
        async def hold(ctx: Context) -> int:
            self.starts.append(ctx.id)
            await self.let_go.wait()
            return ctx.attempt

    async def assert_nobody_was_recovered(self, until: Until) -> None:
        """Each job ran once, and its result is that of the first attempt."""
        self.let_go.set()

        async def done() -> bool:
            try:
                return (await self.queue.stats()).completed == len(self.jobs)
            except StoreUnavailable:
                return False

        await until(done, "both jobs", timeout=15)
        assert sorted(self.starts) == sorted(job.id for job in self.jobs)
        assert [await job.result(timeout=5) for job in self.jobs] == [1, 1]
        assert await broken(self.queue.store) == []


@asynccontextmanager
async def bench(url: str, until: Until) -> AsyncIterator[Bench]:
    """Wait until both jobs run."""
    queue = Queue("held", url)
    bench = Bench(queue)
    async with (
        queue,
        Worker(queue, concurrency=1, lease=LEASE, grace=0) as one,
        Worker(queue, concurrency=1, lease=LEASE, grace=0) as two,
    ):
        one.start()
        two.start()
        bench.jobs = await queue.enqueue_many([queue.new("hold") for _ in range(2)])
        await until(lambda: len(bench.starts) == 2, "both to start")
        yield bench


async def paused(server: Server) -> None:
    """The server answers nobody."""
    await command(server, "CLIENT", "PAUSE", int(BEYOND * 1000), "ALL")


async def sleeping(server: Server) -> None:
    """The server hangs."""
    await command(server, "DEBUG", "SLEEP", str(BEYOND))


async def busy(server: Server) -> None:
    """Another program's script runs for long. Use bare sockets, because a busy server does not answer a client's
    greeting."""
    await command(server, "CONFIG", "SET", "busy-reply-threshold", 100)
    _, script = await asyncio.open_connection("127.0.0.1", server.port)
    _, killer = await asyncio.open_connection("127.0.0.1", server.port)
    script.write(b'EVAL "while true do end" 0\r\n')
    await asyncio.sleep(BEYOND)
    killer.write(b"SCRIPT KILL\r\n")
    await killer.drain()
    killer.close()
    script.close()


async def misconfigured(server: Server) -> None:
    """The last snapshot failed, so the server refuses writes."""
    obstacle = server.folder / "dump.rdb"
    obstacle.mkdir()
    (obstacle / "full").touch()
    await command(server, "CONFIG", "SET", "save", "3600 1000000")
    await command(server, "BGSAVE")
    await asyncio.sleep(BEYOND)
    await command(server, "CONFIG", "SET", "save", "")


async def replica(server: Server) -> None:
    """The server becomes a replica for a while, as after a failover to another one."""
    await command(server, "REPLICAOF", "127.0.0.1", 1)
    await asyncio.sleep(BEYOND)
    await command(server, "REPLICAOF", "NO", "ONE")


async def restarted(server: Server) -> None:
    """The server is killed and restarts with its append-only file. Loading it takes some time."""
    server.kill()
    await asyncio.sleep(BEYOND)
    await asyncio.to_thread(server.start)


@pytest.mark.parametrize("fault", [paused, sleeping, busy, misconfigured, replica, restarted], ids=lambda f: f.__name__)
async def test_no_false_recovery(
    new_server: NewServer, until: Until, fault: Callable[[Server], Awaitable[None]]
) -> None:
    """The server was away for longer than every lease. All workers live, so no job starts a second time."""
    server = new_server("--appendonly", "yes")
    async with bench(server.url, until) as held:
        await fault(server)
        await held.assert_nobody_was_recovered(until)


@pytest.mark.parametrize("fault", ["blackhole", "half-open", "delay", "chunks"])
async def test_network(new_server: NewServer, until: Until, fault: str) -> None:
    """The same for a network that loses everything, dies silently, is slow, or delivers single bytes."""
    server = new_server()
    async with Proxy(server.port) as proxy, bench(proxy.url, until) as held:
        if fault == "blackhole":
            proxy.blackhole = True
        elif fault == "half-open":
            proxy.freeze_all()
        elif fault == "delay":
            proxy.delay = 0.05
        else:
            proxy.chunk = 1
        await asyncio.sleep(BEYOND)
        proxy.heal()
        await held.assert_nobody_was_recovered(until)


@pytest.mark.parametrize("words", [("CLIENT", "KILL", "TYPE", "normal"), ("SCRIPT", "FLUSH")], ids=" ".join)
async def test_faults_every_few_milliseconds_lose_nothing(
    new_server: NewServer, until: Until, words: tuple[str, ...]
) -> None:
    """Connections are cut, or scripts forgotten, every few milliseconds. The work continues, and no job runs twice."""
    server = new_server()
    queue = Queue("work", server.url)
    starts: list[str] = []

    @queue.task
    async def work(ctx: Context) -> None:
        starts.append(ctx.id)

    async def disturb() -> None:
        while True:
            await command(server, *words)
            await asyncio.sleep(0.05)

    async with queue, Worker(queue, concurrency=5, lease=5) as worker:
        worker.start()
        disturbing = asyncio.create_task(disturb())
        jobs = []
        for _ in range(200):
            job = queue.new("work")
            while True:
                try:
                    jobs.append(await queue.send(job))
                    break
                except StoreUnavailable:
                    continue
        await until(lambda: len(starts) >= len(jobs), "all jobs", timeout=30)
        disturbing.cancel()
        await asyncio.wait([disturbing])

        async def done() -> bool:
            stats = await queue.stats()
            return not stats.active and not stats.waiting

        await until(done, "all settled")
        assert len(starts) == len(set(starts)) >= len(jobs)
        assert await broken(queue.store) == []


async def test_maxmemory(new_server: NewServer, until: Until) -> None:
    """Enqueue is refused and loses nothing. Claims, renewals, results, kills and removals continue, and new workers
    join."""
    server = new_server()
    queue = Queue("full", server.url)
    started, let_go = asyncio.Event(), asyncio.Event()

    @queue.task
    async def work() -> int:
        started.set()
        await let_go.wait()
        return 7

    async with queue:
        first, killed, removed = await queue.enqueue_many([queue.new("work") for _ in range(3)])
        await command(server, "CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(StoreFull, match="maxmemory"):
            await queue.enqueue("work")
        async with Worker(queue, concurrency=1, lease=0.5) as worker:
            worker.start()
            await asyncio.wait_for(started.wait(), 5)
            await queue.kill(killed.id)
            await queue.remove(killed.id)
            await queue.remove(removed.id)
            lease = (await first.row()).lease_until or 0

            async def renewed() -> bool:
                return ((await first.row()).lease_until or 0) > lease

            await until(renewed, "a renewal")
            let_go.set()
            assert await first.result(timeout=5) == 7
        assert (await queue.stats()).completed == 1
        await command(server, "CONFIG", "SET", "maxmemory", 0)
        await queue.enqueue("work")
        assert await broken(queue.store) == []


async def test_loading(new_server: NewServer, until: Until) -> None:
    """While the server loads its file it counts as unavailable. Then everything continues."""
    server = new_server("--appendonly", "yes")
    async with Queue("load", server.url) as queue:
        payload = {"pad": "x" * 1000}
        await queue.enqueue_many([queue.new("work", payload) for _ in range(2000)])
        await command(server, "CONFIG", "SET", "loading-process-events-interval-bytes", 1024)
        await command(server, "CONFIG", "SET", "key-load-delay", 500)
        _, reload = await asyncio.open_connection("127.0.0.1", server.port)
        reload.write(b"DEBUG LOADAOF\r\n")
        await reload.drain()
        seen: list[Exception] = []

        async def back() -> bool:
            try:
                return (await queue.stats()).waiting == 2000
            except StoreUnavailable as error:
                seen.append(error)
                return False

        await until(back, "the end of loading", timeout=20)
        reload.close()


@pytest.mark.chaos
async def test_a_worker_awakes_after_a_half_open_socket(new_server: NewServer, until: Until) -> None:
    """The worker slept on a connection that died silently, and a job was enqueued over another one. It starts within
    seconds."""
    server = new_server()
    async with Proxy(server.port) as proxy:
        connection = Connection(proxy.url, timeout=0.5)
        queue = Queue("asleep", connection)

        @queue.task
        async def work() -> int:
            return 1

        async with queue, Queue("asleep", server.url) as elsewhere, Worker(queue, lease=30) as worker:
            worker.start()
            await until(lambda: proxy.links, "the worker's connections")
            blocked = Connection(server.admin_url)

            async def asleep() -> bool:
                (clients,) = await blocked.trip(b"CLIENT LIST\r\n", 1)
                return b"cmd=bzpopmin" in clients

            await until(asleep, "the worker to fall asleep")
            proxy.freeze_all()
            job = await elsewhere.enqueue("work")
            assert await job.result(timeout=30) == 1  # The worker's next check uses a new connection.
            await blocked.aclose()
        await connection.aclose()


@pytest.mark.chaos
async def test_close_does_not_hang_with_redis_away(new_server: NewServer, until: Until) -> None:
    """The worker has a running job, a waiter and a full outbox. Leaving still takes a bounded time."""
    server = new_server()
    async with Proxy(server.port) as proxy:
        connection = Connection(proxy.url, timeout=0.5)
        queue = Queue("away", connection)
        let_go = asyncio.Event()

        @queue.task
        async def work() -> None:
            await let_go.wait()

        await queue.open()
        worker = Worker(queue, lease=30, grace=0.2)
        async with asyncio.timeout(20):
            async with worker:
                worker.start()
                job = await queue.enqueue("work")
                waiting = asyncio.create_task(job.result())
                await until(lambda: worker.running == 1, "the job")
                proxy.blackhole = True
                let_go.set()
                await until(lambda: worker.running == 0, "its end")
            await queue.aclose()
        with pytest.raises(StoreError):
            await waiting
        await connection.aclose()
