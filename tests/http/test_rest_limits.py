"""Limits over REST: rules are set, read and reset, and jobs name their keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from rest import enqueue, problem

from jobq import Concurrency, Queue
from jobq.engine.queue.limits import declare_rules

if TYPE_CHECKING:
    from rest import Client, NewClient

    from jobq import Connection


async def put(client: Client, path: str, body: Any, status: int = 200) -> Any:
    response = await client.put(path, json=body)
    assert response.status == status, await response.text()
    return await response.json()


async def get(client: Client, path: str) -> Any:
    response = await client.get(path)
    assert response.status == 200, await response.text()
    return await response.json()


RULE = {"concurrency": 5, "rate": [{"count": 100, "per": 60_000, "burst": 20}]}


async def test_a_rule_is_set_read_and_reset(client: Client):
    assert await put(client, "/limits/tenant", RULE) == {
        "rule": "tenant", **RULE, "over": "wait", "would_hold": None,
    }  # fmt: skip
    await enqueue(client, limits=["tenant:a"])
    await enqueue(client, limits=["tenant:b"])
    await enqueue(client, limits=["tenant:b"])
    assert (await get(client, "/limits"))["limits"] == [
        {"rule": "tenant", **RULE, "held": 3, "active": 0, "source": "operator", "declared": None}
        | {"closed": 0, "closed_until": None, "orphan": False, "over": "wait"}
    ]
    assert (await get(client, "/limits/tenant/keys"))["keys"] == [
        {"key": "tenant:b", "held": 2, "active": 0, "opens_at": None, "closed_until": None},
        {"key": "tenant:a", "held": 1, "active": 0, "opens_at": None, "closed_until": None},
    ]
    assert [key["key"] for key in (await get(client, "/limits/tenant/keys?sort=key&limit=1"))["keys"]] == ["tenant:a"]
    response = await client.delete("/limits/tenant")
    assert await response.json() == {"rule": "tenant", "declared": None, "returns": False}
    assert await get(client, "/limits") == {"limits": []}


async def test_a_dry_run_says_how_many_jobs_would_be_held_and_changes_nothing(client: Client):
    await put(client, "/limits/r", {"concurrency": 9})
    for _ in range(4):
        await enqueue(client, limits=["r"])
    answer = await put(client, "/limits/r?dry_run=1", {"concurrency": 1})
    assert answer == {"rule": "r", "concurrency": 1, "rate": [], "over": "wait", "would_hold": 3}
    [rule] = (await get(client, "/limits"))["limits"]
    assert rule["concurrency"] == 9


async def test_a_job_shows_its_keys_and_its_state(client: Client):
    await put(client, "/limits/stripe", {"concurrency": 0})
    job = await get(client, f"/jobs/{await enqueue(client, limits=['stripe', 'stripe:eu'])}")
    assert (job["state"], job["limits"]) == ("held", ["stripe", "stripe:eu"])
    assert (await get(client, "/jobs/stats"))["held"] == 1
    assert [row["id"] for row in (await get(client, "/jobs?state=held"))["jobs"]] == [job["id"]]


async def test_an_unknown_rule_is_a_422_that_names_the_known_ones(client: Client):
    await put(client, "/limits/stripe", {"concurrency": 1})
    response = await client.post("/jobs/enqueue", json={"type": "t", "limits": ["strype"]})
    body = await problem(response, 422, "unknown-rule")
    assert (body["rule"], body["known"]) == ("strype", ["stripe"])


async def test_in_an_array_only_the_job_with_the_unknown_rule_is_refused(client: Client):
    await put(client, "/limits/r", {"concurrency": 1})
    jobs = [{"type": "t"}, {"type": "t", "limits": ["nope"]}, {"type": "t", "limits": ["r"]}]
    response = await client.post("/jobs/enqueue", json=jobs)
    assert response.status == 207
    assert [answer.get("status", 201) for answer in await response.json()] == [201, 422, 201]


@pytest.mark.parametrize(
    ("rule", "body"),
    [
        ("r", {}),
        ("r", {"concurrency": -1}),
        ("r", {"concurrency": 1.5}),
        ("r", {"rate": [{"count": 0, "per": 1}]}),
        ("r", {"rate": [{"count": 1, "per": 0}]}),
        ("r", {"rate": [{"count": 1, "per": 1, "burst": 0}]}),
        ("r", {"rate": [{"count": 1, "per": 1}] * 9}),
        ("r", {"concurency": 1}),
        ("a b", {"concurrency": 1}),
        ("a:b", {"concurrency": 1}),
        ("%00", {"concurrency": 1}),
        ("x" * 129, {"concurrency": 1}),
    ],
)
async def test_a_rule_that_cannot_be_is_refused(client: Client, rule: str, body: Any):
    response = await client.put(f"/limits/{rule}", json=body)
    assert response.status == 422, await response.text()
    assert (await get(client, "/limits"))["limits"] == []


@pytest.mark.parametrize("keys", [["queue"], ["a b"], [":"], ["a:"], [""], [1], "a", ["a:\n"], ["r"] * 9])
async def test_limit_keys_that_cannot_be_are_refused(client: Client, keys: Any):
    response = await client.post("/jobs/enqueue", json={"type": "t", "limits": keys})
    assert response.status == 422, await response.text()
    assert (await get(client, "/jobs/stats"))["held"] == 0


async def test_a_key_is_closed_for_a_time_and_opened(client: Client):
    await put(client, "/limits/tenant", {"concurrency": 5})
    response = await client.post("/limits/tenant:a%2Fb/close", json={"time": 60_000})
    assert (response.status, await response.json()) == (200, {"key": "tenant:a/b", "closed_ms": 60_000})
    [key] = (await get(client, "/limits/tenant/keys"))["keys"]
    assert (key["key"], key["held"], key["active"]) == ("tenant:a/b", 0, 0)
    assert key["closed_until"] == key["opens_at"] > 60_000
    [rule] = (await get(client, "/limits"))["limits"]
    assert (rule["closed"], rule["closed_until"]) == (1, key["closed_until"])
    response = await client.post("/limits/tenant:a%2Fb/open")
    assert await response.json() == {"key": "tenant:a/b", "closed_ms": 0}
    assert (await get(client, "/limits/tenant/keys"))["keys"] == []


async def test_the_whole_queue_is_closed_for_a_time_and_opened(client: Client):
    assert (await get(client, "/jobs/stats"))["closed_until"] is None
    assert (await client.post("/limits/queue/close", json={"time": 60_000})).status == 200
    assert (await get(client, "/jobs/stats"))["closed_until"] > 60_000
    assert (await client.post("/limits/queue/open")).status == 200
    assert (await get(client, "/jobs/stats"))["closed_until"] is None


async def test_only_a_key_of_a_rule_can_be_closed(client: Client):
    await put(client, "/limits/tenant", {"concurrency": 5})
    body = await problem(await client.post("/limits/tenent:a/close", json={"time": 1}), 404, "rule-not-found")
    assert (body["rule"], body["known"]) == ("tenent", ["tenant"])
    await problem(await client.post("/limits/tenant:/close", json={"time": 1}), 422, "invalid-limit")
    for wrong in ({}, {"time": 0}, {"time": "5m"}, {"time": 10**15}):
        assert (await client.post("/limits/tenant/close", json=wrong)).status in (400, 422)


async def test_costs_and_slots_of_a_job_and_the_unit_of_a_rate(client: Any):
    band = {"count": 900, "per": 60000, "burst": 100, "unit": "tokens"}
    response = await client.put("/limits/model", json={"rate": [band]})
    assert (await response.json())["rate"] == [band]
    assert (await get(client, "/limits"))["limits"][0]["rate"] == [band]
    job = {"type": "t", "limits": ["model"], "costs": {"tokens": 500}, "slots": 3}
    answer = await (await client.post("/jobs/enqueue", json=job)).json()
    row = await get(client, f"/jobs/{answer['id']}")
    assert (row["costs"], row["slots"]) == ({"tokens": 500}, 3)
    for field, value in (("costs", {"a b": 1}), ("costs", {"tokens": -1}), ("slots", 0), ("slots", 101)):
        response = await client.post("/jobs/enqueue", json=job | {field: value})
        assert response.status == 422, await response.text()
    response = await client.put("/limits/model", json={"rate": [band | {"unit": "a b"}]})
    assert response.status == 422
    response = await client.put("/limits/queue", json={"rate": [band]})
    assert response.status == 422


async def test_the_answer_of_an_enqueue_says_what_a_limit_without_room_did(client: Client):
    rule = {"concurrency": 1, "rate": [], "over": "drop"}
    assert await put(client, "/limits/r", rule) == {"rule": "r", **rule, "would_hold": None}
    first = await client.post("/jobs/enqueue", json={"type": "t", "limits": ["r"]})
    assert (first.status, set(await first.json())) == (201, {"id", "duplicate"})
    job = {"type": "t", "limits": ["r"]}
    second = await client.post("/jobs/enqueue", json=job, headers={"Idempotency-Key": "once"})
    answer = await second.json()
    assert (second.status, answer["state"], answer["done"]) == (201, "failed", "dropped")
    again = await (await client.post("/jobs/enqueue", json=job, headers={"Idempotency-Key": "once"})).json()
    assert again == {"id": answer["id"], "duplicate": True, "state": "failed", "done": "returned"}
    await put(client, "/limits/r", {"concurrency": 1, "over": "replace_oldest"})
    bulk = await client.post("/jobs/enqueue", json=[{"type": "t", "limits": ["r"]} for _ in range(3)])
    answers = await bulk.json()
    assert [one.get("done") for one in answers] == ["replaced_oldest"] * 3
    shown = await get(client, f"/jobs/{(await first.json())['id']}")
    assert (shown["state"], shown["errors"][-1]["type"]) == ("failed", "Replaced")
    assert (await get(client, "/limits"))["limits"][0]["over"] == "replace_oldest"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"concurrency": 1, "over": "skip"}, "over"),
        ({"rate": [{"count": 1, "per": 1000}], "over": "kill_running"}, "no token"),
    ],
)
async def test_an_action_that_cannot_be_is_refused(client: Client, body: Any, words: str):
    response = await client.put("/limits/r", json=body)
    assert response.status == 422
    assert words in (await response.json())["detail"]


async def test_what_code_declared_is_removed_on_request(new_client: NewClient, connection: Connection):
    queue = Queue("main", connection)

    @queue.task(limits=[Concurrency(3, name="r")])
    async def work() -> None: ...

    client = await new_client(queue)
    await declare_rules(queue.store, queue.rules)
    await put(client, "/limits/r", {"concurrency": 5})
    assert await (await client.delete("/limits/r")).json() == {
        "rule": "r", "declared": {"concurrency": 3}, "returns": False,
    }  # fmt: skip
    response = await client.delete("/limits/r?declared=1")
    assert (await response.json())["declared"] is None
    assert await get(client, "/limits") == {"limits": []}
    assert (await client.delete("/limits/r?declared=2")).status == 422


async def test_one_rule_is_shown_or_a_404_names_the_others(client: Client):
    await put(client, "/limits/tenant", RULE)
    await put(client, "/limits/other", {"concurrency": 1})
    await enqueue(client, limits=["tenant:a"])
    [both] = [row for row in (await get(client, "/limits"))["limits"] if row["rule"] == "tenant"]
    assert await get(client, "/limits/tenant") == both
    assert both["held"] == 1
    for method, path, body in (
        ("GET", "/limits/nothing", None),
        ("DELETE", "/limits/nothing", None),
        ("DELETE", "/limits/nothing?declared=1", None),
        ("GET", "/limits/nothing/keys", None),
        ("POST", "/limits/nothing/close", {"time": 1}),
        ("POST", "/limits/nothing/open", None),
    ):
        said = await problem(await client.request(method, path, json=body), 404, "rule-not-found")
        assert (said["rule"], sorted(said["known"])) == ("nothing", ["other", "tenant"]), (method, path)
    await problem(await client.get("/limits/tenant:a"), 404, "rule-not-found")
    await problem(await client.delete("/limits/tenant:a"), 404, "rule-not-found")
