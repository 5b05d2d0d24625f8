"""Servers for one test each, for faults that would disturb other tests."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Server

NewServer = Callable[..., "Server"]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def new_server() -> Iterator[NewServer]:
    """``new_server("--appendonly", "yes")``: a running server on a TCP port and a unix socket. It is stopped after the
    test."""
    from tests.conftest import Server

    servers: list[Server] = []

    def start(*options: str) -> Server:
        server = Server("--enable-debug-command", "yes", *options, port=free_port()).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
