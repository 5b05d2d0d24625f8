"""The form of the script tests: before, call, after, reply. The time is ``NOW`` unless a case has another one."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest
from columns import State, dump, seed, text

from jobq.engine.store import Store
from jobq.engine.store.calls import Claimed

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobq.engine.store import Call, Connection

NOW = 1000
NEW = [0, "", "new"]
"""The first reply of enqueue.lua if the queue had no job before."""
TOKEN = "5 w"
"""The token (fence and worker) of the seeded active jobs."""
STALE = ["4 w", "5 v", "5 w ", "5", "", "nil"]
"""Tokens that do not hold the lease of TOKEN."""


class Case(NamedTuple):
    """One case. ``changes``: the columns that differ afterwards, each with its whole content ({}: removed).

    All other columns must be the same as in ``before``.
    """

    name: str
    before: State
    call: Callable[[Store], Call[Any]]
    changes: State
    reply: Any
    now: int = NOW


def table(cases: list[Case]) -> pytest.MarkDecorator:
    """Run a test once per case, named after it."""
    assert len({case.name for case in cases}) == len(cases)
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


class Bench:
    """A store over an empty queue, with a clock that the test sets. ``admin`` reads and writes the queue directly."""

    def __init__(self, connection: Connection, admin: Store) -> None:
        self.now = NOW
        self.store = Store(connection, "test", clock=lambda: str(self.now))
        requests = itertools.count(1)
        self.store.request = lambda: f"r{next(requests)}"  # In production the id is random. The tests have to know it.
        self.admin = admin

    async def seed(self, state: State) -> None:
        await seed(self.admin, state)

    async def dump(self) -> State:
        """The state, without numbers that stand beside `fifo`. test_fold.py tests them."""
        found = await dump(self.admin)
        meta = {name: value for name, value in found.pop("meta", {}).items() if name not in ("moved", "later")}
        return found | ({"meta": meta} if meta else {})

    async def do(self, call: Call[Any]) -> Any:
        reply = plain(await self.store.do(call))
        # An enqueue into a new queue returns this first. test_enqueue.py tests it.
        if call.script in ("enqueue", "enqueue_unique") and reply[:3] == NEW:
            return reply[3:] if call.script == "enqueue" else reply[5:]
        return reply

    async def check(self, case: Case) -> None:
        await self.seed(case.before)
        self.now = case.now
        assert await self.do(case.call(self.store)) == case.reply
        expected = {column: content for column, content in (case.before | case.changes).items() if content}
        found = await self.dump()
        if "answers" not in case.changes:
            # Operators' verbs record their answer. test_requests.py tests it.
            found = {column: content for column, content in found.items() if column not in ("requests", "answers")}
        if "removed" not in case.changes:
            found.pop("removed", None)  # test_end.py looks at it
        assert found == expected


def plain(reply: Any) -> Any:
    """A reply as text, lists and numbers."""
    if isinstance(reply, bytes):
        return text(reply)
    if isinstance(reply, list | tuple):
        return [plain(one) for one in reply]
    if isinstance(reply, Claimed) and reply.urgent:
        return [plain(one) for one in msgspec.structs.astuple(reply)]
    if isinstance(reply, Claimed) and not reply.weights:
        # Most claims have no weights, and no limits.
        return plain(msgspec.structs.astuple(reply)[: -3 if reply.limited_ms is None else -2])
    if isinstance(reply, Claimed):
        return plain(msgspec.structs.astuple(reply)[:-1])
    if isinstance(reply, msgspec.Struct):
        return [plain(one) for one in msgspec.structs.astuple(reply)]
    return reply


# -- what states are made of -------------------------------------------------------------------------------------------

WAKE: State = {"wake": {"t": 0}}


def place(sequence: int, priority: int = 0) -> int:
    """The score in waiting."""
    return priority * 2**42 + 2**41 + sequence


def jobs(*ids: str) -> State:
    """Specs: the id in upper case, because no script may read them."""
    return {"jobs": {job_id: job_id.upper() for job_id in ids}}


def waiting(*ids: str) -> State:
    """Waiting jobs in this order."""
    return jobs(*ids) | {"waiting": {job_id: place(i) for i, job_id in enumerate(ids, 1)}}


def standing(state: str, *ids: str, score: int = 900) -> State:
    """Jobs in another set."""
    return jobs(*ids) | {state: dict.fromkeys(ids, score)}


def held(*ids: str, till: int = 31_000, token: str = TOKEN) -> State:
    """Active jobs under a lease."""
    return standing("active", *ids, score=till) | {"leases": dict.fromkeys(ids, token)}


def counted(what: str, *ids: str, minute: int = 0, event: str = "", **others: int) -> State:
    """The event and the metrics of finished jobs. ``event``: its name, if the metrics have another one."""
    return {
        "events": [(event or what, " ".join(ids))],
        "metrics": {what: str(len(ids)), f"m:{minute}:{what}": str(len(ids))}
        | {name: str(count) for name, count in others.items()},
    }
