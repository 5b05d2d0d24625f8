"""kill, retry and remove: what operators can do to a job in each state."""

from __future__ import annotations

from typing import Any

import pytest
from columns import State, also
from table import NOW, TOKEN, WAKE, Bench, Case, counted, held, jobs, place, standing, table, waiting

from jobq import JobNotFound, Queue

RECORD = b'{"attempt":0}'


def kill(*ids: str):
    return lambda store: store.kill(list(ids), RECORD)


KILLED: State = {"failed": {"a": NOW}, "errors": {"a": RECORD.decode()}}


@table(
    [
        Case(
            "waiting",
            waiting("a"),
            kill("a"),
            {"waiting": {}} | KILLED | counted("failed", "a", event="killed"),
            ["waiting"],
        ),
        Case(
            "delayed",
            standing("delayed", "a"),
            kill("a"),
            {"delayed": {}} | KILLED | counted("failed", "a", event="killed"),
            ["delayed"],
        ),
        Case(
            "blocked",
            standing("blocked", "a"),
            kill("a"),
            {"blocked": {}} | KILLED | counted("failed", "a", event="killed"),
            ["blocked"],
        ),
        Case(
            "active: the lease is gone, and its run is charged",
            held("a", "b") | {"attempts": {"a": "1 7 3"}, "errors": {"a": "e1"}},
            kill("a"),
            {"active": {"b": 31_000}, "leases": {"b": TOKEN}, "failed": {"a": NOW}, "attempts": {"a": "2 7 3"}}
            | {"errors": {"a": 'e1\n{"attempt":0}'}}
            | counted("failed", "a", event="killed"),
            ["active"],
        ),
        Case("completed", standing("completed", "a"), kill("a"), {}, [""]),
        Case("failed", standing("failed", "a"), kill("a"), {}, [""]),
        Case("unknown", standing("failed", "z"), kill("a"), {}, [""]),
        Case(
            "many at once, one of them twice",
            also(waiting("a"), standing("delayed", "b"), standing("completed", "c")),
            kill("b", "a", "c", "a"),
            {"waiting": {}, "delayed": {}, "failed": {"a": NOW, "b": NOW}}
            | {"errors": {"a": RECORD.decode(), "b": RECORD.decode()}}
            | counted("failed", "b", "a", event="killed"),
            ["delayed", "waiting", "", ""],
        ),
    ]
)
async def test_kill(case: Case, bench: Bench):
    await bench.check(case)


async def test_a_killed_job_keeps_its_own_retention(bench: Bench):
    await bench.seed(waiting("a"))
    assert await bench.do(bench.store.kill(["a", "nobody"], RECORD, 500)) == ["waiting", ""]
    assert (await bench.dump())["expires"] == {"a": 1500}


async def test_a_job_with_a_retention_of_zero_is_gone_after_an_operators_kill(queue: Queue):
    job = await queue.enqueue("t", retention=0)
    kept = await queue.enqueue("t")
    await queue.kill(job.id)
    await queue.kill(kept.id)
    with pytest.raises(JobNotFound):
        await job.row()
    assert (await kept.row()).state == "failed"


async def test_a_kill_publishes_a_message_to_the_worker(bench: Bench, heard: list[bytes], until):
    await bench.seed(also(held("a", "b"), waiting("c")))
    await bench.do(bench.store.kill(["a", "c", "b"], RECORD))
    await until(lambda: len(heard) == 2, "both kills heard")
    assert heard == [b"kill a 5 w", b"kill b 5 w"]


async def test_the_error_history_of_a_job_that_is_killed_again_and_again_is_bounded(bench: Bench):
    await bench.seed(waiting("a"))
    record = b"x" * 8000
    for _ in range(20):
        assert await bench.do(bench.store.kill(["a"], record)) == ["waiting"]
        assert await bench.do(bench.store.retry(["a"])) == ["failed"]
    assert len((await bench.dump())["errors"]["a"]) <= 65536


SINCE: State = {"attempts": {"a": "0 1000"}, "events": [("retried", "a")]}
"""The number of charged runs is 0, and the waiting time starts now."""


def retry(*ids: str):
    return lambda store: store.retry(list(ids))


@table(
    [
        Case(
            "from failed, behind what waits, as if it had never run; the reasons stay",
            also(
                standing("failed", "a", "b"),
                waiting("w"),
                {"attempts": {"a": "3"}, "errors": {"a": "e1"}, "progress": {"a": "9"}, "unserved": {"a": "2"}},
                {"expires": {"a": 9000, "b": 9000}, "meta": {"fifo": "1"}},
            ),
            retry("a"),
            {"failed": {"b": 900}, "waiting": {"w": place(1), "a": place(2)}, "meta": {"fifo": "2"}}
            | {"attempts": {"a": "0 1000"}, "progress": {}, "unserved": {}, "expires": {"b": 9000}}
            | {"events": [("retried", "a")]}
            | WAKE,
            ["failed"],
        ),
        Case(
            "from completed, without the old result",
            standing("completed", "a") | {"results": {"a": "r"}, "priorities": {"a": "-5"}},
            retry("a"),
            {"completed": {}, "results": {}, "waiting": {"a": place(1, -5)}, "meta": {"fifo": "1"}} | SINCE | WAKE,
            ["completed"],
        ),
        Case(
            "LIFO to the front again",
            standing("completed", "a") | {"priorities": {"a": "2L"}},
            retry("a"),
            {"completed": {}, "waiting": {"a": place(-1, 2)}, "meta": {"lifo": "1"}} | SINCE | WAKE,
            ["completed"],
        ),
        Case(
            "what is unfinished or unknown is left alone",
            also(waiting("a"), standing("delayed", "b"), held("c"), standing("blocked", "d")),
            retry("a", "b", "c", "d", "nobody"),
            {},
            ["", "", "", "", ""],
        ),
        Case(
            "its key is its own again",
            also(standing("failed", "a"), standing("completed", "b"))
            | {"keys": {"a": "k\nl", "b": "k"}, "unique": {"k": "b f00", "l": "a -"}},
            retry("a"),
            {"failed": {}, "waiting": {"a": place(1)}, "meta": {"fifo": "1"}, "unique": {"k": "a -", "l": "a -"}}
            | SINCE
            | WAKE,
            ["failed"],
        ),
        Case(
            "a key that another unfinished job holds is in the way",
            also(standing("failed", "a"), held("b")) | {"keys": {"a": "l\nk", "b": "k"}, "unique": {"k": "b -"}},
            retry("a"),
            {},
            ["key b"],
        ),
        Case(
            "two with one key: the first",
            standing("failed", "a", "b") | {"keys": {"a": "k", "b": "k"}, "unique": {"k": "b -"}},
            retry("a", "b"),
            {"failed": {"b": 900}, "waiting": {"a": place(1)}, "meta": {"fifo": "1"}, "unique": {"k": "a -"}}
            | SINCE
            | WAKE,
            ["failed", "key a"],
        ),
        Case(
            "a key that another job holds for a time is in the way",
            also(standing("failed", "a"), held("b"))
            | {"keys": {"a": "k", "b": "\tk"}, "unique": {"k": "b -"}, "unique_until": {"k": 9000}},
            retry("a"),
            {},
            ["key b"],
        ),
        Case(
            "a job that is gone holds no key",
            standing("failed", "a") | {"keys": {"a": "k"}, "unique": {"k": "z -"}, "unique_until": {"k": 9000}},
            retry("a"),
            waiting("a")
            | {"failed": {}, "meta": {"fifo": "1"}, "unique": {"k": "a -"}, "unique_until": {}}
            | SINCE
            | WAKE,
            ["failed"],
        ),
        Case(
            "a time that is over is not in the way, and is forgotten with the key's new holder",
            also(standing("failed", "a"), held("b"))
            | {"keys": {"a": "k", "b": "\tk"}, "unique": {"k": "b -"}, "unique_until": {"k": NOW}},
            retry("a"),
            {"failed": {}, "waiting": {"a": place(1)}, "meta": {"fifo": "1"}}
            | {"unique": {"k": "a -"}, "unique_until": {}}
            | SINCE
            | WAKE,
            ["failed"],
        ),
    ]
)
async def test_retry(case: Case, bench: Bench):
    await bench.check(case)


async def test_a_key_with_a_ttl_does_not_block_a_retry(bench: Bench):
    """The ttl of the job's own key has ended, so it does not matter that another job holds this key without a ttl."""
    before = also(standing("failed", "a"), held("b"), {"keys": {"a": "\tk\nl", "b": "k"}, "unique": {"k": "b -"}})
    changes = {"failed": {}, "waiting": {"a": place(1)}, "meta": {"fifo": "1"}, "unique": {"k": "b -", "l": "a -"}}
    await bench.check(Case("", before, retry("a"), changes | SINCE | WAKE, ["failed"]))


@pytest.mark.parametrize("rival", ["waiting", "delayed", "active", "blocked"])
async def test_any_unfinished_holder_of_the_key_blocks_a_retry(rival: str, bench: Bench):
    before = also(standing("failed", "a"), standing(rival, "b"), {"keys": {"a": "k"}, "unique": {"k": "b -"}})
    await bench.check(Case("", before, retry("a"), {}, ["key b"]))


async def test_a_key_whose_time_is_over_does_not_come_back_with_its_job(bench: Bench):
    """``key_ttl`` starts at the enqueue. A retry a day later must not hold the key while the job is unfinished."""
    do, store = bench.do, bench.store
    await do(store.enqueue_unique(["a", "A", "", "enqueued 500 return -1 -1 0 k"]))
    token = (await do(store.claim(1, 30_000, "w", "w:0", 1, repeated=False)))[0]
    await do(store.fail(["a", token, 1, "e", ""]))
    bench.now = 9000
    assert await do(store.expire(100)) == 1
    assert await do(store.retry(["a"])) == ["failed"]
    assert await do(store.enqueue_unique(["b", "B", "", "enqueued 500 return -1 -1 0 k"])) == []


def remove(*ids: str):
    return lambda store: store.remove(list(ids))


ALL_COLUMNS: State = {
    "jobs": {"a": "A", "z": "Z"},
    "priorities": {"a": "5L", "z": "1"},
    "attempts": {"a": "1", "z": "1"},
    "errors": {"a": "e", "z": "e"},
    "results": {"a": "r", "z": "r"},
    "progress": {"a": "1", "z": "1"},
    "logs": {"a": "l", "z": "l"},
    "unserved": {"a": "1 9 t", "z": "1 9 t"},
    "parked": {"t\0a": 0, "t\0z": 0},
    "keys": {"a": "k\n\tl\nm", "z": "\tn"},
    "unique": {"k": "a -", "l": "a f00", "m": "z -", "n": "z -"},
    "unique_until": {"l": 9000, "n": 9000},
    "expires": {"a": 9000, "z": 9000},
}
"""Job a with a value in each column, and job z, which stays."""
WITHOUT_A: State = {
    column: {name: value for name, value in content.items() if name not in ("a", "t\0a")}
    for column, content in ALL_COLUMNS.items()
} | {"unique": {"m": "z -", "n": "z -"}, "unique_until": {"n": 9000}}


@pytest.mark.parametrize("state", ["waiting", "delayed", "completed", "failed", "blocked"])
async def test_remove_leaves_nothing(state: str, bench: Bench):
    before = ALL_COLUMNS | {state: {"a": 900, "z": 901}}
    changes = WITHOUT_A | {state: {"z": 901}, "events": [("removed", "a", "types", "")]}
    await bench.check(Case("", before, remove("a"), changes, [state]))


async def test_remove_of_the_last_job_leaves_an_empty_database(bench: Bench):
    do, store = bench.do, bench.store
    rows: list[Any] = [
        "a", "A", "5 1 0", "enqueued 1000 return -1 -1 0 k", "b", "B", "0 0 700", "unfinished 0 return -1 -1 0 l",
    ]  # fmt: skip
    await do(store.enqueue_unique(rows))
    token = (await do(store.claim(1, 30_000, "w", "w:0", 1, repeated=False)))[0]
    await do(store.progress(["a", token, "1"]))
    await do(store.log(["a", token, 0, 1, "line"]))
    await do(store.reschedule(["a", token, 1, 0, "e1"]))
    await do(store.forward(5))
    token = (await do(store.claim(1, 30_000, "w", "w:0", 2, repeated=False)))[0]
    await do(store.defer(["a", token, "t", 1], 1, 1, b"[]"))
    bench.now += 1
    await do(store.forward(5))
    token = (await do(store.claim(1, 30_000, "w", "w:0", 3, repeated=False)))[0]
    await do(store.complete(["a", token, "r", 500], []))
    assert await do(store.remove(["a", "b"])) == ["completed", "delayed"]
    assert set(await bench.dump()) == {"meta", "metrics", "events", "wake", "claims", "requests", "answers", "removed"}


@table(
    [
        Case("active: kill it first", held("a"), remove("a"), {}, [""]),
        Case("unknown", waiting("z"), remove("a"), {}, [""]),
        Case(
            "many at once, one of them twice",
            also(waiting("a"), held("b"), standing("failed", "c")),
            remove("c", "b", "a", "a"),
            also(held("b")) | {"waiting": {}, "failed": {}, "events": [("removed", "c a", "types", "\n")]},
            ["failed", "", "waiting", ""],
        ),
        Case(
            "the types are told, as far as they can be read",
            {
                "jobs": {
                    "a": '{"type":"send mail","payload":{}}',
                    "b": '{"type":"a\\"b"}',
                    "c": "damaged",
                    "d": '{"type":"x"}',
                },
                "failed": {"a": 1, "b": 1, "c": 1, "d": 1},
            },
            remove("a", "b", "c", "d"),
            {"jobs": {}, "failed": {}, "events": [("removed", "a b c d", "types", "send mail\n\n\nx")]},
            ["failed"] * 4,
        ),
        Case(
            "specs behind the first MB are not read",
            {
                "jobs": {"a": '{"type":"x","payload":"' + "y" * 1_000_000 + '"}', "b": '{"type":"x"}'},
                "failed": {"a": 1, "b": 1},
            },
            remove("a", "b"),
            {"jobs": {}, "failed": {}, "events": [("removed", "a b", "types", "x\n")]},
            ["failed"] * 2,
        ),
        Case(
            "a key that went over to another job stays with it",
            also(standing("failed", "a"), waiting("b"), {"keys": {"a": "k", "b": "k"}, "unique": {"k": "b -"}}),
            remove("a"),
            jobs("b") | {"failed": {}, "keys": {"b": "k"}, "events": [("removed", "a", "types", "")]},
            ["failed"],
        ),
    ]
)
async def test_remove(case: Case, bench: Bench):
    await bench.check(case)


SENT_AT_900 = '{"type":"t","at":900,"payload":{"at":5,"x":",\\"at\\":7"}}'


@pytest.mark.parametrize("options", ["", "0 0 0", "3 0 500"])
@pytest.mark.parametrize(
    ("spec", "removed_at", "known"),
    [
        ("N", 1, True),
        (SENT_AT_900, 901, True),
        (SENT_AT_900, 900, False),
        (SENT_AT_900, 899, False),
        ("N", None, False),
    ],
)
async def test_a_repeated_enqueue_does_not_bring_back_a_removed_job(
    spec: str, removed_at: int | None, known: bool, options: str, bench: Bench
):
    """An id with a time of sending is the client's own: it may be used again behind the removal."""
    if removed_at is not None:
        await bench.seed({"removed": {"n": removed_at}})
    call = bench.store.enqueue(["m", "M", options, "n", spec, options])
    call.send_again()
    assert await bench.do(call) == ([2, "n", "-"] if known else [])
    assert set((await bench.dump())["jobs"]) == ({"m"} if known else {"m", "n"})
    call.send_again()
    assert (await bench.do(call))[:3] == [1, "m", "-"], "and it can be repeated more than once"


@pytest.mark.parametrize(("repeated", "removed_at"), [(True, 901), (True, 900), (False, 901)])
async def test_a_repeated_enqueue_with_a_key_does_not_bring_back_a_removed_job(
    repeated: bool, removed_at: int, bench: Bench
):
    """An enqueue that was sent once is no repetition: its id may be used again."""
    await bench.seed({"removed": {"n": removed_at}})
    call = bench.store.enqueue_unique(["n", SENT_AT_900, "", "unfinished 0 return -1 -1 0 k"])
    if repeated:
        call.send_again()
    known = repeated and removed_at > 900
    assert await bench.do(call) == ([1, "n", "-", "", "returned"] if known else [])
    assert ("jobs" in await bench.dump()) is not known


@pytest.mark.parametrize("options", ["", "0 0 0"])
async def test_an_enqueue_that_was_sent_once_may_use_the_id_of_a_removed_job(options: str, bench: Bench):
    await bench.seed({"removed": {"n": NOW}})
    assert await bench.do(bench.store.enqueue(["n", "N", options])) == []


async def test_the_ids_of_removed_jobs_are_bounded_in_number_and_time(bench: Bench):
    await bench.seed(also(waiting("a", "b"), {"removed": {f"o{n}": n / 100 for n in range(10_000)}}))
    assert await bench.do(bench.store.remove(["a", "nobody", "b"])) == ["waiting", "", "waiting"]
    found = (await bench.dump())["removed"]
    assert len(found) == 10_000
    assert "o1" not in found
    assert found["o2"] == 0.02
    assert (found["a"], found["b"]) == (NOW, NOW)
    bench.now += 120_000 - 1
    while await bench.do(bench.store.expire(1000)) == 1000:
        pass
    assert set((await bench.dump())["removed"]) == {"a", "b"}
    bench.now += 1
    assert await bench.do(bench.store.expire(1000)) == 2
    assert "removed" not in await bench.dump()


@pytest.mark.parametrize("verb", ["kill", "remove"])
async def test_a_late_outcome_does_not_revive_a_killed_or_removed_job(verb: str, bench: Bench):
    do, store = bench.do, bench.store
    await bench.seed(held("a"))
    await do(store.kill(["a"], RECORD))
    if verb == "remove":
        await do(store.remove(["a"]))
    after = await bench.dump()
    assert await do(store.complete(["a", TOKEN, "r", ""], [])) == [0, ["a"]]
    assert await do(store.reschedule(["a", TOKEN, 1, 0, "e"])) == ["a"]
    assert await do(store.release(["a", TOKEN])) == ["a"]
    assert await bench.dump() == after
    if verb == "remove":
        keys = await bench.admin.command(b"KEYS", b"*")
        assert {key.rpartition(b":")[2] for key in keys} == {b"events", b"metrics", b"requests", b"answers", b"removed"}
