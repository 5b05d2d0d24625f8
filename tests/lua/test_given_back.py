"""What a job leaves behind that ends, or gets other limits: no place and no token under its keys, a look at each of
them, a call to a worker, and its turn for the job that waits for its end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from table import WAKE

if TYPE_CHECKING:
    from table import Bench

WIDTH = 10
"""Bytes of a spec up to the end of its type."""
ROOM = "9 1000/1000/9"
BYTES = b'{"type":"t","payload":1}'


async def enqueue(bench: Bench, job_id: str, options: str, on: str = "return") -> Any:
    """A job with the deduplication key k."""
    return await bench.do(bench.store.enqueue_unique([job_id, BYTES, options, f"unfinished 0 {on} -1 -1 {WIDTH} k"]))


async def forget(bench: Bench) -> None:
    """Forget which keys somebody has to look at, and that a worker was called."""
    for column in ("openings", "wake"):
        await bench.admin.command(b"DEL", bench.admin.keys[column])


async def lapse(bench: Bench) -> Any:
    bench.now += 1000
    return await bench.do(bench.store.lapse(10, b'{"type":"Expired"}', b'{"type":"DeadlineExceeded"}'))


BEFORE_THE_START: dict[str, Any] = {
    "kill": lambda bench: bench.do(bench.store.kill(["a"], b"{}")),
    "remove": lambda bench: bench.do(bench.store.remove(["a"])),
    "lapse": lapse,
    "replace_all": lambda bench: enqueue(bench, "b", "0 0 0\vs", "replace_all"),
}


@pytest.mark.parametrize("how", BEFORE_THE_START)
async def test_a_job_that_was_admitted(bench: Bench, how: str):
    store = bench.store
    store.limited = True
    await bench.do(store.rule("set", "r", ROOM))
    await bench.do(store.rule("set", "s", ROOM))
    await enqueue(bench, "a", f"0 0 0\vr\v2\v{bench.now + 1000} -")
    await bench.do(store.admit(5, 50, 1))
    found = await bench.dump()
    assert (found["admitted"], found["unspent"]) == ({"r\0a": 0, "r\0a\x002": 0}, {"r\0a": 0})
    await forget(bench)
    await BEFORE_THE_START[how](bench)
    found = await bench.dump()
    assert not {"waiting", "admitted", "unspent"} & set(found)
    assert (found["openings"], found["wake"]) == ({"r": -math.inf}, WAKE["wake"])


async def run(bench: Bench) -> str:
    """Start the job a, which counts as two. Returns its token."""
    store = bench.store
    store.limited = True
    await bench.do(store.rule("set", "r", ROOM))
    await enqueue(bench, "a", "0 0 0\vr\v2")
    await bench.do(store.admit(5, 50, 1))
    claimed = await store.do(store.claim(5, 30_000, "w", "w:0", 1, repeated=False))
    assert claimed
    assert set((await bench.dump())["admitted"]) == {"r\0a", "r\0a\x002", "queue\0a\x002"}
    return claimed.token.decode()


RUNNING: dict[str, Any] = {
    "complete": lambda bench, token: bench.store.complete(["a", token, b"r", ""], []),
    "fail": lambda bench, token: bench.store.fail(["a", token, 1, b"{}", ""]),
    "reschedule": lambda bench, token: bench.store.reschedule(["a", token, 1, 500, b"{}"]),
    "release": lambda bench, token: bench.store.release(["a", token]),
    "defer": lambda bench, token: bench.store.defer(["a", token, "", 0], 500, 500, b"[]"),
    "snooze": lambda bench, token: bench.store.snooze(["a", token, 500]),
    "throttle": lambda bench, token: bench.store.throttle(["a", token, 500, "job"]),
    "kill": lambda bench, _: bench.store.kill(["a"], b"{}"),
    "kill_running": lambda bench, _: bench.store.enqueue_unique(
        ["b", BYTES, "", f"unfinished 0 kill_running -1 -1 {WIDTH} k"]
    ),
}


@pytest.mark.parametrize("how", RUNNING)
async def test_a_job_that_runs(bench: Bench, how: str):
    token = await run(bench)
    await forget(bench)
    await bench.do(RUNNING[how](bench, token))
    found = await bench.dump()
    assert not {"active", "leases", "admitted", "unspent"} & set(found)
    assert found["openings"] == {"r": -math.inf}
    if how in ("kill", "kill_running"):
        assert found["wake"] == WAKE["wake"], "no worker claims next, as the one that ends a run does"


@pytest.mark.parametrize("how", ["complete", "fail", "kill", "remove", "lapse"])
async def test_the_job_that_waits_for_its_end_is_due_and_a_worker_is_called(bench: Bench, how: str):
    store = bench.store
    store.limited = True
    await enqueue(bench, "a", "0 0 0\v\v\v- 2000")
    claimed = await store.do(store.claim(5, 30_000, "w", "w:0", 1, repeated=False))
    assert claimed
    await enqueue(bench, "b", "", "keep_last")
    assert set((await bench.dump())["blocked"]) == {"b"}
    if how in ("remove", "lapse"):
        await bench.do(store.reschedule(["a", claimed.token, 1, 5000, b"{}"]))
    await forget(bench)
    if how in BEFORE_THE_START:
        await BEFORE_THE_START[how](bench)
    else:
        await bench.do(RUNNING[how](bench, claimed.token))
    found = await bench.dump()
    assert ("blocked" in found, set(found["delayed"]), found["wake"]) == (False, {"b"}, WAKE["wake"])


async def test_the_job_that_waits_for_one_that_is_replaced_is_due_and_a_worker_is_called(bench: Bench):
    store = bench.store
    store.limited = True
    await bench.do(store.rule("set", "r", "1 replace_oldest"))
    await enqueue(bench, "a", "0 0 0\vr")
    await bench.do(store.overflow(["a"]))
    await bench.do(store.admit(5, 50, 1))
    claimed = await store.do(store.claim(5, 30_000, "w", "w:0", 1, repeated=False))
    assert claimed
    await enqueue(bench, "b", "", "keep_last")
    await bench.do(store.release(["a", claimed.token]))
    await bench.do(store.admit(5, 50, 1))
    await bench.do(store.enqueue(["c", b"{}", "0 0 0\vr"]))
    await forget(bench)
    assert await bench.do(store.overflow(["c"])) == ["replaced_oldest"]
    found = await bench.dump()
    assert (set(found["failed"]), set(found["delayed"]), found["wake"]) == ({"a"}, {"b"}, WAKE["wake"])
    assert "blocked" not in found


@pytest.mark.parametrize("how", ["kill", "remove", "lapse"])
async def test_a_held_job_with_slots_lets_somebody_look_at_its_keys(bench: Bench, how: str):
    """Jobs that need fewer slots may wait behind it."""
    store = bench.store
    store.limited = True
    await bench.do(store.rule("set", "r", "1"))
    await bench.do(store.enqueue(["a", b"{}", f"0 0 0\vr\v2\v{bench.now + 1000} -"]))
    await forget(bench)
    await BEFORE_THE_START[how](bench)
    found = await bench.dump()
    assert (found["openings"], found["wake"]) == ({"r": -math.inf}, WAKE["wake"])
    assert not {"held", "held_by"} & set(found)


async def test_a_retried_job_waits_in_its_line_again(bench: Bench):
    store = bench.store
    await bench.do(store.enqueue(["a", b"{}", "0 0 0\vr"]))
    before = await bench.dump()
    assert set(before["held"]) == {"a"}
    await bench.do(store.kill(["a"], b"{}"))
    await bench.do(store.admit(5, 50, 1))
    await forget(bench)
    assert "arrivals" not in await bench.dump()
    assert await bench.do(store.retry(["a"])) == ["failed"]
    found = await bench.dump()
    (place,) = found["held"].values()
    assert place > before["held"]["a"]
    assert (found["arrivals"], found["wake"]) == ({"r": place}, WAKE["wake"])
    assert list(found["held_by"]) == [f"r\0{place + 2**52:016.0f}\0a"]


async def test_a_held_job_that_loses_its_limits_waits_and_a_worker_is_called(bench: Bench):
    store = bench.store
    store.limited = True
    await enqueue(bench, "a", "0 0 0\vr")
    await forget(bench)
    assert await enqueue(bench, "b", "", "replace_all") == [1, "a", "-", "held", "replaced"]
    found = await bench.dump()
    assert (set(found["waiting"]), found["wake"]) == ({"a"}, WAKE["wake"])
    assert not {"held", "held_by", "limits"} & set(found)
    assert (set(found["requests"]), set(found["answers"])) == ({"job:b"}, {"job:b"}), "a repetition gets this answer"


async def test_a_killed_job_makes_room_although_the_new_one_comes_later(bench: Bench):
    """The due time of the new job calls no worker, because another job is due before."""
    await run(bench)
    await bench.do(bench.store.enqueue(["x", b"{}", "0 0 50"]))
    await forget(bench)
    assert await enqueue(bench, "b", "0 0 5000", "kill_running") == []
    found = await bench.dump()
    assert (set(found["failed"]), set(found["delayed"]), found["wake"]) == ({"a"}, {"x", "b"}, WAKE["wake"])
