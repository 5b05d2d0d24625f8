"""Uniqueness: how long a job holds its key, and what happens to another job with that key meanwhile.

unique=Unique(by=("user_id",), while_="queued", on="replace", delay=5, max_wait=60)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from jobq.engine.model.job import DELAY_MAX_MS, Conflict, StoredUnique, UniqueBy, While
from jobq.engine.model.times import option_ms
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobq.engine.model.job import NewJob, Options, Seconds

KEY_MAX: Final = 512
"""Bytes of a deduplication key. A longer one that is made of arguments is replaced by its hash."""
BY_MAX: Final = 16
TABLE: Final[dict[str, tuple[Conflict, ...]]] = {
    "queued": ("return", "fail", "replace", "replace_all", "extend"),
    "running": ("return", "fail", "kill_running"),
    "unfinished": ("return", "fail", "replace", "replace_all", "extend", "keep_last", "kill_running"),
    "ended": ("return", "fail", "replace", "replace_all", "extend", "keep_last", "kill_running"),
    "enqueued": ("return", "fail", "replace", "replace_all", "extend"),
}
"""For each value of ``while_``: what may happen to a job whose key is held by another job."""
_PUTS_OFF: Final = ("replace", "replace_all", "extend")
_encode = msgspec.json.Encoder(order="sorted").encode


@dataclass(frozen=True, slots=True)
class Unique:
    """One job per key. Times are seconds, ``timedelta`` or a text such as ``"5m"``.

    ``by``: the handler's arguments that make the key. Without ``by`` and ``key``, all jobs of the type have one key.
    ``key``: a key of your own, in place of ``by``.

    ``while_``: the states of a job in which it holds its key: "queued" (delayed, waiting, held or blocked), "running",
    or "unfinished" (both). ``for_``: the key is held for a time from the enqueue; with ``while_="unfinished"`` until a
    time after the job's end. The default is "unfinished".

    ``on``: what happens to a job whose key another one holds. "return": nothing, and the answer is the holder. "fail":
    ``KeyTaken`` is raised. "replace": the holder gets the new payload and metadata, if it waits. "replace_all": its
    options too. "extend": the holder is put off. "keep_last": while the holder runs, the newest job waits for its end;
    a holder that waits gets the new payload. "kill_running": a running holder is killed, and the new job is enqueued.

    ``delay``: the job's first delay; with "replace", "replace_all" and "extend", each further enqueue puts off the
    waiting job again by so much. ``max_wait``: but it is due at the latest so long after its first enqueue.

    :raises InvalidJob: a value is out of its range, or two of them do not go together.
    """

    by: str | tuple[str, ...] = ()
    key: str | None = None
    while_: While | None = None
    for_: Seconds | str | None = None
    on: Conflict = "return"
    delay: Seconds | str | None = None
    max_wait: Seconds | str | None = None

    def __post_init__(self) -> None:
        self.stored()

    def stored(self) -> StoredUnique:
        """The same in ms, as rows and REST have it."""
        given: Any = self.by
        by = cast("tuple[Any, ...]", (given,) if isinstance(given, str) else tuple(given))
        for field in by:
            if not isinstance(field, str) or not field:
                raise InvalidJob(f"unique.by has {field!r:.80}: it takes names of arguments, such as ('user_id',)")
        unique = StoredUnique(
            key=self.key,
            while_=self.while_,
            for_=_ms("unique.for_", self.for_),
            on=self.on,
            delay=_ms("unique.delay", self.delay),
            max_wait=_ms("unique.max_wait", self.max_wait),
            by=tuple(UniqueBy(field) for field in by),
        )
        check_unique(unique)
        return unique


def debounce(delay: Seconds | str, *, by: str | tuple[str, ...] = (), max_wait: Seconds | str | None = None) -> Unique:
    """The job runs ``delay`` after the last enqueue, with the last payload, and ``max_wait`` after the first at the
    latest."""
    return Unique(by, while_="queued", on="replace", delay=delay, max_wait=max_wait)


def throttle(period: Seconds | str, *, by: str | tuple[str, ...] = ()) -> Unique:
    """The first job runs. Further ones are dropped until ``period`` after its enqueue."""
    return Unique(by, for_=period)


def singleton(*, by: str | tuple[str, ...] = ()) -> Unique:
    """There is one unfinished job. Further ones are dropped."""
    return Unique(by, while_="unfinished")


def latest(*, by: str | tuple[str, ...] = ()) -> Unique:
    """One job runs at a time, and one more waits, with the last payload."""
    return Unique(by, while_="unfinished", on="keep_last")


def _ms(name: str, given: Any) -> int | None:
    return None if given is None else option_ms(name, given, 1)


def stored_unique(given: Any) -> StoredUnique:
    """What the option ``unique`` takes, in ms.

    :raises InvalidJob: it is something else.
    """
    if isinstance(given, StoredUnique):
        return given
    if isinstance(given, Unique):
        return given.stored()
    raise InvalidJob(
        f"unique is {given!r:.80}: it takes Unique(...), debounce(...), throttle(...), singleton() or latest()"
    )


def mode_of(unique: StoredUnique) -> str:
    """How long the key is held, as enqueue_unique.lua names it."""
    if unique.for_ is None:
        return unique.while_ or "unfinished"
    return "enqueued" if unique.while_ is None else "ended"


def check_unique(unique: StoredUnique) -> None:
    """Check that the values are in their ranges and go together.

    :raises InvalidJob: they do not. The text says what to do.
    """
    if unique.while_ not in (None, "queued", "running", "unfinished"):
        raise InvalidJob(f"unique.while is {unique.while_!r:.80}: it takes queued, running or unfinished")
    if unique.key is not None:
        check_key("unique.key", unique.key)
        if unique.by:
            raise InvalidJob("unique has a key and by, and both make the key: give one of them")
    if len(unique.by) > BY_MAX:
        raise InvalidJob(f"unique.by has {len(unique.by)} arguments: it takes {BY_MAX} at most")
    for name in ("for_", "delay", "max_wait"):
        value = getattr(unique, name)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= DELAY_MAX_MS
        ):
            raise InvalidJob(f"unique.{name.strip('_')} is {value!r:.80}: it takes 1 to {DELAY_MAX_MS} ms (ten years)")
    if unique.for_ is not None and unique.while_ in ("queued", "running"):
        raise InvalidJob(
            f"unique.for does not go with while={unique.while_!r}: alone it is a time from the enqueue, and with"
            " while='unfinished' a time after the end"
        )
    possible = TABLE[mode_of(unique)]
    if unique.on not in possible:
        word = f"while={unique.while_!r}" if unique.while_ else "for alone"
        raise InvalidJob(f"unique.on is {unique.on!r:.80}: with {word} it takes {', '.join(possible)}")
    if unique.delay is not None and unique.on not in _PUTS_OFF:
        raise InvalidJob(
            f"unique.delay does not go with on={unique.on!r}: it puts off a job that is replaced or extended. Give the"
            " job itself a delay"
        )
    if unique.on == "extend" and unique.delay is None:
        raise InvalidJob("unique.on is 'extend' without a delay: say by how much the job is put off")
    if unique.max_wait is not None:
        if unique.delay is None:
            raise InvalidJob("unique.max_wait is given without delay: it bounds how often a job is put off")
        if unique.max_wait < unique.delay:
            raise InvalidJob(
                f"unique.max_wait is {unique.max_wait / 1000:g} s and delay is {unique.delay / 1000:g} s: give a"
                " max_wait that is not smaller than delay"
            )


def check_key(name: str, key: Any) -> None:
    """Check a deduplication key: 1 to 512 bytes, without control characters (a line break would end it).

    :raises InvalidJob: it is something else.
    """
    if not isinstance(key, str):
        raise InvalidJob(f"{name} is {key!r:.80}: it takes a text")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidJob(f"{name}: it contains lone surrogates, which have no UTF-8 form") from None
    if not 1 <= size <= KEY_MAX or any(ord(c) < 32 or ord(c) == 127 for c in key):
        raise InvalidJob(f"{name}: it takes 1 to {KEY_MAX} bytes without control characters")


def of_type(unique: StoredUnique, base: Options) -> StoredUnique:
    """The ``unique`` of one call. If it does not say what makes its key, the key is that of the type.

    ``base``: the options of the type.
    """
    own = base.unique
    if unique.key is None and not unique.by:
        if own is None:
            return msgspec.structs.replace(unique, key=base.key)
        return msgspec.structs.replace(unique, key=own.key, by=own.by)
    if own is None or not own.by:
        return unique
    defaults = {one.field: one for one in own.by}
    return msgspec.structs.replace(unique, by=tuple(defaults.get(one.field, one) for one in unique.by))


def bind(options: Options, type: str, arguments: Mapping[str, Any]) -> Options:
    """The options, with the defaults of the arguments that make the key.

    ``arguments``: the handler's arguments, with their defaults or ``inspect.Parameter.empty``.

    :raises InvalidJob: ``by`` names no argument.
    """
    unique = options.unique
    if unique is None or not unique.by:
        return options
    by: list[UniqueBy] = []
    for one in unique.by:
        field = one.field
        if field not in arguments:
            raise InvalidJob(
                f"by={field!r:.80} names no argument of {type!r}; there are {', '.join(arguments) or 'none'}"
            )
        try:
            default = _encode(arguments[field]).decode()
        except (TypeError, ValueError):
            default = None  # The argument has no default.
        by.append(UniqueBy(field, default))
    return msgspec.structs.replace(options, unique=msgspec.structs.replace(unique, by=tuple(by)))


def key_of(unique: StoredUnique, type: str, payload: bytes | msgspec.Raw) -> str:
    """The key of a job.

    :raises InvalidJob: the payload lacks an argument of ``by``, and its default is not known here.
    """
    if unique.key is not None:
        return unique.key
    if not unique.by:
        return type
    try:
        fields = msgspec.json.decode(payload, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidJob(f"the payload has no arguments to make a key of: {error}") from None
    values: list[str] = []
    for one in unique.by:
        field, default = one.field, one.default
        if field in fields:
            # The order of an object's fields does not count.
            values.append(_encode(fields[field]).decode())
        elif default is None:
            has = ", ".join(fields)[:200] or "no fields"
            raise InvalidJob(f"the payload has no {field!r:.80}, which unique.by names; it has {has}")
        else:
            values.append(default)
    # As a JSON list, two lists of values never make the same text.
    text = f"{type}:[{','.join(values)}]"
    data = text.encode()
    if len(data) <= KEY_MAX and "\x7f" not in text:
        return text
    return f"~{hashlib.blake2b(data, digest_size=16).hexdigest()}"


def job_key(new: NewJob) -> str | None:
    """The key of a job that is not enqueued yet; None if it has none.

    :raises InvalidJob: as ``key_of``.
    """
    unique = new.options.unique
    return new.options.key if unique is None else key_of(unique, new.type, new.payload)
