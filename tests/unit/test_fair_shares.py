"""Shares of a queue's rule: their sum, and who gets how much."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobq.engine.model.limits import Band, Rule
from jobq.engine.model.shares import BLOCKED, Usage, bursts_of, fair, goals, lowered, raised, share_of

NEEDS = st.lists(st.integers(0, 50), min_size=1, max_size=12)
RULES = st.builds(
    Rule,
    st.none() | st.integers(1, 40),
    st.lists(st.builds(Band, st.integers(1, 50), st.just(1000), st.integers(1, 30)), max_size=2).map(tuple),
)


@given(total=st.integers(0, 200), needs=NEEDS, turn=st.integers(0, 30))
def test_all_is_given_and_nobody_gets_more_while_another_lacks(total: int, needs: list[int], turn: int):
    given = fair(total, needs, turn)
    assert sum(given) == total
    lacking = [part for part, need in zip(given, needs, strict=True) if part < need]
    for part, need in zip(given, needs, strict=True):
        assert not lacking or part <= min(need, min(lacking) + 1)


def test_with_fewer_than_there_are_takers_each_gets_its_turn():
    given = [fair(1, [9, 9, 0, 9], turn) for turn in range(4)]
    assert {tuple(one) for one in given} == {(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0, 1)}


def test_a_busy_partition_gets_nearly_all():
    rule = Rule(100, (Band(1000, 1000, 100),))
    usages = [Usage(0, 5000, None), *[Usage(0, 0, None)] * 15]
    [busy, *others] = goals(rule, usages, 0)
    assert (busy.concurrency, busy.rate) == (100, (Band(1, 1, 100),))
    assert set(others) == {BLOCKED}
    [busy, *others] = goals(Rule(1600), usages, 0)
    assert busy.concurrency == 1525
    assert {other.concurrency for other in others} == {5}, "a first job need not wait"


@given(
    rule=RULES,
    parts=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 99)), min_size=2, max_size=6),
)
def test_all_shares_together_never_exceed_the_rule(rule: Rule, parts: list[tuple[int, int, int]]):
    """Whatever the shares are, once they were lowered and raised."""
    start = goals(rule, [Usage(0, waiting, None) for _, waiting, _ in parts], 0)
    # A partition may run more than its share only if the share was lowered, and another one has not got these slots.
    usages = [
        Usage(min(running, share.concurrency or 0) if rule.concurrency is not None else running, waiting, share)
        for (running, waiting, _), share in zip(parts, start, strict=True)
    ]
    later = [one._replace(waiting=waiting) for one, (_, _, waiting) in zip(usages, parts, strict=True)]
    wanted = goals(rule, later, 1)
    low = [one._replace(share=lowered(rule, one.share, goal)) for one, goal in zip(later, wanted, strict=True)]
    high = raised(rule, low, wanted)
    if rule.concurrency is not None:
        assert (
            sum(max(one.running, share.concurrency or 0) for one, share in zip(low, high, strict=True))
            <= rule.concurrency
        )
    for at, band in enumerate(rule.rate):
        assert sum(bursts_of(rule, share)[at] for share in high) <= band.burst
        rates = [share.rate[at] for share in high if share.rate]
        assert sum(one.count / one.per for one in rates) <= band.count / band.per * 1.000001


def test_a_share_of_a_rate_is_the_same_part_of_its_tokens():
    rule = Rule(None, (Band(90, 60_000, 10),))
    assert share_of(rule, None, [3]) == Rule(None, (Band(9, 20_000, 3),))
    assert share_of(rule, None, [0]) == BLOCKED
