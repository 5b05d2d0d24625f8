"""What happens to jobs over a limit, as programs see it: the answer of the enqueue, the runs and the counts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Concurrency, InvalidJob, JobFailed, JobKilled, Queue, Rate, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools import Gate

    from tests.conftest import Until


async def test_a_dropped_job_says_so_and_never_runs(queue: Queue, start: Callable[..., Any], gate: Gate, until: Until):
    ran: list[int] = []

    @queue.task(limits=[Concurrency(1, by="tenant", over="drop")])
    async def work(tenant: str, n: int) -> None:
        ran.append(n)
        await gate.passing()

    await start(concurrency=5)
    first = await work.enqueue(tenant="a", n=1)
    assert (first.done, first.state) == (None, None)
    await until(lambda: ran == [1], "the first to run")
    second = await work.enqueue(tenant="a", n=2)
    assert (second.duplicate, second.done, second.state) == (False, "dropped", State.FAILED)
    assert (await work.enqueue(tenant="b", n=3)).done is None
    with pytest.raises(JobFailed, match=r"dropped: the rule .* had no room"):
        await second.result(5)
    await until(lambda: ran == [1, 3], "the other tenant")
    jobs = await work.enqueue_many([{"tenant": "c", "n": n} for n in range(4, 200)])
    assert [job.done for job in jobs].count(None) == 1, "a bulk is decided in its order"
    gate.open()
    await asyncio.gather(first.result(5), jobs[0].result(5))
    assert ran == [1, 3, 4]
    stats = await queue.stats()
    assert (stats.dropped_total, stats.failed_total, stats.held) == (196, 196, 0)


async def test_a_delayed_job_is_dropped_when_it_is_due(
    queue: Queue, start: Callable[..., Any], gate: Gate, until: Until
):
    ran: list[int] = []

    @queue.task(limits=[Concurrency(1, over="drop")])
    async def work(n: int) -> None:
        ran.append(n)
        await gate.passing()

    await start(concurrency=5)
    late = await work.options(delay=0.1).enqueue(n=2)
    assert late.done is None
    await work.enqueue(n=1)
    with pytest.raises(JobFailed, match="Dropped"):
        await late.result(10)
    assert ran == [1]
    gate.open()
    assert (await queue.stats()).dropped_total == 1


async def test_the_newest_job_takes_the_place_of_the_one_that_waits(
    queue: Queue, start: Callable[..., Any], gate: Gate, until: Until
):
    ran: list[int] = []

    @queue.task(limits=[Concurrency(1, over="replace_oldest")])
    async def work(n: int) -> int:
        ran.append(n)
        await gate.passing()
        return n

    await start(concurrency=5)
    await work.enqueue(n=1)
    await until(lambda: ran == [1], "the first to run")
    jobs = [await work.enqueue(n=n) for n in (2, 3, 4)]
    assert [job.done for job in jobs] == [None, "replaced_oldest", "replaced_oldest"]
    with pytest.raises(JobFailed, match=f"Replaced: replaced by job {jobs[1].id}"):
        await jobs[0].result(5)
    gate.open()
    assert await jobs[2].result(5) == 4
    assert ran == [1, 4]
    assert (await queue.stats()).replaced_oldest_total == 2


async def test_a_new_job_kills_the_one_that_runs(queue: Queue, start: Callable[..., Any], gate: Gate, until: Until):
    stopped: list[int] = []
    running: set[int] = set()

    @queue.task(limits=[Concurrency(1, by="branch", over="kill_running")])
    async def build(branch: str, n: int) -> int:
        running.add(n)
        try:
            await gate.passing()
        except asyncio.CancelledError:
            stopped.append(n)
            raise
        return n

    await start(concurrency=5)
    first = await build.enqueue(branch="main", n=1)
    await until(lambda: running == {1}, "the first to run")
    second = await build.enqueue(branch="main", n=2)
    assert second.done == "killed_running"
    with pytest.raises(JobKilled, match=f"killed for job {second.id}"):
        await first.result(5)
    await until(lambda: running == {1, 2} and stopped == [1], "the second in its place")
    gate.open()
    assert await second.result(5) == 2
    stats = await queue.stats()
    assert (stats.killed_running_total, stats.completed_total, stats.failed_total) == (1, 1, 1)


async def test_an_operator_sets_and_resets_the_action(queue: Queue, start: Callable[..., Any]):
    @queue.task(limits=[Concurrency(1, name="r")])
    async def work() -> None: ...

    await queue.set_limit("r", concurrency=0, over="drop")
    assert (await work.enqueue()).done == "dropped"
    [row] = await queue.limits()
    assert (row.concurrency, row.over, row.source) == (0, "drop", "operator")
    await queue.reset_limit("r")
    await start()
    job = await work.enqueue()
    assert job.done is None
    await job.result(5)


async def test_a_rate_drops_what_comes_too_fast(queue: Queue, start: Callable[..., Any]):
    @queue.task(limits=[Rate(1, per="1d", burst=2, over="drop")])
    async def work() -> None: ...

    await start()
    jobs = [await work.enqueue() for _ in range(4)]
    assert [job.done for job in jobs] == [None, None, "dropped", "dropped"]
    await asyncio.gather(jobs[0].result(5), jobs[1].result(5))


async def test_uniqueness_and_the_limit_are_both_answered(queue: Queue):
    @queue.task(limits=[Concurrency(1, over="drop")])
    async def work() -> None: ...

    first = await work.options(key="k").enqueue()
    again = await work.options(key="k").enqueue()
    assert (again.id, again.duplicate, again.done) == (first.id, True, "returned")
    other = await work.options(key="l").enqueue()
    assert (other.duplicate, other.done) == (False, "dropped")
    after = await work.options(key="l").enqueue()
    assert (after.duplicate, after.done) == (False, "dropped"), "the dropped job does not hold its key"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Concurrency(1, over="skip"), "over is 'skip': it takes wait, drop, replace_oldest, kill_running"),  # type: ignore[arg-type]
        (lambda: Rate(1, per=1, over="kill_running"), "a killed job gives its place back, but no token"),
    ],
)
def test_what_cannot_be_is_refused_at_once(make: Callable[[], object], words: str):
    with pytest.raises(InvalidJob, match=words):
        make()


async def test_what_cannot_be_together_is_refused(queue: Queue):
    async def work(tenant: str) -> None: ...

    both = [Concurrency(1, over="drop"), Rate(1, per=1, over="replace_oldest")]
    with pytest.raises(InvalidJob, match="rule 'work' is given two actions, 'drop' and 'replace_oldest'"):
        queue.task(limits=both)(work)
    with pytest.raises(InvalidJob, match="needs a concurrency without a rate"):
        queue.task(limits=[Concurrency(1, over="kill_running"), Rate(1, per=1)])(work)
    with pytest.raises(InvalidJob, match="the rule 'queue' holds no jobs"):
        Queue("q", "redis://localhost", limits=[Concurrency(1, over="drop")])
    with pytest.raises(InvalidJob, match="the rule 'queue' holds no jobs"):
        await queue.set_limit("queue", concurrency=1, over="drop")
    with pytest.raises(InvalidJob, match="needs a concurrency without a rate"):
        await queue.set_limit("r", rate=Rate(1, per=1), over="kill_running")
