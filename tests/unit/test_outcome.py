"""The consequence of an error: another attempt or the end, and a record of bounded size without secrets."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hostile import HOSTILE

from jobq import AttemptError, Discard, Retry, StoredBackoff
from jobq.engine.model.job import DELAY_MAX_MS, Spec
from jobq.engine.model.outcome import MESSAGE_MAX, TRACEBACK_MAX, Failure, encode_result, judge
from jobq.errors import InvalidPayload, InvalidResult, LeaseExpired, ProcessCrashed, RemoteError, Timeout

SPEC = Spec("t", 0, attempts=3, backoff=StoredBackoff(delay=100, jitter=0))


def raised(error: BaseException) -> BaseException:
    """The error with a traceback, as if a handler had raised it."""
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - any error may be passed
        return caught


def record(failure: Failure) -> AttemptError:
    assert b"\n" not in failure.record, "one line of the errors column"
    return msgspec.json.decode(failure.record, type=AttemptError)


def verdict(error: BaseException, attempt: int = 1, spec: Spec = SPEC) -> Failure:
    return judge(spec, attempt, raised(error), "worker-1", 1234)


@pytest.mark.parametrize(("attempt", "delay"), [(1, 100), (2, 200), (3, None), (4, None)])
def test_attempts_are_the_total_number_of_runs(attempt: int, delay: int | None):
    assert verdict(ValueError("no"), attempt).delay == delay


@pytest.mark.parametrize(
    ("errors", "delay"),
    [
        ([ValueError(), Discard("enough")], None),
        ([ValueError(), ExceptionGroup("inner", [Discard("enough"), Retry(delay=1)])], None),
        ([ValueError(), Retry(delay=1), ExceptionGroup("inner", [Retry(delay=2)])], 2000),
        ([ValueError(), KeyError()], 100),
    ],
)
def test_a_task_group_is_judged_by_the_errors_in_it(errors: list[Exception], delay: int | None):
    assert verdict(ExceptionGroup("unhandled errors in a TaskGroup", errors)).delay == delay


def test_a_job_with_one_attempt_is_not_retried():
    assert verdict(ValueError("no"), 1, Spec("t", 0, attempts=1)).delay is None


@pytest.mark.parametrize(
    ("error", "delay"),
    [
        (Discard("enough"), None),
        (InvalidPayload("an old job"), None),
        (InvalidResult("a socket"), None),
        (Timeout("5 s"), 100),
        (LeaseExpired("gone"), 100),
        (ProcessCrashed("-9"), 100),
        (Retry(), 100),
        (Retry(delay=0), 0),
        (Retry(delay=2.5), 2500),
        (Retry(delay=timedelta(minutes=1)), 60_000),
        (Retry(delay=-5), 0),
        (Retry(delay=1e300), DELAY_MAX_MS),
        (Retry(delay=float("inf")), 100),
        (Retry(delay=float("nan")), 100),
        (Retry(delay="soon"), 100),  # type: ignore[arg-type]
        (RemoteError("pkg.Error", "no", None, final=False, delay=None), 100),
        (RemoteError("pkg.Error", "no", None, final=False, delay=700), 700),
        (RemoteError("Discard", "no", None, final=True, delay=None), None),
        (KeyboardInterrupt(), 100),
    ],
    ids=repr,
)
def test_delay(error: BaseException, delay: int | None):
    assert verdict(error).delay == delay


@pytest.mark.parametrize("error", [Retry("once more", delay=5), RemoteError("E", "m", None, final=False, delay=5)])
def test_asking_for_a_retry_is_charged_like_any_other(error: BaseException):
    assert verdict(error, attempt=3).delay is None


def test_record():
    failure = verdict(ValueError("no"), attempt=2)
    kept = record(failure)
    assert (kept.attempt, kept.at, kept.type, kept.message, kept.worker) == (2, 1234, "ValueError", "no", "worker-1")
    assert kept.traceback is not None
    assert kept.traceback.startswith("Traceback (most recent call last):")
    assert kept.traceback.endswith("ValueError: no\n")
    assert (failure.type, failure.message) == ("ValueError", "no")


class Outer:
    class Error(Exception):
        """Nested."""


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError(), "ValueError"),
        (Discard(), "Discard"),
        (Timeout(), "Timeout"),
        (msgspec.DecodeError(), "msgspec.DecodeError"),
        (Outer.Error(), f"{__name__}.Outer.Error"),
        (RemoteError("pkg.Error", "no", None, final=False, delay=None), "pkg.Error"),
    ],
)
def test_type_names(error: BaseException, name: str):
    assert verdict(error).type == name


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_exception_whose_attributes_raise_still_ends_its_run(kind: str):
    failure = verdict(HOSTILE[kind]())
    assert failure.delay == 100, "the backoff's"
    kept = record(failure)
    assert kept.type
    assert len(failure.record) < 65_536, "the column's bound"
    assert "test_outcome.py" in (kept.traceback or ""), "where it was raised"


@pytest.mark.parametrize("kind", ["str raises", "str gives None"])
def test_a_broken_str_is_named(kind: str):
    error = HOSTILE[kind]()
    assert verdict(error).message == f"<{type(error).__name__} whose str() fails>"


def test_lone_surrogates_have_no_utf8():
    kept = record(verdict(ValueError("half of \ud83d")))
    assert kept.message == "half of \\ud83d"
    assert "half of \\ud83d" in (kept.traceback or "")


def test_passwords_in_urls_stay_out():
    failure = verdict(OSError("no route to redis://user:hunter2@host"))
    assert failure.message == "no route to redis://user:***@host"
    assert b"hunter2" not in failure.record


def deep(levels: int) -> None:
    if levels:
        return deep(levels - 1)
    raise ValueError("x" * 100_000)


def test_size_is_bounded():
    """The message and the traceback are bounded, and so is the record: the errors column must hold many attempts."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - it is the error of the test
        deep(200)
    kept = record(judge(SPEC, 1, caught.value, "w", 0))
    assert kept.traceback is not None
    assert len(kept.message) <= MESSAGE_MAX + 50
    assert len(kept.traceback) <= TRACEBACK_MAX + 50
    assert "characters left out" in kept.message
    assert kept.traceback.startswith("Traceback (most recent call last):")


def test_the_worst_record_still_fits_the_column():
    """Every character is escaped. The column's bound is 65,536 bytes, and the last record is kept as a whole."""
    kept = verdict(ValueError("\x01" * 100_000)).record
    assert len(kept) < 65_536


def test_a_traceback_contains_the_cause():
    def handler() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    with pytest.raises(ValueError, match="second") as caught:
        handler()
    trace = record(judge(SPEC, 1, caught.value, "w", 0)).traceback or ""
    assert "KeyError: 'first'" in trace
    assert "The above exception was the direct cause" in trace


def test_an_error_without_frames_of_a_handler_has_no_traceback():
    assert record(judge(SPEC, 1, LeaseExpired("gone"), "w", 0)).traceback is None


def test_a_childs_traceback_is_its_own():
    failure = verdict(RemoteError("pkg.Error", "no", "Traceback of the child\n", final=False, delay=None))
    assert record(failure).traceback == "Traceback of the child\n"


def test_by_default_now_is_now():
    assert record(judge(SPEC, 1, ValueError(), "w")).at > 1_700_000_000_000


@pytest.mark.parametrize(("value", "encoded"), [(None, b"null"), ([], b"[]"), (2**70, str(2**70).encode())])
def test_results(value: Any, encoded: bytes):
    assert encode_result(value) == encoded
    assert bytes(encode_result(msgspec.Raw(encoded))) == encoded


class Loop(list[Any]):
    """Contains itself."""

    def __init__(self) -> None:
        super().__init__([self])


@pytest.mark.parametrize(
    "value", [object(), {1, object()}, Loop(), {("a", "b"): 1}, "\ud83d"], ids=lambda v: type(v).__name__
)
def test_results_without_a_json_form(value: Any):
    with pytest.raises(InvalidResult, match="the handler's result cannot be encoded as JSON"):
        encode_result(value)


def test_a_result_over_the_limit_is_refused() -> None:
    assert encode_result("x" * 8, 10) == b'"xxxxxxxx"'
    with pytest.raises(InvalidResult, match="the handler's result has 11 bytes, the limit is 10; store it elsewhere"):
        encode_result("x" * 9, 10)
