"""Jobs over a limit that has an action: what overflow.lua decides, once per job, and what it leaves to admit."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest
from table import plain

if TYPE_CHECKING:
    from table import Bench

    from tests.conftest import Until


class World:
    """A queue with one rule per test, seen from outside."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        bench.store.limited = True  # as a worker learns at its first claim
        self.requests = itertools.count(1)
        self.tokens: dict[str, str] = {}

    async def rule(self, name: str, text: str) -> None:
        cursor: str | bytes = ""
        while cursor := await self.bench.store.do(self.bench.store.rule("set", name, text, cursor)):
            pass

    async def enqueue(self, job_id: str, *keys: str, delay: int = 0, slots: int = 1, cost: str = "") -> bool:
        """Returns whether overflow has to decide."""
        weight = "" if slots == 1 and not cost else f"\v{slots}{cost and chr(10)}{cost}"
        options = f"0 0 {delay}\v" + "\n".join(keys) + weight
        reply = await self.bench.do(self.bench.store.enqueue([job_id, b'{"type":"t"}', options]))
        assert reply in ([], [1, "", "over"])
        return bool(reply)

    async def add(self, job_id: str, *keys: str, slots: int = 1, cost: str = "") -> str:
        """Enqueue and decide, as a producer does."""
        assert await self.enqueue(job_id, *keys, slots=slots, cost=cost)
        [word] = await self.decide(job_id)
        return word

    async def decide(self, *ids: str) -> list[str]:
        return plain(await self.bench.store.do(self.bench.store.overflow(ids)))

    async def trip(self, want: int = 10) -> list[str]:
        """What a lane does: forward, overflow, admit, claim."""
        store = self.bench.store
        await store.do(store.forward(100))
        await store.do(store.overflow(()))
        await store.do(store.admit(want, 50, 1))
        claimed = await store.do(store.claim(want, 30_000, "w", "w:0", next(self.requests), repeated=False))
        if claimed is None:
            return []
        ids = [raw.decode() for raw in claimed.ids]
        self.tokens |= dict.fromkeys(ids, claimed.token.decode())
        return ids

    async def end(self, job_id: str) -> None:
        await self.bench.store.do(self.bench.store.complete([job_id, self.tokens.pop(job_id), b"r", ""], []))

    async def state(self) -> dict[str, Any]:
        return await self.bench.dump()

    async def ended(self) -> dict[str, str]:
        """Failed jobs and their error type."""
        state = await self.state()
        errors = state.get("errors", {})
        return {job: errors[job].split('"type":"')[1].split('"')[0] for job in state.get("failed", {})}


@pytest.fixture
def world(bench: Bench) -> World:
    return World(bench)


async def test_a_job_without_room_is_dropped(world: World):
    await world.rule("r", "2 drop")
    assert [await world.add(f"j{n}", "r:a") for n in range(4)] == ["", "", "dropped", "dropped"]
    assert await world.add("other", "r:b") == "", "each value counts alone"
    assert await world.trip() == ["j0", "j1", "other"]
    assert await world.add("j4", "r:a") == "dropped", "two run"
    assert await world.ended() == {"j2": "Dropped", "j3": "Dropped", "j4": "Dropped"}
    await world.end("j0")
    assert await world.add("j5", "r:a") == ""
    assert await world.trip() == ["j5"]
    state = await world.state()
    assert state["metrics"]["dropped"] == "3"
    assert state["metrics"]["failed"] == "3"
    assert not {"seats", "undecided", "held", "held_by"} & set(state)


async def test_a_job_is_decided_about_once_and_the_answer_stays_the_same(world: World):
    await world.rule("r", "1 drop")
    assert await world.add("first", "r") == ""
    assert await world.enqueue("second", "r")
    await world.bench.store.do(world.bench.store.overflow(()))
    assert await world.decide("second") == ["dropped"], "a worker was faster than the producer"
    await world.trip()
    await world.end("first")
    assert await world.decide("second", "first") == ["dropped", ""]
    assert (await world.state())["metrics"]["dropped"] == "1"
    assert (await world.state())["failed"] == {"second": 1000}


@pytest.mark.parametrize("unique", [False, True], ids=["enqueue", "enqueue_unique"])
async def test_an_enqueue_that_is_repeated_asks_for_the_decision_again(world: World, unique: bool):
    await world.rule("r", "1 drop")
    await world.add("first", "r")
    store = world.bench.store
    words = ["j", b'{"type":"t"}', "0 0 0\vr"]

    async def send() -> Any:
        call = store.enqueue_unique([*words, "unfinished 0 return -1 -1 1 k:k"]) if unique else store.enqueue(words)
        return await world.bench.do(call)

    blank = ["", ""] if unique else []
    assert await send() == [1, "", "over", *blank]
    assert await world.decide("j") == ["dropped"]
    again = await send()
    assert again[: 5 if unique else 3][:3] == [1, "j", "-"]
    assert again[5 if unique else 3 :] == [1, "", "over", *blank]
    assert await world.decide("j") == ["dropped"]


async def test_nothing_is_admitted_before_the_decision(world: World):
    await world.rule("r", "1 drop")
    store = world.bench.store
    assert await world.enqueue("a", "r")
    await world.enqueue("plain", "other")
    assert await store.do(store.admit(5, 50, 1)) == [0, -1, 2]
    assert store.decides
    assert await world.trip() == ["a", "plain"]


async def test_a_worker_without_free_slots_wakes_another_one_to_decide(world: World):
    await world.rule("r", "1 drop")
    await world.enqueue("a", "r")
    await world.bench.admin.command(b"DEL", world.bench.store.keys["wake"])
    await world.bench.store.do(world.bench.store.admit(1, 50, 0))
    assert (await world.state())["wake"] == {"t": 0}


@pytest.mark.parametrize("how", ["due", "promoted"])
async def test_a_delayed_job_is_decided_about_when_it_is_due(world: World, how: str):
    await world.rule("r", "1 drop")
    assert not await world.enqueue("late", "r", delay=500)
    assert not await world.enqueue("later", "r", delay=600)
    assert await world.add("now", "r") == ""
    assert await world.trip() == ["now"]
    if how == "due":
        world.bench.now += 500
    else:
        await world.bench.store.do(world.bench.store.promote(["late"]))
    assert await world.trip() == []
    assert await world.ended() == {"late": "Dropped"}
    await world.end("now")
    world.bench.now += 600
    assert await world.trip() == ["later"]


async def test_the_next_attempt_of_a_job_waits(world: World):
    await world.rule("r", "1 drop")
    await world.add("a", "r")
    await world.trip()
    store = world.bench.store
    await store.do(store.reschedule(["a", world.tokens["a"], 1, 0, b"{}"]))
    assert await world.add("b", "r") == ""
    await store.do(store.forward(10))
    state = await world.state()
    assert set(state["held"]) == {"a", "b"}
    assert "undecided" not in state
    first = await world.trip()
    assert len(first) == 1
    await world.end(first[0])
    assert len(await world.trip()) == 1, "neither is dropped"


async def test_the_newest_jobs_replace_the_oldest_ones_that_have_not_started(world: World):
    await world.rule("r", "2 replace_oldest")
    words = [await world.add(f"j{n}", "r") for n in range(4)]
    assert words == ["", "", "replaced_oldest", "replaced_oldest"]
    assert await world.trip() == ["j2", "j3"]
    assert await world.add("j4", "r") == "", "both run, and the next one waits"
    assert await world.add("j5", "r") == "replaced_oldest"
    assert await world.trip() == []
    assert await world.ended() == {"j0": "Replaced", "j1": "Replaced", "j4": "Replaced"}
    await world.end("j2")
    await world.end("j3")
    assert await world.trip() == ["j5"]
    assert (await world.state())["metrics"]["replaced_oldest"] == "3"


async def test_a_job_in_waiting_is_replaced_and_gives_its_places_back(world: World):
    await world.rule("r", "1 replace_oldest")
    await world.rule("other", "1")
    await world.add("a", "r", "other")
    store = world.bench.store
    await store.do(store.admit(5, 50, 1))
    assert (await world.state())["waiting"]
    assert await world.add("b", "r", "other") == "replaced_oldest"
    assert await world.trip() == ["b"]
    assert await world.ended() == {"a": "Replaced"}


async def test_the_order_of_age_counts_and_not_the_priority_or_the_id(world: World):
    await world.rule("r", "3 replace_oldest")
    store = world.bench.store
    for job_id, options in (("z", "5 0 0"), ("a", "-5 0 0"), ("m", "0 0 0"), ("b", "0 0 0"), ("c", "0 0 0")):
        await world.bench.do(store.enqueue([job_id, b"{}", f"{options}\vr"]))
        await world.decide(job_id)
    assert set(await world.ended()) == {"z", "a"}


async def test_the_oldest_running_job_is_killed(world: World):
    await world.rule("r", "2 kill_running")
    for name in ("a", "b"):
        await world.add(name, "r:x")
        assert await world.trip() == [name]
    assert await world.add("c", "r:x") == "killed_running"
    assert await world.ended() == {"a": "Killed"}
    state = await world.state()
    assert set(state["leases"]) == {"b"}
    assert state["attempts"] == {"a": "1"}
    lost = await world.bench.store.do(world.bench.store.fail(["a", world.tokens["a"], 1, b"{}", ""]))
    assert plain(lost)[1] == ["a"], "its worker has lost the job"
    assert await world.trip() == ["c"]
    assert await world.add("d", "r:x") == "killed_running"
    assert await world.add("e", "r:x") == "killed_running"
    assert set(await world.ended()) == {"a", "b", "c"}
    assert await world.trip() == ["d", "e"]


async def test_if_none_runs_the_oldest_one_that_waits_ends(world: World):
    await world.rule("r", "1 kill_running")
    assert await world.add("a", "r") == ""
    assert await world.add("b", "r") == "replaced_oldest"
    assert await world.trip() == ["b"]
    assert await world.ended() == {"a": "Replaced"}


async def test_a_rate_drops_what_has_no_token(world: World):
    await world.rule("r", "- 10/1000/3 drop")
    assert [await world.add(f"a{n}", "r") for n in range(4)] == ["", "", "", "dropped"], "three tokens"
    world.bench.now += 100
    assert await world.add("b", "r") == "dropped", "the bucket is full, and all of it is promised"
    assert await world.trip() == ["a0", "a1", "a2"]
    assert await world.add("c", "r") == "dropped"
    world.bench.now += 100
    assert await world.add("d", "r") == ""
    assert await world.add("e", "r") == "dropped"
    assert await world.trip() == ["d"]


async def test_a_rate_keeps_the_newest_job(world: World):
    await world.rule("r", "- 1/1000/1 replace_oldest")
    assert await world.add("a", "r") == ""
    assert await world.trip() == ["a"]
    assert [await world.add(name, "r") for name in "bcd"] == ["", "replaced_oldest", "replaced_oldest"]
    world.bench.now += 1000
    assert await world.trip() == ["d"]


async def test_costs_and_slots_count(world: World):
    await world.rule("r", "- 10/1000/100/tokens drop")
    assert await world.add("a", "r", cost="tokens 60") == ""
    assert await world.add("b", "r", cost="tokens 60") == "dropped"
    assert await world.add("c", "r", cost="tokens 40") == ""
    await world.rule("s", "4 drop")
    assert await world.add("d", "s", slots=3) == ""
    assert await world.add("e", "s", slots=2) == "dropped"
    assert await world.add("f", "s") == ""
    assert await world.add("g", "s") == "dropped"
    assert sorted(await world.trip()) == ["a", "c", "d", "f"]
    assert "seats" not in await world.state()


async def test_one_large_job_replaces_several(world: World):
    await world.rule("r", "4 replace_oldest")
    for n in range(4):
        await world.add(f"j{n}", "r")
    assert await world.add("large", "r", slots=3) == "replaced_oldest"
    assert await world.trip() == ["j3", "large"]


async def test_a_closed_key_has_no_room(world: World):
    await world.rule("r", "5 drop")
    await world.bench.store.do(world.bench.store.close("r:a", 500))
    assert await world.add("a", "r:a") == "dropped"
    assert await world.add("b", "r:b") == ""
    await world.rule("k", "1 kill_running")
    await world.add("c", "k")
    assert "c" in await world.trip()
    await world.bench.store.do(world.bench.store.close("k", 500))
    assert await world.add("d", "k") == "killed_running"
    assert await world.add("e", "k") == "replaced_oldest"


async def test_a_job_that_one_rule_drops_ends_no_other_job(world: World):
    await world.rule("d", "1 drop")
    await world.rule("k", "1 kill_running")
    await world.add("a", "k", "d")
    assert await world.trip() == ["a"]
    assert await world.add("b", "k", "d") == "dropped"
    assert (await world.state())["active"]


async def test_a_killed_or_removed_job_frees_its_seat(world: World):
    await world.rule("r", "2 drop")
    await world.add("a", "r")
    await world.add("b", "r", slots=1)
    store = world.bench.store
    await store.do(store.kill(["a"], b"{}"))
    await store.do(store.remove(["b"]))
    assert [await world.add(name, "r") for name in "cde"] == ["", "", "dropped"]
    assert set((await world.state())["seats"]) == {"r\0c", "r\0d"}
    await store.do(store.kill(["c", "d"], b"{}"))
    cursor: bytes | str = ""
    while True:
        cursor, mended = await store.do(store.recount(10, cursor))
        assert not mended
        if not cursor:
            break
    assert "seats" not in await world.state()


async def test_a_job_that_is_killed_before_the_decision_holds_nobody_up(world: World):
    await world.rule("r", "1 drop")
    await world.enqueue("a", "r")
    await world.bench.store.do(world.bench.store.kill(["a"], b"{}"))
    assert await world.add("b", "r") == ""
    assert await world.trip() == ["b"]
    assert await world.decide("a") == [""]


async def test_a_rule_loses_its_action(world: World):
    await world.rule("r", "1 drop")
    await world.rule("r-2", "1 drop")
    assert (await world.state())["meta"]["over"] == "\nr\nr-2\n"
    await world.rule("r", "1")
    assert (await world.state())["meta"]["over"] == "\nr-2\n"
    assert not await world.enqueue("a", "r")
    assert await world.enqueue("b", "r-2:x")
    await world.rule("r-2", "")
    assert "over" not in (await world.state())["meta"]
    assert await world.decide("b") == [""]
    assert await world.trip() == ["a", "b"]


async def test_the_job_that_ends_wakes_the_one_that_waits_for_its_key(world: World):
    """keep_last: the follower is due when the job that it waits for has ended, whatever ended it."""
    await world.rule("r", "1 kill_running")
    store = world.bench.store
    words = ["r1", b'{"type":"t"}', "0 0 0\vr", "unfinished 0 keep_last -1 -1 1 k:k"]
    await world.bench.do(store.enqueue_unique(words))
    assert await world.trip() == ["r1"]
    await world.bench.do(store.enqueue_unique(["r2", *words[1:]]))
    assert set((await world.state())["blocked"]) == {"r2"}
    assert await world.add("x", "r") == "killed_running"
    state = await world.state()
    assert set(state["delayed"]) == {"r2"}
    assert "blocked" not in state


async def test_the_own_retention_and_the_event_of_a_dropped_job(world: World):
    await world.rule("r", "0 drop")
    store = world.bench.store
    await world.bench.do(store.enqueue(["a", b'{"type":"t","retention":700}', "0 0 0\vr"]))
    assert await world.decide("a") == ["dropped"]
    state = await world.state()
    assert state["expires"] == {"a": 1700}
    assert state["events"] == [("failed", "a")]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("action", ["drop", "replace_oldest", "kill_running"])
async def test_random_moves_never_pass_the_limit_and_every_job_ends(world: World, seed: int, action: str):
    """At every moment at most n jobs of a key are unfinished (replace_oldest: one more waits while n run)."""
    draw, n = random.Random(seed), 3
    await world.rule("r", f"{n} {action}")
    enqueued: set[str] = set()
    for step in range(120):
        what = draw.random()
        if what < 0.5:
            job = f"j{step:03}"
            enqueued.add(job)
            if draw.random() < 0.2:
                await world.enqueue(job, "r", delay=draw.choice((1, 50)))
            else:
                await world.enqueue(job, "r")
                if draw.random() < 0.7:
                    await world.decide(job)
        elif what < 0.75:
            await world.trip(draw.choice((1, 2, 10)))
        elif what < 0.95:
            active = sorted((await world.state()).get("active", {}))
            if active:
                await world.end(draw.choice(active))
        else:
            world.bench.now += 20
        state = await world.state()
        undecided = set(state.get("undecided", {}))
        counts = {name: len(set(state.get(name, {})) - undecided) for name in ("held", "waiting", "active")}
        assert counts["waiting"] + counts["active"] <= n
        room = max(n, counts["active"] + 1) if action == "replace_oldest" else n
        assert sum(counts.values()) <= room, counts
    for _ in range(100):
        world.bench.now += 20
        await world.trip()
        state = await world.state()
        if not {"active", "delayed", "held", "waiting"} & set(state):
            break
        for job in sorted(state.get("active", {})):
            await world.end(job)
    state = await world.state()
    assert set(state.get("completed", {})) | set(state.get("failed", {})) == enqueued
    assert not {"seats", "undecided", "held", "held_by", "admitted", "waiting", "delayed"} & set(state)


async def test_what_a_killed_job_took_is_free_for_others(world: World):
    await world.rule("k", "3 kill_running")
    await world.rule("other", "1")
    await world.add("a", "k", "other", slots=3)
    assert await world.trip() == ["a"]
    assert not await world.enqueue("w", "other")
    assert await world.trip() == []
    assert await world.enqueue("c", "k")
    await world.bench.admin.command(b"DEL", world.bench.store.keys["wake"])
    assert await world.decide("c") == ["killed_running"]
    state = await world.state()
    assert "admitted" not in state
    assert state["wake"] == {"t": 0}
    assert state["requests"] == {"over:c": 1000}
    assert sorted(await world.trip()) == ["c", "w"]


async def test_a_replaced_job_gives_its_token_back(world: World):
    await world.rule("r", "- 10/1000/1 replace_oldest")
    await world.add("a", "r")
    await world.bench.store.do(world.bench.store.admit(5, 50, 1))
    assert (await world.state())["unspent"] == {"r\0a": 0}
    assert await world.add("b", "r") == "replaced_oldest"
    assert "unspent" not in await world.state()


async def test_all_seats_of_a_job_with_several_slots_go_with_it(world: World):
    await world.rule("r", "3 replace_oldest")
    await world.add("large", "r", slots=3)
    assert await world.add("x", "r") == "replaced_oldest"
    assert (await world.state())["seats"] == {"r\0x": 0}
    await world.rule("d", "3 drop")
    await world.add("a", "d", slots=2)
    await world.bench.store.do(world.bench.store.kill(["a"], b"{}"))
    assert await world.add("b", "d", slots=3) == ""
    assert {member for member in (await world.state())["seats"] if member.startswith("d")} == {
        "d\0b", "d\0b\0002", "d\0b\0003",
    }  # fmt: skip


async def test_small_jobs_that_wait_behind_a_replaced_one_start(world: World):
    await world.rule("k", "2 replace_oldest")
    await world.rule("other", "2")
    await world.enqueue("r", "other")
    assert await world.trip() == ["r"]
    await world.add("big", "k", "other", slots=2)
    await world.enqueue("small", "other")
    assert await world.trip() == [], "big has its turn first"
    assert await world.add("n", "k") == "replaced_oldest"
    # The first trip finds that the line of big is empty, and the second one looks behind it.
    assert sorted(await world.trip() + await world.trip()) == ["n", "small"]


async def test_the_clock_was_set_back_while_a_key_owes_tokens(world: World):
    await world.rule("r", "- 10/1000/100/tokens drop")
    await world.add("a", "r", cost="tokens 60")
    assert await world.trip() == ["a"]
    world.bench.now = 500
    await world.add("b", "r", cost="tokens 1")
    state = await world.state()
    assert state["spent"] == {"r\x001": 6500}
    assert state["debts"]["r\x001"].split(" ")[0] == "500"


async def test_the_worker_of_a_killed_job_is_told(world: World, heard: list[bytes], until: Until):
    await world.rule("r", "1 kill_running")
    await world.add("a", "r")
    await world.trip()
    await world.add("b", "r")
    await until(lambda: heard, "the message")
    assert heard == [f"kill a {world.tokens['a']}".encode()]


@pytest.mark.parametrize("slots", [1, 2])
async def test_a_job_that_was_killed_while_it_was_held_counts_for_nothing_when_it_is_retried(bench: Bench, slots: int):
    world = World(bench)
    await world.rule("r", f"{2 * slots} drop")
    assert await world.add("killed", "r", slots=slots) == ""
    await bench.store.do(bench.store.kill(["killed"], b"{}"))
    assert await world.add("first", "r", slots=slots) == ""
    assert await bench.do(bench.store.retry(["killed"])) == ["failed"]
    assert await world.add("second", "r", slots=slots) == ""
    assert await world.add("third", "r", slots=slots) == "dropped"
