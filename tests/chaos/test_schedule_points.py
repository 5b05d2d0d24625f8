"""Every point at which the firing of schedules, or an operator's change of one, can fail. Whatever was hit: each slot
gets one job, and none is lost."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Connection, Queue, StoreUnavailable
from jobq.engine.queue.declaring import declare_schedules
from jobq.engine.queue.firing import LENT_MS, Firing
from jobq.engine.schedule.state import slot_id
from jobq.engine.store import route as route_module
from tests.chaos.faulty import Fault, FaultyConnection
from tests.chaos.invariants import broken

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.conftest import Server

START = int(datetime(2027, 1, 4, 12, tzinfo=UTC).timestamp()) * 1000
MINUTE = 60_000
SLOTS = 4


class Clock:
    """The server's clock, which only the test moves."""

    def __init__(self) -> None:
        self.ms = START

    def __call__(self) -> int:
        return self.ms


def program(name: str, connection: Connection, clock: Clock) -> Queue:
    queue = Queue(name, connection, clock=clock)

    @queue.schedule(every=60, name="code", catch_up="all", overlap="allow")
    @queue.task
    async def tick() -> None: ...

    return queue


async def fired(queue: Queue, name: str) -> list[str]:
    """The jobs of a schedule, in their order."""
    return sorted(row.id for row in (await queue.page(limit=500)).jobs if row.id.startswith(f"{name}~"))


def slots(name: str, first: int, last: int) -> list[str]:
    return [slot_id(name, (START + n * MINUTE) // 1000) for n in range(first, last + 1)]


@pytest.mark.parametrize("fault", list(Fault))
async def test_a_slot_gets_one_job_whatever_trip_fails(
    fault: Fault, server: Server, connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(route_module, "PAUSES", ())
    hits: set[str] = set()
    for at in range(40):
        clock = Clock()
        faulty = FaultyConnection(server.url, fault=fault)
        name = f"slots-{fault.name}-{at}".lower().replace("_", "-")
        async with program(name, connection, clock) as healthy:
            await declare_schedules(healthy.store, healthy.declared_schedules, started=True)
            await healthy.put_schedule("ops", "tick", cron="* * * * *", catch_up="all", overlap="allow")
            async with program(name, faulty, clock) as queue:
                faulty.at = faulty.trips + at
                for _ in range(SLOTS):
                    clock.ms += MINUTE
                    with suppress(StoreUnavailable):
                        await Firing(queue).fire_due()
                faulty.dead = False
            hits.add(faulty.hit)
            clock.ms += LENT_MS
            await Firing(healthy).fire_due()
            for schedule in ("code", "ops"):
                assert await fired(healthy, schedule) == slots(schedule, 1, SLOTS), faulty.hit
                assert (await healthy.get_schedule(schedule)).count == SLOTS
            assert await broken(healthy.store) == []
        await faulty.aclose()
        if not faulty.hit:
            break
    assert hits >= {"schedule_due", "schedule_fire", ""}, "all trips were hit, and then none"


async def delete(queue: Queue) -> None:
    await queue.delete_schedule("ops")


async def pause(queue: Queue) -> None:
    await queue.pause_schedule("ops", by="ann")


async def resume(queue: Queue) -> None:
    await queue.resume_schedule("ops")


async def put(queue: Queue) -> None:
    await queue.put_schedule("ops", "tick", every=120)


async def fill(queue: Queue) -> None:
    first, last = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (START - 70 * MINUTE, START - MINUTE))
    await queue.backfill_schedule("ops", first, last)


async def declare(queue: Queue) -> None:
    await declare_schedules(queue.store, queue.declared_schedules, started=True)


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("change", [delete, pause, resume, put, fill, declare])
async def test_a_change_that_is_repeated_acts_once(
    change: Callable[[Queue], Awaitable[None]],
    fault: Fault,
    server: Server,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
):
    """The caller repeats what was not answered, with a new connection if its process died."""
    monkeypatch.setattr(route_module, "PAUSES", ())
    seen: list[Any] = []
    for at in range(60):
        clock = Clock()
        faulty = FaultyConnection(server.url, fault=fault)
        name = f"change-{change.__name__}-{fault.name}-{at}".lower().replace("_", "-")
        async with program(name, connection, clock) as healthy:
            await healthy.put_schedule("ops", "tick", cron="* * * * *", catch_up="all", overlap="allow")
            if change is resume:
                await healthy.pause_schedule("ops")
            async with program(name, faulty, clock) as queue:
                faulty.at = faulty.trips + at
                with suppress(StoreUnavailable):
                    await change(queue)
                faulty.dead = False
            with suppress(*([LookupError] if change is delete else [])):
                await change(healthy)
            clock.ms += 2 * MINUTE
            await Firing(healthy).fire_due()
            rows = {row.name: row for row in await healthy.schedules()}
            ops = rows.get("ops")
            found = (
                sorted(rows),
                ops and (ops.every, ops.paused and ops.paused.by, ops.next),
                await fired(healthy, "ops"),
            )
            assert await broken(healthy.store) == []
        await faulty.aclose()
        seen.append(found)
        if not faulty.hit:
            break
    else:
        pytest.fail("the change takes too many trips")
    assert all(one == seen[-1] for one in seen), "the result is that of a change without a fault"
