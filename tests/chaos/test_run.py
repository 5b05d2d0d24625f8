"""The short seeded chaos run; longer ones: ``python -m tests.chaos --seed N --minutes M``."""

from __future__ import annotations

import pytest

from tests.chaos.run import run


@pytest.mark.chaos
@pytest.mark.timeout(400)
async def test_nothing_acknowledged_is_lost_in_a_queue_of_partitions() -> None:
    """The same, with partitions that are added and given up, a rule for the whole queue, and pauses that were cut."""
    report = await run(seed=2, minutes=0.8, partitions=3)
    assert not report.wrong, report.text()
    print(report.text())


@pytest.mark.chaos
@pytest.mark.timeout(400)
async def test_nothing_acknowledged_is_lost() -> None:
    """Runs a plan with every fault in it. The report names the seed, and the cost of each fault."""
    report = await run(seed=1, minutes=3)
    assert not report.wrong, report.text()
    print(report.text())
