"""publish.lua: the types that workers and servers publish. Also expire.lua, which removes old ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from table import NOW, Bench, Case, table

from jobq.engine.store.store import COMPARED_MS, TYPES_MAX

if TYPE_CHECKING:
    from columns import State

DAY = 24 * 3600 * 1000


def publish(who: str, *rows: str, started: bool = False):
    return lambda store: store.publish(who, list(rows), started=started)


def said(*lines: str, at: int = NOW) -> State:
    return {"types": {"t": "\n".join(lines)}, "types_seen": {"t": at}}


@table(
    [
        Case("the first one", {}, publish("a", "t", "A", started=True), said("1000\ta\tA"), []),
        Case("the same again", said("900\ta\tA", at=900), publish("a", "t", "A"), said("1000\ta\tA"), []),
        Case(
            "another one that agrees", said("900\ta\tA"), publish("b", "t", "A", started=True), said("1000\tb\tA"), []
        ),
        Case(
            "who starts with another row counts, and hears of the other",
            said("900\ta\tA"),
            publish("b", "t", "B", started=True),
            said("1000\tb\tB", "900\ta\tA"),
            ["t", "a", "A"],
        ),
        Case(
            "who only repeats does not count more than before",
            said("900\tb\tB", "800\ta\tA"),
            publish("a", "t", "A"),
            said("900\tb\tB", "1000\ta\tA"),
            ["t", "b", "B"],
        ),
        Case(
            "who starts again with the old row counts: a rollback",
            said("900\tb\tB", "800\ta\tA"),
            publish("a", "t", "A", started=True),
            said("1000\ta\tA", "900\tb\tB"),
            ["t", "b", "B"],
        ),
        Case(
            "who repeats what was lost stands behind the others",
            said("900\tb\tB"),
            publish("a", "t", "A"),
            said("900\tb\tB", "1000\ta\tA"),
            ["t", "b", "B"],
        ),
        Case(
            "what nobody repeats is not compared any more",
            said("1000\ta\tA"),
            publish("b", "t", "B", started=True),
            said(f"{1000 + COMPARED_MS}\tb\tB", at=1000 + COMPARED_MS),
            [],
            now=1000 + COMPARED_MS,
        ),
        Case(
            "no more than four rows of a type",
            said(*(f"900\t{n}\t{n}" for n in range(4))),
            publish("b", "t", "B", started=True),
            said("1000\tb\tB", *(f"900\t{n}\t{n}" for n in range(3))),
            [word for n in range(3) for word in ("t", str(n), str(n))],
        ),
        Case("a damaged line goes", said("damaged"), publish("a", "t", "A"), said("1000\ta\tA"), []),
    ]
)
async def test_publish(case: Case, bench: Bench):
    await bench.check(case)


async def test_types_are_bounded_in_number(bench: Bench):
    names = [f"t{n}" for n in range(TYPES_MAX + 5)]
    rows: list[Any] = [word for name in names for word in (name, "{}")]
    await bench.do(publish("a", *rows, started=True)(bench.store))
    await bench.do(publish("b", *rows, started=True)(bench.store))
    state = await bench.dump()
    assert sorted(state["types"]) == sorted(state["types_seen"]) == sorted(names[:TYPES_MAX])


@pytest.mark.parametrize("later", [0, 1])
async def test_types_that_are_no_longer_published_are_removed_after_a_day(bench: Bench, later: int):
    await bench.seed(said("1000\ta\tA"))
    bench.now = NOW + DAY - 1 + later
    await bench.do(bench.store.expire(10))
    assert await bench.dump() == ({} if later else said("1000\ta\tA"))
