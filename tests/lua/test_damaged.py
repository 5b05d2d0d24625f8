"""One damaged value in a hash stops no script. Other jobs are enqueued, claimed and finished as before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from columns import KINDS, State, also
from table import NOW, TOKEN, Bench, held, place, standing, waiting
from test_scripts import BEFORE, CALLS, SCRIPTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobq.engine.store import Call, Store

GARBAGE = [
    "",
    "x",
    "-",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "1.5",
    "9223372036854775807",
    "-9223372036854775808",
    "9" * 400,
    "\n\t\n",
    "a b\tc",
    "\udcff\udcfe",
]
FIELDS: dict[str, tuple[str, ...]] = {
    "meta": (
        "fifo",
        "lifo",
        "fence",
        "swept",
        "reap_from",
        "longest_lease",
        "rebase",
        "closed",
        "moved",
        "later",
        "arrived",
        "aging",
        "aged",
        "planned",
    ),
    "metrics": (
        "completed",
        "failed",
        "retried",
        "unserved",
        "snoozed",
        "rate_limited",
        "m:0:completed",
        "m:0:failed",
        "m:0:retried",
        "s:0:run7:t",
    ),
    "claims": ("w:0", "other:0"),
    "unique": ("k",),
    "types": ("t",),
    "answers": ("r0",),
    "workers_info": ("w",),
    "breakers": ("t",),
    "history": ("", "t"),
}
"""The fields of a hash that do not belong to a job."""
JOBS = ("a", "b", "c", "d")


def fields(column: str) -> tuple[str, ...]:
    return FIELDS.get(column, JOBS)


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - {"open", "ready"}))
async def test_a_damaged_value_stops_no_script(name: str, bench: Bench) -> None:
    """``meta.layout`` is left out, because a queue with an unreadable layout must not be used."""
    columns = [column for column in SCRIPTS[name].keys if KINDS.get(column) == "hash"]
    for column in columns:
        for garbage in GARBAGE:
            await bench.admin.command(b"FLUSHALL")
            await bench.seed(also(BEFORE, {column: dict.fromkeys(fields(column), garbage)}))
            bench.store.limited = True  # all keys
            await bench.do(CALLS[name](bench.store))


COUNTED: dict[str, tuple[State, Callable[[Store], Call[Any]], tuple[str, ...]]] = {
    "complete": (
        held("a"),
        lambda s: s.complete(["a", TOKEN, "r", ""], ["run7:t", 1]),
        ("completed", "m:0:completed", "s:0:run7:t"),
    ),
    "fail": (held("a"), lambda s: s.fail(["a", TOKEN, 1, "e", ""]), ("failed", "m:0:failed")),
    "reschedule": (held("a"), lambda s: s.reschedule(["a", TOKEN, 1, 5, "e"]), ("retried", "m:0:retried")),
    "snooze": (held("a"), lambda s: s.snooze(["a", TOKEN, 5]), ("snoozed",)),
    "throttle": (held("a"), lambda s: s.throttle(["a", TOKEN, 5, "job"]), ("rate_limited",)),
    "defer": (held("a"), lambda s: s.defer(["a", TOKEN, "t", 5], 5, 5, b"[]"), ("unserved",)),
    "kill": (waiting("a"), lambda s: s.kill(["a"], b"e"), ("failed", "m:0:failed")),
}


@pytest.mark.parametrize("value", ["x", "", "1.5", "9223372036854775807"])
@pytest.mark.parametrize("name", COUNTED)
async def test_a_count_that_cannot_grow_starts_again(name: str, value: str, bench: Bench) -> None:
    before, make, counted = COUNTED[name]
    await bench.seed(also(before, {"metrics": dict.fromkeys(counted, value) | {"other": "5"}}))
    await bench.do(make(bench.store))
    assert (await bench.dump())["metrics"] == dict.fromkeys(counted, "1") | {"other": "5"}


PLACED: dict[str, tuple[State, Callable[[Store], Call[Any]]]] = {
    "enqueue, one": ({}, lambda s: s.enqueue(["n", "N", ""])),
    "enqueue, several": ({}, lambda s: s.enqueue(["n", "N", "", "o", "O", ""])),
    "enqueue, with options": ({}, lambda s: s.enqueue(["n", "N", "0 0 0", "o", "O", "1 0 0"])),
    "enqueue_unique": (
        {},
        lambda s: s.enqueue_unique(
            ["n", "N", "", "unfinished 0 return -1 -1 0 k", "o", "O", "", "unfinished 0 return -1 -1 0 l"]
        ),
    ),
    "forward": (standing("delayed", "n", "o"), lambda s: s.forward(10)),
    "promote": (standing("delayed", "n", "o"), lambda s: s.promote(["n", "o"])),
    "retry": (standing("failed", "n", "o"), lambda s: s.retry(["n", "o"])),
}


@pytest.mark.parametrize("value", ["x", "9223372036854775807", "9000000000000000000", "-9000000000000000000"])
@pytest.mark.parametrize("name", PLACED)
async def test_a_damaged_sequence_starts_again_behind_all_jobs(name: str, value: str, bench: Bench) -> None:
    """The number is low enough not to reach another priority. The next rebase makes it small again."""
    before, make = PLACED[name]
    await bench.seed(also(waiting("first"), before, {"meta": {"fifo": value}}))
    await bench.do(make(bench.store))
    await bench.do(bench.store.enqueue(["last", "L", ""]))
    order = list((await bench.dump())["waiting"])
    ours = [job_id for job_id in ("n", "o") if job_id in order]
    assert order[: len(ours) + 2] == ["first", *ours, "last"] or order == ["first", "n", "last", "o"]
    assert await bench.do(bench.store.rebase(100)) == 0
    found = await bench.dump()
    assert list(found["waiting"]) == order
    assert int(found["meta"]["fifo"]) <= len(order)


PUT_IN_FRONT: dict[str, tuple[State, Callable[[Store], Call[Any]]]] = {
    "release": (held("back", "behind"), lambda s: s.release(["back", TOKEN, "behind", TOKEN])),
    "recall": (
        standing("delayed", "back", "behind")
        | {"parked": {"t\0back": 0, "t\0behind": 0}, "unserved": {"back": "1 5 t", "behind": "1 5 t"}},
        lambda s: s.recall(10, ["t"]),
    ),
}


@pytest.mark.parametrize("value", ["x", "9223372036854775807"])
@pytest.mark.parametrize("name", PUT_IN_FRONT)
async def test_a_damaged_sequence_of_lifo_jobs_starts_again_before_all_jobs(
    name: str, value: str, bench: Bench
) -> None:
    before, make = PUT_IN_FRONT[name]
    await bench.seed(also(waiting("first"), before, {"meta": {"lifo": value}}))
    await bench.do(make(bench.store))
    await bench.do(bench.store.enqueue(["n", "N", "0 1 0"]))
    assert list((await bench.dump())["waiting"]) == ["n", "back", "behind", "first"]
    assert await bench.do(bench.store.rebase(100)) == 0
    found = await bench.dump()
    assert list(found["waiting"].items()) == [
        ("n", place(-3)),
        ("back", place(-2)),
        ("behind", place(-1)),
        ("first", place(1)),
    ]


@pytest.mark.parametrize("value", ["x", "nan", "inf", "1e300", "9007199254740993"])
@pytest.mark.parametrize("name", ["claim", "reap"])
async def test_a_damaged_fence_starts_again_at_the_clock(name: str, value: str, bench: Bench) -> None:
    """With a fence that cannot grow, two runs would have the same token."""
    await bench.seed(also(waiting("b"), held("a", till=1), {"meta": {"fence": value, "swept": str(NOW)}}))
    claimed = await bench.do(CALLS[name](bench.store))
    assert claimed[0] == "1000000 w"
    assert (await bench.dump())["meta"]["fence"] == "1000000"


@pytest.mark.parametrize("score", ["inf", "-inf", "1e300", "-1e300"])
async def test_rebase_passes_over_places_that_belong_to_no_priority(score: str, bench: Bench) -> None:
    """Rebase continues from priority to priority, and from such a position it would never end."""
    await bench.seed(also(waiting("a"), {"waiting": {"b": score}, "jobs": {"b": "B"}}))
    assert await bench.do(bench.store.rebase(100, -1)) == 0
    assert (await bench.dump())["waiting"]["a"] == place(1)


async def test_a_damaged_number_of_deferrals_does_not_end_the_waiting(bench: Bench) -> None:
    await bench.seed(also(held("a"), {"unserved": {"a": "-1e300"}}))
    await bench.do(bench.store.defer(["a", TOKEN, "", 0], 500, 1000, b"[]"))
    found = await bench.dump()
    assert found["delayed"] == {"a": NOW + 500}
    assert found["unserved"] == {"a": "1 500"}
