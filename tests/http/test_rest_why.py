"""Why a job does not run, over REST: the answer has only fields with a value, times in ms, and REST's ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rest import enqueue, problem, working

from jobq import Context, Queue, Unique, inject

if TYPE_CHECKING:
    from rest import Client, NewClient, Until

    from jobq import Connection


async def get(client: Client, path: str) -> Any:
    response = await client.get(path)
    assert response.status == 200, await response.text()
    return await response.json()


async def test_a_job_without_a_worker(client: Client):
    job = await enqueue(client)
    assert await get(client, f"/jobs/{job}/why") == {
        "state": "waiting",
        "reasons": [
            {
                "code": "no_worker",
                "detail": "No worker is alive: nothing runs until one starts (jobq work TARGET).",
            }
        ],
        "starts_in_ms": None,
    }
    assert await get(client, f"/queues/main/jobs/{job}/why") == await get(client, f"/jobs/{job}/why")


async def test_a_paused_queue_and_a_closed_one(client: Client):
    await client.post("/jobs/pause")
    await client.post("/limits/queue/close", json={"time": 60_000})
    paused, closed, worker, empty = (await get(client, "/queues/main/why"))["reasons"]
    assert (paused["code"], sorted(paused)) == ("queue_paused", ["code", "detail", "since"])
    assert (closed["code"], sorted(closed)) == ("queue_closed", ["code", "detail", "until"])
    assert closed["until"] > paused["since"] > 1_700_000_000_000
    assert (worker["code"], empty["code"]) == ("no_worker", "no_jobs")
    assert (await get(client, "/why"))["state"] is None


async def test_a_delayed_job_starts_when_it_is_due(new_client: NewClient, connection: Connection, until: Until):
    queue = Queue("main", connection)

    @queue.task
    async def send() -> None: ...

    client = await new_client(queue)
    async with working(queue):
        job = await enqueue(client, type="send", delay=60_000)
        await until(lambda: has_worker(client), "the worker to be known")
        why = await get(client, f"/jobs/{job}/why")
        assert [reason["code"] for reason in why["reasons"]] == ["delayed"]
        assert 0 < why["starts_in_ms"] <= 60_000
        assert why["reasons"][0]["until"] == (await get(client, f"/jobs/{job}"))["run_at"]


async def has_worker(client: Client) -> bool:
    return bool((await get(client, "/workers"))["workers"])


async def test_the_job_that_it_waits_for_is_named_as_rest_names_it(
    new_client: NewClient, connection: Connection, until: Until
):
    queue = Queue("main", connection)

    @queue.task(unique=Unique(by=(), while_="unfinished", on="keep_last"))
    async def sync(ctx: Context = inject) -> None:
        await until(lambda: ctx.stopped or ended, "the end", timeout=30)

    ended: list[bool] = []
    client = await new_client(queue)
    async with working(queue, grace=0.1):
        first = await enqueue(client, type="sync")

        async def runs() -> bool:
            return (await get(client, f"/jobs/{first}"))["state"] == "active"

        await until(runs, "the first one to run")
        second = await enqueue(client, type="sync")
        [reason] = (await get(client, f"/jobs/{second}/why"))["reasons"]
        assert (reason["code"], reason["job"]) == ("key_running", first)
        ended.append(True)


async def test_a_job_that_does_not_exist_is_a_404(client: Client):
    await problem(await client.get("/jobs/main:nothing/why"), 404, "job-not-found")
    await problem(await client.get("/queues/nothing/why"), 404, "unknown-queue")
