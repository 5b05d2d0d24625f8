"""One queue object in several event loops, threads and processes. Each opens it for itself and does not affect
others."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from tools import reading

from jobq import Connection, JobFailed, Queue, StoreError, Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from jobq.engine.store import Store


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    """Run each in its own thread. Returns their results, or the exceptions that they raised."""
    answers: list[Any] = [None] * len(works)

    def run(place: int) -> None:
        try:
            answers[place] = works[place]()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            answers[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a thread hangs"
    return answers


def in_a_child(work: Callable[[], Coroutine[Any, Any, None]]) -> str:
    """Fork, and run the coroutine in the child. Returns its error as text, or '' without an error."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns about a fork of a process with threads.
        pid = os.fork()
    if pid == 0:
        said = ""
        try:
            asyncio.run(asyncio.wait_for(work(), 20))
            gc.collect()  # Objects that are collected here must not close the parent's sockets.
        except BaseException as error:  # noqa: BLE001 - told to the parent
            said = repr(error)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


@pytest.fixture(params=["a url", "a shared connection"])
def redis(request: pytest.FixtureRequest, redis_url: str) -> Iterator[str | Connection]:
    """The Redis of the queue: a URL or a connection."""
    connection = Connection(redis_url)
    yield redis_url if request.param == "a url" else connection
    asyncio.run(connection.aclose())


async def clients(admin: Store) -> set[bytes]:
    """The server's numbers of its connections."""
    return {client.split(b" ")[0] for client in (await admin.command(b"CLIENT", b"LIST")).splitlines()}


async def enqueue_and_close(queue: Queue, count: int = 5) -> int:
    async with queue:
        return len([await queue.enqueue("x", {"n": n}) for n in range(count)])


async def waiting(url: str, name: str = "loops") -> int:
    async with Queue(name, url) as look:
        return (await look.stats()).waiting


def test_each_thread_opens_the_queue_in_its_own_loop(redis: str | Connection, redis_url: str):
    queue = Queue("loops", redis)

    def work() -> int:
        return sum(asyncio.run(enqueue_and_close(queue)) for _ in range(4))

    assert in_threads(*[work] * 6) == [20] * 6
    assert asyncio.run(waiting(redis_url)) == 120
    assert not queue.is_open


def test_a_queue_can_be_used_in_one_loop_after_another(redis: str | Connection, redis_url: str):
    queue = Queue("loops", redis)
    for _ in range(3):
        assert asyncio.run(enqueue_and_close(queue)) == 5
    assert asyncio.run(waiting(redis_url)) == 15


@pytest.mark.filterwarnings("ignore:(unclosed|loop is closed):ResourceWarning")
def test_a_queue_left_open_in_a_loop_that_ended_is_usable_in_the_next_one(redis: str | Connection):
    queue = Queue("loops", redis)

    async def left_open() -> None:
        await queue.open()
        await queue.enqueue("x")

    async def in_the_next() -> int:
        with pytest.raises(StoreError, match="not open in this event loop"):
            await queue.enqueue("x")
        async with queue:
            await queue.enqueue("x")
            return (await queue.stats()).waiting

    for n in range(1, 4):
        asyncio.run(left_open())
        assert not queue.is_open
        assert asyncio.run(in_the_next()) == 2 * n
    gc.collect()


async def test_use_in_a_loop_that_did_not_open_the_queue_is_refused_and_writes_nothing(redis_url: str):
    queue = Queue("loops", redis_url)
    async with queue:
        job = await queue.enqueue("x")
        uses: list[Callable[[], Awaitable[Any]]] = [
            lambda: queue.enqueue("x"),
            lambda: queue.submit_many([]),
            lambda: queue.get(job.id),
            lambda: job.result(1),
            queue.page,
        ]

        async def use(doing: Callable[[], Awaitable[Any]]) -> None:
            await doing()

        for doing in uses:
            (error,) = await asyncio.to_thread(in_threads, lambda doing=doing: asyncio.run(use(doing)))
            assert isinstance(error, StoreError)
            assert "queue 'loops' is not open in this event loop" in str(error)
        assert (await queue.stats()).waiting == 1, "the loop that has it open goes on"


async def test_a_sync_handler_may_use_the_queue_in_a_loop_of_its_own(redis: str | Connection, until: Any):
    queue = Queue("loops", redis)
    ran: list[int] = []

    @queue.task
    async def child(n: int) -> None:
        ran.append(n)

    @queue.task(attempts=1)
    def careless(n: int) -> None:
        asyncio.run(child.enqueue(n))

    @queue.task(attempts=1)
    def careful(n: int) -> None:
        async def go() -> None:
            async with queue:
                await child.enqueue(n)

        asyncio.run(go())

    async with queue, Worker(queue, grace=1, concurrency=5) as worker:
        running = worker.start()
        for n in range(20):
            with pytest.raises(JobFailed, match="called without a running event loop"):
                await (await careless.enqueue(n)).result(10)
            await (await careful.enqueue(n)).result(10)
        await until(lambda: sorted(ran) == list(range(20)), "the children of the careful ones, and no others")
        assert not running.done()


async def test_a_forked_child_opens_the_queue_for_itself_and_leaves_the_parents_connection_alone(
    redis: str | Connection, admin: Store, until: Any
):
    earlier = await clients(admin)
    queue = Queue("loops", redis)
    async with queue:
        await queue.enqueue("x")
        waits = asyncio.create_task((await queue.enqueue("y")).result(30))
        await until(lambda: reading(admin), "the parent to wait for a result")
        await queue.store.command(b"PING")
        ours = await clients(admin) - earlier
        assert len(ours) >= 2, "the blocked read, and the connection of the PING"

        async def unopened() -> None:
            await queue.enqueue("x")

        async def opened() -> None:
            async with queue:
                await queue.enqueue("x")
                await queue.aclose()

        assert "is not open" in in_a_child(unopened)
        for _ in range(2):
            assert in_a_child(opened) == ""
        assert await queue.store.command(b"PING") == b"PONG"
        assert (await queue.stats()).waiting == 4
        assert ours <= await clients(admin), "the parent's connection was cut"
        assert not waits.done(), "the parent's blocked read was cut"
        waits.cancel()


def test_a_child_cannot_use_the_parents_loop(redis_url: str):
    """It would share the parent's epoll instance, and each would get events of the other."""
    queue = Queue("loops", redis_url)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(queue.open())
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            loop.run_until_complete(queue.open())
        except StoreError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert "belongs to the parent process" in pipe.read()
    os.waitpid(pid, 0)
    loop.run_until_complete(queue.aclose())
    loop.close()


async def test_closing_a_closed_queue_does_nothing(redis_url: str):
    queue = Queue("loops", redis_url)
    await queue.aclose()
    for _ in range(2):
        async with queue:
            assert (await queue.stats()).waiting == 0
        await queue.aclose()
    with pytest.raises(StoreError, match="queue 'loops' is not open: use"):
        await queue.submit_many([])


def test_use_without_a_running_loop_is_refused_with_a_clear_error(redis_url: str):
    with pytest.raises(StoreError, match="outside of an event loop"):
        _ = Queue("loops", redis_url).store


def _child_of_a_pool(url: str) -> int:
    return asyncio.run(enqueue_and_close(Queue("loops", url)))


async def test_processes_of_multiprocessing_can_use_the_queue(redis_url: str):
    async with Queue("loops", redis_url) as queue:
        await queue.enqueue("x")

        def use() -> list[int]:
            with multiprocessing.get_context("fork").Pool(2) as pool:
                return pool.map(_child_of_a_pool, [redis_url] * 4)

        assert await asyncio.to_thread(use) == [5] * 4
        assert (await queue.stats()).waiting == 21
