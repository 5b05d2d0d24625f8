"""Makes the example job that ``jobq dev`` shows, from the signature of a handler."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import msgspec

from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from jobq.engine.queue.queue import Queue

DEEPEST = 20
"""Levels after which a type that contains itself is filled with null."""
_BY_TYPE: dict[str, Any] = {"integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}}
_FORMATS = {
    "date-time": "2030-01-31T12:00:00Z",
    "date": "2030-01-31",
    "time": "12:00:00Z",
    "duration": "PT5S",
    "uuid": "12345678-1234-5678-1234-567812345678",
    "decimal": "1.5",
}


def example(queue: Queue) -> dict[str, Any] | None:
    """A job that the queue accepts, for its first type with a usable schema. None if there is no such type."""
    if not queue.tasks:
        return {"type": "anything", "payload": {}}
    for task in queue.tasks.values():
        # A user's type may have no schema, or the sample may not match it, for example a pattern.
        with contextlib.suppress(TypeError, InvalidJob):
            schema = task.schema()
            payload = _sample(schema, schema)
            task.check(msgspec.json.encode(payload))
            return {"type": task.name, "payload": payload}
    return None


def _sample(schema: dict[str, Any], root: dict[str, Any], depth: int = 0) -> Any:
    """A value that usually matches a JSON schema of msgspec. An object gets only its required fields."""
    for name, of in (("$ref", _of_reference), ("examples", _first), ("enum", _first), ("anyOf", _of_union)):
        if name in schema:
            schema = of(schema[name], root) if depth < DEEPEST else {}
            return _sample(schema, root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if "properties" in schema:
        return {name: _sample(schema["properties"][name], root, depth + 1) for name in schema.get("required", [])}
    kind = str(schema.get("type"))
    if kind == "array" and "minItems" in schema:
        return [_sample(schema.get("items", {}), root, depth + 1)] * schema["minItems"]
    if kind == "string":
        return _FORMATS.get(str(schema.get("format")), "text").ljust(schema.get("minLength", 0), "x")
    least = schema["exclusiveMinimum"] + 1 if "exclusiveMinimum" in schema else schema.get("minimum")
    return _BY_TYPE.get(kind) if least is None else least


def _of_reference(reference: str, root: dict[str, Any]) -> dict[str, Any]:
    return root.get("$defs", {}).get(reference.rpartition("/")[2], {})


def _first(values: list[Any], _: dict[str, Any]) -> dict[str, Any]:
    return {"const": values[0]}


def _of_union(schemas: list[dict[str, Any]], _: dict[str, Any]) -> dict[str, Any]:
    """Whether null is allowed. Null ends a type that contains itself."""
    return {"type": "null"} if {"type": "null"} in schemas else schemas[0]
