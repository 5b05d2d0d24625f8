"""Rules of limits: declared by code when a worker or server starts, set and read by operators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import ceil
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import structs

from jobq.engine.log import get_logger
from jobq.engine.model.limits import (
    QUEUE_RULE,
    Band,
    LimitKeyRow,
    LimitRow,
    Rate,
    Rule,
    check_key_count,
    check_limit_key,
    check_queue_rule,
    check_rule,
    check_rule_name,
    closing_ms,
    parse_rule,
)
from jobq.engine.model.unreadable import as_text
from jobq.engine.queue.breakers import declare_breakers
from jobq.engine.queue.changing import changing
from jobq.errors import InvalidJob, UnknownRule

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from jobq.engine.model.breaker import Breaker
    from jobq.engine.model.job import NewJob, Seconds
    from jobq.engine.model.limits import Over
    from jobq.engine.model.types import TypeRow
    from jobq.engine.model.views import Stats
    from jobq.engine.store import Store

log = get_logger("jobq.queue")

KEYS_PAGE: Final = 50
"""Keys of a rule that a caller gets by default, in Python, over REST and on the command line."""
KEYS_SHOWN: Final = 1000
"""Keys of a rule that one call looks at."""


class Declared:
    """The rules and breakers that exist, for the enqueues of one session.

    A job that names another rule would never be limited. What the code of this program declares is written if no worker
    or server has done so yet: operators can then see and change it, and a rule that drops jobs drops the first ones.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rules: set[str] = set()
        self._breakers: set[str] = set()

    async def check(
        self, news: Iterable[NewJob], rules: Mapping[str, Rule], breakers: Mapping[str, Breaker] | None = None
    ) -> None:
        """Check that every limit key of these jobs has a rule. ``rules`` and ``breakers`` are those of the code.

        :raises UnknownRule: one has none.
        :raises InvalidJob: a job has too many keys.
        :raises StoreError: Redis is away.
        """
        for new in news:
            check_key_count(len(new.options.limits) + len(new.options.limits_by), self._store.limit_keys_max)
        wanted = {key.partition(":")[0] for new in news for key in new.options.limits}
        wanted |= {by.rule for new in news for by in new.options.limits_by}
        if wanted - self._rules:
            self._rules = {as_text(name) for name in await self._store.rule_names()}
            missing = wanted - self._rules
            if unknown := missing - rules.keys():
                raise UnknownRule(min(unknown), sorted(self._rules | set(rules)))
            await declare_rules(self._store, {name: rules[name] for name in sorted(missing)})
            self._rules |= missing
        if breakers and (used := {new.type for new in news if new.options.breaker} & breakers.keys() - self._breakers):
            known = {as_text(name) for name in await self._store.breaker_names()}
            await declare_breakers(self._store, {name: breakers[name] for name in sorted(used - known)})
            self._breakers |= used


async def write_rule(store: Store, layer: Literal["set", "declared"], name: str, text: str) -> None:
    """Write a rule in all partitions of the store, and let jobs that already wait see it.

    :raises InvalidJob: the queue has too many rules.
    """
    for part in store.parts:
        cursor: bytes | str = ""
        while cursor := await part.do(part.rule(layer, name, text, cursor)):
            if cursor == b"full":
                raise InvalidJob(
                    f"rule {name!r} is one too many: a queue has {store.rules_max:,} rules at most (JOBQ_MAX_RULES)"
                )


async def walk_rule(store: Store, name: str, text: str) -> None:
    """Let the jobs of one partition that already wait see a rule that is written there."""
    if name == QUEUE_RULE:
        return
    cursor: bytes | str = f"a{name}\0"  # Behind the call that writes the rule, before the first job.
    while cursor := await store.do(store.rule("set", name, text, cursor)):
        pass


class LimitVerbs(ABC):
    """What operators ask about limits and change."""

    name: str
    rules: dict[str, Rule]

    @property
    @abstractmethod
    def store(self) -> Store:
        """The verbs underneath."""

    @abstractmethod
    async def stats(self) -> Stats:
        """The numbers of the queue."""

    @abstractmethod
    async def types(self) -> list[TypeRow]:
        """The published types."""

    async def limits(self) -> list[LimitRow]:
        """All rules, with the number of jobs that are held by them and that count under them now.

        :raises StoreError: Redis is away.
        """
        reply = await self.store.do(self.store.limits(""))
        rows = [_limit_row(*reply[at : at + 6]) for at in range(0, len(reply), 6)]
        if any(row.declared for row in rows):
            used = {QUEUE_RULE}
            for type_ in await self.types():
                used |= {key.partition(":")[0] for key in type_.options.limits}
                used |= {by.rule for by in type_.options.limits_by}
            rows = [structs.replace(row, orphan=True) if row.declared and row.rule not in used else row for row in rows]
        return rows

    async def limit(self, rule: str) -> LimitRow:
        """One rule, with the number of jobs that are held by it and that count under it now.

        :raises UnknownRule: neither code nor an operator gives it.
        """
        rows = await self.limits()
        for row in rows:
            if row.rule == rule:
                return row
        raise UnknownRule(rule, [row.rule for row in rows])

    async def limit_keys(
        self, rule: str, *, sort: Literal["held", "active", "key"] = "held", limit: int = KEYS_PAGE
    ) -> list[LimitKeyRow]:
        """The keys of a rule that hold or count jobs now or are closed, by default those with most held jobs first.

        It looks at no more than 1,000 keys.

        :raises UnknownRule: neither code nor an operator gives it.
        """
        await self._check_rule(rule)
        if rule == QUEUE_RULE:
            # No job lists this key. All jobs count under it while they run, and those that wait stay in waiting.
            found = [row for row in await self.limits() if row.rule == rule]
            return [LimitKeyRow(rule, 0, row.active, row.closed_until, row.closed_until) for row in found][:limit]
        rows = await self._keys(rule)
        if sort == "key":
            rows.sort(key=lambda row: row.key)
        else:
            rows.sort(key=lambda row: (-getattr(row, sort), row.key))
        return rows[:limit]

    async def _keys(self, rule: str) -> list[LimitKeyRow]:
        reply = await self.store.do(self.store.limits(rule))
        return [_key_row(*reply[at : at + 5]) for at in range(0, len(reply), 5)]

    async def set_limit(
        self,
        rule: str,
        *,
        concurrency: int | None = None,
        rate: Rate | Sequence[Rate | Band] | None = None,
        over: Over = "wait",
    ) -> Rule:
        """Set a rule, in place of what code declares. It acts at once, also on jobs that wait, and survives deploys.

        ``over``: what happens to a job that has no room (see ``Concurrency``), from the next job on.
        Running jobs are not stopped: after a concurrency was lowered, they end first.

        :raises InvalidJob: the name cannot be a rule's, a number is out of its range, or the queue has too many rules.
        """
        new = _rule(rule, concurrency, rate, over)
        # The queue may be new. It is listed from now on, although it has no job yet.
        await self.store.register()
        async with changing(self.store):
            await write_rule(self.store, "set", rule, new.text())
        return new

    async def would_hold(
        self, rule: str, *, concurrency: int | None = None, rate: Rate | Sequence[Rate | Band] | None = None
    ) -> int:
        """How many jobs would be held now if ``set_limit`` were called with these numbers. It changes nothing.

        For the rule "queue": how many of the waiting jobs could not start now.

        It looks at no more than 1,000 keys. Running jobs count as running. Of a rate only its burst counts. A rate with
        a unit is left out, because its burst is no number of jobs.

        :raises InvalidJob: as for ``set_limit``.
        """
        new = _rule(rule, concurrency, rate)
        most = min([band.burst for band in new.rate if not band.unit], default=None)
        if rule == QUEUE_RULE:
            # Jobs beyond this rule stay in waiting.
            stats = await self.stats()
            places = stats.waiting if most is None else most
            if new.concurrency is not None:
                places = min(places, max(0, new.concurrency - stats.active))
            return max(0, stats.waiting - places)
        held = 0
        for row in await self._keys(rule):
            room = [] if most is None else [most]
            if new.concurrency is not None:
                room.append(max(0, new.concurrency - row.active))
            held += max(0, row.held - min(room, default=row.held))
        return held

    async def close_limit(self, key: str, time: Seconds | str) -> None:
        """Close a limit key for a time from now on: none of its jobs starts before it is over. Running jobs go on.

        ``key`` is a rule's name, alone or with a colon and a value, or "queue" for the whole queue. ``time`` is
        seconds, a ``timedelta`` or a text such as "5m". It replaces an earlier closing time, also a longer one.

        :raises InvalidJob: it cannot be a key, or the time is not from 1 ms to ten years.
        :raises UnknownRule: the key has no rule.
        """
        ms = closing_ms(time)
        await self._check_closable(key)
        await self._check_listed(key)
        await self._close(key, ms)

    async def open_limit(self, key: str) -> None:
        """Open a limit key, or "queue" for the whole queue, before its closing time is over.

        :raises InvalidJob: it cannot be a key.
        :raises UnknownRule: the key has no rule.
        """
        await self._check_closable(key)
        await self._close(key, 0)

    async def _close(self, key: str, ms: int) -> None:
        async with changing(self.store):
            await self.store.do(self.store.close(key, ms))

    async def _check_closable(self, key: str) -> None:
        if key != QUEUE_RULE:
            check_limit_key(key)
            await self._check_rule(key.partition(":")[0])

    async def _check_rule(self, rule: str) -> None:
        """Check that a rule exists. If the code of this program declares it and no worker or server has written it yet,
        it is written now.

        :raises UnknownRule: neither code nor an operator gives it.
        """
        names = {as_text(name) for name in await self.store.rule_names()}
        if rule in names:
            return
        if rule not in self.rules:
            raise UnknownRule(rule, sorted(names | set(self.rules)))
        await self.store.register()
        await declare_rules(self.store, {rule: self.rules[rule]})

    async def _check_listed(self, key: str) -> None:
        """A rule that is declared with ``by=`` alone has no jobs under its bare name. To close that would do nothing.

        :raises InvalidJob: the key is the name of such a rule.
        """
        if ":" in key or key == QUEUE_RULE:
            return
        options = [type_.options for type_ in await self.types()]
        fields = {by.field for one in options for by in one.limits_by if by.rule == key}
        if fields and not any(key in one.limits for one in options):
            raise InvalidJob(
                f"limit key {key!r}: its jobs count for each value of {', '.join(sorted(fields))}, so name a key, such"
                f" as {key}:VALUE; or set the concurrency of the rule to 0 to hold all of them"
            )

    async def reset_limit(self, rule: str) -> Rule | None:
        """Return to what code declares of a rule. Returns it; None: no code declares the rule, so it is gone.

        :raises UnknownRule: neither code nor an operator gives it.
        """
        await self._check_rule(rule)
        async with changing(self.store):
            await write_rule(self.store, "set", rule, "")
        return next((row.declared for row in await self.limits() if row.rule == rule), None)

    async def remove_limit(self, rule: str) -> bool:
        """Remove a rule with all that an operator set and code declared of it. Jobs that list it are not limited by it.

        It is for rules that the code does not declare any more. Returns whether a type that was published in the last
        day lists the rule: as long as its workers or servers run, they declare it again within 30 seconds.

        :raises UnknownRule: neither code nor an operator gives it.
        """
        await self._check_rule(rule)
        returns = any(row.rule == rule and row.declared and not row.orphan for row in await self.limits())
        async with changing(self.store):
            await write_rule(self.store, "declared", rule, "")
            await write_rule(self.store, "set", rule, "")
        return returns


async def declare_rules(store: Store, rules: Mapping[str, Rule]) -> None:
    """Write what the code of a worker or server declares.

    :raises StoreError: Redis is away.
    """
    for name, rule in rules.items():
        try:
            await write_rule(store, "declared", name, rule.text())
        except InvalidJob as error:
            log.warning(f"A rule of limits could not be declared: {error}", queue=store.name, rule=name)


def _rule(name: str, concurrency: int | None, rate: Rate | Sequence[Rate | Band] | None, over: Over = "wait") -> Rule:
    check_rule_name(name)
    given: Sequence[Any] = () if rate is None else [rate] if isinstance(rate, Rate) else rate
    for one in given:
        if not isinstance(one, Rate | Band):
            raise InvalidJob(f"rate holds {one!r:.80}: it takes Rate(count, per=...)")
    bands = tuple(one.band if isinstance(one, Rate) else one for one in given)
    rule = check_rule(Rule(concurrency, bands, over))
    check_queue_rule({name: rule})
    return rule


def _time(raw: bytes) -> int | None:
    return ceil(float(raw)) if raw else None


def _key_row(key: bytes, held: int, active: int, token: bytes, till: bytes) -> LimitKeyRow:
    closed = _time(till)
    opens = max((moment for moment in (_time(token), closed) if moment is not None), default=None)
    return LimitKeyRow(as_text(key), held, active, opens, closed)


def _limit_row(name: bytes, stored: bytes, held: int, active: int, closed: bytes, till: bytes) -> LimitRow:
    first, _, second = as_text(stored).partition("\n")
    chosen, declared = parse_rule(first), parse_rule(second)
    effective = chosen or declared or Rule()
    return LimitRow(
        as_text(name), effective.concurrency, effective.rate, held, active, "operator" if first else "code", declared,
        sum(map(int, closed.split())), _time(till), over=effective.over,
    )  # fmt: skip
