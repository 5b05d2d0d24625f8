"""Turns options as people give them (seconds, timedelta) into options as they are stored (ms), and checks them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict, cast, get_args

import msgspec

from jobq.engine.model.backoff import stored_backoff
from jobq.engine.model.costs import check_costs
from jobq.engine.model.encoding import encode
from jobq.engine.model.groups import TEMPLATES, check_option_name
from jobq.engine.model.job import (
    ATTEMPTS_MAX,
    DELAY_MAX_MS,
    DELAYS_MAX,
    NAME_MAX,
    PLAIN,
    PRIORITY_MAX,
    PRIORITY_MIN,
    SLOTS_MAX,
    VERSION_MAX,
    Durability,
    Options,
    StoredBackoff,
    StoredUnique,
)
from jobq.engine.model.limits import KEYS_MAX, check_key_count, check_limit_key
from jobq.engine.model.times import option_ms, to_unix_ms
from jobq.engine.model.unique import check_key, check_unique, of_type, stored_unique
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobq.engine.model.backoff import Backoff
    from jobq.engine.model.breaker import Breaker
    from jobq.engine.model.job import Seconds
    from jobq.engine.model.limits import Concurrency, Rate
    from jobq.engine.model.policy import BackoffFunction
    from jobq.engine.model.unique import Unique


class _Given(TypedDict, total=False):
    """Options that both a job and a task can be given."""

    priority: int
    delay: Seconds
    attempts: int | None
    timeout: Seconds | None
    lifo: bool
    key: str | None
    key_ttl: Seconds | None
    retention: Seconds | None
    run_at: datetime | None
    expires: Seconds | datetime | None
    deadline: Seconds | datetime | None
    metadata: dict[str, Any] | None
    limits: Sequence[str | Concurrency | Rate] | None
    slots: int
    unique: Unique | None
    costs: Mapping[str, int] | None
    version: int


class Given(_Given, total=False):
    """The options that Python callers give a job. Times are seconds or ``timedelta``.

    ``attempts``: the total number of runs. None: the job runs until it succeeds. ``backoff``: a ``Backoff``, or a list
    of delays, of which the last one repeats. ``version``: that of the payload, if it is not the task's.
    """

    backoff: Backoff | Sequence[Seconds] | None
    group: str | None
    partition_by: str | None


class QueueGiven(TypedDict, total=False):
    """The options that ``Queue(defaults=...)`` gives all of its jobs, unless a task or a call says something else.

    ``expires`` and ``deadline`` are times from the enqueue on.
    """

    priority: int
    delay: Seconds
    attempts: int | None
    backoff: Backoff | Sequence[Seconds] | None
    timeout: Seconds | None
    lifo: bool
    retention: Seconds | None
    expires: Seconds | None
    deadline: Seconds | None
    slots: int


class TaskGiven(_Given, total=False):
    """The options of ``@queue.task``: defaults for its jobs, and rules that are not stored with them.

    ``backoff`` may also be a function, ``lambda attempt, error: seconds``. The worker calls it after a failed
    attempt of a job that has no backoff of its own. ``retry_on``: only these exceptions are retried. ``discard_on``:
    these are not retried. Both take one class or several, and include subclasses. All leaves of an exception group
    are checked. ``group``: the group of its jobs, a template over the handler's arguments such as "{tenant}", or a
    function that takes these arguments. ``partition_by``: the same, for what decides in which partition of the queue
    its jobs are. ``version``: that of the payloads that the handler takes. ``@task.upcast`` converts older ones.
    """

    backoff: Backoff | Sequence[Seconds] | BackoffFunction | None
    group: str | Callable[..., str | None] | None
    partition_by: str | Callable[..., str | None] | None
    retry_on: type[BaseException] | Sequence[type[BaseException]] | None
    discard_on: type[BaseException] | Sequence[type[BaseException]] | None
    max_snoozes: int
    max_rate_limited: int
    breaker: Breaker | None


QUEUE_OPTIONS = tuple(QueueGiven.__annotations__)
_TIMES = ("delay", "timeout", "key_ttl", "retention")


def count_of(name: str, value: Any, least: int = 0) -> int:
    """Check a setting of a queue that is a whole number.

    :raises InvalidJob: it is not a whole number, or less than ``least``.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidJob(f"{name} is {value!r:.80}: it takes a whole number of {least} or more")
    return value


def queue_options(given: Any) -> Options:
    """The default options of a queue.

    :raises InvalidJob: it has no such default, or one is out of its range.
    """
    if given is None:
        return PLAIN
    if not isinstance(given, dict):
        raise InvalidJob(f"defaults is {given!r:.80}: it takes a dict of options, such as {{'attempts': 5}}")
    options = cast("dict[str, Any]", given)
    if unknown := [str(name) for name in options if name not in QUEUE_OPTIONS]:
        raise InvalidJob(f"defaults has {', '.join(unknown)[:80]}: a queue takes {', '.join(QUEUE_OPTIONS)}")
    for name in ("expires", "deadline"):
        if isinstance(options.get(name), datetime):
            raise InvalidJob(f"defaults has a point in time for {name}: a queue takes a time from the enqueue on")
    try:
        return merge(PLAIN, cast("Given", options))
    except InvalidJob as error:
        raise InvalidJob(f"defaults: {error}") from None


def over(base: Options, options: Options) -> Options:
    """Options of a type, with the defaults of a queue where they are the built-in ones."""
    if base is PLAIN:
        return options
    same = [name for name in QUEUE_OPTIONS if getattr(options, name) == getattr(PLAIN, name)]
    if options.run_at is not None or options.delay:
        same = [name for name in same if name != "delay"]
    for name in ("expires", "deadline"):
        if getattr(options, f"{name}_at") is not None:
            same.remove(name)
    return msgspec.structs.replace(options, **{name: getattr(base, name) for name in same})


def merge(base: Options, given: Given) -> Options:
    """``base`` with the given options in place of its own.

    :raises InvalidJob: an option is out of its range, or there is no such option.
    """
    if not given:
        return base
    changes: dict[str, Any] = dict(given)
    for name in _TIMES:
        if changes.get(name) is not None:
            changes[name] = option_ms(name, changes[name], 1 if name in ("timeout", "key_ttl") else 0)
    if changes.get("backoff") is not None:
        changes["backoff"] = stored_backoff(changes["backoff"])
    if "limits" in changes:
        changes["limits"] = _limit_keys(changes["limits"])
        changes.setdefault("limits_by", ())  # not the task's either
    if changes.get("unique") is not None:
        changes["unique"] = of_type(stored_unique(changes["unique"]), base)
        changes.setdefault("key", None)  # in place of the task's default
        changes.setdefault("key_ttl", None)
    elif changes.get("key") is not None:
        changes.setdefault("unique", None)
    if "costs" in changes:
        changes["costs"] = _costs(changes["costs"])
        changes.setdefault("costs_by", ())  # not the task's either
    for name, template in TEMPLATES.items():
        if name in changes:
            changes.setdefault(template, None)
    if changes.get("run_at") is not None:
        changes["run_at"] = to_unix_ms("run_at", changes["run_at"])
        changes.setdefault("delay", 0)  # in place of the task's default
    elif changes.get("delay"):
        changes.setdefault("run_at", None)
    for name in ("expires", "deadline"):
        if name in changes:
            changes |= _by_when(name, changes[name])
    try:
        merged: Options = msgspec.structs.replace(base, **changes)
    except TypeError:
        unknown = sorted(set(changes) - set(Options.__struct_fields__))
        raise InvalidJob(
            f"no such option: {', '.join(unknown)}; there are {', '.join(Given.__annotations__)}"
        ) from None
    check(merged)
    return merged


def _by_when(name: str, value: Any) -> dict[str, int | None]:
    """A time from the enqueue on, or a point in time. Each replaces the other of a task."""
    if isinstance(value, datetime):
        return {name: None, f"{name}_at": to_unix_ms(name, value)}
    return {name: None if value is None else option_ms(name, value, 1), f"{name}_at": None}


def _whole(name: str, value: Any, least: int, most: int, unit: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidJob(f"{name} is {value!r:.80}: it takes {least} to {most}{unit}")


def _kind(name: str, value: Any, kind: type | tuple[type, ...], takes: str) -> None:
    if not isinstance(value, kind):
        raise InvalidJob(f"{name} is {value!r:.80}: it takes {takes}")


def check(options: Options) -> None:
    """Check that every option is in its range.

    :raises InvalidJob: one is not. The text names it and says what it takes.
    """
    _whole("priority", options.priority, PRIORITY_MIN, PRIORITY_MAX, " (a lower number runs first)")
    _whole("version", options.version, 1, VERSION_MAX, " (the version of the payload)")
    _whole("slots", options.slots, 1, SLOTS_MAX, " (how many jobs it counts as)")
    _whole("delay", options.delay, 0, DELAY_MAX_MS, " ms (ten years)")
    if options.attempts is not None:
        _whole("attempts", options.attempts, 1, ATTEMPTS_MAX, " (the total number of runs), or None for no limit")
    for name in ("timeout", "key_ttl"):
        value = getattr(options, name)
        if value is not None:
            _whole(name, value, 1, DELAY_MAX_MS, " ms")
    if options.retention is not None:
        _whole("retention", options.retention, 0, DELAY_MAX_MS, " ms")
    if options.run_at is not None:
        _whole("run_at", options.run_at, 0, 1 << 45, " ms since 1970")
        if options.delay:
            raise InvalidJob("delay and run_at are both given, and both say when the job runs: give one of them")
    for name in ("expires", "deadline"):
        _check_by_when(name, getattr(options, name), getattr(options, f"{name}_at"), options)
    # If these had other types, the stored row could not be read.
    _kind("lifo", options.lifo, bool, "True or False")
    _kind("breaker", options.breaker, bool, "True or False; only a task takes Breaker(...)")
    if options.metadata is not None:
        _kind("metadata", options.metadata, dict, "a dict")
        try:
            encode(options.metadata)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidJob(f"metadata cannot be encoded as JSON: {error}") from None
    if options.backoff is not None:
        _check_backoff(options.backoff)
    for key in options.limits:
        _kind("one of limits", key, str, "a text such as 'stripe' or 'tenant:a'")
        check_limit_key(key)
    check_key_count(len(options.limits) + len(options.limits_by), KEYS_MAX)
    if options.unique is not None:
        _kind("unique", options.unique, StoredUnique, "a StoredUnique, as Unique(...).stored() gives")
        check_unique(options.unique)
        if options.key is not None:
            raise InvalidJob("key and unique are both given: key is the short form of unique=Unique(key=...)")
    check_costs(options.costs)
    for name in TEMPLATES:
        if (value := getattr(options, name)) is not None:
            _kind(name, value, str, "a text")
            check_option_name(name, value)
    if options.key is not None:
        check_key("key", options.key)
    elif options.key_ttl is not None:
        raise InvalidJob("key_ttl is given without key: it says how long the key holds")


def _check_by_when(name: str, ms: Any, at: Any, options: Options) -> None:
    if ms is not None:
        _whole(name, ms, 1, DELAY_MAX_MS, " ms")
        if at is not None:
            raise InvalidJob(f"{name} and {name}_at are both given, and both say the same: give one of them")
        if options.delay >= ms:
            raise InvalidJob(
                f"{name} is {ms / 1000:g} s and delay is {options.delay / 1000:g} s, so the job could never start:"
                f" {name} counts from the enqueue too"
            )
    if at is not None:
        _whole(f"{name}_at", at, 0, 1 << 45, " ms since 1970")
        if options.run_at is not None and options.run_at >= at:
            raise InvalidJob(f"run_at is not before {name}, so the job could never start")


def _check_backoff(backoff: StoredBackoff) -> None:
    _kind("backoff", backoff, StoredBackoff, "a StoredBackoff, as Backoff(...).stored() gives")
    if backoff.type not in ("fixed", "exponential"):
        raise InvalidJob(f"backoff.type is {backoff.type!r:.80}: it takes 'fixed' or 'exponential'")
    _whole("backoff.delay", backoff.delay, 0, DELAY_MAX_MS, " ms")
    _whole("backoff.max", backoff.max, 0, DELAY_MAX_MS, " ms")
    _kind("backoff.jitter", backoff.jitter, (int, float), "0 to 1")
    if not 0 <= backoff.jitter <= 1:
        raise InvalidJob(f"backoff.jitter is {backoff.jitter!r}: it takes 0 to 1")
    if len(backoff.delays) > DELAYS_MAX:
        raise InvalidJob(f"backoff.delays has {len(backoff.delays)} delays: it takes {DELAYS_MAX} at most")
    for delay in backoff.delays:
        _whole("one of backoff.delays", delay, 0, DELAY_MAX_MS, " ms")


def _costs(given: Any) -> dict[str, int]:
    if given is not None and not isinstance(given, Mapping):
        raise InvalidJob(f"costs is {given!r:.80}: it takes a dict of units, such as {{'tokens': 500}}")
    return dict(cast("Mapping[str, int]", given or {}))


def _limit_keys(given: Any) -> tuple[str, ...]:
    if given is None:
        return ()
    if not isinstance(given, str) and not isinstance(given, Iterable):
        raise InvalidJob(f"limits is {given!r:.80}: it takes a list, such as ['tenant:a']")
    keys: tuple[Any, ...] = (given,) if isinstance(given, str) else tuple(cast("Iterable[Any]", given))
    for key in keys:
        if not isinstance(key, str):
            raise InvalidJob(
                f"limits holds {key!r:.80}: a job takes keys such as 'stripe' or 'tenant:a'; declare the rule on its"
                " task, or set it with queue.set_limit(...)"
            )
    return keys


def check_durability(durability: str) -> None:
    """Check that it is one of ``Durability``. A misspelt one must not count as a weaker one.

    :raises InvalidJob: it is something else.
    """
    if durability not in get_args(Durability):
        raise InvalidJob(f"durability is {durability!r:.80}: it takes none, fsynced or replicated")


def check_type(name: str) -> None:
    """Check the name of a type: 1 to 128 printable characters.

    :raises InvalidJob: it is something else.
    """
    if not isinstance(name, str) or not 1 <= len(name) <= NAME_MAX or not name.isprintable():  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidJob(f"type {name!r:.80}: it takes 1 to {NAME_MAX} printable characters")
