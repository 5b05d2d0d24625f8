"""Operators' calls to all partitions of a queue, cut at each of their trips: nothing stays half done."""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Concurrency, Queue, Rate
from jobq.engine.model.breaker import state_of
from jobq.engine.queue.settling import settle
from jobq.engine.store import route as route_module
from jobq.errors import JobqError, StoreUnavailable
from tests.chaos.faulty import Fault, FaultyConnection
from tests.chaos.invariants import broken
from tests.chaos.test_crash_points import at_each_trip
from tests.conftest import wait_until

if TYPE_CHECKING:
    from jobq import Connection
    from jobq.engine.store import Store
    from tests.conftest import Server

pytestmark = pytest.mark.slow

_numbers = itertools.count()
EACH = pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER])


@pytest.fixture(autouse=True)
def _fault_reaches_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route_module, "PAUSES", ())


async def set_all(queue: Queue) -> None:
    await queue.set_limit("api", concurrency=2)
    await queue.set_group("g", weight=2, paused=True)
    await queue.set_charge("actual")
    await queue.set_events("all")
    await queue.set_aging(60)
    await queue.pause()
    await queue.set_partitions(4)
    await queue.resume()
    await queue.set_limit("api", rate=Rate(5, per=1))
    await queue.reset_limit("api")
    await queue.reset_group("g")
    await queue.remove_limit("declared")
    await queue.close_limit("api2:a", 600)
    await queue.close_limit("queue", 600)
    await queue.close_limit("api2:a", 300)
    await queue.close_limit("api2:b", 300)
    await queue.open_limit("api2:b")
    await queue.trip_breaker("call", 600)
    await queue.reset_breaker("call")
    await queue.trip_breaker("call", 900)


async def settings(part: Store) -> dict[str, Any]:
    """All that operators set, as a partition has it."""
    meta = await part.command(b"HMGET", part.keys["meta"], b"aging", b"charge", b"events")
    closed = await part.command(b"ZRANGE", part.keys["closed"], 0, -1, b"WITHSCORES")
    till = await part.command(b"HGET", part.keys["meta"], b"closed")
    return {
        "meta": meta,
        # In minutes from now, because each partition closes them by its own clock.
        "closed": {key: _minutes(part, ms) for key, ms in _rows(closed).items()},
        "queue": till and _minutes(part, till),
        "breakers": {
            # Each partition declares them for itself.
            name: row if state_of(row)[0] else row.rpartition(b" 0")[0]
            for name, row in _rows(await part.command(b"HGETALL", part.keys["breakers"])).items()
        },
        "paused": await part.command(b"HEXISTS", part.keys["meta"], b"paused"),
        "rules": _rows(await part.command(b"HGETALL", part.keys["rules"])),
        "groups": _rows(await part.command(b"HGETALL", part.keys["groups"])),
    }


def _minutes(part: Store, till: bytes) -> int:
    return round((float(till) - part.now_ms()) / 60_000)


def _rows(flat: list[bytes]) -> dict[bytes, bytes]:
    """The server may return the rows of two partitions in another order."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


@EACH
async def test_settings_that_reached_some_partitions_reach_all(
    server: Server, connection: Connection, fault: Fault
) -> None:
    async def scenario(at: int) -> int:
        name = f"settings{next(_numbers)}"
        async with Queue(name, connection, partitions=3, limits=[Concurrency(5)]) as queue:
            await queue.set_limit("declared", concurrency=1)
            await queue.set_limit("api2", concurrency=1)
            await queue.enqueue("t", limits=["declared"], group="g")
            for part in queue.store.parts:
                await part.do(part.breaker("declare", "call", "0.500000 4 1000"))
        faulty = FaultyConnection(server.url, at=at, fault=fault)
        with suppress(StoreUnavailable):
            async with Queue(name, faulty) as operator:
                await set_all(operator)
        await faulty.aclose()
        async with Queue(name, connection) as queue:

            async def agreed() -> bool:
                await settle(queue.store)
                first, *others = [await settings(part) for part in queue.store.parts]
                return all(other == first for other in others)

            # What was sent to other partitions before the fault may be executed only now. Workers then settle again.
            await wait_until(agreed, f"all partitions to agree: {fault} at trip {at}: {faulty.hit}")
            await queue.store.do(queue.store.drop(force=True))
            await queue.store.unregister()
        return faulty.trips

    await at_each_trip(scenario)


@EACH
async def test_a_drop_that_was_cut_is_finished_by_the_next_one(
    server: Server, connection: Connection, admin: Any, fault: Fault
) -> None:
    async def scenario(at: int) -> int:
        name = f"dropped{next(_numbers)}"
        async with Queue(name, connection) as queue:
            await queue.set_partitions(3)
            ids = [(await queue.enqueue("t", id=job_id)).id for job_id in ("a", "a~1", "a~2")]
            await queue.set_limit("api", concurrency=2)
            faulty = FaultyConnection(server.url, at=at, fault=fault)
            with suppress(StoreUnavailable):
                async with Queue(name, faulty) as operator:
                    await operator.drop(force=True)
            await faulty.aclose()
            where = f"{fault} at trip {at}: {faulty.hit}"
            # The producer goes on. What it enqueues is found, by programs that do not know of it.
            more = [(await queue.enqueue("t", id=f"b{ending}")).id for ending in ("", "~1", "~2")]
            async with Queue(name, connection) as other:
                assert (await other.get_partitions()).partitions == 3, where
                for job_id in more:
                    assert (await other.get(job_id)).id == job_id, where
                await settle(other.store)
                for part in other.store.parts:
                    assert await broken(part) == [], where
                    assert await settings(part) == await settings(other.store.parts[0]), where
                await other.drop(force=True)
                for part in other.store.parts:
                    assert not await part.command(b"EXISTS", part.keys["jobs"], part.keys["meta"]), where
                assert name not in await other.queues(), where
                for job_id in ids:
                    with pytest.raises(JobqError):
                        await other.get(job_id)
        return faulty.trips

    await at_each_trip(scenario)
