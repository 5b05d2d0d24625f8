"""Schedules: slots come once and in time, whatever workers, clocks, deploys and earlier jobs do."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Concurrency, Context, InvalidJob, Queue, ScheduleNotFound, State, Unique, UnknownType, singleton
from jobq.engine.queue import declaring, firing
from jobq.engine.queue.declaring import declare_schedules
from jobq.engine.queue.firing import Firing
from jobq.engine.queue.published import Publisher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tools import Gate, Logs

    from jobq import Connection
    from tests.conftest import Until

START = int(datetime(2027, 1, 4, 12, 0, 0, tzinfo=UTC).timestamp()) * 1000
"""A Monday."""
MINUTE = 60_000
HOUR = 60 * MINUTE


class Clock:
    """The server's clock, which only the test moves."""

    def __init__(self) -> None:
        self.ms = START

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def timed(connection: Connection, clock: Clock) -> AsyncIterator[Queue]:
    """A queue whose time the test moves, with a task."""
    async with Queue("timed", connection, clock=clock) as queue:

        @queue.task
        async def report(n: int = 0) -> int:
            return n

        yield queue


async def slots(queue: Queue, state: State | None = None) -> list[str]:
    """The ids of the jobs without the schedule's name, in their order."""
    return sorted(row.id.partition("~")[2] for row in (await queue.page(state, limit=500)).jobs)


def at(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y%m%dT%H%M%SZ}"


async def end(queue: Queue, *, fail: bool = False) -> list[Any]:
    """Let all jobs that are due run and end. Returns what the handlers heard of their schedules."""
    store = queue.store
    await store.do(store.forward(500))
    claimed = await store.do(store.claim(500, 30_000, "w", "w:0", next(requests), repeated=False))
    if claimed is None:
        return []
    heard = [(await queue.get(job_id.decode())).schedule for job_id in claimed.ids]
    for job_id in claimed.ids:
        if fail:
            record = b'{"attempt":1,"at":1,"type":"Boom","message":"no"}'
            await store.do(store.fail([job_id, claimed.token, 1, record, ""]))
        else:
            result = b'[1,1,"w",{"of":"%b"}]' % job_id
            await store.do(store.complete([job_id, claimed.token, result, ""], []))
    return heard


requests = itertools.count(1)


async def test_a_slot_gets_one_job_at_its_time(timed: Queue, clock: Clock):
    await timed.put_schedule("nightly", "report", {"n": 7}, cron="*/5 * * * *", priority=-3)
    fire = Firing(timed).fire_due
    assert await fire() == 5 * MINUTE
    assert await slots(timed) == []
    clock.ms += 5 * MINUTE
    assert await fire() == 5 * MINUTE
    assert await slots(timed) == [at(clock.ms)]
    row = (await timed.page()).jobs[0]
    assert (bytes(row.payload), row.priority, row.state) == (b'{"n":7}', -3, State.DELAYED)
    assert await fire() == 5 * MINUTE
    assert len(await slots(timed)) == 1


async def test_many_workers_give_a_slot_one_job(timed: Queue, clock: Clock):
    for n in range(20):
        await timed.put_schedule(f"s{n}", "report", every=60)
    clock.ms += MINUTE
    await asyncio.gather(*(Firing(timed).fire_due() for _ in range(8)))
    jobs = (await timed.page(limit=500)).jobs
    assert len(jobs) == 20


async def test_two_that_have_read_the_same_row_give_a_slot_one_job(timed: Queue, clock: Clock):
    await timed.put_schedule("s", "report", every=60, overlap="allow")
    clock.ms += MINUTE
    _, _, now, *rows = await timed.store.do(timed.store.schedule_due(10, 0))
    for _ in range(3):
        await Firing(timed).fire(rows, int(now))
    assert len(await slots(timed)) == 1
    clock.ms += MINUTE
    await Firing(timed).fire(rows, clock.ms)
    assert len(await slots(timed)) == 1, "a program that froze for a minute has an old row"


async def test_a_program_that_dies_with_a_due_schedule_loses_no_slot(timed: Queue, clock: Clock):
    await timed.put_schedule("s", "report", every=60)
    clock.ms += MINUTE
    assert await timed.store.do(timed.store.schedule_due(10, firing.LENT_MS))  # it dies here
    assert await Firing(timed).fire_due() == firing.LENT_MS
    clock.ms += firing.LENT_MS
    await Firing(timed).fire_due()
    assert await slots(timed) == [at(START + MINUTE)]


@pytest.mark.parametrize(("catch_up", "jobs", "missed"), [("last", 1, 59), ("all", 60, 0), ("none", 0, 0)])
async def test_slots_of_an_outage(timed: Queue, clock: Clock, catch_up: Any, jobs: int, missed: int):
    await timed.put_schedule("s", "report", every=60, catch_up=catch_up, overlap="allow")
    clock.ms += HOUR + (61_000 if catch_up == "none" else 0) - (MINUTE if catch_up == "none" else 0)
    clock.ms += 0
    if catch_up == "none":
        # the last slot is a second old, so move the schedule to slots that come once an hour
        await timed.put_schedule("s", "report", every=3600, catch_up="none", from_=stamp(START))
        clock.ms = START + 3 * HOUR + 61_000
    await Firing(timed).fire_due()
    found = (await timed.page(limit=500)).jobs
    assert len(found) == jobs
    heard = sorted((row.schedule.slot, row.schedule.missed) for row in found if row.schedule)
    if jobs:
        assert heard[0][1] == missed
        assert heard[-1][0] == datetime.fromtimestamp(START / 1000 + 3600, UTC)
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    assert len((await timed.page(limit=500)).jobs) == jobs + (catch_up != "none")


def stamp(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


async def test_catching_up_with_all_is_bounded(timed: Queue, clock: Clock):
    await timed.put_schedule("s", "report", every=1, catch_up="all", overlap="allow")
    clock.ms += 50 * HOUR
    await Firing(timed).fire_due()
    found = await slots(timed)
    assert len(found) == 100
    assert found[-1] == at(clock.ms)
    row = (await timed.get_schedule("s")).last[-1]
    assert row.missed == 0
    first = (await timed.get(f"s~{found[0]}")).schedule
    assert first is not None
    assert first.missed == 900, "more than a thousand are not counted"


async def test_an_outage_of_a_fast_cron_schedule_costs_little(timed: Queue, clock: Clock):
    await timed.put_schedule("s", "report", cron="* * * * * *", tz="Europe/Berlin")
    clock.ms += 400 * 24 * HOUR
    await Firing(timed).fire_due()
    assert await slots(timed) == [at(clock.ms)]


async def test_overlap_skip(timed: Queue, clock: Clock, logs: Logs):
    await timed.put_schedule("s", "report", every=60)
    fire = Firing(timed).fire_due
    for _ in range(3):
        clock.ms += MINUTE
        await fire()
    assert await slots(timed) == [at(START + MINUTE)]
    assert logs.all("Schedule s skipped a slot, because an earlier job is in the way", "INFO")
    await end(timed)
    clock.ms += MINUTE
    await fire()
    (heard,) = await end(timed)
    assert heard.missed == 2
    assert heard.previous.state == "completed"
    assert heard.previous.result == {"of": f"s~{at(START + MINUTE)}"}
    assert heard.slot == stamp(clock.ms)
    outcomes = [(row.how, row.outcome) for row in (await timed.get_schedule("s")).last]
    assert outcomes == [("slot", "completed"), ("skipped", None), ("skipped", None), ("slot", "completed")]


async def test_overlap_allow(timed: Queue, clock: Clock):
    await timed.put_schedule("s", "report", every=60, overlap="allow")
    for _ in range(3):
        clock.ms += MINUTE
        await Firing(timed).fire_due()
    assert len(await slots(timed)) == 3


async def test_overlap_kill(timed: Queue, clock: Clock):
    await timed.put_schedule("s", "report", every=60, overlap="kill")
    for _ in range(3):
        clock.ms += MINUTE
        await Firing(timed).fire_due()
    assert await slots(timed, State.FAILED) == [at(START + MINUTE), at(START + 2 * MINUTE)]
    assert await slots(timed, State.DELAYED) == [at(START + 3 * MINUTE)]
    (row,) = (await timed.page(State.FAILED, limit=1)).jobs
    assert "overlap kill" in row.errors[-1].message
    assert (await timed.get_schedule("s")).failures == 0, "a kill is no failure"


async def test_overlap_queue_one(timed: Queue, clock: Clock):
    await timed.put_schedule("s", "report", every=60, overlap="queue_one")
    store = timed.store
    store.limited = True
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    await store.do(store.forward(10))
    await store.do(store.admit(10, 10, 1))
    first = await store.do(store.claim(10, 10 * HOUR, "w", "w:0", 1, repeated=False))
    assert first is not None
    assert len(first.ids) == 1
    for _ in range(3):
        clock.ms += MINUTE
        await Firing(timed).fire_due()
        await store.do(store.forward(10))
        assert (await store.do(store.admit(10, 10, 1)))[0] == 0, "the first one runs"
    assert await slots(timed, State.HELD) == [at(START + 2 * MINUTE)]
    await store.do(store.complete([first.ids[0], first.token, b'[1,1,"w"]', ""], []))
    assert (await store.do(store.admit(10, 10, 1)))[0] == 1


@pytest.mark.parametrize("overlap", ["skip", "queue_one"])
async def test_a_job_that_is_unfinished_for_many_slots_is_not_forgotten(timed: Queue, clock: Clock, overlap: Any):
    await timed.put_schedule("s", "report", every=60, overlap=overlap)
    for _ in range(30):
        clock.ms += MINUTE
        await Firing(timed).fire_due()
    assert await slots(timed) == [at(START + MINUTE)]


async def test_the_previous_run_is_known_after_many_slots_without_a_job(timed: Queue, clock: Clock):
    await timed.put_schedule("s", "report", every=60, key="k")
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    await end(timed)
    holder = await timed.enqueue("report", key="k", delay=HOUR)
    for _ in range(30):
        clock.ms += MINUTE
        await Firing(timed).fire_due()
    await timed.kill(holder.id)
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    (heard,) = await end(timed)
    assert (heard.missed, heard.previous.state) == (30, "completed")


async def test_jobs_of_operators_do_not_hide_the_job_of_a_slot(timed: Queue, clock: Clock):
    await timed.put_schedule("s", "report", every=60, overlap="kill")
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    filled = await timed.backfill_schedule("s", stamp(START - 5 * HOUR), stamp(START))
    await timed.run_schedule("s")
    assert len(filled) == 301
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    left = await slots(timed, State.DELAYED)
    assert at(START + MINUTE) not in left
    assert at(START + 2 * MINUTE) in left
    row = await timed.store.command(b"HGET", timed.store.keys["schedule_rows"], b"s")
    assert len(row) < 20_000


async def test_a_row_of_a_schedule_that_may_overlap_is_bounded(timed: Queue, clock: Clock):
    await timed.put_schedule("s", "report", every=1, overlap="allow")
    for _ in range(250):
        clock.ms += 1000
        await Firing(timed).fire_due()
    row = await timed.store.command(b"HGET", timed.store.keys["schedule_rows"], b"s")
    assert row.count(b"s~2027") == 200


async def test_a_failed_job_does_not_stop_its_schedule(timed: Queue, clock: Clock):
    """asynq#842: a job with a fixed id that stays in the archive blocks its schedule for ever."""
    await timed.put_schedule("s", "report", every=60)
    for _ in range(3):
        clock.ms += MINUTE
        await Firing(timed).fire_due()
        await end(timed, fail=True)
    assert len(await slots(timed, State.FAILED)) == 3
    assert (await timed.get_schedule("s")).failures == 3


@pytest.mark.parametrize("removed", [False, True])
async def test_pause_after_failures(timed: Queue, clock: Clock, logs: Logs, removed: bool):
    await timed.put_schedule("s", "report", every=60, pause_after=2)
    for _ in range(3):
        clock.ms += MINUTE
        await Firing(timed).fire_due()
        await end(timed, fail=True)
        if removed:
            await timed.remove_all(State.FAILED)
    assert logs.one("Schedule s was paused: 2 jobs failed in a row", "WARNING")
    row = await timed.get_schedule("s")
    assert row.paused is not None
    assert (row.paused.by, row.paused.note, row.next) == ("jobq", "2 jobs failed in a row", [])
    assert row.count == 2
    await timed.resume_schedule("s")
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    await end(timed)
    assert (await timed.get_schedule("s")).count == 3


@pytest.mark.parametrize(("over", "outcome"), [("drop", "dropped"), ("replace_oldest", "replaced")])
async def test_a_job_without_room_under_a_limit_is_no_failure(timed: Queue, clock: Clock, over: Any, outcome: str):
    """Nothing runs the jobs. So each one, or each one but the newest, ends for lack of room."""
    await timed.set_limit("one", concurrency=1, over=over)
    timed.store.limited = timed.store.decides = True
    await timed.put_schedule("s", "report", every=60, overlap="allow", pause_after=1, limits=["one"])
    for _ in range(5):
        clock.ms += MINUTE
        await Firing(timed).fire_due()
        await timed.store.do(timed.store.forward(10))
        await timed.store.do(timed.store.overflow(()))
        await timed.store.do(timed.store.admit(10, 250, 0))
    row = await timed.get_schedule("s")
    assert (row.failures, row.paused) == (0, None)
    # The newest first. Under "drop" the first job keeps its place.
    assert [slot.outcome for slot in row.last] == [
        *([outcome] * 4 + [None] if over == "drop" else [None] + [outcome] * 4)
    ]


async def test_success_ends_a_row_of_failures(timed: Queue, clock: Clock):
    await timed.put_schedule("s", "report", every=60, pause_after=2)
    for fail in (True, False, True, False):
        clock.ms += MINUTE
        await Firing(timed).fire_due()
        await end(timed, fail=fail)
    assert (await timed.get_schedule("s")).paused is None


async def test_a_pause_keeps_slots_away_and_backfill_makes_them_up(timed: Queue, clock: Clock):
    await timed.put_schedule("s", "report", every=60)
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    await end(timed)
    await timed.pause_schedule("s", by="ann", note="the database moves")
    row = await timed.get_schedule("s")
    assert row.paused is not None
    assert (row.paused.by, row.paused.note) == ("ann", "the database moves")
    clock.ms += 5 * MINUTE
    assert await Firing(timed).fire_due() == -1
    await timed.resume_schedule("s")
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    assert len(await slots(timed)) == 2
    await end(timed)
    ids = await timed.backfill_schedule("s", stamp(START), stamp(clock.ms))
    wanted = [START, *(START + n * MINUTE for n in range(2, 7))]
    assert ids == [f"s~{at(ms)}" for ms in wanted]
    assert {heard.how for heard in await end(timed)} == {"backfill"}
    assert await timed.backfill_schedule("s", stamp(START), stamp(clock.ms)) == []
    await timed.remove_all(State.COMPLETED)
    assert await timed.backfill_schedule("s", stamp(START), stamp(clock.ms)) == [], "the schedule knows what ran"
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    assert await slots(timed) == [at(clock.ms)]


async def test_backfill_is_bounded_and_looks_back_only(timed: Queue, clock: Clock):
    await timed.put_schedule("s", "report", every=60)
    with pytest.raises(InvalidJob, match="more than 1000 slots"):
        await timed.backfill_schedule("s", stamp(START - 24 * HOUR), stamp(START))
    with pytest.raises(InvalidJob, match="future"):
        await timed.backfill_schedule("s", stamp(START), stamp(START + HOUR))
    assert len(await timed.backfill_schedule("s", stamp(START - 3 * HOUR), stamp(START))) == 181


async def test_run_now(timed: Queue, clock: Clock):
    await timed.put_schedule("s", "report", {"n": 3}, every=60)
    await timed.pause_schedule("s")
    job = await timed.run_schedule("s")
    (heard,) = await end(timed)
    assert (heard.how, heard.name) == ("run", "s")
    assert job.id.startswith("s~")
    last = (await timed.get_schedule("s")).last
    assert [(row.how, row.outcome) for row in last] == [("run", "completed")]


# -- clocks --------------------------------------------------------------------------------------------------------


async def test_a_clock_that_was_ahead_loses_no_slot_and_repeats_none(timed: Queue, clock: Clock, logs: Logs):
    await timed.put_schedule("s", "report", every=60)
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    await end(timed)
    clock.ms += HOUR  # the clock is wrong
    await Firing(timed).fire_due()
    await end(timed)
    clock.ms = START + MINUTE + 500  # it is right again
    await Firing(timed).fire_due()
    assert logs.all("The clock of the server was set back", "WARNING")
    for _ in range(70):
        clock.ms += MINUTE
        await Firing(timed).fire_due()
        await end(timed)
    found = await slots(timed)
    assert found == [at(START + n * MINUTE) for n in range(1, 72)]


async def test_a_clock_that_is_set_back_repeats_no_slot(timed: Queue, clock: Clock):
    await timed.put_schedule("s", "report", every=60)
    for _ in range(30):
        clock.ms += MINUTE
        await Firing(timed).fire_due()
        await end(timed)
    await timed.remove_all(State.COMPLETED)
    clock.ms -= 20 * MINUTE
    for _ in range(22):
        await Firing(timed).fire_due()
        await end(timed)
        clock.ms += MINUTE
    assert await slots(timed) == [at(START + 31 * MINUTE)], "the rows are gone, and the schedule still knows what ran"


async def test_a_schedule_that_was_written_by_a_clock_that_was_ahead(timed: Queue, clock: Clock):
    clock.ms += 1000 * HOUR
    await timed.put_schedule("s", "report", every=60)
    clock.ms = START
    assert await Firing(timed).fire_due() == MINUTE


# -- code and operators --------------------------------------------------------------------------------------------


def program(connection: Connection, clock: Clock, **given: Any) -> Queue:
    """A version of a program."""
    queue = Queue("timed", connection, clock=clock)

    @queue.task
    async def report(n: int = 0) -> int:
        return n

    if given:
        queue.schedule(name="s", **given)(report)
    return queue


async def deploy(queue: Queue, *, started: bool = True) -> None:
    await declare_schedules(queue.store, queue.declared_schedules, started=started)


async def test_a_deploy_does_not_undo_a_pause_or_an_edit(connection: Connection, clock: Clock):
    async with program(connection, clock, every=60) as queue:
        await deploy(queue)
        assert (await queue.get_schedule("s")).source == "code"
        await queue.pause_schedule("s")
    async with program(connection, clock, every=120) as queue:
        await deploy(queue)
        row = await queue.get_schedule("s")
        assert row.every == 120_000
        assert row.paused is not None
        await queue.put_schedule("s", "report", every=300)
    async with program(connection, clock, every=30) as queue:
        await deploy(queue)
        row = await queue.get_schedule("s")
        assert (row.every, row.source, row.differs, row.paused is not None) == (300_000, "operator", True, True)
        assert await queue.delete_schedule("s")
        row = await queue.get_schedule("s")
        assert (row.every, row.source, row.differs) == (30_000, "code", False)


async def test_deploys_more_often_than_the_interval_do_not_move_slots(connection: Connection, clock: Clock):
    """river#791: a weekly job never ran, because every deploy began its week again."""
    for _ in range(20):
        async with program(connection, clock, every="7d", overlap="allow") as queue:
            await deploy(queue)
            await Firing(queue).fire_due()
        clock.ms += 24 * HOUR
    async with program(connection, clock) as queue:
        assert (await queue.get_schedule("s")).count == 3


async def test_four_instances_that_start_at_once_declare_one_schedule(connection: Connection, clock: Clock):
    """bullmq#3085 and #3381: instances that wrote the same schedule at once made duplicates, or removed it."""
    queues = [program(connection, clock, every=60) for _ in range(4)]
    for queue in queues:
        await queue.open()
    for _ in range(5):
        await asyncio.gather(*(deploy(queue) for queue in queues))
    assert [row.name for row in await queues[0].schedules()] == ["s"]
    clock.ms += MINUTE
    await asyncio.gather(*(Firing(queue).fire_due() for queue in queues))
    assert len(await slots(queues[0])) == 1
    for queue in queues:
        await queue.aclose()


async def test_removing_and_writing_again_leaves_one(timed: Queue, clock: Clock):
    """bullmq#3063: removing and writing again left none."""
    for _ in range(3):
        await timed.put_schedule("s", "report", every=60)
        await timed.delete_schedule("s")
    await timed.put_schedule("s", "report", every=60)
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    await timed.delete_schedule("s")
    await timed.put_schedule("s", "report", every=60)
    await Firing(timed).fire_due()
    assert len(await slots(timed)) == 1
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    assert len(await slots(timed)) == 2, "the new schedule does not know the jobs of the old one"


async def test_orphans_are_shown_and_removed_on_request(connection: Connection, clock: Clock):
    async with program(connection, clock, every=60) as queue:
        await deploy(queue)
    clock.ms += 24 * HOUR
    async with program(connection, clock) as queue:
        assert not (await queue.get_schedule("s")).orphan, "no program runs, so nobody knows"
        await deploy(queue)
        await deploy(queue, started=False)
        assert (await queue.get_schedule("s")).orphan
        await Firing(queue).fire_due()
        assert len(await slots(queue)) == 1, "an orphan goes on"
        assert await queue.prune_schedules() == ["s"]
        with pytest.raises(ScheduleNotFound, match="there is no schedule 's'"):
            await queue.get_schedule("s")


async def test_jobs_of_schedules_have_the_group_and_the_key_of_their_task(timed: Queue, clock: Clock):
    @timed.task(group="{tenant}", unique=Unique(by="tenant"))
    async def template(tenant: str = "t1") -> None: ...

    @timed.task(group=lambda tenant: f"{tenant}-group")
    async def function(tenant: str = "t2") -> None: ...

    await timed.put_schedule("a", "template", every=60)
    await timed.put_schedule("b", "function", every=60)
    await timed.put_schedule("c", "function", every=60, unique=Unique(by="tenant", for_=60))
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    jobs = {row.id[0]: row for row in (await timed.page()).jobs}
    assert {name: (row.group, row.key) for name, row in jobs.items()} == {
        "a": ("t1", 'template:["t1"]'),
        "b": ("t2-group", None),
        "c": ("t2-group", 'function:["t2"]'),
    }


async def test_a_job_that_could_not_be_made_at_its_slot_is_refused_at_once(timed: Queue):
    def nobody(tenant: str) -> str:
        raise LookupError(tenant)

    @timed.task(group=nobody)
    async def grouped(tenant: str = "t") -> None: ...

    with pytest.raises(InvalidJob, match="by='user' names no argument"):
        await timed.put_schedule("s", "report", every=60, unique=Unique(by="user"))
    with pytest.raises(InvalidJob, match="the group function of 'grouped' raised LookupError"):
        await timed.put_schedule("s", "grouped", every=60)
    assert await timed.schedules() == []


async def test_what_was_lost_is_declared_again(connection: Connection, clock: Clock):
    async with program(connection, clock, every=60) as queue:
        publisher = Publisher(queue.tasks, queue.rules, queue.name, "w", queue.declared_schedules)
        await publisher.publish(queue.store)
        await queue.drop(force=True)
        await publisher.publish(queue.store)
        assert [row.name for row in await queue.schedules()] == ["s"]


async def test_an_older_version_does_not_undo_what_a_newer_one_declares(connection: Connection, clock: Clock):
    async with program(connection, clock, every=60) as old, program(connection, clock, every=30) as new:
        await deploy(old)
        await deploy(new)
        await deploy(old, started=False)
        assert (await new.get_schedule("s")).every == 30_000


async def test_a_change_is_tried_again_when_others_change_the_row(
    timed: Queue, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    await timed.put_schedule("s", "report", every=60)
    await asyncio.gather(
        *(timed.pause_schedule("s", by=f"op{n}") if n % 2 else timed.resume_schedule("s") for n in range(20))
    )
    assert (await timed.get_schedule("s")).every == 60_000
    monkeypatch.setattr(declaring, "TRIES", 0)
    with pytest.raises(ConnectionError, match="was changed by others"):
        await timed.pause_schedule("s")


# -- input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"cron": "0 0 30 2 *"}, "no day fits it"),
        ({"cron": "61 * * * *"}, "minute"),
        ({"cron": "* * *"}, "5 fields"),
        ({"cron": "@reboot"}, "one of @yearly, .*@hourly"),
        ({"cron": "*/90 * * * *"}, "the minute has the step 90, and 59 is the longest one"),
        ({"cron": "0 0/24 * * *"}, "the hour has the step 24, and 23 is the longest one"),
        ({"cron": "*/60 * * * * *"}, "the second has the step 60"),
        ({"cron": "0 0 1 */13 *"}, "the month has the step 13"),
        ({"cron": "1," * 200 + "1 * * * *"}, "characters"),
        ({"cron": "* * * * *", "tz": "Europe/Berln"}, "Europe/Berlin"),
        ({"cron": "* * * * *", "tz": "../../etc/passwd"}, "no such time zone"),
        ({"cron": "* * * * *", "every": 5}, "has cron and every"),
        ({}, "none of them"),
        ({"every": 0.5}, "whole seconds"),
        ({"every": "soon"}, "a text such as"),
        ({"every": True}, "not a time"),
        ({"at": datetime(2027, 1, 1)}, "timezone"),
        ({"every": 60, "overlap": "never"}, "skip, allow, queue_one, kill"),
        ({"every": 60, "catch_up": "all"}, "overlap='allow'"),
        ({"every": 60, "jitter": "2d"}, "a day"),
        ({"every": 60, "limit": 0}, "whole number"),
        ({"every": 60, "pause_after": 1.5}, "whole number"),
        ({"cron": "0 0 25 12 *", "exclude": "* * 25 12 *"}, "never comes"),
        ({"cron": ["* * * * *"] * 17}, "16 at most"),
        ({"every": 60, "priority": 5000}, "priority"),
        ({"every": 60, "nothing": 1}, "no such option"),
        ({"every": 60, "run_at": datetime(2030, 1, 1, tzinfo=UTC)}, "leave it out"),
        ({"every": 60, "payload": {"m": 1}}, "unknown field"),
        ({"every": 60, "payload": {"n": "x"}}, "int"),
        ({"every": 60, "from_": datetime(2030, 1, 1, tzinfo=UTC), "until": datetime(2029, 1, 1, tzinfo=UTC)}, "never"),
        ({"every": 60, "limits": ["nobody"]}, "no rule"),
    ],
)
async def test_what_cannot_be_used_is_refused_at_import_and_by_put(timed: Queue, given: dict[str, Any], match: str):
    task = timed.tasks["report"]
    if "limits" not in given:  # rules of operators are not known at import
        with pytest.raises(InvalidJob, match=match):
            timed.schedule(name="x", **given)(task)
    payload = given.pop("payload", None)
    with pytest.raises(InvalidJob, match=match):
        await timed.put_schedule("x", "report", payload, **given)
    assert await timed.schedules() == []


async def test_names_types_and_decorators_that_cannot_be_used(timed: Queue):
    for name in ("", "a~b", "x" * 47, "a b", "ä", "*"):
        with pytest.raises(InvalidJob, match="letters, digits"):
            await timed.put_schedule(name, "report", every=60)
    with pytest.raises(UnknownType):
        await timed.put_schedule("x", "nothing", every=60)
    with pytest.raises(TypeError, match=r"above @queue\.task"):
        timed.schedule("* * * * *")(print)  # type: ignore[type-var]
    timed.schedule("* * * * *")(timed.tasks["report"])
    with pytest.raises(InvalidJob, match="already"):
        timed.schedule("* * * * *")(timed.tasks["report"])
    with pytest.raises(InvalidJob, match="are over"):
        await timed.put_schedule("x", "report", at=stamp(START - HOUR))
    for verb in (
        timed.get_schedule,
        timed.delete_schedule,
        timed.pause_schedule,
        timed.resume_schedule,
        timed.run_schedule,
    ):
        with pytest.raises(ScheduleNotFound):
            await verb("nothing")
    with pytest.raises(ScheduleNotFound):
        await timed.backfill_schedule("nothing", stamp(START), stamp(START))


async def test_bounds_and_exclusions(timed: Queue, clock: Clock):
    await timed.put_schedule(
        "s", "report", cron=["0 * * * *", "30 * * * *"], exclude="* 14 * * *", limit=4, from_=stamp(START + HOUR),
        until=stamp(START + 5 * HOUR), overlap="allow",
    )  # fmt: skip
    row = await timed.get_schedule("s")
    assert [at(ms)[9:13] for ms in row.next] == ["1300", "1330", "1500", "1530"]
    for _ in range(20):
        clock.ms += 30 * MINUTE
        await Firing(timed).fire_due()
    assert [slot[9:13] for slot in await slots(timed)] == ["1300", "1330", "1500", "1530"]
    assert (await timed.get_schedule("s")).next == []


async def test_times_that_come_once(timed: Queue, clock: Clock):
    await timed.put_schedule("s", "report", at=[stamp(START + HOUR), stamp(START + MINUTE)])
    for _ in range(3):
        clock.ms += 30 * MINUTE
        await Firing(timed).fire_due()
        await end(timed)
    assert await slots(timed) == [at(START + MINUTE), at(START + HOUR)]


async def test_jitter_is_the_same_for_all_slots(timed: Queue, clock: Clock):
    names = [f"s{n}" for n in range(20)]
    for name in names:
        await timed.put_schedule(name, "report", every=3600, jitter="10m")
    rows = [await timed.get_schedule(name) for name in names]
    offsets = [[ms % HOUR for ms in row.next] for row in rows]
    assert all(len(set(one)) == 1 and 0 <= one[0] <= 10 * MINUTE for one in offsets)
    assert len({one[0] for one in offsets}) > 15
    clock.ms = max(row.next[0] for row in rows)
    await Firing(timed).fire_due()
    assert set(await slots(timed)) == {at(START)}


async def test_preview(timed: Queue):
    seen = await timed.preview_schedule(
        cron="30 2 * * *", tz="Europe/Berlin", after=datetime(2027, 3, 27, 12, tzinfo=UTC), count=2
    )
    assert [time.isoformat() for time in seen.times] == ["2027-03-28T03:00:00+02:00", "2027-03-29T02:30:00+02:00"]
    assert seen.words == "At 02:30 every day"
    with pytest.raises(InvalidJob, match="1 to 100"):
        await timed.preview_schedule(cron="* * * * *", count=1000)
    seen = await timed.preview_schedule(cron="@daily", after=stamp(START), limit=2, count=9)
    assert [time.isoformat() for time in seen.times] == ["2027-01-05T00:00:00+00:00", "2027-01-06T00:00:00+00:00"]
    assert seen.words == "At 00:00 every day"


async def test_options_of_jobs(timed: Queue, clock: Clock):
    await timed.set_limit("stripe", concurrency=1)
    await timed.put_schedule(
        "s", "report", every=60, overlap="allow", key="one", limits=["stripe"], lifo=True, attempts=9, delay=5
    )
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    (row,) = (await timed.page()).jobs
    assert (row.key, row.limits, row.lifo, row.attempts, row.run_at) == ("one", ["stripe"], True, 9, START + 65_000)
    last = (await timed.get_schedule("s")).last
    assert [one.how for one in last] == ["skipped", "slot"], "the key of the first job is still held"


async def test_a_row_that_cannot_be_read_does_not_stop_the_others(timed: Queue, clock: Clock, logs: Logs):
    await timed.put_schedule("a", "report", every=60)
    await timed.put_schedule("b", "report", every=60)
    await timed.put_schedule("c", "report", every=60)
    rows = timed.store.keys["schedule_rows"]
    await timed.store.command(b"HSET", rows, b"a", b"who knows")
    stored = await timed.store.command(b"HGET", rows, b"b")
    await timed.store.command(b"HSET", rows, b"b", stored.replace(b'"every":60000', b'"cron":["x"]'))
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    assert [row.id[0] for row in (await timed.page()).jobs] == ["c"]
    assert logs.one("Schedule a cannot be read by this version of jobq", "ERROR")
    assert logs.one("Schedule b cannot be fired", "ERROR")
    shown = {row.name: row.error for row in await timed.schedules()}
    assert shown["a"]
    assert shown["b"]
    assert shown["c"] is None
    with pytest.raises(InvalidJob, match="cannot be read by this version"):
        await timed.pause_schedule("a")
    assert not await timed.delete_schedule("a")


# -- workers -------------------------------------------------------------------------------------------------------


async def test_a_worker_runs_jobs_at_their_slots(queue: Queue, start: Callable[..., Any]):
    heard: asyncio.Queue[Any] = asyncio.Queue()

    @queue.schedule("* * * * * *", payload={"n": 5})
    @queue.task
    async def tick(n: int, ctx: Context) -> int:
        heard.put_nowait((n, ctx.schedule))
        return n

    await start()
    async with asyncio.timeout(20):
        (n, first), (_, second) = await heard.get(), await heard.get()
    assert n == 5
    assert first.name == "tick"
    assert first.slot < second.slot
    assert second.previous.result == 5
    assert (await queue.get_schedule("tick")).count >= 2


async def test_slots_come_in_time_while_all_slots_of_workers_are_busy(
    queue: Queue, start: Callable[..., Any], gate: Gate, until: Until
):
    @queue.schedule(every=1, overlap="allow")
    @queue.task(limits=[Concurrency(5)])
    async def busy() -> None:
        await gate.passing()

    await start(concurrency=1)

    async def three() -> bool:
        return any(row.count >= 3 for row in await queue.schedules())

    await until(three, "three slots have come", 20)
    assert (await queue.stats()).active == 1
    gate.open()


async def test_a_schedule_that_is_written_while_workers_idle_is_heard_of(
    queue: Queue, start: Callable[..., Any], gate: Gate
):
    @queue.task
    async def tick() -> None:
        await gate.passing("tick")

    await start()
    await queue.put_schedule("s", "tick", every=1)
    assert await gate.arrival() == "tick"


async def test_an_idle_worker_asks_nothing_of_redis_for_schedules(
    queue: Queue, start: Callable[..., Any], until: Until, monkeypatch: pytest.MonkeyPatch
):
    calls = 0
    original = Firing.fire_due

    async def counted(self: Firing) -> int:
        nonlocal calls
        calls += 1
        return await original(self)

    monkeypatch.setattr(Firing, "fire_due", counted)

    @queue.task
    async def tick() -> None: ...

    worker = await start()
    await until(lambda: calls >= 1, "it looked when it started")
    await (await tick.enqueue()).result(10)
    await queue.put_schedule("s", "tick", every=timedelta(days=1), from_=datetime(2090, 1, 1, tzinfo=UTC))
    await until(lambda: calls >= 2, "it looked because a schedule was written")
    before = calls
    for _ in range(20):
        await (await tick.enqueue()).result(10)
    assert calls == before
    assert worker is not None


async def test_a_run_by_hand_whose_key_is_held_says_so(queue: Queue):
    @queue.task(unique=singleton())
    async def one() -> None: ...

    await queue.put_schedule("s", "one", cron="0 3 * * *")
    first = await queue.run_schedule("s")
    with pytest.raises(InvalidJob, match="schedule 's' was not run: another job holds the key"):
        await queue.run_schedule("s")
    await queue.kill(first.id)
    assert (await (await queue.run_schedule("s")).row()).type == "one"


async def test_a_run_by_hand_that_is_refused_leaves_no_trace(timed: Queue, clock: Clock):
    await timed.put_schedule("s", "report", every=60, key="k", pause_after=2)
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    await end(timed, fail=True)
    holder = await timed.enqueue("report", key="k")
    with pytest.raises(InvalidJob, match="another job holds the key"):
        await timed.run_schedule("s")
    row = await timed.get_schedule("s")
    assert ([one.how for one in row.last], row.failures) == (["slot"], 1)
    assert await timed.backfill_schedule("s", stamp(START), stamp(clock.ms)) == []
    await timed.kill(holder.id)
    filled = await timed.backfill_schedule("s", stamp(START), stamp(clock.ms))
    assert filled == [f"s~{at(START)}"], "a slot that got no job because of a key can be filled later"


async def test_a_backfill_returns_only_jobs_that_exist(queue: Queue):
    @queue.task(unique=singleton())
    async def one() -> None: ...

    await queue.put_schedule("s", "one", cron="0 3 * * *")
    now = datetime.now(UTC)
    ids = await queue.backfill_schedule("s", now - timedelta(days=4), now)
    assert len(ids) == 1
    assert (await queue.get(ids[0])).type == "one"
