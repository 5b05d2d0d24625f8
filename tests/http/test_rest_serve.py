"""``serve``: slow, broken and silent clients, and a server that stops when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from rest import serving

from jobq import Connection, Queue
from jobq.http.app import create_app
from jobq.http.serve import Deadlines, free_port, serve

if TYPE_CHECKING:
    from aiohttp import web
    from rest import Until

FAST = Deadlines(head=0.2, write=0.2, idle=30.0, close=5.0)


@pytest.fixture
def app(connection: Connection) -> web.Application:
    return create_app(Queue("main", connection), body_seconds=0.2)


def parsed(raw: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head, raw
    return int(head.split()[1]), json.loads(body)


HEAD = b"POST /jobs/enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

BROKEN = [
    b"GARBAGE\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/9.9\r\n\r\n",
    b"GET  /  HTTP/1.1\r\n\r\n",
    b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: " + b"x" * 20_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"A%d: 1\r\n" % n for n in range(500)) + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Header: 1\r\n\r\n", HEAD + b"Content-Length: -1\r\n\r\n",
    HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    HEAD + b"Transfer-Encoding: gzip, banana\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("raw", BROKEN, ids=range(len(BROKEN)))
async def test_bytes_that_are_not_http_are_answered_with_a_problem(app: web.Application, raw: bytes):
    async with serving(app) as served:
        status, body = parsed(await served.exchange(raw))
        assert (status, body["status"], body["type"]) == (400, 400, "urn:jobq:problem:malformed-request")


async def test_broken_chunks_are_a_problem(app: web.Application):
    async with serving(app) as served:
        raw = await served.exchange(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n")
        assert parsed(raw)[1]["type"] == "urn:jobq:problem:malformed-request"


async def test_a_head_that_does_not_arrive_is_408(app: web.Application):
    async with serving(app, deadlines=FAST) as served:
        status, body = parsed(await served.exchange(b"GET /jobs HTTP/1.1\r\nHost: loc"))
        assert (status, body["type"]) == (408, "urn:jobq:problem:request-timeout")


async def test_a_head_that_arrives_byte_by_byte_is_408(app: web.Application):
    async with serving(app, deadlines=FAST) as served:
        reader, writer = await served.connect()
        writer.write(b"GET /jobs HTTP/1.1\r\nHost: ")
        answer = asyncio.create_task(reader.read())
        while not answer.done():  # A byte from time to time does not reset the deadline.
            writer.write(b"x")
            await asyncio.wait([answer], timeout=0.02)
        # The client continued to send after the server had closed the connection.
        with contextlib.suppress(ConnectionResetError):
            assert b" 408 " in await answer
        writer.close()


async def test_a_second_head_on_the_same_connection_has_the_deadline_too(app: web.Application):
    async with serving(app, deadlines=FAST) as served:
        reader, writer = await served.connect()
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in await reader.readuntil(b"}")
        writer.write(b"GET /jo")
        assert b" 408 " in await asyncio.wait_for(reader.read(), 5)
        writer.close()


async def test_a_quiet_connection_between_requests_is_kept(app: web.Application):
    async with serving(app, deadlines=FAST) as served:
        reader, writer = await served.connect()
        for _ in range(2):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b"}")
            with pytest.raises(TimeoutError):  # Silent for longer than any head may take.
                await asyncio.wait_for(reader.read(1), 0.5)
        writer.close()


async def test_the_rest_of_a_refused_body_is_not_read_as_a_head(app: web.Application):
    async with serving(app, deadlines=Deadlines(head=0.5, write=5.0, idle=30.0, close=5.0)) as served:
        reader, writer = await served.connect()
        raw = HEAD.replace(b"application/json", b"text/plain") + b"Content-Length: 20\r\n\r\n"
        writer.write(raw)
        assert b" 415 " in await reader.readuntil(b"}")
        writer.write(b"x" * 20)
        with pytest.raises(TimeoutError):  # Silent for longer than a head may take.
            await asyncio.wait_for(reader.read(1), 1.0)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in await reader.readuntil(b"}")
        writer.close()


async def test_a_body_that_does_not_arrive_is_408(app: web.Application):
    async with serving(app, deadlines=FAST) as served:
        raw = await served.exchange(HEAD + b'Content-Length: 100\r\n\r\n{"type":')
        assert parsed(raw)[1]["type"] == "urn:jobq:problem:request-timeout"


async def test_an_announced_body_over_the_limit_is_refused_at_once(app: web.Application):
    async with serving(app, deadlines=FAST) as served:
        raw = await served.exchange(HEAD + b"Content-Length: 99999999999\r\n\r\n", to_end=False)
        assert parsed(raw)[0] == 413


async def test_an_answer_that_is_not_read_is_dropped(connection: Connection, until: Until):
    queue = Queue("main", connection, max_payload=20_000_000)
    async with queue, serving(create_app(queue), deadlines=FAST) as served:
        job = await queue.enqueue("a", "x" * 15_000_000)
        reader, writer = await served.connect()
        writer.write(f"GET /jobs/main:{job.id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        writer.transport.pause_reading()  # pyright: ignore
        await until(lambda: dropped(writer), "the connection to be dropped")
        reader.feed_eof()


def dropped(writer: asyncio.StreamWriter) -> bool:
    # The server's reset is noticed at a write.
    writer.write(b"\r\n")
    return writer.is_closing()


async def test_connections_are_bounded(app: web.Application, until: Until):
    async with serving(app, max_connections=3) as served:
        kept = [await served.connect() for _ in range(3)]
        status, body = parsed(await served.exchange(b""))
        assert (status, body["type"]) == (503, "urn:jobq:problem:busy")
        kept[0][1].close()
        await kept[0][1].wait_closed()

        async def answered() -> bool:
            return b"200 OK" in await served.exchange(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

        await until(answered, "the server to see that a connection is closed")
        for _, writer in kept:
            writer.close()


async def test_stop_lets_a_long_poll_answer_at_once(connection: Connection, until: Until):
    queue = Queue("main", connection)
    async with queue:
        job = await queue.enqueue("a")
        async with serving(create_app(queue)) as served, aiohttp.ClientSession() as session:
            url = f"http://localhost:{served.port}/jobs/main:{job.id}/result?wait=60000"
            poll = asyncio.create_task(session.get(url))
            waiters = queue._sessions.here.waiters._waiting  # noqa: SLF001 # pyright: ignore
            await until(lambda: waiters, "the poll to wait")
            served.stop.set()
            response = await asyncio.wait_for(poll, 3)
            assert response.status == 202
            await asyncio.wait_for(served.task, 5)
        assert queue.is_open  # The queue was open before, so it stays open.


async def test_stop_closes_the_queues_and_the_port(connection: Connection):
    queue = Queue("main", connection)
    async with serving(create_app(queue)) as served:
        assert queue.is_open
    assert not queue.is_open
    with pytest.raises(OSError, match=r"Connect call failed|Connection refused"):
        await asyncio.open_connection("127.0.0.1", served.port)


async def test_several_servers_share_a_port(connection: Connection):
    port = free_port()
    stop = asyncio.Event()
    up: list[int] = []

    async def one() -> None:
        app = create_app(Queue("main", connection))
        await serve(app, port=port, reuse_port=True, stop=stop, started=lambda _, port: up.append(port))

    both = [asyncio.create_task(one()) for _ in range(2)]
    async with aiohttp.ClientSession() as session:
        while len(up) < 2:
            await asyncio.wait(both, timeout=0.01)
        for _ in range(10):
            async with session.get(f"http://localhost:{port}/healthz", headers={"Connection": "close"}) as response:
                assert response.status == 200
    stop.set()
    await asyncio.gather(*both)


async def test_a_taken_port_is_an_oserror_and_leaves_nothing_open(connection: Connection):
    queue = Queue("main", connection)
    async with serving(create_app(Queue("main", connection))) as served:
        with pytest.raises(OSError, match="address already in use"):
            await serve(create_app(queue), port=served.port)
    assert not queue.is_open
