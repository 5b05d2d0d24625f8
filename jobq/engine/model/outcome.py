"""How a run ended, as data, and what follows from it. Only this module decides about retries."""

from __future__ import annotations

import re
import time
import traceback
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import msgspec

from jobq.engine.model.backoff import delay_ms
from jobq.engine.model.encoding import encode
from jobq.engine.model.job import DELAY_MAX_MS, AttemptError
from jobq.engine.model.policy import RATE_LIMITED_MAX, SNOOZES_MAX
from jobq.engine.model.times import to_ms
from jobq.errors import (
    DeadlineExceeded,
    Discard,
    InvalidPayload,
    InvalidResult,
    OutcomeRefused,
    RateLimited,
    RemoteError,
    Retry,
    Snooze,
    TooManyRateLimits,
    TooManySnoozes,
    Unserved,
)
from jobq.redact import excerpt

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from jobq.engine.model.job import Spec
    from jobq.engine.model.policy import RetryPolicy

EXPIRED: Final = "Expired"
"""The error type of a job that did not start or end in time."""
KILLED: Final = "Killed"
"""The error type of a killed job."""
MESSAGE_MAX: Final = 2_000
TRACEBACK_MAX: Final = 8_000
"""Characters kept of an attempt's traceback: half from its start, half from its end."""

NAME_MAX: Final = 200
"""Characters kept of an exception's type name."""
NO_MORE: Final = "not tried again: the next attempt would start after the job's deadline"
LEAVES_MAX: Final = 1_000
"""The most errors of a group that are checked."""

_OURS = re.compile(r"[/\\](jobq[/\\]engine|concurrent[/\\]futures|asyncio)[/\\]")

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode


FINAL: Final = (
    DeadlineExceeded,
    Discard,
    InvalidPayload,
    InvalidResult,
    OutcomeRefused,
    TooManyRateLimits,
    TooManySnoozes,
    Unserved,
)
"""No other attempt follows these errors."""


class Facts(msgspec.Struct, frozen=True):
    """The facts in an exception. ``final``: no other attempt follows. ``delay``: ms before the next one, if it asks.

    ``snooze``: ms until the next run, if the exception contains only ``Snooze``. ``rate_limit``: ms and scope, if it
    contains only ``RateLimited`` and ``Snooze``.
    """

    type: str
    message: str
    trace: str | None
    final: bool
    delay: int | None
    kinds: tuple[tuple[str, ...], ...] = ()
    """See the function ``kinds``. Only facts that a child process sends have it."""
    snooze: int | None = None
    rate_limit: tuple[int, str] | None = None


class RemoteTraceback(Exception):
    """The cause of an exception that a child process raised. Its text is the traceback in the child."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        super().__init__(facts.trace)


class Snoozed(msgspec.Struct, frozen=True):
    """A run that requests another one after ``delay`` ms, and is not charged."""

    delay: int
    message: str


class Throttled(msgspec.Struct, frozen=True):
    """A run that a service refuses for ``delay`` ms. It is not charged. ``scope``: what is closed until then."""

    delay: int
    scope: str
    message: str


class Failure(msgspec.Struct, frozen=True):
    """A failed attempt. ``delay``: ms until the next one. None after the last one.

    ``complaint``: why the task's backoff function could not be used.
    """

    record: bytes
    delay: int | None
    type: str
    message: str
    trace: str | None
    complaint: str | None = None


def encode_result(value: Any, most: int | None = None) -> bytes:
    """A handler's result as JSON of at most ``most`` bytes.

    :raises InvalidResult: the result cannot be encoded as JSON, or is larger.
    """
    try:
        encoded = encode(value)
    except Exception as error:  # noqa: BLE001 - the code of a value may raise anything
        raise InvalidResult(f"the handler's result cannot be encoded as JSON: {error}") from None
    if most is not None and len(encoded) > most:
        raise InvalidResult(
            f"the handler's result has {len(encoded)} bytes, the limit is {most}; store it elsewhere and return a"
            " reference, or raise max_result"
        )
    return encoded


def facts(error: BaseException) -> Facts:
    """Read an exception. Never raises, although every attribute of a user's exception may."""
    cause = _attribute(error, "__cause__")
    if type(cause) is RemoteTraceback:
        return cause.facts
    if issubclass(type(error), RemoteError):
        remote = cast("RemoteError", error)
        return Facts(
            remote.type, remote.message, remote.traceback, remote.final, remote.delay,
            snooze=remote.snooze, rate_limit=remote.rate_limit,
        )  # fmt: skip
    name = type_name(type(error))
    message = _guarded(lambda: _text(str(error), MESSAGE_MAX), f"<{name.rpartition('.')[2]} whose str() fails>")
    leaves = _leaves(error)
    return Facts(
        type=name,
        message=message,
        trace=_guarded(lambda: _trace(error, name, message), None),
        final=any(issubclass(type(leaf), FINAL) for leaf in leaves),
        delay=max((delay for leaf in leaves if (delay := _asked_delay(leaf, Retry)) is not None), default=None),
        snooze=_asked_snooze(leaves),
        rate_limit=_asked_rate_limit(leaves),
    )


def kinds(error: BaseException) -> tuple[tuple[str, ...], ...]:
    """For each class among the leaves of an error: its name and the names of its bases. Never raises."""
    cause = _attribute(error, "__cause__")
    if type(cause) is RemoteTraceback:
        return cause.facts.kinds
    leaves = {type(leaf): None for leaf in _leaves(error)}
    return tuple(tuple(type_name(base) for base in type.mro(leaf)[:-1]) for leaf in leaves)


def type_name(kind: type) -> str:
    """The name of an exception's class as in error records. Never raises."""
    return _guarded(lambda: _type_name(kind), "an exception without a name")


def _guarded(read: Callable[[], T], otherwise: T) -> T:
    try:
        return read()
    except BaseException:  # noqa: BLE001 - a run must end, whatever the code of its exception does
        return otherwise


def _type_name(kind: type) -> str:
    """``ValueError`` or ``package.SomeError``. The engine's own errors have no package."""
    bare = kind.__module__ in ("builtins", "jobq.errors", __name__)
    return _text(kind.__qualname__ if bare else f"{kind.__module__}.{kind.__qualname__}", NAME_MAX)


def _leaves(error: BaseException) -> list[BaseException]:
    """The errors in a group, as a TaskGroup raises it. Any other exception is its own only leaf."""
    leaves: list[BaseException] = []
    groups: list[BaseException] = [error]
    while groups and len(leaves) < LEAVES_MAX:
        one = groups.pop()
        if issubclass(type(one), BaseExceptionGroup):
            # Read the attribute of the base class, because a subclass may have replaced it.
            groups += cast("tuple[BaseException, ...]", vars(BaseExceptionGroup)["exceptions"].__get__(one))
        else:
            leaves.append(one)
    return leaves


def _asked_snooze(leaves: list[BaseException]) -> int | None:
    """The longest snooze that was asked for, in ms. None if there is another error, which comes first."""
    delays = [_asked_delay(leaf, Snooze) for leaf in leaves]
    return max(cast("list[int]", delays), default=None) if None not in delays else None


def _asked_rate_limit(leaves: list[BaseException]) -> tuple[int, str] | None:
    """The longest time that was asked for, in ms, and the widest scope. A ``Snooze`` beside it changes neither. None if
    there is another error, which comes first."""
    found = [(delay, leaf) for leaf in leaves if (delay := _asked_delay(leaf, RateLimited)) is not None]
    if not found or any(_asked_delay(leaf, RateLimited | Snooze) is None for leaf in leaves):
        return None
    scopes = [_guarded(lambda leaf=leaf: str(cast("RateLimited", leaf).scope), "job") for _, leaf in found]
    scope = next((scope for scope in ("queue", "key") if scope in scopes), "job")
    return max(delay for delay, _ in found), scope


def _asked_delay(error: BaseException, kind: Any) -> int | None:
    """The delay in ms that a handler asked for. None if it asked for none, or if the value is not a time."""
    if not issubclass(type(error), kind):
        return None
    delay = _guarded(lambda: cast("Any", error).delay, None)
    return None if delay is None else _guarded(lambda: min(max(0, to_ms(delay)), DELAY_MAX_MS), None)


def _text(text: str, most: int) -> str:
    """Cut a text, and remove passwords in URLs and lone surrogates, which have no UTF-8 form."""
    # Call the method of str, because a subclass may have replaced it.
    text = str.encode(text, errors="backslashreplace").decode()
    return excerpt(text, most)


def _trace(error: BaseException, name: str, message: str) -> str | None:
    """The handler's part of the traceback, cut, without passwords in URLs."""
    frames = cast("TracebackType | None", _attribute(error, "__traceback__"))
    # The first frames belong to the engine and to the libraries between it and the handler.
    while frames is not None and _OURS.search(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    if frames is None and _attribute(error, "__cause__") is None:
        return None
    lines = _guarded(lambda: traceback.format_exception(type(error), error, frames), None)
    if lines is None:
        # The exception cannot be formatted, but its frames can.
        lines = ["Traceback (most recent call last):\n", *traceback.format_tb(frames), f"{name}: {message}\n"]
    return _text("".join(lines), TRACEBACK_MAX)


def _attribute(error: BaseException, name: str) -> Any:
    """An attribute that every exception has, even if its class has replaced the access to it."""
    return vars(BaseException)[name].__get__(error)


def put_off(
    error: BaseException,
    snoozes: int,
    policy: RetryPolicy | None = None,
    rate_limited: int = 0,
    left_ms: int | None = None,
) -> Snoozed | Throttled | TooManySnoozes | TooManyRateLimits | DeadlineExceeded | None:
    """The consequence of a ``Snooze`` or ``RateLimited`` in a job that had ``snoozes`` and ``rate_limited`` of them
    before: a later run, or the error with which the job ends. None if the error is something else. Never raises.

    ``left_ms``: until the job's deadline. A job that is rate limited waits all the same, because its key is closed too.
    """
    cause = _attribute(error, "__cause__")
    if type(cause) is RemoteTraceback:
        delay, limit = cause.facts.snooze, cause.facts.rate_limit
    elif issubclass(type(error), RemoteError):
        delay, limit = cast("RemoteError", error).snooze, cast("RemoteError", error).rate_limit
    else:
        leaves = _leaves(error)
        delay, limit = _asked_snooze(leaves), _asked_rate_limit(leaves)
    if limit is not None:
        message = facts(error).message
        most = RATE_LIMITED_MAX if policy is None else policy.max_rate_limited
        if rate_limited < most:
            return Throttled(*limit, message)
        return TooManyRateLimits(
            f"the job was rate limited {rate_limited} times, and its task allows {most} (max_rate_limited): {message}"
        )
    if delay is None:
        return None
    message = facts(error).message
    if left_ms is not None and delay >= left_ms:
        return DeadlineExceeded(f"the handler snoozed its job beyond the job's deadline: {message}")
    most = SNOOZES_MAX if policy is None else policy.max_snoozes
    if snoozes < most:
        return Snoozed(delay, message)
    return TooManySnoozes(f"the job was snoozed {snoozes} times, and its task allows {most} (max_snoozes): {message}")


def judge(
    spec: Spec,
    attempt: int,
    error: BaseException,
    worker: str,
    now_ms: int | None = None,
    started_ms: int | None = None,
    policy: RetryPolicy | None = None,
    trace: str | None = None,
) -> Failure:
    """Decide what follows an error in run number ``attempt``: another run after a delay, or the end. Never raises.

    ``policy``: the rules of the task. A delay that the handler asks for comes first, then the backoff in the job's row,
    then the function of the task. ``trace``: the span of the run.
    """
    told = facts(error)
    final = told.final or (policy is not None and policy.is_final(kinds(error)))
    delay = complaint = None
    if not final and (spec.attempts is None or attempt < spec.attempts):
        delay = told.delay
        if delay is None and policy is not None and spec.backoff is None:
            delay, complaint = policy.delay_ms(attempt, error)
        if delay is None:
            delay = delay_ms(spec.backoff, attempt)
    at = now_ms if now_ms is not None else time.time_ns() // 1_000_000
    if delay is not None and spec.deadline_at is not None and at + delay >= spec.deadline_at:
        told = msgspec.structs.replace(told, message=f"{told.message} ({NO_MORE})")
        delay = None
    record = AttemptError(
        attempt=attempt,
        at=at,
        type=told.type,
        message=told.message,
        traceback=told.trace,
        worker=worker,
        started=started_ms,
        trace=trace,
    )
    return Failure(_encode(record), delay, told.type, told.message, told.trace, complaint)
