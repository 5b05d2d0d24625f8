"""``create_app``: the REST interface as an aiohttp application, alone or inside another one."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from jobq.engine.queue.queue import Queue
from jobq.http import dashboard, docs, openapi, problems
from jobq.http.auth import ANYONE, ApiKey, Keyring, Scope, is_loopback, parse_keys
from jobq.http.call import HUB, ApiCall, Hub, Limits, docs_of
from jobq.http.guard import LOCAL_NAMES, Guard, Rate
from jobq.http.publish import fire_schedules as fire
from jobq.http.publish import publish
from jobq.http.routes import ROUTES
from jobq.http.tidy import tidy
from jobq.webhooks import Guard as AddressGuard
from jobq.webhooks import deliver_webhooks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from jobq.engine.worker.worker import Worker
    from jobq.settings import Settings

Handler = "Callable[[web.Request], Awaitable[web.StreamResponse]]"
SCOPE = "jobq_scope"
"""The attribute of every handler that says which scope its route needs; a test walks the router."""


def create_app(
    *queues: Queue | Sequence[Queue],
    settings: Settings | None = None,
    api_keys: Sequence[ApiKey] | str | None = None,
    allowed_hosts: Iterable[str] | None = None,
    rate: float | None = None,
    max_body: int | None = None,
    max_bulk: int = 1000,
    body_seconds: float = 30.0,
    workers: Sequence[Worker] = (),
) -> web.Application:
    """An application that serves these queues. It opens and closes them. The plain routes serve the first queue.

    ``api_keys``: keys, or text as in ``JOBQ_API_KEYS``. Without keys every caller may do everything, so ``serve`` then
    refuses an address that other machines can reach. Other servers, such as gunicorn, do not check that.
    ``allowed_hosts``: the names that the Host header may have. By default these are the names of this machine, those of
    ``settings.allowed_hosts``, and the address that ``settings`` bind to. If that address is a public one, any name is
    allowed: keys are needed there, and a foreign page has none.
    ``rate``: calls per second for each key, or for each address if there are no keys; by default ``settings.rate``.
    ``max_body``: bytes of one request, by default four times the largest payload. ``max_bulk``: jobs in one request.
    ``body_seconds``: time for a body to arrive. ``workers``: workers that run in this process. The application neither
    starts nor stops them, but /readyz answers 503 when one of them has failed.

    :raises ValueError: there is no queue, or two have the same name.
    :raises SettingsError: an API key or the networks of ``webhook_allow`` cannot be read, or the session secret is too
        short.
    """
    flat = [one for given in queues for one in ([given] if isinstance(given, Queue) else given)]
    if not flat or len({queue.name for queue in flat}) < len(flat):
        raise ValueError("create_app takes at least one queue, each with a name of its own")
    settings = settings or flat[0].settings
    given_keys = settings.api_keys if api_keys is None else api_keys
    keys = Keyring(parse_keys(given_keys) if isinstance(given_keys, str) else given_keys or ())
    rates = Rate(rate) if (rate := rate or settings.rate) else None
    guard = Guard(keys, _hosts(settings, allowed_hosts), rates, settings.session_secret)
    for queue in flat:
        AddressGuard(queue.settings.webhook_allow)
    body = max_body or 4 * max(queue.max_payload for queue in flat)
    hub = Hub(flat, guard, Limits(body, max_bulk, body_seconds), workers)

    app = web.Application(client_max_size=body)
    app[HUB] = hub
    _add_routes(app, hub)
    _add_documents(app, hub, keys=bool(keys))
    app.cleanup_ctx.append(_queues_of(hub))
    app.on_shutdown.append(_end_polls(hub))
    return app


def _hosts(settings: Settings, given: Iterable[str] | None) -> Iterable[str] | None:
    if given is None and settings.allowed_hosts:
        given = (*LOCAL_NAMES, *(name.strip() for name in settings.allowed_hosts.split(",")))
    if given is not None:
        return given
    return (*LOCAL_NAMES, settings.http_host) if is_loopback(settings.http_host) else None


def _add_routes(app: web.Application, hub: Hub) -> None:
    for route in ROUTES:
        for path in route.paths():
            door = _door(hub, route.scope, route.handler, path, route.invalid or problems.INVALID_JOB)
            # aiohttp's own pattern does not match braces. A client may send any id, and the answer must be 404.
            _add(app, route.method, re.sub(r"{(\w+)}", r"{\1:[^/]+}", path), door)


@cache
def _documents(*, keys: bool) -> tuple[dict[str, Any], bytes, str]:
    """The OpenAPI document, the page that shows it, and the page's Content-Security-Policy.

    All applications of a process share them, because making them takes tens of ms.
    """
    described = openapi.document(keys=keys)
    return described, *docs.page(described)


def _add_documents(app: web.Application, hub: Hub, *, keys: bool) -> None:
    described, page, policy = _documents(keys=keys)
    html_headers = problems.COMMON_HEADERS | {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
    }
    json_headers = problems.COMMON_HEADERS | {"Content-Type": "application/json"}

    @lru_cache(8)
    def written(prefix: str) -> bytes:
        return msgspec.json.encode(described | {"servers": [{"url": prefix or "/"}]})

    async def show_openapi(call: ApiCall) -> web.Response:
        return web.Response(body=written(call.prefix("/openapi.json")), headers=json_headers)

    async def show_docs(_: ApiCall) -> web.Response:
        return web.Response(body=page, headers=html_headers)

    _add(app, "GET", "/openapi.json", _door(hub, Scope.PUBLIC, show_openapi, "/openapi.json"))
    _add(app, "GET", "/docs", _door(hub, Scope.PUBLIC, show_docs, "/docs"))
    for door in dashboard.DOORS:
        _add(app, door.method, door.path, _door(hub, door.scope, door.handler, door.path))
    # This answers requests that match no route: 404, or 405 with the methods that the path takes.
    app.router.add_route("*", r"/{path:[\s\S]*}", _door(hub, Scope.PUBLIC, _no_route), expect_handler=_expect)


def _add(app: web.Application, method: str, path: str, door: Any) -> None:
    if method == "GET":
        app.router.add_get(path, door, expect_handler=_expect)
    else:
        app.router.add_route(method, path, door, expect_handler=_expect)


def _door(
    hub: Hub,
    scope: Scope,
    handler: Callable[[ApiCall], Awaitable[web.StreamResponse]],
    path: str | None = None,
    invalid: problems.Kind = problems.INVALID_JOB,
) -> Any:
    """The coroutine that aiohttp calls for a route. It admits the request, calls the handler, and answers every
    exception with a problem. ``path``: that of the route, if it has one. ``invalid``: see ``Route``.

    A stack of middlewares would be slower, and enqueue is a hot path.
    """
    admit = hub.guard.admit
    public = scope is Scope.PUBLIC

    async def door(request: web.Request) -> web.StreamResponse:
        if hub.unwrap is not None:
            request = hub.unwrap(request)
        try:
            key = ANYONE if public else admit(request, scope)
            return await handler(ApiCall(hub, request, key))
        except Exception as error:  # noqa: BLE001 - each becomes a problem; unknown ones are logged
            if isinstance(error, ConnectionError) and (request.transport is None or request.transport.is_closing()):
                return web.Response(status=400)  # The client left during its request, so nobody reads this.
            docs = None if path is None else docs_of(request, path.count("/"))
            return problems.response(error, docs, invalid)

    setattr(door, SCOPE, scope)
    return door


def _patterns() -> list[tuple[re.Pattern[str], set[str]]]:
    methods: dict[str, set[str]] = {"/docs": {"GET"}, "/openapi.json": {"GET"}}
    for door in dashboard.DOORS:
        methods.setdefault(door.path, set()).add(door.method)
    for route in ROUTES:
        for path in route.paths():
            methods.setdefault(path, set()).add(route.method)
    fixed_first = sorted(methods, key=lambda path: path.count("{"))
    return [(re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))), methods[path]) for path in fixed_first]


_PATTERNS = _patterns()


async def _no_route(call: ApiCall) -> web.Response:
    path = "/" + call.request.match_info["path"]
    methods = next((methods for pattern, methods in _PATTERNS if pattern.fullmatch(path)), None)
    if methods:
        allowed = ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))
        raise problems.HttpProblem(
            problems.METHOD_NOT_ALLOWED,
            f"{path[:200]} takes {allowed}",
            headers={"Allow": allowed},
            allowed=sorted(methods),
        )
    detail = f"there is no route {path[:200]!r}; /docs lists all routes, and /dashboard is the dashboard"
    raise problems.HttpProblem(problems.NOT_FOUND, detail)


async def _expect(request: web.Request) -> web.Response | None:
    """Answer ``Expect: 100-continue``, and refuse every other expectation."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # The interim answer is not part of the response.
        return None
    return problems.response(problems.HttpProblem(problems.EXPECTATION_FAILED, "send the request without Expect"))


def _queues_of(hub: Hub) -> Callable[[web.Application], AsyncIterator[None]]:
    duties = hub.duties

    async def opened(_: web.Application) -> AsyncIterator[None]:
        def began(deliveries: Queue) -> None:
            # The routes show its jobs from now on.
            hub.queues.setdefault(deliveries.name, deliveries)

        async def webhooks(queue: Queue) -> None:
            await deliver_webhooks(queue, began=began, failed=lambda: duties.failed("webhooks", queue.name))

        async def fire_schedules(*queues: Queue) -> None:
            await fire(*queues, failed=lambda queue: duties.failed("fire_schedules", queue.name))

        async with AsyncExitStack() as stack:
            for queue in hub.queues.values():
                await stack.enter_async_context(queue)
            queues = list(hub.queues.values())
            tasks = [
                asyncio.create_task(duties.keep_running(duty, queue), name=f"jobq-{duty.__name__}")
                for queue in queues
                for duty in (publish, tidy, webhooks)
            ]
            tasks += [
                asyncio.create_task(duties.keep_running(fire_schedules, *queues), name="jobq-fire_schedules"),
                asyncio.create_task(duties.watch_loop(), name="jobq-watch-loop"),
            ]
            yield
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return opened


def _end_polls(hub: Hub) -> Callable[[web.Application], Awaitable[None]]:
    async def end(_: web.Application) -> None:
        hub.end_polls()
        await hub.readiness.aclose()

    return end
