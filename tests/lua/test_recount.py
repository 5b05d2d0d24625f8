"""recount: what limits count is compared with the jobs, and differences are mended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from columns import State, also
from table import held, place, standing, waiting

if TYPE_CHECKING:
    from table import Bench

LOWEST = 2**52


def under(key: str, job_id: str, score: int) -> str:
    return f"{key}\0{score + LOWEST:016d}\0{job_id}"


SOUND: State = also(
    waiting("w"),
    held("a"),
    standing("held", "h", score=place(7)),
    {"limits": {"w": "r", "a": "r\nq", "h": "r"}, "rules": {"r": "2\n"}},
    {"admitted": {"r\0w": 0, "r\0a": 0, "q\0a": 0}, "unspent": {"r\0w": 0}},
    {"held_by": {under("r", "h", place(7)): 0}},
)


async def recount(bench: Bench, page: int) -> int:
    """All pages. Returns the number of differences."""
    cursor, total = "", 0
    while True:
        cursor, mended = await bench.do(bench.store.recount(page, cursor))
        total += mended
        if not cursor:
            return total


@pytest.mark.parametrize("page", [1, 2, 100])
async def test_a_sound_queue_is_left_as_it_is(bench: Bench, page: int):
    await bench.seed(SOUND)
    assert await recount(bench, page) == 0
    assert await bench.dump() == SOUND


@pytest.mark.parametrize("page", [1, 2, 100])
@pytest.mark.parametrize(
    ("extra", "opened"),
    [
        ({"admitted": {"r\0gone": 0}}, "r"),
        ({"admitted": {"r:x\0h": 0}}, "r:x"),
        ({"held_by": {under("r", "gone", place(1)): 0}}, "r"),
        ({"held_by": {under("r", "h", place(9)): 0}}, "r"),
    ],
)
async def test_a_place_that_belongs_to_no_job_is_given_back(bench: Bench, extra: State, opened: str, page: int):
    await bench.seed(also(SOUND, extra))
    assert await recount(bench, page) == 1
    found = await bench.dump()
    assert list(found.pop("openings")) == [opened]
    assert found.pop("metrics") == {"limits_mended": "1"}
    found.pop("wake")
    assert found == SOUND


async def test_a_held_job_under_no_key_is_held_again(bench: Bench):
    await bench.seed(SOUND | {"held_by": {}})
    assert await recount(bench, 100) == 1
    found = await bench.dump()
    assert found["held_by"] == SOUND["held_by"]
    assert list(found["openings"]) == ["r"]


async def test_a_key_that_nothing_would_open_is_opened(bench: Bench):
    await bench.seed(also(standing("held", "h", score=place(7)), {"limits": {"h": "r"}, "rules": {"r": "2\n"}}))
    await bench.seed({"held_by": {under("r", "h", place(7)): 0}})
    assert await recount(bench, 100) == 1
    assert list((await bench.dump())["openings"]) == ["r"]


async def test_a_key_that_an_operator_closed_stays_closed(bench: Bench):
    before: State = also(standing("held", "h", score=place(7)), {"limits": {"h": "r"}, "rules": {"r": "0\n"}})
    before |= {"held_by": {under("r", "h", place(7)): 0}}
    await bench.seed(before)
    assert await recount(bench, 100) == 0
    assert await bench.dump() == before
