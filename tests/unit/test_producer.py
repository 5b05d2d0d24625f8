"""Group commit: concurrent enqueues share trips, and each caller gets its own answer."""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from jobq import Connection, Queue, StoreError
from jobq.engine.model.ids import new_id
from jobq.engine.model.job import Accepted, NewJob, Options, State
from jobq.engine.queue.producer import BATCH, BATCH_BYTES, CALL
from jobq.errors import IdempotencyConflict, InvalidJob, JobIdTaken, StoreFull, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobq.engine.store import Store
    from tests.conftest import Server


class Counted(Connection):
    """Counts the trips and the script calls in them."""

    trips = calls = 0

    async def trip(self, payload: bytes, replies: int, **options: Any) -> list[Any]:
        self.trips += 1
        self.calls += payload.count(b"EVALSHA")
        return await super().trip(payload, replies, **options)


@pytest.fixture
async def counted(redis_url: str):
    connection = Counted(redis_url)
    async with Queue("test", connection) as queue:
        await queue.remove((await queue.enqueue("x")).id)  # The first call adds the queue to the registry.
        connection.trips = connection.calls = 0
        yield queue, connection
    await connection.aclose()


async def test_a_lone_enqueue_is_one_trip(counted: tuple[Queue, Counted]):
    queue, connection = counted
    await queue.enqueue("x")
    assert connection.trips == 1


async def test_a_hundred_at_once_are_a_few_trips(counted: tuple[Queue, Counted]):
    queue, connection = counted
    jobs = await asyncio.gather(*[queue.enqueue("x", {"n": i}) for i in range(100)])
    assert connection.trips <= 3
    assert len({job.id for job in jobs}) == 100
    assert (await queue.stats()).waiting == 100
    rows = await asyncio.gather(*[job.row() for job in jobs[:5]])
    assert [bytes(row.payload) for row in rows] == [b'{"n":%d}' % i for i in range(5)]


async def test_many_jobs_are_submitted_in_batches(counted: tuple[Queue, Counted]):
    queue, connection = counted
    await queue.submit_many([NewJob("x")] * (2 * BATCH + 1))
    assert connection.trips == 3
    assert connection.calls == 2 * (BATCH // CALL) + 1
    assert (await queue.stats()).waiting == 2 * BATCH + 1


async def test_jobs_with_options_count_twice(counted: tuple[Queue, Counted]):
    queue, connection = counted
    rich = NewJob("x", options=Options(delay=60_000, priority=3))
    await queue.submit_many([rich] * BATCH)
    assert connection.trips == 2
    assert connection.calls >= 2 * BATCH // CALL
    connection.trips = 0
    await queue.submit_many([rich] * (BATCH // 2 - 1) + [NewJob("x")] * 2)
    assert connection.trips == 1
    assert (await queue.stats()).delayed == BATCH + BATCH // 2 - 1


async def test_large_payloads_do_not_share_a_trip(counted: tuple[Queue, Counted]):
    queue, connection = counted
    large = msgspec.Raw(b'"' + b"x" * (BATCH_BYTES - 10) + b'"')
    await queue.submit_many([NewJob("x", large)] * 4)
    assert connection.trips >= 2


async def test_submitting_no_jobs_makes_no_trip(counted: tuple[Queue, Counted]):
    queue, connection = counted
    assert await queue.submit_many([]) == []
    assert connection.trips == 0


async def test_each_gets_its_own_answer(queue: Queue):
    """One job of a trip is refused."""
    first = await queue.submit(NewJob("x", idempotency_key="k"))
    held = await queue.submit(NewJob("x", options=Options(key="d")))
    answers = await asyncio.gather(
        queue.submit(NewJob("x")),
        queue.submit(NewJob("x", idempotency_key="k")),
        queue.submit(NewJob("x", options=Options(priority=1), idempotency_key="k")),
        queue.submit(NewJob("x", options=Options(key="d"))),
        queue.submit(NewJob("x")),
        return_exceptions=True,
    )
    assert not isinstance(answers[0], BaseException)
    assert not answers[0].duplicate
    assert not isinstance(answers[1], BaseException)
    assert (answers[1].id, answers[1].duplicate) == (first.id, True)
    assert isinstance(answers[2], IdempotencyConflict)
    assert answers[2].job_id == first.id
    assert not isinstance(answers[3], BaseException)
    assert (answers[3].id, answers[3].duplicate) == (held.id, True)
    assert (await queue.stats()).waiting == 4


async def test_each_gets_its_own_answer_whichever_call_of_a_trip_carries_it(counted: tuple[Queue, Counted]):
    queue, connection = counted
    held = await queue.submit(NewJob("x", options=Options(key="d")))
    connection.trips = connection.calls = 0
    new = [NewJob("x") for _ in range(BATCH // 2)]
    places = [0, 1, BATCH // 4, BATCH // 2 - 1]
    for place in places:
        new[place] = NewJob("x", options=Options(key="d"))
    answers = await queue.submit_many(new)
    assert (connection.trips, connection.calls) == (1, 5), "jobs with keys have calls of their own"
    found = [
        place for place, answer in enumerate(answers) if answer == Accepted(held.id, True, State.WAITING, "returned")
    ]
    assert found == places
    assert len({answer.id for answer in answers}) == len(new) - len(places) + 1  # pyright: ignore[reportAttributeAccessIssue]


async def test_a_partly_refused_trip_raises_for_all_and_can_be_repeated(
    queue: Queue, admin: Store, monkeypatch: pytest.MonkeyPatch
):
    new = [NewJob("x", id=new_id()) for _ in range(BATCH)]
    trip = queue.store.trip

    async def refused_behind(*calls: object, **rest: object) -> list[object]:
        first, *_ = await trip(calls[0], **rest)  # pyright: ignore
        return [first, StoreFull("full")]

    monkeypatch.setattr(queue.store, "trip", refused_behind)
    with pytest.raises(StoreFull):
        await queue.submit_many(new)
    assert (await queue.stats()).waiting == CALL
    monkeypatch.undo()
    assert await queue.submit_many(new) == [Accepted(str(job.id)) for job in new]
    assert (await queue.stats()).waiting == BATCH


async def test_the_same_id_again_is_not_reported_as_a_duplicate(queue: Queue):
    """A caller repeats a call whose answer it did not get."""
    new = NewJob("x", id=new_id())
    job = await queue.submit(new)
    again = await queue.submit(new)
    assert (again.id, again.duplicate) == (job.id, False)
    assert (await queue.stats()).waiting == 1


async def test_one_invalid_job_of_many_keeps_all_from_being_written(queue: Queue):
    with pytest.raises(InvalidJob, match="priority is 5000"):
        await queue.submit_many([NewJob("x"), NewJob("x", options=Options(priority=5000))])
    assert (await queue.stats()).waiting == 0


@pytest.mark.parametrize("raw", [b"", b"{", b'1,"attempts":9', b"{} {}", b"NaN", b"[" * 100_000 + b"]" * 100_000])
async def test_a_raw_payload_must_be_json(raw: bytes, queue: Queue):
    """The payload is stored byte for byte. Any other text would make a row that cannot be read."""
    with pytest.raises(InvalidJob, match="payload of 'x': "):
        await queue.enqueue("x", msgspec.Raw(raw))
    assert (await queue.stats()).waiting == 0


@pytest.mark.parametrize("job_id", ["", "a b", "queue:id", "x" * 65])
async def test_invalid_ids_are_refused(job_id: str, queue: Queue):
    with pytest.raises(InvalidJob, match=r"id '.*': 1 to 64 letters, digits and ._~-; jobq.new_id\(\) makes one"):
        await queue.submit(NewJob("x", id=job_id))


async def test_an_id_of_the_users_own_makes_repeating_harmless(queue: Queue):
    at = datetime.now(UTC) + timedelta(hours=1)
    for _ in range(3):
        job = await queue.enqueue("x", {"n": 1}, id="order-4711", run_at=at, key="k", metadata={"a": 1})
        assert (job.id, job.duplicate) == ("order-4711", False)
    row = await queue.get("order-4711")
    assert (row.state, row.run_at) == ("delayed", round(at.timestamp() * 1000))
    assert row.enqueued_at > 0
    assert (await queue.stats()).delayed == 1


async def test_an_id_of_another_job_is_refused(queue: Queue):
    await queue.enqueue("x", {"n": 1}, id="mine")
    with pytest.raises(JobIdTaken, match="'mine' belongs to another job"):
        await queue.enqueue("x", {"n": 2}, id="mine")
    with pytest.raises(JobIdTaken):
        await queue.submit_many([NewJob("y"), NewJob("x", id="mine"), NewJob("z")])
    assert (await queue.stats()).waiting == 3, "the others are written"


async def test_an_id_that_two_processes_drew_is_drawn_again(queue: Queue, connection: Connection):
    """Otherwise the second job would silently be lost."""
    async with Queue("test", connection, clock=lambda: 1_700_000_000_000) as one:
        for many in (False, True):
            first = await one.submit(NewJob("x", msgspec.Raw(b"1")))
            ids = one._sessions.here.entries.ids  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            node = ids._node  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            ids._count -= 1  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            if many:
                second, third = await one.submit_many([NewJob("x", msgspec.Raw(b"2")), NewJob("x")])
                assert third.id != second.id
            else:
                second = await one.submit(NewJob("x", msgspec.Raw(b"2")))
            assert second.id != first.id
            assert not second.duplicate
            assert bytes((await one.get(second.id)).payload) == b"2"
            assert ids._node != node  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        assert (await one.stats()).waiting == 5


async def test_a_clock_that_stands_still_loses_no_job(connection: Connection):
    async with Queue("test", connection, clock=lambda: 1_700_000_000_000) as queue:
        jobs = await queue.submit_many(NewJob("x") for _ in range(33_000))
        assert len({job.id for job in jobs}) == (await queue.stats()).waiting == 33_000
        assert (await queue.get(jobs[-1].id)).enqueued_at == 1_700_000_000_000


@pytest.mark.parametrize("many", [list, tuple, iter, lambda jobs: (job for job in jobs)])
async def test_any_iterable_can_be_enqueued(many: Callable[[Any], Any], queue: Queue):
    jobs = await queue.enqueue_many(many([queue.new("x", {"n": n}) for n in range(3)]))
    assert [bytes((await job.row()).payload) for job in jobs] == [b'{"n":%d}' % n for n in range(3)]


async def test_keys_of_jobs_and_keys_of_requests_have_nothing_in_common(queue: Queue):
    news = [
        NewJob("x", options=Options(key="abc")),
        NewJob("x", options=Options(key="i:abc")),
        NewJob("x", options=Options(key="idempotency:abc")),
        NewJob("x", idempotency_key="abc"),
        NewJob("x", idempotency_key="abc", idempotency_scope=("ann",)),
        NewJob("x", idempotency_key="abc", idempotency_scope=("ann", "0")),
        NewJob("x", idempotency_key="0abc", idempotency_scope=("ann",)),
        NewJob("x", idempotency_key="abc/0"),
    ]
    accepted = await queue.submit_many(news)
    assert not any(one.duplicate for one in accepted)
    again = await queue.submit_many(news)
    assert [(one.id, one.duplicate) for one in again] == [(one.id, True) for one in accepted]
    with pytest.raises(InvalidJob, match="idempotency scope: it takes 1 to 512 bytes without control characters"):
        await queue.submit(NewJob("x", idempotency_key="abc", idempotency_scope=("ann\x1f0",)))


async def test_the_key_of_a_request_outlives_its_job(queue: Queue):
    new = NewJob("x", idempotency_key="abc")
    first = await queue.submit(new)
    await queue.remove(first.id)
    assert await queue.submit(new) == Accepted(first.id, duplicate=True, done="returned")
    with pytest.raises(IdempotencyConflict):
        await queue.submit(NewJob("y", idempotency_key="abc"))
    assert (await queue.stats()).waiting == 0


async def test_a_trip_that_fails_raises_for_all_its_callers(queue: Queue, admin: Store):
    await admin.command(b"CONFIG", b"SET", b"maxmemory", 1)
    try:
        answers = await asyncio.gather(*[queue.enqueue("x") for _ in range(20)], return_exceptions=True)
    finally:
        await admin.command(b"CONFIG", b"SET", b"maxmemory", 0)
    assert {type(answer) for answer in answers} == {StoreFull}
    await queue.enqueue("x")
    assert (await queue.stats()).waiting == 1


async def test_callers_behind_a_trip_without_an_answer_do_not_wait_for_another_one(server: Server):
    frozen = type(server)().start()
    connection = Counted(frozen.url, timeout=0.5)
    async with Queue("test", connection) as queue:
        await queue.enqueue("x")
        connection.trips = 0
        assert frozen.process
        frozen.process.send_signal(signal.SIGSTOP)
        try:
            answers = await asyncio.gather(*[queue.enqueue("x") for _ in range(160)], return_exceptions=True)
        finally:
            frozen.process.send_signal(signal.SIGCONT)
        assert {type(answer) for answer in answers} == {StoreUnavailable}
        assert len({id(answer) for answer in answers}) == 160, "an exception object belongs to one caller"
        assert connection.trips == 1
        await queue.enqueue("x")
    await connection.aclose()
    frozen.stop()


async def test_a_cancelled_caller_does_not_cancel_the_others_of_its_trip(queue: Queue):
    tasks = [asyncio.create_task(queue.enqueue("x")) for _ in range(20)]
    await asyncio.sleep(0)
    tasks[7].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(answer, asyncio.CancelledError) for answer in answers) == 1
    assert (await queue.stats()).waiting in (19, 20)


async def test_cancelling_the_caller_that_sends_the_trip_does_not_cancel_the_others(queue: Queue):
    """The cancelled caller is the one that sends the trip. The next calls use the next trip."""
    tasks = [asyncio.create_task(queue.enqueue("x")) for _ in range(20)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(answer, BaseException) for answer in answers] == [True] + [False] * 19


async def test_closing_waits_for_running_calls(connection: Connection):
    async with Queue("test", connection) as queue:
        tasks = [asyncio.create_task(queue.enqueue("x")) for _ in range(20)]
        await asyncio.sleep(0)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [answer for answer in answers if isinstance(answer, BaseException)]
    with pytest.raises(StoreError, match="queue 'test' is not open"):
        await queue.enqueue("x")


async def test_several_jobs_cannot_share_an_id_or_a_key(queue: Queue):
    """Only the first job would be enqueued, and the others would silently be lost."""

    @queue.task
    async def send(n: int) -> None: ...

    for options, what in ((send.options(id="mine"), "one id"), (send.options(key="mine"), "one key")):
        with pytest.raises(InvalidJob, match=f"several jobs cannot have {what}"):
            await options.enqueue_many([{"n": 1}, {"n": 2}])
    assert (await queue.stats()).waiting == 0
    assert len(await queue.enqueue_many([queue.new("send", {"n": n}, key=f"k{n}") for n in range(2)])) == 2
