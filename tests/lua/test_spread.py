"""spread.lua: over how many partitions a queue is spread. settings.lua: which changes have reached each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from table import Case, table

if TYPE_CHECKING:
    from table import Bench

    from tests.conftest import Until


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
        Case(
            "a partition notes that it has the settings of the first one",
            {"meta": {"changes": "3"}},
            lambda s: s.settings(b"41", b"3"),
            {"meta": {"changes": "3", "settled": "41 3"}},
            1,
        ),
        Case(
            "also one in which nothing was ever set",
            {},
            lambda s: s.settings(b"1", b"0"),
            {"meta": {"settled": "1 0"}},
            1,
        ),
        Case(
            "not if it was changed meanwhile",
            {"meta": {"changes": "4"}},
            lambda s: s.settings(b"41", b"3"),
            {},
            0,
        ),
    ]
)
async def test_settings(case: Case, bench: Bench):
    await bench.check(case)


@table(
    [
        Case(
            "a word is set and counted",
            {"meta": {"changes": "41"}},
            lambda s: s.setting("charge", "actual"),
            {"meta": {"changes": "42", "charge": "actual"}},
            "OK",
        ),
        Case(
            "it is removed",
            {"meta": {"charge": "actual", "layout": "1"}},
            lambda s: s.setting("charge"),
            {"meta": {"changes": "1", "layout": "1"}},
            "OK",
        ),
        Case("only counted", {}, lambda s: s.setting(), {"meta": {"changes": "1"}}, "OK"),
        Case(
            "a damaged count starts again",
            {"meta": {"changes": "many"}},
            lambda s: s.setting(),
            {"meta": {"changes": "1"}},
            "OK",
        ),
    ]
)
async def test_setting(case: Case, bench: Bench):
    await bench.check(case)


async def test_everybody_who_listens_hears_of_another_number_of_partitions(
    bench: Bench, heard: list[bytes], until: Until
):
    await bench.do(bench.store.spread(8))
    await until(lambda: heard == [b"partitions"])
