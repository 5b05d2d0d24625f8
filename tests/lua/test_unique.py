"""enqueue_unique.lua: jobs with keys, and what becomes of them and of the holder if the key is held."""

from __future__ import annotations

from typing import Any

import pytest
from columns import State, also
from table import NOW, TOKEN, WAKE, Bench, Case, held, jobs, place, standing, table, waiting


def enqueue(*rows: Any):
    return lambda store: store.enqueue_unique(list(rows))


def own(key: str, mode: str = "unfinished", time: int = 0, on: str = "return", delay: int = -1, wait: int = -1) -> str:
    """The uniqueness of a job with this key. The specs of these tests are one letter."""
    return f"{mode} {time} {on} {delay} {wait} 0 {key}"


def meta(fifo: int) -> State:
    return {"meta": {"fifo": str(fifo)}}


def key(owner: str, name: str = "k", until: int | None = None, fingerprint: str = "-") -> State:
    """The columns of a job's key."""
    state: State = {"keys": {owner: name if until is None else f"\t{name}"}, "unique": {name: f"{owner} {fingerprint}"}}
    return state if until is None else state | {"unique_until": {name: until}}


def duplicates(n: int = 1) -> State:
    return {"metrics": {"duplicates": str(n), "m:0:duplicates": str(n)}}


@table(
    [
        Case("a free key", {}, enqueue("a", "A", "", own("k")), waiting("a") | key("a") | meta(1) | WAKE, []),
        Case(
            "keys hold any text in one line",
            {},
            enqueue("a", "A", "", own("one two  three \u00e9 ")),
            waiting("a") | key("a", "one two  three \u00e9 ") | meta(1) | WAKE,
            [],
        ),
        Case(
            "with a time of its own",
            {},
            enqueue("a", "A", "", own("k", "enqueued", 1500)),
            waiting("a") | key("a", until=NOW + 1500) | meta(1) | WAKE,
            [],
        ),
        Case(
            "a key of the job, and the key of its request, which the job does not take along",
            {},
            enqueue("a", "A", "5 0 0", own("k") + "\n86400000 f00 i:x"),
            jobs("a")
            | {"waiting": {"a": place(1, 5)}, "priorities": {"a": "5"}}
            | {"keys": {"a": "k"}, "unique": {"k": "a -", "i:x": "a f00"}, "unique_until": {"i:x": 86_401_000}}
            | meta(1)
            | WAKE,
            [],
        ),
        Case(
            "the key of a request alone",
            {},
            enqueue("a", "A", "", "\n86400000 f00 i:x"),
            waiting("a") | {"unique": {"i:x": "a f00"}, "unique_until": {"i:x": 86_401_000}} | meta(1) | WAKE,
            [],
        ),
        Case(
            "no key at all",
            {},
            enqueue("a", "A", "", ""),
            waiting("a") | meta(1) | WAKE,
            [],
        ),
        Case(
            "the key of a request holds although its job is gone",
            {"unique": {"i:x": "z f00"}, "unique_until": {"i:x": NOW + 1}},
            enqueue("a", "A", "", "\n5000 f00 i:x"),
            meta(1),
            [1, "z", "f00", "", "returned"],
        ),
        Case(
            "a request that is a duplicate by its job's key gets the same answer again",
            standing("active", "z") | key("z"),
            enqueue("a", "A", "", own("k") + "\n5000 f00 i:x"),
            {"unique": {"k": "z -", "i:x": "z f00"}, "unique_until": {"i:x": NOW + 5000}} | meta(1) | duplicates(),
            [1, "z", "-", "active", "returned"],
        ),
        Case(
            "one batch, one key: the first job has it",
            {},
            enqueue("a", "A", "", own("k"), "b", "B", "", own("k"), "c", "C", "0 0 700", own("k")),
            waiting("a") | key("a") | meta(3) | WAKE | duplicates(2),
            [2, "a", "-", "waiting", "returned", 3, "a", "-", "waiting", "returned"],
        ),
        Case(
            "a key with time holds although its job is finished",
            standing("completed", "z") | key("z", until=NOW + 1),
            enqueue("a", "A", "", own("k", "enqueued", 5000)),
            meta(1) | duplicates(),
            [1, "z", "-", "completed", "returned"],
        ),
        Case(
            "a key with time is free once its job is gone",
            key("z", until=NOW + 1),
            enqueue("a", "A", "", own("k")),
            also(waiting("a"), key("z", until=NOW), key("a")) | {"unique_until": {}} | meta(1) | WAKE,
            [],
        ),
        Case(
            "a key whose time is over is free, although its job is not finished",
            standing("active", "z") | key("z", until=NOW),
            enqueue("a", "A", "", own("k", "enqueued", 5000)),
            also(standing("active", "z"), waiting("a"), key("z", until=NOW), key("a", until=NOW + 5000))
            | meta(1)
            | WAKE,
            [],
        ),
        Case(
            "a known id is answered by itself, whatever is asked",
            standing("completed", "a"),
            enqueue("a", "A", "5 1 500", own("k") + "\n1000 f i:x"),
            meta(1),
            [1, "a", "-", "completed", "returned"],
        ),
        Case(
            "the id of another job is a conflict",
            standing("completed", "a"),
            enqueue("a", "other", "", own("k")),
            meta(1),
            [1, "a", "!", "completed", "returned"],
        ),
        Case(
            "an earlier delay wakes",
            standing("delayed", "z", score=1300),
            enqueue("a", "A", "0 0 200", own("k")),
            also(standing("delayed", "z", score=1300), jobs("a"), {"delayed": {"a": 1200}}) | key("a") | meta(1) | WAKE,
            [],
        ),
        Case(
            "a later delay wakes nobody",
            standing("delayed", "z", score=1100),
            enqueue("a", "A", "0 0 =1200", own("k")),
            also(standing("delayed", "z", score=1100), jobs("a"), {"delayed": {"a": 1200}}) | key("a") | meta(1),
            [],
        ),
        Case(
            "a job with limits goes to held",
            {},
            enqueue("a", "A", "0 1 0\vr:1\ns", own("k")),
            jobs("a")
            | {"held": {"a": place(-1)}, "priorities": {"a": "0L"}, "limits": {"a": "r:1\ns"}}
            | {"held_by": {f"r:1\ns\0{place(-1) + 2**52:016}\0a": 0}, "arrivals": {"r:1\ns": place(-1)}}
            | {"meta": {"fifo": "1", "lifo": "1", "limited": "1"}}
            | key("a")
            | WAKE,
            [],
        ),
        Case(
            "the first delay is bounded by the longest wait, which is stored",
            {},
            enqueue("a", "A", "0 0 700", own("k", "queued", on="replace", delay=700, wait=500)),
            jobs("a")
            | {"delayed": {"a": 1500}, "keys": {"a": "queued\tk"}, "unique": {"k": "a - 1500"}}
            | meta(1)
            | WAKE,
            [],
        ),
    ]
)
async def test_keys(case: Case, bench: Bench):
    await bench.check(case)


# -- the table: while a job is in this state, is the key held? ---

STATES = ("waiting", "delayed", "held", "blocked", "active", "completed", "failed")
HOLDS = {
    "queued": ("waiting", "delayed", "held", "blocked"),
    "running": ("active",),
    "unfinished": ("waiting", "delayed", "held", "blocked", "active"),
    "ended": STATES,
    "enqueued": ("waiting", "delayed", "held", "blocked", "active"),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("mode", HOLDS)
async def test_while(mode: str, state: str, bench: Bench):
    """The job ended at 900, and `ended` is asked with 101 ms, so the key is free from 1001 on."""
    await bench.seed(standing(state, "z") | key("z"))
    reply = await bench.do(bench.store.enqueue_unique(["a", "A", "", own("k", mode, 101)]))
    assert reply == ([1, "z", "-", state, "returned"] if state in HOLDS[mode] else [])
    assert ("a" in (await bench.dump())["jobs"]) == (reply == [])


@pytest.mark.parametrize("state", ["completed", "failed"])
async def test_a_time_after_the_end_is_over(state: str, bench: Bench):
    await bench.seed(standing(state, "z") | key("z"))
    assert await bench.do(bench.store.enqueue_unique(["a", "A", "", own("k", "ended", 100)])) == []


@pytest.mark.parametrize("mode", HOLDS)
async def test_a_key_never_outlives_its_job(mode: str, bench: Bench):
    """A key whose row was left behind is free: its job stands in no set."""
    await bench.seed(key("z"))
    assert await bench.do(bench.store.enqueue_unique(["a", "A", "", own("k", mode, 10_000)])) == []


async def test_a_second_job_that_runs_holds_the_key_of_running_jobs(bench: Bench):
    """Two jobs were enqueued while none ran. The one that is not named by the row of the key runs."""
    await bench.seed(also(held("y"), waiting("z"), {"keys": {"y": "running\tk", "z": "running\tk"}}))
    await bench.seed({"unique": {"k": "z -"}, "running": {"k\0y": 0}})
    for on, done in (("return", "returned"), ("fail", "fail")):
        reply = await bench.do(bench.store.enqueue_unique(["a", "A", "", own("k", "running", on=on)]))
        assert reply == [1, "y", "-", "active", done]


async def claim(bench: Bench, want: int, request: int) -> list[str]:
    store = bench.store
    store.limited = True
    claimed = await store.do(store.claim(want, 30_000, "w", "w:0", request, repeated=False))
    return [] if claimed is None else [job_id.decode() for job_id in claimed.ids]


async def test_claims_note_the_keys_of_running_jobs(bench: Bench):
    """Jobs with keys of any kind hold the key while they run. What was noted of a job that has ended does not count."""
    store = bench.store
    assert await bench.do(store.enqueue_unique(["a", "A", "", own("k", "running")])) == []
    assert (await bench.dump())["meta"]["running"] == "1"
    await bench.do(store.enqueue_unique(["b", "B", "", own("l"), "c", "C", "", own("m", "queued")]))
    await bench.do(store.enqueue_unique(["d", "D", "", own("n", "enqueued", 9000), "e", "E", "", own("k", "running")]))
    await bench.do(store.enqueue(["f", "F", ""]))
    assert await claim(bench, 9, 1) == ["a", "b", "c", "d", "e", "f"]
    assert set((await bench.dump())["running"]) == {"k\0a", "k\0e", "l\0b", "m\0c", "n\0d"}
    for name, holder in (("k", "e"), ("l", "b"), ("m", "c"), ("n", "d")):
        reply = await bench.do(store.enqueue_unique(["x", "X", "", own(name, "running")]))
        assert reply == [1, holder, "-", "active", "returned"]
    token = (await bench.dump())["leases"]["a"]
    await bench.do(store.complete(["e", token, "r", ""], []))
    assert (await bench.do(store.enqueue_unique(["x", "X", "", own("k", "running")])))[1] == "a"
    await bench.do(store.fail(["a", token, 1, "{}", ""]))
    assert await bench.do(store.enqueue_unique(["x", "X", "", own("k", "running")])) == []
    assert set((await bench.dump())["running"]) == {"l\0b", "m\0c", "n\0d"}


async def test_an_id_twice_in_a_call_is_one_job_and_no_conflict(bench: Bench):
    row = ["a", "A", "", own("k", on="fail")]
    assert await bench.do(bench.store.enqueue_unique([*row, *row])) == [2, "a", "-", "waiting", "returned"]
    assert "metrics" not in await bench.dump()


async def test_a_claim_keeps_what_was_noted_of_jobs_that_run(bench: Bench):
    for n in range(6):
        await bench.do(bench.store.enqueue_unique([f"j{n}", "J", "", own(f"key {n}", "running")]))
        assert await claim(bench, 1, n + 1) == [f"j{n}"]
        assert set((await bench.dump())["running"]) == {f"key {m}\0j{m}" for m in range(n + 1)}


async def test_a_worker_that_knows_of_no_limits_notes_keys_too(bench: Bench):
    store = bench.store
    await bench.do(store.enqueue_unique(["a", "A", "", own("k", "running")]))
    first = await store.do(store.claim(1, 30_000, "w", "w:0", 1, repeated=False))
    assert first is not None
    assert (first.ids, first.limited_ms) == ([], 0), "it claims again with all keys"
    second = await store.do(store.claim(1, 30_000, "w", "w:0", 2, repeated=False))
    assert second is not None
    assert second.ids == [b"a"]
    assert (await bench.do(store.enqueue_unique(["x", "X", "", own("k", "running")])))[1] == "a"


@pytest.mark.parametrize("row", ["k", "\tk", "queued\tk"])
async def test_jobs_that_ran_before_the_first_such_enqueue_hold_their_keys(row: str, bench: Bench):
    """Claims note keys only from then on. The row of the key names these jobs."""
    for n, unique in enumerate(("z -", "y - - z", "y - 9000 z")):
        await bench.seed(also(held("z"), waiting("y"), {"keys": {"z": row, "y": "queued\tk"}, "unique": {"k": unique}}))
        reply = await bench.do(bench.store.enqueue_unique([f"x{n}", "X", "", own("k", "running")]))
        assert reply == [1, "z", "-", "active", "returned"]
        state = await bench.dump()
        assert (state["meta"]["running"], state["meta"]["limited"]) == ("1", "1")


async def test_what_is_noted_of_running_jobs_does_not_grow(bench: Bench):
    store = bench.store
    for n in range(200):
        await bench.do(store.enqueue_unique([f"j{n:03}", "J", "", own(f"key {n}", "running")]))
        assert await claim(bench, 1, n + 1) == [f"j{n:03}"]
        token = (await bench.dump())["leases"][f"j{n:03}"]
        await bench.do(store.complete([f"j{n:03}", token, "r", ""], []))
    assert len((await bench.dump())["running"]) < 20


async def test_a_key_of_running_jobs_costs_the_same_however_many_run(bench: Bench):
    """It read the keys of all running jobs: 11 ms for 10,000."""
    store = bench.store
    ids = [f"z{n:04}" for n in range(5000)]
    await bench.seed(
        held(*ids) | {"keys": {one: f"key {one}" for one in ids}, "meta": {"running": "1", "limited": "1"}}
    )
    await bench.seed({"running": {f"key {one}\0{one}": 0 for one in ids}})
    await bench.seed({"running": {f"many\0y{n:04}": 0 for n in range(150)} | {"many\0z0001": 0}})
    before = await calls_of(bench)
    for name, holder, most in (("key z4999", "z4999", 40), ("many", "z0001", 400), ("many", "z0001", 40)):
        reply = await bench.do(store.enqueue_unique(["x", "X", "", own(name, "running")]))
        assert reply[1] == holder
        after = await calls_of(bench)
        assert after - before < most, "what has ended is looked at once"
        before = after


async def calls_of(bench: Bench) -> int:
    """The commands that the server has executed, those of scripts included."""
    text = (await bench.admin.command(b"INFO", b"commandstats")).decode()
    return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in text.splitlines() if "calls=" in line)


# -- on conflict ---

OLD = '{"type":"t","at":5,"priority":3,"backoff":{"delay":7},"retention":900,"payload":{"x":1},"metadata":{"m":1}}'
NEW = '{"type":"t","at":9,"attempts":7,"timeout":50,"lifo":true,"payload":{"x":2}}'
WIDTH = len('{"type":"t"')


def changed(spec: str, on: str = "replace", mode: str = "unfinished", **more: int) -> list[Any]:
    delay, wait = more.get("delay", -1), more.get("wait", -1)
    return ["n", spec, "", f"{mode} 0 {on} {delay} {wait} {WIDTH} k"]


async def spec_of(bench: Bench, job_id: str = "z") -> str:
    return (await bench.dump())["jobs"][job_id]


@pytest.mark.parametrize("on", ["replace", "keep_last", "kill_running"])
@pytest.mark.parametrize("state", ["waiting", "delayed", "held", "blocked"])
async def test_the_data_of_a_job_that_waits_is_replaced(state: str, on: str, bench: Bench):
    """It keeps the place of the first, and gets the data of the last: payload and metadata."""
    before = {"jobs": {"z": OLD}, state: {"z": 1700}} | key("z")
    await bench.seed(before)
    assert await bench.do(bench.store.enqueue_unique(changed(NEW, on))) == [1, "z", "-", state, "replaced"]
    after = await bench.dump()
    head = '{"type":"t","at":5,"priority":3,"backoff":{"delay":7},"retention":900'
    assert after["jobs"] == {"z": head + ',"payload":{"x":2}}'}
    assert after[state] == {"z": 1700}, "its place"
    assert after["unique"] == before["unique"]
    assert set(after["replaced"]) == {"z"}


async def test_all_is_replaced_but_what_says_when_the_job_runs(bench: Bench):
    await bench.seed({"jobs": {"z": OLD}, "waiting": {"z": place(1, 3)}, "priorities": {"z": "3"}} | key("z"))
    assert (await bench.do(bench.store.enqueue_unique(changed(NEW, "replace_all"))))[4] == "replaced"
    spec = '{"type":"t","at":5,"priority":3,"attempts":7,"timeout":50,"payload":{"x":2}}'
    assert await spec_of(bench) == spec


def optioned(on: str, options: str) -> list[Any]:
    return ["n", NEW, options, f"unfinished 0 {on} -1 -1 {WIDTH} k"]


@pytest.mark.parametrize(
    ("options", "limits", "weights"),
    [("0 0 0\v@g\ns", "@g\ns", None), ("0 0 0\vs\v3\ntokens 5", "s", "3\ntokens 5"), ("", None, None)],
)
@pytest.mark.parametrize("state", ["waiting", "held", "delayed", "blocked"])
async def test_all_includes_the_limits_the_group_and_the_slots(
    state: str, options: str, limits: str | None, weights: str | None, bench: Bench
):
    """What the job had under its earlier limits is given back, and it waits for the new ones. Its place stays."""
    score = place(1, 3)
    row: State = {"jobs": {"z": OLD}, "limits": {"z": "r"}, "weights": {"z": "2"}, "priorities": {"z": "3"}}
    if state == "held":
        row |= {"held": {"z": score}, "held_by": {f"r\0{score + 2**52:016}\0z": 0}}
    else:
        row |= {state: {"z": score if state == "waiting" else 9000}}
    if state == "waiting":
        row |= {"admitted": {"r\0z": 0, f"r\0z\0{2}": 0}, "unspent": {"r\0z": 0}}
    await bench.seed(row | key("z"))
    assert (await bench.do(bench.store.enqueue_unique(optioned("replace_all", options))))[3:] == [state, "replaced"]
    after = await bench.dump()
    assert after.get("limits", {}).get("z") == limits
    assert after.get("weights", {}).get("z") == weights
    assert not {"admitted", "unspent"} & set(after)
    if state in ("waiting", "held"):
        where, other = ("held", "waiting") if limits else ("waiting", "held")
        assert after[where] == {"z": score}
        assert other not in after
        assert after.get("held_by", {}) == ({f"{limits}\0{score + 2**52:016}\0z": 0} if limits else {})
        assert "r" in after["openings"], "others may take the places that are free now"
        assert after["wake"]
    else:
        assert after[state] == {"z": 9000}
    assert after["meta"].get("limited") == ("1" if limits else None)


async def test_a_replaced_job_keeps_its_limits_unless_all_is_replaced(bench: Bench):
    score = place(1)
    before = {"limits": {"z": "r"}, "held": {"z": score}, "held_by": {f"r\0{score + 2**52:016}\0z": 0}}
    await bench.seed({"jobs": {"z": OLD}} | before | key("z"))
    for on, options in (("replace", "0 0 0\vs"), ("replace_all", "0 0 0\vr")):
        assert (await bench.do(bench.store.enqueue_unique(optioned(on, options))))[4] == "replaced"
        after = await bench.dump()
        assert {name: after[name] for name in before} == before
        assert "openings" not in after


async def test_the_delay_of_a_backoff_is_not_taken_for_that_of_the_job(bench: Bench):
    new = '{"type":"t","delay":40,"backoff":{"type":"fixed","delay":7},"payload":{"x":2}}'
    old = '{"type":"t","backoff":{"type":"fixed","delay":8},"lifo":true,"run_at":17}'
    await bench.seed({"jobs": {"z": old}, "waiting": {"z": place(1)}} | key("z"))
    await bench.do(bench.store.enqueue_unique(changed(new, "replace_all")))
    assert await spec_of(bench) == (
        '{"type":"t","backoff":{"type":"fixed","delay":7},"lifo":true,"run_at":17,"payload":{"x":2}}'
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('{"type":"t"}', '{"type":"t","payload":{"a":",\\"payload\\":"}}'),
        ('{"type":"t","payload":{"payload":1,"metadata":{}},"metadata":{"payload":2}}', '{"type":"t","payload":[]}'),
        ('{"type":"t","metadata":{"payload":2}}', '{"type":"t","metadata":{"payload":3}}'),
        ('{"type":"t","key":",\\"payload\\":","payload":7}', '{"type":"t","key":",\\"payload\\":"}'),
    ],
)
async def test_any_data_is_replaced_as_a_whole(old: str, new: str, bench: Bench):
    await bench.seed({"jobs": {"z": old}, "waiting": {"z": place(1)}} | key("z"))
    await bench.do(bench.store.enqueue_unique(changed(new)))
    assert await spec_of(bench) == new


async def test_a_job_of_another_type_is_not_given_the_data(bench: Bench):
    """Its handler takes other arguments."""
    await bench.seed({"jobs": {"z": OLD}, "waiting": {"z": place(1)}} | key("z"))
    width = len('{"type":"other"')
    row: list[Any] = ["n", '{"type":"other","payload":{}}', "", f"unfinished 0 replace_all -1 -1 {width} k"]
    assert await bench.do(bench.store.enqueue_unique(row)) == [1, "z", "-", "waiting", "returned"]
    assert await spec_of(bench) == OLD


@pytest.mark.parametrize("on", ["replace", "replace_all", "extend"])
async def test_a_job_that_runs_is_not_changed(on: str, bench: Bench):
    await bench.seed(held("z") | key("z"))
    before = await bench.dump()
    reply = await bench.do(bench.store.enqueue_unique(changed(NEW, on, delay=100)))
    assert reply == [1, "z", "-", "active", "returned"]
    assert await bench.dump() == before | meta(1) | duplicates()


@pytest.mark.parametrize("on", ["replace", "replace_all", "keep_last", "kill_running", "extend"])
async def test_a_job_that_has_ended_is_not_changed(on: str, bench: Bench):
    await bench.seed(standing("completed", "z") | key("z"))
    before = await bench.dump()
    row: list[Any] = ["n", NEW, "", f"ended 5000 {on} 100 -1 {WIDTH} k"]
    assert await bench.do(bench.store.enqueue_unique(row)) == [1, "z", "-", "completed", "returned"]
    assert await bench.dump() == before | meta(1) | duplicates()


@pytest.mark.parametrize("on", ["replace", "replace_all", "extend"])
async def test_a_delayed_job_is_put_off_up_to_the_longest_wait(on: str, bench: Bench):
    """The wait counts from the first enqueue, and later calls cannot change it."""
    first: list[Any] = ["z", OLD, "0 0 300", f"queued 0 {on} 300 700 {WIDTH} k"]
    await bench.do(bench.store.enqueue_unique(first))
    dues: list[int] = []
    for at in (1100, 1250, 1450, 1600):
        bench.now = at
        row: list[Any] = [f"n{at}", NEW, "0 0 300", f"queued 0 {on} 300 9000 {WIDTH} k"]
        reply = await bench.do(bench.store.enqueue_unique(row))
        assert reply[:4] == [1, "z", "-", "delayed"]
        dues.append((await bench.dump())["delayed"]["z"])
    assert dues == [1400, 1550, 1700, 1700]
    assert reply[4] == ("returned" if on == "extend" else "replaced")
    assert '"run_at":1700' in await spec_of(bench)
    assert (await spec_of(bench)).count("run_at") == 1


async def test_a_job_is_never_put_off_to_an_earlier_time(bench: Bench):
    await bench.seed({"jobs": {"z": OLD}, "delayed": {"z": 9000}} | key("z"))
    assert (await bench.do(bench.store.enqueue_unique(changed(NEW, "extend", delay=10))))[4] == "returned"
    assert (await bench.dump())["delayed"] == {"z": 9000}


@pytest.mark.parametrize("row", [{"attempts": {"z": "1 1500"}}, {"unserved": {"z": "1 5000 t"}}])
async def test_a_backoff_or_a_parked_job_is_not_put_off(row: State, bench: Bench):
    """Steady traffic would postpone the next attempt for ever. Its data is replaced all the same."""
    await bench.seed({"jobs": {"z": OLD}, "delayed": {"z": 1500}} | key("z") | row)
    assert (await bench.do(bench.store.enqueue_unique(changed(NEW, delay=5000))))[4] == "replaced"
    assert (await bench.dump())["delayed"] == {"z": 1500}


async def test_fail_changes_nothing(bench: Bench):
    await bench.seed(waiting("z") | key("z"))
    before = await bench.dump()
    row: list[Any] = ["n", NEW, "", own("k", on="fail") + "\n5000 f00 i:x"]
    assert await bench.do(bench.store.enqueue_unique(row)) == [1, "z", "-", "waiting", "fail"]
    assert await bench.dump() == before | meta(1) | duplicates()


async def test_keep_last_waits_for_the_end_of_the_running_job(bench: Bench):
    """While one runs, exactly one more waits, with the newest data."""
    await bench.seed(held("z") | key("z"))
    assert await bench.do(bench.store.enqueue_unique(changed(OLD, "keep_last"))) == []
    state = await bench.dump()
    assert state["blocked"] == {"n": NOW}
    assert state["unique"] == {"k": "n - - z"}
    for number in range(3):
        row = changed(f'{{"type":"t","payload":{number}}}', "keep_last")
        reply = await bench.do(bench.store.enqueue_unique([f"m{number}", *row[1:]]))
        assert reply == [1, "n", "-", "blocked", "replaced"]
    assert '"payload":2' in await spec_of(bench, "n")
    await bench.do(bench.store.forward(10))
    assert (await bench.dump())["blocked"] == {"n": NOW}, "not before the end"
    bench.store.limited = True
    await bench.do(bench.store.complete(["z", TOKEN, "r", ""], []))
    assert (await bench.dump())["delayed"] == {"n": NOW}
    await bench.do(bench.store.forward(10))
    assert set((await bench.dump())["waiting"]) == {"n"}


ENDS: dict[str, Any] = {
    "complete": lambda s: s.complete(["z", TOKEN, "r", ""], []),
    "fail": lambda s: s.fail(["z", TOKEN, 1, "e", ""]),
    "kill": lambda s: s.kill(["z"], b"{}"),
}


@pytest.mark.parametrize("end", ENDS)
async def test_every_end_lets_the_last_one_run(end: str, bench: Bench):
    await bench.seed(held("z") | key("z"))
    bench.store.limited = True
    await bench.do(bench.store.enqueue_unique(["n", "N", "0 0 500", own("k", on="keep_last")]))
    await bench.do(ENDS[end](bench.store))
    state = await bench.dump()
    assert state["delayed"] == {"n": 1500}, "its own delay counts too"
    assert "blocked" not in state
    assert state["wake"] == {"t": 0}


async def test_the_removal_of_the_awaited_job_lets_the_last_one_run(bench: Bench):
    """Between two attempts a job is delayed, and can be removed."""
    await bench.seed(held("z") | key("z"))
    await bench.do(bench.store.enqueue_unique(["n", "N", "", own("k", on="keep_last")]))
    await bench.do(bench.store.reschedule(["z", TOKEN, 1, 500, "e"]))
    assert (await bench.dump())["blocked"] == {"n": NOW}, "the retries of the first one come first"
    await bench.do(bench.store.remove(["z"]))
    state = await bench.dump()
    assert state["delayed"] == {"n": NOW}
    assert state["unique"] == {"k": "n -"}


async def test_a_killed_waiter_does_not_hide_the_job_that_runs(bench: Bench):
    await bench.seed(held("z") | key("z"))
    await bench.do(bench.store.enqueue_unique(["n", "N", "", own("k", on="keep_last")]))
    await bench.do(bench.store.kill(["n"], b"{}"))
    assert await bench.do(bench.store.enqueue_unique(["m", "M", "", own("k")])) == [1, "z", "-", "active", "returned"]
    assert await bench.do(bench.store.retry(["n"])) == ["key z"]
    await bench.do(bench.store.remove(["n"]))
    assert await bench.do(bench.store.enqueue_unique(["m", "M", "", own("k")])) == [1, "z", "-", "active", "returned"]
    await bench.do(bench.store.enqueue_unique(["o", "O", "", own("k", on="keep_last")]))
    assert (await bench.dump())["blocked"] == {"o": NOW}


async def test_the_sweeper_releases_a_waiter_whose_job_has_ended(bench: Bench):
    """A worker that claimed the job before the queue had keep_last completes it with few keys."""
    await bench.seed(also(held("z", "y"), {"keys": {"z": "k", "y": "l"}, "unique": {"k": "z -", "l": "y -"}}))
    for job_id, name in (("n", "k"), ("m", "l")):
        await bench.do(bench.store.enqueue_unique([job_id, "N", "", own(name, on="keep_last")]))
    await bench.do(bench.store.complete(["z", TOKEN, "r", ""], []))
    assert set((await bench.dump())["blocked"]) == {"m", "n"}
    await bench.do(bench.store.expire(10))
    state = await bench.dump()
    assert set(state["blocked"]) == {"m"}
    assert set(state["delayed"]) == {"n"}


async def test_running_jobs_are_killed(bench: Bench, heard: list[bytes]):
    """The new job is enqueued, and what runs with its key ends as failed."""
    state = also(held("y", "z"), {"keys": {"y": "running\tk", "z": "running\tk"}, "unique": {"k": "z -"}})
    await bench.seed({"running": {"k\0y": 0, "k\0z": 0}})
    await bench.seed(state | {"limits": {"z": "r"}, "admitted": {"r\0z": 0}})
    await bench.seed({"jobs": {"z": '{"type":"t","retention":700,"payload":1}', "y": "Y"}})
    assert await bench.do(bench.store.enqueue_unique(changed(NEW, "kill_running", "running"))) == []
    after = await bench.dump()
    assert set(after["failed"]) == {"y", "z"}
    assert set(after["waiting"]) == {"n"}
    assert "leases" not in after
    assert after["attempts"] == {"y": "1", "z": "1"}
    assert after["expires"] == {"z": NOW + 700}
    assert "admitted" not in after
    assert "r" in after["openings"]
    assert after["metrics"]["failed"] == "2"
    assert sorted(words for _, words in after["events"]) == ["y", "z"]
    assert "the enqueue of job n" in after["errors"]["z"]
    await bench.do(bench.store.ready())
    assert sorted(heard) == [f"kill {job_id} {TOKEN}".encode() for job_id in "yz"]


async def test_killing_the_running_job_gives_the_waiting_one_its_turn(bench: Bench):
    await bench.seed(held("z") | key("z"))
    await bench.do(bench.store.enqueue_unique(["n", OLD, "", own("k", on="keep_last")]))
    row: list[Any] = ["m", NEW, "", f"unfinished 0 kill_running -1 -1 {WIDTH} k"]
    assert await bench.do(bench.store.enqueue_unique(row)) == [1, "n", "-", "delayed", "replaced"]
    state = await bench.dump()
    assert set(state["failed"]) == {"z"}
    assert state["delayed"] == {"n": NOW}
    assert "blocked" not in state
    assert state["wake"] == {"t": 0}


# -- repetitions ---


def again(call: Any) -> Any:
    call.send_again()
    return call


@pytest.mark.parametrize("on", ["replace", "replace_all", "extend", "keep_last", "kill_running"])
@pytest.mark.parametrize("how", [again, lambda call: call], ids=["of the call", "of the caller"])
async def test_a_repeated_change_changes_nothing(on: str, how: Any, bench: Bench):
    """The reply was lost. Meanwhile a newer enqueue has changed the job again, and the job has run."""
    await bench.seed({"jobs": {"z": OLD}, "delayed": {"z": 1100}} | key("z"))
    first = changed(NEW, on, delay=500)
    done = "extended" if on == "extend" else "replaced"
    assert await bench.do(bench.store.enqueue_unique(first)) == [1, "z", "-", "delayed", done]
    newer: list[Any] = ["m", '{"type":"t","payload":"newer"}', *changed(NEW, "replace")[2:]]
    await bench.do(bench.store.enqueue_unique(newer))
    for _ in range(2):
        before = await bench.dump()
        assert await bench.do(how(bench.store.enqueue_unique(first))) == [1, "z", "-", "delayed", done]
        assert {**await bench.dump(), "meta": {}} == {**before, "meta": {}}
        bench.now = 1700
        await bench.do(bench.store.forward(10))
        await bench.do(bench.store.claim(5, 1000, "w", "w:0", 1, repeated=False))


async def test_another_job_with_an_id_that_changed_a_job_before_is_new(bench: Bench):
    await bench.seed({"jobs": {"z": OLD}, "waiting": {"z": place(1)}} | key("z"))
    await bench.do(bench.store.enqueue_unique(changed(NEW)))
    other = '{"type":"t","payload":"other"}'
    assert (await bench.do(bench.store.enqueue_unique(changed(other))))[4] == "replaced"
    assert '"other"' in await spec_of(bench)


async def test_the_first_job_is_known_although_its_data_was_replaced(bench: Bench):
    """Its own enqueue is repeated because its reply was lost."""
    first: list[Any] = ["z", OLD, "", f"unfinished 0 replace -1 -1 {WIDTH} k"]
    await bench.do(bench.store.enqueue_unique(first))
    await bench.do(bench.store.enqueue_unique(changed(NEW)))
    before = await spec_of(bench)
    late = first[1].replace('"at":5', '"at":77')
    assert (await bench.do(bench.store.enqueue_unique(["z", late, *first[2:]])))[1:3] == ["z", "-"]
    assert (await bench.do(bench.store.enqueue_unique(["z", NEW[:-1] + ',"metadata":1}', *first[2:]])))[1:3] == [
        "z",
        "!",
    ]
    assert await spec_of(bench) == before


async def test_a_repeated_kill_kills_no_later_job(bench: Bench):
    await bench.seed(held("z") | key("z"))
    row = changed(NEW, "kill_running")
    await bench.do(bench.store.enqueue_unique(row))
    await bench.do(bench.store.claim(5, 1000, "w", "w:0", 1, repeated=False))
    assert (await bench.do(again(bench.store.enqueue_unique(row))))[:3] == [1, "n", "-"]
    assert set((await bench.dump())["active"]) == {"n"}


async def test_a_full_batch_stays_below_luas_limit(bench: Bench):
    """The producer sends at most some 60 jobs with keys. 1,500 still work."""
    rows: list[Any] = [
        word
        for i in range(1500)
        for word in (f"j{i}", "x" * 100, f"{i % 7} {i % 2} {i % 3}", own(f"k{i}") + f"\n1000 f i:{i}")
    ]
    assert await bench.do(bench.store.enqueue_unique(rows)) == []
    state = await bench.dump()
    assert len(state["waiting"]) + len(state["delayed"]) == len(state["jobs"]) == 1500


async def test_the_first_enqueue_learns_that_the_queue_is_new(bench: Bench):
    assert await bench.store.do(bench.store.enqueue_unique(["a", "A", "", own("k")])) == [0, b"", b"new", b"", b""]
    assert await bench.store.do(bench.store.enqueue_unique(["b", "B", "", own("l")])) == []


# -- retry ---


@pytest.mark.parametrize(
    ("mark", "rival", "refused"),
    [
        ("", "waiting", True),
        ("", "active", True),
        ("", "completed", False),
        ("queued\t", "waiting", True),
        ("queued\t", "active", False),
        ("running\t", "active", False),
        ("\t", "waiting", False),
    ],
)
async def test_a_retry_takes_its_key_again_unless_another_job_holds_it(
    mark: str, rival: str, refused: bool, bench: Bench
):
    await bench.seed(also(standing("failed", "z"), standing(rival, "y"), {"keys": {"z": f"{mark}k:some key"}}))
    await bench.seed({"unique": {"k:some key": "y -"}})
    assert await bench.do(bench.store.retry(["z"])) == ["key y" if refused else "failed"]
    if mark == "queued\t" and not refused:
        assert (await bench.dump())["unique"] == {"k:some key": "z - - y"}, "the job that runs stays known"


async def test_two_jobs_with_one_key_may_both_be_retried_by_their_worker(bench: Bench):
    """One ran while the other was enqueued. A conflict must not stop a retry, or the sweeper that makes it."""
    await bench.seed(also(held("y", "z"), {"keys": {"y": "queued\tk", "z": "queued\tk"}, "unique": {"k": "z - - y"}}))
    assert await bench.do(bench.store.reschedule(["y", TOKEN, 1, 5, "e", "z", TOKEN, 1, 5, "e"])) == []
    assert set((await bench.dump())["delayed"]) == {"y", "z"}


@pytest.mark.parametrize("verb", ["remove", "trim"])
async def test_a_removed_job_leaves_no_word_of_itself(verb: str, bench: Bench):
    """Its id may be used again, for a job without the key."""
    state = also(standing("failed", "y", score=1), standing("active", "z"), {"keys": {"y": "k", "z": "k"}})
    for row, left in (("z - - y", "z -"), ("y - 50 z", "z -"), ("y -", None), ("z -", "z -")):
        await bench.admin.command(b"FLUSHALL")
        await bench.seed(state | {"unique": {"k": row}})
        await bench.do(bench.store.remove(["y"]) if verb == "remove" else bench.store.trim(0, 0, 0, 10, 0, 0))
        assert (await bench.dump()).get("unique", {}).get("k") == left


# -- schedules ---


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("mode", HOLDS)
async def test_a_slot_is_skipped_while_the_key_of_its_job_is_held(mode: str, state: str, bench: Bench):
    """Jobs of schedules obey uniqueness like all others, and do not change the holder."""
    row = "running\tk" if mode == "running" else "k"
    await bench.seed(standing(state, "z") | key("z") | {"keys": {"z": row}, "schedule_rows": {"s": "1 5\n{}\n{}"}})
    fire = ["s", "1 5", b"1 6\n{}", 6000, b"1 7\n{}", 7000, "allow", 0, 1, "s~x", "S", "", own("k", mode, 101, "fail")]
    held = state in HOLDS[mode]
    assert await bench.do(bench.store.schedule_fire(fire)) == ["skipped" if held else "fired"]
    state_after = await bench.dump()
    assert ("s~x" in state_after["jobs"]) == (not held)
    if not held:
        assert state_after["unique"]["k"].startswith("s~x -")
