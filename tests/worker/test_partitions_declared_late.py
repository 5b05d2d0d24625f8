"""A program that opened a queue before another one declared its partitions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Queue

if TYPE_CHECKING:
    from jobq.engine.store import Connection

KEYS = [f"key-{n}" for n in range(20)]


async def fill(queue: Queue, how: str) -> list[str]:
    """Enqueue a job for each key. Returns the ids of the jobs that have the keys then."""
    if how == "bulk":
        return [job.id for job in await queue.enqueue_many([queue.new("t", key=key) for key in KEYS])]
    if how == "gathered":
        return [job.id for job in await asyncio.gather(*(queue.enqueue("t", key=key) for key in KEYS))]
    return [(await queue.enqueue("t", key=key)).id for key in KEYS]


@pytest.mark.parametrize("how", ["single", "gathered", "bulk"])
@pytest.mark.parametrize("durability", [None, "none"])
async def test_its_keys_have_the_same_homes(admin: Any, connection: Connection, how: str, durability: Any):
    """Otherwise it would look for all keys in the first partition, and two jobs would have one key."""
    async with (
        Queue("late", connection) as early,
        Queue("late", connection, partitions=8) as declaring,
    ):
        made = await fill(declaring, how)
        if durability is None:
            assert await fill(early, how) == made
        else:
            found = await early.enqueue_many([early.new("t", key=key) for key in KEYS], durability=durability)
            assert [job.id for job in found] == made
        assert (await declaring.stats()).waiting == len(KEYS)


async def test_both_learn_it_if_the_other_one_enqueues_first(admin: Any, connection: Connection):
    async with Queue("late", connection) as early, Queue("late", connection, partitions=8) as declaring:
        made = await fill(early, "single")
        assert await fill(declaring, "single") == made
        assert (await early.stats()).waiting == len(KEYS)
