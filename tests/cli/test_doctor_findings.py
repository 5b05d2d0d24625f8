"""``jobq doctor``: each finding that a healthy server and queue do not have."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from jobq import Connection, Queue, Worker
from jobq.cli import doctor, doctor_partitions
from jobq.cli.doctor import examine_queue, examine_server, refused
from jobq.cli.doctor_partitions import examine_partitions
from jobq.errors import StoreRefused
from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from jobq.cli.doctor import Finding
    from jobq.engine.model.stats import Stats
    from jobq.engine.store import Store


def by_check(found: list[Finding]) -> dict[str, Finding]:
    return {one.check: one for one in found}


@asynccontextmanager
async def working(queue: Queue) -> AsyncIterator[None]:
    """A worker that the registry knows."""
    async with Worker(queue) as worker:
        worker.start()

        async def known() -> bool:
            return any(row.alive for row in await queue.workers())

        await wait_until(known, "the worker to be known")
        yield


async def test_memory_near_its_bound_is_an_error(admin: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_partitions, "NEAR_FULL", 1e-9)
    await admin.command(b"CONFIG", b"SET", b"maxmemory", str(1 << 40))
    try:
        found = by_check(await examine_server(admin))["memory"]
    finally:
        await admin.command(b"CONFIG", b"SET", b"maxmemory", b"0")
    assert found.level == "error"
    assert "at maxmemory enqueues are refused" in found.message
    assert found.fix.startswith("redis-cli -u URL CONFIG SET maxmemory BYTES")


async def test_a_slow_network_and_a_wrong_clock_are_warnings(admin: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SLOW_MS", -1.0)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 60)
    found = by_check(await examine_server(admin))
    assert (found["latency"].level, found["latency"].fix) == ("warning", "redis-cli -u URL --latency")
    assert (found["clock"].level, found["clock"].fix) == ("warning", "timedatectl, on both machines")
    assert "differ by" in found["clock"].message


async def test_eviction_and_rights_that_are_missing_are_warnings(admin: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    facts: dict[str, str] = {}
    monkeypatch.setattr(doctor, "facts_of", lambda *_: facts)
    found = by_check(await examine_server(admin))
    assert found["rights"].fix == "redis-cli -u URL ACL SETUSER NAME +info '+config|get'"
    facts |= {"redis_version": "6.2.1", "maxmemory-policy": "allkeys-lru", "aof_enabled": "1"}
    found = by_check(await examine_server(admin))
    assert found["server"].level == "error", "the version is too old"
    assert found["server"].message


def test_a_replica_names_what_finds_the_primary() -> None:
    found = refused(StoreRefused("READONLY You can't write against a read only replica."))
    assert (found.level, found.fix) == ("error", "redis-cli -u URL ROLE, which names the primary to use in --redis")


async def test_a_job_that_waits_for_long_and_counts_that_cannot_be_read(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = await queue.stats()
    changed: dict[str, Any] = {"oldest_waiting_ms": 3_600_000, "waiting": 1, "unreadable": {"completed": "x"}}

    async def shown(_: Queue) -> Stats:
        return type(stats)(**{name: changed.get(name, getattr(stats, name)) for name in stats.__struct_fields__})

    monkeypatch.setattr(Queue, "stats", shown)
    found = by_check(await examine_queue(queue))
    assert (found["lag"].message, found["lag"].fix) == ("a job has waited for 1h", "jobq why --queue test")
    assert found["counts"].message == "stored counts cannot be read: completed"


async def test_partitions_that_differ_are_drained_unserved_or_uneven(
    connection: Connection, admin: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Queue("test", connection, partitions=2) as queue:
        await queue.register()
        jobs = [await queue.enqueue("any", id=f"j{n}~1", delay=60) for n in range(4)]
        await queue.set_partitions(1)
        found = by_check(await examine_partitions(queue))
        words = found["declared partitions"]
        assert (words.level, words.fix) == ("warning", "jobq partitions set 2 --queue test, or declare 1")
        assert found["drained partitions"].message.startswith("4 jobs in 1 partition that get no new ones")
        monkeypatch.setattr(doctor_partitions, "MANY", 3)
        monkeypatch.setattr(doctor_partitions, "UNEVEN", 1)
        async with working(queue):
            part = queue.store.parts[1]

            async def served() -> bool:
                return bool(await part.command(b"ZCARD", part.keys["workers"]))

            await wait_until(served, "the partition to be served")
            found = by_check(await examine_partitions(queue))
            assert "partition workers" not in found
            assert found["uneven partitions"].message == f"partition 1 has 4 of {len(jobs)} unfinished jobs"
            await admin.command(b"DEL", part.keys["workers"])
            found = by_check(await examine_partitions(queue))
        assert found["partition workers"].level == "error"
        assert found["partition workers"].message.startswith("no worker serves partitions 1, which have jobs")


async def test_a_queue_of_partitions_has_their_findings(connection: Connection) -> None:
    async with Queue("test", connection, partitions=2) as queue:
        await queue.register()
        found = by_check(await examine_queue(queue))
    assert found["partitions"].message == "2 partitions"
