"""``jobq stats --window``: the types of a queue, as text and as JSON."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from jobq.cli.target import load_target
from jobq.testing import drain

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Said


async def run(tasks: str) -> None:
    async with load_target(tasks)[0] as queue:
        await drain(queue)


def test_types_in_a_window(jobq: Callable[..., Said], tasks: str):
    said = jobq("stats", tasks, "--window", "24h")
    assert said.out == "no run has ended in the last 24h\n"
    jobq("enqueue", "echo", "--queue", tasks)
    asyncio.run(run(tasks))
    head, *lines = jobq("stats", tasks, "--window", "24h").out.splitlines()
    assert head.split()[:6] == ["QUEUE", "TYPE", "COMPLETED", "FAILED", "RETRIED", "LOST"]
    assert [line.split()[1:6] for line in lines] == [["(all)", "1", "0", "0", "0"], ["echo", "1", "0", "0", "0"]]
    found = json.loads(jobq("stats", tasks, "--window", "7d", "--json").out)
    assert (found["window"], found["all"]["completed"], found["types"][0]["type"]) == ("7d", 1, "echo")


def test_an_unknown_window_says_which_there_are(jobq: Callable[..., Said], tasks: str):
    said = jobq("stats", tasks, "--window", "2h")
    assert said.code == 1
    assert "there is no window '2h'; the windows are 1h, 24h, 7d" in said.err
