"""reap, trim, expire, heartbeat: the periodic duties."""

from __future__ import annotations

from typing import Any

import pytest
from columns import State, also
from table import NOW, TOKEN, Bench, Case, held, jobs, standing, table, waiting

from jobq.errors import StoreError

FENCE = str(NOW * 1000)
GAP, GRACE = 500, 300


def reap(limit: int = 100):
    return lambda store: store.reap(limit, 30_000, "sweeper", GAP, GRACE)


def swept(at: int = NOW, **others: str) -> State:
    return {"meta": {"swept": str(at), "longest_lease": "30000"} | others}


def reaped(*ids: str, holders: list[Any] | None = None, charged: list[Any] | None = None, fence: str = FENCE):
    return [
        f"{fence} sweeper",
        NOW,
        list(ids),
        [job_id.upper() for job_id in ids],
        charged or [],
        [TOKEN] * len(ids) if holders is None else holders,
    ]


def recovered(*ids: str, fence: str = FENCE) -> State:
    return held(*ids, till=31_000, token=f"{fence} sweeper")


@table(
    [
        Case("nothing is active", swept(), reap(), swept(), None),
        Case(
            "a lease runs until its last millisecond, that one included",
            also(held("a", till=1000), held("b", till=1001), swept()),
            reap(),
            swept(),
            None,
        ),
        Case(
            "what ran out is the sweeper's, with a new fence and a new lease; nobody else's changes",
            also(held("a", till=999), held("b", till=1000), held("c", till=5, token="6 x"), swept()),
            reap(),
            also(held("b", till=1000), recovered("c", "a")) | swept(fence=FENCE),
            reaped("c", "a", holders=["6 x", TOKEN]),
        ),
        Case(
            "a page, first those that ran out first",
            also(held("a", till=3), held("b", till=2), held("c", till=1), swept()),
            reap(2),
            also(held("a", till=3), recovered("c", "b")) | swept(fence=FENCE),
            reaped("c", "b"),
        ),
        Case(
            "the fence grows although the clock stands",
            held("a", till=1) | swept(fence="1000007"),
            reap(),
            recovered("a", fence="1000008") | swept(fence="1000008"),
            reaped("a", fence="1000008"),
        ),
        Case(
            "with what was charged before",
            held("a", "b", till=1) | {"attempts": {"b": "2"}} | swept(),
            reap(),
            recovered("a", "b") | swept(fence=FENCE),
            reaped("a", "b", charged=[None, "2"]),
        ),
        Case(
            "a job in active without a lease is recovered too",
            standing("active", "a", score=1) | swept(),
            reap(),
            recovered("a") | swept(fence=FENCE),
            reaped("a", holders=[None]),
        ),
        Case(
            "somebody swept within the gap",
            held("a", till=1) | swept(NOW - GAP),
            reap(),
            recovered("a") | swept(fence=FENCE),
            reaped("a"),
        ),
        Case(
            "nobody swept for longer: holders get time to renew first",
            held("a", till=1) | swept(NOW - GAP - 1),
            reap(),
            swept(reap_from=str(NOW + GRACE)),
            None,
        ),
        Case(
            "nobody ever swept: the server may have been away since the first claim",
            held("a", till=1),
            reap(),
            swept(reap_from=str(NOW + GRACE)),
            None,
        ),
        Case(
            "the grace is not over",
            held("a", till=1) | swept(NOW - 1, reap_from=str(NOW + 1)),
            reap(),
            swept(reap_from=str(NOW + 1)),
            None,
        ),
        Case(
            "the grace is over",
            held("a", till=1) | swept(NOW - 1, reap_from=str(NOW)),
            reap(),
            recovered("a") | swept(fence=FENCE, reap_from=str(NOW)),
            reaped("a"),
        ),
        Case(
            "paused: recovering is no claim",
            held("a", till=1) | swept(paused="7"),
            reap(),
            recovered("a") | swept(paused="7", fence=FENCE),
            reaped("a"),
        ),
        Case(
            "sixteen digits of the clock are exact",
            held("a", till=1722470400122) | swept(1722470400122),
            reap(),
            held("a", till=1722470430123, token="1722470400123000 sweeper")
            | swept(1722470400123, fence="1722470400123000"),
            ["1722470400123000 sweeper", 1722470400123, ["a"], ["A"], [], [TOKEN]],
            now=1722470400123,
        ),
        Case(
            "the clock was set back: recovery does not stop until it has come round again",
            held("a", till=1) | swept(NOW + 3_600_000, reap_from=str(NOW + 3_600_000)),
            reap(),
            swept(reap_from=str(NOW + GRACE)),
            None,
        ),
        Case(
            "the clock was set back, and nobody has given a grace yet",
            held("a", till=1) | swept(NOW + GAP + 1),
            reap(),
            swept(reap_from=str(NOW + GRACE)),
            None,
        ),
        Case(
            "the clock was set back within the gap, and the grace lies too far ahead",
            held("a", till=1) | swept(NOW, reap_from=str(NOW + 30_001)),
            reap(),
            swept(reap_from=str(NOW + GRACE)),
            None,
        ),
        Case(
            "another worker gives more grace",
            held("a", till=1) | swept(NOW, reap_from=str(NOW + 30_000)),
            reap(),
            {},
            None,
        ),
        Case(
            "the clock was set back a little: nothing is wrong",
            held("a", till=1) | swept(NOW + GAP),
            reap(),
            recovered("a") | swept(fence=FENCE),
            reaped("a"),
        ),
        Case(
            "a lease of the time before the clock was set back ends soon; one that somebody may give stays",
            also(held("a", till=3_600_000), held("b", till=31_000), held("c", till=31_001), swept()),
            reap(),
            also(held("a", "b", "c", till=31_000), swept()),
            None,
        ),
        Case(
            "such leases are shortened a page a call",
            also(held("a", till=40_000), held("b", till=50_000), swept()),
            reap(1),
            also(held("a", till=31_000), held("b", till=50_000), swept()),
            None,
        ),
        Case(
            "another worker gives longer leases",
            held("a", till=61_000) | swept(longest_lease="60000"),
            reap(),
            {},
            None,
        ),
        Case(
            "a worker of short leases leaves those of others the time to be renewed",
            also(held("a", till=NOW + 15_000), held("b", till=NOW + 15_001), swept(longest_lease="100")),
            lambda store: store.reap(9, 100, "sweeper", GAP, GRACE),
            also(held("a", "b", till=NOW + 15_000)),
            None,
        ),
    ]
)
async def test_reap(case: Case, bench: Bench):
    await bench.check(case)


async def test_jobs_of_megabytes_are_reaped_a_few_at_a_time(bench: Bench):
    names = [f"j{i}" for i in range(5)]
    await bench.seed(held(*names, till=1) | swept() | {"jobs": dict.fromkeys(names, "s" * 600_000)})
    sizes: list[int] = []
    while reply := await bench.do(bench.store.reap(9, 30_000, "sweeper", GAP, GRACE)):
        assert all(len(part) in (0, len(reply[2])) for part in reply[3:])
        sizes.append(len(reply[2]))
    assert sizes == [2, 2, 1]


async def test_reaping_again_takes_nothing_twice(bench: Bench):
    await bench.seed(held("a", till=1) | swept())
    assert await bench.do(bench.store.reap(9, 30_000, "sweeper", GAP, GRACE)) == reaped("a")
    after = await bench.dump()
    assert await bench.do(bench.store.reap(9, 30_000, "other", GAP, GRACE)) is None
    assert await bench.dump() == after


async def test_the_former_holder_of_a_reaped_lease_can_change_nothing(bench: Bench):
    await bench.seed(held("a", till=1) | swept())
    await bench.do(bench.store.reap(9, 30_000, "sweeper", GAP, GRACE))
    after = await bench.dump()
    assert await bench.do(bench.store.renew(["a", TOKEN], 99_000)) == ["a"]
    assert await bench.do(bench.store.complete(["a", TOKEN, "r", ""], [])) == [0, ["a"]]
    assert await bench.dump() == after


def trim(completed: int = 100, failed: int = 100, age: int = 10**6, page: int = 500, young_ms: int = 0, young: int = 9):
    return lambda store: store.trim(completed, failed, age, page, young_ms, young)


def finished(state: str, **scores: int) -> State:
    return jobs(*scores) | {state: scores}


@table(
    [
        Case("nothing is finished", also(waiting("a"), held("b")), trim(0, 0, 0), {}, 0),
        Case(
            "beyond the count the oldest go, of each kind",
            also(finished("completed", a=3, b=1, c=2), finished("failed", x=2, y=1)),
            trim(2, 1),
            also(finished("completed", a=3, c=2), finished("failed", x=2)),
            2,
        ),
        Case("exactly the count", finished("completed", a=3, b=1), trim(2), {}, 0),
        Case(
            "what is older goes, at its age to the millisecond",
            also(finished("completed", a=899, b=900, c=901), finished("failed", x=899, y=901)),
            trim(age=100),
            also(finished("completed", c=901), finished("failed", y=901)),
            3,
        ),
        Case(
            "too many and too old in one call, whichever is more",
            also(finished("completed", a=1, b=2, c=950, d=951), finished("failed", x=1, y=951, z=952)),
            trim(3, 1, 100),
            also(finished("completed", c=950, d=951), finished("failed", z=952)),
            4,
        ),
        Case(
            "a page a call, completed first",
            also(finished("completed", a=1, b=2), finished("failed", x=1, y=2)),
            trim(0, 0, page=3),
            {"jobs": {"y": "Y"}, "completed": {}, "failed": {"y": 2}},
            3,
        ),
        Case(
            "a page of age",
            also(finished("completed", a=1, b=2), finished("failed", x=1)),
            trim(age=1, page=1),
            {"jobs": {"b": "B", "x": "X"}, "completed": {"b": 2}},
            1,
        ),
        Case(
            "a retention of their own, in both sets, to the millisecond",
            also(finished("completed", a=900, b=900), finished("failed", x=900, y=900))
            | {"expires": {"a": 1000, "b": 1001, "x": 999, "y": 9000}},
            trim(),
            {"jobs": {"b": "B", "y": "Y"}, "completed": {"b": 900}, "failed": {"y": 900}}
            | {"expires": {"b": 1001, "y": 9000}},
            2,
        ),
        Case(
            "what has just finished stays, beyond the count and to the millisecond",
            also(finished("completed", a=899, b=900, c=901), finished("failed", x=900, y=901)),
            trim(0, 0, young_ms=100),
            also(finished("completed", c=901), finished("failed", y=901)),
            3,
        ),
        Case(
            "beyond the age too",
            finished("completed", a=899, b=901),
            trim(age=1, young_ms=100),
            finished("completed", b=901),
            1,
        ),
        Case(
            "but not more than so many of them",
            also(finished("completed", a=901, b=902, c=903), finished("failed", x=901, y=902)),
            trim(0, 0, young_ms=100, young=2),
            also(finished("completed", b=902, c=903), finished("failed", x=901, y=902)),
            1,
        ),
        Case(
            "no more goes than what is beyond the count, however old the rest is",
            finished("completed", a=1, b=2, c=3),
            trim(2, young_ms=100, young=0),
            finished("completed", b=2, c=3),
            1,
        ),
        Case(
            "what has a retention of its own stays as long behind it",
            finished("completed", a=900, b=900) | {"expires": {"a": 900, "b": 901}},
            trim(young_ms=100),
            finished("completed", b=900) | {"expires": {"b": 901}},
            1,
        ),
        Case(
            "unless too many have expired",
            finished("completed", a=900, b=900) | {"expires": {"a": 999, "b": 1001}},
            trim(young_ms=100, young=0),
            finished("completed", b=900) | {"expires": {"b": 1001}},
            1,
        ),
        Case(
            "what has expired leaves room for what has not",
            finished("completed", a=1, b=2, c=3) | {"expires": {"c": 1000}},
            trim(2),
            {"jobs": {"a": "A", "b": "B"}, "completed": {"a": 1, "b": 2}, "expires": {}},
            1,
        ),
        Case(
            "beyond the count, whatever retention it has of its own",
            finished("completed", a=1, b=2) | {"expires": {"a": 9000, "b": 9000}},
            trim(1),
            finished("completed", b=2) | {"expires": {"b": 9000}},
            1,
        ),
        Case(
            "expired and beyond the count: counted once",
            finished("completed", a=1, b=2) | {"expires": {"a": 1000}},
            trim(0, page=2),
            {"jobs": {}, "completed": {}, "expires": {}},
            2,
        ),
        Case(
            "a key without a time goes with its job, unless another has it now",
            finished("completed", a=1, b=2)
            | {"keys": {"a": "k\nl", "b": "m"}, "unique": {"k": "a -", "l": "z -", "m": "b -"}},
            trim(1),
            finished("completed", b=2) | {"keys": {"b": "m"}, "unique": {"l": "z -", "m": "b -"}},
            1,
        ),
        Case(
            "a key with a time goes with its job too, unless another has it now",
            finished("completed", a=1)
            | {"keys": {"a": "\tk\n\tl"}, "unique": {"k": "a -", "l": "z -"}, "unique_until": {"k": 9000, "l": 9000}},
            trim(0),
            {"completed": {}, "jobs": {}, "keys": {}, "unique": {"l": "z -"}, "unique_until": {"l": 9000}},
            1,
        ),
        Case(
            "the key of a request outlives its job",
            finished("completed", a=1) | {"unique": {"i:k": "a f00"}, "unique_until": {"i:k": 9000}},
            trim(0),
            {"completed": {}, "jobs": {}},
            1,
        ),
        Case(
            "everything else goes",
            finished("failed", a=1, b=2)
            | {
                column: {"a": "1", "b": "1"}
                for column in ("priorities", "attempts", "errors", "results", "progress", "logs", "unserved")
            },
            trim(failed=1),
            finished("failed", b=2)
            | {
                column: {"b": "1"}
                for column in ("priorities", "attempts", "errors", "results", "progress", "logs", "unserved")
            },
            1,
        ),
    ]
)
async def test_trim(case: Case, bench: Bench):
    await bench.check(case)


def expire(page: int = 500):
    return lambda store: store.expire(page)


KEPT = 2 * 60


@table(
    [
        Case("nothing to do", {"unique": {"k": "a -"}}, expire(), {}, 0),
        Case(
            "keys go when their time is over",
            {"unique": {"k": "a -", "l": "b -", "m": "c -"}, "unique_until": {"k": 1000, "l": 1001}},
            expire(),
            {"unique": {"l": "b -", "m": "c -"}, "unique_until": {"l": 1001}},
            1,
        ),
        Case(
            "a page a call, the first over first",
            {"unique": {"k": "a -", "l": "b -"}, "unique_until": {"k": 2, "l": 1}},
            expire(1),
            {"unique": {"k": "a -"}, "unique_until": {"k": 2}},
            1,
        ),
        Case(
            "minutes older than two hours go, totals stay",
            {
                "metrics": {
                    "completed": "9",
                    "s:1:run7:t": "9",
                    "m:99:completed": "1",
                    "m:100:failed": "1",
                    f"m:{KEPT + 100}:x": "1",
                }
            },
            expire(),
            {"metrics": {"completed": "9", "s:1:run7:t": "9", "m:100:failed": "1", f"m:{KEPT + 100}:x": "1"}},
            0,
            now=(KEPT + 100) * 60_000 + 59_999,
        ),
    ]
)
async def test_expire(case: Case, bench: Bench):
    await bench.check(case)


def heartbeat(worker: str, info: bytes):
    return lambda store: store.heartbeat(worker, info)


FORGOTTEN = 24 * 3600 * 1000
WORKERS: State = {
    "workers": {"v": 1, "w": 2, "x": 3},
    "workers_info": {"v": "{}", "w": "{}", "x": "{}"},
    "claims": {"v:0": "1 5 v a", "v:1": "1 5 v b", "w:0": "1 5 w c", "x:0": "1 5 x d"},
}


@table(
    [
        Case(
            "a new worker",
            {},
            heartbeat("w", b'{"pid":1}'),
            {"workers": {"w": NOW}, "workers_info": {"w": '{"pid":1}'}},
            1,
        ),
        Case(
            "it lives on",
            WORKERS,
            heartbeat("w", b"new"),
            {"workers": {"v": 1, "w": NOW, "x": 3}, "workers_info": {"v": "{}", "w": "new", "x": "{}"}},
            3,
        ),
        Case(
            "it leaves, with what it claimed last",
            WORKERS,
            heartbeat("v", b""),
            {
                "workers": {"w": 2, "x": 3},
                "workers_info": {"w": "{}", "x": "{}"},
                "claims": {"w:0": "1 5 w c", "x:0": "1 5 x d"},
            },
            2,
        ),
        Case("it leaves a second time", WORKERS, heartbeat("u", b""), {}, 3),
        Case(
            "who was not heard of for a day is forgotten, but not the one that speaks",
            WORKERS,
            heartbeat("w", b"new"),
            {
                "workers": {"w": FORGOTTEN + 2, "x": 3},
                "workers_info": {"w": "new", "x": "{}"},
                "claims": {"w:0": "1 5 w c", "x:0": "1 5 x d"},
            },
            2,
            now=FORGOTTEN + 2,
        ),
        Case(
            "the clock was set back: a dead worker's last word does not stay in the future",
            {"workers": {"v": NOW + 3_600_000, "w": NOW, "x": 3}},
            heartbeat("w", b"{}"),
            {"workers": {"v": NOW, "w": NOW, "x": 3}, "workers_info": {"w": "{}"}},
            3,
        ),
        Case(
            "claims of who died unknown go once there are more than workers can have",
            {**WORKERS, "claims": {**WORKERS["claims"], **{f"died:{n}:{n % 3}": "1 5 u e" for n in range(6)}}},
            heartbeat("w", b"{}"),
            {"workers": {"v": 1, "w": NOW, "x": 3}, "claims": WORKERS["claims"]},
            3,
        ),
        Case(
            "who leaves last leaves no claims behind",
            {"workers": {"w": 1}, "workers_info": {"w": "{}"}, "claims": {"w:0": "1 5 w c", "died:2": "1 5 u e"}},
            heartbeat("w", b""),
            {"workers": {}, "workers_info": {}, "claims": {}},
            0,
        ),
    ]
)
async def test_heartbeat(case: Case, bench: Bench):
    await bench.check(case)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("wrong", ["-1", "None", "", "nan"])
async def test_trim_refuses_limits_that_are_not_numbers_from_0_on(bench: Bench, number: int, wrong: str):
    """keep_completed=-1 used to remove all jobs, and None stopped the worker."""
    before = standing("completed", "a", "b") | {"expires": {"a": 1}}
    await bench.seed(before)
    words: list[Any] = [0, 0, 0, 10]
    words[number] = wrong
    with pytest.raises(StoreError, match=f'argument {number + 2} is "{wrong}"; give a number from 0 on'):
        await bench.do(bench.store.trim(*words))
    assert await bench.dump() == before
