"""Each capability together with each other one: the jobs end as they should, and nothing is left under their keys.

The table of docs/combining.md says what a pair does where it is not obvious.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Breaker, Context, JobFailed, Queue, Rate, RateLimited, Snooze, State, Unique, inject, new_id
from tests.chaos.invariants import broken

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobq import JobRow

OPTIONS: dict[str, dict[str, Any]] = {
    "priority": {"priority": -5},
    "delay": {"delay": 0.05},
    "lifo": {"lifo": True},
    "key": {"unique": Unique(by=("name",), on="keep_last")},
    "group": {"group": "acme"},
    "concurrency": {"limits": ["one"]},
    "rate": {"limits": ["often"]},
    "cost": {"limits": ["model"], "costs": {"tokens": 3}},
    "slots": {"slots": 2},
    "expires": {"expires": 60},
    "deadline": {"deadline": 60},
}
FIRST_RUNS = ("fails", "snoozes", "is rate limited", "is retried by hand")
"""What the handler does in its first run."""
OPERATORS = ("kill", "pause", "rerun")
ALL = (*OPTIONS, *FIRST_RUNS, *OPERATORS)


def merged(one: str, other: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in (one, other):
        more = OPTIONS.get(name, {})
        limits = [*found.get("limits", []), *more.get("limits", [])]
        found |= more
        if limits:
            found["limits"] = limits
    return found


@pytest.mark.parametrize("one", ALL)
async def test_each_capability_works_together_with_each_other_one(queue: Queue, start: Callable[..., Any], one: str):
    revived: set[str] = set()

    @queue.task(attempts=3, backoff=[0.01], breaker=Breaker(rate=1.0, runs=500))
    async def work(name: str, first: list[str], ctx: Context = inject) -> str:
        if "is rate limited" in first and not ctx.rate_limited:
            raise RateLimited(retry_after=0.02)
        if "snoozes" in first and not ctx.snoozes:
            raise Snooze(0.02)
        if ("fails" in first and ctx.attempt == 1) or ("is retried by hand" in first and ctx.id not in revived):
            raise RuntimeError("as planned")
        return name

    await queue.set_limit("one", concurrency=1)
    await queue.set_limit("often", rate=Rate(1000, per=1, burst=3))
    await queue.set_limit("model", rate=Rate(1000, per=1, burst=5, unit="tokens"))
    await start(concurrency=4)
    jobs: dict[str, list[str]] = {}
    for other in ALL:
        pair = (one, other)
        if "pause" in pair:
            await queue.pause()
        first = [name for name in pair if name in FIRST_RUNS]
        # A job that is to be killed must not start before.
        later: dict[str, Any] = {"delay": 30} if "kill" in pair and "pause" not in pair else {}
        jobs[other] = []
        for number in range(2):
            options = merged(one, other) | (later if number == 0 else {})
            job = await work.options(**options).enqueue(name=f"{other} {number}", first=first)
            jobs[other].append(job.id)
        if "kill" in pair:
            await queue.kill(jobs[other][0])
        await queue.resume()
    for other, ids in jobs.items():
        pair = (one, other)
        for number, job_id in enumerate(ids):
            row = await ended(queue, job_id)
            if "kill" in pair and number == 0:
                assert (row.state, row.errors[-1].type) == (State.FAILED, "Killed"), pair
                continue
            if "is retried by hand" in pair:
                assert row.state is State.FAILED, pair
                revived.add(job_id)
                await queue.retry(job_id)
                row = await ended(queue, job_id)
            assert row.state is State.COMPLETED, (pair, row.errors[-1:])
        if "rerun" in pair:
            again = new_id()
            revived.add(again)
            assert await (await queue.rerun(ids[1], id=again)).result(timeout=30) == f"{other} 1", pair
    assert await broken(queue.store) == []
    assert [(row.held, row.active) for row in await queue.limits()] == [(0, 0)] * 3


async def ended(queue: Queue, job_id: str) -> JobRow:
    with suppress(JobFailed):
        await queue.result(job_id, timeout=30)
    return await queue.get(job_id)
