"""Jobs that must start or end by a time: no late start, an end in failed that says why, and a second chance by hand."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import isolated
import pytest

from jobq import (
    Concurrency,
    Context,
    InvalidJob,
    JobExpired,
    JobFailed,
    JobNotFound,
    KeyTaken,
    Queue,
    RateLimited,
    ReasonCode,
    Snooze,
    State,
    Unique,
    inject,
)
from jobq.engine.queue.late import end_late
from jobq.testing import FakeContext

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from jobq import Connection

HOUR = 3_600_000
C = ReasonCode


class Clock:
    """Time as an argument."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def slow_queue(connection: Connection, clock: Clock) -> AsyncIterator[Queue]:
    """A queue whose time the test sets."""
    async with Queue("test", connection, clock=clock) as queue:
        yield queue


@pytest.mark.parametrize(
    "given",
    [5, timedelta(seconds=5), "5s", datetime.fromtimestamp(1_700_000_005, UTC)],
    ids=["s", "delta", "text", "at"],
)
@pytest.mark.parametrize("option", ["expires", "deadline"])
async def test_the_four_forms_of_a_time(slow_queue: Queue, clock: Clock, given: Any, option: str):
    job = await slow_queue.enqueue("later", **{option: given})
    row = await job.row()
    assert getattr(row, f"{option}_at") == clock.now + 5000
    clock.now += 4999
    await end_late(slow_queue)
    assert (await job.row()).state is State.WAITING
    clock.now += 1
    await end_late(slow_queue)
    row = await job.row()
    assert (row.state, row.attempts_made, row.errors[0].type) == (State.FAILED, 0, "Expired")
    with pytest.raises(JobExpired, match="did not start within its expires" if option == "expires" else "deadline"):
        await job.result(5)
    stats = await slow_queue.stats()
    assert (stats.expired_total, stats.failed_total) == (1, 1)
    assert (await slow_queue.briefs(State.FAILED)).jobs[0].error.type == "Expired"  # pyright: ignore[reportOptionalMemberAccess]


async def test_it_ends_wherever_it_waits(slow_queue: Queue, clock: Clock):
    queue = slow_queue
    await queue.set_limit("one", concurrency=1)
    waits: dict[str, Any] = {}
    held: dict[str, Any] = {"limits": ["one"]}
    for name, options in {"waiting": {}, "delayed": {"delay": 3}, "held": held, "group": held | {"group": "g"}}.items():
        waits[name] = await queue.enqueue("later", expires=5, **options)
    await queue.pause()
    clock.now += 5000
    await end_late(queue)
    assert [(await job.row()).state for job in waits.values()] == [State.FAILED] * 4
    assert not (await queue.stats()).held


async def test_its_key_is_free(slow_queue: Queue, clock: Clock):
    key = Unique(key="k", while_="unfinished")
    first = await slow_queue.enqueue("later", expires=5, unique=key)
    clock.now += 5000
    await end_late(slow_queue)
    second = await slow_queue.enqueue("later", unique=key)
    assert (second.duplicate, second.id == first.id) == (False, False)


async def test_a_claim_starts_no_late_job_and_the_others_follow(queue: Queue, start):
    ran: list[int] = []
    told: list[tuple[str, int, str]] = []

    @queue.task
    async def send(n: int) -> None:
        ran.append(n)

    @queue.on("final_failure")
    async def note(event: Any) -> None:
        told.append((event.job.id, event.attempt, event.error.type))

    late = [await send.options(expires=0.001).enqueue(n) for n in range(3)]
    await asyncio.sleep(0.01)  # all times are over, by whatever clock
    last = await send.enqueue(9)
    await start(lease=30)  # so its sweep comes in five seconds
    await last.result(3)
    for job in late:
        with pytest.raises(JobExpired):
            await job.result(3)
    assert ran == [9]
    await queue.hook_calls.ended()
    assert sorted(told) == sorted((job.id, 0, "Expired") for job in late)


async def test_a_sweep_ends_those_of_a_paused_queue(queue: Queue, start):
    await queue.pause()
    job = await queue.enqueue("unknown", expires=0.05)
    await start(lease=1)
    with pytest.raises(JobExpired):
        await job.result(5)


async def test_a_started_job_is_not_late_but_one_that_was_handed_back_is(slow_queue: Queue, clock: Clock):
    queue = slow_queue
    job = await queue.enqueue("later", expires=5)
    queue.store.limited = True
    claimed = await queue.store.do(queue.store.claim(1, 30_000, "w", "w:0", 1, repeated=False))
    assert claimed is not None
    clock.now += 6000
    await end_late(queue)
    assert (await job.row()).state is State.ACTIVE
    await queue.store.do(queue.store.release([claimed.ids[0], claimed.token]))
    claimed = await queue.store.do(queue.store.claim(1, 30_000, "w", "w:0", 2, repeated=False))
    assert claimed is not None
    assert claimed.ids == [], "no attempt was charged, so it has not started in time"
    await end_late(queue)
    assert (await job.row()).state is State.FAILED


async def test_after_a_first_attempt_only_the_deadline_counts(slow_queue: Queue, clock: Clock):
    queue = slow_queue
    jobs = [await queue.enqueue("later", expires=5), await queue.enqueue("later", expires=5, deadline=6)]
    queue.store.limited = True
    claimed = await queue.store.do(queue.store.claim(2, 30_000, "w", "w:0", 1, repeated=False))
    assert claimed is not None
    for job_id in claimed.ids:
        await queue.store.do(queue.store.reschedule([job_id, claimed.token, 1, HOUR, b"{}"]))
    clock.now += 6000
    await end_late(queue)
    assert [(await job.row()).state for job in jobs] == [State.DELAYED, State.FAILED]


async def test_a_retry_by_hand_is_a_new_chance(queue: Queue, start):
    seen: list[Any] = []

    @queue.task
    async def send(ctx: Context = inject) -> str:
        seen.append(ctx.deadline)
        return "sent"

    job = await send.options(expires=0.001, deadline=0.001).enqueue()
    await asyncio.sleep(0.01)
    await end_late(queue)
    assert (await job.row()).state is State.FAILED
    row = await job.row()
    assert row.expires_at == row.deadline_at is not None, "a job that has ended shows when it had to start"
    await queue.retry(job.id)
    row = await job.row()
    assert (row.expires_at, row.deadline_at) == (None, None)
    assert C.LATE not in [reason.code for reason in (await queue.why(job.id)).reasons]
    await start()
    assert await job.result(5) == "sent"
    assert seen == [None], "the deadline has passed, and counts no more"


async def test_a_retried_job_shows_the_deadline_that_lies_ahead(slow_queue: Queue, clock: Clock):
    job = await slow_queue.enqueue("later", expires=60, deadline=90)
    await job.kill()
    await slow_queue.retry(job.id)
    row = await job.row()
    assert (row.expires_at, row.deadline_at) == (None, clock.now + 90_000)


async def test_a_late_job_says_so_until_somebody_ends_it(slow_queue: Queue, clock: Clock):
    queue = slow_queue
    queue.store.limited = True
    job, second = [await queue.enqueue("later", expires=5, deadline=5) for _ in range(2)]
    claimed = await queue.store.do(queue.store.claim(1, 30_000, "w", "w:0", 1, repeated=False))
    assert claimed is not None
    clock.now += 6000
    why = await queue.why(second.id)
    assert (why.state, why.reasons[0].code, why.starts_in_ms) == (State.WAITING, C.LATE, None)
    assert why.reasons[0].until == clock.now - 1000
    running, late = (await queue.why(job.id)).reasons
    assert (running.code, late.code) == (C.RUNNING, C.LATE)
    assert "its worker cancels the run" in late.detail
    await end_late(queue)
    assert [reason.code for reason in (await queue.why(second.id)).reasons] == [C.EXPIRED]


async def test_a_run_is_cancelled_at_its_deadline_and_not_tried_again(queue: Queue, start, gate):
    seen: list[Any] = []

    @queue.task(attempts=5)
    async def slow(ctx: Context = inject) -> None:
        seen.append(ctx.deadline)
        await gate.passing(ctx)

    await start()
    job = await slow.options(deadline=0.3, timeout=50).enqueue()
    with pytest.raises(JobFailed, match="DeadlineExceeded: the job's deadline came while it ran"):
        await job.result(5)
    row = await job.row()
    assert (row.state, row.attempts_made, row.deadline_at) == (State.FAILED, 1, row.enqueued_at + 300)
    assert seen == [datetime.fromtimestamp((row.enqueued_at + 300) / 1000, UTC)]


async def test_the_timeout_still_counts_if_it_comes_first(queue: Queue, start, gate):
    @queue.task(attempts=1)
    async def slow(ctx: Context = inject) -> None:
        await gate.passing(ctx)

    await start()
    job = await slow.options(deadline=60, timeout=0.1).enqueue()
    with pytest.raises(JobFailed, match=r"took longer than its timeout of 0\.1 s"):
        await job.result(5)


async def test_a_def_handler_sees_its_deadline(queue: Queue, start, gate):
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    @queue.task
    def slow(ctx: Context = inject) -> None:
        while not ctx.lost:
            pass
        loop.call_soon_threadsafe(ended.set)

    await start()
    job = await slow.options(deadline=0.2).enqueue()
    with pytest.raises(JobFailed, match="DeadlineExceeded"):
        await job.result(5)
    async with asyncio.timeout(5):
        await ended.wait()


async def test_an_isolated_handler_is_killed_at_its_deadline(queue: Queue, start, tmp_path: Path):
    task = queue.task(isolate="process", attempts=3)(isolated.hang)
    await start()
    job = await task.options(deadline=1.5).enqueue(str(tmp_path / "pid"))
    with pytest.raises(JobFailed, match="DeadlineExceeded"):
        await job.result(10)


async def test_no_retry_after_the_deadline(queue: Queue, start):
    @queue.task(attempts=5, backoff=[60])
    async def broken() -> None:
        raise ValueError("boom")

    await start()
    job = await broken.options(deadline=30).enqueue()
    with pytest.raises(
        JobFailed, match=r"ValueError: boom \(not tried again: the next attempt would start after"
    ) as failed:
        await job.result(5)
    assert failed.value.type == "ValueError"


async def test_no_snooze_beyond_the_deadline_but_a_closed_key_waits_for_it(queue: Queue, start, until):
    @queue.task
    async def later() -> None:
        raise Snooze(60, "not yet")

    @queue.task
    async def limited() -> None:
        raise RateLimited(retry_after=60)

    await start(lease=1)
    job = await later.options(deadline=30).enqueue()
    with pytest.raises(JobFailed, match="DeadlineExceeded: the handler snoozed its job beyond the job's deadline: not"):
        await job.result(5)
    job = await limited.options(deadline=0.5).enqueue()
    with pytest.raises(JobExpired):
        await job.result(5)


async def test_a_server_ends_those_of_a_queue_without_workers(queue: Queue, monkeypatch: pytest.MonkeyPatch):
    from jobq.http import tidy

    monkeypatch.setattr(tidy, "TIDY_SECONDS", 0.01)
    job = await queue.enqueue("unknown", expires=0.02)
    task = asyncio.create_task(tidy.tidy(queue))
    with pytest.raises(JobExpired):
        await job.result(5)
    task.cancel()


async def test_a_schedule_counts_no_failure(slow_queue: Queue, clock: Clock):
    from jobq.engine.queue.firing import read_ended

    job = await slow_queue.enqueue("later", expires=5)
    clock.now += 5000
    await end_late(slow_queue)
    assert (await read_ended(slow_queue.store, [job.id]))[job.id][0] == "expired"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"expires": 0}, "expires is 0: it takes 0.001 to"),
        ({"deadline": "soon"}, "deadline: 'soon' is not a time: give seconds as a number, a timedelta, or a text"),
        ({"expires": 5, "delay": 5}, "expires is 5 s and delay is 5 s, so the job could never start"),
        ({"expires": datetime.now()}, "expires has no timezone"),
        (
            {"deadline": datetime(2030, 1, 1, tzinfo=UTC), "run_at": datetime(2031, 1, 1, tzinfo=UTC)},
            "run_at is not before deadline, so the job could never start",
        ),
    ],
)
def test_bad_times(options: Any, text: str):
    with pytest.raises(InvalidJob, match=text):
        Queue("test").new("later", **options)


async def test_a_repeated_enqueue_with_its_own_id_is_the_same_job(slow_queue: Queue, clock: Clock):
    first = await slow_queue.enqueue("later", id="mine", expires="1m")
    clock.now += 10
    again = await slow_queue.enqueue("later", id="mine", expires="1m")
    assert again.id == first.id
    assert (await first.row()).expires_at == clock.now - 10 + 60_000


def test_the_context_of_a_test_has_no_deadline():
    assert FakeContext().deadline is None


async def test_a_bulk_is_spread_evenly_and_in_order(slow_queue: Queue, clock: Clock):
    queue = slow_queue

    @queue.task
    async def send(n: int) -> None: ...

    jobs = await send.enqueue_many([{"n": n} for n in range(4)], spread="20s")
    rows = [await job.row() for job in jobs]
    assert [row.run_at and row.run_at - clock.now for row in rows] == [None, 5000, 10_000, 15_000]
    assert [row.state for row in rows] == [State.WAITING] + [State.DELAYED] * 3
    jobs = await send.options(delay=60, expires=80).enqueue_many([{"n": 0}, {"n": 1}], spread=20)
    assert [row.run_at and row.run_at - clock.now for row in [await job.row() for job in jobs]] == [60_000, 70_000]
    at = datetime.fromtimestamp(clock.now / 1000 + 100, UTC)
    jobs = await send.options(run_at=at).enqueue_many([{"n": 0}, {"n": 1}], spread=20)
    assert [row.run_at and row.run_at - clock.now for row in [await job.row() for job in jobs]] == [100_000, 110_000]
    news = [queue.new("send", {"n": n}, expires=10) for n in range(2)]
    with pytest.raises(InvalidJob, match="expires is 10 s and the spread puts a job off by 10 s, so it could never"):
        await queue.enqueue_many(news, spread=20)
    with pytest.raises(InvalidJob, match="spread: 'slow' is not a time"):
        await queue.enqueue_many(news, spread="slow")
    assert await queue.enqueue_many([], spread=20) == []


async def test_a_spread_bulk_that_is_sent_again_is_the_same_jobs(slow_queue: Queue, clock: Clock):
    queue = slow_queue
    news = [queue.new("later", id=f"j{n}", delay=30) for n in range(2)]
    first = await queue.submit_many(news, spread=20)
    assert await queue.submit_many(news, spread=20) == first, "the same jobs again"
    row = await queue.get("j1")
    assert (row.run_at, row.delay) == (clock.now + 40_000, 40_000)


async def test_a_rerun_runs_the_job_again_as_a_new_one(queue: Queue, start):
    seen: list[Any] = []

    @queue.task(attempts=7, limits=[Concurrency(1, by="tenant")], expires=60)
    async def send(n: int, tenant: str = "a") -> int:
        seen.append(n)
        return n

    await start()
    first = await send.options(priority=4, backoff=[5], timeout=30, retention=60, lifo=True).enqueue(1, tenant="b")
    assert await first.result(5) == 1
    second = await queue.rerun(first.id, {"n": 2, "tenant": "b"})
    third = await queue.rerun(first.id, attempts=2)
    assert [await job.result(5) for job in (second, third)] == [2, 1]
    old, new, other = await first.row(), await second.row(), await third.row()
    assert (new.rerun_of, old.reruns) == (first.id, [third.id, second.id])
    for name in ("priority", "attempts", "backoff", "timeout", "retention", "lifo", "limits"):
        assert getattr(new, name) == getattr(old, name), name
    assert (other.attempts, new.expires_at) == (2, None), "times are those of the first enqueue, and are not kept"
    with pytest.raises(InvalidJob, match="wrong"):
        await queue.rerun(first.id, {"wrong": 1})
    with pytest.raises(JobNotFound):
        await queue.rerun("nobody")


async def test_a_rerun_keeps_its_breaker_and_needs_its_key(slow_queue: Queue):
    queue = slow_queue
    await queue.store.do(queue.store.enqueue(["a", b'{"type":"t","at":1}', "0 0 0\v!t\nr"]))
    await queue.set_limit("r", concurrency=5)
    again = await queue.rerun("a")
    assert await queue.store.command(b"HGET", queue.store.keys["limits"], again.id) == b"!t\nr"
    first = await queue.enqueue("later", unique=Unique(key="k"))
    with pytest.raises(KeyTaken) as taken:
        await queue.rerun(first.id)
    assert taken.value.job_id == first.id
    assert not (await queue.rerun(first.id, key=None)).duplicate
    assert not (await queue.rerun(first.id, key="other")).duplicate


async def test_a_queue_with_reruns_only_is_no_queue_with_limits(slow_queue: Queue):
    first = await slow_queue.enqueue("later")
    await slow_queue.rerun(first.id)
    assert await slow_queue.store.command(b"HGET", slow_queue.store.keys["meta"], b"limited") is None


async def test_a_job_names_its_last_twenty_reruns(slow_queue: Queue):
    first = await slow_queue.enqueue("later")
    ids = [(await slow_queue.rerun(first.id)).id for _ in range(22)]
    assert (await first.row()).reruns == ids[:1:-1]
    assert (await slow_queue.get(ids[-1])).rerun_of == first.id
