"""Every command of docs/three-am.md is typed against a queue in which things are wrong."""

from __future__ import annotations

import asyncio
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobq import Concurrency, Discard, Queue
from jobq.testing import drain

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Said

PAGE = (Path(__file__).parents[2] / "docs" / "three-am.md").read_text()
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def typed() -> list[str]:
    """The commands of jobq on the page: those of its blocks, and those within its sentences."""
    lines = [line.removeprefix("$ ") for block in BLOCK.findall(PAGE) for line in block.splitlines()]
    within = re.findall(r"`(jobq [a-z]+ [^`\n]+)`", BLOCK.sub("", PAGE))
    commands = [*lines, *(one for one in within if "ID" not in one and one != "jobq limits set")]
    return list(dict.fromkeys(" ".join(shlex.split(command, comments=True)[1:]) for command in commands))


async def go_wrong(redis_url: str) -> None:
    """A paused queue with a job that waits, one that is held, and one that has failed."""
    queue = Queue("mail", redis_url)

    @queue.task(attempts=1, group="{tenant}", limits=[Concurrency(1, by="tenant")])
    async def send(tenant: str) -> None:
        raise Discard("the mail server is down")

    async with queue:
        await send.options(id="order-9").enqueue(tenant="acme")
        await drain(queue)
        await queue.pause()
        await send.options(id="order-7").enqueue(tenant="acme")
        await queue.enqueue("send", {"tenant": "globex"}, limits=[], group=None)


async def clear(redis_url: str) -> None:
    """Remove the queue."""
    async with Queue("mail", redis_url) as queue:
        await queue.drop(force=True)


@pytest.mark.parametrize("command", typed())
def test_each_command_can_be_typed_and_works(command: str, redis_url: str, jobq: Callable[..., Said]):
    asyncio.run(go_wrong(redis_url))
    said = jobq(*command.split())
    # A doctor that finds something says so with its exit code.
    assert said.code == 0 or (command.startswith("doctor") and said.code in (1, 3)), said.err
    assert said.out or command.startswith("logs")  # this job wrote no line
    asyncio.run(clear(redis_url))


def test_the_page_names_what_is_wrong(redis_url: str, jobq: Callable[..., Said]):
    asyncio.run(go_wrong(redis_url))
    assert "paused" in jobq("why", "--queue", "mail").out
    assert "the mail server is down" in jobq("show", "mail:order-9").out
    assert len(typed()) > 25
    sections = {re.sub(r"[^\w\- ]", "", one).lower().replace(" ", "-") for one in re.findall(r"^## (.*)$", PAGE, re.M)}
    assert set(re.findall(r"\(#([\w-]+)\)", PAGE)) <= sections
