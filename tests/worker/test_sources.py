"""Errors of one queue affect only that queue, and errors of one job only that job."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tools import blocked

from jobq import Connection, Context, JobFailed, Queue, State, Worker, inject
from jobq.engine.task import context
from jobq.engine.worker import heartbeat, notes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from jobq.engine.store import Store

JOBS = 40


@pytest.fixture
async def other(server) -> AsyncIterator[Any]:
    """A second server, which a test may stop in any way."""
    own = type(server)().start()
    try:
        yield own
    finally:
        if own.process.poll() is None:
            os.kill(own.process.pid, signal.SIGCONT)
        own.stop()


def tasks(*queues: Queue) -> list[int]:
    """Register the task ``note`` on each queue. Returns the list in which jobs of the first one record their
    numbers."""
    ran: list[int] = []
    for queue in queues:

        @queue.task(name="note")
        async def note(n: int, queue: str = queue.name) -> None:
            if queue == queues[0].name:
                ran.append(n)

    return ran


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "frozen"])
async def test_one_server_away_does_not_starve_the_other(queue: Queue, start, until, admin, other, how):
    async with AsyncExitStack() as stack:
        away = await stack.enter_async_context(Queue("away", Connection(other.url, timeout=1.0)))
        ran = tasks(queue, away)
        blocker = asyncio.Event()

        @away.task
        async def hold() -> None:
            await blocker.wait()

        # The claims and outcomes of the queue are under way when its server dies.
        await start(queue, away, concurrency=4)
        await away.enqueue("hold")
        await until(lambda: blocked(admin, 1), "the worker to listen")
        other.kill() if how is signal.SIGKILL else os.kill(other.process.pid, how)
        blocker.set()
        for n in range(JOBS):
            await queue.enqueue("note", {"n": n})
        await until(lambda: len(ran) == JOBS, "every job of the healthy server", timeout=15)
        os.kill(other.process.pid, signal.SIGCONT) if how is signal.SIGSTOP else other.start()
        assert sorted(ran) == list(range(JOBS))


@pytest.mark.usefixtures("impatient")
async def test_a_frozen_server_keeps_no_slot_from_the_other(queue: Queue, start, until, other):
    """Its claim, for all slots, was sent when the server froze. The slots must not wait for the reply."""
    async with AsyncExitStack() as stack:
        away = await stack.enter_async_context(Queue("away", other.url))
        ran = tasks(queue, away)
        frozen = asyncio.Event()
        trip = away.store.trip

        async def freeze(*calls: Any, **options: Any) -> Any:
            if any(call.script == "claim" for call in calls) and not frozen.is_set():
                os.kill(other.process.pid, signal.SIGSTOP)
                frozen.set()
            return await trip(*calls, **options)

        away.store.trip = freeze
        await start(away, queue, concurrency=1, grace=0)
        await frozen.wait()
        for n in range(JOBS):
            await queue.enqueue("note", {"n": n})
        # A trip is given up after 5 s. By then the jobs have long run.
        await until(lambda: len(ran) == JOBS, "every job of the healthy server", timeout=4)
        os.kill(other.process.pid, signal.SIGCONT)


@pytest.mark.parametrize("column", ["waiting", "delayed", "leases"])
async def test_one_broken_queue_does_not_starve_another_of_its_server(
    queue: Queue, connection, start, until, admin, column, logs
):
    async with Queue("broken", connection) as broken:
        ran = tasks(queue, broken)
        await admin.command(b"SET", broken.store.keys[column], b"not a set")
        await broken.store.command(b"ZADD", broken.store.keys["wake"], 0, b"t")
        await start(queue, broken, concurrency=4, grace=0)
        for n in range(JOBS):
            await queue.enqueue("note", {"n": n})
        await until(lambda: len(ran) == JOBS, "every job of the healthy queue", timeout=15)


async def test_a_broken_queue_continues_when_it_is_repaired(queue: Queue, start, until, admin, logs):
    ran = tasks(queue)
    await admin.command(b"SET", queue.store.keys["waiting"], b"not a set")
    await queue.store.command(b"ZADD", queue.store.keys["wake"], 0, b"t")
    await start()
    await until(lambda: logs.all("Redis refuses a claim"), "a claim to be refused")
    await admin.command(b"DEL", queue.store.keys["waiting"])
    await queue.enqueue("note", {"n": 1})
    await until(lambda: ran == [1], "the job to run")


# -- outcomes that the server refuses ----------------------------------------------------------------------------------


@pytest.fixture
async def strict(admin: Store) -> AsyncIterator[None]:
    """The server closes the connection if one argument is larger than 1 MB."""
    before = (await admin.command(b"CONFIG", b"GET", b"proto-max-bulk-len"))[1]
    await admin.command(b"CONFIG", b"SET", b"proto-max-bulk-len", 1 << 20)
    yield
    await admin.command(b"CONFIG", b"SET", b"proto-max-bulk-len", before)


async def test_a_result_that_the_server_refuses_fails_its_own_job_only(queue: Queue, start, gate, strict, logs):
    queue.max_result = 8 << 20  # More than the server accepts.

    @queue.task
    async def large(n: int) -> str:
        await gate.passing(n)
        return "x" * (3 << 20)

    @queue.task
    async def small(n: int) -> int:
        await gate.passing(n)
        return n

    jobs = [await (large if n == 7 else small).enqueue(n=n) for n in range(20)]
    await start(concurrency=20)
    for _ in jobs:
        await gate.arrival()
    gate.open()
    for n, job in enumerate(jobs):
        if n == 7:
            with pytest.raises(JobFailed, match=r"OutcomeRefused: the outcome \(completed, 3145\d\d\d bytes\)"):
                await job.result(20)
        else:
            assert await job.result(20) == n
    stats = await queue.stats()
    assert (stats.completed, stats.failed, stats.active) == (19, 1, 0)
    assert len(logs.all("the server refuses the outcome", "ERROR")) == 1


async def test_an_error_reply_that_the_data_causes_fails_that_job_only(queue: Queue, start, gate, monkeypatch):
    """The column of results itself is refused, so a repetition cannot help."""

    @queue.task
    async def work(n: int) -> int | None:
        await gate.passing(n)
        return n

    complete = queue.store.complete

    def refuse(jobs: list[Any], counts: list[Any]) -> Any:
        call = complete(jobs, counts)
        if any(b",13]" in bytes(word) for word in jobs[2::4]):
            call.args[1] = "no number"
        return call

    monkeypatch.setattr(queue.store, "complete", refuse)
    jobs = [await work.enqueue(n=n) for n in range(20)]
    await start(concurrency=20)
    for _ in jobs:
        await gate.arrival()
    gate.open()
    for n, job in enumerate(jobs):
        if n == 13:
            with pytest.raises(JobFailed, match="OutcomeRefused"):
                await job.result(20)
        else:
            assert await job.result(20) == n


async def test_notes_that_the_server_refuses_are_left_out_and_the_outcome_is_stored(
    queue: Queue, start, strict, logs, monkeypatch
):
    monkeypatch.setattr(context, "PROGRESS_MAX", 4 << 20)

    @queue.task
    async def talk(ctx: Context = inject) -> int:
        ctx.progress("x" * (3 << 20))
        return 1

    await start()
    job = await talk.enqueue()
    assert await job.result(20) == 1
    assert (await job.row()).progress is None
    assert logs.all("Redis refuses the notes of a job", "ERROR")


# -- notes -------------------------------------------------------------------------------------------------------------


async def test_a_handler_with_many_log_lines_sends_few_and_delays_no_other_job(queue: Queue, start, gate, monkeypatch):
    trips: list[int] = []
    log = queue.store.log
    monkeypatch.setattr(queue.store, "log", lambda rows: (trips.append(sum(map(len, rows[4::5]))), log(rows))[1])

    @queue.task
    async def talk(ctx: Context = inject) -> None:
        for n in range(20_000):
            ctx.log(f"line {n}")
        await gate.passing()

    @queue.task
    async def quick() -> int:
        return 1

    await start()
    talking = await talk.enqueue()
    await gate.arrival()
    assert await (await quick.enqueue()).result(5) == 1
    gate.open()
    await talking.result(5)
    assert sum(trips) <= notes.LOG_KEPT + 200
    lines = [line.message for line in await queue.logs(talking.id)]
    assert lines[-1] == "line 19999"
    left_out = [line for line in lines if "left out" in line]
    assert left_out == [f"... {20_000 - len(lines) + 1} lines were left out ..."]


async def test_progress_in_a_loop_is_merged_to_its_last_value(queue: Queue, start, gate, monkeypatch):
    sent: list[bytes] = []
    progress = queue.store.progress
    monkeypatch.setattr(queue.store, "progress", lambda rows: (sent.extend(rows[2::3]), progress(rows))[1])

    @queue.task
    def count(ctx: Context = inject) -> None:
        for n in range(100_000):
            ctx.progress(n)

    @queue.task
    async def quick() -> int:
        return 1

    await start()
    counting = await count.enqueue()
    for _ in range(5):
        assert await (await quick.enqueue()).result(5) == 1
    await counting.result(20)
    assert (await counting.row()).progress == msgspec.Raw(b"99999")
    assert len(sent) < 20_000


# -- order -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 10])
async def test_jobs_start_in_the_order_of_their_enqueues(queue: Queue, start, concurrency, monkeypatch):
    # If a busy machine stopped this process for a second, the worker would hand back jobs that it has claimed ahead.
    monkeypatch.setattr(heartbeat, "STALL_SECONDS", 60.0)
    ran: list[int] = []

    @queue.task
    async def note(n: int) -> None:
        ran.append(n)

    jobs = await note.enqueue_many([{"n": n} for n in range(3000)])
    await start(concurrency=concurrency)
    await jobs[-1].result(20)
    assert ran == list(range(3000))


async def test_a_claim_that_is_answered_while_earlier_jobs_are_handed_back_starts_no_later_job(queue: Queue):
    from jobq.engine.task.inject import Resources
    from jobq.engine.worker.children import Children
    from jobq.engine.worker.pool import Pool

    ran = tasks(queue)
    first, second = [(await queue.enqueue("note", {"n": n})).id.encode() for n in range(2)]
    pool = Pool(asyncio.get_running_loop(), 10, 30_000, "w")
    source = pool.add(queue, 1, Resources(), Children())
    lane = pool.lanes[0]
    earlier, later = [await queue.store.do(lane.claim_call(claimer, 1)) for claimer in (source.claimer, source.waking)]
    assert (earlier.ids, later.ids) == ([first], [second])
    for run in source.took(earlier, 0.0):
        run.ended = True
        source.release(run)
    lane.claimed(source.waking, 1, [], later)
    assert (pool.running, ran) == (0, [])
    for _, call in source.outbox.take().calls(queue.store):
        assert await queue.store.do(call) == []
    again = await queue.store.do(queue.store.claim(2, 30_000, "w", "w:2", 1, repeated=False))
    assert again is not None
    assert again.ids == [first, second]
    pool.close()


async def test_two_queues_of_one_name_and_place_are_refused(queue: Queue, redis_url):
    with pytest.raises(ValueError, match="given twice"):
        Worker(Queue("one", redis_url), Queue("one", redis_url))
    Worker(Queue("one", redis_url), Queue("one", redis_url, prefix="another"))


async def test_a_kill_is_kept_until_its_own_claim_is_answered(queue: Queue, until):
    """In whichever order the claims are answered."""
    from jobq.engine.task.inject import Resources
    from jobq.engine.worker.children import Children
    from jobq.engine.worker.pool import Pool

    ran = tasks(queue)
    first, second = [await queue.enqueue("note", {"n": n}) for n in range(2)]
    pool = Pool(asyncio.get_running_loop(), 10, 30_000, "w")
    source = pool.add(queue, 1, Resources(), Children())
    lane = pool.lanes[0]
    answers = [await queue.store.do(lane.claim_call(claimer, 1)) for claimer in (source.claimer, source.waking)]
    assert [answer.ids for answer in answers] == [[first.id.encode()], [second.id.encode()]]
    await queue.kill(second.id)
    source.heard(b"kill " + answers[1].ids[0] + b" " + answers[1].token)
    lane.claimed(source.claimer, 1, [[0, -1, 0]], answers[0])
    lane.claimed(source.waking, 1, [], answers[1])
    await until(lambda: ran == [0], "the other job to run")
    await asyncio.sleep(0)
    assert ran == [0]
    assert (await second.row()).state is State.FAILED
    pool.close()
