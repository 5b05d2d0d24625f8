"""A cluster of real processes for all tests here, emptied for each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from jobq import Connection
from tests.local_cluster import LocalCluster, start_cluster, wait_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[LocalCluster]:
    """The cluster of this session. Tests leave it as they found it, apart from where slots are."""
    cluster = start_cluster()
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(session_cluster: LocalCluster) -> Iterator[LocalCluster]:
    """The emptied cluster."""
    for node in session_cluster.primaries():
        node.ask("FLUSHALL")
        node.ask("ACL", "LOG", "RESET")
    yield session_cluster
    wait_for(lambda: all(node.alive for node in session_cluster.nodes), "a test to start its nodes again")
    assert not [node.ask("ACL", "LOG") for node in session_cluster.primaries() if node.ask("ACL", "LOG")]


@pytest.fixture
async def connection(cluster: LocalCluster) -> AsyncIterator[Connection]:
    """A connection of jobq to the cluster."""
    connection = Connection(cluster.url)
    yield connection
    await connection.aclose()
