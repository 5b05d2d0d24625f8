"""The OpenAPI document is complete, agrees with the router, and the server agrees with it in every request of
schemathesis."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from rest import problem
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from jobq import Queue
from jobq.http import dashboard
from jobq.http.app import create_app
from jobq.http.openapi import document
from jobq.http.route import problems_of
from jobq.http.routes import ROUTES
from jobq.http.serve import serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rest import Client


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for one in value.values():
            yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


def test_the_document_names_every_route_and_only_those(app_routes: set[tuple[str, str]]):
    described = {
        (method.upper(), path) for path, methods in document(keys=False)["paths"].items() for method in methods
    }
    pages = {("GET", "/docs"), ("GET", "/openapi.json"), ("*", "/{path}")}
    pages |= {(door.method, door.path) for door in dashboard.DOORS}
    assert described == app_routes - pages


@pytest.fixture
def app_routes() -> set[tuple[str, str]]:
    app = create_app(Queue("main", "redis://127.0.0.1:1"))
    return {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }


def test_the_openapi_document_is_complete():
    described = document(keys=True)
    assert described["openapi"] == "3.1.0"
    schemas = described["components"]["schemas"]
    for reference in references(described):
        assert reference.removeprefix("#/components/schemas/") in schemas, reference
    assert not [name for name in schemas if not re.fullmatch(r"[A-Za-z0-9]+", name)]
    operations = [one for methods in described["paths"].values() for one in methods.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    assert all(one["summary"] and one["description"] for one in operations)
    assert json.dumps(described).isascii()


def test_the_openapi_document_lists_the_problems_of_each_route():
    described = document(keys=True)
    for route in ROUTES:
        for path in route.paths():
            answers = described["paths"][path][route.method.lower()]["responses"]
            for kind in problems_of(route, path):
                assert f"`{kind.type}`" in answers[str(kind.status)]["description"]


def test_keys_are_in_the_document_when_needed():
    locked, free = document(keys=True), document(keys=False)
    assert locked["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    assert locked["paths"]["/jobs"]["get"]["security"] == [{"key": []}]
    assert locked["paths"]["/healthz"]["get"]["security"] == []
    assert "securitySchemes" not in free["components"]


async def test_docs_are_a_page_without_scripts_or_network(client: Client):
    response = await client.get("/docs")
    page = await response.text()
    assert response.content_type == "text/html"
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "<script" not in page
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page)
    for route in ROUTES:
        assert f"<code>{route.path}</code>" in page
    for name in re.findall(r'href="#(\w+)"', page):
        assert f'id="{name}"' in page


async def test_openapi_is_served(client: Client):
    described = msgspec.json.decode(msgspec.json.encode(document(keys=False) | {"servers": [{"url": "/"}]}))
    assert await (await client.get("/openapi.json")).json() == described
    await problem(await client.post("/openapi.json"), 405, "method-not-allowed")


# -- schemathesis ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base_url(server: Any) -> Iterator[str]:
    """Address of an application that is served in its own thread, because schemathesis is synchronous."""
    port: list[int] = []
    started, ends = threading.Event(), threading.Event()
    stops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def main() -> None:
        stop = asyncio.Event()
        stops.append((asyncio.get_running_loop(), stop))

        def told(_: str, number: int) -> None:
            port.append(number)
            started.set()

        # ?durability=replicated waits for a replica, and this server has none.
        app = create_app(Queue("main", server.url, prefix="jobq:openapi", durability_timeout=0.01))
        try:
            await serve(app, port=0, stop=stop, started=told)
        finally:
            started.set()
            ends.set()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        assert started.wait(20)
        assert port, "the server did not start"
        yield f"http://127.0.0.1:{port[0]}"
    finally:
        loop, stop = stops[0]
        if not ends.is_set():
            loop.call_soon_threadsafe(stop.set)
        thread.join(20)


OPERATIONS = [
    found.ok()  # pyright: ignore[reportAttributeAccessIssue] - an operation that cannot be read raises here
    for found in schemathesis.openapi.from_dict(document(keys=False)).get_all_operations()
]
LIMITS = settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
)


def cases() -> Iterator[Any]:
    for operation in OPERATIONS:
        if operation.path.endswith("/events"):
            continue  # A stream does not end. test_rest_events.py reads it.
        yield pytest.param(operation, GenerationMode.POSITIVE, id=f"{operation.label} as described")
        if operation.body or operation.query:  # The other routes have no input that could be wrong.
            yield pytest.param(operation, GenerationMode.NEGATIVE, id=f"{operation.label} not as described")


@pytest.mark.parametrize(("operation", "mode"), list(cases()))
def test_the_server_holds_to_its_document(operation: Any, mode: GenerationMode, base_url: str):
    @LIMITS
    @given(case=operation.as_strategy(generation_mode=mode))
    def holds(case: Any) -> None:
        response = case.call(base_url=base_url, timeout=10)
        # 422 refuses values that a schema cannot exclude, such as a foreign cursor. An array with a bad job is answered
        # job by job. schemathesis does not know 413 as a refusal. 504 means that there is no replica here.
        beyond = {
            422: [positive_data_acceptance],
            207: [negative_data_rejection],
            413: [negative_data_rejection],
            504: [not_a_server_error],
        }
        case.validate_response(response, excluded_checks=beyond.get(response.status_code, []))

    holds()
