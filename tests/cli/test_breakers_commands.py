"""The commands of circuit breakers: their text, their JSON and their exit codes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from jobq import Breaker, Queue

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Said


async def declare(url: str, name: str) -> None:
    """Write the breaker of a type, as a program does that has the code."""
    queue = Queue(name, url)

    @queue.task(breaker=Breaker(rate=0.5, runs=4))
    async def pay() -> None: ...

    async with queue:
        await queue.reset_breaker("pay")


def test_a_breaker_is_shown_tripped_reset_and_removed(jobq: Callable[..., Said], redis_url: str):
    asyncio.run(declare(redis_url, "shop"))

    def said(*words: str) -> Said:
        found = jobq("breakers", *words, "--queue", "shop")
        assert found.code == 0, found.err
        return found

    head, line = said("ls").out.splitlines()
    assert head.split()[:3] == ["TYPE", "STATE", "OPENS"]
    assert line.split() == ["pay", "closed", "50%", "of", "4", "0", "of", "0", "0", "0", "-"]
    assert said("trip", "pay", "--time", "5m").out.startswith("tripped pay of shop: it is open, and one job runs in ")
    [row] = said("ls", "--json").json
    assert (row["type"], row["state"], row["held"]) == ("pay", "open", 0)
    assert said("trip", "pay", "--json").json[0]["state"] == "open"
    assert said("reset", "pay").out == "reset pay of shop: it is closed\n"
    assert said("reset", "pay", "--json").json[0]["state"] == "closed"
    assert said("rm", "pay").out.startswith("removed the breaker of pay of shop")
    assert said("ls", "--json").out == ""
    asyncio.run(declare(redis_url, "shop"))
    [removed] = said("rm", "pay", "--json").json
    assert removed == {"queue": "shop", "type": "pay", "returns": False}


def test_a_queue_without_breakers(jobq: Callable[..., Said], tasks: str):
    assert "no circuit breakers; declare one" in jobq("breakers", "ls", "--queue", tasks).out
    for words in (["trip", "echo"], ["trip", "echo", "--time", "5m"], ["reset", "echo"], ["rm", "echo"]):
        said = jobq("breakers", *words, "--queue", tasks)
        assert (said.code, said.err.count("\n")) == (1, 1)
        assert "type 'echo' has no circuit breaker; there are: none" in said.err
    assert jobq("breakers", "trip", "echo", "--time", "soon", "--queue", tasks).code == 2
