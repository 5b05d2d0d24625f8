"""What operators close and open: limit keys, the queue, and breakers whose state another partition has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from table import NOW, WAKE, Case, table

if TYPE_CHECKING:
    from table import Bench

LOOKED_AT = {"openings": {"r": float("-inf")}}
SHUT = {"closed": {"r": 5000}, "reopens": {"r": 5000}}
CHANGED = {"meta": {"changes": "1"}}


@table(
    [
        Case(
            "for a time, by an operator: half a ms less, and the new time counts",
            SHUT,
            lambda s: s.close("r", 50),
            {"closed": {"r": NOW + 49.5}, "reopens": {}, **LOOKED_AT, **WAKE, **CHANGED},
            "5000",
        ),
        Case(
            "opened",
            SHUT,
            lambda s: s.close("r", 0),
            {"closed": {}, "reopens": {}, **LOOKED_AT, **WAKE, **CHANGED},
            "5000",
        ),
        Case("a handler makes no time shorter", SHUT, lambda s: s.close("r", 50, "longer"), {}, "5000"),
        Case(
            "a handler makes a time longer",
            SHUT,
            lambda s: s.close("r", 4001, "longer"),
            {"closed": {"r": NOW + 4000.5}, "reopens": {}, **LOOKED_AT, **WAKE, **CHANGED},
            "5000",
        ),
        Case(
            "as in the first partition, which is no change",
            SHUT,
            lambda s: s.close("r", 1500.5, "until"),
            {"closed": {"r": 1500.5}, "reopens": {}, **LOOKED_AT, **WAKE},
            "5000",
        ),
        Case(
            "open as in the first partition",
            SHUT,
            lambda s: s.close("r", 0, "until"),
            {"closed": {}, "reopens": {}, **LOOKED_AT, **WAKE},
            "5000",
        ),
        Case(
            "the whole queue",
            {},
            lambda s: s.close("queue", 50),
            {"meta": {"closed": "1050", "changes": "1"}, **WAKE},
            "",
        ),
        Case(
            "the whole queue is opened",
            {"meta": {"closed": "5000"}},
            lambda s: s.close("queue", 0),
            {"meta": {"changes": "1"}, **WAKE},
            "5000",
        ),
        Case(
            "a handler makes the time of the queue no shorter",
            {"meta": {"closed": "5000"}},
            lambda s: s.close("queue", 50, "longer"),
            {},
            "5000",
        ),
    ]
)
async def test_close(case: Case, bench: Bench):
    await bench.check(case)


OPEN = {"breakers": {"t": "0.5 4 100 5000 900 -"}, "closed": {"!t": 5000}, "reopens": {"!t": 5000}}
CLOSED = {"breakers": {"t": "0.5 4 100 0 900 01"}}
NEW = {"breakers": {"t": "0.5 4 100 0 0900 01"}}
LOOK = {"openings": {"!t": float("-inf")}, **WAKE}


@table(
    [
        Case(
            "one that opened later",
            CLOSED,
            lambda s: s.breaker("follow", "t", "6000 950"),
            {"breakers": {"t": "0.5 4 100 6000 950 -"}, "closed": {"!t": 6000}, **LOOK},
            "0.5 4 100 6000 950 -",
        ),
        Case(
            "one that closed later",
            OPEN,
            lambda s: s.breaker("follow", "t", "0 950"),
            {"breakers": {"t": "0.5 4 100 0 950 -"}, "closed": {}, "reopens": {}, **LOOK},
            "0.5 4 100 0 950 -",
        ),
        Case("an older state", CLOSED, lambda s: s.breaker("follow", "t", "6000 899"), {}, "0.5 4 100 0 900 01"),
        Case("the same state", OPEN, lambda s: s.breaker("follow", "t", "5000 900"), {}, "0.5 4 100 5000 900 -"),
        Case(
            "of two that began together, the one that is open for longer",
            OPEN,
            lambda s: s.breaker("follow", "t", "5001 900"),
            {"breakers": {"t": "0.5 4 100 5001 900 -"}, "closed": {"!t": 5001}, "reopens": {}, **LOOK},
            "0.5 4 100 5001 900 -",
        ),
        Case(
            "a declaration is older than all states",
            OPEN,
            lambda s: s.breaker("follow", "t", "0 0950"),
            {},
            "0.5 4 100 5000 900 -",
        ),
        Case(
            "a state is newer than the declaration here",
            NEW,
            lambda s: s.breaker("follow", "t", "6000 800"),
            {"breakers": {"t": "0.5 4 100 6000 800 -"}, "closed": {"!t": 6000}, **LOOK},
            "0.5 4 100 6000 800 -",
        ),
        Case("no breaker", {}, lambda s: s.breaker("follow", "t", "6000 800"), {}, ""),
        Case(
            "a reset is looked at",
            OPEN,
            lambda s: s.breaker("reset", "t", ""),
            {"breakers": {"t": "0.5 4 100 0 1000 -"}, "closed": {}, "reopens": {}, **LOOK},
            "0.5 4 100 0 1000 -",
        ),
        Case(
            "removed, which is a change",
            OPEN,
            lambda s: s.breaker("remove", "t", ""),
            {"breakers": {}, "closed": {}, "reopens": {}, **LOOK, **CHANGED},
            "",
        ),
    ]
)
async def test_breaker(case: Case, bench: Bench):
    await bench.check(case)
