"""Reading why a job does not run: each number is compared with what the sets say, under random moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from columns import also
from table import held, jobs, place, standing, waiting
from test_admission import KEYS, RULES, World

from jobq.engine.model.facts import JobFacts, QueueFacts, read_facts
from jobq.engine.store import reading

if TYPE_CHECKING:
    from table import Bench

LOW = 2**52
SPAN = 2**42


async def facts(bench: Bench, job_id: str = "") -> tuple[QueueFacts, JobFacts | None]:
    return read_facts(job_id, await bench.store.do(bench.store.why(job_id)))


def lines_of(state: dict[str, Any]) -> dict[str, list[tuple[int, str]]]:
    """Line -> places and ids of its held jobs."""
    found: dict[str, list[tuple[int, str]]] = {}
    for member in state.get("held_by", {}):
        line, digits, job = member.split("\0")
        found.setdefault(line, []).append((int(digits) - LOW, job))
    return {line: sorted(items) for line, items in found.items()}


def group_of(line: str) -> str:
    return line.partition("\n")[0][1:] if line.startswith("@") else ""


def before(items: list[tuple[int, str]], at: int) -> int:
    return sum(score < at for score, _ in items)


def expected(state: dict[str, Any], job: str) -> dict[str, Any]:
    """What why.lua says of a job, from a dump of the queue."""
    name = next(name for name in ("waiting", "held", "delayed", "active") if job in state.get(name, {}))
    at = state[name][job]
    if name in ("delayed", "active"):
        priority = int(state.get("priorities", {}).get(job, "0").rstrip("LF"))
        at = (priority + 1) * SPAN - 1
    row = state.get("limits", {}).get(job, "")
    lines, spots = lines_of(state), state.get("lines", {})
    full = {member.split("\0", 3)[3]: member for member in sorted(state.get("full_lines", {}))}
    scores = state.get("waiting", {}).values()
    group = group_of(row)
    own = before(lines.get(row, []), at)
    held_before = sum(score < at for score in state.get("held", {}).values())
    held_before -= sum(before(lines.get(line, []), at) for line in full if line != row)
    mates = {line: items for line, items in lines.items() if group and group_of(line) == group}
    turn = spots.get(f"@{group}")
    order = sorted(state.get("turns", {}))
    rank = order.index(turn) if turn else -1
    in_group = sum(before(items, at) for items in mates.values()) if group else own
    ahead = sum(score < at for score in scores)
    turns_before = in_group if group else ahead if name == "waiting" else own
    others = 0
    for place_, member in enumerate(order):
        other = member.split("\0")[1]
        taken = turns_before + (place_ < rank)
        has = sum(len(items) for line, items in lines.items() if group_of(line) == other)
        others += 0 if other == group else min(taken, has) if other else taken
    return {
        "state": name,
        "ahead": ahead,
        "others": others,
        "urgent": sum(score < at // SPAN * SPAN for score in scores),
        "held_before": held_before,
        "in_line": own,
        "in_group": in_group,
        "turn": rank,
        "keys": {key: expected_key(state, key, row, at) for key in row.split("\n") if key and key[0] != "@"},
    }


def expected_key(state: dict[str, Any], key: str, row: str, at: int) -> tuple[Any, ...]:
    lines, spots = lines_of(state), state.get("lines", {})
    group, own = group_of(row), before(lines.get(row, []), at)
    stands = spots.get(f"={row}", "").startswith(f"f{key}\0")
    ahead, passed = own, not stands
    for member in sorted(state.get("full_lines", {})):
        if member.split("\0")[0] != key:
            continue
        line = member.split("\0", 3)[3]
        if line == row:
            passed = True
        elif group_of(line) == group:
            ahead += before(lines.get(line, []), at)
        else:
            ahead += min(len(lines.get(line, [])), own + (not passed))
    places = sum(member.split("\0")[0] == key for member in state.get("admitted", {}))
    tokens = sum(member.split("\0")[0] == key for member in state.get("unspent", {}))
    return places, tokens, ahead, stands


@pytest.mark.parametrize("grouped", [False, True], ids=["", "groups"])
@pytest.mark.parametrize("seed", range(6))
async def test_every_number_is_what_the_sets_say(
    bench: Bench, seed: int, grouped: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reading, "WHY_LINES", 1000)
    world = World(bench, seed)
    for name, text in RULES.items():
        await world.rule(name, text)
    draw = world.random
    asked = 0
    for step in range(60):
        what = draw.random()
        if what < 0.6:
            keys = draw.sample(KEYS, draw.choice((0, 1, 1, 2)))
            priority, delay = draw.choice((0, 0, -3, 5)), draw.choice((0, 0, 0, 20))
            group = draw.choice(("", "a", "b", "c")) if grouped else ""
            await world.enqueue(f"j{step}", *keys, priority=priority, delay=delay, group=group)
        elif what < 0.75:
            await world.trip(draw.choice((1, 3)), draw.choice((4, 50)))
        elif what < 0.9 and world.tokens:
            await world.end(draw.choice(sorted(world.tokens)), draw.choice(("complete", "release", "reschedule")))
        else:
            bench.now += draw.choice((1, 5, 30))
        if step % 6:
            continue
        state = await bench.dump()
        queue = (await facts(bench))[0]
        sizes = {name: len(state.get(name, {})) for name in ("waiting", "delayed", "active", "held", "parked")}
        assert {name: getattr(queue, name) for name in sizes} == sizes
        assert queue.groups == (len(state.get("turns", {})) if "virtual" in state.get("meta", {}) else -1)
        for job in sorted({*state.get("waiting", {}), *state.get("held", {}), *state.get("delayed", {})}):
            found = (await facts(bench, job))[1]
            assert found
            keys = {key.key: (key.count, key.unspent, key.ahead, key.stands) for key in found.keys}
            wanted = expected(state, job)
            assert {name: getattr(found, name) for name in wanted if name != "keys"} | {"keys": keys} == wanted, job
            asked += 1
        assert await bench.dump() == state, "it changes nothing"
    assert asked > 50


async def test_the_lease_says_when_a_running_job_was_claimed(bench: Bench):
    await bench.seed(also(held("a", token="7000000 w"), held("b", token="9000000 w"), {"limits": {"a": "r", "b": "r"}}))
    await bench.seed({"admitted": {"r\0a": 0, "r\0b": 0, "r\0b\0002": 0, "s\0c": 0}, "rules": {"r": "5\n"}})
    queue, job = await facts(bench, "a")
    assert sorted(queue.running) == [7000, 9000]
    assert job
    assert (job.keys[0].count, sorted(job.keys[0].claimed)) == (3, [7000, 9000])


async def test_the_last_runs_or_else_the_histogram(bench: Bench):
    now = bench.now = 7_200_000
    await bench.seed(
        {"metrics": {"s:24:run11:t": "2", "s:24:run11:u": "1"}, "history": {"": "f 12 run11=1\nf 11 run3=9"}}
    )
    assert now // 300_000 == 24
    queue = (await facts(bench))[0]
    assert (queue.runs, queue.histogram) == ([], [(11, 4)])
    assert queue.usual_ms() == pytest.approx(1.536)  # the middle of 1.024 and 2.048 ms
    await bench.seed(standing("completed", *(f"c{n:02}" for n in range(40))))
    row = {f"c{n:02}": '{"type":"a","at":1}' if n % 2 else '{"type":"b","at":1}' for n in range(40)}
    await bench.seed({"jobs": row | {"c39": '{"type":"' + "x" * 20_000 + '"}'}})
    await bench.seed({"results": {f"c{n:02}": f'[1,{100 if n % 2 else 300},"w"]' for n in range(40)}})
    queue = (await facts(bench))[0]
    assert len(queue.runs) == 31, "the last 32 jobs, without the one whose row is large"
    assert (queue.usual_ms("a"), queue.usual_ms("b"), queue.histogram) == (100, 300, [])
    assert queue.usual_ms() == pytest.approx((15 * 100 + 16 * 300) / 31)
    assert queue.usual_ms("unknown") == queue.usual_ms()


async def test_workers_that_were_silent_are_not_alive(bench: Bench):
    bench.now = 100_000
    row = (
        '{"id":"%s","host":"h","pid":1,"queues":["t"],"types":["%s"],"concurrency":9,"running":2,"started":1,"seen":1}'
    )
    await bench.seed({"workers": {"a": 70_000, "b": 69_999, "c": 90_000}})
    await bench.seed({"workers_info": {name: row % (name, name) for name in "abc"}})
    queue = (await facts(bench))[0]
    assert (queue.alive, queue.last_seen) == (2, 90_000)
    assert sorted(name for worker in queue.workers for name in worker.types) == ["a", "c"]
    bench.now = 200_000
    queue = (await facts(bench))[0]
    assert (queue.alive, queue.last_seen, queue.workers) == (0, 90_000, [])


async def test_paused_closed_parked_and_the_next_due_job(bench: Bench):
    assert (await facts(bench))[0].due is None
    await bench.seed({"meta": {"paused": "5", "closed": "2000", "rule": "3 1/10/2"}, "parked": {"t\0d": 0}})
    await bench.seed(also(standing("delayed", "d", "e", score=1500), {"unserved": {"d": "1 5 t", "e": "1 5 t"}}))
    await bench.seed({"spent": {"queue\0" + "1": 1005.5}, "debts": {"queue\0" + "1": "900 10"}})
    queue, job = await facts(bench, "d")
    assert (queue.paused_since, queue.closed_until, queue.parked, queue.due) == (5, 2000, 1, 1500)
    assert queue.own.rule.concurrency == 3
    assert [(one.spent, one.debt) for one in queue.own.arrivals] == [(1005.5, (900, 10))]
    assert job
    assert job.parked
    other = (await facts(bench, "e"))[1]
    assert other
    assert not other.parked


async def test_a_closed_key_a_breaker_a_group_and_a_holder(bench: Bench):
    await bench.seed(also(jobs("a", "b"), {"held": {"a": place(1)}, "blocked": {"b": 0}}))
    await bench.seed({"limits": {"a": "@g\nr\nr:x\n!send"}, "weights": {"a": "3\ntokens 20 7"}})
    await bench.seed({"closed": {"r:x": 5000, "!send": 400}, "breakers": {"send": "0.5 20 30 400 100 -"}})
    await bench.seed({"groups": {"g": "2.5 1 -"}, "keys": {"b": "running\tk"}, "unique": {"k": "b - 12 a"}})
    job = (await facts(bench, "a"))[1]
    assert job
    assert (job.group, job.weight, job.paused, job.slots, job.costs) == ("g", 2.5, True, 3, {"tokens": 20})
    assert [(key.key, key.closed_until, key.breaker) for key in job.keys] == [
        ("r", 0, None), ("r:x", 5000, None), ("!send", 400, "send"),
    ]  # fmt: skip
    blocked = (await facts(bench, "b"))[1]
    assert blocked
    assert (blocked.state, blocked.awaited) == ("blocked", "a")


async def test_only_so_many_lines_jobs_and_workers_are_looked_at(bench: Bench):
    """The rest is counted, or taken to be alike."""
    many = range(130)
    await bench.seed({"rules": {"r": "5\n"}, "limits": {"z": "r"}, "held": {"z": place(9)}, "jobs": {"z": "Z"}})
    turn = f"{2**10:04}{0:016}{place(1) + LOW:016}"
    await bench.seed({"full_lines": {f"r\0{turn[:20]}\0{turn[20:]}\0@g{n}\nr": 0 for n in many}})
    await bench.seed({"held_by": {f"@g{n}\nr\0{place(1) + LOW:016}\0j{n}": 0 for n in many}})
    await bench.seed({"lines": {"=r": f"fr\0{turn[:20]}\0{turn[20:]}\0r"}})
    await bench.seed({"workers": {f"w{n}": 1000 for n in many}, "workers_info": {f"w{n}": "{}" for n in many}})
    await bench.seed(held(*(f"a{n}" for n in many), token="7000 w"))
    queue, job = await facts(bench, "z")
    assert (len(queue.running), queue.active, len(queue.workers), queue.alive) == (100, 130, 100, 130)
    assert job
    assert job.keys[0].ahead == 130


async def test_a_job_that_does_not_exist_has_no_facts(bench: Bench):
    await bench.seed(waiting("b"))
    assert (await facts(bench, "nothing"))[1] is None
    assert (await facts(bench, "b"))[1]
