"""The OpenAPI 3.1 document, made from the table of routes and the structs that serve the requests."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from inspect import cleandoc
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from jobq.http import bodies, schema
from jobq.http.route import Route, problems_of
from jobq.http.routes import ROUTES

if TYPE_CHECKING:
    from jobq.http.problems import Kind

_PARAMETERS = {
    "id": "The job's id as enqueue answered it, `queue:id`. An id without a queue belongs to the path's queue or the"
    " default one.",
    "queue": "The queue's name.",
    "name": "The schedule's name.",
    "group": "The name of the group.",
    "rule": "The rule's name.",
    "type": "The type's name.",
    "key": "A limit key, such as `tenant:a`.",
}


def document(*, keys: bool) -> dict[str, Any]:
    """The document. ``keys``: whether an API key is needed."""
    types = _types()
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    shown = dict(zip(map(repr, types), schemas, strict=True))
    paths: dict[str, Any] = {}
    for route in ROUTES:
        for path in route.paths():
            paths.setdefault(path, {})[route.method.lower()] = _operation(route, path, shown, components, keys=keys)
    names = {name: _short(name, components) for name in components}
    tidy = _rename({"paths": paths, "components": {"schemas": _cleaned(components, names)}}, names)
    if keys:
        tidy["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "jobq",
            "version": _version(),
            "description": "A job queue. Times are unix ms, durations ms. Every error is a problem (RFC 9457) with a"
            " stable `type`. The plain routes serve the default queue; the same routes under /queues/{queue} serve"
            " any queue.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        **tidy,
    }


def _version() -> str:
    try:
        return version("jobq")
    except PackageNotFoundError:  # jobq runs from a checkout and is not installed.
        return "0"


def _types() -> list[Any]:
    found: dict[str, Any] = {repr(bodies.Problem): bodies.Problem}
    for route in ROUTES:
        for kind in (route.request, route.query, *route.responses.values()):
            if kind not in (None, Any):
                found[repr(kind)] = kind
    return list(found.values())


def _operation(
    route: Route, path: str, shown: dict[str, Any], components: dict[str, Any], *, keys: bool
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__ + ("_in_queue" if "{queue}" in path else ""),
        "summary": route.summary,
        "description": " ".join(filter(None, (route.description, f"Scope: {route.scope.name.lower()}."))),
        "tags": [_tag(route, path)],
        "parameters": [_path_parameter(name) for name in re.findall(r"{(\w+)}", path)],
        "responses": {
            str(status): _response(status, kind, shown, route.media) for status, kind in route.responses.items()
        },
    }
    if route.query is not None:
        operation["parameters"] += _query_parameters(components[route.query.__name__])
    if route.request is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _bounded(shown[repr(route.request)], route)}},
        }
    if route.path == "/jobs/enqueue":
        operation["parameters"].append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "schema": schema.IDEMPOTENCY_KEY,
                "description": "For 24 hours, the same key with the same body enqueues once. Another body is refused.",
            }
        )
    by_status: dict[int, list[Kind]] = {}
    for kind in problems_of(route, path):
        by_status.setdefault(kind.status, []).append(kind)
    for status, kinds in by_status.items():
        operation["responses"][str(status)] = _problem_response(kinds)
    if keys:
        operation["security"] = [{"key": []}] if route.scope else []
    return operation


def _tag(route: Route, path: str) -> str:
    if not route.per_queue:
        return "server"
    return "one queue" if "{queue}" in path else "jobs"


def _path_parameter(name: str) -> dict[str, Any]:
    text = {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "schema": text, "description": _PARAMETERS[name]}


def _query_parameters(shape: dict[str, Any]) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = []
    for name, one in shape["properties"].items():
        # The struct has null for a parameter that is not given. A URL cannot contain null.
        kinds = [kind for kind in one.get("anyOf", [one]) if kind.get("type") != "null"]
        kind = {key: value for key, value in kinds[0].items() if key != "description"}
        if one.get("default") is not None:
            kind["default"] = one["default"]
        parameter = {"name": name, "in": "query", "required": name in shape["required"], "schema": kind}
        if "description" in kinds[0]:
            parameter["description"] = kinds[0]["description"]
        parameters.append(parameter)
    return parameters


def _bounded(kind: dict[str, Any], route: Route) -> dict[str, Any]:
    if len(get_args(route.request)) < 2:
        return kind
    return {
        "anyOf": [
            one | {"minItems": 1, "maxItems": 1000} if one.get("type") == "array" else one for one in kind["anyOf"]
        ]
    }


def _response(status: int, kind: Any, shown: dict[str, Any], media: str) -> dict[str, Any]:
    said = {200: "Success", 201: "Enqueued", 202: "Not ended yet", 204: "Removed", 207: "Some jobs were refused"}
    if kind is None:
        return {"description": said[status]}
    body: dict[str, Any] = {} if kind is Any else shown[repr(kind)]
    return {"description": said[status], "content": {media: {"schema": body}}}


def _problem_response(kinds: list[Kind]) -> dict[str, Any]:
    described = "\n".join(f"- `{kind.type}`: {kind.title}" for kind in kinds)
    shape = {"$ref": "#/components/schemas/Problem"}
    return {"description": described, "content": {"application/problem+json": {"schema": shape}}}


def _cleaned(components: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The components with their docstrings as plain text, and names without modules."""
    clean: dict[str, Any] = {}
    for name, shape in components.items():
        if "description" in shape:
            shape = shape | {"description": cleandoc(shape["description"]).replace("``", "`")}  # noqa: PLW2901
        clean[names[name]] = shape
    return clean


def _short(name: str, components: dict[str, Any]) -> str:
    """msgspec writes ``a.b.Backoff`` if two structs share a name: the one that is stored and the one that is sent."""
    if "." not in name:
        return name
    last = name.rsplit(".", 1)[1]
    return last if name.startswith("jobq.http.") else f"{last}Kept" if last not in components else name


def _rename(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(key, one, names) for key, one in value.items()}  # pyright: ignore
    return [_rename(one, names) for one in value] if isinstance(value, list) else value  # pyright: ignore


def _renamed(key: str, value: Any, names: dict[str, str]) -> Any:
    if key == "$ref" and isinstance(value, str):
        prefix, _, name = value.rpartition("/")
        return f"{prefix}/{names.get(name, name)}"
    return _rename(value, names)
