"""Hooks: called at most once for each event, after Redis has stored it, and never in the way of a job."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from jobq import (
    Context,
    Discard,
    Event,
    InvalidPayload,
    LeaseExpired,
    Queue,
    Retry,
    Snooze,
    State,
    TooManySnoozes,
    Unserved,
    Worker,
    inject,
)
from jobq.engine.task import events
from jobq.engine.worker import tell
from jobq.testing import drain

if TYPE_CHECKING:
    from jobq.engine.task.events import EventName

NAMES: tuple[EventName, ...] = ("enqueue", "start", "success", "retry", "failure", "final_failure")


class Heard:
    """Every event of a queue, and the state that its job had in Redis when the hook was called."""

    def __init__(self, queue: Queue, *names: EventName) -> None:
        self.events: list[Event] = []
        self.states: list[tuple[str, State]] = []
        for name in names or NAMES:
            queue.on(name)(self.hear)

    async def hear(self, event: Event) -> None:
        self.events.append(event)
        self.states.append((event.name, (await event.job.row()).state))

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]

    def one(self, name: str) -> Event:
        (found,) = [event for event in self.events if event.name == name]
        return found


async def test_a_job_that_succeeds(queue: Queue):
    heard = Heard(queue)

    @queue.task(attempts=5)
    async def double(n: int) -> int:
        return 2 * n

    job = await double.options(metadata={"by": "me"}).enqueue(4)
    await drain(queue)
    assert sorted(heard.names) == ["enqueue", "start", "success"]
    for event in heard.events:
        assert (event.job.id, event.type, bytes(event.payload)) == (job.id, "double", b'{"n":4}')
        assert (event.attempts, event.metadata) == (5, {"by": "me"})
    assert [heard.one(name).attempt for name in ("enqueue", "start", "success")] == [0, 1, 1]
    event = heard.one("success")
    assert event.result is not None
    assert msgspec.json.decode(event.result) == await event.job.result(0) == 8
    assert event.worker is not None
    assert ("success", State.COMPLETED) in heard.states, "Redis had stored it before the hook was called"


async def test_a_job_that_is_retried_and_fails(queue: Queue):
    heard = Heard(queue, "start", "retry", "failure", "final_failure", "success")

    @queue.task(attempts=2)
    async def fails(ctx: Context = inject) -> None:
        raise Retry("busy", delay=7) if ctx.attempt == 1 else ValueError("no paper")

    await fails.enqueue()
    await drain(queue, include_delayed=True)
    assert sorted((event.name, event.attempt) for event in heard.events) == [
        ("failure", 1), ("failure", 2), ("final_failure", 2), ("retry", 1), ("start", 1), ("start", 2),
    ]  # fmt: skip
    retry, final = heard.one("retry"), heard.one("final_failure")
    assert (retry.delay, final.delay) == (7.0, None)
    assert isinstance(retry.exception, Retry)
    assert isinstance(final.exception, ValueError)
    assert retry.error is not None
    assert final.error is not None
    assert (retry.error.message, final.error.message) == ("busy", "no paper")
    assert "no paper" in (final.error.traceback or "")
    assert ("final_failure", State.FAILED) in heard.states


async def test_the_hook_of_a_task_hears_of_its_jobs_only(queue: Queue):
    heard: list[tuple[str, str]] = []

    @queue.task
    async def one() -> None: ...

    @queue.task
    async def other() -> None: ...

    @one.on("success")
    async def tell_one(event: Event) -> None:
        heard.append(("one", event.type))

    @queue.on("success")
    async def tell_all(event: Event) -> None:
        heard.append(("all", event.type))

    await one.enqueue()
    await other.enqueue()
    await drain(queue)
    assert sorted(heard) == [("all", "one"), ("all", "other"), ("one", "one")]


async def test_enqueues_in_bulk_and_duplicates(queue: Queue):
    heard = Heard(queue, "enqueue")

    @queue.task
    async def noop(n: int = 0) -> None: ...

    jobs = await noop.enqueue_many([{"n": n} for n in range(3)])
    first = await noop.options(key="k").enqueue()
    again = await noop.options(key="k").enqueue()
    assert again.duplicate
    await queue.hook_calls.ended()
    assert sorted(event.job.id for event in heard.events) == sorted([*(job.id for job in jobs), first.id])


async def test_a_hook_that_fails_is_logged_and_changes_nothing(queue: Queue, logs):
    @queue.task
    async def work() -> int:
        return 5

    for name in ("enqueue", "start", "success"):

        @queue.on(name)
        async def broken(event: Event) -> None:
            raise SystemExit("of the " + event.name) if event.name == "success" else KeyError("of the " + event.name)

    job = await work.enqueue()
    assert (await drain(queue)).completed == 1
    assert await job.result(5) == 5
    said = logs.all("the job goes on as it would without the hook", "ERROR")
    assert sorted(record.getMessage().split()[1] for record in said) == ["enqueue", "start", "success"]
    assert all(job.id in record.getMessage() and "broken" in record.getMessage() for record in said)


async def test_a_slow_hook_holds_up_no_job_and_the_end_waits_for_it(queue: Queue, monkeypatch: pytest.MonkeyPatch):
    go, ended = asyncio.Event(), 0

    @queue.task
    async def work(n: int) -> int:
        return n

    @queue.on("success")
    async def slow(event: Event) -> None:
        nonlocal ended
        await go.wait()
        ended += 1

    async with Worker(queue, concurrency=1) as worker:
        worker.start()
        for n in range(3):
            assert await (await work.enqueue(n)).result(10) == n
        assert ended == 0
        go.set()
    assert ended == 3, "the worker waited for them"

    go.clear()
    monkeypatch.setattr(events, "CLOSING", 0.05)
    await work.enqueue(9)
    await drain(queue)
    assert ended == 3, "but not for ever"


async def test_too_many_calls_are_left_out_and_said(queue: Queue, logs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(events, "PENDING_MAX", 2)
    heard = Heard(queue, "enqueue")

    @queue.task
    async def work() -> None: ...

    await work.enqueue_many([{}] * 5)
    await queue.hook_calls.ended()
    assert len(heard.events) == 2
    assert len(logs.all("Hooks of queue test are too slow: 2 calls wait, and", "ERROR")) == 2


async def test_a_call_that_never_ends_is_ended(queue: Queue, logs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(events, "LONGEST", 0.01)

    @queue.task
    async def work() -> None: ...

    @queue.on("enqueue")
    async def hangs(event: Event) -> None:
        await asyncio.Event().wait()

    await work.enqueue()
    await queue.hook_calls.ended()
    assert "TimeoutError" in str(logs.one("the job goes on as it would").exc_info)


async def test_final_failures_that_no_handler_raised(queue: Queue, redis_url: str, start, until):
    heard = Heard(queue, "final_failure")

    @queue.task(attempts=1)
    async def known(n: int) -> None: ...

    @queue.task(max_snoozes=0)
    async def snoozing() -> None:
        raise Snooze(1)

    async with Queue("test", redis_url) as stranger:
        await stranger.enqueue("known", {"n": 1}, attempts=1)
        claimed = await queue.store.do(queue.store.claim(1, 1, "dead", "dead:0", 1, repeated=False))
        assert claimed is not None
        queue.unserved_for_ms = 0
        await stranger.enqueue("known", {"m": 1})
        await stranger.enqueue("unknown")
    await snoozing.enqueue()
    broken = await known.enqueue(1)
    await queue.store.command(b"HSET", queue.store.keys["jobs"], broken.id, b"not JSON")
    await start(lease=0.3)
    await until(lambda: len(heard.events) == 5, "all five to fail", timeout=20)
    kinds = {type(event.exception) for event in heard.events}
    assert kinds >= {LeaseExpired, InvalidPayload, Unserved, TooManySnoozes}
    assert [event.type for event in heard.events if event.job.id == broken.id] == ["?"]


async def test_a_run_that_was_handed_back_or_snoozed_is_no_end(queue: Queue, gate):
    heard = Heard(queue, "success", "failure", "retry", "final_failure")

    @queue.task
    async def later() -> None:
        raise Snooze(60)

    @queue.task
    async def held() -> None:
        await gate.passing()

    await later.enqueue()
    await drain(queue)
    async with Worker(queue, grace=0) as worker:
        worker.start()
        await held.enqueue()
        await gate.arrival()
    assert heard.events == []


@pytest.mark.parametrize("stored", [True, False], ids=["it was ours", "it was another worker's"])
async def test_a_lost_reply(queue: Queue, stored: bool, monkeypatch: pytest.MonkeyPatch):
    """The outcome is sent again and its lease is gone: the stored record tells whether the first sending did it."""
    heard = Heard(queue, "success", "failure", "final_failure")
    real, told = tell.tell_settled, []

    def as_repeated(queue: Any, outcome: Any, runs: Any, flat: Any, lost: Any, *, repeated: bool) -> None:
        told.append(outcome.name)
        row = list(flat)
        if not stored:
            row[3 if outcome is tell.FAILED else 2] = b"another"
        real(queue, outcome, runs, row, [run.id for run in runs], repeated=True)

    monkeypatch.setattr("jobq.engine.worker.settler.tell_settled", as_repeated)

    @queue.task
    async def good() -> int:
        return 1

    @queue.task
    async def bad() -> None:
        raise Discard("no")

    await good.enqueue()
    await bad.enqueue()
    await drain(queue)
    assert sorted(told) == ["completed", "failed"]
    assert sorted(heard.names) == (["failure", "final_failure", "success"] if stored else [])


async def test_an_outcome_that_came_too_late_is_told_to_nobody(queue: Queue, monkeypatch: pytest.MonkeyPatch):
    heard = Heard(queue, "success")
    real = tell.tell_settled
    monkeypatch.setattr(
        "jobq.engine.worker.settler.tell_settled",
        lambda queue, outcome, runs, flat, lost, *, repeated: real(
            queue, outcome, runs, flat, [run.id for run in runs], repeated=False
        ),
    )

    @queue.task
    async def good() -> int:
        return 1

    await good.enqueue()
    await drain(queue)
    assert heard.events == []


def plain(event: Event) -> None: ...


async def two(event: Event, other: int) -> None: ...


async def fine(event: Event) -> None: ...


@pytest.mark.parametrize(
    ("event", "hook", "text"),
    [
        ("failed", fine, "there is no event 'failed': a hook takes one of enqueue, start, success"),
        ("success", plain, "hook plain is not async"),
        ("success", two, "hook two does not take one argument"),
        ("success", None, "is not async"),
    ],
)
def test_what_cannot_be_a_hook_is_refused_where_it_is_registered(event: Any, hook: Any, text: str):
    queue = Queue("x")

    @queue.task
    async def work() -> None: ...

    for register in (queue.on, work.on):
        with pytest.raises(TypeError, match=text):
            register(event)(hook)
    assert queue.hooks == {}


async def test_from_synchronous_code(queue: Queue, redis_url: str):
    heard: list[str] = []
    told = threading.Event()
    other = Queue("test", redis_url)

    @other.on("enqueue")
    async def tell(event: Event) -> None:
        heard.append(event.job.id)
        told.set()

    def produce() -> str:
        with other.sync() as sync:
            job = sync.enqueue("any")
            assert told.wait(10)
            return job.id

    job_id = await asyncio.to_thread(produce)
    assert heard == [job_id]
