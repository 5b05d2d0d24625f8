"""Behaviours that the tests of other queues check, and where ours check them.

Schedules and uniqueness. Peers: BullMQ 6 (tests/job_scheduler.test.ts, deduplication.test.ts), Oban 2.23 (test/oban/cron, engine_test.exs), River
0.43 (periodic_job_enqueuer_test.go, db_unique_test.go), asynq (scheduler_test.go, periodic_task_manager_test.go,
rdb_test.go), docket (test_cron.py, test_perpetual*.py, test_debounce.py), streaq, saq.

| the peer's test | here |
|---|---|
| BullMQ: one scheduler for two upserts, also in quick succession; removed and upserted; clocks out of sync | held: test_schedules.py (four instances, removing and writing again, clocks) |
| BullMQ: stops after endDate, after a limit; a start in the future or the past; offset of `every` | held: test_schedules.py (bounds, deploys do not move slots) |
| BullMQ: an end in the past, pattern and every together, none of them: an error | held: test_schedules.py (what cannot be used) |
| BullMQ: a changed interval acts at once | held: below |
| BullMQ: a failed job does not stop it; its retry makes no other job | held: test_schedules.py; below |
| BullMQ: drain and clean leave the next job | held: below; there is no job before its slot |
| BullMQ: promote; a delayed job of a scheduler cannot be removed; legacy keys; ids with colons | does not apply |
| BullMQ: keep only one waiting job of `every` | held: overlap="skip" |
| BullMQ deduplication: with a ttl, replace, extend, after the end, removed by hand | held: tests/lua/test_unique.py |
| BullMQ keepLastIfActive: the newest data, after retries only, after a final failure, delay, paused queue | held: below |
| BullMQ: extend sets the ttl again | differs: `for_` counts from the enqueue, `delay` puts off |
| BullMQ: a deduplication key can be removed by hand | differs: kill or remove the job that holds it |
| Oban: expressions, ranges, steps, days that cannot be, bounds before expansion, next times | held: below |
| Oban: @reboot | differs: refused; `jobq schedules run` |
| Oban: zones of entries, unknown zones with suggestions | held: test_schedules.py |
| Oban unique: by fields, by keys of args, empty args, states, period, replace by state | held: test_uniqueness.py, tests/lua/test_unique.py |
| Oban: unique by period compared to the scheduled time | does not apply |
| River: uniqueness of periodic jobs; add, remove and clear while it runs; ids; no jobs | held: test_schedules.py |
| River: run on start; a constructor that returns no job | does not apply: the time is that of the schedule |
| River dbunique: subset of arguments, nested, empty; by queue; without the kind | held: below |
| asynq: unique lock ends with its time; removed tasks free it; process-in and process-at | held: below, tests/lua/test_unique.py |
| asynq: Redis is down when the slot comes | held: tests/chaos/test_schedule_points.py |
| asynq: the same config in another order is the same | held: below |
| docket: keywords; errors; zones; sequential times; survives worker death at any point | held: tests/unit/test_cron.py, tests/chaos/test_schedule_points.py |
| docket: a perpetual task changes its arguments, or cancels itself | does not apply: `put_schedule`, `pause_schedule` |
| docket: results that are kept for no time | held: below |
| docket debounce: settles, per argument, with a concurrency limit, nothing is left over | held: below |
| streaq: cron with a name; a changed schedule; drift of a late job | held: test_schedules.py (deploys, catch_up="none") |
| saq: cron close to its target; a solo worker | held: tests/worker/test_schedules_random.py |

Limits, groups, events, verbs. Peers: those above, Solid Queue (concurrency_controls_test.rb, job_test.rb), procrastinate (test_manager.py,
test_nominal.py), docket (concurrency_limits/, test_ratelimit.py, test_striking.py, test_cancellation.py), asynq (inspector_test.go),
sidekiq-unique-jobs, Graphile Worker, Standard Webhooks, the documentation of BullMQ Pro:

| the peer's test | here |
|---|---|
| BullMQ: jobs that wait for the same moment keep their priority and order, with one slot | held: test_claims.py (it was not) |
| BullMQ: a global rate, changed and removed; processing adds no delay; a worker closes under a slow rate; a job that never ends | held: test_limits.py |
| BullMQ: rateLimit(ms) and its error, while paused, with priorities, in the last attempt, of a job that was removed | held: test_rate_limited.py |
| BullMQ: global concurrency with backoff 0, with stalled workers, of an active job that is removed | held: test_limits.py; differs: an active job is killed first |
| BullMQ: waiting, added, drained, cleaned, duplicated events | differs: the caller knows of its enqueue; docs/events.md |
| BullMQ, River, docket: each start and end once, the result with the end, several readers, filters | held: test_events.py |
| BullMQ: pause with delayed jobs, backoff 0, before the start; obliterate with active jobs, with force, and use after it | held: test_claims.py, tests/lua/test_drop.py |
| BullMQ Pro: groups in turns, with and without group; limits and pauses of groups; maxSize of bulks; a group's priorities and weights | held: test_groups.py, tests/lua/test_turns.py |
| docket: places after errors, timeouts, stops, kills; waiters in order, once each; cancelled waiters; independent values | held: test_limits.py |
| docket: several limits of one task; a rate that drops; a failed job keeps its token; a refused one takes none | held: test_limits.py, test_over.py, tests/lua/test_admission.py |
| docket: strike a task, a parameter; idempotent; seen by workers that start later | held: `close_limit`, `set_limit(concurrency=0)`, `trip_breaker`: test_rate_limited.py, test_breakers.py |
| docket, procrastinate: a cancelled job is retried never, ends once; its lock is held until its handler has stopped | held: test_kills_and_timeouts.py; differs: the place is free at once, test_limits.py |
| Solid Queue: no overlap, sequential with failures, throttled, released claims, discard on conflict per key, scheduled and in bulk | held: test_limits.py, test_over.py |
| procrastinate: lock in order, queueing lock, in a batch, and while the first one runs | held: `Concurrency(1, by=)`, `Unique(while_="queued", on="fail")`; differs: one key for a whole batch is refused |
| asynq: run, archive, delete all of a state; payload updates; unknown tasks and queues | held: tests/lua/test_moves.py; differs: an edited payload is a rerun |
| sidekiq-unique-jobs: until and while executing | held: `Unique(while_="queued")` with `Concurrency(1, by=)` |
| docket: a task that enqueues itself | held: test_uniqueness.py |
| Standard Webhooks: sign, several signatures, tolerance, bad headers | held: test_webhooks.py, with the package standardwebhooks |
| asynq, docket: batches of a group (aggregation) | does not apply |

Bugs from their trackers:

| bug | here |
|---|---|
| bullmq#2876 duplicates in a crash loop; #3262, #3272 no more slots after a crash | tests/chaos/test_schedule_points.py |
| bullmq#3085, #3381, #3063 instances that write the same schedule | test_schedules.py |
| a busy queue loses slots (BullMQ), a long run skips them (docket) | test_schedules.py: while all slots are busy |
| river#791 deploys more often than the interval; river#658 every client declares all | test_schedules.py; below |
| river#1035 a flood after an outage; hatchet: missed slots never run | test_schedules.py: slots of an outage |
| sidekiq#6804, celery#4808 slots that are lost with the leader | test_schedules.py: a program that dies |
| solid_queue#186, DBOS: a deploy undoes a pause or an edit | test_schedules.py |
| rundeck#6879, cron-utils#213, Quartz.NET, node-red-contrib-cron-plus#108: changes of the clock | tests/unit/test_cron.py; below |
| asynq#842 a failed job with a fixed id blocks its schedule | test_schedules.py |
| Oban Web: hostile expressions | tests/unit/test_cron.py |
| bullmq#3250, Trigger.dev: steady traffic puts a job off for ever, or each call moves the bound | tests/lua/test_unique.py |
| bullmq#4311, sidekiq-unique-jobs#379: keys that outlive their job | tests/lua/test_unique.py, tests/model |
| bullmq#3902 keep the last one while one runs | test_uniqueness.py; below |
| awa#388 a taken key wedges the recovery of jobs | tests/lua/test_unique.py: both be retried |
| glide-mq#206 debounce and order in a deadlock | below: with limits |
"""  # noqa: E501

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from test_schedules import MINUTE, START, Clock, at, deploy, end, program, slots, stamp

from jobq import Backoff, Concurrency, InvalidJob, Queue, State, Unique, debounce, latest, throttle
from jobq.engine.queue.firing import Firing
from jobq.engine.schedule.cron import Cron, zone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from jobq import Connection


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def timed(connection: Connection, clock: Clock) -> AsyncIterator[Queue]:
    """A queue whose time the test moves, with a task."""
    async with program(connection, clock) as queue:
        yield queue


# -- BullMQ: schedulers -----------------------------------------------------------------------------------------------


async def test_a_changed_interval_acts_at_once(timed: Queue, clock: Clock):
    await timed.put_schedule("s", "report", every=3600)
    clock.ms += MINUTE
    await timed.put_schedule("s", "report", every=120)
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    assert await slots(timed) == [at(START + 2 * MINUTE)]


async def test_a_program_that_does_not_declare_a_schedule_fires_it(connection: Connection, clock: Clock):
    """river#658: every client had to define all periodic jobs."""
    async with program(connection, clock, every=60) as declaring:
        await deploy(declaring)
    async with program(connection, clock) as other:
        clock.ms += MINUTE
        await Firing(other).fire_due()
        assert await slots(other) == [at(START + MINUTE)]


async def test_a_retry_of_a_job_is_no_other_job_of_its_schedule(timed: Queue, clock: Clock):
    await timed.put_schedule("s", "report", every=60)
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    await end(timed, fail=True)
    await timed.retry(f"s~{at(clock.ms)}")
    await Firing(timed).fire_due()
    assert await slots(timed) == [at(START + MINUTE)]
    await end(timed)
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    assert await slots(timed) == [at(START + MINUTE), at(START + 2 * MINUTE)]


async def test_removing_all_jobs_does_not_stop_a_schedule(timed: Queue, clock: Clock):
    await timed.put_schedule("s", "report", every=60)
    for n in range(1, 4):
        clock.ms += MINUTE
        await Firing(timed).fire_due()
        assert await slots(timed) == [at(START + n * MINUTE)]
        await timed.remove_all(State.DELAYED)


# -- BullMQ: keep the last one while one runs -------------------------------------------------------------------------


async def run_one(queue: Queue, request: int) -> tuple[str, str]:
    store = queue.store
    await store.do(store.forward(10))
    claimed = await store.do(store.claim(1, 30_000, "w", "w:0", request, repeated=False))
    return (claimed.ids[0].decode(), claimed.token.decode()) if claimed is not None and claimed.ids else ("", "")


async def test_the_last_one_waits_for_all_attempts_and_for_its_delay(timed: Queue, clock: Clock):
    @timed.task(unique=latest(), attempts=2, backoff=Backoff("fixed", 60))
    async def sync(n: int) -> None: ...

    store = timed.store
    store.limited = True
    first = await sync.enqueue(1)
    ran = await run_one(timed, 1)
    assert ran[0] == first.id
    second = await sync.options(delay=300).enqueue(2)
    assert (await sync.enqueue(3)).done == "replaced"
    # The first attempt fails. Its retry comes a minute later.
    await store.do(store.reschedule([first.id, ran[1], 1, 60_000, '{"attempt":1,"at":1,"type":"E","message":""}']))
    assert (await second.row()).state == State.BLOCKED
    clock.ms += MINUTE
    ran = await run_one(timed, 2)
    await store.do(store.fail([first.id, ran[1], 1, '{"attempt":2,"at":1,"type":"E","message":""}', ""]))
    row = await second.row()
    assert (row.state, row.run_at, bytes(row.payload)) == (State.DELAYED, START + 5 * MINUTE, b'{"n":3}')
    await timed.pause()
    clock.ms += 5 * MINUTE
    assert await run_one(timed, 3) == ("", "")
    await timed.resume()
    assert (await run_one(timed, 4))[0] == second.id


# -- Oban: expressions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("* * * *", "60 * * * *", "* 24 * * *", "* * 32 * *", "* * * 13 *", "*/0 * * * *", "ONE * * * *"),
        *("0 0 30 2 *", "0 0 31 4 *", "0 0 31 2,4,6,9,11 *", "0 0 30,31 FEB *"),
        *("0-99999999 * * * *", "0-99999999/1 * * * *", "99999999/1 * * * *", "* 0-24 * * *"),
        *("* * 0-31 * *", "* * * 0-12 *", "* * * * 0-8"),
    ],
)
def test_expressions_that_can_never_be(text: str):
    with pytest.raises(InvalidJob):
        Cron(text, zone("UTC"))


@pytest.mark.parametrize(
    ("text", "moment", "following"),
    [
        ("* * * * *", "2024-11-21T00:55", "2024-11-21T00:56"),
        ("*/2 * * * *", "2024-11-21T00:55", "2024-11-21T00:56"),
        ("5 * * * *", "2024-11-21T00:06", "2024-11-21T01:05"),
        ("0 13 * * *", "2024-11-21T01:02", "2024-11-21T13:00"),
        ("0 */2 * * *", "2024-11-21T03:02", "2024-11-21T04:00"),
        ("0 0 1 * *", "2024-11-21T01:01", "2024-12-01T00:00"),
        ("0 0-2 5 9 *", "2024-11-21T01:01", "2025-09-05T00:00"),
        ("0 0-2 5 9 *", "2024-09-04T00:00", "2024-09-05T00:00"),
        ("0 0 30 2,4 *", "2024-11-21T00:00", "2025-04-30T00:00"),
        ("0 0 29 2 *", "2024-11-21T00:00", "2028-02-29T00:00"),
        ("0 0/12 * * *", "2024-11-21T01:00", "2024-11-21T12:00"),
        ("0 0 1-14/7 * *", "2024-11-02T00:00", "2024-11-08T00:00"),
        ("0 0 1/7 * *", "2024-11-16T00:00", "2024-11-22T00:00"),
        ("0 0 * * SUN", "2024-11-21T00:00", "2024-11-24T00:00"),
        ("0 0 * * 7", "2024-11-21T00:00", "2024-11-24T00:00"),
        ("0  0\t*   jan  *", "2024-11-21T00:00", "2025-01-01T00:00"),
    ],
)
def test_the_next_time_of_an_expression(text: str, moment: str, following: str):
    after = int(datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp())
    slot = Cron(text, zone("UTC")).after(after)
    assert slot == int(datetime.fromisoformat(following).replace(tzinfo=UTC).timestamp())


def test_every_fifteen_seconds_does_not_stop_at_a_change_of_the_clock():
    """node-red-contrib-cron-plus#108: it stopped for an hour."""
    cron = Cron("*/15 * * * * *", zone("Europe/Berlin"))
    for day in ("2027-03-28T00:30", "2027-10-31T00:00"):
        first = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())
        for slot in range(first, first + 7200, 15):
            assert cron.after(slot) == slot + 15


# -- River, asynq: what makes a key -----------------------------------------------------------------------------------


def test_nested_and_empty_arguments_make_keys(queue: Queue):
    @queue.task(unique=Unique(by=("user", "tags")))
    async def send(user: dict[str, Any] | None = None, tags: list[str] | None = None, noise: int = 0) -> None: ...

    assert send.unique_key() == send.unique_key(None, None, 7) == "send:[null,null]"
    assert send.unique_key({}) == "send:[{},null]"
    assert send.unique_key({"a": {"c": 1, "b": [2]}}, []) == 'send:[{"a":{"b":[2],"c":1}},[]]'
    assert send.unique_key({"a": {"b": [2], "c": 1}}, []) == send.unique_key({"a": {"c": 1, "b": [2]}}, [])
    assert send.unique_key(tags=["a", "b"]) != send.unique_key(tags=["b", "a"]), "the order of a list counts"
    assert send.unique_key({"a": "\u00e9:\u2028"}) == 'send:[{"a":"\u00e9:\u2028"},null]'


async def test_a_key_belongs_to_a_queue_and_may_belong_to_several_types(connection: Connection):
    async with Queue("one", connection) as one, Queue("two", connection) as two:
        first = await one.enqueue("a", unique=Unique(key="k"))
        assert not (await two.enqueue("a", unique=Unique(key="k"))).duplicate
        again = await one.enqueue("b", {"n": 1}, unique=Unique(key="k", on="replace"))
        assert (again.id, again.done) == (first.id, "returned"), "another type's handler takes other arguments"


async def test_the_time_of_a_key_counts_from_the_enqueue_also_of_a_delayed_job(timed: Queue, clock: Clock):
    first = await timed.enqueue("report", unique=throttle(60), delay=600)
    clock.ms += MINUTE - 1
    assert (await timed.enqueue("report", unique=throttle(60))).id == first.id
    clock.ms += 1
    second = await timed.enqueue("report", unique=throttle(60))
    assert not second.duplicate
    assert (await first.row()).state == State.DELAYED


async def test_the_order_of_what_a_schedule_gives_does_not_count(connection: Connection, clock: Clock):
    async with program(connection, clock, every=60, attempts=2, priority=3, metadata={"a": 1, "b": 2}) as queue:
        await deploy(queue)
        row = await queue.put_schedule(
            "s", "report", metadata={"a": 1, "b": 2}, priority=3, attempts=2, every=60, overlap="skip"
        )
        assert (row.source, row.differs) == ("operator", False)


# -- docket -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fail", [False, True])
async def test_jobs_that_are_kept_for_no_time_do_not_stop_their_schedule(timed: Queue, clock: Clock, fail: bool):
    await timed.put_schedule("s", "report", every=60, pause_after=3)
    for n in range(1, 4):
        clock.ms += MINUTE
        await Firing(timed).fire_due()
        await end(timed, fail=fail)
        await timed.remove_all(State.FAILED if fail else State.COMPLETED)
        assert await slots(timed) == []
        assert (await timed.get_schedule("s")).count == n
    clock.ms += MINUTE
    await Firing(timed).fire_due()
    assert ((await timed.get_schedule("s")).paused is not None) == fail


async def test_debounce_goes_with_limits_and_leaves_nothing_over(timed: Queue, clock: Clock):
    @timed.task(unique=debounce(60, by="user"), limits=[Concurrency(1, by="user")])
    async def index(user: int, text: str = "") -> None: ...

    store = timed.store
    store.limited = True
    for text in "abc":
        await index.enqueue(1, text)
        await index.enqueue(2, text)
        clock.ms += 1000
    assert (await timed.stats()).delayed == 2
    clock.ms += MINUTE
    await store.do(store.forward(10))
    assert (await store.do(store.admit(10, 10, 1)))[0] == 2
    claimed = await store.do(store.claim(9, 30_000, "w", "w:0", 1, repeated=False))
    assert claimed is not None
    assert [spec and spec.rpartition(b'"payload":')[2] for spec in claimed.specs] == [
        b'{"user":1,"text":"c"}}',
        b'{"user":2,"text":"c"}}',
    ]
    again = await index.enqueue(1, "d")
    assert not again.duplicate, "the key is free as soon as the job runs"
    for job_id in claimed.ids:
        await store.do(store.complete([job_id, claimed.token, b'[1,1,"w"]', ""], []))
    await timed.kill(again.id)
    await timed.remove_all(State.COMPLETED)
    await timed.remove_all(State.FAILED)
    assert await store.command(b"EXISTS", store.keys["unique"], store.keys["keys"], store.keys["admitted"]) == 0


async def test_a_backfill_over_a_change_of_the_clock_fills_each_slot_once(timed: Queue, clock: Clock):
    clock.ms = int(datetime(2027, 11, 2, tzinfo=UTC).timestamp()) * 1000
    await timed.put_schedule("s", "report", cron="30 2 * * *", tz="Europe/Berlin")
    filled = await timed.backfill_schedule("s", stamp(clock.ms - 4 * 24 * 60 * MINUTE), stamp(clock.ms))
    assert [job_id[-7:-3] for job_id in filled] == ["0030", "0030", "0030", "0130"]
