"""spread.lua: over how many partitions a queue is spread. settings.lua: which changes have reached each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from table import Case, table

if TYPE_CHECKING:
    from table import Bench


@table(
    [
        Case(
            "a queue that was never used has no homes yet",
            {},
            lambda s: s.spread(8),
            {"meta": {"partitions": "8 0 8 code"}},
            [8, 0, 8, "code"],
        ),
        Case(
            "the first job with keys decides them",
            {"meta": {"layout": "1", "partitions": "8 0 16 operator"}},
            lambda s: s.spread(0),
            {"meta": {"layout": "1", "partitions": "8 8 16 operator"}},
            [8, 8, 16, "operator"],
        ),
        Case(
            "the second one does not",
            {"meta": {"partitions": "16 8 16 operator"}},
            lambda s: s.spread(0),
            {},
            [16, 8, 16, "operator"],
        ),
        Case(
            "until then there may be fewer partitions",
            {"meta": {"partitions": "8 0 8 code"}},
            lambda s: s.spread(2, who="operator"),
            {"meta": {"partitions": "2 0 8 operator"}},
            [2, 0, 8, "operator"],
        ),
        Case("a queue of one partition has nothing to decide", {}, lambda s: s.spread(0), {}, [1, 1, 1, ""]),
        Case(
            "one that was used keeps its jobs with keys where they are",
            {"meta": {"layout": "1"}},
            lambda s: s.spread(8),
            {"meta": {"layout": "1", "partitions": "8 1 8 code"}},
            [8, 1, 8, "code"],
        ),
        Case(
            "code does not change what is stored",
            {"meta": {"partitions": "8 8 8 operator"}},
            lambda s: s.spread(16),
            {},
            [8, 8, 8, "operator"],
        ),
        Case(
            "an operator does, and the homes stay",
            {"meta": {"partitions": "8 8 8 code"}},
            lambda s: s.spread(16, who="operator"),
            {"meta": {"partitions": "16 8 16 operator"}},
            [16, 8, 16, "operator"],
        ),
        Case(
            "the most partitions never become fewer",
            {"meta": {"partitions": "16 4 16 operator"}},
            lambda s: s.spread(4, who="operator"),
            {"meta": {"partitions": "4 4 16 operator"}},
            [4, 4, 16, "operator"],
        ),
        Case(
            "there are no fewer than homes",
            {"meta": {"partitions": "8 8 8 code"}},
            lambda s: s.spread(7, who="operator"),
            {},
            [8, 8, 8, "code"],
        ),
        Case(
            "what cannot be read is written again",
            {"meta": {"partitions": "many", "layout": "1"}},
            lambda s: s.spread(2, who="operator"),
            {"meta": {"partitions": "2 1 2 operator", "layout": "1"}},
            [2, 1, 2, "operator"],
        ),
    ]
)
async def test_spread(case: Case, bench: Bench):
    await bench.check(case)


@table(
    [
        Case("a change is counted", {}, lambda s: s.settings(), {"meta": {"settings": "1"}}, 1),
        Case(
            "and the next one",
            {"meta": {"settings": "41"}},
            lambda s: s.settings(),
            {"meta": {"settings": "42"}},
            42,
        ),
        Case(
            "it has reached a partition that has those before it",
            {"meta": {"settings": "41"}},
            lambda s: s.settings(41, 42),
            {"meta": {"settings": "42"}},
            42,
        ),
        Case(
            "also the first one",
            {},
            lambda s: s.settings(0, 1),
            {"meta": {"settings": "1"}},
            1,
        ),
        Case(
            "a partition that lacks an earlier one stays behind",
            {"meta": {"settings": "40"}},
            lambda s: s.settings(41, 42),
            {},
            40,
        ),
        Case(
            "what cannot be read counts as none",
            {"meta": {"settings": "many"}},
            lambda s: s.settings(),
            {"meta": {"settings": "1"}},
            1,
        ),
    ]
)
async def test_settings(case: Case, bench: Bench):
    await bench.check(case)
