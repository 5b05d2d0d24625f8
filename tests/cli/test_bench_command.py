"""``jobq bench``: it counts its jobs, reports, and leaves nothing behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Said

FIGURES = ("enqueue_one", "enqueue_bulk", "drain", "pickup_p50_ms", "pickup_p99_ms", "redis_us")


@pytest.mark.slow
def test_it_measures_on_a_server_of_its_own(jobq: Callable[..., Said], monkeypatch: pytest.MonkeyPatch):
    queues = jobq("queues", "--json").out
    with monkeypatch.context() as patch:
        patch.setenv("JOBQ_REDIS_URL", "")
        said = jobq("bench", "--seconds", "0.05", "--json")
        assert said.code == 0, said.err
        [report] = said.json
        assert report["exactly_once"] is True
        assert report["drained"] >= 1000
        assert all(report[name] > 0 for name in FIGURES)
        said = jobq("bench", "--seconds", "0.01")
        assert "every job ran exactly once" in said.out
    assert jobq("queues", "--json").out == queues
