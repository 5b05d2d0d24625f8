"""Jobs that are late: none of them starts, and each ends in failed, wherever it waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from columns import also
from table import NOW, WAKE, Case, counted, held, jobs, place, standing, table, waiting

if TYPE_CHECKING:
    from table import Bench

    from jobq.engine.store import Call, Store

STARTS, ENDS = b'{"type":"S"}', b'{"type":"E"}'
SENT = '{"type":"t","at":1,"expires_at":5,"deadline_at":9,"payload":1}'
AGAIN = '{"type":"t","at":3,"expires_at":7,"deadline_at":11,"payload":1}'
COUNTS: dict[str, Any] = {"expired": "1", "m:0:expired": "1"}


def lapse(store: Store, page: int = 10) -> Call[list[Any]]:
    return store.lapse(page, STARTS, ENDS)


def ended(state: str, *, late: str = "start_by", record: bytes = STARTS) -> dict[str, Any]:
    """The changes of the end of job a, which was in this state."""
    changes = also(
        {state: {}, "failed": {"a": NOW}, "errors": {"a": record.decode()}},
        counted("failed", "a", event="expired", **COUNTS),
    )
    return changes | {late: {}}


CASES = [
    Case("nothing has a time", waiting("a"), lapse, {}, [0]),
    Case("not yet", waiting("a") | {"start_by": {"a": NOW + 1}}, lapse, {}, [0]),
    *[
        Case(
            f"{state}, {late}",
            standing(state, "a") | {late: {"a": NOW}},
            lapse,
            ended(state, late=late, record=record),
            [0, "a"],
        )
        for state in ("waiting", "delayed", "blocked")
        for late, record in (("start_by", STARTS), ("end_by", ENDS))
    ],
    Case(
        "held",
        jobs("a") | {"held": {"a": place(1)}, "held_by": {f"r\0{place(1) + 2**52:016d}\0a": 0}, "limits": {"a": "r"}}
        | {"start_by": {"a": NOW}},
        lapse,
        ended("held") | {"held_by": {}},
        [0, "a"],
    ),
    Case(
        "its places under limits are free for others",
        also(
            waiting("a"),
            {"limits": {"a": "r"}, "admitted": {"r\0a": 0}, "unspent": {"r\0a": 0}, "start_by": {"a": NOW}},
        ),
        lapse,
        ended("waiting") | {"admitted": {}, "unspent": {}, "openings": {"r": float("-inf")}} | WAKE,
        [0, "a"],
    ),
    Case(
        "all of its places, if it has several slots",
        also(
            waiting("a"),
            {"limits": {"a": "r"}, "weights": {"a": "2"}, "admitted": {"r\0a": 0, "r\0a\x002": 0}},
            {"start_by": {"a": NOW}},
        ),
        lapse,
        ended("waiting") | {"admitted": {}, "openings": {"r": float("-inf")}} | WAKE,
        [0, "a"],
    ),
    Case(
        "the oldest errors go when there are too many",
        standing("delayed", "a") | {"errors": {"a": "y" * 60_000 + "\n" + "z" * 5_530}, "start_by": {"a": NOW}},
        lapse,
        ended("delayed") | {"errors": {"a": "z" * 5_530 + "\n" + STARTS.decode()}},
        [0, "a"],
    ),
    Case(
        "parked",
        standing("delayed", "a", score=5000)
        | {"parked": {"t\0a": 0}, "unserved": {"a": "1 5000 t"}, "start_by": {"a": NOW}},
        lapse,
        ended("delayed") | {"parked": {}, "unserved": {"a": "1 1000"}},
        [0, "a"],
    ),
    Case(
        "snoozed before its first attempt",
        standing("delayed", "a") | {"attempts": {"a": "0 900 1"}, "start_by": {"a": NOW}},
        lapse,
        ended("delayed"),
        [0, "a"],
    ),
    Case(
        "it has started, and waits for its second attempt",
        standing("delayed", "a") | {"attempts": {"a": "1 900"}, "start_by": {"a": NOW}},
        lapse,
        {"start_by": {}},
        [0],
    ),
    Case(
        "a deadline counts for the second attempt too",
        standing("delayed", "a") | {"attempts": {"a": "1 900"}, "end_by": {"a": NOW}, "start_by": {"a": NOW}},
        lapse,
        ended("delayed", late="end_by", record=ENDS) | {"start_by": {}},
        [0, "a"],
    ),
    Case(
        "running: it may be handed back without an attempt",
        held("a") | {"start_by": {"a": NOW}, "end_by": {"a": NOW - 1}},
        lapse,
        {"start_by": {"a": -NOW}, "end_by": {"a": -NOW + 1}},
        [0],
    ),
    Case(
        "running for the second time",
        held("a") | {"attempts": {"a": "1 5"}, "start_by": {"a": NOW}},
        lapse,
        {"start_by": {}},
        [0],
    ),
    Case("it ran when it became late", held("a") | {"end_by": {"a": -900}}, lapse, {}, [0]),
    Case(
        "it ran when it became late, and was handed back",
        waiting("a") | {"start_by": {"a": -900}},
        lapse,
        ended("waiting"),
        [0, "a"],
    ),
    Case("it has ended before", standing("completed", "a") | {"start_by": {"a": NOW}}, lapse, {"start_by": {}}, [0]),
    Case("it was removed", {"start_by": {"a": NOW}, "end_by": {"a": NOW}}, lapse, {"start_by": {}, "end_by": {}}, [0]),
    Case(
        "its own retention; a payload may have a field of this name",
        standing("delayed", "a") | {"jobs": {"a": '{"type":"t","retention":50,"payload":{"x":1,"retention":7}}'}}
        | {"start_by": {"a": NOW}},
        lapse,
        ended("delayed") | {"expires": {"a": NOW + 50}},
        [0, "a"],
    ),
    Case(
        "the queue's retention",
        standing("delayed", "a")
        | {"jobs": {"a": '{"type":"t","payload":{"x":1,"retention":7}}'}, "start_by": {"a": NOW}},
        lapse,
        ended("delayed"),
        [0, "a"],
    ),
    Case(
        "a job that waits for its end is due",
        standing("delayed", "a")
        | {"blocked": {"b": 900}, "keys": {"a": "k", "b": "k"}, "unique": {"k": "b - - a"}, "start_by": {"a": NOW}},
        lapse,
        ended("delayed") | {"blocked": {}, "delayed": {"b": NOW}} | WAKE,
        [0, "a"],
    ),
    Case(
        "a page, and more is left",
        standing("delayed", "a", "b") | {"start_by": {"a": NOW - 1, "b": NOW}},
        lambda store: lapse(store, 1),
        ended("delayed") | {"delayed": {"b": 900}, "start_by": {"b": NOW}},
        [1, "a"],
    ),
    Case(
        "a late job at the front of waiting comes first, because it stops claims",
        also(standing("delayed", "b", "c"), waiting("a"), {"start_by": {"a": NOW, "b": 1, "c": 2}}),
        lambda store: lapse(store, 1),
        {
            "waiting": {}, "delayed": {"c": 900}, "start_by": {"c": 2}, "failed": {"a": NOW, "b": NOW},
            "errors": {"a": STARTS.decode(), "b": STARTS.decode()},
        } | counted("failed", "b", "a", event="expired", **dict.fromkeys(COUNTS, 2)),
        [1, "b", "a"],
    ),
]  # fmt: skip


@table(CASES)
async def test_lapse(bench: Bench, case: Case):
    await bench.check(case)


async def claim(bench: Bench, request: int) -> list[bytes]:
    claimed = await bench.store.do(bench.store.claim(5, 30_000, "w", "w:0", request, repeated=False))
    assert claimed is not None
    return claimed.ids


@pytest.mark.parametrize("late", ["start_by", "end_by"])
@pytest.mark.parametrize("sign", [1, -1])
async def test_a_late_job_is_not_claimed_and_nothing_behind_it(bench: Bench, late: str, sign: int):
    before = waiting("a", "b", "c") | {late: {"b": sign * NOW}, "meta": {"limited": "1"}}
    await bench.seed(before)
    bench.store.limited = True
    assert await claim(bench, 1) == [b"a"]
    found = await bench.dump()
    assert (set(found["waiting"]), found["wake"]) == ({"b", "c"}, WAKE["wake"]), "somebody looks again"
    assert not bench.store.late
    assert await claim(bench, 2) == []
    assert bench.store.late
    assert await bench.do(lapse(bench.store)) == [0, "b"]
    assert await claim(bench, 3) == [b"c"]


async def test_a_job_starts_until_the_last_millisecond(bench: Bench):
    await bench.seed(waiting("a") | {"start_by": {"a": NOW + 1}, "meta": {"limited": "1"}})
    bench.store.limited = True
    assert await claim(bench, 1) == [b"a"]


async def test_runs_that_became_late_are_looked_at_in_turns(bench: Bench):
    """Five long runs do not hide the job that was handed back."""
    names = [f"j{n}" for n in range(6)]
    await bench.seed(
        also(held(*names[:5]), standing("delayed", "j5", score=10**6), {"start_by": dict.fromkeys(names, -900)})
    )
    for _ in range(12):
        bench.now += 1
        if (await bench.do(lapse(bench.store, 2)))[1:] == ["j5"]:
            return
    raise AssertionError("it is never looked at")


@table(
    [
        Case(
            "a retry by hand is a new chance",
            standing("failed", "a") | {"start_by": {"a": NOW + 500}, "end_by": {"a": NOW}},
            lambda store: store.retry(["a"]),
            {
                "failed": {}, "waiting": {"a": place(1)}, "attempts": {"a": f"0 {NOW}"}, "meta": {"fifo": "1"},
                "events": [("retried", "a")],
                "start_by": {}, "end_by": {},
            } | WAKE,
            ["failed"],
        ),
        Case(
            "a deadline that lies ahead still counts",
            standing("failed", "a") | {"end_by": {"a": NOW + 1}},
            lambda store: store.retry(["a"]),
            {"failed": {}, "waiting": {"a": place(1)}, "attempts": {"a": f"0 {NOW}"}, "meta": {"fifo": "1"}}
            | {"events": [("retried", "a")]}
            | WAKE,
            ["failed"],
        ),
        Case(
            "a removed job takes its times along",
            standing("delayed", "a") | {"start_by": {"a": 5000}, "end_by": {"a": 5000}},
            lambda store: store.remove(["a"]),
            {"delayed": {}, "jobs": {}, "start_by": {}, "end_by": {}, "events": [("removed", "a", "types", "")]},
            ["delayed"],
        ),
        Case(
            "and so does one that is trimmed",
            standing("completed", "a") | {"start_by": {"a": 5000}, "end_by": {"a": 5000}},
            lambda store: store.trim(0, 0, 0, 10, 0, 0),
            {"completed": {}, "jobs": {}, "start_by": {}, "end_by": {}},
            1,
        ),
        Case(
            "an enqueue writes them",
            {"meta": {"fifo": "1"}},
            lambda store: store.enqueue(["a", "A", "0 0 0\v\v\v1500 -", "b", "B", "0 0 0\v\v\v- 1700"]),
            jobs("a", "b") | {
                "waiting": {"a": place(2), "b": place(3)}, "start_by": {"a": 1500}, "end_by": {"b": 1700},
                "meta": {"fifo": "3", "limited": "1"},
            } | WAKE,
            [],
        ),
        Case(
            "a rerun is listed with the earlier job, and makes no queue with limits",
            jobs("old") | {"meta": {"fifo": "1"}, "reruns": {"old": " ".join(f"j{n}" for n in range(20))}},
            lambda store: store.enqueue(["a", "A", "0 0 0\v\v\v- - old", "b", "B", "0 0 0\v\v\v- - gone"]),
            jobs("old", "a", "b") | {
                "waiting": {"a": place(2), "b": place(3)}, "meta": {"fifo": "3"},
                "reruns": {"old": " ".join(["a", *(f"j{n}" for n in range(19))])},
            } | WAKE,
            [],
        ),
        Case(
            "so is one with a key",
            jobs("old") | {"meta": {"fifo": "1"}, "reruns": {"old": "b"}},
            lambda store: store.enqueue_unique(["a", "A", "0 0 0\v\v\v- - old", "unfinished 0 return -1 -1 1 k"]),
            jobs("old", "a") | {
                "waiting": {"a": place(2)}, "meta": {"fifo": "2"}, "reruns": {"old": "a b"},
                "keys": {"a": "k"}, "unique": {"k": "a -"},
            } | WAKE,
            [],
        ),
        Case(
            "so does one with a key",
            {"meta": {"fifo": "1"}},
            lambda store: store.enqueue_unique(["a", "A", "0 0 0\v\v\v1500 1700", "unfinished 0 return -1 -1 1 k"]),
            jobs("a") | {
                "waiting": {"a": place(2)}, "start_by": {"a": 1500}, "end_by": {"a": 1700},
                "meta": {"fifo": "2", "limited": "1"}, "keys": {"a": "k"}, "unique": {"k": "a -"},
            } | WAKE,
            [],
        ),
        Case(
            "a repeated enqueue counts its times from its sending, and is the same job",
            waiting("a") | {"jobs": {"a": SENT}, "meta": {"fifo": "1"}},
            lambda store: store.enqueue(["a", AGAIN, "0 0 0\v\v\v7 11"]),
            {"meta": {"fifo": "2"}},
            [1, "a", "-"],
        ),
    ]
)  # fmt: skip
async def test_the_times_of_a_job(bench: Bench, case: Case):
    await bench.check(case)


async def test_a_replaced_job_keeps_its_own_times(bench: Bench):
    old = '{"type":"t","at":1,"attempts":5,"expires_at":5000,"payload":1}'
    new = '{"type":"t","at":900,"attempts":7,"expires_at":9000,"deadline_at":9500,"payload":2}'
    words = "unfinished 0 replace_all -1 -1 11 k"
    await bench.do(bench.store.enqueue_unique(["a", old, "0 0 0\v\v\v5000 -", words]))
    await bench.do(bench.store.enqueue_unique(["b", new, "0 0 0\v\v\v9000 9500", words]))
    found = await bench.dump()
    assert found["jobs"] == {"a": '{"type":"t","at":1,"attempts":7,"expires_at":5000,"payload":2}'}
    assert (found["start_by"], found.get("end_by")) == ({"a": 5000}, None)


async def test_a_job_of_a_schedule_has_its_times(bench: Bench):
    await bench.seed({"schedules": {"every": 900}, "schedule_rows": {"every": "1 5\n{}\n\n{}"}})
    call = bench.store.schedule_fire(
        ["every", "1 5", b"1 6\n{}", 6000, b"1 6\n{}", 6000, "skip", 0, 1, "every~x", "E", "0 0 0\v\v\v1500 1700", ""]
    )
    assert await bench.do(call) == ["fired"]
    found = await bench.dump()
    assert (found["start_by"], found["end_by"], found["meta"]["limited"]) == (
        {"every~x": 1500}, {"every~x": 1700}, "1",
    )  # fmt: skip
