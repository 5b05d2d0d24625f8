"""/readyz may be called by anybody, so it costs one small script per server, even if it is called very often."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from rest import problem

from jobq import Connection, Queue, Worker
from jobq.engine.store import Store
from jobq.errors import StoreUnavailable
from jobq.http import ready
from jobq.http.auth import new_key
from jobq.http.ready import Readiness

if TYPE_CHECKING:
    from rest import Client, NewClient


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The calls to Redis, as queue and script."""
    made: list[tuple[str, str]] = []
    do = Store.do

    async def counted(store: Any, call: Any) -> Any:
        made.append((store.name, call.script))
        return await do(store, call)

    monkeypatch.setattr(Store, "do", counted)
    return made


async def test_a_probe_is_one_script_for_all_queues_of_a_server(
    new_client: NewClient, connection: Connection, calls: list[tuple[str, str]]
):
    client = await new_client(*(Queue(name, connection) for name in ("a", "b", "c")), api_keys=[new_key("k")[1]])
    calls.clear()
    assert (await client.get("/readyz")).status == 200
    assert len(calls) == 1


async def test_each_server_is_asked(connection: Connection, redis_url: str, calls: list[tuple[str, str]]):
    second = Connection(redis_url)
    async with Queue("a", connection) as one, Queue("b", connection) as other, Queue("c", second) as elsewhere:
        calls.clear()
        assert await Readiness([one, other, elsewhere]).check() is None
        assert len(calls) == 2
        assert "c" in [queue for queue, _ in calls]
    await second.aclose()


async def test_a_caller_that_leaves_does_not_cancel_the_probe_for_others(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    asked, answered = asyncio.Event(), asyncio.Event()

    async def refused(_: Queue) -> None:
        asked.set()
        await answered.wait()
        raise StoreUnavailable("away")

    monkeypatch.setattr(Queue, "ready", refused)
    async with Queue("a", connection) as queue:
        readiness = Readiness([queue])
        leaving = asyncio.create_task(readiness.check())
        await asked.wait()
        staying = asyncio.create_task(readiness.check())
        leaving.cancel()
        await asyncio.wait([leaving])
        answered.set()
        assert isinstance(await staying, StoreUnavailable)


async def test_a_probe_ends_with_the_server(connection: Connection, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Queue, "ready", lambda _: asyncio.Event().wait())
    async with Queue("a", connection) as queue:
        readiness = Readiness([queue])
        waiting = asyncio.create_task(readiness.check())
        await asyncio.sleep(0)
        await readiness.aclose()
        await asyncio.wait([waiting])
        assert waiting.cancelled()


async def test_probes_at_once_and_soon_after_share_an_answer(client: Client, calls: list[tuple[str, str]]):
    calls.clear()
    answers = await asyncio.gather(*(client.get("/readyz") for _ in range(20)))
    assert {answer.status for answer in answers} == {200}
    assert len(calls) == 1


async def test_a_failed_worker_of_this_process_makes_it_unready(new_client: NewClient, connection: Connection):
    queue = Queue("main", connection)

    @queue.on_startup
    def refuse() -> None:
        raise RuntimeError("secret of the hook")

    worker, healthy = Worker(queue), Worker(Queue("other", connection))
    client = await new_client(queue, workers=[healthy, worker])
    assert (await client.get("/readyz")).status == 200, "a worker that was not started yet is not a failed one"
    with pytest.raises(RuntimeError):
        await worker.run()
    answer = await client.get("/readyz")
    assert "secret" not in await answer.text()
    await problem(answer, 503, "worker-failed")
    assert (await client.get("/healthz")).status == 200


async def test_an_answer_is_kept_for_a_moment_only(
    client: Client, calls: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ready, "KEPT", 0.0)
    calls.clear()
    for _ in range(3):
        assert (await client.get("/readyz")).status == 200
    assert len(calls) == 3
