"""A run from claim to outcome: kinds of handlers, results and their types, and the context of a handler."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from typing import Annotated, Any

import msgspec
import pytest
import structlog

from jobq import Backoff, Context, Depends, JobFailed, Queue, State, TooManyWaiting, inject
from jobq.engine.task.context import PROGRESS_MAX, current
from jobq.engine.worker import lending
from jobq.engine.worker import outbox as outbox_module
from jobq.engine.worker import run as run_module
from jobq.engine.worker.lane import Lane
from jobq.engine.worker.notes import Notes


class Point(msgspec.Struct):
    x: int
    y: int = 0


async def test_async_handler_runs_on_the_loop_with_typed_arguments_and_result(queue: Queue, start):
    @queue.task
    async def mirror(point: Point, factor: int = 1) -> Point:
        assert threading.current_thread() is threading.main_thread()
        return Point(point.y * factor, point.x * factor)

    await start()
    assert await (await mirror.enqueue(point=Point(1, 2), factor=3)).result(5) == Point(6, 3)
    # By name, as a producer without the handler's code does.
    raw = await (await queue.enqueue("mirror", {"point": {"x": 1}})).result(5)
    assert raw == {"x": 0, "y": 1}


async def test_a_sync_handler_runs_in_a_thread_and_does_not_block_the_loop(queue: Queue, start, gate):
    @queue.task
    def hold(n: int) -> str:
        gate.hold(n)
        return threading.current_thread().name

    gate.loop = asyncio.get_running_loop()
    await start(concurrency=3)
    jobs = await hold.enqueue_many([{"n": n} for n in range(3)])
    assert {await gate.arrival() for _ in jobs} == {0, 1, 2}  # Both run at the same time, and this loop is not blocked.
    gate.open()
    assert all([(await job.result(5)).startswith("jobq") for job in jobs])


async def test_an_async_handler_behind_a_plain_wrapper_is_awaited_on_the_loop(queue: Queue, start):
    def traced(fn):
        @functools.wraps(fn)
        def wrapper(*args, **kwargs):
            return fn(*args, **kwargs)

        return wrapper

    @queue.task
    @traced
    async def hello(n: int) -> list[Any]:
        await asyncio.sleep(0)
        return [n, threading.current_thread() is threading.main_thread(), current.get().type]

    await start()
    assert await (await hello.enqueue(n=1)).result(5) == [1, True, "hello"]


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (None, None, None),
        (list[Point], [Point(1)], [Point(1)]),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (bytes, b"\x00\xff", b"\x00\xff"),
        (set[int], {1, 2}, {1, 2}),
        (int, 2**63, 2**63),
        (Any, [1, "two", None], [1, "two", None]),
    ],
    ids=str,
)
async def test_results_come_back_in_the_type_of_the_annotation(queue: Queue, start, annotation, value, expected):
    async def answer():
        return value

    answer.__annotations__["return"] = annotation
    task = queue.task(answer)
    await start()
    assert await (await task.enqueue()).result(5) == expected


async def test_a_raw_result_is_kept_byte_for_byte(queue: Queue, start):
    @queue.task
    async def raw() -> msgspec.Raw:
        return msgspec.Raw(b'{"big":123456789012345678901234567890,"e":[]}')

    await start()
    job = await raw.enqueue()
    await job.result(5)
    kept = (await job.row()).result
    assert kept is not None
    assert bytes(kept) == b'{"big":123456789012345678901234567890,"e":[]}'


def _circle() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


@pytest.mark.parametrize(
    "make",
    [
        object,
        lambda: {1: object()},
        _circle,
        lambda: msgspec.Raw(b"oops"),
        lambda: [msgspec.Raw(b"oops")],
        lambda: float("nan"),
    ],
    ids=["object", "nested", "circle", "raw", "nested raw", "nan"],
)
async def test_a_result_that_is_not_json_fails_the_job_at_once_with_a_clear_error(queue: Queue, start, make):
    runs = 0

    @queue.task(attempts=5)
    async def odd():
        nonlocal runs
        runs += 1
        return make()

    await start()
    job = await odd.enqueue()
    with pytest.raises(JobFailed, match="result cannot be encoded as JSON"):
        await job.result(5)
    row = await job.row()
    # The work is done. Running it again would do it twice and fail in the same way.
    assert (row.state, row.attempts_made, runs) == (State.FAILED, 1, 1)


def _stop_iteration() -> None:
    next(iter([]))


def _raise(error: BaseException) -> None:
    raise error


class Outcast(BaseException):
    """Not a subclass of Exception, like the timeouts and cancellations of some libraries."""


@pytest.mark.parametrize("kind", ["async", "thread"])
@pytest.mark.parametrize(
    ("act", "type_", "message"),
    [
        (_stop_iteration, "RuntimeError", "StopIteration"),
        (lambda: _raise(SystemExit(3)), "SystemExit", "3"),
        (lambda: _raise(GeneratorExit("x")), "GeneratorExit", "x"),
        (lambda: _raise(Outcast("out")), "Outcast", "out"),
        (lambda: _raise(asyncio.CancelledError("mine")), "RuntimeError", "cancelled"),
    ],
    ids=["StopIteration", "SystemExit", "GeneratorExit", "BaseException", "CancelledError"],
)
async def test_any_exception_of_a_handler_fails_only_its_own_job(queue: Queue, start, kind, act, type_, message):
    @queue.task(attempts=1)
    async def coroutine() -> None:
        act()

    @queue.task(attempts=1)
    def thread() -> None:
        act()

    @queue.task
    async def fine() -> int:
        return 1

    await start(concurrency=1)
    job = await (coroutine if kind == "async" else thread).enqueue()
    with pytest.raises(JobFailed, match=message) as failed:
        await job.result(5)
    assert failed.value.type.endswith(type_)
    assert await (await fine.enqueue()).result(5) == 1  # The only slot is free.


async def test_a_handler_that_awaits_something_cancelled_has_failed(queue: Queue, start):
    @queue.task(attempts=1)
    async def unlucky() -> None:
        other = asyncio.create_task(asyncio.Event().wait())
        other.cancel()
        await other

    await start()
    with pytest.raises(JobFailed, match="cancelled by something it awaited"):
        await (await unlucky.enqueue()).result(5)


async def test_an_exception_whose_str_fails_does_not_lose_the_job(queue: Queue, start):
    class Broken(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    @queue.task(attempts=1)
    async def broken() -> None:
        raise Broken

    await start()
    with pytest.raises(JobFailed, match=r"Broken whose str\(\) fails"):
        await (await broken.enqueue()).result(5)


async def test_progress_and_log_lines_of_async_and_sync_handlers_can_be_read(queue: Queue, start, until):
    @queue.task
    async def talk(ctx: Context = inject) -> None:
        for n in range(3):
            ctx.progress({"done": n})
            ctx.log(f"step {n}")

    @queue.task
    def shout(ctx: Context = inject) -> None:
        for n in range(3):
            ctx.progress({"done": n})
            ctx.log(f"step {n}")

    await start()
    for task in (talk, shout):
        job = await task.enqueue()
        await job.result(5)
        row = await job.row()
        assert row.progress is not None
        assert msgspec.json.decode(row.progress) == {"done": 2}
        lines = await queue.logs(job.id)
        assert [line.message for line in lines] == ["step 0", "step 1", "step 2"]
        assert all(abs(line.at - row.enqueued_at) < 60_000 for line in lines)


async def test_many_log_lines_are_sent_in_several_trips_and_before_the_outcome(queue: Queue, start, monkeypatch):
    monkeypatch.setattr(outbox_module, "NOTES_MAX", 5)
    trips: list[int] = []
    log = queue.store.log
    monkeypatch.setattr(queue.store, "log", lambda words: (trips.append(len(set(words[::5]))), log(words))[1])

    @queue.task
    async def talk(ctx: Context = inject) -> None:
        for n in range(7):
            ctx.log(f"line {n}")
            ctx.progress(n)

    jobs = await talk.enqueue_many([{} for _ in range(30)])
    await start(concurrency=30)
    for job in jobs:
        await job.result(10)
        assert [line.message for line in await queue.logs(job.id)] == [f"line {n}" for n in range(7)]
        assert (await job.row()).progress == msgspec.Raw(b"6")
    assert sum(trips) >= 30  # The log lines of a job may be sent in several trips.
    assert max(trips) <= 5


async def test_only_the_first_log_lines_of_a_job_are_known_to_have_no_predecessors(queue: Queue, start, monkeypatch):
    found: list[bool] = []
    take = Notes.take

    def seen(notes: Notes, *limits: Any) -> Any:
        taken = take(notes, *limits)
        found.extend(unsent.appends for unsent in taken.values() if unsent.lines)
        return taken

    monkeypatch.setattr(Notes, "take", seen)

    @queue.task(attempts=2, backoff=Backoff(type="fixed", delay=5, jitter=0))
    async def talk(ctx: Context = inject) -> None:
        ctx.log("a line")
        if ctx.attempt == 1:
            raise ValueError("once more")

    await start()
    job = await talk.enqueue()
    await job.result(10)
    assert found == [False, True]


async def test_progress_shows_while_the_handler_runs(queue: Queue, start, gate, until):
    @queue.task
    async def slow(ctx: Context = inject) -> None:
        ctx.progress(50)
        ctx.log("half way")
        await gate.passing()

    await start()
    job = await slow.enqueue()
    await gate.arrival()

    async def seen() -> bool:
        return bytes((await job.row()).progress or b"") == b"50" and bool(await queue.logs(job.id))

    await until(seen, "progress and log of a running job")


async def test_log_lines_and_progress_of_a_run_that_lost_its_job_are_refused(
    queue: Queue, start, gate, until, monkeypatch
):
    monkeypatch.setattr(run_module, "CANCEL_GRACE", 0.05)
    said = asyncio.Event()

    @queue.task
    async def zombie(ctx: Context = inject) -> None:
        while True:
            try:
                await gate.passing(ctx)
                break
            except asyncio.CancelledError:
                continue
        ctx.progress("stale")
        ctx.log("stale")
        said.set()

    @queue.task
    async def fine() -> None: ...

    await start()
    job = await zombie.enqueue()
    ctx = await gate.arrival()
    await queue.kill(job.id)
    await until(lambda: ctx.lost, "the handler's context to say that it lost the job")
    gate.open()
    await said.wait()
    await (await fine.enqueue()).result(5)  # All earlier lines and progress have been sent.
    assert (await job.row()).progress is None
    assert await queue.logs(job.id) == []


@pytest.mark.parametrize("value", [object(), msgspec.Raw(b"oops"), {"a": float("inf")}], ids=["object", "raw", "inf"])
async def test_progress_that_is_not_json_raises_in_the_handler(queue: Queue, start, value):
    @queue.task(attempts=1)
    async def talk(ctx: Context = inject) -> None:
        ctx.progress(value)

    await start()
    job = await talk.enqueue()
    with pytest.raises(JobFailed, match="TypeError: progress takes a value with a JSON form"):
        await job.result(5)
    assert (await job.row()).progress is None


async def test_progress_is_bounded(queue: Queue, start):
    @queue.task(attempts=1)
    async def talk(ctx: Context = inject) -> None:
        ctx.progress("x" * PROGRESS_MAX)

    await start()
    job = await talk.enqueue()
    with pytest.raises(JobFailed, match="progress has 65538 bytes, the limit is 65536: store it elsewhere"):
        await job.result(5)
    assert (await job.row()).progress is None


async def test_queue_job_and_attempt_are_bound_in_async_and_sync_handlers(queue: Queue, start):
    @queue.task(name="coroutine")
    async def coroutine() -> dict[str, Any]:
        return structlog.contextvars.get_contextvars() | {"id": current.get().id}

    @queue.task(name="thread")
    def thread() -> dict[str, Any]:
        return structlog.contextvars.get_contextvars() | {"id": current.get().id}

    await start()
    for task in (coroutine, thread):
        job = await task.enqueue()
        assert await job.result(5) == {"queue": "test", "job_id": job.id, "attempt": 1, "id": job.id}
    assert "queue" not in structlog.contextvars.get_contextvars()


async def test_context_variables_do_not_leak_from_run_to_run(queue: Queue, start):
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")

    @queue.task
    async def visit(name: str) -> list[str]:
        before = [tenant.get(), *structlog.contextvars.get_contextvars().get("seen", ())]
        tenant.set(name)
        structlog.contextvars.bind_contextvars(seen=[name])
        return before

    # With one slot and very short jobs, most runs start from the buffer when the previous run ends.
    await start(concurrency=1)
    jobs = await visit.enqueue_many([{"name": f"n{n}"} for n in range(300)])
    assert {tuple(await job.result(5)) for job in jobs} == {("none",)}


async def test_a_handler_can_enqueue_and_wait_for_another(queue: Queue, start):
    @queue.task
    async def child(n: int) -> int:
        return n + 1

    @queue.task
    async def parent() -> int:
        jobs = await child.enqueue_many([{"n": 1}, {"n": 2}])
        return sum([await job.result(5) for job in jobs])

    await start()
    assert await (await parent.enqueue()).result(5) == 5


def _slots(worker: Any) -> int:
    return worker._pool.slots.concurrency  # noqa: SLF001


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_handlers_that_wait_for_children_of_their_queue_do_not_fill_the_worker(queue: Queue, start, kind):
    """Three parents hold all three slots, and their children wait for a slot."""

    @queue.task
    async def child(n: int) -> int:
        return n

    @queue.task(name="async")
    async def parent(n: int) -> int:
        jobs = [await child.enqueue(n=n) for _ in range(2)]
        return sum(await asyncio.gather(*[job.result(20) for job in jobs]))

    @queue.task(name="thread")
    def thread_parent(n: int) -> int:
        return child.enqueue_sync(n=n).result_sync(20) * 2

    jobs = [await queue.enqueue(kind, {"n": n}) for n in range(10)]
    worker = await start(concurrency=3)
    assert [await job.result(20) for job in jobs] == [2 * n for n in range(10)]
    assert worker.running == 0
    # The lent slots were taken back.
    assert _slots(worker) == 3


async def test_a_handler_that_is_killed_while_it_waits_takes_its_slot_back(queue: Queue, start, gate, until):
    @queue.task
    async def child() -> None:
        await gate.passing("child")

    @queue.task
    async def parent() -> None:
        job = await child.enqueue()
        await job.result(20)

    worker = await start(concurrency=1)
    job = await parent.enqueue()
    await gate.arrival()
    assert (worker.running, _slots(worker)) == (2, 2)
    await queue.kill(job.id)
    await until(lambda: _slots(worker) == 1)
    gate.open()
    await until(lambda: worker.running == 0)


async def test_waiting_for_jobs_that_another_worker_serves_lends_no_slot(queue: Queue, start, gate, connection):
    """With one slot, a handler may rely on running alone."""
    async with Queue("other", connection) as other:
        elsewhere = await other.enqueue("x")

        @queue.task
        async def parent() -> None:
            gate.arrivals.put_nowait(None)
            await elsewhere.result(0.2)

        worker = await start(concurrency=1)
        job = await parent.options(attempts=1).enqueue()
        await gate.arrival()
        assert _slots(worker) == 1
        with pytest.raises(JobFailed, match=r"had not ended after 0\.2 s"):
            await job.result(5)


async def test_a_handler_beyond_the_bound_may_not_wait_and_the_error_names_both_jobs(queue: Queue, start, monkeypatch):
    monkeypatch.setattr(lending, "LENT_MAX", 0)

    @queue.task
    async def child() -> None: ...

    @queue.task(attempts=1)
    async def parent() -> None:
        await (await child.enqueue()).result(5)

    await start()
    job = await parent.enqueue()
    with pytest.raises(JobFailed, match=f"job parent {job.id} may not wait for job"):
        await job.result(5)


async def test_a_handler_in_a_thread_gets_the_refusal_itself(queue: Queue, start, monkeypatch):
    monkeypatch.setattr(lending, "LENT_MAX", 0)
    caught: list[TooManyWaiting] = []

    @queue.task
    async def child() -> None: ...

    @queue.task(attempts=1)
    def parent() -> str:
        job = child.enqueue_sync()
        try:
            job.result_sync(5)
        except TooManyWaiting as error:
            caught.append(error)
            return job.id
        return "it waited"

    worker = await start(concurrency=5)
    job = await parent.enqueue()
    awaited = await job.result(10)
    assert [(error.waiting, error.awaited, error.others) for error in caught] == [(f"parent {job.id}", awaited, 0)]
    assert _slots(worker) == 5


async def test_context_knows_its_job(queue: Queue, start):
    @queue.task(attempts=7)
    async def who(ctx: Context = inject) -> list[Any]:
        return [ctx.id, ctx.type, ctx.queue, ctx.attempt, ctx.attempts, ctx.enqueued_at, ctx.metadata, ctx.lost]

    await start()
    job = await who.options(metadata={"tenant": "t"}).enqueue()
    row = await job.row()
    assert await job.result(5) == [job.id, "who", "test", 1, 7, row.enqueued_at, {"tenant": "t"}, False]


async def test_kwargs_keyword_only_and_injected_parameters_work_together(queue: Queue, start):
    @queue.task
    async def mixed(a: int, *, b: int = 2, doubled: Annotated[int, Depends(lambda: 84)] = inject, **rest: Any) -> Any:
        return [a, b, doubled, rest]

    await start()
    assert await (await queue.enqueue("mixed", {"a": 1, "c": 3})).result(5) == [1, 2, 84, {"c": 3}]


async def test_mutable_defaults_are_not_shared_between_runs(queue: Queue, start):
    @queue.task
    async def collect(n: int, into: list[int] = []) -> list[int]:  # noqa: B006 - that is the point
        into.append(n)
        return into

    await start()
    for n in range(3):
        assert await (await collect.enqueue(n=n)).result(5) == [n]


async def test_jobs_and_results_of_megabytes_are_sent_a_few_per_trip(queue: Queue, start, monkeypatch):
    """Redis does nothing else while it moves them."""
    claims: list[int] = []
    settles: list[int] = []
    claimed, complete = Lane.claimed, queue.store.complete

    def watch_claims(lane, claimer, want, forwarded, answer):
        claims.append(sum(map(len, answer.specs)) if answer else 0)
        return claimed(lane, claimer, want, forwarded, answer)

    def watch_settles(jobs, counts):
        settles.append(sum(map(len, jobs[2::4])))
        return complete(jobs, counts)

    monkeypatch.setattr(Lane, "claimed", watch_claims)
    monkeypatch.setattr(queue.store, "complete", watch_settles)

    @queue.task
    async def echo(text: str) -> str:
        return text

    jobs = await echo.enqueue_many([{"text": str(n) * 600_000} for n in range(9)])
    await start()
    assert [(await job.result(10))[:1] for job in jobs] == [str(n) for n in range(9)]
    assert sum(settles) > 9 * 600_000
    assert max(claims) < 1_400_000
    assert max(settles) < 1_400_000
