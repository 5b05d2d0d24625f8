"""The time until the next attempt, which is within its bounds for any backoff and any attempt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobq import StoredBackoff
from jobq.engine.model.backoff import DEFAULT, delay_ms
from jobq.engine.model.job import ATTEMPTS_MAX, DELAY_MAX_MS

PLANS = st.builds(
    StoredBackoff,
    type=st.sampled_from(["fixed", "exponential"]),
    delay=st.integers(0, DELAY_MAX_MS),
    max=st.integers(0, DELAY_MAX_MS),
    jitter=st.floats(0, 1),
)
ATTEMPTS = st.integers(1, ATTEMPTS_MAX)
DRAWS = st.floats(0, 1, exclude_max=True)


@given(PLANS, ATTEMPTS, DRAWS)
def test_bounds(plan: StoredBackoff, attempt: int, drawn: float):
    delay = delay_ms(plan, attempt, lambda: drawn)
    full = plan.delay if plan.type == "fixed" else min(plan.max, plan.delay * 2 ** (attempt - 1))
    assert isinstance(delay, int)
    assert round(full * (1 - plan.jitter)) - 1 <= delay <= full


@given(PLANS, ATTEMPTS, DRAWS)
def test_it_never_falls_from_attempt_to_attempt(plan: StoredBackoff, attempt: int, drawn: float):
    assert delay_ms(plan, attempt, lambda: drawn) <= delay_ms(plan, attempt + 1, lambda: drawn)


@pytest.mark.parametrize(
    ("plan", "delays"),
    [
        (StoredBackoff(jitter=0), [1000, 2000, 4000, 8000]),
        (StoredBackoff(delay=10, max=35, jitter=0), [10, 20, 35, 35]),
        (StoredBackoff("fixed", delay=700, max=5, jitter=0), [700, 700, 700, 700]),
        (StoredBackoff(delay=0, jitter=0), [0, 0, 0, 0]),
        (StoredBackoff(jitter=1), [500, 1000, 2000, 4000]),
        (StoredBackoff(delays=(10, 50), jitter=0), [10, 50, 50, 50]),
        (StoredBackoff(delays=(10, 50, 5), jitter=1), [5, 25, 2, 2]),
        (None, [875, 1750, 3500, 7000]),
    ],
)
def test_delays(plan: StoredBackoff | None, delays: list[int]):
    assert [delay_ms(plan, attempt, lambda: 0.5) for attempt in (1, 2, 3, 4)] == delays


def test_the_default_waits_an_hour_at_most():
    assert delay_ms(DEFAULT, ATTEMPTS_MAX, lambda: 0.0) == 3_600_000


def test_it_draws_by_itself():
    assert len({delay_ms(StoredBackoff(delay=10**9, max=10**9), 1) for _ in range(20)}) > 1
