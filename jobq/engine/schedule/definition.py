"""What a schedule says: a job, and when it is enqueued. Python gives seconds and datetimes, and ms are stored."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import msgspec

from jobq.engine.model.encoding import encode
from jobq.engine.model.job import DELAY_MAX_MS, PLAIN, Options, Seconds
from jobq.engine.model.options import Given, check_type, merge
from jobq.engine.model.times import to_ms, to_unix_ms
from jobq.engine.schedule.timing import Timing, check_slots
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

Overlap = Literal["skip", "allow", "queue_one", "kill"]
"""What happens at a slot while the job of an earlier slot is unfinished."""
CatchUp = Literal["last", "all", "none"]
"""What happens with slots at which no worker or server ran."""

NAME_MAX: Final = 46
"""Characters of a schedule's name. The id of a job holds the name and the slot."""
TIMES_MAX: Final = 16
"""Expressions of a schedule, and exclusions."""
AT_MAX: Final = 1000
JITTER_MAX_MS: Final = 86_400_000
PAYLOAD_MAX: Final = 65_536
"""Bytes of a schedule's payload. It is read and written at every slot."""
COUNT_MAX: Final = 1_000_000_000
FAILURES_MAX: Final = 1000
CATCH_UP_MAX: Final = 100
"""The most slots that ``catch_up="all"`` enqueues after an outage."""
RULE: Final = "schedule"
"""The rule of limits under which jobs of schedules with ``overlap="queue_one"`` run one at a time."""

_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9._-]{{0,{NAME_MAX - 1}}}")


class Definition(msgspec.Struct, frozen=True, omit_defaults=True, rename={"start": "from"}):
    """A schedule as it is stored. Exactly one of ``cron``, ``every`` and ``at`` is given. Times are ms and unix ms.

    ``given``: the names of the job options that were given. The others are those of the type when a slot comes.
    """

    type: str
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    cron: tuple[str, ...] = ()
    every: int | None = None
    at: tuple[int, ...] = ()
    tz: str = "UTC"
    exclude: tuple[str, ...] = ()
    overlap: Overlap = "skip"
    catch_up: CatchUp = "last"
    jitter: int = 0
    start: int | None = None
    until: int | None = None
    limit: int | None = None
    pause_after: int | None = None
    options: Options = PLAIN
    given: tuple[str, ...] = ()


class ScheduleGiven(Given, total=False):
    """When a schedule enqueues a job, and the options of the job. Times are seconds, ``timedelta`` or texts as "5m".

    ``cron``: an expression or several. ``exclude``: expressions whose times are left out. ``every``: a time between
    slots. ``at``: one time, or several. ``from_`` and ``until`` are the first and the last moment. ``limit``: how many
    slots get a job. ``jitter``: all slots come later by a fixed time of at most this length, which the name draws.
    ``pause_after``: the schedule is paused after so many failed jobs in a row.
    """

    cron: str | Sequence[str]
    every: Seconds | str | None
    at: datetime | Sequence[datetime]
    tz: str
    exclude: str | Sequence[str]
    overlap: Overlap
    catch_up: CatchUp
    jitter: Seconds | str
    from_: datetime | None
    until: datetime | None
    limit: int | None
    pause_after: int | None


_OWN: Final = frozenset(ScheduleGiven.__annotations__) - frozenset(Given.__annotations__)


def check_schedule_name(name: str) -> str:
    """Check and return the name of a schedule.

    :raises InvalidJob: it has other characters, or is too long.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidJob(f"schedule {name!r:.80}: 1 to {NAME_MAX} letters, digits, '.', '_' or '-'")
    return name


def define(type_: str, payload: Any, given: dict[str, Any]) -> Definition:
    """The definition that Python callers give, checked.

    :raises InvalidJob: something of it cannot be used.
    """
    own = {name: value for name, value in given.items() if name in _OWN and value is not None}
    options: Any = {name: value for name, value in given.items() if name not in _OWN}
    try:
        raw = msgspec.Raw(encode({} if payload is None else payload))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidJob(f"payload of {type_[:80]!r}: {error}") from None
    merged = merge(PLAIN, options)
    return check_definition(
        Definition(
            type_,
            raw,
            _several("cron", own.get("cron")),
            _ms("every", own["every"]) if "every" in own else None,
            tuple(to_unix_ms("at", moment) for moment in _moments(own.get("at"))),
            _text("tz", own.get("tz", "UTC")),
            _several("exclude", own.get("exclude")),
            own.get("overlap", "skip"),
            own.get("catch_up", "last"),
            _ms("jitter", own["jitter"]) if "jitter" in own else 0,
            to_unix_ms("from_", own["from_"]) if "from_" in own else None,
            to_unix_ms("until", own["until"]) if "until" in own else None,
            own.get("limit"),
            own.get("pause_after"),
            merged,
            tuple(sorted(options)),
        )
    )


def of_version(definition: Definition, version: int) -> Definition:
    """The definition with the version of its payload, unless it has one."""
    if version == definition.options.version or "version" in definition.given:
        return definition
    return msgspec.structs.replace(
        definition,
        options=msgspec.structs.replace(definition.options, version=version),
        given=tuple(sorted((*definition.given, "version"))),
    )


def check_definition(definition: Definition) -> Definition:
    """Return the definition.

    :raises InvalidJob: a number is out of its range, an expression or zone cannot be read, or no slot ever comes.
    """
    check_type(definition.type)
    kinds = [name for name in ("cron", "every", "at") if getattr(definition, name) not in (None, ())]
    if len(kinds) != 1:
        raise InvalidJob(f"a schedule takes one of cron, every and at, and has {' and '.join(kinds) or 'none of them'}")
    for name in ("cron", "exclude"):
        if len(getattr(definition, name)) > TIMES_MAX:
            raise InvalidJob(f"{name} has {len(getattr(definition, name))} expressions: it takes {TIMES_MAX} at most")
    if len(definition.at) > AT_MAX:
        raise InvalidJob(f"at has {len(definition.at)} times: it takes {AT_MAX} at most")
    if definition.every is not None and (not 1000 <= definition.every <= DELAY_MAX_MS or definition.every % 1000):
        raise InvalidJob(f"every is {definition.every} ms: it takes whole seconds from 1 to {DELAY_MAX_MS // 1000}")
    if not 0 <= definition.jitter <= JITTER_MAX_MS:
        raise InvalidJob(f"jitter is {definition.jitter} ms: it takes 0 to {JITTER_MAX_MS} (a day)")
    _one_of("overlap", definition.overlap, get_args(Overlap))
    _one_of("catch_up", definition.catch_up, get_args(CatchUp))
    if definition.catch_up == "all" and definition.overlap != "allow":
        raise InvalidJob(
            f"catch_up='all' enqueues the missed slots together, which overlap={definition.overlap!r} would not allow:"
            " give overlap='allow', and a limit such as Concurrency(1) if they must not run at once"
        )
    _whole("limit", definition.limit, COUNT_MAX)
    _whole("pause_after", definition.pause_after, FAILURES_MAX)
    if definition.options.run_at is not None:
        raise InvalidJob("run_at is given, and a schedule says itself when its jobs run: leave it out")
    if len(definition.payload) > PAYLOAD_MAX:
        raise InvalidJob(f"payload has {len(definition.payload)} bytes: that of a schedule takes {PAYLOAD_MAX} at most")
    check_slots(Timing(definition), 0)
    return definition


def _whole(name: str, value: Any, most: int) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most):
        raise InvalidJob(f"{name} is {value!r:.80}: it takes a whole number from 1 to {most}")


def _one_of(name: str, value: Any, words: tuple[str, ...]) -> None:
    if value not in words:
        raise InvalidJob(f"{name} is {value!r:.80}: it takes {', '.join(words)}")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidJob(f"{name} is {value!r:.80}: it takes a text")
    return value


def _several(name: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(_text(name, one) for one in ([value] if isinstance(value, str) else value))


def _moments(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)  # pyright: ignore[reportUnknownVariableType]


def _ms(name: str, value: Any) -> int:
    try:
        return to_ms(value)
    except InvalidJob as error:
        raise InvalidJob(f"{name}: {error}") from None
