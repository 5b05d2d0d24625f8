"""Webhooks over REST: set, shown without their secret, rotated, tested, removed; and a server that delivers."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import standardwebhooks
from aiohttp import web
from aiohttp.test_utils import TestServer
from rest import enqueue, problem

from jobq import Queue, Settings, SettingsError, webhooks
from jobq.engine.queue import announce
from jobq.engine.queue.firing import Firing
from jobq.http import create_app, duties
from jobq.http.call import HUB
from tests.conftest import wait_until

if TYPE_CHECKING:
    from rest import Client, NewClient

    from jobq import Connection

URL = "https://example.com/hook"


async def put(client: Client, name: str, **body: Any) -> Any:
    response = await client.put(f"/webhooks/{name}", json={"url": URL} | body)
    assert response.status == 200, await response.text()
    return await response.json()


async def test_a_webhook_is_set_shown_rotated_and_removed(client: Client):
    made = await put(client, "crm", events=["failed"], types=["mail"])
    assert made["secret"].startswith("whsec_")
    assert (made["events"], made["types"], made["enabled"]) == (["failed"], ["mail"], True)
    shown = await (await client.get("/webhooks/crm")).json()
    assert shown.get("secret") is None
    assert shown | {"secret": made["secret"]} == made
    assert (await (await client.get("/webhooks")).json())["webhooks"] == [shown]
    rotated = await (await client.post("/webhooks/crm/rotate")).json()
    assert rotated["secret"] not in (None, made["secret"])
    changed = await put(client, "crm", enabled=False)
    assert (changed["enabled"], changed.get("secret")) == (False, None)
    tested = await client.post("/webhooks/crm/test")
    assert tested.status == 202
    assert (await tested.json())["id"].startswith("main.webhooks:")
    assert await (await client.get("/webhooks/crm/deliveries?limit=5")).json() == {"deliveries": []}
    await problem(await client.get("/webhooks/crm/deliveries?limit=201"), 422, "invalid-field")
    assert (await client.delete("/webhooks/crm")).status == 204
    for method, path in (("GET", ""), ("GET", "/deliveries"), ("DELETE", ""), ("POST", "/rotate"), ("POST", "/test")):
        body = await problem(await client.request(method, f"/webhooks/crm{path}"), 404, "webhook-not-found")
        assert "crm" in body["detail"]


@pytest.mark.parametrize(
    "body",
    [
        {"url": "ftp://example.com"},
        {"url": "https://user:word@example.com"},
        {"url": URL, "events": ["done"]},
        {"url": URL, "events": []},
        {"url": URL, "secret": "whsec_short"},
        {"url": URL, "name": "crm"},
        {},
    ],
    ids=json.dumps,
)
async def test_a_webhook_that_does_not_fit_is_a_422(client: Client, body: Any):
    response = await client.put("/webhooks/crm", json=body)
    assert response.status == 422
    assert "short" not in await response.text(), "a secret is not shown"
    assert (await (await client.get("/webhooks")).json())["webhooks"] == []


async def test_a_server_delivers(connection: Connection, new_client: NewClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(webhooks, "LOOK", 0.02)
    monkeypatch.setattr(announce, "LOOK", 0.02)
    got: asyncio.Queue[tuple[dict[str, str], bytes]] = asyncio.Queue()

    async def hook(request: web.Request) -> web.Response:
        got.put_nowait((dict(request.headers), await request.read()))
        return web.Response()

    receiving = web.Application()
    receiving.router.add_post("/hook", hook)
    async with TestServer(receiving) as receiver:
        queue = Queue("main", connection, settings=Settings(webhook_allow="127.0.0.0/8"))
        client = await new_client(queue)
        made = await put(client, "crm", url=str(receiver.make_url("/hook")), events=["killed"])
        job = await enqueue(client)
        assert (await client.post(f"/jobs/{job}/kill")).status == 200
        headers, body = await asyncio.wait_for(got.get(), 20)
        said = standardwebhooks.Webhook(made["secret"]).verify(body, headers)
        assert (said["type"], said["data"]["id"]) == ("job.killed", job)
        async with asyncio.timeout(20):
            while (await client.get(f"/jobs/main.webhooks:{headers['webhook-id']}")).status != 200:
                pass


async def test_no_error_ends_the_work_of_a_server(
    connection: Connection, new_client: NewClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """It is in the log, at /readyz and in /metrics, until it has worked for a minute."""
    monkeypatch.setattr(duties, "AGAIN", 0.01)
    delivering = asyncio.Event()
    started = 0

    async def fails(*_: Any, **__: Any) -> None:
        nonlocal started
        started += 1
        if started < 3:
            raise ValueError("nobody thought of this")
        delivering.set()

    monkeypatch.setattr("jobq.http.app.deliver_webhooks", fails)
    client = await new_client(Queue("main", connection), Queue("other", connection))
    await asyncio.wait_for(delivering.wait(), 20)
    assert caplog.text.count("The server's work 'webhooks' for queue main failed and starts again in") >= 1
    assert "ValueError: nobody thought of this" in caplog.text
    ready = await client.get("/readyz")
    assert (ready.status, await ready.json()) == (200, {"failing": ["webhooks"], "ok": True})
    lines = (await (await client.get("/metrics")).text()).splitlines()
    failed = sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("jobq_server_duty_failures_total{") and 'duty="webhooks"' in line
    )
    assert failed == 2
    assert f'jobq_server_duty_failing{{duty="tidy",process="{os.getpid()}",queue="main"}} 0.0' in lines
    assert any(line.startswith('jobq_server_duty_failing{duty="webhooks"') and line.endswith(" 1.0") for line in lines)
    monkeypatch.setattr(duties, "STEADY", -1000.0)
    client.app[HUB].duties.failed("webhooks", "main")
    client.app[HUB].duties.failed("webhooks", "other")
    assert await (await client.get("/readyz")).json() == {"failing": [], "ok": True}


@pytest.mark.parametrize("place", ["announce", "firing"])
async def test_what_a_duty_tries_again_by_itself_is_shown_too(
    connection: Connection, new_client: NewClient, monkeypatch: pytest.MonkeyPatch, place: str
):
    monkeypatch.setattr(announce, "LOOK", 0.01)

    async def fails(*_: Any) -> None:
        raise ValueError("nobody thought of this")

    monkeypatch.setattr(announce.Announcer, "_follow", fails)
    monkeypatch.setattr(Firing, "fire_due", fails)
    queue = Queue("main", connection)
    if place == "firing":

        @queue.task(name="any")
        async def handle() -> None: ...

    else:
        async with queue:
            await queue.put_webhook("crm", URL)
    client = await new_client(queue)
    expected = {"announce": "webhooks", "firing": "fire_schedules"}[place]
    await wait_until(lambda: client.app[HUB].duties.failing == [expected], "the failure")


def test_networks_that_cannot_be_read_are_refused_at_the_start(connection: Connection):
    with pytest.raises(SettingsError, match="give networks such as"):
        create_app(Queue("main", connection, settings=Settings(webhook_allow="10.0.0.1/8")))
