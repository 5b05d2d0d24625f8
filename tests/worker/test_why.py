"""Why a job does not run: each question that users ask about a job that waits, with real workers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from jobq import (
    Breaker,
    Concurrency,
    JobNotFound,
    Queue,
    Rate,
    RateLimited,
    Reason,
    ReasonCode,
    Snooze,
    State,
    Unique,
    Worker,
)
from jobq.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools import Gate

    from tests.conftest import Until

C = ReasonCode


async def reasons(queue: Queue, job: Any = None) -> list[Reason]:
    return (await queue.why(None if job is None else job.id)).reasons


async def codes(queue: Queue, job: Any = None) -> list[ReasonCode]:
    return [reason.code for reason in await reasons(queue, job)]


async def alive(queue: Queue) -> bool:
    return any(row.alive for row in await queue.workers())


async def test_a_paused_queue_comes_before_all_other_reasons(queue: Queue, start: Callable[..., Any]):
    job = await queue.enqueue("nobody")
    assert await codes(queue, job) == [C.NO_WORKER]
    await queue.pause()
    await queue.close_limit("queue", 60)
    paused, closed, worker = await reasons(queue, job)
    assert (paused.code, closed.code, worker.code) == (C.QUEUE_PAUSED, C.QUEUE_CLOSED, C.NO_WORKER)
    now = queue.store.now_ms()
    assert paused.since == pytest.approx(now, abs=60_000)
    assert closed.until == pytest.approx(now + 60_000, abs=30_000)
    assert (await queue.why(job.id)).starts_in_ms is None
    assert await codes(queue) == [C.QUEUE_PAUSED, C.QUEUE_CLOSED, C.NO_WORKER]


async def test_a_closed_queue_opens_at_a_known_time(queue: Queue, start: Callable[..., Any], until: Until):
    @queue.task
    async def send() -> None: ...

    await queue.close_limit("queue", 60)
    await start()
    await until(lambda: alive(queue), "the worker to be known")
    why = await queue.why((await send.enqueue()).id)
    assert [reason.code for reason in why.reasons] == [C.QUEUE_CLOSED]
    assert why.starts_in_ms == pytest.approx(60_000, abs=30_000)


async def test_workers_run_but_none_knows_the_type(queue: Queue, start: Callable[..., Any], until: Until):
    @queue.task
    async def report() -> None: ...

    async with Queue("test", queue.store.connection) as other:
        await start()
        await until(lambda: alive(queue), "the worker to be known")
        job = await other.enqueue("send", delay=3600)
        delayed, unserved = await reasons(other, job)
        assert (delayed.code, unserved.code) == (C.DELAYED, C.TYPE_UNSERVED)
        assert (unserved.type, unserved.types) == ("send", ["report"])
        assert (await other.why(job.id)).starts_in_ms is None
        # A worker takes it, does not know its type, and parks it.
        await other.promote(job.id)
        await until(lambda: is_parked(other, job.id), "the job to be parked")
        parked = (await reasons(other, job))[0]
        assert (parked.code, parked.types) == (C.PARKED, ["report"])
        assert parked.until is not None
        assert [(one.code, one.count) for one in await reasons(other) if one.code is C.PARKED] == [(C.PARKED, 1)]


async def is_parked(queue: Queue, job_id: str) -> bool:
    return (await queue.why(job_id)).reasons[0].code is C.PARKED


async def test_all_slots_are_busy_and_how_long_such_jobs_take(queue: Queue, start: Callable[..., Any], gate: Gate):
    @queue.task
    async def quick() -> None: ...

    @queue.task
    async def slow() -> None:
        await gate.passing()

    worker = await start(concurrency=2)
    await (await quick.enqueue()).result(10)
    for _ in range(2):
        await slow.enqueue()
        await gate.arrival()
    urgent, first, second = [await slow.options(priority=n).enqueue() for n in (-1, 0, 0)]
    busy, behind = await reasons(queue, second)
    assert (busy.code, busy.count, busy.limit) == (C.SLOTS_BUSY, 2, 2)
    assert busy.usual_ms is not None
    assert (behind.code, behind.ahead, behind.urgent, behind.priority) == (C.BEHIND, 2, 1, 0)
    assert await codes(queue, urgent) == [C.SLOTS_BUSY]
    assert await codes(queue) == [C.SLOTS_BUSY]
    [running] = await reasons(queue, (await queue.page(State.ACTIVE)).jobs[0])
    assert (running.code, running.worker, running.attempt) == (C.RUNNING, worker.name, 1)
    gate.open()
    await first.result(10)
    assert await codes(queue, first) == [C.COMPLETED]


async def test_slots_that_are_kept_for_urgent_jobs_do_not_count(queue: Queue, start: Callable[..., Any], gate: Gate):
    @queue.task
    async def work() -> None:
        await gate.passing()

    await start(concurrency=3, reserve={"priority<0": 1})
    for _ in range(2):
        await work.enqueue()
        await gate.arrival()
    [busy] = await reasons(queue, await work.enqueue())
    assert (busy.code, busy.count, busy.limit) == (C.SLOTS_BUSY, 2, 2)


async def test_a_full_key_and_a_rate_with_jobs_before(queue: Queue, start: Callable[..., Any], gate: Gate):
    tenant = Concurrency(2, by="tenant", name="tenant")

    @queue.task(limits=[tenant, Rate(1, per="1h", burst=3, name="hourly")])
    async def send(tenant: str) -> None:
        await gate.passing(tenant)

    @queue.task
    async def quick() -> None: ...

    await start()
    await (await quick.enqueue()).result(10)  # Now jobq knows how long jobs take.
    jobs = await send.enqueue_many([{"tenant": "a"}] * 5)
    for _ in range(2):
        await gate.arrival()
    [full] = await reasons(queue, jobs[4])
    assert (full.code, full.rule, full.key, full.count, full.limit) == (C.CONCURRENCY_FULL, "tenant", "tenant:a", 2, 2)
    assert full.ahead == 2
    assert await codes(queue, jobs[2]) == [C.CONCURRENCY_FULL]
    await send.enqueue(tenant="b")
    await gate.arrival()
    # All tokens of the hour are used up now, too. The key that the job stands under comes first.
    full, spent = await reasons(queue, jobs[4])
    assert (full.code, spent.code, spent.rule, spent.key) == (C.CONCURRENCY_FULL, C.RATE_SPENT, "hourly", "hourly")
    now = queue.store.now_ms()
    assert spent.until == pytest.approx(now + 3_600_000, abs=60_000)
    third = (await send.enqueue_many([{"tenant": "c"}] * 3))[2]
    why = await queue.why(third.id)
    [spent] = why.reasons
    assert (spent.code, spent.ahead, spent.limit) == (C.RATE_SPENT, 2, 1)
    # The line of tenant a waits for another key. So two jobs and this one take the next three tokens.
    assert why.starts_in_ms == pytest.approx(3 * 3_600_000, abs=60_000)


async def test_a_rule_that_allows_nothing(queue: Queue, start: Callable[..., Any], until: Until):
    await queue.set_limit("stop", concurrency=0)

    @queue.task(limits=["stop"])
    async def send() -> None: ...

    await start()
    job = await send.enqueue()
    await until(lambda: is_held_by(queue, job.id, C.CONCURRENCY_FULL), "a worker to look at the job")
    why = await queue.why(job.id)
    assert why.reasons[0].limit == 0
    assert why.starts_in_ms is None
    assert await codes(queue) == [C.ONLY_HELD]


async def is_held_by(queue: Queue, job_id: str, code: ReasonCode) -> bool:
    return [reason.code for reason in (await queue.why(job_id)).reasons] == [code]


async def test_a_key_that_a_handler_closed(queue: Queue, start: Callable[..., Any], until: Until):
    @queue.task(limits=[Concurrency(5, by="tenant", name="tenant")])
    async def send(tenant: str) -> None:
        raise RateLimited(retry_after=3600, scope="key")

    await start()
    first = await send.enqueue(tenant="a")
    await until(lambda: is_held_by(queue, first.id, C.KEY_CLOSED), "the key to be closed")
    second = await send.enqueue(tenant="a")
    await until(lambda: is_held_by(queue, second.id, C.KEY_CLOSED), "a worker to look at the job")
    [closed] = await reasons(queue, second)
    assert (closed.rule, closed.key, closed.ahead) == ("tenant", "tenant:a", 1)
    why = await queue.why(first.id)
    assert why.starts_in_ms == pytest.approx(3_600_000, abs=60_000)
    assert why.reasons[0].until == pytest.approx(queue.store.now_ms() + 3_600_000, abs=60_000)


async def test_an_open_breaker_and_one_that_finds_out(queue: Queue, start: Callable[..., Any], until: Until):
    works = asyncio.Event()

    @queue.task(breaker=Breaker(rate=0.5, runs=1, open_for=3600), attempts=1)
    async def call() -> None:
        await works.wait()

    await start()
    await until(queue.breakers, "the breaker to be declared")
    await queue.trip_breaker("call", 3600)
    jobs = [await call.enqueue() for _ in range(3)]
    await until(lambda: is_held_by(queue, jobs[0].id, C.BREAKER_OPEN), "a worker to look at the job")
    [opened] = await reasons(queue, jobs[1])
    assert (opened.code, opened.type, opened.ahead) == (C.BREAKER_OPEN, "call", 1)
    assert (await queue.why(jobs[0].id)).starts_in_ms == pytest.approx(3_600_000, abs=60_000)
    assert (await queue.why(jobs[1].id)).starts_in_ms is None
    await queue.trip_breaker("call", 0.01)
    await until(lambda: is_held_by(queue, jobs[0].id, C.RUNNING), "one job to run")
    assert await codes(queue, jobs[1]) == [C.BREAKER_HALF_OPEN]
    works.set()
    await jobs[2].result(10)


async def test_the_turn_of_a_group(queue: Queue, start: Callable[..., Any], gate: Gate):
    @queue.task(group="{tenant}")
    async def send(tenant: str) -> None:
        await gate.passing()

    jobs = [await send.enqueue(tenant=tenant) for tenant in ("a", "a", "a", "b", "a")]
    await start(concurrency=1)
    await gate.arrival()
    busy, turn = await reasons(queue, jobs[4])
    assert (busy.code, turn.code, turn.group, turn.groups) == (C.SLOTS_BUSY, C.GROUP_TURN, "a", 1)
    assert turn.ahead == 3
    await queue.set_group("a", paused=True)
    first = (await reasons(queue, jobs[1]))[0]
    assert (first.code, first.group) == (C.GROUP_PAUSED, "a")
    assert (await queue.why(jobs[1].id)).starts_in_ms is None
    assert C.GROUP_PAUSED not in await codes(queue, jobs[3])


async def test_delayed_retrying_snoozed_and_rate_limited(queue: Queue, start: Callable[..., Any], until: Until):
    @queue.task(backoff=[3600], attempts=5)
    async def act(what: str) -> None:
        if what == "snooze":
            raise Snooze(3600)
        if what == "rate":
            raise RateLimited(retry_after=3600, scope="job")
        raise ValueError("no luck")

    await start()
    later = await act.options(delay=3600).enqueue(what="fail")
    for what, code in (("fail", C.RETRYING), ("snooze", C.SNOOZED), ("rate", C.RATE_LIMITED)):
        job = await act.enqueue(what=what)
        await until(lambda job=job, code=code: is_held_by(queue, job.id, code), "the run to end")
        why = await queue.why(job.id)
        # A backoff has jitter.
        assert why.reasons[0].until == pytest.approx(queue.store.now_ms() + 3_000_000, abs=1_000_000)
        assert why.starts_in_ms == pytest.approx(3_000_000, abs=1_000_000)
        if code is C.RETRYING:
            assert (why.reasons[0].attempt, why.reasons[0].limit) == (2, 5)
            assert "ValueError: no luck" in why.reasons[0].detail
    assert await codes(queue, later) == [C.DELAYED]
    [only] = await reasons(queue)
    assert (only.code, only.count) == (C.ONLY_DELAYED, 4)
    assert only.until is not None


async def test_a_job_behind_the_running_one_with_its_key(queue: Queue, start: Callable[..., Any], gate: Gate):
    @queue.task(unique=Unique(by=("user",), while_="unfinished", on="keep_last"))
    async def sync(user: int) -> None:
        await gate.passing()

    await start()
    first = await sync.enqueue(user=1)
    await gate.arrival()
    second = await sync.enqueue(user=1)
    assert (await queue.why(second.id)).state is State.BLOCKED
    [behind] = await reasons(queue, second)
    assert (behind.code, behind.job) == (C.KEY_RUNNING, first.id)
    assert behind.since == pytest.approx(queue.store.now_ms(), abs=30_000)
    # Nobody knows yet how long such jobs take.
    assert (await queue.why(second.id)).starts_in_ms is None


async def test_jobs_that_have_ended_say_how(queue: Queue, start: Callable[..., Any], until: Until):
    @queue.task(attempts=1)
    async def act(fails: bool) -> None:
        if fails:
            raise ValueError("no\nluck")

    await start()
    bad = await act.enqueue(fails=True)
    await until(lambda: is_held_by(queue, bad.id, C.FAILED), "the job to fail")
    [failed] = await reasons(queue, bad)
    assert failed.detail == (
        "It has failed for good after attempt 1 of 1: ValueError: no luck. A retry gives it fresh attempts."
    )
    killed = await act.options(delay=60).enqueue(fails=False)
    await killed.kill()
    assert await codes(queue, killed) == [C.KILLED]
    good = await act.enqueue(fails=False)
    await good.result(10)
    why = await queue.why(good.id)
    assert ([reason.code for reason in why.reasons], why.starts_in_ms) == ([C.COMPLETED], None)
    assert await codes(queue) == [C.NO_JOBS]
    with pytest.raises(JobNotFound):
        await queue.why("nothing")


async def test_a_job_that_expires_before_it_would_start(queue: Queue, start: Callable[..., Any], until: Until):
    @queue.task
    async def send() -> None: ...

    await start()
    await until(lambda: alive(queue), "the worker to be known")
    at = queue.store.now_ms()
    job = await send.options(delay=60, expires=600).enqueue()
    why = await queue.why(job.id)
    assert [reason.code for reason in why.reasons] == [C.DELAYED, C.EXPIRES]
    assert why.reasons[1].until == pytest.approx(at + 600_000, abs=30_000)
    assert why.starts_in_ms == pytest.approx(60_000, abs=30_000)
    await queue.close_limit("queue", 3600)
    why = await queue.why(job.id)
    assert why.reasons[-1].detail.endswith("before it would start.")
    assert why.starts_in_ms is None
    late = await send.options(deadline=0.001).enqueue()
    await until(lambda: is_held_by(queue, late.id, C.EXPIRED), "the job to expire")


async def test_jobs_that_a_limit_ended(queue: Queue, start: Callable[..., Any], gate: Gate):
    @queue.task(limits=[Concurrency(1, name="drop", over="drop")])
    async def one() -> None:
        await gate.passing()

    @queue.task(limits=[Concurrency(1, name="replace", over="replace_oldest")])
    async def newest() -> None:
        await gate.passing()

    await start()
    for task, code in ((one, C.DROPPED), (newest, C.REPLACED)):
        await task.enqueue()
        await gate.arrival()
        second = await task.enqueue()
        await task.enqueue()
        assert await codes(queue, second) == [code]


async def test_the_workers_lease_has_run_out(redis_url: str):
    clock = ManualClock()
    async with Queue("test", redis_url, clock=clock) as queue:
        job = await queue.enqueue("send")
        await queue.store.do(queue.store.claim(1, 30_000, "w", "w:0", 1, repeated=False))
        assert await codes(queue, job) == [C.RUNNING]
        clock.advance(31)
        [silent] = await reasons(queue, job)
        assert (silent.code, silent.worker, silent.until) == (C.WORKER_SILENT, "w", clock.now - 1000)


async def test_the_rule_of_the_whole_queue(redis_url: str, gate: Gate):
    async with Queue("test", redis_url, limits=[Concurrency(1)]) as queue:

        @queue.task
        async def send() -> None:
            await gate.passing()

        async with Worker(queue, grace=0.1) as worker:
            worker.start()
            await send.enqueue()
            await gate.arrival()
            job = await send.enqueue()
            [full] = await reasons(queue, job)
            assert (full.code, full.key, full.count, full.limit) == (C.CONCURRENCY_FULL, "queue", 1, 1)
            assert await codes(queue) == [C.CONCURRENCY_FULL]
            gate.open()


async def test_synchronous_code_asks_too(queue: Queue, start: Callable[..., Any]):
    @queue.task
    async def send() -> None: ...

    await start()
    job = await send.enqueue()
    await job.result(10)
    why = await asyncio.to_thread(lambda: queue.sync().why(job.id))
    assert ([reason.code for reason in why.reasons], why.state) == ([C.COMPLETED], State.COMPLETED)


async def test_an_answer_of_a_job_that_a_worker_takes_next(redis_url: str):
    clock = ManualClock()
    async with Queue("test", redis_url, clock=clock) as queue:
        job = await queue.enqueue("send")
        info = b'{"id":"w","host":"h","pid":1,"queues":["test"],"types":["send"],"concurrency":5,"running":0,'
        await queue.store.do(queue.store.heartbeat("w", info + b'"started":1,"seen":1}'))
        why = await queue.why(job.id)
        assert ([reason.code for reason in why.reasons], why.starts_in_ms) == ([C.READY], 0)
        second = await queue.enqueue("send")
        [behind] = await reasons(queue, second)
        assert (behind.code, behind.ahead) == (C.BEHIND, 1)
        clock.advance(31)
        [silent] = await reasons(queue, job)
        assert (silent.code, silent.since) == (C.NO_WORKER, clock.now - 31_000)


async def test_damaged_values_do_not_hide_the_others(redis_url: str):
    async with Queue("test", redis_url, clock=ManualClock()) as queue:
        await queue.set_limit("r", concurrency=1, rate=Rate(1, per=1))
        job = await queue.enqueue("send", limits=["r"], group="g")
        for column, field, value in (
            ("meta", b"paused", b"x"), ("meta", b"closed", b"x"), ("meta", b"rule", b"x"), ("meta", b"virtual", b"x"),
            ("rules", b"r", b"1/1 1/0/0\nx"), ("groups", b"g", b"a b"), ("limits", job.id, b"@g\nr\n!send"),
            ("debts", b"r\0" + b"1", b"nan nan"), ("unserved", job.id, b"x y z"), ("unique", b"", b"x"),
            ("keys", job.id, b"\t\n"), ("weights", job.id, b"x\ny z"), ("workers_info", b"w", b"{"),
            ("breakers", b"send", b"x"), ("lines", b"@g", b"x"), ("lines", b"=@g\nr\n!send", b"f"),
            ("leases", b"l", b"x y"), ("jobs", b"c", b"{"), ("results", b"c", b"[1,2"),
        ):  # fmt: skip
            await queue.store.command(b"HSET", queue.store.keys[column], field, value)
        for column, member, score in (
            ("closed", b"r", b"inf"), ("closed", b"!send", b"5"), ("full_lines", b"r\0x", b"0"), ("active", b"l", b"1"),
            ("completed", b"c", b"1"), ("workers", b"w", b"1700000000000"), ("spent", b"r\0" + b"1", b"inf"),
        ):  # fmt: skip
            await queue.store.command(b"ZADD", queue.store.keys[column], score, member)
        assert (await codes(queue, job))[0] is C.QUEUE_PAUSED
        assert (await codes(queue))[0] is C.QUEUE_PAUSED


async def test_one_job_is_spoken_of_as_one(queue: Queue):
    await queue.enqueue("t", delay=60)
    (*_, only) = (await queue.why()).reasons
    assert only.detail.startswith("The only unfinished job is delayed; it is due in ")
    await queue.enqueue("t", delay=60)
    (*_, both) = (await queue.why()).reasons
    assert both.detail.startswith("All 2 unfinished jobs are delayed; the first one is due in ")
