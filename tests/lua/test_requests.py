"""Operators' calls may arrive twice: the reply was lost, or a frozen server ran the original after its repetition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from columns import State, also
from table import NOW, Bench, standing, waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobq.engine.store import Call, Store

VERBS: dict[str, tuple[State, Callable[[Store], Call[Any]], list[Any]]] = {
    "drop": (waiting("a"), lambda s: s.drop(force=True), [1, 0, 0, 1]),
    "kill": (waiting("a"), lambda s: s.kill(["a", "nobody"], b"killed"), ["waiting", ""]),
    "lapse": (standing("delayed", "a") | {"start_by": {"a": NOW}}, lambda s: s.lapse(10, b"{}", b"{}"), [0, "a"]),
    "pause": ({}, lambda s: s.pause(), ["running"]),
    "promote": (standing("delayed", "a"), lambda s: s.promote(["a", "nobody"]), ["delayed", ""]),
    "remove": (standing("failed", "a"), lambda s: s.remove(["a", "nobody"]), ["failed", ""]),
    "reprioritise": (waiting("a"), lambda s: s.reprioritise(["a", "nobody"], 5), ["waiting", ""]),
    "resume": ({"meta": {"paused": "7"}}, lambda s: s.resume(), ["paused"]),
    "retry": (
        also(standing("failed", "a", "c"), waiting("b"), {"keys": {"c": "k", "b": "k"}, "unique": {"k": "b -"}}),
        lambda s: s.retry(["a", "nobody", "c"]),
        ["failed", "", "key b"],
    ),
}
every_verb = pytest.mark.parametrize("verb", sorted(VERBS))


@every_verb
async def test_a_repeated_request_gets_the_recorded_answer(verb: str, bench: Bench) -> None:
    """Others have changed the jobs meanwhile, so that the verb would change them again."""
    before, make, answer = VERBS[verb]
    await bench.seed(before)
    call = make(bench.store)
    assert await bench.do(call) == answer
    after = await bench.dump()
    await bench.admin.commands(
        *((b"DEL", key) for column, key in bench.admin.keys.items() if column not in ("requests", "answers"))
    )
    between = before | {column: after[column] for column in ("requests", "answers")}
    await bench.seed(before)
    assert await bench.do(call) == answer
    assert await bench.dump() == between, "the repetition moved something"


@every_verb
async def test_a_request_with_a_new_number_is_executed(verb: str, bench: Bench) -> None:
    before, make, answer = VERBS[verb]
    await bench.seed(before)
    await bench.do(make(bench.store))
    await bench.admin.commands(
        *((b"DEL", key) for column, key in bench.admin.keys.items() if column not in ("requests", "answers"))
    )
    await bench.seed(before)
    assert await bench.do(make(bench.store)) == answer
    assert (await bench.dump())["answers"].keys() == {"r1", "r2"}


@every_verb
async def test_answers_are_kept_for_two_minutes(verb: str, bench: Bench) -> None:
    before, make, _ = VERBS[verb]
    old = {f"o{n}": NOW - 120_000 - n for n in range(150)}
    await bench.seed(
        before | {"requests": old | {"young": NOW - 119_999}} | {"answers": dict.fromkeys([*old, "young"], "waiting\n")}
    )
    await bench.do(make(bench.store))
    found = await bench.dump()
    assert found["requests"].keys() == found["answers"].keys()
    assert {"young", "r1"} < found["answers"].keys()
    assert len(found["answers"]) == 52, "a page of a hundred a call"
    while await bench.do(bench.store.expire(20)) == 20:
        pass
    found = await bench.dump()
    assert found["requests"].keys() == found["answers"].keys() == {"young", "r1"}
