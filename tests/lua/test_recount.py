"""recount: what limits and groups count is compared with the jobs, and differences are mended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from columns import State, also
from table import held, place, standing, waiting

if TYPE_CHECKING:
    from table import Bench

LOWEST = 2**52
TURN = f"1024{0:016}"


def under(line: str, job_id: str, score: int) -> str:
    return f"{line}\0{score + LOWEST:016d}\0{job_id}"


def full(key: str, line: str, score: int) -> str:
    return f"{key}\0{TURN}\0{score + LOWEST:016d}\0{line}"


def lines(key: str, line: str, score: int) -> State:
    member = full(key, line, score)
    return {"full_lines": {member: 0}, "lines": {f"={line}": f"f{member}"}}


SOUND: State = also(
    waiting("w"),
    held("a"),
    standing("held", "h", score=place(7)),
    {"limits": {"w": "r", "a": "r\nq", "h": "r"}, "rules": {"r": "2\n"}},
    {"admitted": {"r\0w": 0, "r\0a": 0, "q\0a": 0}, "unspent": {"r\0w": 0}},
    {"held_by": {under("r", "h", place(7)): 0}},
    lines("r", "r", place(7)),
)
GROUP_TURN = f"{TURN}{place(7) + LOWEST:016d}\0g\x001@g"
OPEN = f"g\0{place(7) + LOWEST:016d}\0@g"
GROUPED: State = also(
    standing("held", "h", score=place(7)),
    {"limits": {"h": "@g"}, "held_by": {under("@g", "h", place(7)): 0}},
    {
        "open_lines": {OPEN: 0},
        "turns": {f"{TURN}\0g\x001@g": 0},
        "lines": {"=@g": f"o{OPEN}", "@g": f"{TURN}\0g\x001@g"},
    },
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
@pytest.mark.parametrize("sound", [SOUND, GROUPED], ids=["limits", "groups"])
async def test_a_sound_queue_is_left_as_it_is(bench: Bench, page: int, sound: State):
    await bench.seed(sound)
    assert await recount(bench, page) == 0
    assert await bench.dump() == sound


@pytest.mark.parametrize("page", [1, 2, 100])
async def test_a_key_of_an_open_line_is_no_difference(bench: Bench, page: int):
    """The end of a job opened the key and one line under it, and the claim took another job. The open line is looked
    at again, and then the key is, too."""
    store, tokens = bench.store, {}
    store.limited = True  # as a worker learns at its first claim
    for job_id, keys in {"a": "r", "b": "s", "e": "s", "c": "r", "d": "q\nr"}.items():
        await store.do(store.enqueue([job_id, b"{}", f"0 0 0\v{keys}"]))
    for name in ("q", "r", "s"):
        assert await store.do(store.rule("set", name, "1", "")) == b""
    for number in (1, 2):
        await store.do(store.admit(2, 50, 1))
        claimed = await store.do(store.claim(2, 30_000, "w", "w:0", number, repeated=False))
        tokens |= {raw.decode(): claimed.token.decode() for raw in claimed.ids} if claimed else {}
    assert set(tokens) == {"a", "b"}
    for job_id, token in tokens.items():
        await store.do(store.complete([job_id, token, b"r", ""], []))
    await store.do(store.admit(1, 50, 1))
    state = await bench.dump()
    assert (set(state["waiting"]), len(state["open_lines"]), len(state["full_lines"])) == ({"e"}, 1, 1)
    assert await recount(bench, page) == 0


@pytest.mark.parametrize("page", [1, 2, 100])
@pytest.mark.parametrize("member", ["r\0gone", "r:x\0h"])
async def test_a_place_that_belongs_to_no_job_is_given_back(bench: Bench, member: str, page: int):
    await bench.seed(also(SOUND, {"admitted": {member: 0}}))
    assert await recount(bench, page) == 1
    found = await bench.dump()
    assert list(found.pop("openings")) == [member.split("\0")[0]]
    assert found.pop("metrics") == {"limits_mended": "1"}
    found.pop("wake")
    assert found == SOUND


@pytest.mark.parametrize("page", [1, 2, 100])
@pytest.mark.parametrize("member", [under("r", "gone", place(1)), under("r", "h", place(9))])
async def test_a_held_place_that_belongs_to_no_job_is_given_back(bench: Bench, member: str, page: int):
    await bench.seed(also(SOUND, {"held_by": {member: 0}}))
    assert await recount(bench, page) == 1
    found = await bench.dump()
    assert list(found.pop("arrivals")) == ["r"]
    assert found.pop("metrics") == {"limits_mended": "1"}
    found.pop("wake")
    assert found == SOUND


LOST: dict[str, dict[str, Any]] = {
    "its member": {"held_by": {}},
    "the row of its line": {"lines": {}},
    "the place of its line": {"full_lines": {}},
}


@pytest.mark.parametrize("lost", LOST)
async def test_a_held_job_that_nobody_would_look_at_is_looked_at(bench: Bench, lost: str):
    await bench.seed(SOUND | LOST[lost])
    assert await recount(bench, 100) >= 1
    await bench.do(bench.store.admit(10, 50, 1))
    found = await bench.dump()
    assert found["held_by"] == SOUND["held_by"]
    assert found["lines"] == SOUND["lines"]
    assert await recount(bench, 100) == 0


@pytest.mark.parametrize("lost", ["turns", "open_lines", "lines"])
async def test_a_group_that_lost_its_turn_gets_one(bench: Bench, lost: str):
    await bench.seed(GROUPED | {lost: {}})
    assert await recount(bench, 100) >= 1
    await bench.do(bench.store.admit(10, 50, 1))
    assert list((await bench.dump())["waiting"]) == ["h"]
    assert await recount(bench, 100) == 0


@pytest.mark.parametrize("garbage", ["", "x", "o", "f\0", "\0", "{}"])
async def test_a_damaged_line_is_mended(bench: Bench, garbage: str):
    await bench.seed(also(GROUPED, {"lines": {"=@g": garbage, "@g": garbage}}))
    await bench.seed({"turns": {f"{garbage}!": 0}, "open_lines": {f"{garbage}!": 0}, "full_lines": {f"{garbage}!": 0}})
    await recount(bench, 100)
    await bench.do(bench.store.admit(10, 50, 1))
    assert list((await bench.dump())["waiting"]) == ["h"]
    await recount(bench, 100)
    await bench.do(bench.store.admit(10, 50, 1))
    assert await recount(bench, 100) == 0


async def test_a_key_that_nothing_would_open_is_opened(bench: Bench):
    await bench.seed(also(standing("held", "h", score=place(7)), {"limits": {"h": "r"}, "rules": {"r": "2\n"}}))
    await bench.seed(also({"held_by": {under("r", "h", place(7)): 0}}, lines("r", "r", place(7))))
    assert await recount(bench, 100) == 1
    assert list((await bench.dump())["openings"]) == ["r"]


@pytest.mark.parametrize(
    ("line", "settings"), [("r", {"rules": {"r": "0\n"}}), ("@g", {"groups": {"g": "1 1 -"}})], ids=["rule", "group"]
)
async def test_what_an_operator_closed_stays_closed(bench: Bench, line: str, settings: State):
    before: State = also(standing("held", "h", score=place(7)), {"limits": {"h": line}}, settings)
    before |= also({"held_by": {under(line, "h", place(7)): 0}}, lines(line, line, place(7)))
    await bench.seed(before)
    assert await recount(bench, 100) == 0
    assert await bench.dump() == before


async def test_tags_that_virtual_time_has_passed_are_forgotten(bench: Bench):
    await bench.seed({"meta": {"virtual": "5000"}, "finish": {"idle": 4500, "ahead": 5500}})
    assert await recount(bench, 100) == 0
    assert (await bench.dump())["finish"] == {"ahead": 5500}


async def test_a_clock_that_was_set_back_makes_no_key_wait_for_the_difference(bench: Bench):
    store = bench.store
    bench.now = 10_000_000
    await bench.seed({"reopens": {"r": 10_005_000}, "closed": {"r": 10_004_000, "!t": 10_004_000}})
    await bench.do(store.close("queue", 3000))
    await bench.do(store.recount(10))
    bench.now = 4_000_000
    await bench.do(store.recount(10))
    state = await bench.dump()
    assert state["closed"] == {"r": 4_004_000, "!t": 10_004_000}, "a breaker has its time in its row"
    assert (state["meta"]["closed"], list(state["openings"])) == ("4003000", ["r"])
    assert "reopens" not in state
