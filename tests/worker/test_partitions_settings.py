"""What operators set, and what handlers say of the whole queue, is the same in all partitions, however calls end."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Breaker, Concurrency, Queue, RateLimited, State
from jobq.engine.model.aging import AGING_JOBS_MAX
from jobq.engine.model.ids import partition_of
from jobq.engine.model.spread import home
from jobq.engine.queue.changing import changing
from jobq.engine.queue.settled import counts_of
from jobq.engine.queue.settling import settle
from jobq.engine.worker import sweeper
from jobq.errors import StoreUnavailable
from tests.conftest import wait_until

if TYPE_CHECKING:
    from jobq import Connection
    from jobq.engine.store import Store


def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "TIDY_SECONDS", 0.0)
    monkeypatch.setattr(sweeper, "interval", lambda lease_ms: 0.01)


async def follows(queue: Queue) -> bool:
    """Whether all partitions have the settings of the first one, as workers see it."""
    first, *others = await counts_of(queue.store.parts)
    return all(counts.follows(first) for counts in others)


async def paused(queue: Queue) -> list[bool]:
    return [bool(await part.command(b"HEXISTS", part.keys["meta"], b"paused")) for part in queue.store.parts]


async def closed(queue: Queue, key: str = "") -> list[float]:
    """Until when each partition is closed, or a key of it. 0: it is open."""
    found: list[float] = []
    for part in queue.store.parts:
        if key:
            till = await part.command(b"ZSCORE", part.keys["closed"], key)
        else:
            till = await part.command(b"HGET", part.keys["meta"], b"closed")
        found.append(float(till or 0))
    return found


async def test_a_call_that_reached_all_partitions_leaves_nothing_to_do(admin: Any, connection: Connection, logs: Any):
    async with Queue("spread", connection, partitions=4, limits=[Concurrency(9)]) as queue:
        await queue.pause()
        await queue.set_limit("api", concurrency=2)
        await queue.set_group("g", weight=2)
        await queue.set_charge("actual")
        await queue.close_limit("api", 60)
        await queue.close_limit("queue", 60)
        await queue.resume()
        assert await follows(queue)
        assert not logs.all("a call was interrupted")


async def test_a_slow_call_that_is_cut_after_a_worker_has_copied(admin: Any, connection: Connection):
    """The worker copies before the call writes, so there was nothing to copy."""
    async with Queue("spread", connection, partitions=3) as queue:
        await queue.resume()
        first = queue.store.parts[0]
        with suppress(StoreUnavailable):
            async with changing(queue.store):
                await settle(queue.store)
                await first.do(first.pause())
                await settle(queue.store)
                raise StoreUnavailable("the program dies")
        assert await paused(queue) == [True] * 3
        assert await follows(queue)


async def test_a_slow_call_that_is_overtaken_and_then_cut(admin: Any, connection: Connection):
    """Its last write comes when another call has changed all partitions, and a worker has found nothing to copy."""
    async with Queue("spread", connection, partitions=3) as queue:
        first, late, _ = queue.store.parts
        with suppress(StoreUnavailable):
            async with changing(queue.store):
                await first.do(first.pause())
                await queue.resume()
                await settle(queue.store)
                await late.do(late.pause())
                raise StoreUnavailable("the program dies")
        assert await paused(queue) == [False, True, False]
        assert not await follows(queue)
        await settle(queue.store)
        assert await paused(queue) == [False] * 3
        assert await follows(queue)


async def test_a_copy_of_older_settings_does_not_count_as_the_newest(admin: Any, connection: Connection):
    """A worker writes what it read before a call wrote."""
    async with Queue("spread", connection, partitions=2) as queue:
        await queue.resume()
        other = queue.store.parts[1]
        counted, own = await counts_of(queue.store.parts)
        await queue.pause()
        await other.do(other.resume())
        assert not await other.do(other.settings(counted.changes, own.changes))
        await settle(queue.store)
        assert await paused(queue) == [True, True]


async def test_two_changes_at_once_leave_the_same_in_all_partitions(admin: Any, connection: Connection):
    async with Queue("spread", connection, partitions=2) as queue:
        await queue.resume()
        first, other = queue.store.parts
        async with changing(queue.store), changing(queue.store):
            await first.do(first.pause())
            await first.do(first.resume())
            await other.do(other.resume())
            await other.do(other.pause())
        assert not await follows(queue)
        await settle(queue.store)
        assert await paused(queue) == [False, False]


async def test_workers_find_a_partition_that_was_changed_late(
    admin: Any, connection: Connection, start: Any, monkeypatch: pytest.MonkeyPatch
):
    """The first partition does not change any more. So it takes a look at all of them."""
    look_often(monkeypatch)
    async with Queue("spread", connection, partitions=3) as queue:

        @queue.task()
        async def run() -> None: ...

        await queue.resume()
        await start(queue)
        await wait_until(lambda: follows(queue), "the first look")
        late = queue.store.parts[2]
        await late.do(late.pause())

        async def resumed() -> bool:
            return await paused(queue) == [False] * 3

        await wait_until(resumed, "the next look")


async def test_settings_that_a_partition_refuses_are_copied_later(
    admin: Any, connection: Connection, start: Any, monkeypatch: pytest.MonkeyPatch, logs: Any
):
    """While more than a thousand jobs wait in a partition, its aging cannot change."""
    look_often(monkeypatch)
    async with Queue("spread", connection, partitions=2) as queue:

        @queue.task()
        async def run() -> None: ...

        await queue.pause()
        first, other = queue.store.parts
        jobs = await queue.enqueue_many([queue.new("run", id=f"job{n}~1") for n in range(AGING_JOBS_MAX + 1)])
        await first.do(first.aging(60_000))
        await start(queue)
        await wait_until(lambda: logs.all("a call was interrupted"), "the first try")
        assert not await follows(queue)
        await queue.remove_all(State.WAITING)
        assert len(jobs) > AGING_JOBS_MAX

        await wait_until(lambda: follows(queue), "the next try")
        assert (await other.do(other.aging(60_000, declared=True)))[0] == 60_000


async def test_workers_finish_a_call_that_was_cut_between_two_partitions(
    admin: Any, connection: Connection, start: Any, monkeypatch: pytest.MonkeyPatch, logs: Any
):
    look_often(monkeypatch)
    async with Queue("spread", connection, partitions=3) as queue:

        @queue.task()
        async def run() -> None: ...

        await start(queue)
        first, *others = queue.store.parts
        # What a pause and a new rule leave behind whose process dies after the first partition.
        await first.do(first.pause())
        await first.do(first.rule("set", "api", "2"))

        async def finished() -> bool:
            for part in others:
                paused = await part.command(b"HEXISTS", part.keys["meta"], b"paused")
                if not paused or await part.rule_names() != [b"api"]:
                    return False
            return True

        await wait_until(finished, "all partitions to have them")
        assert logs.all("a call was interrupted")


# -- closed keys ---------------------------------------------------------------------------------------------------


async def test_a_key_that_was_closed_or_opened_in_some_partitions(admin: Any, connection: Connection):
    async with Queue("spread", connection, partitions=3) as queue:
        await queue.set_limit("api", concurrency=2)
        first = queue.store.parts[0]
        for key in ("api:a", "queue"):
            await first.do(first.close(key, 60_000))
        await settle(queue.store)
        for key in ("api:a", ""):
            found = await closed(queue, key)
            assert min(found) > first.now_ms() + 50_000, key
        assert (await queue.limit("api")).closed == 1, "it is one key"
        assert [row.key for row in await queue.limit_keys("api")] == ["api:a"]
        # A shorter time counts as well as a longer one.
        await first.do(first.close("api:a", 20_000))
        await settle(queue.store)
        assert max(await closed(queue, "api:a")) < first.now_ms() + 21_000
        for key in ("api:a", "queue"):
            await first.do(first.close(key, 0))
        await settle(queue.store)
        assert await closed(queue, "api:a") + await closed(queue) == [0] * 6


async def test_what_handlers_have_closed_in_one_partition_stays(admin: Any, connection: Connection, start: Any):
    """A key that a handler closes has its jobs in one partition. Settings are copied without it."""
    async with Queue("spread", connection, partitions=3) as queue:

        @queue.task(limits=[Concurrency(2, by="customer")])
        async def call(customer: str) -> None:
            raise RateLimited(retry_after=60)

        await start(queue)
        jobs = await call.enqueue_many([{"customer": f"c{n}"} for n in range(6)])

        async def limited() -> bool:
            return (await queue.stats()).rate_limited_total == 6

        await wait_until(limited, "the refusals")
        keys = [f"call.customer:c{n}" for n in range(6)]
        before = [await closed(queue, key) for key in keys]
        assert [[till > 0 for till in found].index(True) for found in before] == [partition_of(job.id) for job in jobs]
        first = queue.store.parts[0]
        await first.do(first.pause())
        await settle(queue.store)
        assert await paused(queue) == [True] * 3
        assert [await closed(queue, key) for key in keys] == before


@pytest.mark.parametrize("number", [0, 1])
async def test_a_key_that_an_operator_and_a_handler_have_closed(
    admin: Any, connection: Connection, start: Any, number: int
):
    """An operator closes a key while a job of it runs, and the job is refused for longer. Copying the settings gave the
    key the operator's time again, or, if the job was in the first partition, opened it in all others."""
    refused = asyncio.Event()
    async with Queue("spread", connection, partitions=3) as queue:

        @queue.task(limits=[Concurrency(2, name="api")], partition_by="a")
        async def call() -> None:
            await refused.wait()
            raise RateLimited(retry_after=600)

        await start(queue)
        by = next(text for text in "abcdefgh" if home(text, 3) == number)
        job = await call.options(partition_by=by).enqueue()
        await wait_until(lambda: _active(queue), "the job to run")
        await queue.close_limit("api", 60)
        before = await closed(queue, "api")
        refused.set()

        async def limited() -> bool:
            return (await queue.stats()).rate_limited_total == 1

        await wait_until(limited, "the refusal")
        assert partition_of(job.id) == number
        first = queue.store.parts[0]
        await first.do(first.pause())
        await settle(queue.store)
        assert await paused(queue) == [True] * 3
        after = await closed(queue, "api")
        assert after[number] > first.now_ms() + 500_000
        assert [till for part, till in enumerate(after) if part != number] == [
            till for part, till in enumerate(before) if part != number
        ]


async def _active(queue: Queue) -> bool:
    return (await queue.stats()).active == 1


async def test_a_service_that_refuses_all_jobs_closes_the_whole_queue(admin: Any, connection: Connection, start: Any):
    loop = asyncio.get_running_loop()
    starts: list[float] = []
    async with Queue("spread", connection, partitions=4) as queue:

        @queue.task()
        async def call(n: int) -> None:
            starts.append(loop.time())
            if n == 0:
                raise RateLimited(retry_after=0.6 if len(starts) == 1 else 0, scope="queue")

        await start(queue, concurrency=1)
        [first, *_] = await call.enqueue_many([{"n": 0}])

        async def everywhere() -> bool:
            return min(await closed(queue)) > 0

        await wait_until(everywhere, "all partitions to close")
        assert (await queue.stats()).closed_until is not None
        others = [await queue.enqueue("call", {"n": 1}, id=f"other~{n}" if n else "other") for n in range(4)]
        await asyncio.gather(*(job.result(10) for job in others))
        assert starts[1] - starts[0] >= 0.6
        assert partition_of(first.id) in range(4)


async def test_a_handler_never_makes_the_time_of_an_operator_shorter(admin: Any, connection: Connection):
    async with Queue("spread", connection, partitions=2) as queue:
        await queue.close_limit("queue", 60)
        before = await closed(queue)
        await queue.store.do(queue.store.close("queue", 5_000, "longer"))
        assert await closed(queue) == before
        await queue.store.do(queue.store.close("queue", 90_000, "longer"))
        assert min(await closed(queue)) > max(before)


async def test_workers_finish_the_closing_of_one_that_died(
    admin: Any, connection: Connection, start: Any, monkeypatch: pytest.MonkeyPatch
):
    look_often(monkeypatch)
    async with Queue("spread", connection, partitions=3) as queue:

        @queue.task()
        async def run() -> None: ...

        await start(queue)
        first = queue.store.parts[0]
        await first.do(first.close("queue", 60_000, "longer"))

        async def everywhere() -> bool:
            return min(await closed(queue)) > 0

        await wait_until(everywhere, "all partitions to close")


# -- circuit breakers ----------------------------------------------------------------------------------------------


async def states(queue: Queue) -> list[str]:
    """When the breaker of type call opens, and when its state began, in each partition."""
    rows = [await part.command(b"HGET", part.keys["breakers"], b"call") for part in queue.store.parts]
    return [" ".join(row.decode().split(" ")[3:5]) for row in rows]


async def test_a_breaker_opens_and_closes_in_all_partitions(admin: Any, connection: Connection, start: Any):
    works = False
    async with Queue("spread", connection, partitions=4) as queue:

        @queue.task(breaker=Breaker(rate=1, runs=2, open_for="300ms"), attempts=1)
        async def call() -> None:
            if not works:
                raise ConnectionError("the service is away")

        await start(queue, concurrency=1)
        for n in range(2):
            await queue.enqueue("call", id=f"bad{n}~2")

        async def opened() -> bool:
            found = await states(queue)
            return len(set(found)) == 1 and not found[0].startswith("0")

        await wait_until(opened, "all partitions to know")
        [row] = await queue.breakers()
        assert row.open_until is not None
        works = True
        jobs = [await queue.enqueue("call", id=f"good~{n}" if n else "good") for n in range(4)]
        await asyncio.gather(*(job.result(10) for job in jobs))
        # Each partition may have let one job through. The last one that closed is known to all.
        await wait_until(lambda: same(queue), "all partitions to close")
        [row] = await queue.breakers()
        assert row.state == "closed"


async def same(queue: Queue) -> bool:
    found = await states(queue)
    return len(set(found)) == 1 and found[0].startswith("0 ")


async def test_workers_pass_on_what_a_dead_one_did_not(
    admin: Any, connection: Connection, start: Any, monkeypatch: pytest.MonkeyPatch
):
    look_often(monkeypatch)
    async with Queue("spread", connection, partitions=3) as queue:

        @queue.task(breaker=Breaker(rate=1, runs=2, open_for="1h"))
        async def call() -> None: ...

        await start(queue)
        await call.enqueue()
        other = queue.store.parts[1]
        await wait_until(lambda: has_breaker(other), "the declaration")
        row = await other.do(other.breaker("trip", "call", "0"))
        assert row.startswith(b"1.000000 2 3600000 ")

        async def opened() -> bool:
            return set(await states(queue)) == {" ".join(row.decode().split(" ")[3:5])}

        await wait_until(opened, "all partitions to know")


async def has_breaker(part: Store) -> bool:
    return b"call" in await part.breaker_names()


async def test_operators_trip_and_reset_the_breaker_of_all_partitions(admin: Any, connection: Connection):
    async with Queue("spread", connection, partitions=3) as queue:

        @queue.task(breaker=Breaker(rate=1, runs=2))
        async def call() -> None: ...

        row = await queue.trip_breaker("call", "1h")
        assert row.state == "open"
        assert len(set(await states(queue))) == 1
        held = [await queue.enqueue("call", id=f"held~{n}" if n else "held") for n in range(3)]
        assert {(await job.row()).state for job in held} == {"held"}
        # A partition that is new, or was declared later, follows the state of the others.
        await queue.set_partitions(4)
        assert len(set(await states(queue))) == 1
        row = await queue.reset_breaker("call")
        assert (row.state, len(set(await states(queue)))) == ("closed", 1)
