"""Groups: what operators ask about them and set."""

from __future__ import annotations

import heapq
import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import UNSET, UnsetType

from jobq.engine.log import get_logger
from jobq.engine.model.groups import (
    GroupRow,
    changed_row,
    check_charge,
    check_group_name,
    parse_group,
)
from jobq.engine.model.ids import time_of
from jobq.engine.model.unreadable import as_text
from jobq.engine.queue.changing import changing
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from jobq.engine.model.groups import Charge, Group
    from jobq.engine.store import Store

log = get_logger("jobq.queue")

PAGE: Final = 200
"""Groups per call. Each costs Redis a few microseconds."""
_AT: Final = re.compile(rb'"at":([0-9]{1,16})')

Order = Literal["waiting", "oldest", "name"]


class GroupVerbs(ABC):
    """What operators ask about groups and set."""

    name: str

    @property
    @abstractmethod
    def store(self) -> Store:
        """The verbs underneath."""

    async def groups(self, *, sort: Order = "waiting", limit: int = 100) -> list[GroupRow]:
        """The groups that have held, waiting or active jobs or settings, by default those with most held jobs first.

        ``sort``: "waiting", "oldest" (the group whose first job has waited longest) or "name". It reads all groups,
        in pages.

        :raises StoreError: Redis is away.
        """
        if sort not in ("waiting", "oldest", "name"):
            raise InvalidJob(f"sort is {sort!r:.80}: it takes waiting, oldest or name")
        best: list[tuple[Any, str, GroupRow]] = []
        async for row in self._all_groups():
            order = -row.held if sort == "waiting" else row.oldest or 1 << 60 if sort == "oldest" else 0
            best.append((order, row.group, row))
            if len(best) >= 2 * limit + PAGE:
                best = heapq.nsmallest(limit, best)
        return [row for _, _, row in heapq.nsmallest(limit, best)]

    async def group(self, group: str) -> GroupRow:
        """One group. A group without jobs and settings has no row, and is shown with its defaults.

        :raises InvalidJob: the name does not fit.
        """
        reply = await self.store.do(self.store.groups("", 1, check_group_name(group)))
        if reply:
            return _row(*reply)
        return _row(group.encode(), 0, 0, await self.store.group_row(group) or b"", b"", b"")

    async def _all_groups(self) -> AsyncIterator[GroupRow]:
        settings = {as_text(name): as_text(row) for name, row in (await self.store.group_rows()).items()}
        after: bytes = b""
        while True:
            reply = await self.store.do(self.store.groups(after, PAGE))
            for at in range(0, len(reply), 6):
                after = reply[at]
                settings.pop(as_text(after), None)
                yield _row(*reply[at : at + 6])
            if len(reply) < 6 * PAGE:
                break
        for name, row in settings.items():
            yield _row(name.encode(), 0, 0, row.encode(), b"", b"")

    async def set_group(
        self,
        group: str,
        *,
        weight: float | UnsetType = UNSET,
        paused: bool | UnsetType = UNSET,
        max_queued: int | UnsetType | None = UNSET,
    ) -> Group:
        """Set the weight and the bound of a group, and pause or resume it. It acts at once, also on jobs that wait.

        What is not named stays as it is. Running jobs are not stopped. Returns all settings of the group.

        :raises InvalidJob: the name or a number does not fit, or too many groups have settings (``JOBQ_MAX_GROUPS``).
        """
        check_group_name(group)
        await self._write(group, changed_row(weight, paused, max_queued))
        return parse_group(as_text(await self.store.group_row(group)))

    async def set_charge(self, charge: Charge) -> None:
        """Set what a turn of a group costs: "count", one job, or "actual", the time that its jobs run.

        It acts at once, also on jobs that run. Programs that declare another ``Queue(charge=...)`` do not change it;
        they log a warning.

        :raises InvalidJob: it is another word.
        """
        word = check_charge(charge)
        await self.store.register()
        async with changing(self.store):
            for part in self.store.parts:
                await part.do(part.setting("charge", word))
                if word == "count":
                    await part.command(b"UNLINK", part.keys["billing"])
        log.info(f"Groups of queue {self.name} are charged by {word} from now on", queue=self.name)

    async def get_charge(self) -> Charge:
        """What a turn of a group costs now."""
        stored = await self.store.command(b"HGET", self.store.keys["meta"], b"charge")
        return "actual" if stored == b"actual" else "count"

    async def reset_group(self, group: str) -> None:
        """Remove the settings of a group: weight 1, not paused, no bound.

        :raises InvalidJob: the name does not fit.
        """
        await self._write(check_group_name(group), "")

    async def _write(self, group: str, row: str) -> None:
        async with changing(self.store):
            for part in self.store.parts:
                await write_group(part, group, row)
        # A group may be set before the first job of the queue.
        await self.store.register()


async def write_group(store: Store, group: str, row: str) -> None:
    """Write the settings of a group in one partition, and let jobs that already wait see them.

    :raises InvalidJob: too many groups have settings.
    """
    cursor: bytes | str = ""
    while cursor := await store.do(store.group(group, row, cursor)):
        if cursor == b"full":
            raise InvalidJob(
                f"group {group[:80]!r} is one too many: {store.groups_max:,} groups of a queue have settings at most"
                " (JOBQ_MAX_GROUPS)"
            )


async def walk_group(store: Store, group: str, row: str) -> None:
    """Let the jobs of one partition that already wait see the settings of a group that are written there."""
    if row.split(" ")[1:2] != ["1"]:
        return  # Only the jobs of a paused group are looked at.
    cursor: bytes | str = f"@{group}\0"  # Behind the call that writes the settings, before the first job.
    while cursor := await store.do(store.group(group, row, cursor)):
        pass


def _row(group: bytes, held: int, active: int, settings: bytes, job_id: bytes, spec: bytes) -> GroupRow:
    of = parse_group(as_text(settings))
    at = _AT.search(spec)
    oldest = int(at[1]) if at else time_of(as_text(job_id)) if job_id else None
    return GroupRow(as_text(group), held, active, of.weight, of.paused, of.max_queued, oldest)
