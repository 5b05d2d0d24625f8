"""The page at /dashboard: static files, and a login, because a browser cannot send an API key in a header by itself.

The page shows the answers of the REST interface. Nothing here knows about jobs.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs

import msgspec
from aiohttp import web

from jobq.engine.log import get_logger
from jobq.http.auth import Scope
from jobq.http.bodies import Session
from jobq.http.call import decode, no_content, reply
from jobq.http.problems import COMMON_HEADERS, INVALID_FIELD, UNAUTHENTICATED, HttpProblem
from jobq.http.schema import Login
from jobq.http.sessions import COOKIE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobq.http.call import ApiCall

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
    " frame-ancestors 'none'; base-uri 'none'; form-action 'self';"
    # Browsers that know trusted types refuse to read a text as HTML.
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
SCRIPTS = (
    "app.js",
    "draw.js",
    "limits.js",
    "groups.js",
    "partitions.js",
    "types.js",
    "webhooks.js",
    "schedules.js",
    "actions.js",
    "why.js",
    "state.js",
    "parts.js",
)
"""Each script imports only scripts that are later in this list."""
_LOGIN_BYTES = 4096
_FORM = "application/x-www-form-urlencoded"

_audit = get_logger("jobq.audit")
_login = msgspec.json.Decoder(Login)


class Door(NamedTuple):
    """A route that is not part of the REST interface."""

    method: str
    path: str
    scope: Scope
    handler: Callable[[ApiCall], Awaitable[web.StreamResponse]]


def _file(name: str, kind: str) -> Callable[[ApiCall], Awaitable[web.Response]]:
    content = files(__package__ or "jobq.http.dashboard").joinpath(name).read_bytes()
    headers = COMMON_HEADERS | {"Content-Type": f"{kind}; charset=utf-8", "Content-Security-Policy": POLICY}

    async def show(_: ApiCall) -> web.Response:
        return web.Response(body=content, headers=headers)

    return show


async def _slash(_: ApiCall) -> web.Response:
    return web.Response(status=308, headers=COMMON_HEADERS | {"Location": "../dashboard"})


async def session(call: ApiCall) -> web.Response:
    """The API key of the caller."""
    return reply(Session(call.key.name, call.key.scope.name.lower(), bool(call.hub.guard.keys)))


async def login(call: ApiCall) -> web.Response:
    """Exchange an API key for a cookie. JSON is answered with 204, a form with a redirect to the page."""
    guard, request = call.hub.guard, call.request
    guard.admit_anyone(request)
    secret = await _given_key(call)
    try:
        key = guard.find(request, f"Bearer {secret}")
    except HttpProblem as problem:
        if problem.kind is UNAUTHENTICATED:  # Refusals by the rate limit would fill the log.
            _audit.warning(f"Dashboard login refused, from {request.remote}", remote=request.remote)
        raise
    value, seconds = guard.sessions.new(key)
    response = _done(request)
    path = call.prefix("/dashboard/login") or "/"
    response.set_cookie(
        COOKIE, value, max_age=seconds, path=path, httponly=True, samesite="Strict", secure=_is_https(request)
    )
    _audit.info(f"Dashboard login with key {key.name}, from {request.remote}", key=key.name, remote=request.remote)
    return response


async def logout(call: ApiCall) -> web.Response:
    """Delete the cookie."""
    call.hub.guard.admit_anyone(call.request)
    response = _done(call.request)
    path, secure = call.prefix("/dashboard/logout") or "/", _is_https(call.request)
    response.del_cookie(COOKIE, path=path, httponly=True, samesite="Strict", secure=secure)
    return response


async def _given_key(call: ApiCall) -> str:
    if call.request.content_type != _FORM:
        return decode(_login, await call.body(_LOGIN_BYTES)).key
    fields = parse_qs((await call.read(_LOGIN_BYTES)).decode(errors="replace"))
    if list(fields) != ["key"] or len(fields["key"]) != 1:
        raise HttpProblem(INVALID_FIELD, "the form takes one field, 'key'", field="key")
    return fields["key"][0]


def _done(request: web.Request) -> web.Response:
    if request.content_type != _FORM:
        return no_content()
    return web.Response(status=303, headers=COMMON_HEADERS | {"Location": "../dashboard"})


def _is_https(request: web.Request) -> bool:
    """Whether the browser uses TLS, to us or to a proxy. A client that lies here affects its own cookie only."""
    told = (request.headers.get("X-Forwarded-Proto", ""), request.headers.get("Origin", ""))
    return request.secure or any(text.lower().startswith("https") for text in told)


DOORS = (
    Door("GET", "/dashboard", Scope.PUBLIC, _file("index.html", "text/html")),
    Door("GET", "/dashboard/", Scope.PUBLIC, _slash),
    *(Door("GET", f"/dashboard/{name}", Scope.PUBLIC, _file(name, "text/javascript")) for name in SCRIPTS),
    Door("GET", "/dashboard/style.css", Scope.PUBLIC, _file("style.css", "text/css")),
    Door("GET", "/dashboard/session", Scope.READ, session),
    Door("POST", "/dashboard/login", Scope.PUBLIC, login),
    Door("POST", "/dashboard/logout", Scope.PUBLIC, logout),
)
"""The public ones reveal nothing: the page is empty until REST answers it."""
