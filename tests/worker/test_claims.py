"""Which job runs next, on which worker, and how soon: order, weights, pause, wake-ups without polling."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tools import blocked, commands

from jobq import Connection, Queue, State, Worker
from jobq.engine.worker import waker as waker_module
from jobq.engine.worker.heartbeat import Heartbeat
from jobq.engine.worker.lane import Lane
from tests.conftest import CLUSTER

if TYPE_CHECKING:
    from jobq.engine.store import Store
    from jobq.engine.worker.claimer import Claimer


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers do not check for jobs by themselves during a test. Otherwise a lost wake-up would be corrected after
    some seconds."""
    monkeypatch.setattr(waker_module, "BLOCK", 60.0)


@pytest.fixture
async def second(connection: Connection):
    """Another queue on the same connection."""
    async with Queue("second", connection) as queue:
        yield queue


def watch_wakers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the queues whose wake token wakes a worker from now on."""
    woken: list[str] = []
    claimed = Lane.claimed

    def watch(lane: Lane, claimer: Claimer, want: int, forwarded: Any, answer: Any) -> None:
        if claimer is lane.source.waking and answer is not None:
            woken.append(lane.source.name)
        claimed(lane, claimer, want, forwarded, answer)

    monkeypatch.setattr(Lane, "claimed", watch)
    return woken


async def test_lower_priority_numbers_first_then_first_in_first_out_and_lifo_in_front(queue: Queue, start):
    order: list[str] = []

    @queue.task
    async def note(name: str) -> None:
        order.append(name)

    await queue.pause()
    jobs = [
        await note.options(priority=priority, lifo=lifo).enqueue(name=name)
        for name, priority, lifo in [
            ("late", 10, False),
            ("a", 0, False),
            ("b", 0, False),
            ("urgent", -5, False),
            ("c", 0, False),
            ("top", 0, True),
            ("topmost", 0, True),
        ]
    ]
    # Both are enqueued within one millisecond.
    jobs += await note.enqueue_many([{"name": f"batch{n}"} for n in range(3)])
    await start(concurrency=1)
    await queue.resume()
    for job in jobs:
        await job.result(5)
    assert order == ["urgent", "topmost", "top", "a", "b", "c", "batch0", "batch1", "batch2", "late"]


async def test_weights_are_shares_while_all_queues_have_work(queue: Queue, second: Queue, start):
    ran: Counter[str] = Counter()
    enough = asyncio.Event()

    def handler(name: str):
        async def tick() -> None:
            ran[name] += 1
            if ran.total() >= 400:
                enough.set()
            await asyncio.sleep(0.002)  # Enough work for claims of a few jobs.

        return tick

    light, heavy = queue.task(name="tick")(handler("light")), second.task(name="tick")(handler("heavy"))
    await light.enqueue_many([{} for _ in range(500)])
    await heavy.enqueue_many([{} for _ in range(500)])
    worker = await start((queue, 1), (second, 4), concurrency=2)
    await enough.wait()
    worker.stop()
    assert 0.65 < ran["heavy"] / ran.total() < 0.95  # The expected share is 4 of 5, with some randomness.


async def test_a_worker_wakes_for_each_of_its_queues(
    queue: Queue, second: Queue, start, until, admin, patient, monkeypatch
):
    """An idle queue must not hide the wake-ups of others, whichever queue the worker served last."""

    @queue.task
    async def first() -> None: ...

    @second.task
    async def other() -> None: ...

    await start(queue, second)
    for task in (first, other, other, first, other):
        # One wait for both. In a cluster they may be on two nodes.
        await until(lambda: blocked(admin, 2 if CLUSTER else 1), "the worker to wait for both queues")
        await (await task.enqueue()).result(10)


async def test_pause_stops_claims_at_once_survives_a_new_worker_and_resume_wakes(
    queue: Queue, start, until, admin, monkeypatch
):
    @queue.task
    async def work(n: int) -> int:
        return n

    await start()
    await (await work.enqueue(n=0)).result(5)
    await queue.pause()
    jobs = await work.enqueue_many([{"n": n} for n in range(10)])
    later = await work.options(delay=0.01).enqueue(n=10)
    await start(concurrency=3)  # A new worker sees it too, because the flag is in Redis.

    async def promoted() -> bool:
        return (await later.row()).state is State.WAITING

    await until(promoted, "the delayed job to come due during the pause")
    stats = await queue.stats()
    assert (stats.paused, stats.waiting, stats.active, stats.completed) == (True, 11, 0, 1)
    await until(lambda: blocked(admin, 2), "both workers to wait")
    woken = watch_wakers(monkeypatch)
    await queue.resume()
    assert [await job.result(10) for job in [*jobs, later]] == list(range(11))
    assert woken, "the resume woke a worker"


async def test_running_jobs_continue_during_a_pause(queue: Queue, start, gate):
    @queue.task
    async def slow() -> int:
        await gate.passing()
        return 1

    await start()
    job = await slow.enqueue()
    await gate.arrival()
    await queue.pause()
    gate.open()
    assert await job.result(5) == 1


@pytest.mark.parametrize("how", ["due", "closed"])
async def test_jobs_that_may_run_from_the_same_moment_on_start_in_their_order_on_one_idle_slot(
    queue: Queue, start, until, admin, how: str
):
    """The lane claims the first one and leaves the token to others. The waker of the same worker takes it, so its claim
    gets the second one. The replies come over two connections."""
    order: list[int] = []

    @queue.task
    async def note(n: int) -> None:
        order.append(n)
        await asyncio.sleep(0.02)  # meanwhile no other job can start

    await start(concurrency=1)
    await until(lambda: blocked(admin, 1), "an idle worker")
    if how == "closed":
        await queue.close_limit("queue", 60)
    at: dict[str, Any] = {"run_at": datetime.now(UTC) + timedelta(seconds=1)} if how == "due" else {}
    jobs = [await note.options(priority=n, **at).enqueue(n=n) for n in (2, 1, 3)]
    if how == "closed":
        await queue.close_limit("queue", 0.1)
    await asyncio.gather(*(job.result(10) for job in jobs))
    assert order == [1, 2, 3]


async def test_a_delayed_job_starts_at_its_time_on_an_idle_worker_that_does_not_poll(queue: Queue, start, until, admin):
    started: list[float] = []

    @queue.task
    async def tick() -> None:
        started.append(time.time() * 1000)

    await start()
    await until(lambda: blocked(admin, 1), "an idle worker")
    for delay in (0.05, 0.12, 0.2):
        job = await tick.options(delay=delay).enqueue()
        due = (await job.row()).run_at
        assert due is not None
        await job.result(5)
        assert started[-1] >= due

    # A job with an earlier due time that was enqueued later is not delayed.
    far, near = await tick.options(delay=60).enqueue(), await tick.options(delay=0.05).enqueue()
    await near.result(5)
    assert (await far.row()).state is State.DELAYED

    before = await commands(admin)
    patience = await tick.options(delay=2.0).enqueue()
    await patience.result(5)
    after = await commands(admin)
    calls = Counter(after)
    calls.subtract(before)
    scripts, blocking = calls["evalsha"], calls["bzpopmin"]
    # These two seconds contain the enqueue, a read of its state and the run, and perhaps a heartbeat and a sweep.
    # Polling every 10 ms would be 200 commands.
    assert scripts <= 30, calls
    assert blocking <= 6, calls


async def test_an_idle_worker_sends_a_handful_of_commands(queue: Queue, start, until, admin, monkeypatch):
    """Its heartbeat shows for how long nothing has happened, on a slow machine too."""
    beats = 0
    beat = Heartbeat._beat  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

    async def counted(heartbeat: Heartbeat, stores: Any) -> bool:
        nonlocal beats
        beats += 1
        return await beat(heartbeat, stores)

    monkeypatch.setattr(Heartbeat, "_beat", counted)
    await start(lease=0.6)
    await until(lambda: blocked(admin, 1), "an idle worker")
    before, first = await commands(admin), beats
    await until(lambda: beats >= first + 10, "ten heartbeats", 60)
    calls = Counter(await commands(admin))
    calls.subtract(before)
    # A heartbeat and a sweep are two or three scripts. Polling every 10 ms would be 200 in the same time.
    assert calls["evalsha"] <= 60, calls
    assert calls["bzpopmin"] <= 2, calls


async def test_an_idle_worker_starts_a_job_without_a_trip_of_its_own(queue: Queue, start, until, admin, monkeypatch):
    """The job arrives together with the wake token. The benchmarks measure the time."""

    @queue.task
    async def now() -> None: ...

    woken = watch_wakers(monkeypatch)
    await start()
    for n in range(10):
        await until(lambda: blocked(admin, 1), "an idle worker")
        await (await now.enqueue()).result(5)
        assert len(woken) == n + 1


async def test_concurrent_enqueues_share_trips(queue: Queue, admin):
    before = await commands(admin)
    await asyncio.gather(*(queue.enqueue("any", {"n": n}) for n in range(1000)))
    calls = Counter(await commands(admin))
    calls.subtract(before)
    assert calls["evalsha"] + calls["eval"] <= 20, calls
    assert (await queue.stats()).waiting == 1000


async def test_completions_share_trips(queue: Queue, start, admin):
    @queue.task
    async def quick() -> None: ...

    jobs = await quick.enqueue_many([{} for _ in range(1000)])
    before = await commands(admin)
    await start()
    await jobs[-1].result(10)
    calls = Counter(await commands(admin))
    calls.subtract(before)
    assert calls["evalsha"] <= 150, calls


async def test_no_worker_is_idle_while_a_job_waits_behind_a_long_one(queue: Queue, start, gate, until):
    """Jobs are claimed ahead if they are short. If a long one comes in between, the jobs after it go to an idle
    worker."""

    @queue.task
    async def short() -> None: ...

    @queue.task
    async def long(n: int) -> None:
        await gate.passing(n)

    for _ in range(2):
        await start(concurrency=1)
    # Both workers learn that jobs are short, and would claim ahead.
    jobs = await short.enqueue_many([{} for _ in range(600)])
    for job in jobs:
        await job.result(10)
    mixed = [await long.options(lifo=True).enqueue(n=0), *await short.enqueue_many([{} for _ in range(40)])]
    assert await gate.arrival() == 0
    # The long job runs until the gate opens, so a job that waited for it would not end.
    for job in mixed[1:]:
        await job.result(10)
    assert (await mixed[0].row()).state is State.ACTIVE


async def test_two_idle_workers_share_a_batch_of_long_jobs(queue: Queue, start, gate, until, admin):
    @queue.task
    async def long(n: int) -> None:
        await gate.passing(n)

    for _ in range(3):
        await start(concurrency=1)
    await until(lambda: blocked(admin, 3), "three idle workers")
    await long.enqueue_many([{"n": n} for n in range(3)])
    # There is one token for three jobs. Each worker that takes it passes it on.
    assert {await gate.arrival(2) for _ in range(3)} == {0, 1, 2}


async def test_a_full_worker_passes_a_due_job_to_an_idle_one(queue: Queue, start, gate, until, admin, patient):
    @queue.task
    async def long() -> None:
        await gate.passing("long")

    @queue.task
    async def due() -> None: ...

    await start(concurrency=1)
    await until(lambda: blocked(admin, 1))
    job = await due.options(delay=0.3).enqueue()
    blocker = await long.enqueue()
    await gate.arrival()
    await start(concurrency=1)
    await job.result(10)
    assert (await blocker.row()).state is State.ACTIVE


async def test_a_stopping_worker_passes_its_watch_for_due_jobs_to_another(queue: Queue, start, until, admin, patient):
    """The stopping worker may be the one that watches for due jobs, or may have just taken the wake token."""

    @queue.task
    async def due() -> None: ...

    watching = await start()
    await until(lambda: blocked(admin, 1))
    await start()
    await until(lambda: blocked(admin, 2))
    job = await due.options(delay=0.5).enqueue()
    # The worker that has waited longest gets the token, and watches for due jobs from now on.
    await until(lambda: _tokenless(admin))
    await until(lambda: blocked(admin, 2))
    watching.stop()
    await job.result(10)


async def _tokenless(admin: Store) -> bool:
    return not await admin.command(b"ZCARD", admin.keys["wake"])


async def test_two_workers_in_one_loop_share_the_work_and_each_job_runs_once(queue: Queue, start):
    ran: Counter[int] = Counter()

    @queue.task
    async def once(n: int) -> None:
        await asyncio.sleep(0)
        ran[n] += 1

    jobs = await once.enqueue_many([{"n": n} for n in range(2000)])
    workers = [await start(concurrency=20) for _ in range(2)]
    for job in jobs:
        await job.result(10)
    assert len(ran) == 2000
    assert set(ran.values()) == {1}
    assert workers[0].name != workers[1].name
    rows = await queue.workers()
    assert {row.id for row in rows if row.alive} >= {worker.name for worker in workers}


async def test_a_worker_without_a_heartbeat_for_30_s_is_shown_as_dead(queue):
    heartbeat = b'{"id":"a","host":"h","pid":1,"queues":[],"types":[],"concurrency":1,"running":0,"started":1,"seen":1}'
    store = queue.store
    for name, age in (("now", 0), ("late", 29_000), ("gone", 31_000)):
        await store.do(store.heartbeat(name, heartbeat.replace(b'"a"', b'"%b"' % name.encode())))
        await store.command(b"ZADD", store.keys["workers"], store.now_ms() - age, name)
    assert {row.id: row.alive for row in await queue.workers()} == {"now": True, "late": True, "gone": False}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda queue: Worker(), "at least one queue"),
        (lambda queue: Worker(queue, concurrency=0), "concurrency"),
        (lambda queue: Worker(queue, concurrency=-1), "concurrency"),
        (lambda queue: Worker(queue, concurrency=1.5), "a whole number"),  # pyright: ignore[reportArgumentType]
        (lambda queue: Worker(queue, concurrency=2.0), "a whole number"),  # pyright: ignore[reportArgumentType]
        (lambda queue: Worker(queue, concurrency=True), "a whole number"),
        (lambda queue: Worker((queue, 0)), "weight"),
        (lambda queue: Worker((queue, -1)), "weight"),
        (lambda queue: Worker(queue, queue), "twice"),
        (lambda queue: Worker(queue, lease=0.01), "lease"),
    ],
)
async def test_a_worker_with_unusable_arguments_is_refused(queue: Queue, make, says):
    with pytest.raises(ValueError, match=says):
        make(queue)


async def test_no_wake_up_is_lost_while_workers_come_and_go(queue: Queue, second: Queue, start, until, patient):
    """Two queues, and workers of every size that start and stop. An idle worker always exists, so no job may stay
    waiting."""
    ran: list[int] = []

    async def work(n: int, seconds: float) -> None:
        ran.append(n)
        await asyncio.sleep(seconds)

    tasks = [queue.task(work), second.task(work)]
    await start(queue, second, concurrency=20)
    guests: list[Worker] = []
    for n in range(60):
        if n % 6 == 0:
            guests.append(await start(queue, (second, 2), concurrency=1 + n % 3))
        delay = (0, 0.03, 0.1)[n % 3]
        task = tasks[n % 2]
        await task.options(delay=delay).enqueue(n=n, seconds=(0, 0.001, 0.02)[n % 3])
        if n % 6 == 3:
            guests.pop().stop()
        await asyncio.sleep(0.01)  # Producers enqueue at random times.
    await until(lambda: len(ran) == 60, "every job to run", timeout=20)
    assert sorted(ran) == list(range(60))
