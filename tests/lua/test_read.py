"""page, rows, results, stats: their replies, and that reading changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from columns import State, also
from table import NOW, TOKEN, Bench, Case, held, jobs, place, standing, table, waiting


def page(
    state: str,
    limit: int = 10,
    *,
    reverse: bool = False,
    scan: int | None = None,
    prefix: bytes = b"",
    highest: str = "",
    cursor: tuple[str, str] = ("", ""),
):
    return lambda store: store.page(
        state, reverse=reverse, limit=limit, scan=scan or limit, prefix=prefix, highest=highest, cursor=cursor
    )


FIVE: State = {"completed": {"a": 1, "b": 2, "c": 2, "d": 2, "e": 3}} | jobs("a", "b", "c", "d", "e")
TYPED: State = {
    "failed": {f"j{i}": i for i in range(6)},
    "jobs": {f"j{i}": f'{{"type":"{"even" if i % 2 == 0 else "odd"}","at":1}}' for i in range(6)},
}
EVEN = b'{"type":"even",'


@table(
    [
        Case("nothing there", {}, page("waiting"), {}, [[], "", ""]),
        Case("all, and the end", FIVE, page("completed"), {}, [["a", "b", "c", "d", "e"], "", ""]),
        Case("newest first", FIVE, page("completed", reverse=True), {}, [["e", "d", "c", "b", "a"], "", ""]),
        Case("a page, and where to go on", FIVE, page("completed", 2), {}, [["a", "b"], "2", "b"]),
        Case("newest first", FIVE, page("completed", 2, reverse=True), {}, [["e", "d"], "2", "d"])._replace(
            name="a page of the newest"
        ),
        Case("on from among ties", FIVE, page("completed", 2, cursor=("2", "b")), {}, [["c", "d"], "2", "d"]),
        Case(
            "back from among ties",
            FIVE,
            page("completed", 2, reverse=True, cursor=("2", "d")),
            {},
            [["c", "b"], "2", "b"],
        ),
        Case("the last page", FIVE, page("completed", 2, cursor=("2", "d")), {}, [["e"], "", ""]),
        Case("behind the last", FIVE, page("completed", 2, cursor=("3", "e")), {}, [[], "", ""]),
        Case(
            "the cursor's job has left: from the first of its score on, nothing is passed over",
            FIVE,
            page("completed", 2, cursor=("2", "bb")),
            {},
            [["b", "c"], "2", "c"],
        ),
        Case(
            "back from a job that has left",
            FIVE,
            page("completed", 2, reverse=True, cursor=("2", "bb")),
            {},
            [["d", "c"], "2", "c"],
        ),
        Case(
            "the cursor's job stands elsewhere now: its old place counts",
            FIVE,
            page("completed", 2, cursor=("2", "e")),
            {},
            [["b", "c"], "2", "c"],
        ),
        Case(
            "a score of sixteen digits leads back to its place",
            jobs("a", "b") | {"waiting": {"a": place(2**41 - 2, 1023), "b": place(2**41 - 1, 1023)}},
            page("waiting", 1, cursor=(str(2**52 - 2), "a")),
            {},
            [["b"], str(2**52 - 1), "b"],
        ),
        Case("up to a score", FIVE, page("completed", highest="2"), {}, [["a", "b", "c", "d"], "", ""]),
        Case("a page up to a score", FIVE, page("completed", 2, highest="2"), {}, [["a", "b"], "2", "b"]),
        Case(
            "newest first, down from a score",
            FIVE,
            page("completed", reverse=True, highest="2"),
            {},
            [["d", "c", "b", "a"], "", ""],
        ),
        Case("of one type", TYPED, page("failed", scan=100, prefix=EVEN), {}, [["j0", "j2", "j4"], "", ""]),
        Case("a page of one type", TYPED, page("failed", 2, scan=100, prefix=EVEN), {}, [["j0", "j2"], "2", "j2"]),
        Case(
            "not more is looked at than allowed",
            TYPED,
            page("failed", scan=3, prefix=EVEN),
            {},
            [["j0", "j2"], "2", "j2"],
        ),
        Case(
            "on from where the look ended, also when it found nothing",
            TYPED,
            page("failed", scan=1, prefix=EVEN, cursor=("0", "j0")),
            {},
            [[], "1", "j1"],
        ),
        Case(
            "a row that is gone is of no type",
            TYPED | {"jobs": {"j0": '{"type":"even","at":1}'}},
            page("failed", scan=100, prefix=EVEN),
            {},
            [["j0"], "", ""],
        ),
    ]
)  # fmt: skip
async def test_page(case: Case, bench: Bench):
    await bench.check(case)


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
@pytest.mark.parametrize("reverse", [False, True])
async def test_pages_lead_through_all_ties_once(reverse: bool, limit: int, bench: Bench):
    scores = {f"j{i:02}": i // 9 for i in range(30)}
    await bench.seed({"failed": scores} | jobs(*scores))
    cursor, seen = ("", ""), []
    while True:
        call = page("failed", limit, reverse=reverse, cursor=cursor)(bench.store)
        ids, *rest = await bench.do(call)
        seen += ids
        cursor = (rest[0], rest[1])
        if not cursor[1]:
            break
    assert seen == sorted(scores, key=lambda job_id: (scores[job_id], job_id), reverse=reverse)


async def test_pages_while_jobs_leave_and_come(bench: Bench):
    """Jobs that exist the whole time are listed, even if others are removed between two pages."""
    scores = {f"j{i:02}": i // 9 for i in range(30)}
    await bench.seed({"failed": scores} | jobs(*scores))
    cursor, seen = ("", ""), []
    while True:
        ids, *rest = await bench.do(page("failed", 4, cursor=cursor)(bench.store))
        seen += ids
        cursor = (rest[0], rest[1])
        if not cursor[1]:
            break
        await bench.do(bench.store.remove([ids[0], ids[-1]]))
    assert set(seen) == set(scores)


FULL: State = also(
    held("a"),
    {
        "priorities": {"a": "5L"},
        "attempts": {"a": "2"},
        "errors": {"a": "e1\ne2"},
        "results": {"a": "r"},
        "progress": {"a": "7"},
        "unserved": {"a": "3"},
    },
)


@table(
    [
        Case("unknown", waiting("z"), lambda store: store.rows(["a"]), {}, [None]),
        Case(
            "all there is",
            FULL,
            lambda store: store.rows(["a"]),
            {},
            [["active", "31000", TOKEN, "A", "5L", "2", "e1\ne2", "r", "7", "3", *[None] * 5]],
        ),
        Case(
            "little there is, in order of the question",
            also(waiting("a"), standing("failed", "b")),
            lambda store: store.rows(["b", "nobody", "a"]),
            {},
            [
                ["failed", "900", None, "B", *[None] * 11],
                None,
                ["waiting", str(place(1)), None, "A", *[None] * 11],
            ],
        ),
        Case(
            "times by which jobs must start and end",
            also(waiting("a"), standing("active", "b"), {"start_by": {"a": 5}, "end_by": {"a": 7, "b": -9}}),
            lambda store: store.rows(["a", "b"], brief=True),
            {},
            [
                ["waiting", str(place(1)), None, "A", *[None] * 9, "5", "7"],
                ["active", "900", None, "B", *[None] * 10, "-9"],
            ],
        ),
        *[
            Case(
                f"past its own retention: {till}",
                standing("completed", "a") | {"expires": {"a": till}},
                lambda store: store.rows(["a"]),
                {},
                [None if gone else ["completed", "900", None, "A", *[None] * 11]],
            )
            for till, gone in ((NOW - 1, True), (NOW, True), (NOW + 1, False))
        ],
        *[
            Case(
                f"brief: a spec {what}",
                {"waiting": {"a": 1}, "jobs": {"a": spec}},
                lambda store: store.rows(["a"], brief=True),
                {},
                [["waiting", "1", None, head, *[None] * 11]],
            )
            for what, spec, head in (
                ("without more", '{"type":"t"}', '{"type":"t"}'),
                ("with a payload", '{"type":"t","key":"k","payload":{"a":1}}', '{"type":"t","key":"k"}'),
                ("with both", '{"type":"t","payload":[],"metadata":{"payload":1}}', '{"type":"t"}'),
                ("with metadata only", '{"type":"t","metadata":{"a":1,"payload":2}}', '{"type":"t"}'),
                (
                    "that quotes the marks",
                    r'{"type":",\"payload\":","key":",\"metadata\":","payload":1}',
                    r'{"type":",\"payload\":","key":",\"metadata\":"}',
                ),
                ("that is none of ours", "x" * 5000, "x" * 4096),
            )
        ],
        Case(
            "brief: the last error, the head of the result, no progress",
            FULL | {"results": {"a": '[1,2,"w",[3]]'}},
            lambda store: store.rows(["a"], brief=True),
            {},
            [["active", "31000", TOKEN, "A", "5L", "2", "e2", '[1,2,"w"]', None, "3", *[None] * 5]],
        ),
        Case(
            "brief: a result that is none of ours",
            FULL | {"results": {"a": "r" * 300}},
            lambda store: store.rows(["a"], brief=True),
            {},
            [["active", "31000", TOKEN, "A", "5L", "2", "e2", "r" * 256, None, "3", *[None] * 5]],
        ),
    ]
)
async def test_rows(case: Case, bench: Bench):
    await bench.check(case)


@table(
    [
        Case(
            "how each ended",
            also(
                standing("completed", "a", "b"),
                standing("failed", "c", "d"),
                waiting("e"),
                held("f"),
                {"results": {"a": "r"}, "errors": {"c": "e1\ne2", "f": "e"}},
            ),
            lambda store: store.results(["a", "b", "c", "d", "e", "f", "g"]),
            {},
            [
                "completed",
                "r",
                "completed",
                "",
                "failed",
                "e1\ne2",
                "failed",
                "",
                "pending",
                "",
                "pending",
                "",
                "gone",
                "",
            ],
        ),
    ]
)
async def test_results(case: Case, bench: Bench):
    await bench.check(case)


def stats(**given: Any) -> list[Any]:
    return [
        given.get("now", NOW),
        *[given.get(state, 0) for state in ("waiting", "delayed", "active", "completed", "failed", "blocked", "held")],
        given.get("paused"),
        given.get("closed"),
        given.get("workers", 0),
        given.get("oldest", []),
        given.get("due"),
        given.get("metrics", []),
        given.get("history", ""),
        given.get("oldest_held", []),
        given.get("aging"),
    ]


@table(
    [
        Case("an empty queue", {}, lambda store: store.stats(), {}, stats()),
        Case(
            "a busy one",
            also(
                waiting("a", "b"),
                standing("delayed", "c", score=2000),
                held("d", "e", "f"),
                standing("completed", "g"),
                standing("failed", "h"),
                standing("blocked", "i"),
                {"meta": {"paused": "7"}, "metrics": {"completed": "3"}, "workers": {"w": 1000, "x": 999}},
            ),
            lambda store: store.stats(),
            {},
            stats(
                waiting=2, delayed=1, active=3, completed=1, failed=1, blocked=1,
                paused="7", workers=2, oldest=["a", None, "A"], due="2000", metrics=["completed", "3"],
            ),
        ),
        Case(
            "workers of the last half minute",
            {"workers": {"w": 1000, "x": 999}},
            lambda store: store.stats(),
            {},
            stats(now=31_000, workers=1),
            now=31_000,
        ),
        Case(
            "the first one's row is gone",
            {"waiting": {"a": 1}},
            lambda store: store.stats(),
            {},
            stats(waiting=1, oldest=["a", None, ""]),
        ),
        Case(
            "the oldest of each priority: FIFO the first, in front of it the last",
            {
                "waiting": {
                    "urgent": place(9, -1), "a": place(-2), "b": place(-1), "c": place(3), "d": place(4),
                    "e": place(-5, 7),
                },
                "attempts": {"b": "1 5"},
                "jobs": {"e": '{"type":"t","at":5,"payload":"' + "x" * 9999 + '"}'},
            },
            lambda store: store.stats(),
            {},
            stats(
                waiting=6,
                oldest=[
                    "urgent", None, "", "b", "1 5", "", "c", None, "", "e", None, '{"type":"t","at":5}',
                ],
            ),
        ),
        Case(
            "metrics: only what is shown",
            {
                "metrics": {
                    "failed": "1", "m:0:failed": "2", "m:60:completed": "3", "m:61:retried": "4", "s:0:run7:t": "5",
                    "s:0:run7:u": "6", "other": "8",
                },
                "history": {"": "f 1 run3=4", "t": "f 1 run3=4"},
            },
            lambda store: store.stats(),
            {},
            stats(
                now=120 * 60_000 + 5,
                # The order of the sums is that of a Lua table, which servers choose, so there is one sum.
                metrics=["failed", "1", "m:61:retried", "4", "s:0:run7", "11"],
                history="f 1 run3=4",
            ),
            now=120 * 60_000 + 5,
        ),
    ]
)  # fmt: skip
async def test_stats(case: Case, bench: Bench):
    await bench.check(case)
