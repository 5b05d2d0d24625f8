"""``jobq partitions``, and what other commands say of partitions."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import msgspec

from jobq import Concurrency, Queue
from jobq.cli import doctor_partitions
from jobq.cli.doctor_partitions import examine_partitions
from jobq.engine.model.ids import partition_of
from jobq.engine.model.views import WorkerRow

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from jobq import Connection

    from .conftest import Process, Said


def test_partitions_are_shown_and_set(jobq: Callable[..., Said], tasks: str):
    assert "1 partition, jobs with keys in 1" in jobq("partitions", "show", "--queue", tasks).out
    said = jobq("partitions", "set", "3", "--queue", tasks)
    assert said.out.splitlines()[1].split() == ["PARTITION", "JOBS"]
    row = jobq("partitions", "show", "--json", "--queue", tasks).json[0]
    assert (row["partitions"], row["jobs"]) == (3, [0, 0, 0])
    said = jobq("enqueue", "echo", "--partition-by", "acme", "--queue", tasks)
    assert jobq("show", said.out.strip(), "--queue", tasks, "--json").json[0]["partition_by"] == "acme"
    assert "partition by acme" in jobq("show", said.out.strip(), "--queue", tasks).out


def test_overviews_say_how_many_partitions_a_queue_has(jobq: Callable[..., Said], tasks: str):
    jobq("partitions", "set", "3", "--queue", tasks)
    for _ in range(6):
        jobq("enqueue", "echo", "--queue", tasks)
    for command in (("stats", tasks), ("stats",)):
        said = jobq(*command).out
        assert "3 partitions" in said, command
    row = jobq("stats", tasks, "--json").json[0]
    assert (row["partitions"], row["waiting"]) == (3, 6)


def alive() -> bytes:
    """The row of a worker."""
    row = WorkerRow(
        id="w", host="h", pid=1, queues=["wide"], types=["t"], concurrency=1, running=0, started=1, seen=0
    )  # fmt: skip
    return msgspec.json.encode(row)


def test_a_flag_for_the_name_of_a_queue_is_explained(jobq: Callable[..., Said], tasks: str):
    said = jobq("stats", "--queue", "tasks")
    assert said.code == 2
    assert "take the name alone, as in 'jobq stats NAME'" in said.err


async def test_why_speaks_of_the_share_of_a_partition(connection: Connection):
    async with Queue("wide", connection, partitions=2, limits=[Concurrency(10)]) as queue:
        await queue.set_limit("queue", concurrency=10)
        first, other = queue.store.parts
        fence = await first.do(first.balance("test", 5_000))
        await other.do(other.share(fence, "1", "10"))
        other.limited = True  # as a worker learns at its first claim
        await queue.enqueue("t", id="a~1")
        await queue.enqueue("t", id="b~1")
        await first.do(first.heartbeat("w", alive()))
        await other.do(other.claim(1, 30_000, "w", "0", 1, repeated=False))
        said = await queue.why("b~1")
        share = 'This partition\'s share of the rule "queue" is 1 of 10, and 1 run.'
        # The worker writes its row in the other partitions every few minutes only.
        assert said.reasons[0].detail.startswith(share)


# -- doctor --------------------------------------------------------------------------------------------------------


async def found(queue: Queue) -> dict[str, tuple[str, str]]:
    return {one.check: (one.level, one.message) for one in await examine_partitions(queue)}


async def test_doctor_says_that_code_declares_another_number(connection: Connection):
    async with Queue("wide", connection, partitions=4) as queue:
        await queue.set_partitions(6)
        assert await found(queue) == {
            "partitions": ("ok", "6 partitions"),
            "declared partitions": ("warning", "the code declares 4 partitions, and 6 are stored, which count"),
        }


async def test_doctor_finds_partitions_that_are_drained(connection: Connection):
    async with Queue("wide", connection) as queue:
        await queue.set_partitions(4)
        await queue.enqueue("t", id="a~3")
        await queue.set_partitions(2)
        assert (await found(queue))["drained partitions"] == (
            "ok",
            "1 job in 1 partition that get no new ones: workers drain them",
        )


async def test_doctor_finds_partitions_that_no_worker_serves(connection: Connection):
    """A worker of an earlier release, or one that has not heard of the partition, serves others."""
    async with Queue("wide", connection, partitions=3) as queue:
        for job_id in ("a", "a~1", "a~2"):
            await queue.enqueue("t", id=job_id)
        for part in queue.store.parts[:2]:
            await part.do(part.heartbeat("w", alive()))
        assert (await found(queue))["partition workers"] == (
            "error",
            "no worker serves partitions 2, which have jobs, though some serve others",
        )


async def test_doctor_finds_an_uneven_spread(connection: Connection, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor_partitions, "MANY", 10)
    async with Queue("wide", connection, partitions=4) as queue:
        await queue.enqueue_many([queue.new("t", n, id=f"j{n}~1") for n in range(11)])
        assert (await found(queue))["uneven partitions"] == (
            "warning",
            "partition 1 has 11 of 11 unfinished jobs",
        )


async def test_top_adds_up_partitions_also_those_that_come_while_it_runs(
    start: Callable[..., Process], connection: Connection, redis_url: str
):
    async with Queue("wide", connection, partitions=2) as queue:
        for _ in range(5):
            await queue.enqueue("work")
        top = start("top", "--interval", "50ms", JOBQ_REDIS_URL=redis_url)
        first = await asyncio.to_thread(top.wait_line, "wide")
        assert (first.split()[:2], "2 partitions" in first) == (["wide", "5"], True)
        await queue.set_partitions(4)
        new = [await queue.enqueue("work") for _ in range(8)]
        assert max(partition_of(job.id) for job in new) > 1
        await asyncio.to_thread(top.wait_line, "4 partitions")
        await new[-1].kill()
        await asyncio.to_thread(top.wait_line, f"wide:{new[-1].id}")
        last = await asyncio.to_thread(top.wait_line, "4 partitions")
        assert last.split()[:2] == ["wide", "12"]
        top.signal(signal.SIGINT)
        assert top.end() == 0
