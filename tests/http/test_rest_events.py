"""Events of jobs over REST: names, ids that a browser continues from, the end of a job, wrong input."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from rest import enqueue, problem

from jobq import Queue
from jobq.engine.queue.reader import EventReader
from jobq.http import feeds
from jobq.http.auth import Scope, new_key

if TYPE_CHECKING:
    from aiohttp import ClientResponse
    from rest import Client, NewClient

    from jobq import Connection


async def next_event(response: ClientResponse) -> tuple[str, str, Any]:
    """The id, name and data of the next event."""
    found = {"id": "", "event": ""}
    async with asyncio.timeout(10):
        while line := (await response.content.readline()).decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if name == "data":
                return found["id"], found["event"], json.loads(value)
            found[name] = value
    raise EOFError


async def test_a_queue_tells_what_happens_to_its_jobs(client: Client) -> None:
    async with client.get("/events", params={"since": "0"}) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        assert await response.content.readline() == b"retry: 2000\n"
        first, second = await enqueue(client), await enqueue(client)
        await client.post(f"/jobs/{first}/kill")
        await client.delete(f"/jobs/{second}")
        cursor, name, data = await next_event(response)
        assert (name, data["name"], data["job"], data["queue"]) == ("killed", "killed", first, "main")
        assert cursor == data["cursor"]
        assert data["at"] > 1_700_000_000_000
        assert (await next_event(response))[1:2] == ("removed",)
    async with client.get("/events", headers={"Last-Event-ID": cursor}) as response:
        assert (await next_event(response))[2]["job"] == second, "a browser continues behind the last event"
    async with client.get("/events", params={"since": "0", "names": "removed"}) as response:
        assert (await next_event(response))[2]["job"] == second


async def test_a_stream_of_a_job_ends_with_it(client: Client) -> None:
    job, other = await enqueue(client), await enqueue(client)
    async with client.get("/events", params={"job": job}) as response:
        await asyncio.sleep(0.02)
        await client.post(f"/jobs/{other}/kill")
        await client.post(f"/jobs/{job}/kill")
        cursor, name, data = await next_event(response)
        assert (name, data["job"]) == ("killed", job)
        assert await asyncio.wait_for(response.read(), 10) == b"\n"
    again = await client.get("/events", params={"job": job}, headers={"Last-Event-ID": cursor})
    assert again.status == 204, "a browser does not connect again"
    async with client.get("/queues/main/events", params={"job": job}) as response:
        assert (await next_event(response))[1] == "killed", "it has ended already"


async def test_a_browser_that_connects_again_hears_the_end_of_a_job_that_is_not_kept(client: Client) -> None:
    job, other = await enqueue(client), await enqueue(client)
    await client.post(f"/jobs/{other}/kill")
    async with client.get("/events", params={"job": other}) as response:
        before, _, _ = await next_event(response)
    await client.post(f"/jobs/{job}/kill")
    await client.delete(f"/jobs/{job}")
    known = {"Last-Event-ID": before}
    async with client.get("/events", params={"job": job}, headers=known) as response:
        cursor, name, data = await next_event(response)
        assert (response.status, name, data["job"]) == (200, "killed", job)
    for headers in ({}, {"Last-Event-ID": cursor}):
        response = await client.get("/events", params={"job": job}, headers=headers)
        if headers:  # Its removal comes behind its end.
            assert (await next_event(response))[1] == "removed"
        else:
            await problem(response, 404, "job-not-found")


async def test_what_follows_the_beginning_of_an_answer_is_told(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    read, may_read = EventReader._read, asyncio.Event()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

    async def late(reader: EventReader) -> None:
        await may_read.wait()
        await read(reader)

    monkeypatch.setattr(EventReader, "_read", late)
    first, second = await enqueue(client), await enqueue(client)
    async with client.get("/events") as whole, client.get("/events", params={"job": second}) as one:
        # The answers have begun, and the events come before their reader does anything.
        await client.post(f"/jobs/{first}/kill")
        await client.post(f"/jobs/{second}/kill")
        await client.post(f"/jobs/{second}/retry")
        may_read.set()
        assert [(await next_event(whole))[2]["job"] for _ in range(2)] == [first, second]
        assert (await next_event(one))[1] == "killed"


@pytest.mark.parametrize(
    ("query", "headers", "status", "slug", "words"),
    [
        ({"since": "yesterday"}, {}, 422, "invalid-query", "give the cursor of an event"),
        ({}, {"Last-Event-ID": "1-"}, 422, "invalid-query", "give the cursor of an event"),
        ({"names": "done"}, {}, 422, "invalid-query", "give a list of started"),
        ({"job": "nobody"}, {}, 404, "job-not-found", "nobody"),
        ({"job": "other:nobody"}, {}, 404, "job-not-found", "nobody"),
        ({"queue": "main"}, {}, 422, "unknown-field", "job, since, names"),
    ],
)
async def test_wrong_input_says_what_to_do(
    client: Client, query: dict[str, str], headers: dict[str, str], status: int, slug: str, words: str
) -> None:
    response = await client.get("/events", params=query, headers=headers)
    assert words in (await problem(response, status, slug))["detail"]


async def test_a_quiet_stream_has_a_heartbeat_and_is_counted(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "HEARTBEAT", 0.02)
    monkeypatch.setattr(feeds, "MOST", 1)
    async with client.get("/events") as response:
        async with asyncio.timeout(10):
            while await response.content.readline() != b": nothing new\n":
                pass
        await problem(await client.get("/events"), 503, "busy")


async def test_which_events_are_told_is_set_by_admins(new_client: NewClient, connection: Connection) -> None:
    keys = {scope: new_key(scope.name, scope) for scope in (Scope.READ, Scope.ADMIN)}
    client = await new_client(Queue("main", connection), api_keys=[key for _, key in keys.values()])
    headers = {scope: {"Authorization": f"Bearer {secret}"} for scope, (secret, _) in keys.items()}
    body = {"events": "all"}
    await problem(await client.put("/events", json=body, headers=headers[Scope.READ]), 403, "forbidden")
    answer = await client.put("/events", json=body, headers=headers[Scope.ADMIN])
    assert await answer.json() == {"queue": "main", "events": "all"}
    wrong = await client.put("/events", json={"events": "some"}, headers=headers[Scope.ADMIN])
    assert (await problem(wrong, 422, "invalid-field"))["field"] == "events"
    await problem(await client.get("/events"), 401, "unauthenticated")


async def test_a_cursor_of_a_job_is_refused_by_the_stream_of_its_queue(
    new_client: NewClient, connection: Connection
) -> None:
    queue = Queue("main", connection, partitions=2)
    client = await new_client(queue)
    job = await queue.enqueue("any", id="j~1")
    await job.kill()
    async with client.get("/events", params={"job": f"main:{job.id}"}) as response:
        cursor, _, _ = await next_event(response)
    assert cursor.endswith(".p1")
    for given in ({"params": {"since": cursor}}, {"headers": {"Last-Event-ID": cursor}}):
        found = await problem(await client.get("/events", **given), 422, "invalid-query")  # type: ignore[arg-type]
        assert "is a cursor of the events of one job: read those of that job with it" in found["detail"]
    other = await problem(
        await client.get("/events", params={"job": "main:other~0", "since": cursor}), 422, "invalid-query"
    )
    assert "is a cursor of another job" in other["detail"]


async def test_a_cursor_from_before_there_were_partitions_goes_on_in_all_of_them(
    new_client: NewClient, connection: Connection
) -> None:
    queue = Queue("main", connection)
    client = await new_client(queue)
    first = await queue.enqueue("any")
    await first.kill()
    async with client.get("/events", params={"since": "0"}) as response:
        cursor, _, data = await next_event(response)
    assert (data["job"], "," in cursor) == (f"main:{first.id}", False)
    await queue.set_partitions(2)
    jobs = {f"main:{(await queue.enqueue('any', id=f'j~{n}')).id}" for n in (0, 1)}
    for job in jobs:
        await client.post(f"/jobs/{job}/kill")
    async with client.get("/events", headers={"Last-Event-ID": cursor}) as response:
        told = [await next_event(response) for _ in jobs]
    assert {data["job"] for _, _, data in told} == jobs
    assert "," in told[-1][0], "its cursor has a place in each partition"
