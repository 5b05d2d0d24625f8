"""Groups over REST: they are listed, set and reset, and jobs name theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from rest import enqueue, problem

if TYPE_CHECKING:
    from rest import Client


async def get(client: Client, path: str) -> Any:
    response = await client.get(path)
    assert response.status == 200, await response.text()
    return await response.json()


async def test_a_group_is_set_listed_and_reset(client: Client):
    response = await client.put("/groups/a", json={"weight": 3, "paused": False, "max_queued": 2})
    assert await response.json() == {"group": "a", "weight": 3.0, "paused": False, "max_queued": 2}
    for group in ("a", "b", "a"):
        await enqueue(client, group=group)
    rows = (await get(client, "/groups?sort=waiting"))["groups"]
    assert [(row["group"], row["held"], row["weight"], row["max_queued"]) for row in rows] == [
        ("a", 2, 3.0, 2),
        ("b", 1, 1.0, None),
    ]
    assert [row["group"] for row in (await get(client, "/groups?sort=oldest&limit=1"))["groups"]] == ["a"]
    response = await client.post("/jobs/enqueue", json={"type": "echo", "payload": {}, "group": "a"})
    body = await problem(response, 429, "group-full")
    assert body["group"] == "a"
    assert response.headers["Retry-After"] == "10"
    assert (await client.delete("/groups/a")).status == 204
    await enqueue(client, group="a")


async def test_a_full_group_refuses_its_jobs_of_an_array_and_no_others(client: Client):
    await client.put("/groups/a", json={"max_queued": 1})
    jobs = [{"type": "echo", "payload": {}, "group": group} for group in ("a", "b", "a")]
    response = await client.post("/jobs/enqueue", json=jobs)
    assert response.status == 207
    answers = await response.json()
    assert ["id" in answer for answer in answers] == [True, True, False]
    assert answers[2]["status"] == 429


async def test_a_job_shows_its_group(client: Client):
    job = await enqueue(client, group="tenant a")
    assert (await get(client, f"/jobs/{job}"))["group"] == "tenant a"
    [row] = (await get(client, "/jobs?state=held"))["jobs"]
    assert row["group"] == "tenant a", row


@pytest.mark.parametrize("body", [{"weight": 0}, {"weight": 2000}, {"max_queued": -1}, {"paused": 1}, {"wait": 1}])
async def test_settings_that_do_not_fit_are_a_422(client: Client, body: Any):
    assert (await client.put("/groups/a", json=body)).status == 422
    assert await get(client, "/groups") == {"groups": []}


@pytest.mark.parametrize("group", ["", "a\nb", "x" * 201, 5])
async def test_a_group_that_does_not_fit_is_a_422(client: Client, group: Any):
    response = await client.post("/jobs/enqueue", json={"type": "echo", "payload": {}, "group": group})
    assert response.status == 422


async def test_a_whole_group_is_listed_killed_and_retried(client: Client):
    for group in "aab":
        await enqueue(client, group=group)
    assert len((await get(client, "/jobs?state=held&group=a"))["jobs"]) == 2
    response = await client.post("/jobs/kill?state=held&group=a")
    assert await response.json() == {"count": 2}
    response = await client.post("/jobs/retry?group=b")
    assert await response.json() == {"count": 0}
    response = await client.post("/jobs/retry?group=a")
    assert await response.json() == {"count": 2}
    response = await client.delete("/jobs?state=held&group=b")
    assert await response.json() == {"count": 1}
    assert (await client.post("/jobs/kill?state=failed")).status == 422


async def test_a_part_of_the_settings_is_changed(client: Client):
    await client.put("/groups/a", json={"weight": 3, "max_queued": 2})
    response = await client.patch("/groups/a", json={"paused": True})
    assert await response.json() == {"group": "a", "weight": 3.0, "paused": True, "max_queued": 2}
    response = await client.patch("/groups/a", json={"max_queued": None})
    assert await response.json() == {"group": "a", "weight": 3.0, "paused": True, "max_queued": None}
    response = await client.put("/groups/a", json={"weight": 2})
    assert await response.json() == {"group": "a", "weight": 2.0, "paused": False, "max_queued": None}
    assert (await client.patch("/groups/a", json={"weight": 0})).status == 422
    assert (await client.patch("/groups/a", json={"held": 1})).status == 422


async def test_a_whole_group_is_moved(client: Client):
    for group in "aab":
        await enqueue(client, group=group)
    await enqueue(client, group="a", delay=60_000)
    response = await client.post("/jobs/priority?state=held&group=a", json={"priority": 3})
    assert await response.json() == {"count": 2}
    rows = (await get(client, "/jobs?state=held"))["jobs"]
    assert sorted((row["group"], row["priority"]) for row in rows) == [("a", 3), ("a", 3), ("b", 0)]
    response = await client.post("/jobs/promote?group=b")
    assert await response.json() == {"count": 0}
    response = await client.post("/jobs/promote?group=a")
    assert await response.json() == {"count": 1}
    assert (await client.post("/jobs/priority?state=active", json={"priority": 3})).status == 422
    assert (await client.post("/jobs/priority?state=held", json={"priority": 9999})).status == 422


async def test_one_group_is_shown_whatever_it_has(client: Client):
    await client.put("/groups/ab", json={"weight": 3, "max_queued": 5})
    for group in ("aa", "ab", "ab", "abc"):
        await enqueue(client, group=group)
    await client.put("/limits/r", json={"concurrency": 1})
    await enqueue(client, group="ab", limits=["r"])
    rows = {row["group"]: row for row in (await get(client, "/groups"))["groups"]}
    for group in ("aa", "ab", "abc"):
        assert await get(client, f"/groups/{group}") == rows[group]
    assert (rows["ab"]["held"], rows["ab"]["weight"]) == (3, 3.0)
    none = {"held": 0, "active": 0, "weight": 1.0, "paused": False, "max_queued": None, "oldest": None}
    for group in ("a", "abb", "b"):
        assert await get(client, f"/groups/{group}") == {"group": group, **none}
    await client.put("/groups/b", json={"paused": True})
    assert (await get(client, "/groups/b"))["paused"] is True
    await problem(await client.get(f"/groups/{'x' * 201}"), 422, "invalid-group")


async def test_a_put_without_a_body_changes_nothing(client: Client):
    await client.put("/groups/a", json={"weight": 3})
    body = await problem(await client.put("/groups/a"), 400, "invalid-json")
    assert "send the settings" in body["detail"]
    assert (await get(client, "/groups/a"))["weight"] == 3
    assert (await client.put("/groups/a", json={})).status == 200
    assert (await get(client, "/groups/a"))["weight"] == 1
