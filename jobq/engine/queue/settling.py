"""What operators set of a queue must be the same in all of its partitions.

A call that sets something can be cut between two partitions. So the first partition counts the changes, and each other
one notes how many have reached it. Workers compare these numbers, and copy the settings of the first partition to those
that are behind.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from jobq.engine.log import get_logger
from jobq.engine.model.unreadable import as_text
from jobq.engine.queue.groups import write_group
from jobq.engine.queue.limits import write_rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobq.engine.store import Store

log = get_logger("jobq.queue")


async def number_of(part: Store) -> int:
    """How many changes of settings there were, or how many have reached this partition."""
    stored = await part.command(b"HGET", part.keys["meta"], b"settings")
    return int(stored) if stored and stored.isdigit() else 0


async def settle(store: Store) -> int | None:
    """Copy the settings of the first partition to those that are behind. Returns the number of its changes, or None if
    they have not reached all partitions: call it again later.

    :raises StoreError: Redis is away.
    """
    first, *others = store.parts
    number, *reached = await asyncio.gather(*(number_of(part) for part in store.parts))
    settled = True
    for part, before in zip(others, reached, strict=True):
        if before != number:
            log.info(
                f"The settings of queue {store.name} are copied to partition {part.partition}: a call was interrupted",
                queue=store.name, partition=part.partition,
            )  # fmt: skip
            settled &= await copy_settings(first, part, before)
    return number if settled else None


async def copy_settings(first: Store, part: Store, before: int = 0) -> bool:
    """Give a partition what operators set of the queue, and take away what they removed. ``before``: its number.
    Returns False if something must be copied later.

    :raises StoreError: Redis is away.
    """
    number = await number_of(first)
    await part.register()
    meta = first.keys["meta"]
    aging, charge, events, paused = await first.command(b"HMGET", meta, b"aging", b"charge", b"events", b"paused")
    for name, value in ((b"charge", charge), (b"events", events)):
        if value is None:
            await part.command(b"HDEL", part.keys["meta"], name)
        else:
            await part.command(b"HSET", part.keys["meta"], name, value)
    await part.do(part.resume() if paused is None else part.pause())
    rules = _pairs(await first.command(b"HGETALL", first.keys["rules"]))
    known = _pairs(await part.command(b"HGETALL", part.keys["rules"]))
    for name in {*rules, *known}:
        chosen, _, declared = rules.get(name, "").partition("\n")
        if declared != known.get(name, "").partition("\n")[2]:
            await write_rule(part, "declared", name, declared)
        # Also if it is there: it may not have reached all jobs that wait.
        if chosen or known.get(name, "").partition("\n")[0]:
            await write_rule(part, "set", name, chosen)
    groups = _pairs(await first.command(b"HGETALL", first.keys["groups"]))
    for name in {*groups, *_pairs(await part.command(b"HGETALL", part.keys["groups"]))}:
        await write_group(part, name, groups.get(name, ""))
    breakers = _pairs(await first.command(b"HGETALL", first.keys["breakers"]))
    for name, row in breakers.items():
        # Whether it is open is judged in each partition.
        await part.do(part.breaker("declare", name, " ".join(row.split(" ")[:3])))
    for name in _pairs(await part.command(b"HGETALL", part.keys["breakers"])).keys() - breakers.keys():
        await part.do(part.breaker("remove", name, ""))
    if aging is not None:
        _, waiting = await part.do(part.aging(int(aging)))
        if waiting:
            return False  # It is tried again when fewer jobs wait.
    return await number_of(first) == number and await part.do(part.settings(before, number)) == number


def _pairs(flat: Sequence[bytes]) -> dict[str, str]:
    return {as_text(name): as_text(row) for name, row in zip(flat[::2], flat[1::2], strict=True)}
