"""complete, reschedule, fail, snooze, release, defer: the ways to end a lease, and their fences."""

from __future__ import annotations

import math
from typing import Any

import pytest
from columns import State, also
from table import NOW, STALE, TOKEN, WAKE, Bench, Case, counted, held, jobs, place, standing, table, waiting

BOUND = 65536
"""Bytes of the errors column per job."""


def complete(*rows: Any, counts: tuple[Any, ...] = ()):
    return lambda store: store.complete(list(rows), list(counts))


@table(
    [
        Case(
            "to completed, with the results",
            held("a", "b", "c"),
            complete("a", TOKEN, "ra", "", "b", TOKEN, "rb", ""),
            {"active": {"c": 31_000}, "leases": {"c": TOKEN}, "completed": {"a": NOW, "b": NOW}}
            | {"results": {"a": "ra", "b": "rb"}}
            | counted("completed", "a", "b"),
            [2, []],
        ),
        Case(
            "the answer counts all that stand there",
            also(held("a"), standing("completed", "x", "y")),
            complete("a", TOKEN, "ra", ""),
            {"active": {}, "leases": {}, "completed": {"x": 900, "y": 900, "a": NOW}, "results": {"a": "ra"}}
            | counted("completed", "a"),
            [3, []],
        ),
        Case(
            "a retention of its own",
            held("a", "b"),
            complete("a", TOKEN, "ra", 500, "b", TOKEN, "rb", 0),
            {"active": {}, "leases": {}, "completed": {"a": NOW, "b": NOW}, "expires": {"a": NOW + 500, "b": NOW}}
            | {"results": {"a": "ra", "b": "rb"}}
            | counted("completed", "a", "b"),
            [2, []],
        ),
        Case(
            "of several claims",
            also(held("a", "c"), held("b", token="6 x"), held("d", token="7 y")),
            complete("a", TOKEN, "ra", "", "b", "6 x", "rb", "", "c", TOKEN, "rc", "", "d", "6 x", "rd", ""),
            also(held("d", token="7 y"), jobs("a", "b", "c"))
            | {"completed": {"a": NOW, "b": NOW, "c": NOW}, "results": {"a": "ra", "b": "rb", "c": "rc"}}
            | counted("completed", "a", "c", "b"),
            [3, ["d"]],
        ),
        Case(
            "latencies are counted in the same call",
            held("a") | {"metrics": {"completed": "4", "m:0:completed": "1", "s:0:wait3:t": "2"}},
            complete("a", TOKEN, "ra", "", counts=("run7:t", 1, "wait3:t", 5)),
            {"active": {}, "leases": {}, "completed": {"a": NOW}, "results": {"a": "ra"}}
            | counted("completed", "a")
            | {"metrics": {"completed": "5", "m:0:completed": "2", "s:0:wait3:t": "7", "s:0:run7:t": "1"}},
            [1, []],
        ),
        Case(
            "some held, some lost",
            also(held("a", "c"), held("b", token="6 x")),
            complete("a", TOKEN, "ra", 500, "b", TOKEN, "rb", 500, "c", TOKEN, "rc", "", "d", TOKEN, "rd", 500),
            also(held("b", token="6 x"), jobs("a", "c"))
            | {"completed": {"a": NOW, "c": NOW}, "results": {"a": "ra", "c": "rc"}, "expires": {"a": NOW + 500}}
            | counted("completed", "a", "c"),
            [2, ["b", "d"]],
        ),
        Case(
            "minutes of today's clock",
            held("a"),
            complete("a", TOKEN, "ra", ""),
            {"active": {}, "leases": {}, "completed": {"a": 1722470400123}, "results": {"a": "ra"}}
            | counted("completed", "a", minute=28707840),
            [1, []],
            now=1722470400123,
        ),
    ]
)
async def test_complete(case: Case, bench: Bench):
    await bench.check(case)


def reschedule(*rows: Any):
    return lambda store: store.reschedule(list(rows))


@table(
    [
        Case(
            "to delayed, charged, with the reason",
            held("a", "b"),
            reschedule("a", TOKEN, 1, 2500, "e1"),
            {"active": {"b": 31_000}, "leases": {"b": TOKEN}, "delayed": {"a": NOW + 2500}}
            | {"attempts": {"a": "1 3500"}, "errors": {"a": "e1"}}
            | counted("retried", "a")
            | WAKE,
            [],
        ),
        Case(
            "reasons gather, one a line",
            held("a") | {"attempts": {"a": "1"}, "errors": {"a": "e1"}},
            reschedule("a", TOKEN, 2, 0, "e2"),
            {"active": {}, "leases": {}, "delayed": {"a": NOW}, "attempts": {"a": "2 1000"}, "errors": {"a": "e1\ne2"}}
            | counted("retried", "a")
            | WAKE,
            [],
        ),
        Case(
            "of many reasons too, and only as many as must",
            held("a") | {"errors": {"a": "\n".join(["x" * 999] * 65) + "\n" + "y" * 535}},
            reschedule("a", TOKEN, 3, 0, "z" * 999),
            {"active": {}, "leases": {}, "delayed": {"a": NOW}, "attempts": {"a": "3 1000"}}
            | {"errors": {"a": "\n".join(["x" * 999] * 64) + "\n" + "y" * 535 + "\n" + "z" * 999}}
            | counted("retried", "a")
            | WAKE,
            [],
        ),
        Case(
            "the oldest reasons go first when the column is full",
            held("a") | {"errors": {"a": "old\n" + "x" * (BOUND - 2)}},
            reschedule("a", TOKEN, 3, 0, "e3"),
            {"active": {}, "leases": {}, "delayed": {"a": NOW}, "attempts": {"a": "3 1000"}, "errors": {"a": "e3"}}
            | counted("retried", "a")
            | WAKE,
            [],
        ),
        Case(
            "exactly full is not too full",
            held("a") | {"errors": {"a": "x" * (BOUND - 3)}},
            reschedule("a", TOKEN, 3, 0, "e3"),
            {"active": {}, "leases": {}, "delayed": {"a": NOW}, "attempts": {"a": "3 1000"}}
            | {"errors": {"a": "x" * (BOUND - 3) + "\ne3"}}
            | counted("retried", "a")
            | WAKE,
            [],
        ),
        Case(
            "how often it was snoozed stays",
            held("a") | {"attempts": {"a": "1 7 3"}},
            reschedule("a", TOKEN, 2, 0, "e2"),
            {"active": {}, "leases": {}, "delayed": {"a": NOW}, "attempts": {"a": "2 1000 3"}, "errors": {"a": "e2"}}
            | counted("retried", "a")
            | WAKE,
            [],
        ),
        Case(
            "the last reason stays, however long",
            held("a") | {"errors": {"a": "e1\ne2"}},
            reschedule("a", TOKEN, 3, 0, "x" * (BOUND + 1)),
            {"active": {}, "leases": {}, "delayed": {"a": NOW}, "attempts": {"a": "3 1000"}}
            | {"errors": {"a": "x" * (BOUND + 1)}}
            | counted("retried", "a")
            | WAKE,
            [],
        ),
    ]
)
async def test_reschedule(case: Case, bench: Bench):
    await bench.check(case)


def fail(*rows: Any):
    return lambda store: store.fail(list(rows))


@table(
    [
        Case(
            "to failed for good",
            also(held("a", "b"), standing("failed", "x")),
            fail("a", TOKEN, 3, "e3", ""),
            {"active": {"b": 31_000}, "leases": {"b": TOKEN}, "failed": {"x": 900, "a": NOW}}
            | {"attempts": {"a": "3"}, "errors": {"a": "e3"}}
            | counted("failed", "a"),
            [2, []],
        ),
        Case(
            "with a retention of its own, beside one that is lost",
            also(held("a"), held("b", token="6 x"), {"errors": {"a": "e1"}}),
            fail("a", TOKEN, 2, "e2", 500, "b", TOKEN, 1, "e", 500),
            held("b", token="6 x")
            | {"jobs": {"a": "A", "b": "B"}, "failed": {"a": NOW}, "expires": {"a": NOW + 500}}
            | {"attempts": {"a": "2"}, "errors": {"a": "e1\ne2"}}
            | counted("failed", "a"),
            [1, ["b"]],
        ),
        Case(
            "how often it was snoozed stays",
            held("a") | {"attempts": {"a": "1 7 3"}},
            fail("a", TOKEN, 2, "e2", ""),
            {"active": {}, "leases": {}, "failed": {"a": NOW}, "attempts": {"a": "2 7 3"}, "errors": {"a": "e2"}}
            | counted("failed", "a"),
            [1, []],
        ),
        Case(
            "the oldest reasons go first when the column is full",
            held("a") | {"errors": {"a": "old\n" + "x" * (BOUND - 100) + "\nnew"}},
            fail("a", TOKEN, 3, "y" * 100, ""),
            {"active": {}, "leases": {}, "failed": {"a": NOW}, "attempts": {"a": "3"}}
            | {"errors": {"a": "new\n" + "y" * 100}}
            | counted("failed", "a"),
            [1, []],
        ),
    ]
)
async def test_fail(case: Case, bench: Bench):
    await bench.check(case)


def snooze(*rows: Any):
    return lambda store: store.snooze(list(rows))


@table(
    [
        Case(
            "to delayed, uncharged, and counted, beside one that is lost",
            also(held("a", "c"), held("b", token="6 x"), {"attempts": {"c": "2 7 4"}}),
            snooze("a", TOKEN, 2500, "b", TOKEN, 10, "c", TOKEN, 0),
            also(held("b", token="6 x"), jobs("a", "c"))
            | {"delayed": {"a": NOW + 2500, "c": NOW}, "attempts": {"a": "0 3500 1", "c": "2 1000 5"}}
            | {"metrics": {"snoozed": "2"}}
            | WAKE,
            ["b"],
        ),
        Case(
            "what is known of the job stays",
            held("a") | {"errors": {"a": "e1"}, "progress": {"a": "50"}, "logs": {"a": "l"}, "attempts": {"a": "1"}},
            snooze("a", TOKEN, 500),
            {"active": {}, "leases": {}, "delayed": {"a": NOW + 500}, "attempts": {"a": "1 1500 1"}}
            | {"metrics": {"snoozed": "1"}}
            | WAKE,
            [],
        ),
        Case(
            "a damaged count starts anew",
            held("a") | {"attempts": {"a": "oops"}},
            snooze("a", TOKEN, 500),
            {"active": {}, "leases": {}, "delayed": {"a": NOW + 500}, "attempts": {"a": "0 1500 1"}}
            | {"metrics": {"snoozed": "1"}}
            | WAKE,
            [],
        ),
    ]
)
async def test_snooze(case: Case, bench: Bench):
    await bench.check(case)


def throttle(*rows: Any):
    return lambda store: store.throttle(list(rows))


@table(
    [
        Case(
            "the job alone: to delayed, uncharged, counted, with a mark for its place, beside one that is lost",
            also(
                held("a", "c", "e"),
                held("b", token="6 x"),
                {"attempts": {"c": "2 7 4", "e": "0 7 0 2"}, "priorities": {"c": "-3L"}},
            ),
            throttle("a", TOKEN, 2500, "job", "b", TOKEN, 10, "job", "c", TOKEN, 0, "job", "e", TOKEN, 5, "key"),
            also(held("b", token="6 x"), jobs("a", "c", "e"))
            | {"delayed": {"a": NOW + 2500, "c": NOW, "e": NOW + 5}}
            | {"attempts": {"a": "0 3500 0 1", "c": "2 1000 4 1", "e": "0 1005 0 3"}}
            | {"priorities": {"a": "0F", "c": "-3LF", "e": "0F"}, "metrics": {"rate_limited": "3"}}
            | WAKE,
            [["b"], ["e"]],
        ),
        Case(
            "the queue: to the front of its priority, the first job foremost",
            also(waiting("z"), held("a", "b"), {"meta": {"fifo": "1", "lifo": "4"}}),
            throttle("a", TOKEN, 500, "queue", "b", TOKEN, 300, "queue"),
            {"active": {}, "leases": {}, "waiting": {"a": place(-6), "b": place(-5), "z": place(1)}}
            | {"meta": {"fifo": "1", "lifo": "6", "closed": "1500"}}
            | {"attempts": {"a": "0 1500 0 1", "b": "0 1300 0 1"}, "metrics": {"rate_limited": "2"}}
            | WAKE,
            [[], []],
        ),
        Case(
            "a longer closing time of the queue stays",
            also(held("a"), {"meta": {"closed": "9000"}}),
            throttle("a", TOKEN, 500, "queue"),
            {"active": {}, "leases": {}, "waiting": {"a": place(-1)}, "meta": {"closed": "9000", "lifo": "1"}}
            | {"attempts": {"a": "0 1500 0 1"}, "metrics": {"rate_limited": "1"}}
            | WAKE,
            [[], []],
        ),
        Case(
            "its keys: to the front of held, and both keys are closed, one of them for longer",
            also(held("a"), {"limits": {"a": "r\ns:x"}, "admitted": {"r\0a": 0, "s:x\0a": 0}, "closed": {"r": 9000}}),
            throttle("a", TOKEN, 500, "key"),
            {"active": {}, "leases": {}, "admitted": {}, "held": {"a": place(-1)}, "closed": {"r": 9000, "s:x": 1500}}
            | {"held_by": {f"r\ns:x\0{place(-1) + 2**52:016}\0a": 0}, "arrivals": {"r\ns:x": place(-1)}}
            | {"openings": {"r": -math.inf, "s:x": -math.inf}}
            | {"meta": {"lifo": "1"}, "attempts": {"a": "0 1500 0 1"}, "metrics": {"rate_limited": "1"}}
            | WAKE,
            [[], []],
        ),
    ]
)
async def test_throttle(case: Case, bench: Bench):
    await bench.check(case)


def release(*rows: Any):
    return lambda store: store.release(list(rows))


@table(
    [
        Case(
            "to the front, the first one foremost, uncharged",
            also(waiting("z"), held("a", "b"), {"meta": {"fifo": "1", "lifo": "4"}}),
            release("a", TOKEN, "b", TOKEN),
            {"active": {}, "leases": {}, "waiting": {"a": place(-6), "b": place(-5), "z": place(1)}}
            | {"meta": {"fifo": "1", "lifo": "6"}, "attempts": {"a": "0 1000", "b": "0 1000"}}
            | WAKE,
            [],
        ),
        Case(
            "each to its own priority",
            held("a", "b") | {"priorities": {"a": "-1024", "b": "1023L"}},
            release("a", TOKEN, "b", TOKEN),
            {"active": {}, "leases": {}, "waiting": {"a": place(-2, -1024), "b": place(-1, 1023)}}
            | {"meta": {"lifo": "2"}, "attempts": {"a": "0 1000", "b": "0 1000"}}
            | WAKE,
            [],
        ),
        Case(
            "the runs that were charged stay so; damaged rows stop nobody",
            held("a", "b") | {"priorities": {"a": "oops"}, "attempts": {"a": "2 7 3", "b": "oops"}},
            release("a", TOKEN, "b", TOKEN),
            {"active": {}, "leases": {}, "waiting": {"a": place(-2), "b": place(-1)}}
            | {"meta": {"lifo": "2"}, "attempts": {"a": "2 1000 3", "b": "0 1000"}}
            | WAKE,
            [],
        ),
    ]
)
async def test_release(case: Case, bench: Bench):
    await bench.check(case)


def defer(*pairs: Any, park: Any = ("", 0), longest: int = 60_000):
    rows = [word for at in range(0, len(pairs), 2) for word in (*pairs[at : at + 2], *park)]
    return lambda store: store.defer(rows, 1000, longest, b'["t"]')


def parked(*ids: str, kind: str = "t", due: int = 5000, spent: int = 4900) -> State:
    return (
        standing("delayed", *ids, score=due)
        | {"unserved": dict.fromkeys(ids, f"1 {spent} {kind}")}
        | {"parked": {f"{kind}\0{job_id}": 0 for job_id in ids}}
    )


@table(
    [
        Case(
            "to the front of their priority, the first first",
            also(parked("a", "b"), waiting("c"), {"priorities": {"a": "1"}}),
            lambda store: store.recall(10, ["u", "t"]),
            {"delayed": {}, "parked": {}, "unserved": {"a": "1 900", "b": "1 900"}}
            | {"waiting": {"b": place(-1), "c": place(1), "a": place(-2, 1)}}
            | {"attempts": {"a": "0 1000", "b": "0 1000"}, "meta": {"lifo": "2"}}
            | WAKE,
            2,
        ),
        Case(
            "up to the limit",
            parked("a", "b"),
            lambda store: store.recall(1, ["t"]),
            parked("b")
            | jobs("a", "b")
            | {"unserved": {"a": "1 900", "b": "1 4900 t"}, "waiting": {"a": place(-1)}}
            | {"attempts": {"a": "0 1000"}, "meta": {"lifo": "1"}}
            | WAKE,
            1,
        ),
        Case(
            "to held if it has limits",
            parked("a") | {"limits": {"a": "k\nl"}},
            lambda store: store.recall(9, ["t"]),
            {"delayed": {}, "parked": {}, "unserved": {"a": "1 900"}}
            | {"held": {"a": place(-1)}, "arrivals": {"k\nl": place(-1)}}
            | {"held_by": {f"k\nl\0{place(-1) + 2**52}\0a": 0}}
            | {"attempts": {"a": "0 1000"}, "meta": {"lifo": "1"}}
            | WAKE,
            1,
        ),
        Case("of these types only", parked("a", kind="t u"), lambda store: store.recall(9, ["t", "u", ""]), {}, 0),
        Case(
            "not one that is not delayed: its row was damaged when it left",
            also(standing("failed", "a"), {"parked": {"t\0a": 0}, "unserved": {"a": "oops"}}),
            lambda store: store.recall(9, ["t"]),
            {"parked": {}} | WAKE,
            1,
        ),
    ]
)
async def test_recall(case: Case, bench: Bench):
    await bench.check(case)


@pytest.mark.parametrize("verb", ["kill", "remove", "promote", "forward"])
async def test_a_parked_job_that_leaves_by_another_way_is_parked_no_more(verb: str, bench: Bench):
    await bench.seed(parked("a", "b", due=NOW if verb == "forward" else 5000))
    calls = {
        "kill": lambda store: store.kill(["a", "b"], b"{}"),
        "remove": lambda store: store.remove(["a", "b"]),
        "promote": lambda store: store.promote(["a", "b"]),
        "forward": lambda store: store.forward(5),
    }
    await bench.do(calls[verb](bench.store))
    state = await bench.dump()
    assert "parked" not in state
    spent = 4900 if verb == "forward" else 900
    assert verb == "remove" or state["unserved"] == {"a": f"1 {spent}", "b": f"1 {spent}"}


def deferred(job_id: str, times: int, delay: int, spent: int = 0, kind: str = "") -> State:
    return (
        {
            "active": {},
            "leases": {},
            "delayed": {job_id: NOW + delay},
            "unserved": {job_id: f"{times} {spent + delay}{kind}"},
        }
        | {"attempts": {job_id: f"0 {NOW + delay}"}}
        | {"metrics": {"unserved": "1"}}
        | WAKE
    )


@table(
    [
        Case("first for a second", held("a"), defer("a", TOKEN), deferred("a", 1, 1000), []),
        Case(
            "then twice as long",
            held("a") | {"unserved": {"a": "3"}},
            defer("a", TOKEN),
            deferred("a", 4, 8000),
            [],
        ),
        Case(
            "up to the longest",
            held("a") | {"unserved": {"a": "6"}},
            defer("a", TOKEN),
            deferred("a", 7, 60_000),
            [],
        ),
        Case(
            "also after very many",
            held("a") | {"unserved": {"a": "99999"}},
            defer("a", TOKEN),
            deferred("a", 100_000, 60_000),
            [],
        ),
        Case(
            "attempts stay as they were",
            held("a") | {"attempts": {"a": "2 7 3"}},
            defer("a", TOKEN),
            deferred("a", 1, 1000) | {"attempts": {"a": "2 2000 3"}},
            [],
        ),
        Case(
            "of an unknown type for a fixed time, in the index of its type",
            held("a") | {"unserved": {"a": "3 500"}},
            defer("a", TOKEN, park=("t u", 7000)),
            deferred("a", 4, 7000, spent=500, kind=" t u") | {"parked": {"t u\0a": 0}},
            [],
        ),
        Case(
            "a damaged count starts anew",
            held("a") | {"unserved": {"a": "oops"}},
            defer("a", TOKEN),
            deferred("a", 1, 1000),
            [],
        ),
    ]
)
async def test_defer(case: Case, bench: Bench):
    await bench.check(case)


async def test_a_message_tells_all_workers_when_the_first_deferred_job_is_due(bench: Bench, heard: list[bytes], until):
    await bench.seed(held("a", "b", "c", "d") | {"unserved": {"a": "3", "b": "1"}})
    await bench.do(defer("a", TOKEN, "b", TOKEN, "c", "4 w")(bench.store))
    await bench.do(defer("c", "4 w")(bench.store))
    await bench.do(defer("d", TOKEN, park=("t", 10))(bench.store))
    await until(lambda: len(heard) == 2, "a word for each call that deferred something")
    assert heard == [b'unserved [2000,["t"]]', b'unserved [10,["t"]]']


@table(
    [
        Case(
            "the lease runs on from now",
            also(held("a", "c"), held("b", token="6 x")),
            lambda store: store.renew(["a", TOKEN, "b", TOKEN, "c", TOKEN], 40_000),
            {"active": {"a": 41_000, "b": 31_000, "c": 41_000}},
            ["b"],
        ),
        Case(
            "a lease without its job in active puts nothing there",
            {"leases": {"a": TOKEN}},
            lambda store: store.renew(["a", TOKEN], 40_000),
            {},
            [],
        ),
        Case("nothing held", held("a"), lambda store: store.renew([], 40_000), {}, []),
    ]
)
async def test_renew(case: Case, bench: Bench):
    await bench.check(case)


@table(
    [
        Case(
            "the last word counts",
            held("a", "b") | {"progress": {"a": "1"}},
            lambda store: store.progress(["a", TOKEN, "2", "b", TOKEN, '{"of": []}', "z", TOKEN, "3"]),
            {"progress": {"a": "2", "b": '{"of": []}'}},
            ["z"],
        ),
        Case(
            "it is told with values that are not long, if the queue tells all events",
            held("a", "b") | {"meta": {"events": "all"}},
            lambda store: store.progress(
                ["a", TOKEN, "2", "z", TOKEN, "3", "b", TOKEN, "1" * 1024, "a", TOKEN, "1" * 1025]
            ),
            {"progress": {"a": "1" * 1025, "b": "1" * 1024}}
            | {
                "events": [
                    ("progress", "a", "value", "2", "progress", "b", "value", "1" * 1024, "progress", "a", "value", "")
                ]
            },
            ["z"],
        ),
        Case(
            "what another worker says is not told",
            held("a") | {"meta": {"events": "all"}},
            lambda store: store.progress(["a", "4 w", "2"]),
            {},
            ["a"],
        ),
    ]
)
async def test_progress(case: Case, bench: Bench):
    await bench.check(case)


@table(
    [
        Case(
            "lines gather",
            held("a", "b") | {"logs": {"a": "l1"}},
            lambda store: store.log(
                ["a", TOKEN, 0, 1, "l2", "b", TOKEN, 0, 1, "l1", "a", TOKEN, 1, 2, "l3", "z", TOKEN, 0, 1, "l"]
            ),
            {"logs": {"a": "5 2\nl1\nl2\nl3", "b": "5 1\nl1"}},
            ["z"],
        ),
        Case(
            "exactly full is not too full",
            held("a") | {"logs": {"a": "x" * (BOUND - 3)}},
            lambda store: store.log(["a", TOKEN, 0, 1, "l2"]),
            {"logs": {"a": "5 1\n" + "x" * (BOUND - 3) + "\nl2"}},
            [],
        ),
        Case(
            "whole lines go from the front when the column is full",
            held("a") | {"logs": {"a": "first\n" + "x" * 100 + "\n" + "y" * (BOUND - 50)}},
            lambda store: store.log(["a", TOKEN, 0, 1, "last"]),
            {"logs": {"a": "5 1\n" + "y" * (BOUND - 50) + "\nlast"}},
            [],
        ),
        Case(
            "a line that fills the column alone stays",
            held("a") | {"logs": {"a": "first"}},
            lambda store: store.log(["a", TOKEN, 0, 1, "z" * BOUND]),
            {"logs": {"a": "5 1\n" + "z" * BOUND}},
            [],
        ),
        Case(
            "of too many lines in one call the last ones stay",
            held("a") | {"logs": {"a": "first"}},
            lambda store: store.log(["a", TOKEN, 0, 3, "x\n" + "y" * 10 + "\n" + "z" * (BOUND - 11)]),
            {"logs": {"a": "5 3\n" + "y" * 10 + "\n" + "z" * (BOUND - 11)}},
            [],
        ),
        *[
            Case(
                f"lines that come again: {name}",
                held("a") | {"logs": {"a": before}},
                lambda store, words=words: store.log(["a", TOKEN, *words]),
                {"logs": {"a": after}},
                [],
            )
            for name, before, words, after in [
                ("all of them", "5 2\nl1\nl2", (0, 2, "l1\nl2"), "5 2\nl1\nl2"),
                ("late, behind newer ones", "5 3\nl1\nl2\nl3", (0, 1, "l1"), "5 3\nl1\nl2\nl3"),
                ("with a newer one", "5 2\nl1\nl2", (0, 3, "l1\nl2\nl3"), "5 3\nl1\nl2\nl3"),
                ("with a gap before a newer one", "5 2\nl1\nl2", (7, 9, "...\nl9"), "5 9\nl1\nl2\n...\nl9"),
                ("the first of another run", "4 2\nl1\nl2", (0, 1, "l1"), "5 1\nl1\nl2\nl1"),
                ("a head that is no number", "x 2\nl2", (0, 1, "l1"), "5 1\nx 2\nl2\nl1"),
            ]
        ],
    ]
)
async def test_log(case: Case, bench: Bench):
    await bench.check(case)


FENCED = {
    "complete": lambda store, job_id, token: store.complete([job_id, token, "r", 500], ["run:7", 1]),
    "reschedule": lambda store, job_id, token: store.reschedule([job_id, token, 1, 500, "e"]),
    "fail": lambda store, job_id, token: store.fail([job_id, token, 1, "e", 500]),
    "snooze": lambda store, job_id, token: store.snooze([job_id, token, 500]),
    "throttle": lambda store, job_id, token: store.throttle([job_id, token, 500, "job"]),
    "release": lambda store, job_id, token: store.release([job_id, token]),
    "defer": lambda store, job_id, token: store.defer([job_id, token, "t", 5000], 1000, 60_000, b"[]"),
    "renew": lambda store, job_id, token: store.renew([job_id, token], 40_000),
    "progress": lambda store, job_id, token: store.progress([job_id, token, "1"]),
    "log": lambda store, job_id, token: store.log([job_id, token, 0, 1, "l"]),
}
"""All verbs that take a token."""
COUNTING = ("complete", "fail")
SETTLES = ("complete", "reschedule", "fail", "snooze", "throttle", "release", "defer")


def lost(verb: str, *ids: str, standing: int = 0) -> list[Any]:
    """The reply of a verb that changed nothing."""
    if verb == "throttle":
        return [list(ids), []]
    return [standing, list(ids)] if verb in COUNTING else list(ids)


@pytest.mark.parametrize("token", STALE)
@pytest.mark.parametrize("verb", FENCED)
async def test_a_caller_without_the_lease_changes_not_one_byte(verb: str, token: str, bench: Bench):
    await bench.check(Case("", held("a"), lambda store: FENCED[verb](store, "a", token), {}, lost(verb, "a")))


@pytest.mark.parametrize("state", ["waiting", "delayed", "completed", "failed", "blocked", None])
@pytest.mark.parametrize("verb", FENCED)
async def test_a_job_that_is_not_active_has_no_lease(verb: str, state: str | None, bench: Bench):
    before = standing(state, "a") if state else {}
    reply = lost(verb, "a", standing=int((verb, state) in {("complete", "completed"), ("fail", "failed")}))
    for token in (TOKEN, ""):
        await bench.check(Case("", before, lambda store, t=token: FENCED[verb](store, "a", t), {}, reply))


@pytest.mark.parametrize("verb", SETTLES)
async def test_an_outcome_whose_reply_was_lost_can_be_sent_again(verb: str, bench: Bench):
    await bench.seed(held("a"))
    await bench.do(FENCED[verb](bench.store, "a", TOKEN))
    settled = await bench.dump()
    assert settled != held("a")
    for other in FENCED:
        bench.now += 1
        reply = await bench.do(FENCED[other](bench.store, "a", TOKEN))
        assert reply == lost(other, "a", standing=int(other == verb and verb in COUNTING)), other
        assert await bench.dump() == settled, other
