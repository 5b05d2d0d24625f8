"""Events of a queue: what is told, in which order, from which place on, and what is said if something is missing."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Connection, Context, Discard, InvalidJob, InvalidQuery, JobNotFound, Queue, StoreUnavailable, Worker
from jobq.engine.model.event import Place, read_cursor, read_entry
from jobq.engine.queue import events as following
from jobq.engine.queue import reader as reading
from jobq.engine.queue import session
from tests.conftest import Server, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from jobq import QueueEvent
    from jobq.engine.store import Store


async def take(events: AsyncGenerator[QueueEvent], count: int) -> list[QueueEvent]:
    """The next events."""
    async with asyncio.timeout(10):
        return [await anext(events) for _ in range(count)]


def short(events: list[QueueEvent]) -> list[tuple[str, str | None]]:
    return [(event.name, event.job) for event in events]


async def begun(queue: Queue, readers: int = 1, listeners: int = 1) -> None:
    """Wait until so many partitions are read for so many listeners each, so that all events from now on are told."""
    of = queue._sessions.here.readers._of  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

    def all_begun() -> bool:
        known = [one._listeners for one in of.values() if one._place is not None]  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        return len(known) >= readers and min(known) >= listeners

    await wait_until(all_begun, "the readers to have their places")
    for _ in range(10):
        await asyncio.sleep(0)


async def tell(admin: Store, queue: Queue, *fields: str) -> bytes:
    """Write an entry, as a script does."""
    return await admin.command(b"XADD", queue.store.keys["events"], b"MAXLEN", b"~", 1000, b"*", *fields)


async def test_a_job_is_told_from_its_start_to_its_end(connection: Connection) -> None:
    async with Queue("test", connection, events="all") as queue:

        @queue.task(attempts=2, backoff=[0])
        async def work(ctx: Context) -> str:
            ctx.progress({"step": ctx.attempt})
            if ctx.attempt == 1:
                raise ValueError("once more")
            return "done"

        job = await queue.enqueue("work")
        async with Worker(queue) as worker:
            worker.start()
            async with asyncio.timeout(10):
                told = [event async for event in job.events()]
        names = [event.name for event in told]
        assert names == ["started", "progress", "retried", "started", "progress", "completed"]
        assert {event.job for event in told} == {job.id}
        assert [bytes(event.value) for event in told if event.value is not None] == [b'{"step":1}', b'{"step":2}']
        places = [read_cursor(event.cursor)[0] for event in told]
        assert places == sorted(set(places))
        row = await queue.get(job.id)
        assert abs(told[-1].at - (row.finished_at or 0)) < 1000


async def test_outcomes_are_told_without_any_setting(connection: Connection) -> None:
    async with Queue("test", connection) as queue:

        @queue.task
        async def ok(ctx: Context) -> None:
            ctx.progress(1)

        @queue.task
        async def bad() -> None:
            raise Discard("no")

        events = queue.events()
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        done, failed = await queue.enqueue("ok"), await bad.enqueue()
        async with Worker(queue) as worker:
            worker.start()
            told = {(event.name, event.job) for event in [await first, *await take(events, 1)]}
        assert told == {("completed", done.id), ("failed", failed.id)}
        killed, removed = await queue.enqueue("ok", delay=60), await queue.enqueue("ok", delay=60)
        await killed.kill()
        await queue.remove(removed.id)
        await queue.retry(done.id)
        assert short(await take(events, 3)) == [("killed", killed.id), ("removed", removed.id), ("retried", done.id)]
        await events.aclose()


async def test_names_choose_events(queue: Queue, admin: Store) -> None:
    async with aclosing(queue.events(since="0", names=["failed"])) as events:
        await tell(admin, queue, "completed", "a b")
        await tell(admin, queue, "failed", "c")
        assert short(await take(events, 1)) == [("failed", "c")]


async def test_reading_continues_behind_a_cursor_also_within_a_batch(queue: Queue, admin: Store) -> None:
    await tell(admin, queue, "completed", "a b c")
    await tell(admin, queue, "failed", "d")
    async with aclosing(queue.events(since="0")) as events:
        told = await take(events, 4)
    assert short(told) == [("completed", "a"), ("completed", "b"), ("completed", "c"), ("failed", "d")]
    for n in range(3):
        async with aclosing(queue.events(since=told[n].cursor)) as events:
            assert await take(events, 3 - n) == told[n + 1 :]


async def test_a_time_is_a_place(queue: Queue, admin: Store) -> None:
    await admin.command(b"XADD", queue.store.keys["events"], b"1000-5", b"completed", b"a")
    await admin.command(b"XADD", queue.store.keys["events"], b"2000-0", b"completed", b"b")
    for since in ("2000", datetime.fromtimestamp(2, UTC)):
        async with aclosing(queue.events(since=since)) as events:
            assert short(await take(events, 1)) == [("completed", "b")]
    async with aclosing(queue.events(since=10 * 365 * 86400)) as events:
        await tell(admin, queue, "completed", "c")
        assert short(await take(events, 1)) == [("completed", "c")]
    async with aclosing(queue.events(since=datetime(2100, 1, 1, tzinfo=UTC))) as events:
        coming = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.02)
        await tell(admin, queue, "completed", "d")
        assert (await asyncio.wait_for(coming, 10)).job == "d"


async def test_a_reader_hears_of_partitions_that_are_added_while_it_reads(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "GROWTH", 0.02)
    monkeypatch.setattr(session, "FRESH_SECONDS", 0.01)
    async with Queue("test", connection) as operator, Queue("test", connection) as queue:
        before = await operator.enqueue("any", delay=60)
        async with aclosing(queue.events()) as events, aclosing(queue.events(since="0")) as earlier:
            coming = [asyncio.ensure_future(anext(one)) for one in (events, earlier)]
            await begun(queue)
            await operator.set_partitions(3)
            await operator.kill(before.id)
            assert {(await asyncio.wait_for(one, 10)).job for one in coming} == {before.id}
            jobs = [await operator.enqueue("any", id=f"j{n}~{n}", delay=60) for n in (1, 2)]
            for job in jobs:
                await job.kill()
            for one in (events, earlier):
                assert {event.job for event in await take(one, 2)} == {"j1~1", "j2~2"}


async def test_a_reader_that_opened_before_the_partitions_hears_nothing_old(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "GROWTH", 0.02)
    monkeypatch.setattr(session, "FRESH_SECONDS", 1000)
    async with Queue("test", connection) as queue, Queue("test", connection) as operator:
        await operator.enqueue("any", delay=60)
        await operator.set_partitions(2)
        old, new = [await operator.enqueue("any", id=f"{name}~1", delay=60) for name in ("old", "new")]
        await old.kill()
        assert short(await _all(queue.events(job=old.id))) == [("killed", old.id)]
        async with aclosing(queue.events()) as events:
            coming = asyncio.ensure_future(anext(events))
            await begun(queue, 2)
            await new.kill()
            assert (await asyncio.wait_for(coming, 10)).job == new.id


async def test_an_event_has_the_same_id_for_all_readers_and_a_cursor_says_what_it_is_for(
    connection: Connection,
) -> None:
    async with Queue("test", connection, partitions=3) as queue:
        jobs = [await queue.enqueue("any", id=f"j~{n}" if n else "j", delay=60) for n in range(3)]
        live = [asyncio.ensure_future(_all(job.events())) for job in jobs]
        await begun(queue, 3)
        for job in jobs:
            await job.kill()
        of_queue = {event.job: event for event in await take(queue.events(since="0"), 3)}
        assert len({event.id for event in of_queue.values()}) == 3
        for job, coming in zip(jobs, live, strict=True):
            [heard] = await asyncio.wait_for(coming, 10)
            [later] = await _all(job.events())
            [of_job] = await _all(job.events(since="0"))
            event = of_queue[job.id]
            for one in (heard, later, of_job):
                assert (one.id, one.at, one.name) == (event.id, event.at, event.name)
            assert heard.cursor == of_job.cursor
            for cursor in (heard.cursor, later.cursor):
                assert await _all(job.events(since=cursor)) == []
                with pytest.raises(InvalidQuery, match="is a cursor of the events of one job"):
                    queue.events(since=cursor)
        # A cursor of the queue has the job's place, too.
        last = max(of_queue.values(), key=lambda event: read_cursor(event.cursor))
        assert await _all(jobs[2].events(since=last.cursor)) in ([], [of_queue["j~2"]])
        with pytest.raises(InvalidQuery, match="is a cursor of another job"):
            jobs[1].events(since=(await _all(jobs[2].events()))[0].cursor)


async def test_an_end_that_the_stream_has_dropped_is_told_with_its_own_time(queue: Queue, admin: Store) -> None:
    job = await queue.enqueue("any")
    await job.kill()
    [told] = await _all(job.events())
    await admin.command(b"DEL", queue.store.keys["events"])
    await asyncio.sleep(0.01)
    first, second = await _all(job.events()), await _all(job.events())
    assert first == second
    assert (first[0].name, first[0].at) == ("killed", (await queue.get(job.id)).finished_at)
    assert abs(first[0].at - told.at) < 1000  # The script and the stream read the clock one after the other.


async def test_an_entry_that_was_written_after_the_end_is_that_of_the_end(queue: Queue, admin: Store) -> None:
    """The stream has a clock of its own. When a ms went by between the two, later readers were told another event."""
    job = await queue.enqueue("any")
    await job.kill()
    [told] = await _all(job.events())
    await admin.command(b"ZINCRBY", queue.store.keys["failed"], -3, job.id)
    assert await _all(job.events()) == [told]


async def test_the_end_of_a_job_that_is_not_kept_is_told_behind_a_cursor(queue: Queue, admin: Store) -> None:
    job, other = await queue.enqueue("any"), await queue.enqueue("any")
    before = (await tell(admin, queue, "started", job.id)).decode()
    await job.kill()
    await queue.remove(job.id)
    assert short(await _all(job.events(since=before))) == [("killed", job.id)]
    with pytest.raises(JobNotFound):
        await _all(job.events())
    await other.kill()
    last = (await _all(other.events()))[0].cursor
    with pytest.raises(JobNotFound):
        await _all(job.events(since=last))


@pytest.mark.parametrize(
    "since", ["x", "1-", "1-2.p1", "1-2.3.p0", "1-0,1-0.p1", "1-2.", "-1", "1-2.3.4", "9" * 16, "1 2", "", "1\n"]
)
async def test_a_wrong_cursor_is_refused_at_once(queue: Queue, since: str) -> None:
    with pytest.raises(InvalidQuery, match=r"is no cursor: give the|a cursor of the events of one job: read those"):
        queue.events(since=since)


@pytest.mark.parametrize("names", [["done"], [], "failed"])
async def test_wrong_names_are_refused_at_once(queue: Queue, names: Any) -> None:
    with pytest.raises(InvalidQuery, match="give a list of started, progress"):
        queue.events(names=names)


async def test_dropped_events_are_told(queue: Queue, admin: Store) -> None:
    first = (await tell(admin, queue, "completed", "a")).decode()
    for n in range(1200):
        await tell(admin, queue, "completed", f"j{n}")
    async with aclosing(queue.events(since=first)) as events:
        told = await take(events, 2)
    assert (told[0].name, told[0].job) == ("missed", None)
    assert told[1].name == "completed"
    assert told[1].job != "j0"


async def test_a_place_that_the_stream_does_not_have_any_more_is_told(queue: Queue, admin: Store) -> None:
    """Redis was emptied. The cursor is that of a stream that is gone."""
    async with aclosing(queue.events(since="99999999999999-0")) as events:
        assert (await take(events, 1))[0].name == "missed"
        await tell(admin, queue, "completed", "a")
        assert short(await take(events, 1)) == [("completed", "a")]


async def test_a_reader_that_has_not_come_to_a_place_yet_misses_nothing(
    queue: Queue, admin: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_read = asyncio.Event()
    async with aclosing(queue.events()) as earlier, aclosing(queue.events(since="1")) as busy:
        coming = [asyncio.ensure_future(anext(events)) for events in (earlier, busy)]
        await begun(queue, listeners=2)
        of = queue._sessions.here.readers.of(queue.store)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        asked: Any = queue.store.events

        async def late(*args: Any, **options: Any) -> Any:
            found = await asked(*args, **options)
            await may_read.wait()
            return found

        monkeypatch.setattr(queue.store, "events", late)
        await tell(admin, queue, "completed", "a")
        assert [(await one).job for one in coming] == ["a", "a"]
        await tell(admin, queue, "completed", "b")
        cursor = await queue.event_cursor()
        known = of._place  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        assert known is not None
        assert known < read_cursor(cursor)[0], "the reader is behind"
        async with aclosing(queue.events(since=cursor)) as events:
            first = asyncio.ensure_future(anext(events))
            await begun(queue, listeners=3)
            await tell(admin, queue, "completed", "c")
            may_read.set()
            assert (await asyncio.wait_for(first, 10)).job == "c"


async def test_a_page_that_could_not_be_read_is_read_again(
    queue: Queue, admin: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader of new events waits in its own call, and notices nothing of an answer that was lost."""
    monkeypatch.setattr(following, "AGAIN", 0.01)
    await tell(admin, queue, "completed", "a")
    page, failed = reading.EventReader.page, 0

    async def lost(reader: reading.EventReader, place: Place) -> Any:
        nonlocal failed
        if failed < 3:
            failed += 1
            raise StoreUnavailable("the answer was lost")
        return await page(reader, place)

    monkeypatch.setattr(reading.EventReader, "page", lost)
    async with aclosing(queue.events(since="1")) as events:
        assert short(await take(events, 1)) == [("completed", "a")]
    assert failed == 3


async def test_an_unexpected_error_of_the_reader_is_logged_and_it_reads_on(
    queue: Queue, admin: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reading, "pause", lambda _: 0.01)
    async with aclosing(queue.events()) as events:
        coming = asyncio.ensure_future(anext(events))
        await begun(queue)
        read, failed = queue.store.events, 0

        async def broken(*args: Any, **options: Any) -> Any:
            nonlocal failed
            if not failed:
                failed += 1
                raise ValueError("no entry")
            return await read(*args, **options)

        monkeypatch.setattr(queue.store, "events", broken)
        told = [await tell(admin, queue, "completed", name) for name in "abc"]
        assert short([await asyncio.wait_for(coming, 10), *await take(events, len(told) - 1)]) == [
            ("completed", name) for name in "abc"
        ]
        await wait_until(lambda: failed == 1, "the error")
    assert "The events of queue test could not be read; tried again" in caplog.text


async def test_events_of_all_partitions_are_told_and_a_cursor_has_a_place_in_each(connection: Connection) -> None:
    async with Queue("test", connection, partitions=3) as queue:
        jobs = [await queue.enqueue("any", id=f"j{n}~{n % 3}") for n in range(9)]
        async with aclosing(queue.events()) as events:
            coming = asyncio.ensure_future(anext(events))
            await begun(queue, 3)
            for job in jobs:
                await job.kill()
            told = [await asyncio.wait_for(coming, 10), *await take(events, 8)]
        assert {(event.name, event.job) for event in told} == {("killed", job.id) for job in jobs}
        assert len({event.id for event in told}) == 9
        for partition in range(3):
            mine = [event.job for event in told if (event.job or "").endswith(f"~{partition}")]
            assert mine == [f"j{n}~{partition}" for n in range(partition, 9, 3)], "a partition keeps its order"
        for n in (0, 4, 7):
            async with aclosing(queue.events(since=told[n].cursor)) as events:
                rest = await take(events, 8 - n)
                assert {event.job for event in rest} == {event.job for event in told[n + 1 :]}
        assert short(await _all(jobs[5].events())) == [("killed", "j5~2")]
        await queue.set_events("all")
        for part in queue.store.parts:
            assert await part.command(b"HGET", part.keys["meta"], b"events") == b"all"


async def test_a_slow_listener_reads_the_stream_itself_and_misses_nothing(
    queue: Queue, admin: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "KEPT", 8)
    async with aclosing(queue.events()) as slow, aclosing(queue.events()) as fast:
        coming = [asyncio.ensure_future(anext(events)) for events in (slow, fast)]
        await begun(queue, listeners=2)
        for n in range(100):
            await tell(admin, queue, "completed", f"j{n}")
        assert {(await one).job for one in coming} == {"j0"}
        expected = [("completed", f"j{n}") for n in range(1, 100)]
        assert short(await take(fast, 99)) == expected
        assert queue._sessions.here.readers.of(queue.store).behind(Place(1, 0)) is None  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        assert short(await take(slow, 99)) == expected


async def test_listeners_share_one_reader(queue: Queue) -> None:
    def readers() -> int:
        return sum(task.get_name() == "jobq-events" for task in asyncio.all_tasks())

    listening = [queue.events() for _ in range(50)]
    waiting = [asyncio.ensure_future(anext(events)) for events in listening]
    job = await queue.enqueue("any")
    waiting.append(asyncio.ensure_future(job.result()))
    await begun(queue, listeners=51)
    assert readers() == 1
    await queue.remove(job.id)
    done = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
    assert {(event.name, event.job) for event in done if not isinstance(event, BaseException)} == {("removed", job.id)}
    assert [type(error) for error in done if isinstance(error, BaseException)] == [JobNotFound]
    for events in listening:
        await events.aclose()


async def test_events_of_a_job_end_with_it(queue: Queue, admin: Store) -> None:
    job, other = await queue.enqueue("any"), await queue.enqueue("any")
    coming = asyncio.ensure_future(_all(job.events()))
    await begun(queue)
    await other.kill()
    await job.kill()
    told = await asyncio.wait_for(coming, 10)
    assert short(told) == [("killed", job.id)]
    assert short(await _all(job.events())) == [("killed", job.id)], "it has ended already"
    assert await _all(job.events(since=told[-1].cursor)) == [], "the caller was told"
    assert short(await _all(job.events(since="0"))) == [("killed", job.id)]
    with pytest.raises(JobNotFound):
        await anext(queue.events(job="nobody"))
    with pytest.raises(JobNotFound):
        queue.events(job="no id")


async def _all(events: AsyncGenerator[QueueEvent]) -> list[QueueEvent]:
    async with asyncio.timeout(10):
        return [event async for event in events]


async def test_events_of_a_job_end_if_redis_was_emptied(
    queue: Queue, admin: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobq.engine.queue.events.LOOK", 0.02)
    looked, look = asyncio.Event(), following._end_of  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

    async def look_and_tell(*args: Any, **options: Any) -> Any:
        found = await look(*args, **options)
        looked.set()
        return found

    monkeypatch.setattr(following, "_end_of", look_and_tell)
    job = await queue.enqueue("any")
    coming = asyncio.ensure_future(_all(job.events()))
    # A reader that has not seen the job yet would say that there is none.
    await asyncio.wait_for(looked.wait(), 10)
    await admin.command(b"FLUSHALL")
    assert short(await asyncio.wait_for(coming, 10)) == [("removed", job.id)]


async def test_listeners_wait_while_redis_is_away() -> None:
    server = Server("--appendonly", "yes", "--appendfsync", "always").start()
    connection = Connection(server.url, timeout=0.3)
    try:
        async with Queue("test", connection) as queue:
            job = await queue.enqueue("any")
            async with aclosing(queue.events(since="0")) as events:
                coming = asyncio.ensure_future(anext(events))
                await begun(queue)
                server.kill()
                with pytest.raises(StoreUnavailable):
                    await job.kill()
                server.start()
                await job.kill()
                assert (await asyncio.wait_for(coming, 20)).job == job.id
    finally:
        await connection.aclose()
        server.stop()


async def test_a_queue_that_is_closed_ends_its_listeners(connection: Connection) -> None:
    queue = Queue("test", connection)
    async with queue:
        coming = asyncio.ensure_future(anext(queue.events()))
        await begun(queue)
    with pytest.raises(StoreUnavailable, match="the queue was closed"):
        await asyncio.wait_for(coming, 10)


async def test_operators_choose_what_is_told(connection: Connection, caplog: pytest.LogCaptureFixture) -> None:
    async with Queue("test", connection) as queue:
        assert await queue.get_events() == "outcomes"
        await queue.set_events("all")
        assert await queue.get_events() == "all"
        await queue.set_events("outcomes")
        with pytest.raises(InvalidJob, match="it takes 'outcomes' or 'all'"):
            await queue.set_events("some")  # pyright: ignore[reportArgumentType]
    async with Queue("test", connection, events="all") as queue:
        await queue.enqueue("any")
        await queue.store.register()
        assert await queue.get_events() == "outcomes", "what an operator has set stays"
    assert "Queue test tells outcomes as events, and this program declares all" in caplog.text
    with pytest.raises(InvalidJob, match="it takes 'outcomes' or 'all'"):
        Queue("test", connection, events="some")  # pyright: ignore[reportArgumentType]


def test_events_in_synchronous_code(redis_url: str) -> None:
    queue = Queue("test", redis_url)
    with queue.sync() as sync:
        job = sync.enqueue("any")
        timer = threading.Timer(0.05, lambda: sync.kill(job.id))
        timer.start()
        assert [event.name for event in sync.events(job=job.id)] == ["killed"]
        timer.join()


def test_damaged_entries_are_passed_over() -> None:
    place = Place(1, 0)
    assert list(read_entry("q", place, [b"\xff", b"a"], 0, None)) == []
    assert [event.job for event in read_entry("q", place, [b"failed", b"\xff a"], 0, b"a")] == ["a"]
