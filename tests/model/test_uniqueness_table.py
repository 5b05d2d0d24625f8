"""Random moves over the table of uniqueness, compared with a small model: it finds the holder of the key among all jobs
that ever had it, by their states."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from columns import dump

from jobq import Connection
from jobq.engine.model.unique import TABLE
from jobq.engine.store import Store

if TYPE_CHECKING:
    from conftest import Server

QUEUED = ("waiting", "delayed", "held", "blocked")
RULES = [(mode, on) for mode, conflicts in TABLE.items() for on in conflicts]
STEPS = 60
TIME = 700


class World:
    """One queue, and what its jobs with the key should be. ``payloads``: what each job should run with."""

    def __init__(self, store: Store, mode: str, on: str) -> None:
        self.store, self.mode, self.on = store, mode, on
        self.payloads: dict[str, int] = {}
        self.tokens: dict[str, str] = {}
        self.ended: dict[str, int] = {}
        self.born: dict[str, int] = {}
        self.ran: list[int] = []
        self.sent: list[tuple[list[Any], list[Any]]] = []
        self.number = 0
        self.request = 0

    async def states(self) -> dict[str, str]:
        """The sets in which the jobs stand now."""
        state = await dump(self.store, foreign=False)
        sets = (*QUEUED, "active", "completed", "failed")
        return {job_id: name for name in sets for job_id in state.get(name, {})}

    def holders(self, states: dict[str, str], now: int) -> list[str]:
        """Every job that holds the key by the table, newest first."""

        def holds(job_id: str) -> bool:
            state = states[job_id]
            if self.mode == "running":
                return state == "active"
            if self.mode == "queued":
                return state in QUEUED
            if self.mode == "enqueued":
                return self.born[job_id] + TIME > now
            return state in (*QUEUED, "active") or (self.mode == "ended" and self.ended[job_id] + TIME > now)

        return [job_id for job_id in reversed(list(self.payloads)) if job_id in states and holds(job_id)]

    async def enqueue(self, now: int) -> None:
        self.number += 1
        job_id, payload = f"j{self.number:04}", self.number
        delay = 50 if self.on == "extend" else -1
        rule = f"{self.mode} {TIME} {self.on} {delay} -1 10 k"
        row = [job_id, f'{{"type":"t","payload":{payload}}}', "", rule]
        before = await self.states()
        holders = self.holders(before, now)
        reply = [word.decode() if isinstance(word, bytes) else word for word in await self.do(row)]
        reply = reply[5:] if reply[:1] == [0] else reply
        self.sent.append((row, reply))
        after = await self.states()
        running = [one for one in holders if before[one] == "active"]
        if self.on == "kill_running" and running:
            assert all(after[one] == "failed" for one in running)
            for one in running:
                self.ended[one] = now
            holders = [one for one in holders if one not in running]
        if self.on == "keep_last" and holders and before[holders[0]] == "active":
            assert (reply, after[job_id]) == ([], "blocked")
            self.add(job_id, payload, now)
            return
        if not holders:
            assert (reply, after.get(job_id)) == ([], "waiting")
            self.add(job_id, payload, now)
            return
        assert job_id not in after
        assert reply[1] in holders
        holder = reply[1]
        assert reply[:4] == [1, holder, "-", "delayed" if after[holder] == "delayed" else before[holder]]
        waits = before[holder] in QUEUED
        if waits and self.on in ("replace", "replace_all", "keep_last", "kill_running"):
            assert reply[4] == "replaced"
            self.payloads[holder] = payload
        else:
            assert reply[4] in {"fail": ("fail",), "extend": ("extended", "returned")}.get(self.on, ("returned",))

    def add(self, job_id: str, payload: int, now: int) -> None:
        self.payloads[job_id] = payload
        self.born[job_id] = now

    async def do(self, row: list[Any], *, again: bool = False) -> list[Any]:
        call = self.store.enqueue_unique(list(row))
        if again:
            call.send_again()
        return await self.store.do(call)

    async def claim(self, now: int) -> None:
        self.request += 1
        claim = self.store.claim(1, 10_000, "w", "w:0", self.request, repeated=False)
        claimed = await self.store.do(claim)
        if claimed is None or not claimed.ids:
            return
        job_id = claimed.ids[0].decode()
        self.tokens[job_id] = claimed.token.decode()
        assert claimed.specs[0] is not None
        found = int(claimed.specs[0].split(b'"payload":')[1].split(b",")[0].rstrip(b"}"))
        assert found == self.payloads[job_id], "it runs with the data of the last enqueue that changed it"


@pytest.mark.parametrize(("mode", "on"), RULES)
async def test_random_moves_obey_the_table(mode: str, on: str, server: Server):
    chance = random.Random(f"{mode} {on}")
    clock = [1_700_000_000_000]
    connection = Connection(server.url)
    store = Store(connection, "unique", clock=lambda: str(clock[0]))
    store.limited = True
    await _admin(server, b"FLUSHALL")
    world = World(store, mode, on)
    for _ in range(STEPS):
        clock[0] += chance.choice([0, 1, 60, 400, 1500])
        move = chance.choice(
            ["enqueue"] * 4
            + ["claim"] * 3
            + ["end"] * 2
            + ["fail", "snooze", "release", "retry", "kill", "remove", "again", "sweep", "flush"]
        )
        states = await world.states()
        active = [job_id for job_id, state in states.items() if state == "active"]
        if move == "enqueue":
            await world.enqueue(clock[0])
        elif move == "claim":
            await store.do(store.forward(10))
            await world.claim(clock[0])
        elif move == "flush":
            await _admin(server, b"SCRIPT", b"FLUSH")
        elif move in ("end", "fail", "snooze", "release", "retry") and active:
            job_id = chance.choice(active)
            token = world.tokens[job_id]
            if move == "end":
                await store.do(store.complete([job_id, token, "r", ""], []))
                world.ended[job_id] = clock[0]
            elif move == "fail":
                await store.do(store.fail([job_id, token, 1, "{}", ""]))
                world.ended[job_id] = clock[0]
            elif mode == "queued":
                pass  # With it, several jobs of one key may wait then. tests/lua/test_unique.py has examples.
            elif move == "snooze":
                await store.do(store.snooze([job_id, token, 40]))
            elif move == "release":
                await store.do(store.release([job_id, token]))
            else:
                await store.do(store.reschedule([job_id, token, 1, 30, "e"]))
        elif move == "kill" and states:
            job_id = chance.choice(sorted(states))
            if states[job_id] not in ("completed", "failed"):
                await store.do(store.kill([job_id], b"{}"))
                world.ended[job_id] = clock[0]
        elif move == "remove" and states:
            job_id = chance.choice(sorted(states))
            if states[job_id] != "active":
                await store.do(store.remove([job_id]))
        elif move == "again" and world.sent:
            row, reply = world.sent[-1]
            if not reply or reply[4] in ("replaced", "extended"):
                before = await dump(store, foreign=False)
                await world.do(row, again=True)
                after = await dump(store, foreign=False)
                assert after | {"meta": {}} == before | {"meta": {}}, "a repetition changes nothing"
        elif move == "sweep":
            await store.do(store.expire(100))
        await check(world)
    await connection.aclose()


async def check(world: World) -> None:
    """No job waits for ever, no job runs twice, and no key outlives its job."""
    state = await dump(world.store, foreign=False)
    states = await world.states()
    rows = state.get("unique", {})
    for job_id in state.get("blocked", {}):
        _, _, _, other = rows["k"].split()
        assert rows["k"].startswith(f"{job_id} ")
        assert states[other] in (*QUEUED, "active"), "a job waits for one that has ended"
    for row in rows.values():
        assert all(word in states for word in (row.split()[0], *row.split()[3:])), "a key names a job that is gone"
    if world.on == "keep_last":
        assert list(states.values()).count("active") <= 1


async def _admin(server: Server, *words: bytes) -> None:
    """The user with the least rights may not flush anything."""
    admin = Store(Connection(server.admin_url), "unique")
    await admin.command(*words)
    await admin.connection.aclose()
