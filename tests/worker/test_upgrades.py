"""New code while older jobs wait: versions of payloads, other names of types, and the check before a deploy."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import isolated
import msgspec
import pytest

from jobq import InvalidJob, InvalidQuery, Misfit, NewJob, Queue, State, Unique
from jobq.engine.queue.firing import Firing
from jobq.engine.queue.published import Publisher
from jobq.engine.store import Store
from jobq.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools import Logs

    from jobq import Job
    from jobq.engine.store.sender import Sender
    from tests.conftest import Until


@pytest.fixture
async def old(redis_url: str) -> AsyncIterator[Queue]:
    """The queue as a program without the code sees it."""
    async with Queue("test", redis_url) as queue:
        yield queue


def send_to(queue: Queue, **options: Any) -> Any:
    """Version 3 of a task "send", which was called "mail" once."""

    @queue.task(name="send", version=3, aliases=["mail"], **options)
    async def send(to: str, subject: str) -> str:
        return f"{to}: {subject}"

    @send.upcast(1)
    def _(payload: dict[str, Any]) -> dict[str, Any]:
        return {**payload, "title": "none"}

    @send.upcast(2)
    def _(payload: dict[str, Any]) -> dict[str, Any]:
        payload["subject"] = payload.pop("title").upper()
        return payload

    return send


async def test_payloads_of_every_version_run_and_stay_as_they_were(queue: Queue, old: Queue, start):
    send = send_to(queue)
    jobs = [
        await old.enqueue("mail", {"to": "a"}, version=1),
        await old.enqueue("send", {"to": "b", "title": "hi"}, version=2),
        await old.enqueue("send", {"to": "c", "subject": "Hi"}, version=3),
        await send.enqueue("d", "Hello"),
    ]
    await start()
    results = [msgspec.json.decode(await queue.result(job.id, timeout=10)) for job in jobs]
    assert results == ["a: NONE", "b: HI", "c: Hi", "d: Hello"]
    rows = [await queue.get(job.id) for job in jobs]
    assert [(row.type, row.version, bytes(row.payload)) for row in rows] == [
        ("mail", 1, b'{"to":"a"}'),
        ("send", 2, b'{"to":"b","title":"hi"}'),
        ("send", 3, b'{"to":"c","subject":"Hi"}'),
        ("send", 3, b'{"to":"d","subject":"Hello"}'),
    ]


async def test_handlers_in_threads_and_processes_get_the_converted_payload(queue: Queue, old: Queue, start):
    add = queue.task(isolate="process", version=2, aliases=["plus"])(isolated.add)
    add.upcast(1)(lambda payload: {"a": int(payload["a"]), "b": 10})

    @queue.task(version=2)
    def more(n: int, **rest: Any) -> list[Any]:
        return [n, rest]

    more.upcast(1)(lambda payload: {"n": payload["number"], "extra": True})
    await start()
    first = await old.enqueue("plus", {"a": "5"}, version=1)
    second = await old.enqueue("more", {"number": 5}, version=1)
    assert bytes(await queue.result(first.id, timeout=20)) == b"15"
    assert msgspec.json.decode(await queue.result(second.id, timeout=20)) == [5, {"extra": True}]


async def test_hooks_and_middleware_see_the_new_name_and_the_new_payload(queue: Queue, old: Queue, start, until: Until):
    send = send_to(queue)
    seen: list[tuple[str, str, bytes]] = []

    @queue.middleware
    async def watch(context: Any, call_next: Any) -> Any:
        seen.append(("middleware", context.type, bytes(context.spec.payload)))
        return await call_next()

    @send.on("success")
    async def after(event: Any) -> None:
        seen.append(("success", event.type, bytes(event.payload)))

    await old.enqueue("mail", {"to": "a"}, version=1)
    await start()
    await until(lambda: len(seen) == 2)
    payload = b'{"to":"a","subject":"NONE"}'
    assert seen == [("middleware", "send", payload), ("success", "send", payload)]


async def test_a_newer_payload_goes_back_uncharged_and_runs_on_newer_code(
    queue: Queue, old: Queue, redis_url: str, start, until: Until, logs: Logs
):
    @queue.task(version=1)
    async def send(to: str) -> str:
        return f"old code: {to}"

    worker = await start()
    job = await old.enqueue("send", {"to": "a", "subject": "Hi"}, version=3)

    async def handed_back() -> bool:
        return (await queue.get(job.id)).unserved > 0

    await until(handed_back)
    assert logs.all("its payload has version 3, and send has version 1 here")
    row = await queue.get(job.id)
    assert (row.attempts_made, row.state) == (0, State.DELAYED)
    worker.stop()
    await worker.finished()
    async with Queue("test", redis_url) as newer:
        send_to(newer)
        await newer.promote(job.id)
        await start(newer)
        assert bytes(await newer.result(job.id, timeout=10)) == b'"a: Hi"'


async def test_what_an_upcast_refuses_goes_back_and_fails_in_the_end(connection, start, old: Queue):
    async with Queue("test", connection, unserved_for=0.001) as queue:
        send = send_to(queue)
        await start(queue)
        job = await old.enqueue("send", {"to": "a"}, version=2)
        with pytest.raises(Exception, match=r"upcast\(2\) of send raised KeyError: 'title'"):
            await queue.result(job.id, timeout=10)
        row = await queue.get(job.id)
        assert row.errors[-1].type == "InvalidPayload"
        assert bytes(row.payload) == b'{"to":"a"}'
        assert send.name == "send"


async def test_code_converts_what_it_enqueues_so_keys_and_limits_are_those_of_today(queue: Queue):
    send = send_to(queue, group="{subject}", unique=Unique(by=("subject",), while_="unfinished"))
    job = await queue.enqueue("mail", {"to": "a"}, version=1)
    row = await queue.get(job.id)
    assert (row.type, row.version, row.group) == ("send", 3, "NONE")
    assert bytes(row.payload) == b'{"to":"a","subject":"NONE"}'
    assert (await send.enqueue("b", "NONE")).duplicate
    many = await queue.enqueue_many([queue.new("send", {"to": "c", "title": "x"}, version=2)])
    assert (await many[0].row()).group == "X"


async def test_code_refuses_payloads_that_it_cannot_convert(queue: Queue):
    send = send_to(queue)
    with pytest.raises(InvalidJob, match="its payload has version 4, and send has version 3 here"):
        await send.options(version=4).enqueue("a", "b")
    with pytest.raises(InvalidJob, match=r"upcast\(2\) of send raised KeyError"):
        await queue.enqueue("send", {"to": "a"}, version=2)
    with pytest.raises(InvalidJob, match="missing required field `to`"):
        await queue.enqueue("send", {"title": "a"}, version=2)
    with pytest.raises(InvalidJob, match="missing required field `to`"):
        await queue.enqueue_many([queue.new("send", {"title": "a"}, version=2)])
    assert (await queue.stats()).waiting == 0


@dataclass
class Address:
    raises: str

    def __post_init__(self) -> None:
        raise RAISED[self.raises]


RAISED = {"KeyError": KeyError("no"), "SystemExit": SystemExit(3)}


@pytest.mark.parametrize("name", RAISED)
async def test_code_of_the_user_that_raises_refuses_the_job_and_does_not_end_the_server(
    queue: Queue, old: Queue, name: str
):
    @queue.task
    async def post(to: Address) -> None: ...

    @queue.task(version=2)
    async def send(to: str) -> None: ...

    @send.upcast(1)
    def _(payload: dict[str, Any]) -> dict[str, Any]:
        raise RAISED[name]

    with pytest.raises(InvalidJob, match=rf"upcast\(1\) of send raised {name}"):
        await queue.enqueue("send", {"to": "a"}, version=1)
    with pytest.raises(InvalidJob, match=f"the type of an argument raised {name}"):
        await queue.enqueue("post", {"to": {"raises": name}})
    await old.enqueue("send", {"to": "a"}, version=1)
    await old.enqueue("post", {"to": {"raises": name}})
    report = await queue.check_jobs()
    assert {one.type: name in one.reason for one in report.misfits} == {"send": True, "post": True}


async def test_producers_without_the_code_send_the_published_version(queue: Queue, old: Queue):
    send_to(queue)
    await Publisher(queue.tasks, {}, "test", "worker").publish(queue.store)
    for name in ("send", "mail"):
        job = await old.enqueue(name, {"to": "a", "subject": "b"})
        assert (await queue.get(job.id)).version == 3, name
    kept = await old.enqueue("send", {"to": "a"}, version=1)
    assert (await queue.get(kept.id)).version == 1
    made_by_hand = await old.submit(NewJob("send"))
    assert (await queue.get(made_by_hand.id)).version == 1


@pytest.mark.parametrize("on", ["replace", "replace_all", "keep_last"])
async def test_a_replaced_payload_brings_its_version(queue: Queue, old: Queue, start, on: Any):
    send_to(queue)
    unique = Unique(key="k", while_="unfinished" if on == "keep_last" else "queued", on=on)
    first = await old.enqueue("send", {"to": "a"}, version=1, unique=unique, metadata={"n": 1})
    second = await old.enqueue("send", {"to": "b", "subject": "new"}, version=3, unique=unique)
    assert second.duplicate or on == "keep_last"
    row = await queue.get((first if second.duplicate else second).id)
    assert (row.version, bytes(row.payload), row.metadata) == (3, b'{"to":"b","subject":"new"}', None)
    third = await old.enqueue("send", {"to": "c"}, version=1, unique=unique)
    row = await queue.get((first if third.duplicate else third).id)
    assert (row.version, bytes(row.payload)) == (1, b'{"to":"c"}')


async def test_a_rerun_has_the_version_of_the_earlier_job(queue: Queue, old: Queue, start):
    send_to(queue)
    first = await old.enqueue("mail", {"to": "a"}, version=1)
    again = await old.rerun(first.id)
    edited = await old.rerun(first.id, {"to": "b"})
    newer = await old.rerun(first.id, {"to": "c", "subject": "d"}, version=3)
    await start()
    results = [msgspec.json.decode(await queue.result(job.id, timeout=10)) for job in (again, edited, newer)]
    assert results == ["a: NONE", "b: NONE", "c: d"]


async def test_a_schedule_keeps_the_version_of_its_payload(connection, redis_url: str):
    clock = ManualClock(int(datetime(2027, 1, 4, 12, tzinfo=UTC).timestamp() * 1000))
    async with Queue("test", connection, clock=clock) as first:

        @first.task(name="send", version=2)
        async def send(to: str, title: str) -> None: ...

        row = await first.put_schedule("hourly", "send", {"to": "a", "title": "hi"}, every="1h")
        assert row.name == "hourly"
    async with Queue("test", connection, clock=clock) as second:
        send_to(second)
        await second.put_schedule("daily", "send", {"to": "a", "subject": "hi"}, every="24h")
        clock.advance(86_400.5)
        await Firing(second).fire_due()
        rows = (await second.page()).jobs
        assert {bytes(row.payload) for row in rows} == {b'{"to":"a","subject":"HI"}', b'{"to":"a","subject":"hi"}'}
        assert {row.version for row in rows} == {3}


async def test_a_check_finds_what_the_code_could_not_run(queue: Queue, old: Queue):
    send_to(queue)
    fits = [
        await old.enqueue("mail", {"to": "a"}, version=1),
        await old.enqueue("send", {"to": "a", "subject": "b"}, version=3),
    ]
    newer = await old.enqueue("send", {}, version=9)
    lacks = [await old.enqueue("send", {"to": "a"}, version=3) for _ in range(3)]
    gone = await old.enqueue("gone", delay=100)
    ignored = await old.enqueue("send", {"to": "a", "subject": "b", "colour": 1}, version=3)
    await old.put_schedule("s", "gone", {}, every="1h")
    report = await queue.check_jobs()
    assert (report.jobs, report.schedules, report.complete, report.fits) == (len(fits) + 6, 1, True, False)
    assert [(one.severity, one.kind, one.type, one.version, one.count) for one in report.misfits] == [
        ("error", "job", "send", 3, 3),
        ("error", "job", "send", 9, 1),
        ("error", "job", "gone", 1, 1),
        ("error", "schedule", "gone", 1, 1),
        ("warning", "job", "send", 3, 1),
    ]
    texts = {one.reason for one in report.misfits}
    assert "the payload does not fit the handler: Object missing required field `subject`" in texts
    assert "its payload has version 9, and send has version 3 here" in texts
    assert "there is no handler for this type" in texts
    examples = {one.example for one in report.misfits}
    assert examples == {min(job.id for job in lacks), newer.id, gone.id, "s", ignored.id}

    assert (await queue.check_jobs([State.DELAYED])).jobs == 1
    assert (await queue.check_jobs(["failed"])).misfits == [report.misfits[3]]
    some = await queue.check_jobs(limit=2)
    assert (some.jobs, some.complete) == (2, False)
    exactly = await queue.check_jobs(limit=len(fits) + 6)
    assert exactly.complete


async def test_a_check_of_many_different_misfits_stays_small(queue: Queue, old: Queue, monkeypatch):
    send_to(queue)
    monkeypatch.setattr("jobq.engine.queue.checking.MISFITS_MAX", 3)
    monkeypatch.setattr("jobq.engine.queue.checking.PAGE", 2)
    await old.enqueue_many([NewJob(f"type{n}") for n in range(7)])
    report = await queue.check_jobs()
    assert (report.jobs, len(report.misfits)) == (7, 4)
    assert max(report.misfits, key=lambda one: one.count) == Misfit(
        "error", "job", "*", 0, "other misfits, which do not fit in this report", 4, report.misfits[0].example
    )


async def test_a_check_needs_the_code_and_a_state_that_exists(queue: Queue, old: Queue):
    with pytest.raises(InvalidQuery, match="has no tasks in this program"):
        await old.check_jobs()
    send_to(queue)
    with pytest.raises(InvalidQuery, match="it takes one of"):
        await queue.check_jobs(["broken"])


async def test_a_damaged_row_is_found(queue: Queue, old: Queue):
    send_to(queue)
    job = await old.enqueue("send", {"to": "a", "subject": "b"}, version=3)
    await queue.store.command(b"HSET", queue.store.keys["jobs"], job.id.encode(), b"garbage")
    report = await queue.check_jobs()
    assert [one.reason for one in report.misfits] == ["this version of jobq cannot read the job's row"]


class Crash(Exception):
    """Stands for the death of the process that migrates."""


async def test_a_layout_is_migrated_in_pages_while_a_worker_and_a_producer_are_busy(queue: Queue, start, connection):
    """Layouts of this test: the second one notes a progress of delayed jobs. Jobs run between any two pages."""
    ran: Counter[int] = Counter()
    more = asyncio.Condition()

    @queue.task
    async def work(n: int) -> int:
        async with more:
            ran[n] += 1
            more.notify_all()
        return n

    delayed = [await work.options(delay=600).enqueue(n) for n in range(-20, 0)]
    await start(queue, concurrency=4)
    jobs: list[Job[int]] = []

    async def produce() -> None:
        while True:
            jobs.append(await work.enqueue(len(jobs)))

    pages: list[int] = []

    async def to_2(store: Sender) -> bool:
        """Five jobs, and the first process dies in its third page."""
        at = int(await store.command(b"HGET", store.keys["meta"], b"migrated") or 0)
        ids = await store.command(b"ZRANGE", store.keys["delayed"], at, at + 4)
        for job_id in ids:
            await store.command(b"HSET", store.keys["progress"], job_id, b"2")
            if len(pages) == 2:
                pages.append(0)
                raise Crash
        before = ran.total()
        async with more:
            await asyncio.wait_for(more.wait_for(lambda: ran.total() >= before + 10), 20)
        await store.command(b"HSET", store.keys["meta"], b"migrated", at + 5)
        pages.append(len(ids))
        return len(ids) == 5

    producer = asyncio.create_task(produce())
    with pytest.raises(Crash):
        await Store(connection, "test").open(wanted=2, migrations={1: to_2})
    assert await queue.store.command(b"HGET", queue.store.keys["meta"], b"layout") == b"1"
    await Store(connection, "test").open(wanted=2, migrations={1: to_2})
    producer.cancel()
    assert pages == [5, 5, 0, 5, 5, 0]
    assert await queue.store.command(b"HGET", queue.store.keys["meta"], b"layout") == b"2"
    assert [bytes((await job.row()).progress or b"") for job in delayed] == [b"2"] * 20
    for job in delayed:
        await queue.promote(job.id)
    assert [await job.result(20) for job in [*jobs, *delayed]] == [*range(len(jobs)), *range(-20, 0)]
    assert set(ran.values()) == {1}
