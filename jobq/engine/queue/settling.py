"""What operators set of a queue must be the same in all of its partitions.

A call that sets something can be cut between two partitions, or be so slow that another one overtakes it. The first
partition is right. Workers look for partitions that do not follow it, and copy its settings to them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from jobq.engine.log import get_logger
from jobq.engine.queue.breakers import agree_on_breakers
from jobq.engine.queue.groups import walk_group, write_group
from jobq.engine.queue.limits import walk_rule, write_rule
from jobq.engine.queue.settled import Settings, counts_of, settings_of

if TYPE_CHECKING:
    from jobq.engine.store import Store

log = get_logger("jobq.queue")

TRIES: Final = 3
"""How often the settings are copied to a partition, if they are changed meanwhile. Then they are copied later."""


async def settle(store: Store) -> bytes | None:
    """Copy the settings of the first partition to those that do not follow it. Returns the changes that it has counted,
    or None if not all partitions follow: call it again later.

    :raises StoreError: Redis is away.
    """
    first, *others = store.parts
    counted, *rest = await counts_of(store.parts)
    behind = [part for part, counts in zip(others, rest, strict=True) if not counts.follows(counted)]
    settled = all(await asyncio.gather(*(copy_settings(first, part) for part in behind)))
    await agree_on_breakers(store)
    return counted.changes if settled else None


async def copy_settings(first: Store, part: Store, *, new: bool = False) -> bool:
    """Give a partition what operators set of the queue, and take away what they removed. ``new``: it gets no jobs yet.
    Returns False if something must be copied later.

    :raises StoreError: Redis is away.
    """
    await part.register()
    for attempt in range(TRIES):
        counted, own = await counts_of([first, part])
        wanted, known = await settings_of(first), await settings_of(part)
        if attempt and wanted.same(known):
            return bool(await part.do(part.settings(counted.changes, own.changes)))
        if not (new or attempt or wanted.same(known)):
            log.info(
                f"The settings of queue {first.name} are copied to partition {part.partition}: a call was interrupted",
                queue=first.name, partition=part.partition,
            )  # fmt: skip
        if not await _copy(part, wanted, known):
            return False  # It is tried again when fewer jobs wait.
    return False


async def _copy(part: Store, wanted: Settings, known: Settings) -> bool:
    """Write what differs. Returns False if the aging could not be set."""
    for name in {*wanted.words, *known.words}:
        if wanted.words.get(name) != known.words.get(name):
            await part.do(part.setting(name, wanted.words.get(name, "")))
    await part.do(part.pause() if wanted.paused else part.resume())
    for name in {*wanted.rules, *known.rules}:
        row, before = wanted.rules.get(name, ""), known.rules.get(name, "")
        (chosen, _, declared), (had, _, of_code) = row.partition("\n"), before.partition("\n")
        if declared != of_code:
            await write_rule(part, "declared", name, declared)
        if chosen != had:
            await write_rule(part, "set", name, chosen)
        elif chosen:
            # It may not have reached all jobs that wait.
            await walk_rule(part, name, chosen)
    for name in {*wanted.groups, *known.groups}:
        if wanted.groups.get(name) != known.groups.get(name):
            await write_group(part, name, wanted.groups.get(name, ""))
        else:
            await walk_group(part, name, wanted.groups[name])
    for name in {*wanted.breakers, *known.breakers}:
        if wanted.breakers.get(name) != known.breakers.get(name):
            rule = wanted.breakers.get(name, "")
            await part.do(part.breaker("declare" if rule else "remove", name, rule))
    for key in {*wanted.late(known), *wanted.opened(known)}:
        await part.do(part.close(key, wanted.closed.get(key, 0), "until"))
    if wanted.aging is not None and wanted.aging != known.aging:
        _, waiting = await part.do(part.aging(int(wanted.aging)))
        return not waiting
    return True
