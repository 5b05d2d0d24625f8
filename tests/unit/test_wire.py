"""The bytes of one connection: replies in parts, silence, a server that closes or speaks another protocol."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import pytest

from jobq import Connection, Queue, Worker
from jobq.engine.store.wire import taken_over
from jobq.errors import StoreError, StoreUnavailable

if TYPE_CHECKING:
    from pathlib import Path

PING = b"*1\r\n$4\r\nPING\r\n"


class Server:
    """A server that answers the handshake with OK and everything else with the given bytes, in one write each."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = answers
        self.connections = 0
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Connection:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.connection = Connection(f"redis://127.0.0.1:{port}", timeout=0.5)
        return self.connection

    async def __aexit__(self, *_: object) -> None:
        await self.connection.aclose()
        self._server.close()
        await asyncio.wait(self._serving)

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.read(1 << 16)
        except ConnectionResetError:
            return b""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        while data := await self._read(reader):
            if PING in data:
                for answer in self._answers:
                    writer.write(answer)
                    await writer.drain()
                    await asyncio.sleep(0)
                if self._answers[-1:] == (b"",):
                    break
            else:
                writer.write(b"+OK\r\n" * data.count(b"*"))
        writer.close()
        await writer.wait_closed()


async def test_replies_in_parts_are_put_together():
    async with Server(*[b"+PONG\r\n*2\r\n$3\r\nabc\r\n-ERR no\r\n"[i : i + 1] for i in range(31)]) as connection:
        pong, array = await connection.trip(PING, 2)
        assert pong == b"PONG"
        assert array[0] == b"abc"
        assert str(array[1]) == "ERR no"


async def test_a_silent_server_ends_in_a_timeout():
    async with Server() as connection:
        with pytest.raises(StoreUnavailable, match="did not answer in time"):
            await connection.trip(PING, 1)


async def test_waiting_for_a_connection_counts_as_waiting_for_the_answer():
    """If the server is silent, callers that wait for a connection fail together with those that have one, and send
    nothing."""
    server = Server()
    async with server as connection:
        connection.timeout = 1.0
        trips = [connection.trip(PING, 1) for _ in range(5 * connection.max_connections)]
        answers = await asyncio.gather(*trips, return_exceptions=True)
        assert {type(answer) for answer in answers} == {StoreUnavailable}
        # On a busy machine some trips begin later, and get a connection that another one has given up.
        assert server.connections < 3 * connection.max_connections, "not all of them had one"


async def test_waiters_for_a_connection_get_it_in_order():
    async with Server(b"+PONG\r\n") as connection:
        order: list[int] = []

        async def trip(n: int) -> None:
            await connection.trip(PING, 1)
            order.append(n)

        connection._free = 1  # noqa: SLF001 # pyright: ignore
        tasks = [asyncio.create_task(trip(n)) for n in range(6)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [0, 1, 3, 4, 5]
        assert connection._free == 1  # noqa: SLF001 # pyright: ignore


async def test_a_short_timeout_behind_a_longer_one_ends_in_time():
    """One timer serves all trips of a connection."""
    async with Server(b"+PONG\r\n") as connection:
        await connection.trip(PING, 1, patience=60)
        async with asyncio.timeout(5):
            with pytest.raises(StoreUnavailable, match="did not answer in time"):
                await connection.trip(PING, 2)


async def test_an_answer_in_another_protocol_is_an_error():
    async with Server(b"HTTP/1.1 400 Bad Request\r\n") as connection:
        with pytest.raises(StoreUnavailable, match="not a reply of Redis"):
            await connection.trip(PING, 1)


async def test_a_connection_that_the_server_closes_is_an_error():
    async with Server(b"+PO", b"") as connection:
        with pytest.raises(StoreUnavailable, match="connection lost"):
            await connection.trip(PING, 1)


async def test_a_replica_after_a_failover_is_left():
    """READONLY means that another server is the master. The next trip asks for it on a new connection."""
    server = Server(b"-READONLY You can't write against a read only replica.\r\n")
    async with server as connection:
        for n in (1, 2):
            with pytest.raises(StoreUnavailable, match="READONLY"):
                await connection.trip(PING, 1)
            assert server.connections == n


async def test_a_connection_that_the_server_closed_while_idle_is_not_used(connection, admin, until):
    """A trip that is sent only once must not use a dead socket."""
    await connection.trip(PING, 1)
    await admin.command(b"CLIENT", b"KILL", b"TYPE", b"normal", b"SKIPME", b"yes")

    async def noticed() -> bool:
        return connection._idle[0].closed  # noqa: SLF001

    await until(noticed)
    assert await connection.trip(PING, 1) == [b"PONG"]


async def test_a_cancelled_trip_spoils_its_own_connection_only(connection):
    blocked = asyncio.create_task(connection.trip(b"BZPOPMIN jobq:nothing 5\r\n", 1, patience=5.0))
    await connection.trip(PING, 1)
    blocked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await blocked
    assert await connection.trip(PING, 1) == [b"PONG"]


@pytest.fixture
async def behind_tls(redis_url: str, tmp_path: Path):
    """A TLS server in front of the emptied one. Yields its URL with the certificate to trust."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    making = await asyncio.create_subprocess_exec(
        openssl, *words.split(), "-keyout", str(key), "-out", str(certificate), stderr=asyncio.subprocess.DEVNULL
    )
    assert await making.wait() == 0
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    pipes: set[asyncio.Task[None]] = set()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs = await asyncio.open_unix_connection(urlsplit(redis_url).path)
        pipes.update(asyncio.create_task(pipe(*ends)) for ends in ((reader, theirs[1]), (theirs[0], writer)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    user, at, _ = urlsplit(redis_url).netloc.rpartition("@")
    yield f"rediss://{user}{at}127.0.0.1:{port}?ssl_ca_certs={certificate}"
    server.close()
    await asyncio.gather(*pipes)


async def test_over_tls(behind_tls: str):
    """The transport that is taken over from redis-py is then a TLS transport."""
    async with Queue("tls", behind_tls) as queue:

        @queue.task
        async def echo(text: str) -> str:
            return text

        async with Worker(queue) as worker:
            worker.start()
            large = await echo.enqueue(text="x" * 500_000)
            assert len(await large.result(10)) == 500_000
            jobs = await echo.enqueue_many([{"text": str(n)} for n in range(300)])
            assert [await job.result(10) for job in jobs] == [str(n) for n in range(300)]


async def test_a_certificate_of_an_unknown_authority_is_refused(behind_tls: str):
    connection = Connection(behind_tls.partition("?")[0])
    with pytest.raises(StoreUnavailable, match="certificate"):
        await connection.trip(PING, 1)
    await connection.aclose()


def test_a_redis_py_whose_transport_is_not_found_is_named() -> None:
    with pytest.raises(StoreError, match=r"redis-py \d+\.\S+ keeps the transport .* install a version"):
        taken_over(cast("Any", object()), asyncio.Protocol())
