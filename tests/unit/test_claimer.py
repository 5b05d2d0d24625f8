"""The claimer: every state of a queue's demand with every event, and the claims that it must repeat."""

from __future__ import annotations

import pytest

from jobq.engine.model.backoff import pause
from jobq.engine.worker.claimer import Claimer, Demand

IDLE, READY, CLAIMING, AGAIN = Demand


@pytest.mark.parametrize(
    ("state", "came", "answered_more", "answered_all", "failed"),
    [
        (IDLE, READY, READY, READY, READY),
        (READY, READY, READY, READY, READY),
        (CLAIMING, AGAIN, READY, IDLE, READY),
        (AGAIN, AGAIN, READY, READY, READY),
    ],
)
def test_demand(state: Demand, came: Demand, answered_more: Demand, answered_all: Demand, failed: Demand):
    assert state.came() is came
    assert state.sent() is CLAIMING
    assert state.answered(more=True) is answered_more
    assert state.failed() is failed
    if state in (CLAIMING, AGAIN):
        assert state.answered(more=False) is answered_all


def test_a_claimer_counts_its_requests_and_repeats_the_one_that_got_no_answer():
    claimer = Claimer("w:0")
    assert not claimer.unanswered
    assert claimer.sent(5, repeated=False) == 1
    assert not claimer.unanswered, "it is on its way"
    claimer.failed(100.0)
    assert claimer.unanswered
    assert claimer.want == 5
    assert claimer.backoff.until == 100.0 + pause(1)
    assert claimer.sent(5, repeated=True) == 1
    claimer.failed(200.0)
    assert claimer.backoff.until == 200.0 + pause(2)
    assert claimer.sent(5, repeated=True) == 1
    claimer.answered()
    assert not claimer.unanswered
    assert (claimer.want, claimer.backoff.failures, claimer.backoff.until) == (0, 0, 0.0)
    assert claimer.sent(3, repeated=False) == 2
