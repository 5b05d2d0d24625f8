"""``jobq doctor``: what it finds, what it says to type, its exit codes."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import msgspec

from jobq import WorkerRow
from jobq.cli.doctor import examine_queue
from jobq.cli.target import load_target

if TYPE_CHECKING:
    from collections.abc import Callable

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
    assert "error: workers (queue tasks): 1 jobs and no worker\n  type: jobq work TARGET\n" in text.out


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
