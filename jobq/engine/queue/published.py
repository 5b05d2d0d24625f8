"""Published types: workers and servers that have the code publish them, producers without the code use them."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobq.engine.log import get_logger
from jobq.engine.model.groups import TEMPLATES
from jobq.engine.model.job import PLAIN
from jobq.engine.model.options import check_type, over
from jobq.engine.model.types import difference, encode_published, read_type
from jobq.engine.model.unique import of_type
from jobq.engine.model.unreadable import as_text
from jobq.engine.queue.breakers import declare_breakers
from jobq.engine.queue.declaring import declare_schedules
from jobq.engine.queue.limits import declare_rules
from jobq.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jobq.engine.model.breaker import Breaker
    from jobq.engine.model.job import NewJob, Options
    from jobq.engine.model.limits import Rule
    from jobq.engine.schedule.definition import Definition
    from jobq.engine.store import Store
    from jobq.engine.task.task import Task

log = get_logger("jobq.queue")

FRESH_SECONDS: Final = 10.0
"""After so long, the options of a type are looked up again in the background."""
KNOWN_MAX: Final = 1000
"""Types whose options are kept. Clients of a server choose the names of types, so there may be any number of them."""
PAGE: Final = 16
"""Types that one call publishes. Each may have four rows of 8 KiB, which Redis reads and writes within 10 ms."""
SAID_MAX: Final = 1000
"""The most differences that one process reports."""


class Defaults:
    """The published options of the types that a session enqueues. A lookup in the cache costs no trip."""

    def __init__(self, store: Store, base: Options = PLAIN) -> None:
        self._store = store
        self._base = base
        """The default options of the queue. What a type publishes comes first."""
        self._known: dict[str, Options] = {}
        self._old = 0.0
        """When the cache becomes too old, by the monotonic clock."""
        self._refreshing: asyncio.Task[None] | None = None

    async def complete(self, news: list[NewJob]) -> list[NewJob]:
        """The jobs, with published options in place of those not given. The first use of a type looks it up.

        :raises InvalidJob: a type is no name.
        :raises StoreError: Redis does not answer.
        """
        unknown = {new.type for new in news if new.given is not None and new.type not in self._known}
        if unknown:
            for name in unknown:
                check_type(name)
            await self._look_up(unknown)
        if monotonic() > self._old and self._refreshing is None:
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh(), name="jobq-published")
        return [new if new.given is None else completed(new, self._known.get(new.type, self._base)) for new in news]

    async def aclose(self) -> None:
        """Cancel a lookup that is on its way."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])

    async def _look_up(self, names: Iterable[str]) -> None:
        names = list(names)
        if len(self._known) + len(names) > KNOWN_MAX:
            self._known.clear()
        if not self._known:
            self._old = monotonic() + FRESH_SECONDS
        rows = await self._store.types(names)
        for name, stored in zip(names, rows, strict=True):
            row = read_type(name, stored) if stored else None
            self._known[name] = over(self._base, row.options) if row else self._base

    async def _refresh(self) -> None:
        try:
            self._old = monotonic() + FRESH_SECONDS
            await self._look_up(list(self._known))
        except StoreError as error:
            log.debug("published options could not be looked up", queue=self._store.name, error=str(error))
        finally:
            self._refreshing = None


def completed(new: NewJob, defaults: Options) -> NewJob:
    """The job, with the defaults of its type in place of options that were not given."""
    if defaults is PLAIN or defaults == PLAIN:
        return new
    given = {name: getattr(new.options, name) for name in new.given or ()}
    if given.get("unique") is not None:
        given |= {"unique": of_type(given["unique"], defaults), "key": None, "key_ttl": None}
    elif given.get("key") is not None:
        given["unique"] = None
    if "limits" in given:
        given["limits_by"] = ()
    if "costs" in given:
        given["costs_by"] = ()
    given |= {template: None for name, template in TEMPLATES.items() if name in given}
    if given.get("run_at") is not None:
        given["delay"] = 0  # in place of the type's default
    elif given.get("delay"):
        given["run_at"] = None
    for name in ("expires", "deadline"):
        at = f"{name}_at"
        if name in given or at in given:
            # A time from now on and a point in time are two fields of one option.
            given |= {name: getattr(new.options, name), at: getattr(new.options, at)}
    return msgspec.structs.replace(new, options=msgspec.structs.replace(defaults, **given), given=None)


class Publisher:
    """Publishes the tasks of a queue for one worker or server, and warns of others that publish something else."""

    def __init__(
        self,
        tasks: Mapping[str, Task[Any, Any]],
        rules: Mapping[str, Rule],
        queue: str,
        name: str,
        schedules: Mapping[str, Definition] | None = None,
        breakers: Mapping[str, Breaker] | None = None,
    ) -> None:
        self._tasks = tasks
        self._rules = rules
        self._schedules = schedules or {}
        self._breakers = breakers or {}
        self._any_schedules = True
        self._queue = queue
        # publish.lua separates columns and rows by these.
        self._name = name.replace("\t", " ").replace("\n", " ")
        self._started = True
        self._said: set[tuple[str, bytes]] = set()

    async def publish(self, store: Store) -> None:
        """Publish the tasks. The first call makes them those that count. Later calls keep them from expiring.

        :raises StoreError: Redis does not answer.
        """
        if self._rules:
            # The queue may have been dropped, or Redis may have lost its data.
            known: set[str] = set() if self._started else {as_text(name) for name in await store.rule_names()}
            await declare_rules(store, {name: rule for name, rule in self._rules.items() if name not in known})
        await declare_breakers(store, self._breakers)
        if self._any_schedules or self._schedules:
            self._any_schedules = await declare_schedules(store, self._schedules, started=self._started)
        rows = self._rows()
        for at in range(0, len(rows), PAGE):
            page = rows[at : at + PAGE]
            flat = [word for pair in page for word in pair]
            differing = await store.do(store.publish(self._name, flat, started=self._started))
            ours = dict(page)
            for place in range(0, len(differing), 3):
                name, publisher, theirs = differing[place : place + 3]
                self._report(name.decode(), publisher.decode(errors="replace"), ours[name.decode()], theirs)
        self._started = False

    def _rows(self) -> list[tuple[str, bytes]]:
        rows: list[tuple[str, bytes]] = []
        for name, task in self._tasks.items():
            try:
                schema = task.schema()
            except TypeError:
                schema = None  # An annotation has no JSON Schema.
            row = encode_published(task.defaults, schema)
            if row is not None:
                rows.append((name, row))
            elif self._started:
                log.warning(f"The options of type {name} are too large to be published", queue=self._queue, type=name)
        return rows

    def _report(self, name: str, publisher: str, ours: bytes, theirs: bytes) -> None:
        if (name, theirs) in self._said or len(self._said) >= SAID_MAX:
            return
        self._said.add((name, theirs))
        log.warning(
            f"{self._name} and {publisher} publish different options or schemas of type {name}:"
            f" {difference(ours, theirs)}. Producers without the code use those of whoever started last.",
            queue=self._queue, type=name,
        )  # fmt: skip
