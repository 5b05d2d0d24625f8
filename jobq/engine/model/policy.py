"""Rules of a task for retries. They are not stored with a job. They apply to all jobs that this code runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from jobq.engine.model.backoff import Backoff
from jobq.engine.model.job import DELAY_MAX_MS
from jobq.engine.model.times import to_ms

if TYPE_CHECKING:
    from jobq.engine.model.job import Seconds

    BackoffFunction = Callable[[int, BaseException], Seconds | None]
    """Called with the number of the failed attempt (from 1) and its error. None means the default backoff."""

ALWAYS_RETRIED = ("LeaseExpired", "ProcessCrashed", "Retry")
"""Errors that ``retry_on`` does not need to name: the run was cut off, or asks for another one."""


SNOOZES_MAX: Final = 1000
"""The default number of times that a job may be snoozed."""
RATE_LIMITED_MAX: Final = 1000
"""The default number of times that a job may be rate limited."""


class RetryPolicy:
    """Which errors are retried, and when.

    Classes are compared by name. The exceptions of child processes cannot always be recreated in the worker, and are
    treated like all others in this way.
    """

    __slots__ = ("backoff", "discard_on", "max_rate_limited", "max_snoozes", "retry_on")

    def __init__(
        self,
        retry_on: frozenset[str] | None,
        discard_on: frozenset[str],
        backoff: BackoffFunction | None,
        max_snoozes: int = SNOOZES_MAX,
        max_rate_limited: int = RATE_LIMITED_MAX,
    ) -> None:
        self.retry_on = retry_on
        self.discard_on = discard_on
        self.backoff = backoff
        self.max_snoozes = max_snoozes
        self.max_rate_limited = max_rate_limited

    def is_final(self, kinds: Sequence[Sequence[str]]) -> bool:
        """Whether no other attempt follows. ``kinds``: for each leaf of the error, the names of its classes.

        One leaf that must not be retried is enough, because the next attempt would fail with it again.
        """
        return any(self._is_final(names) for names in kinds)

    def _is_final(self, names: Sequence[str]) -> bool:
        if not self.discard_on.isdisjoint(names):
            return True
        return self.retry_on is not None and self.retry_on.isdisjoint(names) and names[0] not in ALWAYS_RETRIED

    def delay_ms(self, attempt: int, error: BaseException) -> tuple[int | None, str | None]:
        """The delay of the backoff function in ms, and a complaint if it cannot be used. Never raises."""
        if self.backoff is None:
            return None, None
        try:
            given = self.backoff(attempt, error)
            if given is None:
                return None, None
            delay = to_ms(given)
            if 0 <= delay <= DELAY_MAX_MS:
                return delay, None
            fault = f"it returned {given!r:.80}, but must return 0 seconds to ten years"
        except BaseException as raised:  # noqa: BLE001 - a user's function may raise anything, and the run must end
            fault = f"{type(raised).__name__}: {_text(raised)}"
        return None, f"the task's backoff function failed, and the default backoff is used: {fault}"


def _text(fault: BaseException) -> str:
    try:
        return str(fault)[:200]
    except BaseException:  # noqa: BLE001
        return "its text cannot be read"


def _bound(given: dict[str, Any], name: str, otherwise: int) -> int:
    most = given.pop(name, otherwise)
    if not isinstance(most, int) or isinstance(most, bool) or most < 0:
        raise TypeError(f"{name} is {most!r:.80}: it takes a whole number of 0 or more")
    return most


def retry_policy(given: dict[str, Any], name_of: Callable[[type], str]) -> RetryPolicy | None:
    """Take the rules that are not stored out of a task's options. None if there are none.

    :raises TypeError: a rule cannot be used.
    """
    retry_on, discard_on = given.pop("retry_on", None), given.pop("discard_on", None)
    snoozes = _bound(given, "max_snoozes", SNOOZES_MAX)
    rate_limited = _bound(given, "max_rate_limited", RATE_LIMITED_MAX)
    backoff = given.get("backoff")
    function = backoff if callable(backoff) and not isinstance(backoff, Backoff) else None
    if function is not None:
        del given["backoff"]
        if inspect.iscoroutinefunction(function):
            raise TypeError("backoff is an async function: it takes a plain one that returns seconds")
        try:
            inspect.signature(function).bind(1, Exception())
        except TypeError:
            raise TypeError("the backoff function does not take (attempt, error)") from None
        except ValueError:  # A function of C does not tell its parameters.
            pass
    if (
        retry_on is None
        and discard_on is None
        and function is None
        and (snoozes, rate_limited)
        == (
            SNOOZES_MAX,
            RATE_LIMITED_MAX,
        )
    ):
        return None
    return RetryPolicy(
        None if retry_on is None else _names("retry_on", retry_on, name_of),
        frozenset() if discard_on is None else _names("discard_on", discard_on, name_of),
        cast("Any", function),
        snoozes,
        rate_limited,
    )


def _names(option: str, given: Any, name_of: Callable[[type], str]) -> frozenset[str]:
    several = isinstance(given, Sequence | set | frozenset) and not isinstance(given, str)
    classes: list[Any] = list(cast("Sequence[Any]", given)) if several else [given]
    for one in classes:
        if not isinstance(one, type) or not issubclass(one, BaseException):
            raise TypeError(
                f"{option} has {one!r:.80}: it takes classes of exceptions, such as (TimeoutError, OSError)"
            )
    return frozenset(name_of(one) for one in classes)
