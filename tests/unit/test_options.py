"""Options: given in seconds, stored in ms, each with a range and an error text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from jobq import Backoff, Options, Queue, StoredBackoff
from jobq.engine.model.options import check, check_type, merge
from jobq.engine.model.times import to_ms
from jobq.engine.store.keys import check_queue_name
from jobq.errors import InvalidJob

TEN_YEARS = 316_224_000_000


@pytest.mark.parametrize(
    ("given", "ms"),
    [
        (1, 1000),
        (0.0004, 0),
        (0.0006, 1),
        (2.5, 2500),
        (timedelta(minutes=1), 60_000),
        (timedelta(microseconds=700), 1),
    ],
)
def test_seconds_in_ms(given: Any, ms: int):
    assert to_ms(given) == ms


@pytest.mark.parametrize("given", ["soon", "5 x", "-5s", None, True, False, float("inf"), float("nan"), [], object()])
def test_values_that_are_not_times_are_refused(given: Any):
    with pytest.raises(InvalidJob, match="is not a time: give seconds as a number, a timedelta, or a text such as"):
        to_ms(given)


def test_given_options_override_those_of_the_task():
    base = Options(priority=3, timeout=1000, key="k")
    merged = merge(base, {"delay": 1.5, "timeout": None, "key_ttl": timedelta(seconds=2), "retention": 0})
    assert merged == Options(priority=3, delay=1500, timeout=None, key="k", key_ttl=2000, retention=0)
    assert merge(base, {}) is base


@pytest.mark.parametrize(
    ("backoff", "kept"),
    [
        (Backoff(delay=5), StoredBackoff(delay=5000)),
        (Backoff(delay=timedelta(seconds=5)), StoredBackoff(delay=5000)),
        (Backoff("fixed", 0.5, jitter=0), StoredBackoff("fixed", 500, jitter=0)),
        (Backoff("fixed", 7200), StoredBackoff("fixed", 7_200_000)),
        ([1, 5, timedelta(minutes=1)], StoredBackoff(delays=(1000, 5000, 60_000))),
        ((0.5,), StoredBackoff(delays=(500,))),
        (Backoff(delays=[1], jitter=0), StoredBackoff(delays=(1000,), jitter=0)),
        (None, None),
    ],
)
def test_backoffs_in_seconds_are_kept_in_ms(backoff: Any, kept: StoredBackoff | None):
    assert merge(Options(backoff=StoredBackoff(delay=7)), {"backoff": backoff}).backoff == kept


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"type": "linear"}, "backoff.type is 'linear': it takes 'fixed' or 'exponential'"),
        ({"delay": "soon"}, "backoff.delay: 'soon' is not a time: give seconds as a number, a timedelta, or a text"),
        ({"delay": True}, "backoff.delay: True is not a time"),
        ({"delay": -1}, "backoff.delay is -1: it takes 0 to 316224000 seconds"),
        ({"delay": 5000, "max": 100}, "backoff.delay is 5000 s and backoff.max is 100 s: give a max that is not"),
        ({"jitter": 1.1}, "backoff.jitter is 1.1: it takes 0 to 1"),
        ({"jitter": "much"}, "backoff.jitter is 'much': it takes 0 to 1"),
        ({"jitter": True}, "backoff.jitter is True: it takes 0 to 1"),
        ({"delays": 5}, "backoff.delays is 5: it takes a list of seconds or timedeltas"),
        ({"delays": "155"}, "backoff.delays is '155': it takes a list"),
        ({"delays": [1, -5]}, r"backoff.delays\[1\] is -5: it takes 0 to 316224000 seconds"),
        ({"delays": [1] * 101}, "backoff.delays has 101 delays: it takes at most 100, and the last one repeats"),
    ],
)
def test_a_backoff_that_is_refused_when_it_is_made(made: dict[str, Any], says: str):
    with pytest.raises(InvalidJob, match=says):
        Backoff(**made)


@pytest.mark.parametrize("backoff", [5, "5s", [], {"type": "fixed"}, True, {1, 2}])
def test_values_that_are_not_backoffs_are_refused(backoff: Any):
    with pytest.raises(InvalidJob, match="it takes a Backoff, or a list of delays in seconds"):
        merge(Options(), {"backoff": backoff})


def test_an_unknown_option_is_refused():
    with pytest.raises(
        InvalidJob, match="no such option: prio; there are priority, delay, attempts, timeout, lifo, key"
    ):
        merge(Options(), {"prio": 1})  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(priority=-1024),
        Options(priority=1023),
        Options(delay=TEN_YEARS),
        Options(attempts=1),
        Options(attempts=1000),
        Options(attempts=None),
        Options(timeout=1),
        Options(timeout=TEN_YEARS),
        Options(retention=0),
        Options(retention=TEN_YEARS),
        Options(key="k", key_ttl=1),
        Options(key="k" * 512),
        Options(key="\u00e9" * 256),
        Options(lifo=True),
        Options(metadata={"a": [1, {"b": None}]}),
        Options(backoff=StoredBackoff("fixed", delay=0, max=0, jitter=0)),
        Options(backoff=StoredBackoff("exponential", delay=TEN_YEARS, max=TEN_YEARS, jitter=1)),
    ],
)
def test_valid_options_are_accepted(options: Options):
    check(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"priority": -1025}, r"priority is -1025: it takes -1024 to 1023 \(a lower number runs first\)"),
        ({"priority": 1024}, "priority is 1024: it takes -1024 to 1023"),
        ({"priority": 1.0}, "priority is 1.0: it takes"),
        ({"priority": True}, "priority is True: it takes"),
        ({"priority": "high"}, "priority is 'high': it takes"),
        ({"priority": "x" * 999}, "priority is 'x{79}: it takes"),
        ({"delay": -1}, rf"delay is -1: it takes 0 to {TEN_YEARS} ms \(ten years\)"),
        ({"delay": TEN_YEARS + 1}, rf"delay is {TEN_YEARS + 1}: it takes 0 to"),
        ({"attempts": 0}, r"attempts is 0: it takes 1 to 1000 \(the total number of runs\), or None"),
        ({"attempts": 1001}, "attempts is 1001: it takes 1 to 1000"),
        ({"timeout": 0}, f"timeout is 0: it takes 1 to {TEN_YEARS} ms"),
        ({"retention": -1}, f"retention is -1: it takes 0 to {TEN_YEARS} ms"),
        ({"key": "k", "key_ttl": 0}, "key_ttl is 0: it takes 1 to"),
        ({"key_ttl": 5}, "key_ttl is given without key: it says how long the key holds"),
        ({"key": ""}, "key: it takes 1 to 512 bytes without control characters"),
        ({"key": "k" * 513}, "key: it takes 1 to 512 bytes without control characters"),
        ({"key": "\u00e9" * 257}, "key: it takes 1 to 512 bytes without control characters"),
        ({"key": "two\nlines"}, "key: it takes 1 to 512 bytes without control characters"),
        ({"key": "tab\tbed"}, "key: it takes 1 to 512 bytes without control characters"),
        ({"key": "\x7f"}, "key: it takes 1 to 512 bytes without control characters"),
        ({"key": "\ud800"}, "key: it contains lone surrogates"),
        ({"key": 5}, "key is 5: it takes a text"),
        ({"lifo": 1}, "lifo is 1: it takes True or False"),
        ({"lifo": None}, "lifo is None: it takes True or False"),
        ({"metadata": [1]}, r"metadata is \[1\]: it takes a dict"),
        ({"metadata": "text"}, "metadata is 'text': it takes a dict"),
        ({"backoff": {"type": "fixed"}}, r"backoff is \{'type': 'fixed'\}: it takes a StoredBackoff"),
        ({"backoff": StoredBackoff("linear")}, "backoff.type is 'linear': it takes 'fixed' or 'exponential'"),  # type: ignore[arg-type]
        ({"backoff": StoredBackoff(delay=-1)}, f"backoff.delay is -1: it takes 0 to {TEN_YEARS} ms"),
        ({"backoff": StoredBackoff(max=-1)}, f"backoff.max is -1: it takes 0 to {TEN_YEARS} ms"),
        ({"backoff": StoredBackoff(jitter=1.1)}, "backoff.jitter is 1.1: it takes 0 to 1"),
        ({"backoff": StoredBackoff(jitter=float("nan"))}, "backoff.jitter is nan: it takes 0 to 1"),
        ({"backoff": StoredBackoff(delays=(1, -1))}, f"one of backoff.delays is -1: it takes 0 to {TEN_YEARS} ms"),
        ({"backoff": StoredBackoff(delays=(1,) * 101)}, "backoff.delays has 101 delays: it takes 100 at most"),
        ({"backoff": Backoff()}, r"it takes a StoredBackoff, as Backoff\(...\).stored\(\) gives"),
        ({"backoff": StoredBackoff(jitter="much")}, "backoff.jitter is 'much': it takes 0 to 1"),  # type: ignore[arg-type]
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(InvalidJob, match=message):
        check(Options(**options))


@pytest.mark.parametrize("name", ["send", "a" * 128, "mail.send v2", "\u00e9"])
def test_valid_type_names_are_accepted(name: str):
    check_type(name)


@pytest.mark.parametrize("name", ["", "a" * 129, "two\nlines", "\x00", "\ud800"])
def test_invalid_type_names_are_refused(name: str):
    with pytest.raises(InvalidJob, match=r"type '.*: it takes 1 to 128 printable characters"):
        check_type(name)


@pytest.mark.parametrize("name", ["email", "a", "0", "A.b_c-d", "a" * 128])
def test_valid_queue_names_are_accepted(name: str):
    assert check_queue_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "a:b", "a{b}", "a b", "a\n", "\u00e9", "a" * 129])
def test_invalid_queue_names_are_refused(name: str):
    with pytest.raises(InvalidJob, match=r"queue name '.*: 1 to 128 letters, digits, '\.', '_' or '-', starting with"):
        Queue(name, "unix:///nowhere")


def test_a_point_in_time_instead_of_a_delay():
    at = datetime(2033, 5, 18, 3, 33, 20, tzinfo=UTC)
    for moment in (at, at.astimezone(timezone(timedelta(hours=-5)))):
        assert merge(Options(delay=5000), {"run_at": moment}) == Options(run_at=2_000_000_000_000)
    assert merge(Options(run_at=5), {"delay": 2}) == Options(delay=2000)
    with pytest.raises(InvalidJob, match="delay and run_at are both given"):
        merge(Options(), {"run_at": at, "delay": 1})
    with pytest.raises(InvalidJob, match="run_at has no timezone, so its hour is not known"):
        merge(Options(), {"run_at": at.replace(tzinfo=None)})
    with pytest.raises(InvalidJob, match="run_at is 5: it takes a datetime with a timezone"):
        merge(Options(), {"run_at": 5})  # type: ignore[typeddict-item]


async def test_a_point_in_time_that_is_too_far_ahead(queue: Queue):
    with pytest.raises(InvalidJob, match="run_at is more than ten years ahead"):
        await queue.enqueue("t", run_at=datetime(2099, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"keep_completed": None}, "keep_completed is None: it takes a whole number of 0 or more"),
        ({"keep_completed": -1}, "keep_completed is -1: it takes a whole number of 0 or more"),
        ({"keep_failed": True}, "keep_failed is True: it takes a whole number of 0 or more"),
        ({"keep_failed": 1.5}, "keep_failed is 1.5: it takes a whole number of 0 or more"),
        ({"keep_for": -5}, "keep_for is -5: it takes 0 seconds or more, a timedelta"),
        ({"keep_for": True}, "keep_for is True: it takes 0 seconds or more, a timedelta"),
        ({"keep_for": float("nan")}, "nan is not a time"),
        ({"durability_timeout": -1}, "durability_timeout is -1: it takes 0 seconds or more"),
        ({"unserved_for": timedelta(days=-1)}, "unserved_for is .*: it takes 0 seconds or more"),
        ({"max_payload": 0}, "max_payload is 0: it takes a whole number of 1 or more"),
        ({"max_result": -5}, "max_result is -5: it takes a whole number of 1 or more"),
    ],
)
def test_invalid_arguments_of_a_queue_are_refused(given: dict[str, Any], says: str):
    with pytest.raises(InvalidJob, match=says):
        Queue("test", **given)


async def test_metadata_is_bounded_as_payloads_are(redis_url: str):
    async with Queue("test", redis_url, max_payload=100) as queue:
        await queue.enqueue("t", metadata={"a": "x" * 80})
        with pytest.raises(InvalidJob, match="metadata has 108 bytes, the limit is max_payload, 100"):
            await queue.enqueue("t", metadata={"a": "x" * 100})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"timeout": 0}, r"timeout is 0: it takes 0\.001 to 316224000 seconds"),
        ({"delay": -2.5}, r"delay is -2\.5: it takes 0 to 316224000 seconds"),
    ],
)
def test_times_are_refused_in_the_unit_in_which_they_were_given(given: Any, says: str):
    with pytest.raises(InvalidJob, match=says):
        merge(Options(), given)
