"""enqueue.lua: new jobs to waiting or delayed, once."""

from __future__ import annotations

from typing import Any

import pytest
from columns import State, also
from table import NOW, WAKE, Bench, Case, jobs, place, standing, table, waiting


def enqueue(*rows: Any):
    return lambda store: store.enqueue(list(rows))


def meta(fifo: int, lifo: int | None = None) -> State:
    return {"meta": {"fifo": str(fifo)} | ({"lifo": str(lifo)} if lifo else {})}


@table(
    [
        Case(
            "first come, first in line",
            {},
            enqueue("a", "A", "", "b", "B", ""),
            waiting("a", "b") | meta(2) | WAKE,
            [],
        ),
        Case(
            "behind what waits",
            waiting("a", "b") | meta(2),
            enqueue("c", "C", ""),
            waiting("a", "b", "c") | meta(3) | WAKE,
            [],
        ),
        Case(
            "priorities to both ends of the range",
            {},
            enqueue("a", "A", "1023 0 0", "b", "B", "-1024 0 0", "c", "C", "5 0 0"),
            jobs("a", "b", "c")
            | {"waiting": {"b": place(2, -1024), "c": place(3, 5), "a": place(1, 1023)}}
            | {"priorities": {"a": "1023", "b": "-1024", "c": "5"}}
            | meta(3)
            | WAKE,
            [],
        ),
        Case(
            "LIFO goes in front, the last one foremost",
            {},
            enqueue("a", "A", "", "b", "B", "0 1 0", "c", "C", "3 1 0", "d", "D", "0 1 0"),
            jobs("a", "b", "c", "d")
            | {"waiting": {"d": place(-3), "b": place(-1), "a": place(1), "c": place(-2, 3)}}
            | {"priorities": {"b": "0L", "c": "3L", "d": "0L"}}
            | meta(4, 3)
            | WAKE,
            [],
        ),
        Case(
            "sequences stay exact at the edge of a double",
            {"meta": {"fifo": str(2**41 - 3), "lifo": str(2**41 - 1)}},
            enqueue("a", "A", "1023 0 0", "b", "B", "1023 0 0", "c", "C", "-1024 1 0"),
            jobs("a", "b", "c")
            | {"waiting": {"a": 2**52 - 2, "b": 2**52 - 1, "c": -(2**52)}}
            | {"priorities": {"a": "1023", "b": "1023", "c": "-1024L"}}
            | meta(2**41, 2**41)
            | WAKE,
            [],
        ),
        Case(
            "a delay goes to delayed, and a worker learns the due time",
            {},
            enqueue("a", "A", "0 0 500"),
            jobs("a") | {"delayed": {"a": NOW + 500}} | meta(1) | WAKE,
            [],
        ),
        Case(
            "a time to run at",
            {},
            enqueue("a", "A", "0 0 =1500", "b", "B", "0 0 =1000", "c", "C", "0 0 =900"),
            jobs("a", "b", "c") | {"delayed": {"a": 1500}, "waiting": {"b": place(2), "c": place(3)}} | meta(3) | WAKE,
            [],
        ),
        Case(
            "a delay keeps what the job needs when it is due",
            {},
            enqueue("a", "A", "-7 1 500"),
            jobs("a") | {"delayed": {"a": NOW + 500}, "priorities": {"a": "-7L"}} | meta(1) | WAKE,
            [],
        ),
        Case(
            "a later delay wakes nobody: a worker watches the clock already",
            standing("delayed", "z", score=1499),
            enqueue("a", "A", "0 0 500"),
            also(standing("delayed", "z", score=1499), jobs("a"), {"delayed": {"a": 1500}}) | meta(1),
            [],
        ),
        Case(
            "an earlier delay wakes, also among others in its batch",
            standing("delayed", "z", score=1300),
            enqueue("a", "A", "0 0 500", "b", "B", "0 0 200", "c", "C", "0 0 700"),
            also(
                standing("delayed", "z", score=1300),
                jobs("a", "b", "c"),
                {"delayed": {"a": 1500, "b": 1200, "c": 1700}},
            )
            | meta(3)
            | WAKE,
            [],
        ),
        Case(
            "an id twice in one batch: the first one counts",
            {},
            enqueue("a", "A", "", "a", "other", "5 0 0", "b", "B", ""),
            jobs("a", "b") | {"waiting": {"a": place(1), "b": place(3)}} | meta(3) | WAKE,
            [2, "a", "!"],
        ),
        Case(
            "the same job twice in one batch",
            {},
            enqueue("a", "A", "5 0 0", "a", "A", "5 0 0"),
            jobs("a") | {"waiting": {"a": place(1, 5)}, "priorities": {"a": "5"}} | meta(2) | WAKE,
            [2, "a", "-"],
        ),
        Case(
            "a known id is answered by itself, whatever is asked",
            standing("completed", "a"),
            enqueue("a", "A", "5 1 500"),
            meta(1),
            [1, "a", "-"],
        ),
        Case(
            "the id of another job is a conflict",
            standing("completed", "a"),
            enqueue("a", "other", "5 1 500"),
            meta(1),
            [1, "a", "!"],
        ),
        Case(
            "a job is the same one whenever it was sent",
            {"jobs": {"a": '{"type":"t\\",","at":123,"payload":{}}', "b": '{"type":"t","at":9}'}}
            | {"completed": {"a": 900, "b": 900}},
            enqueue("a", '{"type":"t\\",","at":4567,"payload":{}}', "", "b", '{"type":"t","at":1}', ""),
            meta(2),
            [1, "a", "-", 2, "b", "-"],
        ),
        Case(
            "a payload may have a field of that name",
            {"jobs": {"a": '{"type":"t","payload":{"x":1,"at":5}}'}, "completed": {"a": 900}},
            enqueue("a", '{"type":"t","payload":{"x":1,"at":6}}', ""),
            meta(1),
            [1, "a", "!"],
        ),
        Case(
            "an id twice among plain ones: the first one counts",
            {},
            enqueue("a", "A", "", "a", "other", "", "b", "B", ""),
            jobs("a", "b") | {"waiting": {"a": place(1), "b": place(3)}} | meta(3) | WAKE,
            [2, "a", "!"],
        ),
        Case(
            "a known id among plain ones is answered by itself, the others go in",
            standing("completed", "b"),
            enqueue("a", "A", "", "b", "other", "", "c", "C", ""),
            also(standing("completed", "b"), jobs("a", "c"), {"waiting": {"a": place(1), "c": place(3)}})
            | meta(3)
            | WAKE,
            [2, "b", "!"],
        ),
        Case(
            "a known id alone: something is written all the same, since WAIT waits for its connection's last write",
            waiting("a") | meta(1),
            enqueue("a", "A", ""),
            meta(2),
            [1, "a", "-"],
        ),
        Case(
            "known and new ids in one batch",
            waiting("a") | meta(1),
            enqueue("a", "A", "", "b", "B", ""),
            jobs("a", "b") | {"waiting": {"a": place(1), "b": place(3)}} | meta(3) | WAKE,
            [1, "a", "-"],
        ),
    ]
)
async def test_enqueue(case: Case, bench: Bench):
    await bench.check(case)


async def test_a_repeated_enqueue_writes_nothing_twice(bench: Bench):
    """The reply was lost and the call is repeated after other calls have changed the queue."""
    rows = [
        "a", "A", "", "b", "B", "5 1 0", "c", "C", "0 0 700",
    ]  # fmt: skip
    assert await bench.do(bench.store.enqueue(list(rows))) == []
    await bench.do(bench.store.claim(1, 30_000, "w", "w:0", 1, repeated=False))
    before = await bench.dump()
    assert await bench.do(bench.store.enqueue(list(rows))) == [
        1, "a", "-", 2, "b", "-", 3, "c", "-",
    ]  # fmt: skip
    assert await bench.dump() == before | {"meta": before["meta"] | {"fifo": "6"}}


async def test_a_server_that_forgot_the_scripts_takes_plain_jobs_too(bench: Bench):
    """Such calls name fewer keys, also when they are sent with the whole script."""
    await bench.admin.command(b"SCRIPT", b"FLUSH")
    assert await bench.do(bench.store.enqueue(["a", "A", "", "b", "B", ""])) == []
    assert await bench.dump() == waiting("a", "b") | meta(2) | WAKE


async def test_a_full_batch_of_plain_jobs_stays_below_luas_limit(bench: Bench):
    assert await bench.do(bench.store.enqueue([word for i in range(2000) for word in (f"j{i}", "x", "")])) == []
    state = await bench.dump()
    assert len(state["waiting"]) == len(state["jobs"]) == 2000


async def test_a_full_batch_stays_below_luas_limit(bench: Bench):
    """The producer sends at most some 60 jobs with all options. 2,000 still work."""
    rows: list[Any] = [word for i in range(2000) for word in (f"j{i}", "x" * 100, f"{i % 7} {i % 2} {i % 3}")]
    assert await bench.do(bench.store.enqueue(rows)) == []
    state = await bench.dump()
    assert len(state["waiting"]) + len(state["delayed"]) == len(state["jobs"]) == 2000


@pytest.mark.parametrize("rows", [["a", "A", ""], ["a", "A", "", "b", "B", ""], ["a", "A", "0 0 500"]])
async def test_the_first_enqueue_learns_that_the_queue_is_new(rows: list[str], bench: Bench):
    assert await bench.store.do(bench.store.enqueue(list(rows))) == [0, b"", b"new"]
    assert await bench.store.do(bench.store.enqueue(["c", "C", *rows[2:3]])) != [0, b"", b"new"]
