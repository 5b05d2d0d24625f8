"""What operators have set, as a partition has it, and whether it is what the first partition has.

Each partition counts the changes of its settings. A partition that has those of the first one notes both counts. So the
note says nothing any more as soon as one of the two is changed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jobq.engine.model.unreadable import as_text
from jobq.engine.store import send_each

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobq.engine.store import Store


TOLERANCE_MS: Final = 1000
"""A key that was closed in two partitions within this time counts as closed until the same time."""


class Counts(NamedTuple):
    """The changes of settings that a partition has counted, and its note (see settings.lua)."""

    changes: bytes
    note: bytes

    def follows(self, first: Counts) -> bool:
        """Whether this partition has the settings that the first one has now."""
        return self.note == b"%b %b" % (first.changes, self.changes)


class Settings(NamedTuple):
    """What operators set, and what code declares beside it. ``closed``: "queue" and limit keys, and until when an
    operator has closed them; that of "queue" may come from a handler."""

    words: dict[str, str]
    """Charge and events, unless they were never set."""
    aging: str | None
    paused: bool
    rules: dict[str, str]
    groups: dict[str, str]
    breakers: dict[str, str]
    """Their rules. Their states change by themselves."""
    closed: dict[str, float]
    by_handlers: dict[str, float]
    """Limit keys that handlers have closed in this partition. If an operator had closed one of them for a shorter time,
    that is not known any more."""

    def same(self, other: Settings) -> bool:
        """Whether these, of the first partition, are the same settings as those of another one."""
        return self[:-2] == other[:-2] and not self.late(other) and not self.opened(other)

    def late(self, other: Settings) -> list[str]:
        """The closed keys that the other partition opens at another time. Each one was closed by its own clock."""
        return [
            key
            for key, till in self.closed.items()
            if abs(other.closed.get(key, 0) - till) > TOLERANCE_MS and other.by_handlers.get(key, 0) < till
        ]

    def opened(self, other: Settings) -> list[str]:
        """The keys that are closed in the other partition only."""
        return [key for key in other.closed if key not in self.closed and key not in self.by_handlers]


async def counts_of(parts: Sequence[Store]) -> list[Counts]:
    """The counts of partitions.

    :raises StoreError: Redis is away.
    """
    answers = await send_each(parts, lambda part: (b"HMGET", part.keys["meta"], b"changes", b"settled"))
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return [Counts(changes or b"0", note or b"0 0") for changes, note in answers]


async def settings_of(part: Store) -> Settings:
    """The settings that a partition has.

    :raises StoreError: Redis is away.
    """
    keys = part.keys
    names = (b"charge", b"events", b"aging", b"paused", b"closed")
    answers = await part.commands(
        (b"HMGET", keys["meta"], *names),
        (b"HGETALL", keys["rules"]),
        (b"HGETALL", keys["groups"]),
        (b"HGETALL", keys["breakers"]),
        (b"ZRANGE", keys["closed"], part.now_ms(), b"+inf", b"BYSCORE", b"WITHSCORES"),
    )
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    (charge, events, aging, paused, closed), rules, groups, breakers, keys_closed = answers
    # A time that is no whole number was set by an operator (see close.lua). That of a breaker is in its state.
    found: dict[str, float] = {}
    by_handlers: dict[str, float] = {}
    for key, till in pairs(keys_closed).items():
        (by_handlers if float(till).is_integer() else found)[key] = float(till)
    if closed is not None and closed.isdigit() and int(closed) > part.now_ms():
        found["queue"] = float(closed)
    return Settings(
        {name: as_text(word) for name, word in (("charge", charge), ("events", events)) if word is not None},
        None if aging is None else as_text(aging),
        paused is not None,
        pairs(rules),
        pairs(groups),
        {name: " ".join(row.split(" ")[:3]) for name, row in pairs(breakers).items()},
        found,
        by_handlers,
    )


async def note_settled(store: Store) -> None:
    """A call has changed all partitions. Those that have the settings of the first one now note it. The others differ
    because another call has changed settings meanwhile, or was interrupted: workers copy the settings to them.

    :raises StoreError: Redis is away.
    """
    first, *others = store.parts
    counted, *own = await counts_of(store.parts)
    wanted = await settings_of(first)

    async def note(part: Store, counts: Counts) -> None:
        if wanted.same(await settings_of(part)):
            await part.do(part.settings(counted.changes, counts.changes))

    await asyncio.gather(*map(note, others, own))


def pairs(flat: Sequence[Any]) -> dict[str, str]:
    """A flat reply of names and values."""
    return {as_text(name): as_text(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}
