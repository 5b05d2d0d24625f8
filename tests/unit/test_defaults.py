"""Default options of a queue, and clear errors for values that a newcomer gives."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Concurrency, Context, InvalidJob, Queue, RateLimited, inject
from jobq.engine.model.job import PLAIN, Options
from jobq.engine.model.options import over, queue_options
from jobq.engine.queue.published import completed

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULTS: Any = {"attempts": 7, "timeout": "30s", "priority": 4, "backoff": [1, 2], "retention": 60, "expires": "1h"}


def test_a_call_comes_before_the_task_and_the_task_before_the_queue():
    queue = Queue("q", defaults=DEFAULTS)

    @queue.task(attempts=5)
    async def send(ctx: Context = inject) -> None: ...

    options = queue.new("send", priority=1).options
    assert (options.priority, options.attempts, options.timeout, options.expires) == (1, 5, 30_000, 3_600_000)
    assert queue.new("send", timeout=None).options.timeout is None
    assert send.defaults.attempts == 5


def test_a_producer_without_tasks_uses_those_of_its_queue():
    options = Queue("q", defaults=DEFAULTS).new("send", attempts=2).options
    assert (options.attempts, options.timeout, options.priority) == (2, 30_000, 4)


def test_published_options_come_before_those_of_the_queue():
    base = queue_options(DEFAULTS)
    known = over(base, Options(attempts=5, delay=100, deadline_at=9))
    assert (known.attempts, known.delay, known.timeout, known.priority, known.deadline) == (5, 100, 30_000, 4, None)
    assert over(PLAIN, known) is known
    new = Queue("q", defaults=DEFAULTS).new("send", expires=datetime(2030, 1, 1, tzinfo=UTC))
    done = completed(new, known).options
    assert (done.attempts, done.expires, done.expires_at) == (5, None, 1_893_456_000_000)


@pytest.mark.parametrize(
    ("defaults", "text"),
    [
        ({"attempts": 0}, "defaults: attempts is 0: it takes 1 to 1000"),
        ({"key": "k"}, "defaults has key: a queue takes priority, delay, attempts"),
        ({"expires": datetime(2030, 1, 1, tzinfo=UTC)}, "defaults has a point in time for expires"),
        ({"timeout": "soon"}, "defaults: timeout: 'soon' is not a time"),
        (5, "defaults is 5: it takes a dict of options"),
    ],
)
def test_bad_defaults_are_refused_when_the_queue_is_made(defaults: Any, text: str):
    with pytest.raises(InvalidJob, match=text):
        Queue("q", defaults=defaults)


@pytest.mark.parametrize("header", ["Fri, 31 Dec 1999 23:59:59 GMT", "30", " 5m "])
def test_a_retry_after_header_is_taken_as_it_comes(header: str):
    assert RateLimited(retry_after=header).delay == {"30": 30, "5m": 300}.get(header.strip(), 0)


def test_an_http_date_counts_from_now():
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    assert 3590 < RateLimited(retry_after=later).delay <= 3600  # pyright: ignore[reportOperatorIssue]


@pytest.mark.parametrize("header", ["tomorrow", "Fri, 31 Dec 1999 23:59:59 +99999999999999"])
def test_a_retry_after_that_is_no_time_is_refused_where_it_is_raised(header: str):
    with pytest.raises(ValueError, match=rf"a text such as '30' or '5m', or an HTTP date, not '{re.escape(header)}'"):
        RateLimited(retry_after=header)


def _task(**given: Any) -> Callable[[], Any]:
    return lambda: Queue("q").task(**given)(_handler)


def _handler() -> None: ...


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (_task(limits=Concurrency(2)), r"limits is Concurrency\(.*: it takes a list, such as limits=\[Concurrency"),
        (_task(limits="stripe"), "limits is 'stripe': it takes a list"),
        (lambda: Queue("q", limits=Concurrency(2)), "it takes a list, such as limits="),  # pyright: ignore[reportArgumentType]
        (_task(costs=5), "costs is 5: it takes a dict of units, such as {'tokens': 500}"),
        (lambda: Queue("q").new("t", limits=5), "limits is 5: it takes a list, such as"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_a_value_of_the_wrong_kind_is_a_sentence(make: Callable[[], Any], text: str):
    with pytest.raises(InvalidJob, match=text):
        make()


def test_a_hook_without_its_event_is_a_sentence():
    async def hook(event: Any) -> None: ...

    with pytest.raises(TypeError, match=r'@queue\.on needs the event: write @queue\.on\("final_failure"\)'):
        Queue("q").on(hook)  # pyright: ignore[reportArgumentType]


def test_an_unknown_option_names_no_internal_ones():
    with pytest.raises(InvalidJob, match="no such option: prio; there are priority") as refused:
        Queue("q").new("t", prio=1)  # pyright: ignore[reportCallIssue]
    named = set(re.findall(r"\w+", str(refused.value)))
    assert not named & {"limits_by", "group_by", "costs_by", "partition_from"}
