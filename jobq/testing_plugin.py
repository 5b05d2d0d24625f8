"""Pytest fixtures: ``pytest_plugins = ["jobq.testing_plugin"]`` in the topmost conftest.py.

They have no entry point, because that would import jobq into every pytest run where it is installed.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from jobq.engine.queue.queue import Queue
from jobq.testing import ManualClock, temporary_server

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.fixture(scope="session")
def jobq_server_url() -> Generator[str]:
    """URL of a server that lives as long as the test session."""
    with temporary_server() as url:
        yield url


@pytest.fixture
def jobq_url(jobq_server_url: str) -> str:
    """URL of the session's server, emptied for this test."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(jobq_server_url.removeprefix("unix://"))
        sock.sendall(b"FLUSHALL\r\n")
        sock.recv(64)
    return jobq_server_url


@pytest.fixture
def jobq_clock() -> ManualClock:
    """A clock that stands still until the test advances it. ``jobq_queue`` uses it."""
    return ManualClock()


@pytest.fixture
def jobq_queue(jobq_url: str, jobq_clock: ManualClock) -> Queue:
    """A queue without tasks on the emptied server. The test opens it: ``async with jobq_queue:``."""
    return Queue("test", jobq_url, clock=jobq_clock)
