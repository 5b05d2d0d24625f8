"""The page at /docs shows the OpenAPI document. It is one file without scripts, and loads nothing from the network."""

from __future__ import annotations

import hashlib
import inspect
from base64 import b64encode
from html import escape
from importlib.resources import files
from typing import Any

from jobq.http.problems import KINDS, causes

_INTRO = """<header><h1>jobq</h1>
<p class="lead">The REST interface. <a href="openapi.json">openapi.json</a> is the same for machines.</p>
<p>Requests and answers are JSON. Times are unix ms, durations ms. Every error is a problem (RFC 9457): let your code
decide by its <code>type</code>, and show its <code>detail</code>; its <code>help</code> leads to a section below. A
job's id is <code>queue:id</code>. The routes under Jobs serve the default queue; each also exists under
<code>/queues/{queue}</code> for any other queue.</p>
<pre>curl --json '{"type": "send", "payload": {"to": "user@example.com"}}' localhost:7800/jobs/enqueue
curl 'localhost:7800/jobs/{id}/result?wait=5000'
curl localhost:7800/jobs/stats</pre></header>
"""


def page(document: dict[str, Any]) -> tuple[bytes, str]:
    """The page, and the Content-Security-Policy that it needs."""
    style = files(__package__ or "jobq.http").joinpath("docs.css").read_text(encoding="utf-8")
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    schemas = document["components"]["schemas"]
    routes = {"jobs": "Jobs", "server": "Server"}
    sections = [_section(title, tag, document["paths"], schemas) for tag, title in routes.items()]
    html = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>jobq REST</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style></head><body>{_INTRO}<main>{''.join(sections)}{_problems()}{_structs(schemas)}</main></body></html>\n"
    )
    return html.encode(), policy


def _section(title: str, tag: str, paths: dict[str, Any], schemas: dict[str, Any]) -> str:
    operations = [
        _operation(method.upper(), path, operation, schemas)
        for path, methods in paths.items()
        for method, operation in methods.items()
        if tag in operation["tags"]
    ]
    return f"<h2>{title}</h2>{''.join(operations)}"


def _operation(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    parts = [_prose(operation["description"])]
    if operation["parameters"]:
        rows = [
            (one["name"], one["in"], _kind(one["schema"], schemas), one.get("description", ""))
            for one in operation["parameters"]
        ]
        parts.append(f"<h3>Parameters</h3>{_table(rows)}")
    if "requestBody" in operation:
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        parts.append(f"<h3>Body</h3><p>{_kind(body, schemas)}</p>")
    answers = [(status, _answer(response, schemas)) for status, response in operation["responses"].items()]
    parts.append(f"<h3>Answers</h3>{_table(answers)}")
    return (
        f'<details><summary><span class="method {method}">{method}</span><code>{escape(path)}</code>'
        f'<span class="soft">{escape(operation["summary"])}</span></summary>'
        f'<div class="body">{"".join(parts)}</div></details>'
    )


def _answer(response: dict[str, Any], schemas: dict[str, Any]) -> str:
    content = response.get("content", {})
    if "application/problem+json" in content:
        return "<br>".join(_code(line.removeprefix("- ")) for line in response["description"].splitlines())
    kind = " ".join(_kind(one["schema"], schemas) for one in content.values())
    return f"{escape(response['description'])} {kind}"


def _problems() -> str:
    """All kinds of problems. The ``help`` of a problem leads here."""
    parts = ["<h2>Problems</h2>"]
    for kind in sorted(KINDS):
        made = causes(kind)
        about = "".join(_prose(inspect.cleandoc(one.__doc__ or "").replace("``", "`")) for one in made)
        title = f'<h3 class="name"><code>{escape(kind.slug)}</code></h3>'
        first = f"<p>{kind.status}: {escape(kind.title)}. <code>{escape(kind.type)}</code></p>"
        python = f"<p>In Python: {', '.join(f'<code>{one.__name__}</code>' for one in made)}</p>" if made else ""
        parts.append(f'<section id="{escape(kind.slug)}">{title}{first}{about}{python}</section>')
    return "".join(parts)


def _structs(schemas: dict[str, Any]) -> str:
    parts = ["<h2>Structs</h2>"]
    for name, shape in sorted(schemas.items()):
        if "properties" in shape:
            rows = [
                (
                    field,
                    _kind(one, schemas),
                    "required" if field in shape.get("required", ()) else "",
                    _about(one),
                )
                for field, one in shape["properties"].items()
            ]
            inner = f"{_prose(shape.get('description', ''))}{_table(rows)}"
            title = f'<h3 class="name"><code>{escape(name)}</code></h3>'
            parts.append(f'<section id="{escape(name)}">{title}{inner}</section>')
    return "".join(parts)


def _about(shape: dict[str, Any]) -> str:
    return shape.get("description", "") or next((_about(one) for one in shape.get("anyOf", ()) if _about(one)), "")


def _kind(shape: dict[str, Any], schemas: dict[str, Any]) -> str:
    """A short description of a schema in HTML."""
    if "$ref" in shape:
        name = shape["$ref"].rpartition("/")[2]
        if "enum" in schemas[name]:
            return _kind(schemas[name], schemas)
        return f'<a href="#{escape(name)}"><code>{escape(name)}</code></a>'
    if "anyOf" in shape:
        return " or ".join(_kind(one, schemas) for one in shape["anyOf"])
    if "enum" in shape:
        return escape(" | ".join(map(str, shape["enum"])))
    if shape.get("type") == "array":
        return f"array of {_kind(shape['items'], schemas)}"
    parts = [shape.get("type", "any JSON")]
    low, high = shape.get("minimum"), shape.get("maximum")
    if low is not None and high is not None:
        parts.append(f"{low} to {high}")
    if "default" in shape and shape["default"] is not None:
        parts.append(f"(default {shape['default']})")
    return escape(" ".join(parts))


def _table(rows: list[tuple[str, ...]]) -> str:
    lines = [
        f"<tr><td><code>{row[0]}</code></td>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows
    ]
    return f"<table>{''.join(lines)}</table>"


def _prose(text: str) -> str:
    return "".join(f"<p>{_code(part)}</p>" for part in text.split("\n\n") if part)


def _code(text: str) -> str:
    """Text as HTML, with the parts in backticks as code."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if odd % 2 else piece for odd, piece in enumerate(pieces))
