"""The scripts of schedules, as methods of the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobq.engine.store.calls import Call, read_as_is, read_states
from jobq.engine.store.opening import Opening

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jobq.engine.store.packing import Argument


class Scheduling(Opening):
    """The part of a store that reads, writes and fires schedules."""

    schedules_max = 100_000
    """Schedules that the queue may have. A queue sets it from its settings."""

    def schedule_due(self, limit: int, lent_ms: int, *, planned: bool = False) -> Call[list[Any]]:
        """Read schedules that are due, as schedule_due.lua returns them. For ``lent_ms`` other callers do not see them.

        ``planned``: all schedules were planned again after the clock was set back.
        """
        return Call("schedule_due", [self.now, limit, lent_ms, int(planned)], read_as_is)

    def schedule_fire(self, groups: list[Argument]) -> Call[list[str]]:
        """Enqueue the jobs of slots and advance their schedules: groups as in schedule_fire.lua. Returns a word per
        group."""
        return Call("schedule_fire", [self.now, *groups], read_states)

    def schedule_write(
        self,
        name: str,
        head: Argument,
        state: Argument,
        definitions: Argument,
        due: Argument,
        most: int | None = None,
    ) -> Call[bytes]:
        """Write or remove a schedule, if its row still has this head. Returns b"ok", b"stale" or b"full"."""
        return Call(
            "schedule_write", [self.now, name, head, state, definitions, due, most or self.schedules_max], read_as_is
        )

    def schedule_seen(self, names: Iterable[Argument]) -> Call[list[Any]]:
        """Note that code declares these schedules. Returns how many schedules there are, and which of these have no
        row."""
        return Call("schedule_seen", [self.now, *names], read_as_is)

    async def schedule_names(self) -> list[bytes]:
        """All schedules, sorted. Read in pages, because a queue can have a hundred thousand of them."""
        names: set[bytes] = set()
        cursor: Any = 0
        while True:
            cursor, found = await self.command(b"HSCAN", self.keys["schedule_rows"], cursor, b"COUNT", 100)
            names.update(found[::2])
            if not int(cursor):
                return sorted(names)

    async def schedule_rows(self, names: Sequence[Argument]) -> list[tuple[bytes | None, bytes, int]]:
        """Rows of schedules, with their failed jobs and when code declared them last (unix ms; 0: never)."""
        if not names:
            return []
        rows = await self.command(b"HMGET", self.keys["schedule_rows"], *names)
        failed = await self.command(b"HMGET", self.keys["schedule_failures"], *names)
        seen = await self.command(b"ZMSCORE", self.keys["schedule_seen"], *names)
        return [(row, bad or b"", int(float(at or 0))) for row, bad, at in zip(rows, failed, seen, strict=True)]

    async def schedules_declared(self) -> int:
        """When any program said which schedules its code declares, unix ms."""
        return int(float(await self.command(b"ZSCORE", self.keys["schedule_seen"], b"") or 0))
