"""Groups, as producers and operators use them."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Concurrency, Group, GroupFull, InvalidJob, InvalidQuery, Queue, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools import Logs

    from jobq import Connection


async def test_the_jobs_of_a_small_group_do_not_wait_for_a_large_one(queue: Queue, start: Callable[..., Any]):
    order: list[str] = []

    @queue.task(group="{tenant}")
    async def work(tenant: str) -> None:
        order.append(tenant)

    await work.enqueue_many([{"tenant": "large"}] * 300)
    last = await work.enqueue_many([{"tenant": "small"}] * 3)
    await start(concurrency=2)
    await asyncio.gather(*(job.result(20) for job in last))
    assert order.count("large") < 40


async def test_a_template_takes_arguments_and_their_defaults(queue: Queue):
    @queue.task(group="{tenant}/{kind}")
    async def work(tenant: str, kind: str = "plain") -> None: ...

    jobs = [await work.enqueue("a"), await work.enqueue("a", kind="big"), await work.enqueue(tenant="b\n")]
    groups = [(await job.row()).group for job in jobs]
    assert groups[:2] == ["a/plain", "a/big"]
    assert groups[2] is not None
    assert groups[2].startswith("~"), "a name with a control character is replaced by its hash"


async def test_an_argument_that_is_none_gives_no_group(queue: Queue):
    @queue.task(group="{tenant}")
    async def work(tenant: str | None = None) -> None: ...

    groups = [(await (await work.enqueue(tenant)).row()).group for tenant in (None, "null", "a")]
    assert groups == [None, "null", "a"]
    assert (await (await work.enqueue()).row()).group is None


async def test_a_function_gives_the_group(queue: Queue):
    @queue.task(group=lambda tenant, size=1: f"{tenant}-large" if size > 9 else None)
    async def work(tenant: str, size: int = 1) -> None: ...

    assert (await (await work.enqueue("a", size=10)).row()).group == "a-large"
    assert (await (await work.enqueue("a")).row()).group is None
    [job] = await work.enqueue_many([{"tenant": "b", "size": 11}])
    assert (await job.row()).group == "b-large"
    chosen = await work.options(group="mine").enqueue("a", size=10)
    assert (await chosen.row()).group == "mine", "what the call says comes first"


@pytest.mark.parametrize(
    "group", [lambda tenant: 1 / 0, lambda tenant: sys.exit(1), lambda tenant: 7, lambda tenant: "", lambda: "a"]
)
async def test_a_function_that_gives_no_name_refuses_the_job(queue: Queue, group: Any):
    @queue.task(group=group)
    async def work(tenant: str) -> None: ...

    with pytest.raises(InvalidJob, match="group"):
        await work.enqueue("a")
    assert (await queue.stats()).held == 0


@pytest.mark.parametrize("group", ["{tenent}", "{tenant", "tenant}", "{{tenant}}", "{}", "", "a\nb", 5])
def test_a_template_that_does_not_fit_is_refused_at_import(group: Any):
    with pytest.raises(InvalidJob, match="group"):

        @Queue("q").task(group=group)
        async def work(tenant: str) -> None: ...


async def test_a_full_group_refuses_more_jobs_and_takes_them_again(queue: Queue, start: Callable[..., Any]):
    @queue.task(group="{tenant}")
    async def work(tenant: str) -> None: ...

    await queue.set_group("a", max_queued=2)
    first = await work.enqueue("a")
    await work.enqueue("a")
    with pytest.raises(GroupFull, match="group 'a' holds as many jobs as it may") as caught:
        await work.enqueue("a")
    assert caught.value.group == "a"
    await work.enqueue("b")
    with pytest.raises(GroupFull):
        await work.enqueue_many([{"tenant": "c"}, {"tenant": "a"}])
    assert (await queue.stats()).held == 4, "the other job of the call was enqueued"
    await work.options(delay=60).enqueue("a")  # it is not held yet
    await start()
    await first.result(10)
    await queue.reset_group("a")
    await (await work.enqueue("a")).result(10)


async def test_groups_are_listed_with_their_jobs_and_settings(queue: Queue):
    @queue.task(group="{tenant}", limits=[Concurrency(1)])
    async def work(tenant: str) -> None: ...

    for tenant, n in (("a", 1), ("b", 3), ("a-b", 2)):
        await work.enqueue_many([{"tenant": tenant}] * n)
    await queue.set_group("c", weight=2.5, paused=True, max_queued=7)
    rows = await queue.groups()
    assert [(row.group, row.held, row.active) for row in rows] == [
        ("b", 3, 0),
        ("a-b", 2, 0),
        ("a", 1, 0),
        ("c", 0, 0),
    ]
    assert (rows[3].weight, rows[3].paused, rows[3].max_queued, rows[3].oldest) == (2.5, True, 7, None)
    assert [row.group for row in await queue.groups(sort="oldest", limit=1)] == ["a"]
    assert [row.group for row in await queue.groups(sort="name")] == ["a", "a-b", "b", "c"]
    with pytest.raises(InvalidJob, match="waiting, oldest or name"):
        await queue.groups(sort="size")  # type: ignore[arg-type]


async def test_groups_are_read_over_several_pages(queue: Queue, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobq.engine.queue.groups.PAGE", 3)
    await queue.enqueue_many([queue.new("t", group=f"g{n % 10}") for n in range(25)])
    rows = await queue.groups(limit=4)
    assert [(row.group, row.held) for row in rows] == [(f"g{n}", 3) for n in range(4)]


@pytest.mark.parametrize(
    "given",
    [
        {"weight": 0},
        {"weight": -1},
        {"weight": 1e9},
        {"weight": float("nan")},
        {"weight": True},
        {"max_queued": -1},
        {"max_queued": 1.5},
        {"max_queued": True},
    ],
)
async def test_settings_that_do_not_fit_are_refused(queue: Queue, given: dict[str, Any]):
    with pytest.raises(InvalidJob):
        await queue.set_group("a", **given)
    with pytest.raises(InvalidJob, match="group"):
        await queue.set_group("")
    assert await queue.groups() == []


async def test_a_retry_and_a_released_job_stay_in_their_group(queue: Queue, start: Callable[..., Any]):
    tries = 0

    @queue.task(group="{tenant}", attempts=2, backoff=[0])
    async def work(tenant: str) -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ValueError
        return tenant

    job = await work.enqueue("a")
    await start()
    assert await job.result(10) == "a"
    info = await job.row()
    assert (info.state, info.group, info.attempts_made) == (State.COMPLETED, "a", 2)


async def test_a_paused_group_is_resumed(queue: Queue, start: Callable[..., Any]):
    @queue.task(group="{tenant}")
    async def work(tenant: str) -> None: ...

    await queue.set_group("a", paused=True)
    held = await work.enqueue("a")
    await start()
    await (await work.enqueue("b")).result(10)
    assert (await held.row()).state is State.HELD
    await queue.set_group("a", paused=False)
    await held.result(10)


async def test_settings_that_are_not_named_stay(queue: Queue):
    assert await queue.set_group("a", weight=3, max_queued=5) == Group(3.0, False, 5)
    assert await queue.set_group("a", paused=True) == Group(3.0, True, 5)
    assert await queue.set_group("a", max_queued=None) == Group(3.0, True, None)
    assert await queue.set_group("a", weight=0.5, paused=False) == Group(0.5, False, None)
    assert await queue.set_group("b", max_queued=0) == Group(1.0, False, 0), "the rest has its defaults"
    with pytest.raises(InvalidJob, match="weight is 0"):
        await queue.set_group("a", weight=0)
    await queue.reset_group("a")
    assert await queue.set_group("a") == Group()


async def test_a_whole_group_gets_another_priority_and_runs_now(queue: Queue):
    for n in range(250):
        await queue.enqueue("work", {"n": n}, group="a" if n % 5 else "b", priority=n % 3)
    before = [row.id for row in (await queue.page(State.HELD, group="a", limit=1000)).jobs]
    order = [row.id for row in (await queue.page(State.HELD, group="b", limit=1000)).jobs]
    moved: list[int] = []
    assert await queue.reprioritise_all(State.HELD, 7, group="a", progress=moved.append) == 200
    assert moved[-1] == 200
    rows = (await queue.page(State.HELD, limit=1000)).jobs
    assert {(row.group, row.priority) for row in rows} == {("a", 7), ("b", 0), ("b", 1), ("b", 2)}
    assert [row.id for row in rows if row.group == "b"] == order
    assert sorted(row.id for row in rows if row.group == "a") == sorted(before)
    assert await queue.reprioritise_all(State.HELD, 7, group="a") == 0, "all have it already"
    assert await queue.reprioritise_all(State.HELD, -7, group="a", limit=30) == 30
    assert await queue.reprioritise_all(State.HELD, -7, group="a") == 170
    for n in range(5):
        await queue.enqueue("work", {"n": n}, group="ab"[n % 2], delay=60)
    assert await queue.reprioritise_all(State.DELAYED, 4) == 5
    assert await queue.promote_all(group="a") == 3
    stats = await queue.stats()
    assert (stats.held, stats.delayed) == (253, 2)
    assert await queue.promote_all(limit=1) == 1
    with pytest.raises(InvalidQuery):
        await queue.reprioritise_all(State.ACTIVE, 1)
    with pytest.raises(InvalidQuery):
        await queue.promote_all(State.HELD)


async def test_a_whole_group_is_listed_killed_retried_and_removed(queue: Queue):
    jobs = [queue.new("t", group="ab"[n % 2]) for n in range(30)]
    jobs += [queue.new("t", group="a", delay=60, retention=0) for _ in range(3)]
    await queue.enqueue_many(jobs)
    page = await queue.page(State.HELD, group="a", limit=7)
    assert [row.group for row in page.jobs] == ["a"] * 7
    rest = await queue.page(State.HELD, group="a", limit=100, cursor=page.cursor)
    assert (len(rest.jobs), rest.cursor) == (8, None)
    assert await queue.kill_all(State.HELD, group="a", limit=4) == 4
    assert await queue.kill_all(State.HELD, group="a") == 11
    assert await queue.kill_all(State.DELAYED, group="a") == 3
    stats = await queue.stats()
    assert (stats.held, stats.delayed, stats.failed) == (15, 0, 18)
    assert len((await queue.page(State.FAILED, limit=100)).jobs) == 15, "the retention of three jobs is over"
    assert await queue.retry_all(group="b") == 0
    assert await queue.retry_all(group="a", limit=5) == 5
    assert [(row.group, row.held) for row in await queue.groups()] == [("b", 15), ("a", 5)]
    assert await queue.remove_all(State.HELD, group="b") == 15
    assert [(row.group, row.held) for row in await queue.groups()] == [("a", 5)]
    with pytest.raises(InvalidQuery, match="cannot kill all failed jobs"):
        await queue.kill_all(State.FAILED)


async def test_another_charge_than_the_stored_one_is_a_warning_and_an_operator_changes_it(
    connection: Connection, logs: Logs
):
    async with Queue("charged", connection, charge="actual") as first:
        await first.enqueue("x", group="a")
        assert await first.get_charge() == "actual"
    async with Queue("charged", connection, charge="count") as second:
        await second.enqueue("x", group="a")
        await second.store.register()
        assert await second.get_charge() == "actual"
        warning = logs.one("are charged by actual, and this program declares count", "WARNING")
        assert "jobq groups charge count --queue charged" in warning.getMessage()
        await second.set_charge("count")
        assert await second.get_charge() == "count"
        with pytest.raises(InvalidJob, match="it takes 'count' or 'actual'"):
            await second.set_charge("time")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidJob, match="it takes 'count' or 'actual'"):
        Queue("charged", connection, charge="time")  # pyright: ignore[reportArgumentType]


async def test_any_argument_makes_a_group(queue: Queue, start: Callable[..., Any]):
    """Names that mean something to the engine, to Redis or to a terminal are names as any other."""
    ran: list[str] = []

    @queue.task(group="{tenant}")
    async def work(tenant: str) -> str:
        ran.append(tenant)
        return tenant

    names = ["", " ", "a\nb", "@x", "!b", "a:b", "é" * 150, "queue", "\0", "a|b", "@", "x" * 300, "\x1b[2J"]
    jobs = [await work.enqueue(name) for name in names]
    await start()
    assert [await job.result(10) for job in jobs] == names
    assert sorted(ran) == sorted(names)
    assert await queue.groups() == []
