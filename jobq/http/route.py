"""A row of the table of routes, and the problems that a route can answer with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from jobq.http import problems as p
from jobq.http.auth import Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import web

    from jobq.http.call import ApiCall


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One route.

    ``responses``: the body type of each success status. ``errors``: problems beyond those that every route can answer
    with, see ``problems_of``. ``per_queue``: the route also exists under /queues/{queue}, for that queue instead of
    the default one. ``media``: the content type of its answers. ``invalid``: the problem that stands for ``InvalidJob``
    here. The engine also raises it for settings, and a client wants to know what of its request was refused.
    """

    method: str
    path: str
    scope: Scope
    handler: Callable[[ApiCall], Awaitable[web.StreamResponse]]
    summary: str
    responses: dict[int, Any]
    description: str = ""
    request: Any = None
    query: type[msgspec.Struct] | None = None
    errors: tuple[p.Kind, ...] = ()
    invalid: p.Kind | None = None
    per_queue: bool = True
    media: str = "application/json"

    def paths(self) -> list[str]:
        """The paths of the route."""
        return [self.path, f"/queues/{{queue}}{self.path}"] if self.per_queue else [self.path]


def problems_of(route: Route, path: str) -> list[p.Kind]:
    """All problems that the route can answer with at this path."""
    kinds = [*route.errors, p.MALFORMED_REQUEST]
    if route.invalid is not None:
        kinds.append(route.invalid)
    if "{queue}" in path:
        kinds.append(p.UNKNOWN_QUEUE)
    if route.request is not None:
        kinds += [
            p.INVALID_JSON, p.TIMEOUT, p.TOO_LARGE, p.UNSUPPORTED_MEDIA_TYPE,
            p.UNKNOWN_FIELD, p.MISSING_FIELD, p.INVALID_FIELD,
        ]  # fmt: skip
    if route.query is not None:
        kinds += [p.UNKNOWN_FIELD, p.MISSING_FIELD, p.INVALID_FIELD, p.INVALID_QUERY]
    if route.scope is not Scope.PUBLIC:
        kinds += [p.UNAUTHENTICATED, p.FORBIDDEN, p.MISDIRECTED, p.RATE_LIMITED, p.UNAVAILABLE, p.REFUSED]
        if route.method != "GET":
            kinds.append(p.CROSS_ORIGIN)
    return sorted(set(kinds), key=lambda kind: (kind.status, kind.slug))
