"""Answers of REST are bounded in bytes and agree with the counts. A repeated request is executed once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from rest import enqueue, problem, working

from jobq import Connection, Queue
from jobq.engine.queue import pages
from jobq.engine.store import Store
from jobq.http.auth import Scope, new_key

if TYPE_CHECKING:
    from rest import Client, NewClient, Until

STATES = ("waiting", "delayed", "active", "completed", "failed")


def size_of(reply: Any) -> int:
    """The size of a reply in bytes."""
    if isinstance(reply, list):
        return sum(map(size_of, reply))  # pyright: ignore
    return len(reply) if isinstance(reply, bytes | str) else 8


async def test_a_list_of_large_jobs_loads_no_payload(
    new_client: NewClient, connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    client = await new_client(Queue("main", connection))
    large = {"type": "a", "payload": "x" * 300_000, "metadata": {"a": "y" * 50_000}}
    for n in range(20):
        await enqueue(client, large | {"delay": n % 2 * 60_000})
    read: list[int] = []
    do = Store.do

    async def counted(store: Store, call: Any) -> Any:
        answer = await do(store, call)
        read.append(size_of(answer))
        return answer

    monkeypatch.setattr(Store, "do", counted)
    for query in ("", "?state=waiting", "?state=delayed"):
        response = await client.get(f"/jobs{query}")
        assert len((await response.json())["jobs"]) in (10, 20)
        assert len(await response.read()) < 20_000
    assert sum(read) < 100_000


async def test_failed_jobs_with_their_payloads_come_in_bounded_pages(new_client: NewClient, connection: Connection):
    client = await new_client(Queue("main", connection))
    body = {"type": "a", "payload": "x" * 900_000}
    jobs = {await enqueue(client, body) for _ in range(14)}
    for job in jobs:
        assert (await client.post(f"/jobs/{job}/kill")).status == 200
    seen: list[str] = []
    cursor, asked = "", 0
    while asked == 0 or cursor:
        response = await client.get("/jobs/failed/jobs?limit=500" + (f"&cursor={cursor}" if cursor else ""))
        text = await response.read()
        assert len(text) < pages.PAGE_BYTES + 1_100_000
        page = await response.json()
        seen += [job["id"] for job in page["jobs"]]
        cursor, asked = page["cursor"], asked + 1
    assert asked > 1
    assert sorted(seen) == sorted(jobs)


@pytest.mark.parametrize("delay", [0, 60_000])
async def test_a_job_whose_row_is_missing_is_counted_and_shown(
    new_client: NewClient, connection: Connection, delay: int
):
    queue = Queue("main", connection)
    client = await new_client(queue)
    job = await enqueue(client, type="a", delay=delay)
    await queue.store.command(b"HDEL", queue.store.keys["jobs"], job.rpartition(":")[2])
    state = "delayed" if delay else "waiting"
    assert (await (await client.get("/jobs/stats")).json())[state] == 1
    for path in ("/jobs", f"/jobs?state={state}"):
        listed = (await (await client.get(path)).json())["jobs"]
        assert [(row["id"], row["type"], row["state"]) for row in listed] == [(job, "?", state)]
    shown = await (await client.get(f"/jobs/{job}")).json()
    assert (shown["state"], shown["unreadable"]) == (state, {"spec": "it is missing"})
    assert (await client.delete(f"/jobs/{job}")).status == 204
    assert (await (await client.get("/jobs/stats")).json())[state] == 0


async def test_stats_count_living_workers_and_running_jobs(new_client: NewClient, connection: Connection, until: Until):
    queue = Queue("main", connection)
    holding, done = [], []

    @queue.task(attempts=1)
    async def hold() -> None:
        holding.append(1)
        await until(lambda: bool(done), "the test to be done", timeout=30)

    client = await new_client(queue)
    async with working(queue, grace=5.0):
        job = await enqueue(client, type="hold")
        await until(lambda: bool(holding), "the job to run")
        shown = await (await client.get(f"/jobs/{job}")).json()
        assert (shown["state"], shown["started_at"] is not None, shown["worker"] is not None) == ("active", True, True)
        stats = await (await client.get("/jobs/stats")).json()
        assert (stats["workers"], stats["active"], stats["oldest_waiting_ms"]) == (1, 1, None)
        workers = (await (await client.get("/workers")).json())["workers"]
        assert [(row["running"] <= 1, row["queues"], row["types"]) for row in workers] == [(True, ["main"], ["hold"])]
        done.append(1)


# -- Idempotency-Key ------------------------------------------------------------------------------------------------


async def test_an_idempotency_key_belongs_to_its_api_key_and_queue(new_client: NewClient, connection: Connection):
    ann, bob = new_key("ann", Scope.ADMIN), new_key("bob", Scope.ADMIN)
    client = await new_client(Queue("main", connection), Queue("mail", connection), api_keys=[ann[1], bob[1]])
    ids: list[str] = []
    for secret, path in ((ann[0], "/jobs"), (bob[0], "/jobs"), (ann[0], "/queues/mail/jobs")):
        headers = {"Authorization": f"Bearer {secret}", "Idempotency-Key": "order-7"}
        for status in (201, 200):
            response = await client.post(f"{path}/enqueue", json={"type": "a", "payload": secret}, headers=headers)
            assert response.status == status
        ids.append((await response.json())["id"])
    assert len(set(ids)) == 3


@pytest.mark.parametrize("key", ["idempotency:order-7", "i:order-7", "order-7", "order-7/0"])
async def test_an_idempotency_key_and_a_jobs_key_are_never_the_same(client: Client, key: str):
    headers = {"Idempotency-Key": "order-7"}
    first = await client.post("/jobs/enqueue", json={"type": "a"}, headers=headers)
    other = await client.post("/jobs/enqueue", json={"type": "a", "key": key})
    many = await client.post("/jobs/enqueue", json=[{"type": "a"}], headers=headers)
    named = await client.post("/jobs/enqueue", json={"type": "a"}, headers={"Idempotency-Key": key + "/0"})
    assert [response.status for response in (first, other, many, named)] == [201] * 4
    found = [await response.json() for response in (first, other, named)]
    assert len({one["id"] for one in [*found, *await many.json()]}) == 4


async def test_an_idempotency_key_outlives_its_job(client: Client):
    headers = {"Idempotency-Key": "order-7"}
    job = (await (await client.post("/jobs/enqueue", json={"type": "a"}, headers=headers)).json())["id"]
    assert (await client.delete(f"/jobs/{job}")).status == 204
    again = await client.post("/jobs/enqueue", json={"type": "a"}, headers=headers)
    assert (again.status, await again.json()) == (200, {"id": job, "duplicate": True, "done": "returned"})
    other = await client.post("/jobs/enqueue", json={"type": "b"}, headers=headers)
    await problem(other, 422, "idempotency-conflict")
