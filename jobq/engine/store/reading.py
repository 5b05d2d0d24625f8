"""The scripts and commands that only read: sizes, rows, pages, results, and what decides when a job starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from jobq.engine.store.calls import Call, read_as_is
from jobq.engine.store.sharing import Sharing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobq.engine.store.packing import Argument

ALIVE_MS: Final = 30_000
"""A worker without a heartbeat for longer is not counted as alive."""
WORKERS_SHOWN: Final = 1000
WHY_LOOKS: Final = 100
"""Running jobs and workers that ``why`` looks at. It takes the others to be alike."""
WHY_LINES: Final = 12
"""Lines of held jobs, and groups, that it looks at for each question. Each costs a walk through a large sorted set."""
LINES_COUNTED: Final = 1000
"""Lines of held jobs that one reading of limits counts exactly."""


class Reading(Sharing):
    """The part of a store that reads a queue and changes nothing."""

    def ready(self) -> Call[bytes | None]:
        """Show that scripts run on the queue's keys. Returns the layout, or None if the queue was never used."""
        return Call("ready", [], read_as_is)

    def stats(self) -> Call[list[Any]]:
        """As stats.lua returns it."""
        return Call("stats", [self.now, ALIVE_MS], read_as_is)

    def why(self, job_id: str) -> Call[list[Any]]:
        """What decides when the job starts, as why.lua returns it. '': only what it says of the queue."""
        return Call("why", [self.now, ALIVE_MS, job_id, WHY_LOOKS, WHY_LINES], read_as_is)

    def page(
        self,
        state: str,
        *,
        reverse: bool,
        limit: int,
        scan: int,
        prefix: bytes,
        highest: str,
        cursor: tuple[str, str | bytes],
    ) -> Call[list[Any]]:
        """List ids of one state. Returns the ids, then score and id of the next cursor ('' at the end)."""
        args: list[Argument] = [int(reverse), limit, scan, prefix, highest, *cursor]
        return Call("page", args, read_as_is, keys=(self.keys[state], self.keys["jobs"]))

    def limits(self, rule: str, most: int = 1000) -> Call[list[Any]]:
        """Rules, or the keys of one rule, as limits.lua returns them."""
        return Call("limits", [self.now, rule, most, LINES_COUNTED], read_as_is)

    def groups(self, after: str | bytes, page: int, only: str = "") -> Call[list[Any]]:
        """Groups that have jobs, behind the name ``after``, as groups.lua returns them. ``only``: this group alone."""
        return Call("groups", [after, page, only], read_as_is)

    def rows(self, ids: Sequence[str | bytes], *, brief: bool = False, expired: bool = False) -> Call[list[Any]]:
        """Read rows of the first of these jobs (see rows.lua). Large rows make the reply shorter than ``ids``.

        ``expired``: also jobs whose own retention is over, as long as they are stored.
        """
        # Retentions end at a time, and none has ended at time 0.
        return Call("rows", [0 if expired else self.now, int(brief), *ids], read_as_is)

    def results(self, ids: Sequence[str | bytes]) -> Call[list[bytes]]:
        """Read pairs state, row of the first of these jobs. Large rows make the reply shorter than ``ids``."""
        return Call("results", list(ids), read_as_is)

    async def unserved(self, job_id: bytes) -> bytes:
        """How often no worker could run a job, for how many ms it was delayed for that, and its type if parked."""
        return await self.command(b"HGET", self.keys["unserved"], job_id) or b""

    async def logs(self, job_id: str) -> bytes:
        """The lines of one job, JSON, one a line."""
        stored: bytes = await self.command(b"HGET", self.keys["logs"], job_id) or b""
        # In front of the lines log.lua notes how many of them it received from which run.
        head, _, lines = stored.partition(b"\n")
        return lines if head.replace(b" ", b"").isdigit() else stored

    async def workers(self) -> list[tuple[bytes, bytes, int]]:
        """Rows of the registry: worker, info and last heartbeat, unix ms."""
        # Read the latest rows only. Workers that crash at every start can leave thousands of rows in a day.
        seen = await self.command(b"ZREVRANGE", self.keys["workers"], 0, WORKERS_SHOWN - 1, b"WITHSCORES")
        if not seen:
            return []
        info = await self.command(b"HMGET", self.keys["workers_info"], *seen[::2])
        rows = zip(seen[::2], info, seen[1::2], strict=True)
        # a row without info has just left
        return [(worker, row, int(float(at))) for worker, row, at in rows if row is not None]

    async def types(self, names: Sequence[str]) -> list[bytes | None]:
        """What is published of these types."""
        return await self.command(b"HMGET", self.keys["types"], *names)

    async def score(self, state: str, job_id: bytes) -> bytes | None:
        """The score of a job in the set of a state, None if it is not there."""
        return await self.command(b"ZSCORE", self.keys[state], job_id)

    async def of_group(self, ids: Sequence[bytes], group: str) -> list[bytes]:
        """Those of the jobs that belong to the group."""
        if not ids:
            return []
        rows: list[bytes | None] = await self.command(b"HMGET", self.keys["limits"], *ids)
        first = f"@{group}".encode()
        return [job_id for job_id, row in zip(ids, rows, strict=True) if (row or b"").partition(b"\n")[0] == first]

    async def priorities(self, ids: Sequence[bytes]) -> list[int | None]:
        """The priorities of jobs; None if one cannot be read."""
        rows: list[bytes | None] = await self.command(b"HMGET", self.keys["priorities"], *ids)
        found = [b"0" if row is None else row.rstrip(b"LF") for row in rows]
        return [int(number) if number.lstrip(b"-").isdigit() else None for number in found]

    async def group_row(self, group: str) -> bytes:
        """The settings of one group, b"" if it has none."""
        return await self.command(b"HGET", self.keys["groups"], group) or b""

    async def group_rows(self) -> dict[bytes, bytes]:
        """The settings of groups."""
        flat: list[bytes] = await self.command(b"HGETALL", self.keys["groups"])
        return dict(zip(flat[::2], flat[1::2], strict=True))

    async def rule_names(self) -> list[bytes]:
        """The rules of limits."""
        return await self.command(b"HKEYS", self.keys["rules"])

    async def breaker_names(self) -> list[bytes]:
        """The types with a circuit breaker."""
        return await self.command(b"HKEYS", self.keys["breakers"])

    async def type_names(self) -> list[bytes]:
        """The types for which rows are published."""
        return await self.command(b"HKEYS", self.keys["types"])
