"""The scripts of schedules: heads are compared, jobs are enqueued once, and a row never stops halfway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from columns import also
from table import TOKEN, WAKE, Case, held, jobs, standing, table, waiting

if TYPE_CHECKING:
    from table import Bench

ROW = "1 5\n{}\n\n{}"
"""The row of a schedule with the head "1 5" that only code defines."""
FIRED, SKIPPED = "1 6\n{f}", "1 6\n{s}"
AT = {"meta": {"scheduled_at": "1000"}}
ONE = {"schedule_rows": {"s": ROW}, "schedules": {"s": 900}}


def group(
    *triples: str,
    head: str = "1 5",
    overlap: str = "skip",
    earlier: tuple[str, ...] = (),
    due: Any = 6000,
    late: Any = "",
) -> list[Any]:
    words = [word for at in range(0, len(triples), 3) for word in (*triples[at : at + 3], "")]
    return ["s", head, FIRED, due, SKIPPED, "", overlap, len(earlier), *earlier, len(triples) // 3, *words]


def fired(*, due: int | None = 6000) -> dict[str, Any]:
    return {"schedule_rows": {"s": FIRED + "\n\n{}"}, "schedules": {"s": due} if due else {}} | AT


def keyed(job_id: str, rule: str) -> list[Any]:
    """One job with the key k."""
    return [*group(job_id, job_id.upper(), "")[:-1], f"{rule} return -1 -1 0 k"]


HELD_BY_E = {"keys": {"e": "k"}, "unique": {"k": "e -"}}
SKIP = {"schedule_rows": {"s": SKIPPED + "\n\n{}"}, "schedules": {}} | AT
CASES = [
    Case("a slot gets its job", ONE, lambda s: s.schedule_fire(group("j", "J", "")),
         fired() | {"jobs": {"j": "J"}, "delayed": {"j": 1000}} | WAKE, ["fired"]),
    Case("the last slot ends the schedule", ONE, lambda s: s.schedule_fire(group("j", "J", "", due="")),
         fired(due=None) | {"jobs": {"j": "J"}, "delayed": {"j": 1000}} | WAKE, ["fired"]),
    Case("a row that others changed stays", ONE, lambda s: s.schedule_fire(group("j", "J", "", head="0 5")), AT,
         ["stale"]),
    Case("a row that is gone stays gone", {}, lambda s: s.schedule_fire(group("j", "J", "")), AT, ["stale"]),
    Case("a schedule without a job advances", ONE, lambda s: s.schedule_fire(group()), fired(), ["fired"]),
    Case("a job whose id is known is not written again", also(ONE, standing("failed", "j")),
         lambda s: s.schedule_fire(group("j", "other", "")), fired() | WAKE, ["fired"]),
    *[
        Case(f"skip: an earlier job is {state}", also(ONE, held("e") if state == "active" else standing(state, "e")),
             lambda s: s.schedule_fire(group("j", "J", "", earlier=("e",))), SKIP, ["skipped"])
        for state in ("waiting", "delayed", "active", "held", "blocked")
    ],
    Case("skip: earlier jobs have ended", also(ONE, standing("failed", "e"), standing("completed", "c")),
         lambda s: s.schedule_fire(group("j", "J", "", earlier=("e", "c", "gone"))),
         fired() | also(jobs("e", "c"), {"jobs": {"j": "J"}}) | {"delayed": {"j": 1000}} | WAKE, ["fired"]),
    Case("queue_one: one runs", also(ONE, held("e")),
         lambda s: s.schedule_fire(group("j", "J", "", overlap="queue_one", earlier=("e",))),
         fired() | also(jobs("e"), {"jobs": {"j": "J"}}) | {"delayed": {"j": 1000}} | WAKE, ["fired"]),
    Case("queue_one: one waits", also(ONE, waiting("e")),
         lambda s: s.schedule_fire(group("j", "J", "", overlap="queue_one", earlier=("e",))), SKIP, ["skipped"]),
    Case("allow: others do not matter", also(ONE, waiting("e")),
         lambda s: s.schedule_fire(group("j", "J", "", overlap="allow", earlier=("e",))),
         fired() | also(jobs("e"), {"jobs": {"j": "J"}}) | {"delayed": {"j": 1000}} | WAKE, ["fired"]),
    Case("options", ONE, lambda s: s.schedule_fire(group("j", "J", "-2 1 50\vr\nr:b\v3")),
         fired() | {"jobs": {"j": "J"}, "delayed": {"j": 1050}, "priorities": {"j": "-2L"}, "limits": {"j": "r\nr:b"},
                    "weights": {"j": "3"},
                    "meta": {"limited": "1", "scheduled_at": "1000"}} | WAKE, ["fired"]),
    # -- keys
    Case("its key is free: the job takes it", ONE, lambda s: s.schedule_fire(keyed("j", "unfinished 0")),
         fired() | {"jobs": {"j": "J"}, "delayed": {"j": 1000}, "keys": {"j": "k"}, "unique": {"k": "j -"}} | WAKE,
         ["fired"]),
    Case("its key is held: the schedule advances without a job", also(ONE, waiting("e"), HELD_BY_E),
         lambda s: s.schedule_fire(keyed("j", "unfinished 0")), SKIP, ["skipped"]),
    Case("the holder has ended: its key is free", also(ONE, standing("completed", "e"), HELD_BY_E),
         lambda s: s.schedule_fire(keyed("j", "unfinished 0")),
         fired() | also(jobs("e"), {"jobs": {"j": "J"}, "keys": {"e": "k", "j": "k"}})
         | {"delayed": {"j": 1000}, "unique": {"k": "j -"}} | WAKE, ["fired"]),
    Case("the time of the key is over", also(ONE, waiting("e"), HELD_BY_E, {"unique_until": {"k": 1000}}),
         lambda s: s.schedule_fire(keyed("j", "enqueued 50")),
         fired() | also(jobs("e"), {"jobs": {"j": "J"}, "keys": {"e": "k", "j": "\tk"}})
         | {"delayed": {"j": 1000}, "unique": {"k": "j -"}, "unique_until": {"k": 1050}} | WAKE, ["fired"]),
    Case("the time of an earlier job with the key is over, and the new one has none",
         also(ONE, waiting("e"), HELD_BY_E, {"unique_until": {"k": 1000}}),
         lambda s: s.schedule_fire(keyed("j", "unfinished 0")),
         fired() | also(jobs("e"), {"jobs": {"j": "J"}, "keys": {"e": "k", "j": "k"}})
         | {"delayed": {"j": 1000}, "unique": {"k": "j -"}, "unique_until": {}} | WAKE, ["fired"]),
    Case("the time of the key is not over, though its job has ended",
         also(ONE, standing("completed", "e"), HELD_BY_E, {"unique_until": {"k": 1001}}),
         lambda s: s.schedule_fire(keyed("j", "enqueued 50")), SKIP, ["skipped"]),
    Case("a slot of another schedule, in the same call, has taken the key",
         also(ONE, {"schedule_rows": {"t": ROW}, "schedules": {"t": 900}}),
         lambda s: s.schedule_fire([*keyed("j", "unfinished 0"), "t", *keyed("c", "unfinished 0")[1:]]),
         {"schedule_rows": {"s": FIRED + "\n\n{}", "t": SKIPPED + "\n\n{}"}, "schedules": {"s": 6000},
          "jobs": {"j": "J"}, "delayed": {"j": 1000}, "keys": {"j": "k"}, "unique": {"k": "j -"}} | AT | WAKE,
         ["fired", "skipped"]),
    Case("a job runs with a key that only running jobs hold",
         also(ONE, held("e"), {"running": {"k\0e": 0}}, {"meta": {"running": "1"}}),
         lambda s: s.schedule_fire(keyed("j", "running 0")),
         SKIP | {"meta": {"running": "1", "scheduled_at": "1000"}}, ["skipped"]),
    Case("the other job that the row of the key names runs",
         also(ONE, held("e"), {"unique": {"k": "gone - - e"}}, {"meta": {"running": "1"}}),
         lambda s: s.schedule_fire(keyed("j", "running 0")),
         SKIP | {"meta": {"running": "1", "scheduled_at": "1000"}}, ["skipped"]),
    Case("no job runs with the key: from now on claims note keys", also(ONE, {"running": {"k\0gone": 0}}),
         lambda s: s.schedule_fire(keyed("j", "running 0")),
         fired() | {"jobs": {"j": "J"}, "delayed": {"j": 1000}, "keys": {"j": "running\tk"}, "unique": {"k": "j -"},
                    "running": {}, "meta": {"running": "1", "limited": "1", "scheduled_at": "1000"}} | WAKE, ["fired"]),
    Case("of several jobs with a key one is enqueued", ONE,
         lambda s: s.schedule_fire([*keyed("j", "unfinished 0")[:8], 2, *keyed("j", "unfinished 0")[9:],
                                    *keyed("i", "unfinished 0")[9:]]),
         fired() | {"jobs": {"j": "J"}, "delayed": {"j": 1000}, "keys": {"j": "k"}, "unique": {"k": "j -"}} | WAKE,
         ["fired"]),
    Case("several jobs of several schedules",
         also(ONE, {"schedule_rows": {"t": ROW}, "schedules": {"t": 900}}),
         lambda s: s.schedule_fire([*group("a", "A", "", "b", "B", ""), "t", "9 9", *group("c", "C", "")[2:]]),
         {"schedule_rows": {"s": FIRED + "\n\n{}", "t": ROW}, "schedules": {"s": 6000, "t": 900},
          "jobs": {"a": "A", "b": "B"}, "delayed": {"a": 1000, "b": 1000}} | AT | WAKE, ["fired", "stale"]),
    Case("the latest time of a slot stays", also(ONE, {"meta": {"scheduled_at": "5000"}}),
         lambda s: s.schedule_fire(group()), {**fired(), "meta": {"scheduled_at": "5000"}}, ["fired"]),
    # -- due
    Case("nothing is due", {"schedules": {"s": 1500}, "schedule_rows": {"s": ROW}}, lambda s: s.schedule_due(10, 50),
         {}, [500, 0, "1000"]),
    Case("there is no schedule", {}, lambda s: s.schedule_due(10, 50), {}, [-1, 0, "1000"]),
    Case("what is due is lent", also(ONE, {"schedule_failures": {"s": "a b"}}), lambda s: s.schedule_due(10, 50),
         {"schedules": {"s": 1050}}, [50, 0, "1000", "s", ROW, "a b"]),
    Case("a schedule without a row is dropped", {"schedules": {"s": 900}}, lambda s: s.schedule_due(10, 50),
         {"schedules": {}}, [-1, 0, "1000"]),
    Case("the clock was set back", {"meta": {"scheduled_at": "2001"}}, lambda s: s.schedule_due(10, 50), {},
         [-1, 1, "1000"]),
    Case("the clock hardly moved", {"meta": {"scheduled_at": "2000"}}, lambda s: s.schedule_due(10, 50), {},
         [-1, 0, "1000"]),
    Case("all were planned again", {"meta": {"scheduled_at": "9000"}}, lambda s: s.schedule_due(10, 50, planned=True),
         AT, [-1, 0, "1000"]),
    # -- write
    Case("a new schedule", {}, lambda s: s.schedule_write("s", "", "1 5\n{}", "\n{}", 5000),
         {"schedule_rows": {"s": ROW}, "schedules": {"s": 5000}} | AT, "ok"),
    Case("a changed one", ONE, lambda s: s.schedule_write("s", "1 5", "2 7\n{}", "{o}\n{}", 7000),
         {"schedule_rows": {"s": "2 7\n{}\n{o}\n{}"}, "schedules": {"s": 7000}} | AT, "ok"),
    Case("a paused one is not due", ONE, lambda s: s.schedule_write("s", "1 5", "2 5\n{p}", "\n{}", ""),
         {"schedule_rows": {"s": "2 5\n{p}\n\n{}"}, "schedules": {}} | AT, "ok"),
    Case("others changed it", ONE, lambda s: s.schedule_write("s", "0 5", "2 7\n{}", "\n{}", 7000), {}, "stale"),
    Case("others made it", ONE, lambda s: s.schedule_write("s", "", "1 7\n{}", "\n{}", 7000), {}, "stale"),
    Case("others removed it", {}, lambda s: s.schedule_write("s", "1 5", "2 7\n{}", "\n{}", 7000), {}, "stale"),
    Case("a repeated call", ONE, lambda s: s.schedule_write("s", "0 3", "1 5\n{}", "\n{}", 7000), {}, "ok"),
    Case("too many", ONE, lambda s: s.schedule_write("t", "", "1 5\n{}", "\n{}", 7000, 1), {}, "full"),
    Case("removed", also(ONE, {"schedule_failures": {"s": "a"}, "schedule_seen": {"s": 5, "t": 5}}),
         lambda s: s.schedule_write("s", "1 5", "", "", ""),
         {"schedule_rows": {}, "schedules": {}, "schedule_failures": {}, "schedule_seen": {"t": 5}} | AT, "ok"),
    Case("removed already", {}, lambda s: s.schedule_write("s", "1 5", "", "", ""), {}, "ok"),
    Case("the latest time of a write stays", {"meta": {"scheduled_at": "5000"}},
         lambda s: s.schedule_write("s", "", "1 5\n{}", "\n{}", 5000),
         {"schedule_rows": {"s": ROW}, "schedules": {"s": 5000}}, "ok"),
    # -- seen
    Case("known and unknown names", ONE, lambda s: s.schedule_seen(["s", "x"]),
         {"schedule_seen": {"s": 1000, "": 1000}}, [1, "x"]),
    Case("no schedules", {}, lambda s: s.schedule_seen(["x"]), {}, [0, "x"]),
]  # fmt: skip


@table(CASES)
async def test_schedules(case: Case, bench: Bench):
    await bench.check(case)


async def test_writing_tells_the_workers(bench: Bench, heard: list[bytes], until: Any):
    await bench.do(bench.store.schedule_write("s", "", "1 5\n{}", "\n{}", 5000))
    await until(lambda: heard == [b"schedules"], "the workers heard of it")


@pytest.mark.parametrize(("before", "after"), [("", "s~1"), ("s~1 s~0", "s~2 s~1 s~0")])
async def test_failed_jobs_of_schedules_are_noted(bench: Bench, before: str, after: str):
    job_id = after.split()[0]
    await bench.seed(also(held(job_id, "t~1", "plain"), {"schedule_rows": {"s": ROW}}))
    if before:
        await bench.seed({"schedule_failures": {"s": before}})
    flat: list[Any] = []
    for one in (job_id, "t~1", "plain"):
        flat += (one, TOKEN, 1, "e", "")
    await bench.do(bench.store.fail(flat))
    assert (await bench.dump())["schedule_failures"] == {"s": after}


async def test_the_last_twenty_failures_are_kept(bench: Bench):
    await bench.seed({"schedule_rows": {"s": ROW}})
    for n in range(25):
        await bench.seed(held(f"s~{n}"))
        await bench.do(bench.store.fail([f"s~{n}", TOKEN, 1, "e", ""]))
    assert (await bench.dump())["schedule_failures"]["s"].split() == [f"s~{n}" for n in range(24, 4, -1)]


async def test_rows_of_more_than_a_megabyte_come_in_several_calls(bench: Bench):
    row = "1 5\n{}\n\n" + "x" * 600_000
    await bench.seed({"schedule_rows": dict.fromkeys("abc", row), "schedules": dict.fromkeys("abc", 900)})
    first = await bench.do(bench.store.schedule_due(10, 5000))
    assert first[3::3] == ["a", "b"]
    assert first[0] == 0
    assert (await bench.do(bench.store.schedule_due(10, 5000)))[3::3] == ["c"]
