"""claim.lua: the first of waiting to active, under a lease, with a fence that only grows."""

from __future__ import annotations

import time
from typing import Any

import pytest
from columns import State, also
from table import NOW, WAKE, Bench, Case, held, jobs, place, standing, table, waiting

from jobq.engine.store import Store

FENCE = str(NOW * 1000)
"""The fence of a claim at NOW in a queue that had none, in microseconds."""
MANY = [f"j{i:02}" for i in range(20)]
"""A number of jobs for which the script uses its other branch."""


def claim(want: int, request: int = 7, *, lane: str = "w:0", repeated: bool = False):
    return lambda store: store.claim(want, 30_000, "w", lane, request, repeated=repeated)


def taken(*ids: str, fence: str = FENCE, request: int = 7) -> State:
    """The columns of a claim of worker w."""
    return held(*ids, till=NOW + 30_000, token=f"{fence} w") | {
        "claims": {"w:0": f"{request} {fence} w {' '.join(ids)}"},
        "meta": {"fence": fence},
    }


def reply(*ids: str, fence: str = FENCE, charged: list[Any] | None = None, now: int = NOW) -> list[Any]:
    return [f"{fence} w", now, list(ids), [job_id.upper() for job_id in ids], charged or [], []]


@table(
    [
        Case("nothing waits", {}, claim(5), {}, None),
        Case("nothing is due to be looked at in other sets", standing("delayed", "a"), claim(5), {}, None),
        Case(
            "the lowest score first; who has room still listens, so no wake",
            jobs("a", "b", "c") | {"waiting": {"a": place(3, 5), "b": place(2), "c": place(9, -5)}},
            claim(5),
            {"waiting": {}} | taken("c", "b", "a"),
            reply("c", "b", "a"),
        ),
        Case(
            "as many as wanted; the baton goes on, since more waits",
            waiting("a", "b", "c"),
            claim(2),
            also(taken("a", "b"), jobs("c"), {"waiting": {"c": place(3)}}) | WAKE,
            reply("a", "b"),
        ),
        Case(
            "full, nothing waits, but somebody must watch the clock",
            also(waiting("a"), standing("delayed", "z")),
            claim(1),
            also(taken("a"), jobs("z"), {"waiting": {}}) | WAKE,
            reply("a"),
        ),
        Case(
            "full, and nothing else to do: no baton",
            also(waiting("a"), standing("completed", "z")),
            claim(1),
            also(taken("a"), jobs("z"), {"waiting": {}}),
            reply("a"),
        ),
        Case(
            "room left: the claimer itself watches what is delayed",
            also(waiting("a"), standing("delayed", "z")),
            claim(2),
            also(taken("a"), jobs("z"), {"waiting": {}}),
            reply("a"),
        ),
        Case("many at once", waiting(*MANY), claim(20), {"waiting": {}} | taken(*MANY), reply(*MANY)),
        Case("no room, nothing taken", waiting("a"), claim(0), {}, None),
        Case("paused", waiting("a") | {"meta": {"paused": "900"}}, claim(5), {}, ["paused", 1000, [], [], [], []]),
        Case(
            "the fence grows although the clock stands",
            waiting("a") | {"meta": {"fence": "1000000"}},
            claim(5),
            {"waiting": {}} | taken("a", fence="1000001"),
            reply("a", fence="1000001"),
        ),
        Case(
            "the fence grows although the clock went back",
            waiting("a") | {"meta": {"fence": "1722470400123999"}},
            claim(5),
            {"waiting": {}} | taken("a", fence="1722470400124000"),
            reply("a", fence="1722470400124000"),
        ),
        Case(
            "sixteen digits of the clock are exact",
            waiting("a"),
            claim(5),
            {
                "waiting": {},
                "active": {"a": 1722470430123},
                "leases": {"a": "1722470400123000 w"},
                "claims": {"w:0": "7 1722470400123000 w a"},
                "meta": {"fence": "1722470400123000"},
            },
            reply("a", fence="1722470400123000", now=1722470400123),
            now=1722470400123,
        ),
        Case(
            "attempts charged before, where there are any",
            waiting("a", "b") | {"attempts": {"b": "2", "z": "9"}},
            claim(5),
            {"waiting": {}} | taken("a", "b"),
            reply("a", "b", charged=[None, "2"]),
        ),
        Case(
            "a row that is gone is claimed all the same: it must end somewhere",
            {"waiting": {"a": place(1)}},
            claim(5),
            {"waiting": {}} | taken("a") | {"jobs": {}},
            [f"{FENCE} w", NOW, ["a"], [None], [], []],
        ),
    ]
)
async def test_claim(case: Case, bench: Bench):
    await bench.check(case)


LAST: State = held("a", "b", till=20_000, token="77 w") | {"claims": {"w:0": "7 77 w a b"}, "meta": {"fence": "77"}}
"""A claim of a and b was executed. Was its reply received?"""


@table(
    [
        Case(
            "the recorded answer, and nothing new",
            also(LAST, jobs("c"), {"waiting": {"c": place(3)}}),
            claim(2, repeated=True),
            {},
            reply("a", "b", fence="77"),
        ),
        Case(
            "only what is still held",
            also(LAST, {"leases": {"a": "78 x"}}),
            claim(2, repeated=True),
            {},
            reply("b", fence="77"),
        ),
        Case(
            "nothing is held any more: nothing, not something else",
            also(LAST, {"leases": {"a": "78 x", "b": "78 x"}}, jobs("c"), {"waiting": {"c": place(3)}}),
            claim(2, repeated=True),
            {},
            None,
        ),
        Case(
            "also while paused: these leases stand",
            also(LAST, {"meta": {"paused": "900"}}),
            claim(2, repeated=True),
            {},
            reply("a", "b", fence="77"),
        ),
        Case(
            "with what was charged",
            also(LAST, {"attempts": {"a": "1"}}),
            claim(2, repeated=True),
            {},
            reply("a", "b", fence="77", charged=["1", None]),
        ),
        Case(
            "not executed before: a claim as any other",
            also(held("a", token="77 w"), waiting("c"), {"claims": {"w:0": "6 77 w a"}}),
            claim(2, repeated=True),
            also(held("a", token="77 w"), taken("c"), {"waiting": {}, "claims": {"w:0": f"7 {FENCE} w c"}}),
            reply("c"),
        ),
        Case(
            "another lane's record is not looked at",
            also(waiting("c"), {"claims": {"w:1": "7 77 w a"}}),
            claim(2, repeated=True),
            also(taken("c"), {"waiting": {}, "claims": {"w:1": "7 77 w a"}}),
            reply("c"),
        ),
        Case(
            "the original comes after its repetition was answered: nothing",
            also(LAST, jobs("c"), {"waiting": {"c": place(3)}}),
            claim(2),
            {},
            None,
        ),
        Case(
            "the original comes after its lane's next request: nothing",
            also(LAST, jobs("c"), {"waiting": {"c": place(3)}}),
            claim(2, request=6),
            {},
            None,
        ),
        Case(
            "a repetition comes after its lane's next request: nothing",
            also(LAST, jobs("c"), {"waiting": {"c": place(3)}}),
            claim(2, request=6, repeated=True),
            {},
            None,
        ),
        Case(
            "request numbers are compared as numbers",
            also(waiting("c"), {"claims": {"w:0": "9 77 w a"}}),
            claim(2, request=10),
            also(taken("c", request=10), {"waiting": {}}),
            reply("c"),
        ),
        Case(
            "nothing waits: the repetition is recorded all the same",
            {},
            claim(2, repeated=True),
            {"claims": {"w:0": "7"}},
            None,
        ),
        Case(
            "the original comes after a repetition that found nothing: nothing",
            also(waiting("c"), {"claims": {"w:0": "7"}}),
            claim(2),
            {},
            None,
        ),
        Case(
            "a second repetition gets the answer of the first: nothing",
            also(waiting("c"), {"claims": {"w:0": "7"}}),
            claim(2, repeated=True),
            {},
            None,
        ),
        Case(
            "the next request is a claim as any other",
            also(waiting("c"), {"claims": {"w:0": "7"}}),
            claim(2, request=8),
            also(taken("c", request=8), {"waiting": {}}),
            reply("c"),
        ),
    ]
)
async def test_repeated(case: Case, bench: Bench):
    await bench.check(case)


async def test_jobs_are_claimed_in_order_of_priority_fifo_and_lifo(bench: Bench):
    """Priorities, FIFO within one millisecond, LIFO and released jobs, through the scripts themselves."""
    do, store = bench.do, bench.store
    await do(store.enqueue(["a1", "", "", "a2", "", "", "b1", "", "5 0 0", "c1", "", "-5 0 0"]))
    await do(store.enqueue(["a3", "", "", "l1", "", "0 1 0", "l2", "", "0 1 0", "b2", "", "5 1 0", "c2", "", "-5 0 0"]))
    ids = (await do(store.claim(100, 30_000, "w", "w:0", 1, repeated=False)))[2]
    assert ids == ["c1", "c2", "l2", "l1", "a1", "a2", "a3", "b2", "b1"]


async def test_released_jobs_come_first_and_keep_their_order(bench: Bench):
    do, store = bench.do, bench.store
    await do(store.enqueue(["a", "", "", "b", "", "", "c", "", "", "d", "", "-1 0 0", "e", "", "", "f", "", "1 0 0"]))
    token = (await do(store.claim(4, 30_000, "w", "w:0", 1, repeated=False)))[0]
    await do(store.enqueue(["l", "", "0 1 0"]))
    await do(store.release([word for job_id in ("d", "a", "b", "c") for word in (job_id, token)]))
    ids = (await do(store.claim(100, 30_000, "w", "w:0", 2, repeated=False)))[2]
    assert ids == ["d", "a", "b", "c", "l", "e", "f"]


async def test_no_job_is_claimed_twice(bench: Bench):
    do, store = bench.do, bench.store
    await do(store.enqueue([word for i in range(100) for word in (f"j{i:02}", "", "")]))
    claims = [await do(store.claim(7, 30_000, f"w{i}", f"w{i}:0", 1, repeated=False)) for i in range(20)]
    ids = [job_id for claimed in claims if claimed for job_id in claimed[2]]
    assert ids == [f"j{i:02}" for i in range(100)]
    tokens = [claimed[0] for claimed in claims if claimed]
    assert len(set(tokens)) == len(tokens)
    fences = [int(token.split()[0]) for token in tokens]
    assert fences == sorted(fences)


async def test_a_claim_of_many_jobs_makes_redis_use_a_table(bench: Bench, admin: Store):
    """Redis reads a list from its start for each access, which is three times the work at a few hundred leases."""
    do, store = bench.do, bench.store
    await do(store.enqueue([word for job_id in MANY for word in (job_id, "", "")]))
    await do(store.claim(len(MANY), 30_000, "w", "w:0", 1, repeated=False))
    assert await admin.command(b"OBJECT", b"ENCODING", store.keys["active"]) == b"skiplist"
    assert await admin.command(b"OBJECT", b"ENCODING", store.keys["leases"]) == b"hashtable"


@pytest.mark.parametrize("want", [1, 500, 3000])
async def test_a_claim_of_thousands_stays_below_luas_limit(want: int, bench: Bench):
    for page in range(6):
        await bench.do(bench.store.enqueue([word for i in range(500) for word in (f"j{page}-{i}", "", "")]))
    assert len((await bench.do(bench.store.claim(want, 30_000, "w", "w:0", 1, repeated=False)))[2]) == want


async def test_jobs_of_megabytes_come_a_few_at_a_time(bench: Bench):
    """The other jobs stay in place. A claim of hundreds of them would hold Redis for a second."""
    names = [f"j{i}" for i in range(9)]
    await bench.seed(
        {"waiting": {name: at for at, name in enumerate(names)}, "jobs": dict.fromkeys(names, "s" * 600_000)}
    )

    async def claim(request: int) -> list[str]:
        return (await bench.do(bench.store.claim(9, 30_000, "w", "w:0", request, repeated=False)))[2]

    assert await claim(1) == names[:2]
    assert (await bench.dump())["wake"], "whoever is idle is told of the rest"
    again = await bench.do(bench.store.claim(9, 30_000, "w", "w:0", 1, repeated=True))
    assert [again[2], [len(spec) for spec in again[3]]] == [names[:2], [600_000] * 2]
    assert await claim(2) == names[2:4]
    state = await bench.dump()
    assert list(state["waiting"]) == names[4:]
    assert sorted(state["active"]) == names[:4]


async def test_without_a_clock_the_time_is_the_servers(bench: Bench):
    store = Store(bench.store.connection, "test")
    await store.do(store.enqueue(["a", "A", ""]))
    before = time.time_ns() // 1_000_000
    claimed = await store.do(store.claim(1, 30_000, "w", "w:0", 1, repeated=False))
    assert claimed is not None
    assert before - 2 <= claimed.now <= time.time_ns() // 1_000_000 + 2
    assert claimed.token == b"%d w" % (claimed.now * 1000)
    assert (await bench.dump())["active"] == {"a": claimed.now + 30_000}


async def test_the_start_is_told_if_the_queue_tells_all_events(bench: Bench):
    """Until a reply says so, claims leave out the key of the events."""
    await bench.seed(waiting("a", "b", "c") | {"meta": {"events": "all"}})
    assert await bench.do(bench.store.claim(2, 30_000, "w", "w:0", 1, repeated=False)) == ["", 0, [], [], [], [], 0]
    token = (await bench.do(bench.store.claim(2, 30_000, "w", "w:0", 2, repeated=False)))[0]
    assert (await bench.dump())["events"] == [("started", "a b")]
    again = await bench.do(bench.store.claim(2, 30_000, "w", "w:0", 2, repeated=True))
    assert (again[0], again[2]) == (token, ["a", "b"])
    assert (await bench.dump())["events"] == [("started", "a b")], "a repeated claim tells nothing again"


async def test_the_start_is_not_told_if_nobody_asked_for_it(bench: Bench):
    await bench.seed(waiting("a") | {"meta": {"limited": "1", "events": "outcomes"}})
    bench.store.limited = True
    await bench.do(bench.store.claim(2, 30_000, "w", "w:0", 1, repeated=False))
    assert "events" not in await bench.dump()
