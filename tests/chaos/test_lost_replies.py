"""Calls that were executed, and whose reply was lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Connection, Context, Discard, JobNotFound, NewJob, Queue, State, Worker, inject
from jobq.engine.model.ids import new_id
from jobq.engine.queue.late import end_late
from jobq.engine.store import lua
from jobq.engine.store import route as route_module
from jobq.engine.store.packing import pack
from jobq.errors import StoreUnavailable, WrongState
from jobq.testing import drain
from tests.chaos.faulty import Fault, FaultyConnection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from jobq.engine.store import Store
    from tests.conftest import Server, Until


@pytest.fixture
async def faulty(server: Server, connection: Connection) -> AsyncIterator[FaultyConnection]:
    """A connection that loses a reply when the test asks for it."""
    faulty = FaultyConnection(server.url, fault=Fault.REPLY_LOST)
    # Otherwise the lost reply could be NOSCRIPT, and nothing would have been executed.
    for script in lua.scripts().values():
        await connection.trip(pack((b"SCRIPT", b"LOAD", script.source)), 1)
    yield faulty
    await faulty.aclose()


@pytest.fixture
async def queue(faulty: FaultyConnection) -> AsyncIterator[Queue]:
    """A queue over that connection."""
    async with Queue("lost", faulty) as queue:
        yield queue


async def test_enqueue(queue: Queue, faulty: FaultyConnection) -> None:
    """There is one job, and it is not reported as a duplicate of itself."""
    faulty.next_of = "enqueue"
    job = await queue.enqueue("send", {}, key="once")
    assert not job.duplicate
    assert (await queue.stats()).waiting == 1


async def test_late_jobs(queue: Queue, faulty: FaultyConnection) -> None:
    """The hooks hear of the jobs that the lost call has ended."""
    told: list[str] = []

    @queue.on("final_failure")
    async def note(event: Any) -> None:
        told.append(event.job.id)

    job = await queue.enqueue("send", expires=0.001)
    await asyncio.sleep(0.01)
    faulty.next_of = "lapse"
    await end_late(queue)
    await queue.hook_calls.ended()
    assert told == [job.id]
    stats = await queue.stats()
    assert (stats.failed, stats.expired_total) == (1, 1)


async def test_claim(queue: Queue, faulty: FaultyConnection) -> None:
    """The repetition returns the jobs of the lost reply and not the next ones."""
    first = [(await queue.enqueue("send")).id for _ in range(2)]
    await queue.enqueue("send")
    faulty.next_of = "claim"
    claimed = await queue.store.do(queue.store.claim(2, 30_000, "w", "w:0", 1, repeated=False))
    assert claimed is not None
    assert [job_id.decode() for job_id in claimed.ids] == first
    assert (await queue.stats()).active == 2


async def test_complete(queue: Queue, faulty: FaultyConnection, caplog: pytest.LogCaptureFixture) -> None:
    """The outcome is counted once, and no lost lease is reported."""

    @queue.task
    async def send() -> int:
        return 7

    async with Worker(queue) as worker:
        worker.start()
        faulty.next_of = "complete"
        assert await (await send.enqueue()).result(timeout=5) == 7
    stats = await queue.stats()
    assert (stats.completed, stats.completed_total) == (1, 1)
    assert "too late" not in caplog.text


@pytest.mark.parametrize(
    ("verb", "state"),
    [("kill", State.FAILED), ("promote", State.WAITING), ("remove", None)],
)
async def test_operators_verbs(queue: Queue, faulty: FaultyConnection, verb: str, state: State | None) -> None:
    """The verbs have done their work, so they raise nothing."""
    job = await queue.enqueue("send", delay=60)
    faulty.next_of = verb
    await getattr(queue, verb)(job.id)
    if state is None:
        with pytest.raises(JobNotFound):
            await job.row()
    else:
        assert (await job.row()).state is state


async def test_retry(queue: Queue, faulty: FaultyConnection) -> None:
    """The same for a retry of a failed job."""
    job = await queue.enqueue("send")
    await queue.kill(job.id)
    faulty.next_of = "retry"
    await queue.retry(job.id)
    assert (await job.row()).state is State.WAITING


@pytest.mark.parametrize("retries", [True, False], ids=["store-retries", "fault-reaches-engine"])
async def test_log(queue: Queue, faulty: FaultyConnection, monkeypatch: pytest.MonkeyPatch, retries: bool) -> None:
    """Each line is stored once, also if it is sent again together with newer lines."""
    if not retries:
        monkeypatch.setattr(route_module, "PAUSES", ())

    @queue.task
    async def talk(ctx: Context = inject) -> None:
        for n in range(20):
            ctx.log(f"line {n}")
            await asyncio.sleep(0)

    async with Worker(queue) as worker:
        worker.start()
        for _ in range(5):
            faulty.next_of = "log"
            job = await talk.enqueue()
            await job.result(timeout=5)
            assert [line.message for line in await queue.logs(job.id)] == [f"line {n}" for n in range(20)]
            assert not faulty.next_of


async def test_a_repeated_drop_removes_no_new_queue(
    queue: Queue, faulty: FaultyConnection, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody uses the name again between the two sendings."""
    trip = faulty.trip

    async def lost(*args: Any, **words: Any) -> list[Any]:
        try:
            return await trip(*args, **words)
        except StoreUnavailable:
            async with Queue("lost", connection) as other:
                await other.enqueue("send")
            raise

    monkeypatch.setattr(faulty, "trip", lost)
    await queue.enqueue("send")
    faulty.next_of = "drop"
    await queue.drop(force=True)
    assert (await queue.stats()).waiting == 1


@pytest.mark.parametrize("options", [{}, {"key": "once", "priority": 3}], ids=["plain", "with options"])
@pytest.mark.parametrize("own_id", [False, True])
async def test_an_enqueue_is_not_repeated_behind_the_removal_of_its_job(
    queue: Queue,
    faulty: FaultyConnection,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    own_id: bool,
) -> None:
    """The job ran and an operator removed it, between the two sendings. It must not run again."""
    trip = faulty.trip

    async def lost(*args: Any, **words: Any) -> list[Any]:
        try:
            return await trip(*args, **words)
        except StoreUnavailable:
            async with Queue("lost", connection) as other:
                (row,) = (await other.page(State.WAITING)).jobs
                await other.remove(row.id)
            raise

    monkeypatch.setattr(faulty, "trip", lost)
    faulty.next_of = "enqueue enqueue_unique"
    job = await queue.enqueue("send", id="mine" if own_id else None, **options)
    assert not job.duplicate
    assert (await queue.stats()).waiting == 0
    # the id is free for another job, and its key too
    faulty.fault = Fault.REQUEST_LOST
    faulty.next_of = "enqueue enqueue_unique"
    monkeypatch.setattr(faulty, "trip", trip)
    # An id that is used again within the millisecond of its removal is free, or not: nobody can tell.
    await asyncio.sleep(0.002)
    again = await queue.enqueue("send", id=job.id, **options)
    assert not again.duplicate
    assert [row.id for row in (await queue.page(State.WAITING)).jobs] == [job.id]


@pytest.mark.parametrize("verb", ["retry", "promote", "kill", "remove", "resume", "pause"])
async def test_a_repeated_verb_is_executed_once_even_if_the_state_changes_in_between(
    queue: Queue, faulty: FaultyConnection, connection: Connection, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Between the original and its repetition the job runs, and others bring the queue back to its earlier state."""
    ran: list[int] = []
    between = 0
    other = Queue("lost", connection)

    @other.task(attempts=3)
    async def send() -> None:
        ran.append(1)
        raise Discard("no")

    async def to_where_it_was(job_id: str) -> None:
        if verb in ("pause", "resume"):
            await (other.resume() if verb == "pause" else other.pause())
        elif verb == "remove":
            await other.submit(NewJob("send", id=job_id))
        elif verb == "kill":
            await other.retry(job_id)
        else:
            await drain(other)

    async with other:
        job = await send.options(delay=60 if verb == "promote" else 0).enqueue()
        if verb == "retry":
            await drain(other)
        if verb == "resume":
            await other.pause()
        trip = faulty.trip

        async def lost(*args: Any, **words: Any) -> list[Any]:
            nonlocal between
            try:
                return await trip(*args, **words)
            except StoreUnavailable:
                between += 1
                await to_where_it_was(job.id)
                raise

        monkeypatch.setattr(faulty, "trip", lost)
        faulty.next_of = verb
        await getattr(queue, verb)(*([] if verb in ("pause", "resume") else [job.id]))
        assert between == 1
        expected = {"retry": State.FAILED, "promote": State.FAILED}.get(verb, State.WAITING)
        assert (await job.row()).state is expected, "the repetition moved it once more"
        assert (await other.stats()).paused == (verb == "resume")
        assert len(ran) == {"retry": 2, "promote": 1}.get(verb, 0)


async def test_a_verb_that_the_state_does_not_allow_still_raises(queue: Queue, faulty: FaultyConnection) -> None:
    """A lost reply does not hide the error: the job must be in a state that the verb allows."""
    job = await queue.enqueue("send")
    faulty.next_of = "retry"
    with pytest.raises(JobNotFound):
        await queue.retry(new_id())
    faulty.next_of = "promote"
    await queue.kill(job.id)
    with pytest.raises(WrongState):
        await queue.promote(job.id)


async def test_producer_may_repeat_with_the_same_id(
    queue: Queue, faulty: FaultyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller got an error and repeats the call."""
    from jobq.engine.store import route

    monkeypatch.setattr(route, "PAUSES", ())
    job = NewJob("send", id=new_id())
    faulty.next_of = "enqueue"
    with pytest.raises(StoreUnavailable):
        await queue.submit(job)
    accepted = await queue.submit(job)
    assert (accepted.id, accepted.duplicate) == (job.id, False)
    assert (await queue.stats()).waiting == 1


async def test_control_channel_after_a_silence(server: Server, admin: Store, until: Until) -> None:
    """Silence for longer than the timeout does not end the subscription. Kills still reach the worker at once."""
    quiet = Connection(server.url, timeout=0.05)
    heard: list[bytes] = []
    joined = asyncio.Event()

    async def join() -> None:
        joined.set()

    listening = asyncio.create_task(quiet.listen([b"jobq:channel"], lambda _, message: heard.append(message), join))
    await joined.wait()
    pings: list[Any] = [0]

    async def pinged() -> bool:
        info = await admin.command(b"INFO", b"commandstats")
        calls = [line for line in info.decode().splitlines() if line.startswith("cmdstat_ping:")]
        pings.append(int(calls[0].split("calls=")[1].split(",")[0]) if calls else 0)
        return pings[-1] >= pings[1] + 2

    await until(pinged, "two silences that ended in a PING")
    assert await admin.command(b"PUBLISH", b"jobq:channel", b"hello") == 1
    await until(lambda: heard, "the message")
    listening.cancel()
    await asyncio.wait([listening])
    await quiet.aclose()


@pytest.mark.parametrize("script", ["enqueue", "overflow"])
async def test_a_dropped_job_is_dropped_once_and_the_answer_says_so(
    queue: Queue, faulty: FaultyConnection, script: str
) -> None:
    """Whichever reply was lost: the repetition finds the decision and does not make another one."""
    await queue.set_limit("r", concurrency=1, over="drop")
    assert (await queue.enqueue("send", limits=["r"])).done is None
    faulty.next_of = script
    job = await queue.enqueue("send", limits=["r"])
    assert (job.duplicate, job.done, job.state) == (False, "dropped", State.FAILED)
    stats = await queue.stats()
    assert (stats.dropped_total, stats.failed_total, stats.held) == (1, 1, 1)
