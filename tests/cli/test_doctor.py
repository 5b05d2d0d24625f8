"""``jobq doctor``: what it finds, what it says to type, its exit codes."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import msgspec

from jobq import Queue, State, Worker, WorkerRow
from jobq.cli.doctor import examine_queue, examine_server, refused
from jobq.cli.target import load_target
from jobq.errors import StoreUnavailable
from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Said


def checks(said: Said) -> dict[str, Any]:
    return {row["check"]: row for row in map(json.loads, said.out.splitlines())}


def test_a_queue_without_workers_is_an_error(jobq: Callable[..., Said], tasks: str):
    jobq("enqueue", "echo", "--queue", tasks)
    said = jobq("doctor", tasks, "--json")
    assert said.code == 1
    found = checks(said)
    assert (found["workers"]["level"], found["workers"]["fix"]) == ("error", "jobq work TARGET")
    assert found["version"]["level"] == found["latency"]["level"] == found["layout"]["level"] == "ok"
    text = jobq("doctor", tasks)
    assert "error: workers (queue tasks): 1 job and no worker\n  type: jobq work TARGET\n" in text.out


def test_a_paused_queue_is_a_warning(jobq: Callable[..., Said], tasks: str):
    jobq("pause", tasks)
    said = jobq("doctor", tasks, "--json")
    assert said.code in (0, 3)
    assert checks(said)["paused"]["fix"] == "jobq resume tasks"
    assert said.code == 3


def test_a_server_that_is_away_is_an_error_without_its_password(jobq: Callable[..., Said]):
    said = jobq("doctor", "--redis", "redis://user:secret-word@127.0.0.1:1/0", "--json")
    assert said.code == 1
    assert checks(said)["server"]["level"] == "error"
    assert "secret-word" not in said.out + said.err


def test_types_without_workers(jobq: Callable[..., Said], tasks: str):
    async def look() -> list[str]:
        [queue] = load_target(tasks)
        async with queue:
            await queue.store.register()
            store = queue.store
            await store.do(store.enqueue(["unknown", '{"type":"unknown","at":1}', "0 0 60000"]))
            row = WorkerRow("w", "h", 1, [queue.name], ["echo"], 1, 0, started=0, seen=0)
            await store.do(store.heartbeat("w", msgspec.json.encode(row)))
            found = await examine_queue(queue)
        return [finding.message for finding in found if finding.check == "types"]

    assert asyncio.run(look()) == ["no living worker knows the types unknown"]


def test_jobs_whose_payloads_no_worker_can_read(jobq: Callable[..., Said], tasks: str):
    async def look() -> list[str]:
        [queue] = load_target(tasks)
        async with queue:
            async with Queue(queue.name) as producer:  # it does not have the handler's code
                job = await producer.enqueue("echo", {"word": 1})
            async with Worker(queue) as worker:
                worker.start()
                await wait_until(lambda: _handed_back(queue, job.id))
                found = await examine_queue(queue)
            assert [one.message for one in found if one.check == "payloads"] == [
                f"workers could not read 1 job, such as tasks:{job.id}"
            ]
        return [one.check for one in found if one.level == "error"]

    assert asyncio.run(look()) == ["payloads"]


async def _handed_back(queue: Queue, job_id: str) -> bool:
    row = await queue.get(job_id)
    return row.state is State.DELAYED and row.unserved > 0


def test_a_server_without_queues_is_looked_at(jobq: Callable[..., Said]):
    found = checks(jobq("doctor", "--json"))
    assert found["queues"]["level"] == "warning"
    assert {"version", "memory", "latency", "clock"} <= set(found)


def test_a_server_that_would_delete_jobs_is_an_error_before_its_first_queue():
    answers = [b"redis_version:7.2.0", b"aof_enabled:1", b"", b"", [b"maxmemory-policy", b"allkeys-lru"],
               [b"maxmemory", b"1000000000"], [b"save", b""], b"used_memory:1"]  # fmt: skip

    class Evicting:
        async def commands(self, *_: Any) -> list[Any]:
            return answers

        async def command(self, *_: Any) -> list[bytes]:
            return [b"0", b"0"]

    found: Any = asyncio.run(examine_server(Evicting()))  # pyright: ignore[reportArgumentType] - all that is asked
    assert [one.message for one in found if one.level == "error"] == [
        "maxmemory-policy is allkeys-lru: the server would delete jobs when memory runs out; set maxmemory-policy"
        " noeviction"
    ]
    [fix] = [one.fix for one in found if one.check == "eviction"]
    assert fix == "redis-cli -u URL CONFIG SET maxmemory-policy noeviction, then CONFIG REWRITE"


def test_each_server_of_a_target_is_looked_at_although_one_is_away(
    jobq: Callable[..., Said], tasks: str, tmp_path: Path
):
    jobq("enqueue", "echo", "--queue", tasks)
    file = tmp_path / "two.py"
    file.write_text(
        "from jobq import Queue\nqueues = [Queue('far', 'redis://127.0.0.1:1/0'), Queue('gone', 'redis://127.0.0.1:1/0'),"
        " Queue('tasks')]\n"
    )
    said = jobq("doctor", f"{file}:queues", "--json")
    assert said.code == 1
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [row["queue"] for row in rows if row["check"] == "server"] == ["far", "gone"]
    assert {row["queue"] for row in rows if row["check"] == "workers"} == {"tasks"}
    assert [row["level"] for row in rows if row["check"] == "version"] == ["ok"]


def test_a_queue_that_does_not_exist_is_named(jobq: Callable[..., Said], tasks: str):
    jobq("enqueue", "echo", "--queue", tasks)
    said = jobq("doctor", "taks", "--json")
    assert said.code == 1
    assert checks(said)["queues"]["fix"] == "jobq queues"


def test_a_replica_is_told_from_a_server_that_is_away():
    replica = refused(StoreUnavailable("Redis cannot write now: READONLY You can't write against a read only replica."))
    assert "ROLE" in replica.fix
    assert "PING" in refused(StoreUnavailable("no answer from Redis: TimeoutError")).fix
