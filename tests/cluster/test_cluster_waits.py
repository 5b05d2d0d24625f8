"""Waits on the nodes of a cluster: for results, for the wake token, for messages of the control channel."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from jobq import Connection, Queue, Worker
from jobq.errors import StoreUnavailable
from tests.cluster.test_cluster import NAMES

if TYPE_CHECKING:
    from tests.conftest import Until
    from tests.local_cluster import LocalCluster

pytestmark = pytest.mark.slow


def clients(cluster: LocalCluster) -> list[bytes]:
    """The connections of jobq to any node."""
    lines = [line for node in cluster.nodes if node.alive for line in node.ask("CLIENT", "LIST").splitlines()]
    return [line for line in lines if b" name=jobq " in line]


def blocked(cluster: LocalCluster, command: bytes) -> int:
    """The number of connections that block in the command."""
    return sum(b" flags=b " in line and b" cmd=" + command in line for line in clients(cluster))


def tracking(cluster: LocalCluster) -> int:
    """The number of connections that are told which keys change."""
    return sum(b"t" in line.partition(b" flags=")[2].partition(b" ")[0] for line in clients(cluster))


async def test_closing_ends_the_waits_and_the_connections_on_all_nodes(cluster: LocalCluster, until: Until):
    """Each queue waits for work and for a result on another node."""
    connection = Connection(cluster.url)
    async with AsyncExitStack() as stack:
        queues = [await stack.enter_async_context(Queue(name, connection)) for name in NAMES]
        worker = await stack.enter_async_context(Worker(*queues))
        worker.start()
        waiting = [asyncio.create_task((await queue.enqueue("work", delay=60)).result(60)) for queue in queues]
        await until(lambda: blocked(cluster, b"xread") == tracking(cluster) == 3, "all waits")
    for waiter in waiting:
        with pytest.raises(StoreUnavailable, match="closed"):
            await waiter
    await connection.aclose()
    await until(lambda: clients(cluster) == [], "the connections to be closed")
