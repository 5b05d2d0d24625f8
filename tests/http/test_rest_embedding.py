"""The application inside other applications: the examples run, open queues stay open, and nothing is global."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestClient, TestServer
from rest import enqueue, problem

from jobq import Connection, Queue, create_app
from jobq.http.serve import free_port

if TYPE_CHECKING:
    from rest import NewClient, Until

EXAMPLES = Path(__file__).parents[2] / "examples" / "embedding"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_aiohttp_example(redis_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JOBQ_REDIS_URL", redis_url)
    example = load("aiohttp_app")
    async with TestClient(TestServer(example.make_app())) as client:
        response = await client.post("/signups", json={"name": "Ada"})
        assert response.status == 202
        job = (await response.json())["job"]
        result = await client.get(f"/jobq/jobs/{job}/result?wait=10000")
        assert await result.json() == "Welcome, Ada!"
        await problem(await client.get("/jobq/nowhere"), 404, "not-found")
        assert (await client.get("/jobq/docs")).status == 200
        # The outer application answers its own errors.
        assert (await client.get("/nowhere")).content_type == "text/plain"
    assert not example.queue.is_open


async def test_fastapi_example(redis_url: str, monkeypatch: pytest.MonkeyPatch, until: Until):
    monkeypatch.setenv("JOBQ_REDIS_URL", redis_url)
    example = load("fastapi_app")
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(example.app, port=port, log_level="warning", ws="none", lifespan="on"))
    running = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started, "uvicorn to serve")
        async with ClientSession(f"http://127.0.0.1:{port}") as session:
            ordered = await session.post("/reports/2026")
            job = (await ordered.json())["job"]
            fetched = await session.get(f"/reports/{job}")
            assert await fetched.json() == {"year": 2026, "rows": 26}
            assert (await session.get("/reports/nowhere")).status == 404
            listed = await (await session.get(f"/jobq/jobs/{job}")).json()
            assert listed["state"] == "completed"
            assert (await session.get("/jobq/dashboard")).status == 200
    finally:
        server.should_exit = True
        await running
    assert not example.queue.is_open


async def test_two_applications_in_one_process(new_client: NewClient, connection: Connection):
    one, other = await new_client(Queue("one", connection)), await new_client(Queue("two", connection))
    assert (await enqueue(one)).startswith("one:")
    assert (await enqueue(other)).startswith("two:")


async def test_a_list_of_queues_is_taken_too(new_client: NewClient, connection: Connection):
    client = await new_client([Queue("a", connection), Queue("b", connection)])  # pyright: ignore
    listed = await (await client.get("/queues")).json()
    assert [queue["name"] for queue in listed["queues"]] == ["a", "b"]


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_queues_have_names_of_their_own(names: list[str]):
    with pytest.raises(ValueError, match="name of its own"):
        create_app([Queue(name, "redis://127.0.0.1:1") for name in names])


async def test_an_open_queue_stays_open(connection: Connection):
    async with Queue("main", connection) as queue:
        async with TestClient(TestServer(create_app(queue))) as client:
            await enqueue(client)
        assert (await queue.stats()).waiting == 1


async def test_middlewares_and_limits_of_the_outer_application_are_its_own(connection: Connection):
    seen: list[str] = []

    @web.middleware
    async def watch(request: web.Request, handler: Any) -> web.StreamResponse:
        seen.append(request.path)
        return await handler(request)

    outer = web.Application(middlewares=[watch], client_max_size=10)
    outer.add_subapp("/q", create_app(Queue("main", connection)))
    async with TestClient(TestServer(outer)) as client:
        response = await client.post("/q/jobs/enqueue", json={"type": "a", "payload": "x" * 1000})
        assert response.status == 201
        response = await client.put("/q/jobs")
        assert (await problem(response, 405, "method-not-allowed"))["allowed"] == ["DELETE", "GET"]
    assert seen == ["/q/jobs/enqueue", "/q/jobs"]
