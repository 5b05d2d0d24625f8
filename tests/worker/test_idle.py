"""Why a worker is idle: its heartbeat says why its last claim brought nothing, without a call of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from jobq import Concurrency, Queue, Rate, ReasonCode, WorkerRow
from jobq.engine.worker import waker

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools import Gate, Logs

    from tests.conftest import Until


async def described(queue: Queue) -> WorkerRow:
    """What its last heartbeat wrote."""
    [row] = await queue.workers()
    return row


async def idles(queue: Queue, until: Until, code: str) -> int | None:
    """Wait until the worker gives this reason. Returns when that ends."""

    async def told() -> bool:
        return [row.idle for row in await queue.workers()] == [code]

    await until(told, f"the worker to say {code}")
    return (await described(queue)).idle_until


async def test_what_a_worker_says_about_an_empty_claim(
    queue: Queue, start: Callable[..., Any], until: Until, logs: Logs, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(waker, "BLOCK", 0.05)  # Each wait for a job ends soon, so the worker looks again.
    held = Concurrency(1, name="held")

    @queue.task(limits=[held])
    async def send() -> None: ...

    await queue.set_limit("held", concurrency=0)
    worker = await start(lease=1)
    assert await idles(queue, until, "no_jobs") is None
    assert (worker.state, worker.idle) == ("running", {"test": ReasonCode.NO_JOBS})
    later = await send.options(delay=3600).enqueue()
    due = await idles(queue, until, "only_delayed")
    assert due == pytest.approx(queue.store.now_ms() + 3_600_000, abs=60_000)
    await queue.promote(later.id)
    assert await idles(queue, until, "only_held") is None
    await queue.pause()
    assert await idles(queue, until, "queue_paused") is None
    await queue.resume()
    await queue.close_limit("queue", 3600)
    opens = await idles(queue, until, "queue_closed")
    assert opens == pytest.approx(queue.store.now_ms() + 3_600_000, abs=60_000)
    for code in ("no_jobs", "only_delayed", "only_held", "queue_paused", "queue_closed"):
        assert logs.all(f"A claim from queue test brought nothing: {code}", "DEBUG")


async def test_the_queues_own_rule(redis_url: str, start: Callable[..., Any], until: Until, gate: Gate):
    async with Queue("test", redis_url, limits=[Concurrency(1), Rate(2, per="1h", burst=2)]) as queue:

        @queue.task
        async def send() -> None:
            await gate.passing()

        await start(queue, lease=1)
        await send.enqueue_many([{}] * 3)
        await gate.arrival()
        assert await idles(queue, until, "") is None, "the last claim brought a job"
        await send.enqueue()
        assert await idles(queue, until, "concurrency_full") is None
        gate.open()
        token = await idles(queue, until, "rate_spent")
        assert token is not None


async def test_slots_that_run_jobs_of_other_queues(redis_url: str, start: Callable[..., Any], gate: Gate, until: Until):
    async with Queue("one", redis_url) as one, Queue("two", redis_url) as two:

        @one.task(slots=2)
        async def heavy() -> None:
            await gate.passing()

        @two.task
        async def light() -> None:
            await gate.passing()

        await start(one, two, concurrency=5, lease=1)
        await heavy.enqueue()
        await light.enqueue()
        for _ in range(2):
            await gate.arrival()

        async def told() -> bool:
            rows = [await described(one), await described(two)]
            return [(row.elsewhere, row.running) for row in rows] == [(1, 2), (2, 2)]

        await until(told, "a heartbeat")
