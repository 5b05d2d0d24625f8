"""Programs without type checks pass a number, None or a list as a name. The refusal shows what they passed."""

from __future__ import annotations

from typing import Any

import pytest

from jobq import Concurrency, InvalidJob, InvalidQuery, Queue, Rate, State
from jobq.engine.model.groups import check_group_name
from jobq.engine.model.limits import check_rule_name
from jobq.engine.model.options import check_type
from jobq.engine.model.webhook import check_webhook_name
from jobq.engine.queue.pages import Pager
from jobq.engine.schedule.definition import check_schedule_name
from jobq.engine.worker.reserve import read_reserve

STRANGE: list[Any] = [5, None, ["a"], b"a", {"a": 1}, object]


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize(
    "check", [Queue, check_rule_name, check_group_name, check_type, check_webhook_name, check_schedule_name]
)
def test_a_name_that_is_no_text_is_refused(check: Any, strange: Any):
    with pytest.raises(InvalidJob) as refused:
        check(strange)
    assert repr(strange) in str(refused.value)


@pytest.mark.parametrize("limit", [Concurrency(1, name=5), Rate(1, per=1, name=["a"])])  # type: ignore[arg-type]
def test_so_is_the_name_of_a_rule_in_a_task(limit: Any):
    queue = Queue("names")
    with pytest.raises(InvalidJob, match="rule"):

        @queue.task(limits=[limit])
        async def send() -> None: ...


@pytest.mark.parametrize("strange", [5, ["a"], object()])
def test_a_reserve_that_is_no_text_or_mapping_is_refused(strange: Any):
    with pytest.raises(ValueError, match="reserve is"):
        read_reserve(strange, 10)


@pytest.mark.parametrize("strange", ["5", None, 2.5, 0, 1001])
async def test_the_limit_of_a_page_is_a_whole_number(strange: Any):
    unused: Any = None
    with pytest.raises(InvalidQuery, match="limit is"):
        await Pager(unused).page(unused, State.WAITING, None, strange, None)


@pytest.mark.parametrize("strange", [{"type": "t", "payload": 1}, "t", ("t", 1)])
async def test_jobs_of_a_bulk_are_made_by_the_queue(strange: Any):
    queue = Queue("names")
    with pytest.raises(InvalidJob, match=r"queue\.new"):
        await queue.enqueue_many([queue.new("t"), strange])
