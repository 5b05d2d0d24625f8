"""Limits: the rules that code and operators write, and the keys under which a job counts.

A rule has a name. It bounds how many jobs run at once, how many start in a time, or both. A key is ``rule`` or
``rule:value``: each value has a count of its own under the same rule.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import msgspec

from jobq.engine.model.costs import check_unit
from jobq.engine.model.costs import cost as cost_number
from jobq.engine.model.times import option_ms, to_ms
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jobq.engine.model.job import LimitBy, Seconds

QUEUE_RULE: Final = "queue"
"""The rule with this name applies to every job of the queue."""
KEYS_MAX: Final = 64
"""Limit keys of one job, whatever the setting ``max_limit_keys`` says."""
BANDS_MAX: Final = 8
COUNT_MAX: Final = 1_000_000_000
PERIOD_MAX_MS: Final = 366 * 24 * 3600 * 1000
VALUE_MAX: Final = 200
"""Bytes of a key's value. A longer one is replaced by its hash."""

Over = Literal["wait", "drop", "replace_oldest", "kill_running"]
"""What happens to a job that has no room under a rule."""
OVERS: Final[tuple[Over, ...]] = get_args(Over)

_RULE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class Band(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rate: ``count`` starts in ``per`` ms, and up to ``burst`` of them at once. With a ``unit`` it counts costs.

    In any time of length ``t`` ms, at most ``burst + count * t / per`` jobs start.
    """

    count: int
    per: int
    burst: int = 1
    unit: str = ""


class Rule(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a rule says. ``concurrency`` None: any number of jobs may run. Without bands, any number may start.

    ``over``: what happens to a job that has no room.
    """

    concurrency: int | None = None
    rate: tuple[Band, ...] = ()
    over: Over = "wait"

    def text(self) -> str:
        """As the scripts read it: ``concurrency count/per/burst/unit ... over``, with ``-`` for no concurrency, and
        without an ``over`` that is "wait"."""
        bands = "".join(f" {band.count}/{band.per}/{band.burst}{band.unit and '/'}{band.unit}" for band in self.rate)
        over = "" if self.over == "wait" else f" {self.over}"
        return f"{'-' if self.concurrency is None else self.concurrency}{bands}{over}"


def parse_rule(text: str) -> Rule | None:
    """The rule of a stored text; None if it cannot be read, or is empty."""
    first, *bands = text.split(" ")
    over: Any = bands.pop() if bands and bands[-1] in OVERS else "wait"
    try:
        rate = tuple(Band(int(count), int(per), int(burst), *unit) for count, per, burst, *unit in map(_parts, bands))
        return Rule(None if first == "-" else int(first), rate, over)
    except (ValueError, TypeError):
        return None


def _parts(band: str) -> list[str]:
    return band.split("/")


class Concurrency:
    """At most ``count`` jobs run at once. ``by``: for each value of this argument of the handler.

    ``name``: the rule's name, so that several tasks share one rule. By default each task has a rule of its own.
    ``over``: what happens to a job that has no room: "wait" (the default), "drop", "replace_oldest" or "kill_running".
    """

    def __init__(self, count: int, *, by: str | None = None, name: str | None = None, over: Over | None = None) -> None:
        self.count = _number("Concurrency", count)
        self.by = by
        self.name = name
        self.over: Over | None = None if over is None else check_over(over)

    def __repr__(self) -> str:
        return f"Concurrency({self.count}{_shown(self.by, self.name, over=self.over)})"


class Rate:
    """At most ``count`` jobs start in ``per`` (seconds, ``timedelta`` or a text such as ``"1m"``), spread evenly.

    ``burst``: how many of them may start at once after a quiet time. ``by``, ``name``: as for ``Concurrency``.
    ``unit``: the rate does not count jobs but what they cost, such as tokens. ``cost``: the argument of the handler
    that gives the cost of a job, or a number. A job without a cost in this unit costs 1.
    ``over``: as for ``Concurrency``, without "kill_running", because a killed job gives no token back.
    The algorithm is GCRA. It has no windows, so the jobs of two windows cannot start together.
    """

    def __init__(
        self,
        count: int,
        *,
        per: Seconds | str,
        burst: int = 1,
        by: str | None = None,
        name: str | None = None,
        unit: str | None = None,
        cost: str | float | None = None,
        over: Over | None = None,
    ) -> None:
        if over == "kill_running":
            raise InvalidJob(_NEEDS_PLACES)
        self.over: Over | None = None if over is None else check_over(over)
        if cost is not None and unit is None:
            raise InvalidJob(f"Rate has cost={cost!r:.80} and no unit: add unit=, such as unit='tokens'")
        if isinstance(cost, int | float):
            cost_number("cost", cost)
        unit = "" if unit is None else check_unit(unit)
        self.band = Band(_number("Rate", count), period_ms(per), _number("burst", burst), unit)
        self.cost = cost
        self.by = by
        self.name = name

    def __repr__(self) -> str:
        band = self.band
        shown = _shown(self.by, self.name, band.unit or None, self.cost, over=self.over)
        return f"Rate({band.count}, per={band.per / 1000:g}, burst={band.burst}{shown})"


_NEEDS_PLACES: Final = (
    "over='kill_running' needs a concurrency without a rate: a killed job gives its place back, but no token"
)


def check_over(over: Any) -> Over:
    """Return the action.

    :raises InvalidJob: it is none.
    """
    if over not in OVERS:
        raise InvalidJob(f"over is {over!r:.80}: it takes {', '.join(OVERS)}")
    return over


def _shown(*values: Any, over: Over | None) -> str:
    given = [*zip(("by", "name", "unit", "cost"), values, strict=False), ("over", over)]
    return "".join(f", {name}={value!r}" for name, value in given if value is not None)


def _number(what: str, value: Any, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= COUNT_MAX:
        raise InvalidJob(f"{what} is {value!r:.80}: it takes a whole number from {least} to {COUNT_MAX}")
    return value


def period_ms(per: Seconds | str) -> int:
    """A period in ms.

    :raises InvalidJob: it is not a time, less than 1 ms, or more than a year.
    """
    try:
        ms = to_ms(per)
    except InvalidJob as error:
        raise InvalidJob(f"per: {error}") from None
    if not 1 <= ms <= PERIOD_MAX_MS:
        raise InvalidJob(f"per is {per!r:.80}: it takes 1 ms to 366 days")
    return ms


def check_rule_name(name: str) -> str:
    """Check and return the name of a rule.

    :raises InvalidJob: it holds anything but letters, digits and ``._-``, or is longer than 128.
    """
    if not isinstance(name, str) or not _RULE_NAME.fullmatch(name):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidJob(f"rule {name!r:.80}: 1 to 128 letters, digits, '.', '_' or '-'")
    return name


def check_rule(rule: Rule) -> Rule:
    """Return the rule.

    :raises InvalidJob: a number is out of its range, or the rule limits nothing.
    """
    if rule.concurrency is None and not rule.rate:
        raise InvalidJob("the rule limits nothing: give it a concurrency, a rate, or both")
    if rule.concurrency is not None:
        _number("concurrency", rule.concurrency, 0)
    check_over(rule.over)
    if rule.over == "kill_running" and (rule.rate or rule.concurrency is None):
        raise InvalidJob(_NEEDS_PLACES)
    if len(rule.rate) > BANDS_MAX:
        raise InvalidJob(f"the rule has {len(rule.rate)} rates: it takes {BANDS_MAX} at most")
    for band in rule.rate:
        _number("count", band.count)
        _number("burst", band.burst)
        if band.unit:
            check_unit(band.unit)
        if not 1 <= band.per <= PERIOD_MAX_MS:
            raise InvalidJob(f"per is {band.per}: it takes 1 to {PERIOD_MAX_MS} ms (366 days)")
    return rule


def check_key_count(count: int, most: int) -> None:
    """How many limit keys a job has. ``most``: the setting ``max_limit_keys``.

    :raises InvalidJob: they are too many.
    """
    if count > most:
        raise InvalidJob(f"limits gives a job {count} keys: it takes {most} at most (JOBQ_MAX_LIMIT_KEYS)")


def check_limit_key(key: str) -> None:
    """A limit key that a caller gives: a rule's name, alone or followed by a colon and a value.

    :raises InvalidJob: the name cannot be a rule's, or the value is longer than 200 bytes or has control characters.
    """
    name, colon, value = key.partition(":")
    check_rule_name(name)
    if name == QUEUE_RULE:
        raise InvalidJob(f"limit key {key[:80]!r}: the rule 'queue' applies to every job, so no job lists it")
    if colon and (not value or unfit(value)):
        raise InvalidJob(
            f"limit key {key[:80]!r}: behind the colon stand 1 to {VALUE_MAX} bytes without control characters"
        )


def closing_ms(value: Seconds | str) -> int:
    """The time for which an operator closes a key, in ms.

    :raises InvalidJob: it is not a time, less than 1 ms, or more than ten years.
    """
    return option_ms("the time", value, 1)


def unfit(value: str) -> bool:
    """Whether a text is too long to be part of a key, or has control characters."""
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return True
    return size > VALUE_MAX or any(ord(c) < 32 or ord(c) == 127 for c in value)


def value_text(value: Any) -> str:
    """The value of a key for an argument: a text as it is, anything else as JSON; a long one as its hash."""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    if text and not unfit(text):
        return text
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
    return f"~{digest}"


class LimitRow(msgspec.Struct, frozen=True):
    """A rule as operators see it. ``held``: jobs that it keeps from starting; ``active``: jobs that count under it.

    ``over``: what happens to a job that has no room.
    ``source``: who gave the rule that holds now. ``declared``: what code declares, None if no code does. ``closed``:
    how many of its keys are closed now; the last one opens at ``closed_until`` (unix ms). ``orphan``: code declared it,
    and no type that workers or servers published in the last day lists it.
    """

    rule: str
    concurrency: int | None
    rate: tuple[Band, ...]
    held: int
    active: int
    source: Literal["code", "operator"]
    declared: Rule | None = None
    closed: int = 0
    closed_until: int | None = None
    orphan: bool = False
    over: Over = "wait"


class LimitKeyRow(msgspec.Struct, frozen=True):
    """A key of a rule. ``opens_at``: when its next job may start (unix ms), if it is closed or held jobs wait for a
    token. ``closed_until``: no job starts before (unix ms). A handler was rate limited, or an operator closed the key.
    """

    key: str
    held: int
    active: int
    opens_at: int | None = None
    closed_until: int | None = None


def keys_of(limits: Iterable[str], by: Sequence[LimitBy], payload: bytes | msgspec.Raw) -> list[str]:
    """The limit keys of a job, in the order in which they are checked, each once.

    :raises InvalidJob: the payload is not an object, so it has no arguments.
    """
    keys = dict.fromkeys(limits)
    if by:
        try:
            fields = msgspec.json.decode(payload, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidJob(f"the payload has no arguments to limit by: {error}") from None
        for one in by:
            value = value_text(fields[one.field]) if one.field in fields else one.default
            keys[f"{one.rule}:{value}"] = None
    return list(keys)


def check_queue_rule(rules: dict[str, Rule]) -> dict[str, Rule]:
    """Return the rules.

    :raises InvalidJob: that of the whole queue has a rate with a unit, or an action: it holds no job.
    """
    if QUEUE_RULE in rules and rules[QUEUE_RULE].over != "wait":
        raise InvalidJob("the rule 'queue' holds no jobs, so it takes no over=: give the limit of a task over=")
    if QUEUE_RULE in rules and any(band.unit for band in rules[QUEUE_RULE].rate):
        raise InvalidJob("a rate of the whole queue counts jobs: give unit= to a limit of a task")
    return rules
