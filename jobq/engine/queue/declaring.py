"""Changes of schedules' rows, and what code declares when a worker or server starts.

A schedule has two definitions, an operator's and the code's. The operator's takes precedence, so a deploy does not undo
an edit. A pause belongs to neither, so a deploy does not undo it either.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

import msgspec

from jobq.engine.log import get_logger
from jobq.engine.schedule import plan as plans
from jobq.engine.schedule.definition import Definition
from jobq.engine.schedule.state import Score, Stored, read_row, write_definitions
from jobq.errors import InvalidJob, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobq.engine.store import Store

log = get_logger("jobq.schedules")

PAGE: Final = 200
TRIES: Final = 50
"""How often a change is tried again because others change the schedule too."""

Change = tuple[Score, Definition | None, Definition | None]
"""The new state and the new definitions of a row, the operator's first. Without both the schedule is removed."""


async def read_schedule(store: Store, name: str) -> tuple[Stored | None, int]:
    """One row, and when code declared it last.

    :raises InvalidJob: this version of jobq cannot read it.
    """
    ((row, failed, seen),) = await store.schedule_rows([name])
    if row is None:
        return None, seen
    try:
        return read_row(name, row, failed), seen
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidJob(
            f"schedule {name!r} cannot be read by this version of jobq: {error}. Delete it, or use the version that"
            " wrote it"
        ) from None


async def change_schedule(store: Store, name: str, change: Callable[[Stored | None, int], Change | None]) -> bool:
    """Read a row, change it and write it, again and again until nobody else changed it meanwhile.

    ``change`` gets the row and the time. It returns the new row, or None if there is nothing to change. Returns whether
    something was written.

    :raises InvalidJob: there are too many schedules.
    """
    for _ in range(TRIES):
        stored, _ = await read_schedule(store, name)
        changed = change(stored, store.now_ms())
        if changed is None:
            return False
        score, operator, code = changed
        definitions = write_definitions(operator, code) if operator or code else b""
        head = stored.head if stored is not None else b""
        answer = await store.do(store.schedule_write(name, head, score.row, definitions, score.due))
        if answer == b"ok":
            return True
        if answer == b"full":
            raise InvalidJob(
                f"schedule {name!r} is one too many: a queue has {store.schedules_max:,} schedules at most"
                " (JOBQ_MAX_SCHEDULES)"
            )
        await asyncio.sleep(random.uniform(0, 0.02))
    raise StoreUnavailable(f"schedule {name!r} was changed by others {TRIES} times in a row: repeat the call")


async def declare_schedules(store: Store, declared: Mapping[str, Definition], *, started: bool) -> bool:
    """Write what the code of a worker or server declares. After the first call, write only what is missing: another
    version of the program may have been deployed meanwhile. Returns whether there are schedules at all.

    :raises StoreError: Redis is away.
    """
    names, count = list(declared), 0
    for at in range(0, max(len(names), 1), PAGE):
        page = names[at : at + PAGE]
        count, *unknown = await store.do(store.schedule_seen(page))
        missing = {name.decode() for name in unknown}
        rows = dict(zip(page, await store.schedule_rows(page), strict=True)) if started else {}
        await asyncio.gather(
            *(
                _declare(store, name, declared[name])
                for name in page
                if name in missing or (started and not _declares(name, rows[name][0], declared[name]))
            )
        )
        if missing:
            await store.do(store.schedule_seen(page))
    return bool(count or names)


async def _declare(store: Store, name: str, definition: Definition) -> None:
    try:
        await change_schedule(store, name, _declaring(name, definition))
    except InvalidJob as error:
        log.warning(f"A schedule could not be declared: {error}", queue=store.name, schedule=name)


def _declares(name: str, row: bytes | None, definition: Definition) -> bool:
    try:
        return row is not None and read_row(name, row).code == definition
    except msgspec.DecodeError:
        return False


def _declaring(name: str, definition: Definition) -> Callable[[Stored | None, int], Change | None]:
    def change(stored: Stored | None, now: int) -> Change | None:
        if stored is not None and stored.code == definition:
            return None
        operator = stored.operator if stored is not None else None
        counts = operator or definition
        return plans.defined(stored, name, counts, now, changed=operator is None), operator, definition

    return change
