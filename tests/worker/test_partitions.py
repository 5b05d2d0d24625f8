"""A queue of several partitions is one queue for its users."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from jobq import (
    Concurrency,
    Context,
    InvalidJob,
    JobFailed,
    JobIdTaken,
    JobNotFound,
    Queue,
    QueueInUse,
    State,
    StoreRefused,
    Unique,
    Worker,
    WrongState,
    new_id,
)
from jobq.engine.model.ids import partition_of
from jobq.engine.model.spread import home
from jobq.engine.store import Store
from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tools import Gate

    from jobq.engine.store import Connection


@pytest.fixture
async def spread(admin: Any, connection: Connection) -> AsyncIterator[Queue]:
    """An open queue of four partitions."""
    async with Queue("spread", connection, partitions=4) as queue:
        yield queue


async def sizes(queue: Queue) -> list[int]:
    return (await queue.get_partitions()).jobs


async def test_every_unfinished_job_of_a_partition_is_counted(spread: Queue):
    """Before partitions are taken away, an operator looks here at what must still be drained."""
    await spread.set_limit("busy", concurrency=1)
    later = await spread.enqueue("t", delay=3600)
    for n in range(3):
        await spread.enqueue("t", n, limits=["busy"])
    counted = await sizes(spread)
    assert (sum(counted), (await spread.stats()).held) == (4, 3)
    assert counted[partition_of(later.id)] >= 1


async def test_jobs_are_spread_and_their_ids_name_the_partition(spread: Queue):
    pages = [await spread.enqueue_many([spread.new("t", n) for n in range(250)]) for _ in range(8)]
    assert await sizes(spread) == [500] * 4
    # One page is one trip to one partition.
    assert all(len({partition_of(job.id) for job in page}) == 1 for page in pages)
    singles = [await spread.enqueue("t", n) for n in range(40)]
    assert Counter(partition_of(job.id) for job in singles) == dict.fromkeys(range(4), 10)
    for job in (pages[0][0], pages[3][9], *singles[:4]):
        assert (await spread.get(job.id)).state is State.WAITING
    assert (await spread.stats()).waiting == 2040
    assert await spread.queues() == ["spread"]


async def test_jobs_that_are_enqueued_at_the_same_time_share_trips(spread: Queue):
    await spread.enqueue("t")
    trips = 0
    for part in spread.store.parts:
        send = part.trip

        async def counted(*calls: Any, send: Any = send, **more: Any) -> Any:
            nonlocal trips
            trips += 1
            return await send(*calls, **more)

        part.trip = counted
        do = part.do

        async def counted_one(call: Any, do: Any = do, **more: Any) -> Any:
            nonlocal trips
            trips += call.script == "enqueue"
            return await do(call, **more)

        part.do = counted_one
    jobs = await asyncio.gather(*(spread.enqueue("t", n) for n in range(500)))
    assert len({job.id for job in jobs}) == 500
    assert trips <= 8


async def test_ids_of_users_say_where_the_job_is(spread: Queue):
    assert partition_of((await spread.enqueue("t", id="invoice-7")).id) == 0
    assert (await spread.enqueue("t", id="invoice-8~3")).id == "invoice-8~3"
    assert await sizes(spread) == [1, 0, 0, 1]
    mine = new_id()
    assert [(await spread.enqueue("t", 1, id=mine)).id for _ in range(2)] == [mine] * 2
    with pytest.raises(JobIdTaken):
        await spread.enqueue("t", 2, id="invoice-8~3")
    with pytest.raises(InvalidJob, match="names partition 9"):
        await spread.enqueue("t", id="invoice-9~9")
    for missing in ("invoice-8", "invoice-7~3", "invoice-7~200"):
        with pytest.raises(JobNotFound):
            await spread.get(missing)


async def test_verbs_about_a_job_go_to_its_partition(spread: Queue, start: Callable[..., Any]):
    jobs = [await spread.enqueue("t", n, delay=60) for n in range(8)]
    for job in jobs:
        await spread.reprioritise(job.id, 3)
        await spread.promote(job.id)
        row = await spread.get(job.id)
        assert (row.state, row.priority) == (State.WAITING, 3)
        assert (await spread.why(job.id)).state is State.WAITING
        await spread.kill(job.id)
        with pytest.raises(WrongState):
            await spread.kill(job.id)
        again = await spread.rerun(job.id)
        assert again.id != job.id
        await spread.retry(job.id)
        await spread.remove(job.id)
        with pytest.raises(JobNotFound):
            await spread.get(job.id)
    assert (await spread.stats()).waiting == 8


async def test_a_worker_runs_the_jobs_of_all_partitions(spread: Queue, start: Callable[..., Any]):
    @spread.task()
    async def double(context: Context, n: int) -> int:
        context.log(f"doubles {n}")
        if n == 13:
            raise ValueError("unlucky")
        return 2 * n

    worker = await start(spread, concurrency=10)
    jobs = [await spread.enqueue("double", {"n": n}, attempts=1) for n in range(20)]
    results = await asyncio.gather(*(job.result(timeout=10) for job in jobs), return_exceptions=True)
    assert [result for result in results if isinstance(result, int)] == [2 * n for n in range(20) if n != 13]
    assert isinstance(results[13], JobFailed)
    assert [line.message for line in await spread.logs(jobs[7].id)] == ["doubles 7"]
    await wait_until(lambda: worker.idle == {"spread": "no_jobs"}, "the worker to be idle")
    stats = await spread.stats()
    assert (stats.completed, stats.failed, stats.completed_total, stats.workers) == (19, 1, 19, 1)
    assert [row.id for row in await spread.workers()] == [worker.name]
    performance = await spread.performance()
    assert (performance.all.runs, [row.type for row in performance.types]) == (20, ["double"])
    assert (await spread.scale()).workers == 1
    with pytest.raises(QueueInUse):
        await spread.drop()


async def test_types_and_schedules_are_in_the_first_partition_only(spread: Queue, start: Callable[..., Any]):
    @spread.task()
    async def run() -> None: ...

    await start(spread)
    first, *others = spread.store.parts
    await wait_until(first.type_names, "the published types")
    for part in others:
        assert await part.command(b"ZCARD", part.keys["workers"]) == 1
        assert not await part.type_names()


async def test_a_schedule_of_code_whose_jobs_belong_elsewhere_says_so(spread: Queue, start: Callable[..., Any]):
    """All schedules are in the first partition. A worker can only log that it cannot make such a job."""
    names = [f"tenant{n}" for n in range(20)]
    there = next(name for name in names if home(name, 4) == 0)
    elsewhere = next(name for name in names if home(name, 4) == 2)

    @spread.schedule(every="1h", name="good", payload={"tenant": there})
    @spread.schedule(every="1h", name="bad", payload={"tenant": elsewhere})
    @spread.task(group="{tenant}")
    async def run(tenant: str) -> None: ...

    await run.enqueue("any")  # this decides how many partitions get jobs with groups
    await start(spread)

    async def declared() -> bool:
        return len(await spread.schedules()) == 2

    await wait_until(declared, "the schedules of the code")
    assert {row.name: row.error is None for row in await spread.schedules()} == {"bad": False, "good": True}
    assert "belong to partition 2 of the queue" in str((await spread.get_schedule("bad")).error)
    assert (await spread.get_schedule("good")).error is None


async def test_pause_holds_for_all_partitions(spread: Queue, start: Callable[..., Any]):
    ran: list[int] = []

    @spread.task()
    async def run(n: int) -> None:
        ran.append(n)

    await spread.pause()
    assert (await spread.stats()).paused
    worker = await start(spread)
    await run.enqueue_many([{"n": n} for n in range(8)])
    jobs = [await run.enqueue(n) for n in range(8)]
    await wait_until(lambda: worker.idle == {"spread": "queue_paused"}, "the worker to find the pause")
    assert not ran
    await spread.resume()
    await asyncio.gather(*(job.result(timeout=10) for job in jobs))
    await wait_until(lambda: len(ran) == 16, "all jobs")


async def test_a_pause_that_was_interrupted_is_finished_by_the_next_one(spread: Queue):
    await spread.enqueue("t")
    first, *others = spread.store.parts
    await first.do(first.pause())
    assert (await spread.stats()).paused
    await spread.pause()
    assert all([(await part.do(part.pause()))[0] == "" for part in (first, *others)])
    # A resume ends with the first partition, so until then the queue counts as paused.
    await others[0].do(others[0].resume())
    assert (await spread.stats()).paused
    await spread.resume()
    assert not (await spread.stats()).paused
    assert all([(await part.do(part.resume()))[0] == "" for part in (first, *others)])


async def test_lists_keep_the_order_over_all_partitions(spread: Queue, start: Callable[..., Any]):
    @spread.task()
    async def run(n: int) -> None: ...

    delayed = [await run.options(delay=1000 + n).enqueue(n) for n in range(30)]
    shuffled = [(await spread.page(State.DELAYED, limit=30)).jobs[n].id for n in range(30)]
    assert shuffled == [job.id for job in delayed]
    found: list[str] = []
    cursor = ""
    while cursor is not None:
        page = await spread.page(State.DELAYED, limit=7, cursor=cursor)
        assert len(page.jobs) == 7 or page.cursor is None
        found += [row.id for row in page.jobs]
        cursor = page.cursor
    assert found == [job.id for job in delayed]
    await start(spread)
    done = [await run.enqueue(n) for n in range(30)]
    await asyncio.gather(*(job.result(timeout=10) for job in done))
    page = await spread.page(State.COMPLETED, limit=30)
    times = [row.finished_at or 0 for row in page.jobs]
    assert times == sorted(times, reverse=True)
    assert {row.id for row in page.jobs} == {job.id for job in done}


async def test_jobs_that_wait_are_listed_by_priority_and_enqueue(spread: Queue):
    """Each partition counts its places for itself, and some have counted more jobs than others."""
    for job in [await spread.enqueue("t", id=f"early{n}~{n % 3 + 1}") for n in range(9) if n % 3 < 2]:
        await spread.remove(job.id)
    wanted = [await spread.enqueue("t", {"n": n}, priority=-(n % 2)) for n in range(40)]
    urgent = [job.id for n, job in enumerate(wanted) if n % 2]
    others = [job.id for n, job in enumerate(wanted) if not n % 2]
    page = await spread.page(State.WAITING, limit=100)
    assert [row.id for row in page.jobs] == urgent + others
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await spread.page(State.WAITING, limit=7, cursor=cursor)
        found += [row.id for row in page.jobs]
        cursor = page.cursor
    assert sorted(found) == sorted(urgent + others)
    assert set(found[: len(urgent)]) == set(urgent)
    first = found[0]
    await spread.kill(first)
    await spread.retry(first)
    assert (await spread.page(State.WAITING, limit=100)).jobs[0].id in urgent


@pytest.mark.parametrize("state", [State.COMPLETED, State.DELAYED])
async def test_jobs_of_the_same_moment_are_listed_once(spread: Queue, state: State):
    """Thousands of jobs may have one score, in all partitions."""
    await spread.enqueue("t")
    ids = [f"j{n}~{n % 4}" if n % 4 else f"j{n}" for n in range(200)]
    for job_id in ids:
        part = spread.store.parts[partition_of(job_id)]
        await part.command(b"ZADD", part.keys[state], 1000 + int(job_id[1:].partition("~")[0]) // 100, job_id)
        await part.command(b"HSET", part.keys["jobs"], job_id, b'{"type":"t","at":1,"payload":{}}')
    found: list[str] = []
    cursor: str | None = ""
    pages = 0
    while cursor is not None:
        page = await spread.page(state, limit=9, cursor=cursor)
        found += [row.id for row in page.jobs]
        cursor = page.cursor
        pages += 1
    assert len(found) == 200
    assert sorted(found) == sorted(ids)
    assert pages <= 24
    only = await spread.page(state, type="other", limit=9)
    assert only.jobs == []


async def test_bulk_verbs_reach_all_partitions(spread: Queue):
    await spread.enqueue_many([spread.new("t", n, delay=60) for n in range(40)])
    jobs = [await spread.enqueue("t", n, delay=60) for n in range(40)]
    told: list[int] = []
    assert await spread.reprioritise_all(State.DELAYED, 5, progress=told.append) == 80
    assert told[-1] == 80
    assert await spread.promote_all(limit=10) == 10
    assert await spread.promote_all() == 70
    assert await spread.kill_all(State.WAITING) == 80
    assert await spread.retry_all(limit=30) == 30
    assert await spread.remove_all(State.FAILED) == 50
    assert (await spread.stats()).waiting == 30
    assert await spread.remove_all(State.WAITING) == 30
    with pytest.raises(JobNotFound):
        await spread.get(jobs[3].id)
    await spread.drop()
    assert await spread.queues() == []


async def test_lists_and_verbs_of_a_group_reach_all_partitions(spread: Queue):
    names = [f"tenant{n}" for n in range(8)]
    jobs = {name: [await spread.enqueue("t", n, group=name, delay=60 + n) for n in range(10)] for name in names}
    assert len({partition_of(job.id) for found in jobs.values() for job in found}) == 4
    for name in names:
        found: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            page = await spread.briefs(State.DELAYED, group=name, limit=4, cursor=cursor)
            assert len(page.jobs) <= 4
            found += [row.id for row in page.jobs]
            cursor = page.cursor
        assert found == [job.id for job in jobs[name]]
    first, second, *_ = names
    assert await spread.promote_all(group=first, limit=4) == 4
    assert await spread.promote_all(group=first) == 6
    assert await spread.kill_all(State.DELAYED, group=second, limit=3) == 3
    assert await spread.kill_all(State.DELAYED, group=second) == 7
    assert await spread.retry_all(group=second, limit=4) == 4
    assert await spread.retry_all(group=first) == 0
    stats = await spread.stats()
    assert (stats.waiting + stats.held, stats.delayed, stats.failed) == (14, 60, 6)


async def test_large_rows_of_several_partitions_are_listed_once(spread: Queue):
    """A reply of rows ends early when they are large. Each partition ends at a place of its own."""
    payload = "x" * 400_000
    jobs = [await spread.enqueue("t", {"text": payload, "n": n}, delay=60 + n) for n in range(28)]
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await spread.page(State.DELAYED, limit=28, cursor=cursor)
        found += [row.id for row in page.jobs]
        cursor = page.cursor
    assert found == [job.id for job in jobs]
    assert await spread.kill_all(State.DELAYED) == 28


async def test_a_queue_with_a_job_in_any_partition_is_not_dropped(spread: Queue):
    """Also if the job comes after the look at all of them."""
    job = await spread.enqueue("t", id="late~3")
    jobs, workers, schedules, dropped = await spread.store.do(spread.store.drop(force=False))
    assert (jobs, workers, schedules, bool(dropped)) == (1, 0, 0, False)
    assert (await spread.get(job.id)).state is State.WAITING
    with pytest.raises(QueueInUse):
        await spread.drop()
    assert await spread.queues() == ["spread"]


async def test_a_key_is_held_by_one_job_of_the_whole_queue(spread: Queue):
    jobs = [await spread.enqueue("t", {"n": n}, unique=Unique(by="n")) for n in range(20) for _ in range(3)]
    assert len({job.id for job in jobs}) == 20
    assert len({partition_of(job.id) for job in jobs}) == 4
    many = await spread.enqueue_many([spread.new("t", {"n": n}, unique=Unique(by="n")) for n in range(20)])
    assert {job.id for job in many} == {job.id for job in jobs}
    assert all(job.duplicate for job in many)


async def test_partition_by_keeps_jobs_together_and_in_order(spread: Queue, start: Callable[..., Any]):
    order: dict[str, list[int]] = {}

    @spread.task(partition_by="{account}", limits=[Concurrency(1, by="api"), Concurrency(1, by="account")])
    async def book(account: str, api: str, n: int) -> None:
        order.setdefault(account, []).append(n)

    jobs = await book.enqueue_many([{"account": f"a{n % 8}", "api": f"s{n % 3}", "n": n} for n in range(64)])
    jobs.append(await book.enqueue("a3", "s1", 64))
    place = {f"a{n}": partition_of(jobs[n].id) for n in range(8)}
    assert len(set(place.values())) > 1
    assert all(partition_of(job.id) == place[f"a{n % 8}"] for n, job in enumerate(jobs[:64]))
    assert partition_of(jobs[64].id) == place["a3"]
    again = await spread.rerun(jobs[3].id)
    assert partition_of(again.id) == place["a3"]
    assert (await spread.get(again.id)).partition_by == "a3"
    with pytest.raises(InvalidJob, match=r"its keys or partition_by belong to partition"):
        await book.options(id=f"mine~{(place['a3'] + 1) % 4 or 2}").enqueue("a3", "s1", 65)
    await start(spread, concurrency=8)
    await asyncio.gather(*(job.result(timeout=10) for job in [*jobs, again]))
    assert order["a1"] == [n for n in range(64) if n % 8 == 1]
    assert order["a3"] == [*[n for n in range(64) if n % 8 == 3], 64, 3]


async def test_a_program_without_the_code_parts_jobs_as_the_task_says(
    spread: Queue, connection: Connection, start: Callable[..., Any]
):
    @spread.task(partition_by="{account}")
    async def book(account: str) -> None: ...

    await start(spread)
    await wait_until(spread.types, "the published type")
    job = await book.enqueue("a7")
    async with Queue("spread", connection) as producer:
        assert {partition_of((await producer.enqueue("book", {"account": "a7"})).id) for _ in range(4)} == {
            partition_of(job.id)
        }
        other = await producer.enqueue("book", {"account": "a7"}, partition_by="b")
        assert (await producer.get(other.id)).partition_by == "b"


async def test_limits_by_key_are_exact(spread: Queue, start: Callable[..., Any]):
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()

    @spread.task(limits=[Concurrency(2, by="customer")])
    async def call(customer: str, n: int) -> None:
        running[customer] += 1
        most[customer] = max(most[customer], running[customer])
        await asyncio.sleep(0.001)
        running[customer] -= 1

    await start(spread, concurrency=20)
    jobs = await call.enqueue_many([{"customer": f"c{n % 6}", "n": n} for n in range(60)])
    homes = {partition_of(job.id) for job in jobs}
    assert len(homes) > 1
    await asyncio.gather(*(job.result(timeout=10) for job in jobs))
    assert set(most.values()) == {2}
    [rule] = await spread.limits()
    assert rule.concurrency == 2


async def test_groups_are_listed_and_set_for_all_partitions(spread: Queue):
    names = [f"g{n}" for n in range(12)]
    for name in names:
        await spread.enqueue_many([spread.new("t", n, group=name) for n in range(3)])
    rows = await spread.groups(sort="name")
    assert [(row.group, row.held + row.active) for row in rows] == sorted((name, 3) for name in names)
    await spread.set_group("g3", paused=True)
    assert (await spread.group("g3")).paused
    assert await spread.kill_all(State.HELD, group="g3") == 3


async def test_a_plain_queue_becomes_a_queue_of_partitions_online(admin: Any, connection: Connection, gate: Gate):
    async with Queue("plain", connection) as queue, Queue("plain", connection) as other:
        old = await queue.enqueue("t", 1, key="k")
        await other.pause()
        row = await queue.set_partitions(4)
        assert (row.partitions, row.homes, row.most, row.jobs) == (4, 1, 4, [1, 0, 0, 0])
        # Its jobs stay where they are, and so do those with the same keys.
        assert (await queue.enqueue("t", 1, key="k")).id == old.id
        jobs = [await queue.enqueue("t", n) for n in range(8)]
        assert len({partition_of(job.id) for job in jobs}) == 4
        # Another process learns of it when it meets such an id, or after some seconds.
        await other.resume()
        assert (await other.get(jobs[1].id)).id == jobs[1].id
        assert not any([(await part.do(part.resume()))[0] for part in queue.store.parts])


async def test_there_may_be_fewer_partitions_until_the_first_job_with_a_key(admin: Any, connection: Connection):
    async with Queue("spread", connection, partitions=8) as queue:
        jobs = [await queue.enqueue("t", n) for n in range(16)]
        async with Queue("spread", connection) as other:
            assert (await queue.set_partitions(2)).homes == 0
            assert (await queue.get_partitions()).most == 8
            # Another program learns from the first job with a key how many there were.
            keyed = [await (queue, other)[n % 2].enqueue("t", {"n": n // 2}, unique=Unique(by="n")) for n in range(40)]
            assert len({job.id for job in keyed}) == 20
            assert {partition_of(job.id) for job in keyed} == {0, 1}
            assert (await queue.get_partitions()).homes == 2
            with pytest.raises(InvalidJob, match="keys cannot move"):
                await queue.set_partitions(1)
            assert all([(await other.get(job.id)).id == job.id for job in jobs])


async def test_programs_must_agree_unless_an_operator_has_decided(admin: Any, connection: Connection, logs: Any):
    async with Queue("spread", connection, partitions=4) as queue:
        await queue.enqueue("t", key="k")
        with pytest.raises(StoreRefused, match=r"has 4 partitions, and this program declares 8.*jobq partitions set 8"):
            await Queue("spread", connection, partitions=8).open()
        with pytest.raises(InvalidJob, match="in 4 partitions, and keys cannot move"):
            await queue.set_partitions(2)
        await queue.set_partitions(8)
        await queue.set_partitions(4)
        assert (await queue.get_partitions()).most == 8
    async with Queue("spread", connection, partitions=8) as queue:
        assert len(queue.store.parts) == 8
        assert logs.one("which an operator set", "WARNING")


@pytest.mark.parametrize("declared", [True, False], ids=["by code", "by an operator"])
async def test_a_rule_for_all_jobs_holds_over_all_partitions(admin: Any, connection: Connection, declared: bool):
    """Its shares move to where jobs are, so all jobs of one partition run in the end, three at a time."""
    queue = Queue("spread", connection, partitions=4, limits=[Concurrency(3)] if declared else ())
    running, most = 0, 0

    @queue.task(name="work")
    async def work(n: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async with queue:
        if not declared:
            await queue.set_limit("queue", concurrency=3)
        jobs = [await queue.enqueue("work", {"n": n}) for n in range(8)]
        jobs += await queue.enqueue_many([queue.new("work", {"n": n}) for n in range(40)])
        async with Worker(queue, concurrency=20) as worker:
            worker.start()
            await asyncio.gather(*(job.result(timeout=30) for job in jobs))
        assert most <= 3
        [row] = await queue.limits()
        assert (row.rule, row.concurrency) == ("queue", 3)
        shares = [await part.command(b"HGET", part.keys["meta"], b"rule") for part in queue.store.parts]
        assert sum(map(int, shares)) == 3
        await queue.reset_limit("queue")
        if not declared:
            assert not any([await part.command(b"HGET", part.keys["meta"], b"rule") for part in queue.store.parts])


async def test_partitions_take_turns_so_urgent_jobs_wait_for_one_claim_of_each_other(
    spread: Queue, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    @spread.task(name="work")
    async def work() -> None:
        await asyncio.sleep(0.001)

    for _ in range(4):
        await spread.enqueue_many([spread.new("work") for _ in range(60)])
    claims: list[int] = []
    made = Store.claim

    def claim(self: Store, want: int, lease_ms: int, worker: str, lane: str, request: int, **more: Any) -> Any:
        claims.append(self.partition)
        return made(self, want, lease_ms, worker, lane, request, **more)

    monkeypatch.setattr(Store, "claim", claim)
    await start(spread, concurrency=2)
    await wait_until(lambda: len(claims) >= 40)
    # Each partition has jobs all the time. At first the lanes learn how much there is.
    for at in range(8, 36):
        assert set(claims[at : at + 4]) == set(range(4)), claims


async def test_the_rows_of_idle_partitions_are_written_rarely(spread: Queue, start: Callable[..., Any], until: Any):
    """Only the row in the first partition says that the worker is alive."""
    await spread.enqueue("t")
    written = [0] * 4
    made = Store.heartbeat

    def heartbeat(self: Store, worker: str, info: bytes) -> Any:
        written[self.partition] += 1
        return made(self, worker, info)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "heartbeat", heartbeat)
        await start(spread, lease=1.5)  # a beat each half second, or five times as often after a failure
        await until(lambda: written[0] >= 4, "the row of the first partition")
        assert max(written[1:]) <= 2, written
