"""The reference of REST, made from the OpenAPI document."""

from __future__ import annotations

from typing import Any

from jobq.http.openapi import document


def page() -> str:
    """Every route with its parameters, its body and its answers, then the shapes of bodies."""
    openapi = document(keys=True)
    parts = [
        "# REST",
        "Made from the OpenAPI document, which each server has at `/openapi.json`, and as a page at `/docs`. Times are"
        " unix ms, durations ms. The routes under `/jobs` serve the default queue; each also exists under"
        " `/queues/{queue}`. Every error is a [problem](https://www.rfc-editor.org/rfc/rfc9457): decide by its `type`,"
        " and show its `detail`.",
    ]
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            if "one queue" not in operation["tags"]:
                parts += route(method.upper(), path, operation)
    parts.append("## Shapes")
    for name, shape in sorted(openapi["components"]["schemas"].items()):
        parts += struct(name, shape)
    return "\n\n".join(parts) + "\n"


def route(method: str, path: str, operation: dict[str, Any]) -> list[str]:
    """One route."""
    parts = [f"## {method} {path}", f"{operation['summary'].rstrip('.')}. {operation['description']}"]
    rows = [
        f"| `{one['name']}` | {one['in']} | {kind(one['schema'])} | {cell(one.get('description', ''))} |"
        for one in operation["parameters"]
    ]
    if rows:
        parts.append("| Parameter | In | Kind | |\n|---|---|---|---|\n" + "\n".join(rows))
    if "requestBody" in operation:
        parts.append(f"**Body**: {kind(operation['requestBody']['content']['application/json']['schema'])}")
    answers = [f"| {status} | {answer(one)} |" for status, one in operation["responses"].items()]
    parts.append("| Answer | |\n|---|---|\n" + "\n".join(answers))
    return parts


def answer(response: dict[str, Any]) -> str:
    """What an answer says."""
    content = response.get("content", {})
    if "application/problem+json" in content:
        return "<br>".join(line.removeprefix("- ") for line in response["description"].splitlines())
    return " ".join([response["description"], *(kind(one["schema"]) for one in content.values() if one["schema"])])


def struct(name: str, shape: dict[str, Any]) -> list[str]:
    """The fields of a body."""
    parts = [f"### {name}", cell(shape.get("description", ""))]
    required = shape.get("required", [])
    rows = [
        f"| `{field}`{'' if field in required else ', optional'} | {kind(one)} | {cell(one.get('description', ''))} |"
        for field, one in shape.get("properties", {}).items()
    ]
    if rows:
        parts.append("| Field | Kind | |\n|---|---|---|\n" + "\n".join(rows))
    elif "enum" in shape:
        parts.append(", ".join(f"`{one}`" for one in shape["enum"]))
    return [part for part in parts if part]


def kind(schema: dict[str, Any]) -> str:
    """The type of a value in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(kind, schema["anyOf"])))
    if "enum" in schema:
        return " or ".join(f"`{one}`" for one in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}))}"
    return str(schema.get("type", "any JSON"))


def cell(text: str) -> str:
    """A text for a cell of a table."""
    return " ".join(text.replace("|", "\\|").split())
