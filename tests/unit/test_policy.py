"""retry_on, discard_on, and backoff functions: how a task decides about its retries."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest

from jobq import Discard, LeaseExpired, Options, ProcessCrashed, Queue, Retry, StoredBackoff, Timeout
from jobq.engine.model.job import Spec
from jobq.engine.model.options import merge
from jobq.engine.model.outcome import Failure, judge, type_name
from jobq.engine.model.policy import retry_policy
from jobq.errors import InvalidJob

SPEC = Spec("t", 0, attempts=3)


def after(error: BaseException, attempt: int = 1, spec: Spec = SPEC, **given: Any) -> Failure:
    return judge(spec, attempt, error, "w", 0, policy=retry_policy(given, type_name))


class Ours(ConnectionError):
    """A subclass."""


@pytest.mark.parametrize(
    ("given", "error", "again"),
    [
        ({"retry_on": (ConnectionError,)}, ConnectionError(), True),
        ({"retry_on": (ConnectionError,)}, Ours(), True),
        ({"retry_on": ConnectionError}, ValueError(), False),
        ({"retry_on": [Ours]}, ConnectionError(), False),
        ({"retry_on": (TimeoutError,)}, Timeout("the run took too long"), True),
        ({"retry_on": (ValueError,)}, Timeout("the run took too long"), False),
        ({"retry_on": ()}, ValueError(), False),
        ({"retry_on": ()}, Retry("please"), True),
        ({"retry_on": ()}, LeaseExpired("gone"), True),
        ({"retry_on": ()}, ProcessCrashed("gone"), True),
        ({"retry_on": (Discard,)}, Discard("enough"), False),
        ({"discard_on": (ValueError,)}, ValueError(), False),
        ({"discard_on": {ValueError}}, UnicodeDecodeError("utf-8", b"", 0, 1, ""), False),
        ({"discard_on": ValueError}, KeyError(), True),
        ({"discard_on": (ProcessCrashed,)}, ProcessCrashed("gone"), False),
        ({"retry_on": (OSError,), "discard_on": (FileNotFoundError,)}, FileNotFoundError(), False),
        ({"retry_on": (OSError,), "discard_on": (FileNotFoundError,)}, OSError(), True),
        ({"retry_on": (OSError,)}, ExceptionGroup("g", [OSError(), ExceptionGroup("h", [Ours()])]), True),
        ({"retry_on": (OSError,)}, ExceptionGroup("g", [OSError(), ValueError()]), False),
        ({"discard_on": (ValueError,)}, ExceptionGroup("g", [OSError(), ExceptionGroup("h", [ValueError()])]), False),
        ({"discard_on": (ValueError,)}, ExceptionGroup("g", [OSError()]), True),
    ],
)
def test_which_errors_are_retried(given: dict[str, Any], error: BaseException, again: bool):
    assert (after(error, **given).delay is not None) is again


def test_a_function_says_how_long_to_wait():
    def backoff(attempt: int, error: BaseException) -> float:
        return attempt * (10 if isinstance(error, ConnectionError) else 1)

    assert after(ValueError(), 2, backoff=backoff).delay == 2000
    assert after(ConnectionError(), 2, backoff=backoff).delay == 20_000
    assert after(ValueError(), 3, backoff=backoff).delay is None, "the attempts are used up"
    assert after(Retry(delay=7), 1, backoff=backoff).delay == 7000, "the handler's own wish counts first"
    own = Spec("t", 0, backoff=StoredBackoff("fixed", 5, jitter=0))
    assert after(ValueError(), 2, own, backoff=backoff).delay == 5, "the job's own backoff counts first"
    assert after(ValueError(), backoff=lambda *_: timedelta(minutes=1)).delay == 60_000
    assert 750 <= (after(ValueError(), backoff=lambda *_: None).delay or 0) <= 1000


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def boom(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("backoff", "says"),
    [
        (lambda *_: boom(KeyError("x")), "KeyError: 'x'"),
        (lambda *_: boom(SystemExit(3)), "SystemExit: 3"),
        (lambda *_: "soon", "'soon' is not a time"),
        (lambda *_: True, "True is not a time"),
        (lambda *_: math.nan, "nan is not a time"),
        (lambda *_: -5, "it returned -5, but must return 0 seconds to ten years"),
        (lambda *_: 1e12, "it returned 1000000000000.0, but must"),
        (lambda *_: Hostile(), "RuntimeError: no repr"),
    ],
)
def test_a_function_that_fails_is_replaced_by_the_default(backoff: Any, says: str):
    failure = after(ValueError(), backoff=backoff)
    assert 750 <= (failure.delay or 0) <= 1000
    assert failure.complaint is not None
    assert says in failure.complaint


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"retry_on": "TimeoutError"}, "retry_on has 'TimeoutError': it takes classes of exceptions"),
        ({"retry_on": (int,)}, "retry_on has <class 'int'>: it takes classes of exceptions"),
        ({"discard_on": ValueError()}, r"discard_on has ValueError\(\): it takes classes of exceptions"),
        ({"discard_on": 5}, "discard_on has 5: it takes classes of exceptions"),
        ({"backoff": lambda attempt: attempt}, "the backoff function does not take"),
    ],
)
def test_invalid_retry_rules_are_refused_at_decoration(given: dict[str, Any], says: str):
    with pytest.raises(TypeError, match=says):
        Queue("test").task(**given)(print)


def test_an_async_backoff_function_is_refused():
    async def backoff(attempt: int, error: BaseException) -> float:
        return 1

    with pytest.raises(TypeError, match="backoff is an async function"):
        retry_policy({"backoff": backoff}, type_name)


def test_a_backoff_function_is_refused_as_an_option_of_a_job():
    with pytest.raises(InvalidJob, match="a backoff function cannot be stored with a job: give it to the task"):
        merge(Options(), {"backoff": lambda *_: 5})  # type: ignore[typeddict-item]


def test_no_limit_of_attempts():
    failure = after(ValueError(), 10**6, Spec("t", 0, attempts=None, backoff=StoredBackoff(jitter=0)))
    assert failure.delay == 3_600_000
    assert after(Discard("enough"), 10**6, Spec("t", 0, attempts=None)).delay is None
