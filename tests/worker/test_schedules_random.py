"""Random moves of workers, operators and clocks: each slot gets one job, and none is lost or repeated."""

from __future__ import annotations

import asyncio
import itertools
import random
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Queue, State
from jobq.engine.queue.firing import LENT_MS, Firing
from jobq.engine.schedule.state import slot_id
from jobq.errors import StoreUnavailable

if TYPE_CHECKING:
    from jobq import Connection

START = int(datetime(2027, 3, 28, 0, 30, tzinfo=UTC).timestamp()) * 1000
"""In this hour the clock of Berlin goes forward."""
MINUTE = 60_000


class Dying(Queue):
    """A program whose calls fail at random: before they are executed, or after."""

    chance: random.Random
    mortal = False

    def make_mortal(self, chance: random.Random) -> None:
        store = self.store
        do = store.do

        async def deadly(call: Any, **words: Any) -> Any:
            if self.mortal and chance.random() < 0.15:
                raise StoreUnavailable("the request was lost, or its process died")
            answer = await do(call, **words)
            if self.mortal and chance.random() < 0.15:
                raise StoreUnavailable("the reply was lost, or the process died after it")
            return answer

        store.do = deadly  # type: ignore[method-assign]


@pytest.mark.parametrize("seed", range(12))
async def test_each_slot_gets_one_job(connection: Connection, seed: int):
    chance = random.Random(seed)
    now = START
    latest = fired = START
    requests = itertools.count(1)
    programs = [Dying("random", connection, clock=lambda: now) for _ in range(3)]
    for program in programs:
        await program.open()
        program.make_mortal(chance)

        @program.task
        async def noop() -> None: ...

    first = programs[0]
    store = first.store
    await first.put_schedule("s", "noop", cron="* * * * *", tz="Europe/Berlin", catch_up="all", overlap="allow")
    removed: set[str] = set()

    async def fire(program: Dying) -> None:
        program.mortal = True
        with suppress(StoreUnavailable):
            await Firing(program).fire_due()
        program.mortal = False

    async def collect() -> set[str]:
        found: set[str] = set()
        cursor: str | None = None
        while True:
            page = await first.page(limit=500, cursor=cursor)
            found |= {row.id for row in page.jobs}
            cursor = page.cursor
            if cursor is None:
                break
        assert not found & removed, f"slots that ran twice: {sorted(found & removed)[:3]}"
        return found

    async def end_and_remove() -> None:
        await store.do(store.forward(500))
        while claimed := await store.do(store.claim(125, 30_000, "w", "w:0", next(requests), repeated=False)):
            for job_id in claimed.ids:
                await store.do(store.complete([job_id, claimed.token, b'[1,1,"w"]', ""], []))
        removed.update(await collect() & {row.id for row in (await first.page(State.COMPLETED, limit=1000)).jobs})
        await first.remove_all(State.COMPLETED)

    for _ in range(60):
        move = chance.randrange(10)
        if now - fired > 30 * MINUTE:
            # No more than a hundred slots are made up.
            now += LENT_MS
            await Firing(first).fire_due()
            fired = now
        if move < 4:
            now += chance.choice([500, LENT_MS, MINUTE, 7 * MINUTE, 40 * MINUTE])
        elif move < 7:
            await asyncio.gather(*(fire(program) for program in chance.sample(programs, chance.randint(1, 3))))
        elif move == 7:
            await end_and_remove()
        elif move == 8:  # the clock is wrong for a while
            ahead = chance.choice([-30, 25]) * MINUTE
            now += ahead
            latest = max(latest, now)
            await asyncio.gather(*(fire(program) for program in programs))
            now -= ahead
        else:
            await first.run_schedule("s")
        latest = max(latest, now)
        await collect()
    now = max(now, latest)
    for _ in range(3):
        now += LENT_MS
        await Firing(first).fire_due()
    slots = {job_id for job_id in removed | await collect() if job_id.endswith("Z")}
    end = max(now, latest)
    expected = {slot_id("s", ms // 1000) for ms in range(START + MINUTE, end + 1, MINUTE)}
    assert sorted(expected - slots) == [], "lost"
    # A clock that is behind shows times again that were before the schedule.
    before = slot_id("s", START // 1000)
    assert sorted(slot for slot in slots - expected if slot > before) == [], "slots that should not be"
    for program in programs:
        await program.aclose()
