"""Every point at which an enqueue that changes another job can fail. A caller repeats the call with the same id, also
after a crash: the change happens once, and never to another job."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from jobq import Connection, NewJob, Options, Queue, State, StoreUnavailable
from jobq.engine.model.job import StoredUnique
from jobq.engine.store import route as route_module
from tests.chaos.faulty import Fault, FaultyConnection

if TYPE_CHECKING:
    from tests.conftest import Server


async def insist(queue: Queue, new: NewJob) -> Any:
    for _ in range(3):
        try:
            return await queue.submit(new)
        except StoreUnavailable:
            continue
    return await queue.submit(new)


def job(number: int, on: Any) -> NewJob:
    delay = 60_000 if on == "extend" else None
    unique = StoredUnique(key="k", on=on, delay=delay)
    return NewJob("t", msgspec.Raw(f"{number}".encode()), Options(unique=unique), id=f"j{number}")


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("on", ["replace", "replace_all", "keep_last", "kill_running"])
async def test_a_lost_reply_changes_nothing_twice(
    on: str, fault: Fault, server: Server, connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(route_module, "PAUSES", ())
    for at in range(12):
        name = f"points-{on}-{fault.name}-{at}".lower().replace("_", "-")
        faulty = FaultyConnection(server.url, at=at, fault=fault)
        answers: list[Any] = []
        async with Queue(name, connection) as healthy:
            queue = Queue(name, faulty)
            with suppress(StoreUnavailable):
                await queue.open()
            with suppress(StoreUnavailable):
                for number in range(3 if queue.is_open else 0):
                    answers.append(await insist(queue, job(number, on)))  # noqa: PERF401 - it may end halfway
            if queue.is_open:
                await queue.aclose()
            await faulty.aclose()
            # The successor of a crashed process repeats what was not answered.
            answers += [await insist(healthy, job(number, on)) for number in range(len(answers), 3)]
            assert [answer.id for answer in answers] == ["j0", "j0", "j0"]
            rows = (await healthy.page(State.WAITING)).jobs
            assert [(row.id, bytes(row.payload)) for row in rows] == [("j0", b"2")], "one job, with the last data"
            # Much later a frozen server executes an old call once more.
            again = await healthy.submit(job(1, on))
            assert (again.id, again.done) == ("j0", "replaced")
            assert bytes((await healthy.get("j0")).payload) == b"2"
