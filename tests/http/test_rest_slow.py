"""Five hundred slow clients, and more clients than the process has files for: other clients are hardly delayed."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import psutil
import pytest
from aiohttp import ClientSession
from rest import serving

from jobq import Connection, Queue
from jobq.http import feeds
from jobq.http.app import create_app
from jobq.http.serve import Deadlines, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from rest import Until

Slow = Callable[[int, bytes], Awaitable[socket.socket]]
HEAD = b"GET /jobs HTTP/1.1\r\nHost: loc"
BODY = b"POST /jobs/enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
STREAM = b"GET /jobs/stats/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
WORST = 1.0
"""CPU seconds that this process may use to answer one request of another client. A few ms are usual. Other processes
of a busy machine do not count."""


@pytest.fixture
def files() -> Iterator[None]:
    """Both ends of all connections are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip(f"the hard limit of open files is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def slow() -> Iterator[Slow]:
    """``await slow(port, sent)``: a client that sends this and then neither sends nor reads."""
    with contextlib.ExitStack() as stack:

        async def make(port: int, sent: bytes) -> socket.socket:
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
            client.send(sent)
            return client

        yield make


async def end_of(client: socket.socket) -> bytes:
    """Read the answer, and check that the connection was closed."""
    loop, chunks = asyncio.get_running_loop(), [b"x"]
    with contextlib.suppress(ConnectionResetError):
        while chunks[-1]:
            chunks.append(await asyncio.wait_for(loop.sock_recv(client, 1 << 16), 10))
    return b"".join(chunks[1:])


@contextlib.asynccontextmanager
async def others(port: int) -> AsyncIterator[list[float]]:
    """Enqueue and read without a pause during the block. Yields the CPU seconds of this process per request."""
    took: list[float] = []

    async def one() -> None:
        while True:
            began = time.process_time()
            async with session.post("/jobs/enqueue", json={"type": "a"}) as response:
                assert response.status == 201
            async with session.get("/jobs/stats", headers={"Connection": "close"}) as response:  # It connects again.
                assert response.status == 200
            took.append((time.process_time() - began) / 2)

    async with ClientSession(f"http://127.0.0.1:{port}") as session:
        task = asyncio.create_task(one())
        try:
            yield took
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            await asyncio.wait([task])


@pytest.mark.slow
async def test_500_slow_clients_are_disconnected_and_do_not_delay_others(
    connection: Connection, files: None, slow: Slow, until: Until, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(feeds, "INTERVAL", 0.05)
    make = feeds.Feed._event  # noqa: SLF001 # pyright: ignore

    async def padded(feed: feeds.Feed) -> bytes:  # The buffers of the kernel are soon full.
        return b": %b\n" % (b"x" * 50_000) + await make(feed)

    app = create_app(Queue("main", connection), body_seconds=3)
    deadlines = Deadlines(head=3, write=3, idle=30, close=1)
    async with serving(app, deadlines=deadlines) as served, others(served.port) as took:
        heads = [await slow(served.port, HEAD) for _ in range(170)]
        bodies = [await slow(served.port, BODY) for _ in range(170)]
        streams = [await slow(served.port, STREAM) for _ in range(160)]
        for stream in streams:
            await until(lambda stream=stream: begins(stream, b"HTTP/1.1 200"), "every stream to begin")
        memory = psutil.Process().memory_info().rss
        monkeypatch.setattr(feeds.Feed, "_event", padded)
        slow_ones = len(took)
        for client in heads + bodies:
            assert b" 408 " in (await end_of(client))[:20]
        await until(lambda: not pollers(), "those who do not read to be dropped")
        grown = psutil.Process().memory_info().rss - memory
        for client in streams:
            assert (await end_of(client)).startswith(b"HTTP/1.1 200")
        assert len(took) - slow_ones > 20
    assert max(took) < WORST
    # Each has an event or two. All events that they did not read would be hundreds of MB.
    assert grown < 100_000_000


def pollers() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("jobq-events-")]


LIMITED = """
import resource, sys
from jobq.cli import main

if sys.argv.pop() == "asyncio":
    sys.modules["uvloop"] = None
resource.setrlimit(resource.RLIMIT_NOFILE, (150, 300))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("loop", ["asyncio", "any"])
async def test_clients_beyond_the_limit_of_files_get_503_and_the_others_are_served(
    redis_url: str, slow: Slow, until: Until, loop: str
):
    port = free_port()
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LIMITED, "serve", f"--port={port}", loop),
        env={"JOBQ_REDIS_URL": redis_url},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with ClientSession(f"http://127.0.0.1:{port}") as session:

            async def alive() -> bool:
                with contextlib.suppress(OSError):
                    async with session.post("/jobs/enqueue", json={"type": "a"}) as response:
                        return response.status == 201
                return False

            await until(alive, "the server", timeout=20)
            # Of 300 files, some are needed for Redis and others, and some for connections that are refused.
            clients = [await slow(port, b"GET") for _ in range(400)]
            await until(lambda: sum(map(turned_away, clients)) > 250, "most of them to be turned away")
            assert sum(map(turned_away, clients)) < 300
            assert await alive()
        server.send_signal(signal.SIGTERM)
        said = (await asyncio.wait_for(server.communicate(), 15))[1].decode()
        assert server.returncode == 0
        assert "out of system resource" not in said
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()


def begins(client: socket.socket, start: bytes) -> bool:
    """Whether this has arrived and is still unread."""
    with contextlib.suppress(BlockingIOError):
        return client.recv(len(start), socket.MSG_PEEK) == start
    return False


def turned_away(client: socket.socket) -> bool:
    return begins(client, b"HTTP/1.1 503")
