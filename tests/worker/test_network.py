"""Redis is away, restarted, flushed or silent: no job is lost, and every wait is bounded."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from proxy import Proxy
from tools import listening

from jobq import Backoff, Queue, State, Worker
from jobq.engine.model.backoff import pause
from jobq.engine.store import lua
from jobq.engine.worker import waker
from jobq.errors import StoreUnavailable
from tests.conftest import CLUSTER, USER, Server
from tests.local_cluster import slot_of


@pytest.fixture
async def proxy(server: Any, redis_url: str):
    """A proxy in front of the emptied server. In a cluster: in front of the node that has the queue ``test``."""
    node = server.owner(slot_of("test")) if CLUSTER else None
    async with Proxy(redis_url) if node is None else Proxy(f"unix://{USER}{node.server.socket}", node.port) as proxy:
        yield proxy


@pytest.fixture
async def far(proxy: Proxy):
    """The queue ``test`` behind the proxy."""
    async with Queue("test", proxy.url) as queue:
        yield queue


def sha(script: str) -> bytes:
    found = lua.scripts()[script].sha
    return found.encode() if isinstance(found, str) else found


@pytest.mark.parametrize("after", [0, 7], ids=["whole reply", "half a reply"])
@pytest.mark.parametrize("script", ["claim", "complete", "reschedule", "fail"])
async def test_a_lost_reply_loses_no_job_and_runs_none_twice(
    proxy: Proxy, far: Queue, queue: Queue, start, until, script, after
):
    ran: Counter[int] = Counter()

    @far.task(attempts=2 if script == "reschedule" else 1)
    async def once(n: int) -> None:
        ran[n] += 1
        if script in ("reschedule", "fail") and ran[n] == 1:
            raise RuntimeError("once")

    await far.pause()
    await once.options(backoff=Backoff(type="fixed", delay=0, jitter=0)).enqueue_many([{"n": n} for n in range(30)])
    await start(far, concurrency=4)
    proxy.lose_reply(sha(script), after=after)
    await far.resume()

    async def ended() -> bool:
        stats = await queue.stats()
        return stats.completed + stats.failed == 30

    await until(ended)
    await proxy.lost.wait()
    stats = await queue.stats()
    assert (stats.completed, stats.failed) == ((0, 30) if script == "fail" else (30, 0))
    assert (stats.waiting, stats.delayed, stats.active) == (0, 0, 0)
    # The job was found by the same request, not by a lease that ran out.
    assert set(ran.values()) == {2 if script == "reschedule" else 1}
    assert len(ran) == 30


async def test_a_lost_reply_to_an_enqueue_enqueues_once(proxy: Proxy, far: Queue, queue: Queue):
    proxy.lose_reply(sha("enqueue"))
    job = await far.enqueue("any", {"n": 1})
    assert proxy.lost.is_set()
    assert (await queue.stats()).waiting == 1
    assert (await queue.get(job.id)).state is State.WAITING


async def test_no_calls_and_no_commands_are_answered_at_once(far: Queue):
    """No reply would ever come for them."""
    async with asyncio.timeout(2):
        assert await far.store.do_all([]) == []
        assert await far.store.trip() == []
        assert await far.store.commands() == []


async def test_enqueues_while_redis_is_away_raise_the_documented_errors(proxy: Proxy, far: Queue):
    @far.task
    async def any_(n: int) -> None: ...

    proxy.go_away()
    with pytest.raises(StoreUnavailable):
        await any_.enqueue_many([{"n": n} for n in range(1000)])  # Several trips, two at a time.
    with pytest.raises(StoreUnavailable):
        await asyncio.gather(*(any_.enqueue(n=n) for n in range(20)))
    proxy.come_back()
    await any_.enqueue(n=1)


async def test_a_lost_claim_is_asked_for_again(proxy: Proxy, far: Queue, queue: Queue, start, gate, until):
    @far.task
    async def slow(n: int) -> int:
        await gate.passing(n)
        return n

    await start(far, concurrency=1, lease=30)
    gate.open()
    for n in range(20):  # Whichever lane claims, the reply of a claim is lost each time.
        proxy.lose_reply(sha("claim"))
        job = await far.enqueue("slow", {"n": n})
        assert await job.result(5) == n
    assert (await queue.stats()).active == 0


async def test_outcomes_outlive_an_outage(proxy: Proxy, far: Queue, queue: Queue, start, gate, until):
    @far.task
    async def slow(n: int) -> int:
        await gate.passing(n)
        return n

    await start(far)
    jobs = await slow.enqueue_many([{"n": n} for n in range(5)])
    for _ in jobs:
        await gate.arrival()
    proxy.go_away()
    gate.open()
    await until(lambda: proxy.refused >= 3, "trips to fail")
    assert (await queue.stats()).active == 5
    proxy.come_back()
    assert [await job.result(10) for job in jobs] == list(range(5))
    assert (await queue.stats()).completed == 5


async def test_a_worker_wakes_and_receives_kills_again_after_its_connections_broke(
    proxy: Proxy, far: Queue, queue: Queue, start, gate, until, admin, monkeypatch
):
    monkeypatch.setattr(waker, "BLOCK", 60.0)  # Workers do not check for jobs by themselves during the test.

    @far.task
    async def slow(n: int) -> int:
        await gate.passing(n)
        return n

    worker = await start(far)
    for n in range(3):
        proxy.cut()
        job = await queue.enqueue("slow", {"n": n})
        assert await gate.arrival() == n
        await until(lambda: listening(admin))
        await queue.kill(job.id)
        await until(lambda: worker.running == 0, "the kill to be heard")


async def test_waiting_for_a_result_survives_a_reconnect(proxy: Proxy, far: Queue, queue: Queue, start, gate, until):
    @queue.task
    async def slow() -> str:
        await gate.passing()
        return "done"

    await start(queue)
    job = await far.enqueue("slow")
    waiting = asyncio.create_task(job.result(10))
    await gate.arrival()
    proxy.cut()
    gate.open()
    assert await waiting == "done"


@pytest.mark.usefixtures("impatient")
async def test_stop_while_redis_is_away_is_bounded(proxy: Proxy, far: Queue, queue: Queue, gate):
    @far.task
    async def slow() -> None:
        await gate.passing()

    async with asyncio.timeout(60), Worker(far, grace=0.2) as worker:
        worker.start()
        await far.enqueue("slow")
        await gate.arrival()
        proxy.go_away()
        worker.stop()
    stats = await queue.stats()
    assert stats.active == 1  # Its lease will run out, and another worker recovers it.


async def test_redis_restarts_in_the_middle(gate):
    own = Server("--appendonly", "yes", "--appendfsync", "always").start()
    try:
        async with Queue("test", own.url) as queue, Worker(queue, grace=1) as worker:

            @queue.task
            async def slow(n: int) -> int:
                await gate.passing(n)
                return n

            @queue.task
            async def quick(n: int) -> int:
                return n

            worker.start()
            running = await slow.enqueue(n=1)
            delayed = await quick.options(delay=0.5).enqueue(n=2)
            await gate.arrival()
            waiting = asyncio.create_task(running.result(20))
            own.kill()
            own.start()  # The scripts are gone, and the data is not.
            gate.open()
            assert await waiting == 1
            assert await delayed.result(10) == 2
            assert await (await quick.enqueue(n=3)).result(10) == 3
            stats = await queue.stats()
            assert (stats.completed, stats.failed, stats.active) == (3, 0, 0)
    finally:
        own.stop()


async def test_script_flush_in_the_middle(queue: Queue, start, until, admin):
    @queue.task
    async def quick(n: int) -> int:
        return n

    await start(concurrency=5)
    jobs = []
    for n in range(30):
        jobs.append(await quick.enqueue(n=n))
        if n % 5 == 0:
            await admin.command(b"SCRIPT", b"FLUSH")
    assert [await job.result(10) for job in jobs] == list(range(30))


def test_pauses_grow_and_stay_numbers_after_hours_of_outage():
    assert pause(1) < pause(2) < pause(5) <= 2.0
    assert pause(100_000) == 2.0


async def test_a_small_outcome_is_sent_until_it_arrives(proxy, far: Queue, start):
    """The network is bad and the job is not: its work is done, and it must not end in failed."""

    @far.task(attempts=1)
    async def work() -> str:
        return "the small result"

    await start(far, concurrency=1)
    proxy.lose_requests(b"the small result", 12)
    job = await work.enqueue()
    assert await job.result(30) == "the small result"
    assert proxy.refusals == 0
