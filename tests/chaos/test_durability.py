"""Faults that an acknowledged enqueue survives, and the servers that this requires."""

from __future__ import annotations

import logging
import random
import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Connection, Queue
from jobq.engine.store import fitness
from jobq.engine.store.packing import pack
from jobq.errors import DurabilityUnavailable, StoreRefused
from tests.chaos.proxy import Proxy
from tests.conftest import Server, server_kind

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chaos.conftest import NewServer

WAITAOF = pytest.mark.skipif(server_kind() == "redis", reason="Redis 7.0 has no WAITAOF")


async def command(server: Server, *words: str | int) -> Any:
    """Send one command on its own connection."""
    connection = Connection(server.admin_url)
    try:
        return (await connection.trip(pack(words), 1))[0]
    finally:
        await connection.aclose()


def tail_of(folder: Path) -> Path:
    """The current append-only file."""
    return max((folder / "appendonlydir").glob("*.incr.aof"), key=lambda path: path.stat().st_mtime)


@pytest.mark.parametrize("fsync", ["everysec", "always"])
async def test_acknowledged_jobs_survive_a_sigkill_of_redis(new_server: NewServer, fsync: str) -> None:
    """The process dies and the machine does not, so the page cache keeps everything that was written.

    With "everysec" Redis answers before it writes as long as an earlier fsync goes on, so wait for the write.
    """
    server = new_server("--appendonly", "yes", "--appendfsync", fsync)
    async with Queue("kept", server.url) as queue:
        jobs = await queue.enqueue_many([queue.new("send", {"n": n}) for n in range(1000)])
        while "aof_buffer_length:0\r" not in str(await command(server, "INFO", "persistence"), "utf-8"):
            pass
        server.kill()
        server.start()
        assert (await queue.stats()).waiting == len(jobs)


@WAITAOF
@pytest.mark.parametrize("seed", range(3))
async def test_fsynced_jobs_survive_a_power_loss(new_server: NewServer, seed: int) -> None:
    """Data that the disk confirmed survives a cut of the file at any later byte, as after a power loss."""
    server = new_server("--appendonly", "yes", "--appendfsync", "everysec", "--aof-load-truncated", "yes")
    chance = random.Random(seed)
    async with Queue("kept", server.url, durability="fsynced") as safe, Queue("kept", server.url) as quick:
        promised = [await safe.enqueue("send", {"n": n}) for n in range(6)]
        confirmed = tail_of(server.folder).stat().st_size
        await quick.enqueue_many([quick.new("send", {"n": n}) for n in range(200)])
        server.kill()
        tail = tail_of(server.folder)
        with tail.open("r+b") as file:
            file.truncate(chance.randint(confirmed, tail.stat().st_size))
        server.start()
        for job in promised:
            assert (await job.row()).state == "waiting"


@pytest.mark.skipif(server_kind() != "redis", reason="the others have WAITAOF")
async def test_fsynced_is_refused_by_a_server_that_does_not_support_it(new_server: NewServer) -> None:
    """The error comes at the start with a clear text, not at the first enqueue."""
    queue = Queue("kept", new_server("--appendonly", "yes").url, durability="fsynced")
    with pytest.raises(StoreRefused, match=r"needs WAITAOF, which this Redis 7\.0 does not have"):
        await queue.open()


@WAITAOF
async def test_fsynced_is_refused_without_an_append_only_file(new_server: NewServer) -> None:
    """There is nothing to fsync."""
    queue = Queue("kept", new_server().url, durability="fsynced")
    with pytest.raises(StoreRefused, match="set appendonly yes"):
        await queue.open()


async def test_replicated_without_a_replica(new_server: NewServer, caplog: pytest.LogCaptureFixture) -> None:
    """The producer learns that the job is enqueued but not confirmed."""
    server = new_server()
    async with Queue("kept", server.url, durability="replicated", durability_timeout=0.05) as queue:
        assert "no replica is connected" in caplog.text
        with pytest.raises(DurabilityUnavailable, match="not confirmed within 50 ms; the jobs are enqueued"):
            await queue.enqueue("send")
        assert (await queue.stats()).waiting == 1


async def replica_of(master: Server, new_server: NewServer) -> Server:
    """A replica that has caught up, so it confirms writes."""
    replica = new_server("--replicaof", f"127.0.0.1 {master.port}")
    connection = Connection(master.admin_url, timeout=20)
    while True:
        _, copies = await connection.trip(pack(("SETEX", "probe", 1, "x")) + pack(("WAIT", 1, 5000)), 2)
        if copies == 1:
            await connection.aclose()
            return replica


async def test_replicated_jobs_survive_the_master(new_server: NewServer) -> None:
    """The master is killed right after the last acknowledgement. The replica has all jobs."""
    master = new_server("--repl-diskless-sync-delay", "0")
    replica = await replica_of(master, new_server)
    async with Queue("kept", master.url, durability="replicated") as queue:
        jobs = [await queue.enqueue("send", {"n": n}) for n in range(50)]
        master.kill()
    await command(replica, "REPLICAOF", "NO", "ONE")
    async with Queue("kept", replica.url) as queue:
        for job in jobs:
            assert (await queue.get(job.id)).state == "waiting"


async def test_the_confirmation_is_of_this_write(new_server: NewServer) -> None:
    """WAIT counts the writes of its own connection. After a flush of the scripts the write is repeated there."""
    master = new_server("--repl-diskless-sync-delay", "0")
    replica = await replica_of(master, new_server)
    assert replica.process is not None
    async with Queue("kept", master.url, durability="replicated", durability_timeout=0.5) as queue:
        await queue.enqueue("send")
        replica.process.send_signal(signal.SIGSTOP)
        try:
            await command(master, "SCRIPT", "FLUSH")
            with pytest.raises(DurabilityUnavailable):
                await queue.enqueue("send")
        finally:
            replica.process.send_signal(signal.SIGCONT)


async def test_the_confirmation_of_a_repetition(new_server: NewServer) -> None:
    """The reply was lost and the call was repeated on another connection. It still waits for the copy."""
    master = new_server("--repl-diskless-sync-delay", "0")
    replica = await replica_of(master, new_server)
    assert replica.process is not None
    async with (
        Proxy(master.port) as proxy,
        Queue("kept", proxy.url, durability="replicated", durability_timeout=0.5) as queue,
    ):
        await queue.enqueue("send")
        replica.process.send_signal(signal.SIGSTOP)
        try:
            proxy.only, proxy.drop_replies = b"WAIT", 1
            with pytest.raises(DurabilityUnavailable):
                await queue.enqueue("send")
            assert proxy.dropped == 1
        finally:
            replica.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"redis_version": "6.2.14"}, "this is Redis 6.2: jobq needs Redis 7.0 or Valkey 7.2"),
        ({"redis_version": "7.0.1", "maxmemory": "100", "maxmemory-policy": "allkeys-lru"}, "noeviction"),
    ],
)
def test_unsuitable_servers_are_refused(facts: dict[str, str], words: str) -> None:
    """The error says what to change."""
    with pytest.raises(StoreRefused, match=words):
        fitness.refuse_unfit(facts, "none")


@pytest.mark.parametrize(
    "facts",
    [
        {"redis_version": "7.0.15", "maxmemory": "100", "maxmemory-policy": "noeviction"},
        {"redis_version": "7.2.4", "valkey_version": "9.0.0"},
        {"redis_version": "7.2.4", "valkey_version": "8.1.1", "maxmemory": "100", "maxmemory-policy": "volatile-lru"},
        {"maxmemory-policy": "allkeys-lru", "maxmemory": "0"},
        {},
    ],
)
def test_suitable_servers_are_accepted(facts: dict[str, str]) -> None:
    """This includes managed servers that do not allow INFO and CONFIG."""
    fitness.refuse_unfit(facts, "none")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "keeps nothing on disk"),
        (("--save", "3600 1"), "snapshots only"),
        (("--appendonly", "yes", "--maxmemory-policy", "allkeys-lru"), "if maxmemory is set one day"),
        (("--appendonly", "yes"), ""),
    ],
)
async def test_warnings_about_the_server_are_logged_once_per_connection(
    new_server: NewServer, caplog: pytest.LogCaptureFixture, options: tuple[str, ...], words: str
) -> None:
    """The warning has a clear text and is logged once per connection."""
    caplog.set_level(logging.WARNING, "jobq.store")
    connection = Connection(new_server(*options).url)
    async with Queue("one", connection), Queue("two", connection):
        said = [record.message for record in caplog.records if record.name == "jobq.store"]
    await connection.aclose()
    assert len(said) == bool(words)
    assert words in "".join(said)


async def test_an_evicting_server_is_refused(new_server: NewServer) -> None:
    """A real Redis Cluster node."""
    server = new_server("--maxmemory", "1gb", "--maxmemory-policy", "allkeys-random")
    with pytest.raises(StoreRefused, match="maxmemory-policy is allkeys-random"):
        await Queue("kept", server.url).open()


async def test_without_persistence_a_restart_is_survived_by_workers(new_server: NewServer) -> None:
    """All jobs are gone, as the warning said. Jobs that are enqueued afterwards run."""
    from jobq import Worker

    server = new_server()
    queue = Queue("gone", server.url)

    @queue.task
    async def work() -> int:
        return 1

    async with queue, Worker(queue, lease=1) as worker:
        worker.start()
        assert await (await work.enqueue()).result(timeout=5) == 1
        server.kill()
        shutil.rmtree(server.folder / "appendonlydir", ignore_errors=True)
        server.start()
        assert await (await work.enqueue()).result(timeout=10) == 1
