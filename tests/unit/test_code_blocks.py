"""Every block of code in the docs is executed or checked.

tests/unit/test_docs.py, tests/learn and tests/cli/test_three_am.py execute. Here the others are checked.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

import jobq
from jobq import Queue
from jobq.cli.parser import build_parser
from jobq.http.openapi import document

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```([^\n]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
EXECUTED = {"python"}
PLAIN = {"text", ""}
"""Output, figures and values. Output behind a block of Python or a command is compared where that is executed."""
HAND = ("cp", "cyclonedx-py", "docker", "git", "install", "tar", "pip", "python", "python3", "redis-cli", "sha256sum")
HAND += ("systemctl", "useradd", "cd", "export", "kill", "uvicorn", "kubectl")
"""Programs that are not jobq: their pages say that they were typed by hand, or a test of the page types them."""
TYPED_BY_TESTS = {"quickstart.md", "tutorial.md", "three-am.md"}
"""Tests type their commands. tests/learn/test_tutorial.py sends the requests of the tutorial in one process."""


def blocks(*languages: str) -> list[Any]:
    """Blocks of these languages, each with its place as its id."""
    found: list[Any] = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            if match[2] in languages:
                place = f"{page.name}:{text[: match.start()].count(chr(10)) + 1}"
                code = re.sub(f"^{match[1]}", "", match[3], flags=re.MULTILINE)
                found.append(pytest.param(page.name, code, id=place))
    return found


def test_every_language_is_looked_at():
    known = EXECUTED | PLAIN | {"python notest", "py", "sh", "console", "json", "yaml", "sql"}
    assert {match[2] for page in PAGES for match in BLOCK.finditer(page.read_text())} <= known


@pytest.mark.parametrize(("page", "code"), blocks("python notest", "py"))
def test_fragments_of_python_call_what_exists(page: str, code: str):
    tree = ast.parse(compile_fragment(code))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "jobq":
            assert [alias.name for alias in node.names if not hasattr(jobq, alias.name)] == [], page
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("queue."):
            method = getattr(Queue, ast.unparse(node.func).removeprefix("queue."))
            keywords = {word.arg: None for word in node.keywords if word.arg}
            inspect.signature(method).bind_partial(None, *[None] * len(node.args), **keywords)


def compile_fragment(code: str) -> str:
    """The code, if it is Python that may await at its top level."""
    compile(code, "fragment", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return code


@pytest.mark.parametrize(("page", "code"), blocks("json"))
def test_json_can_be_read(page: str, code: str):
    assert json.loads(code), page


@pytest.mark.parametrize(("page", "code"), blocks("yaml"))
def test_yaml_can_be_read(page: str, code: str):
    assert list(yaml.safe_load_all(code)), page


@pytest.mark.parametrize(("page", "code"), blocks("sql"))
def test_a_block_that_is_not_looked_at_says_so(page: str, code: str):
    text = next(one.read_text() for one in PAGES if one.name == page)
    assert "not executed" in text[text.index(code) :][: len(code) + 100], page


def commands(code: str) -> list[str]:
    """The commands of a block, without prompts and without what they print."""
    joined = code.replace("\\\n", " ")
    if re.search(r"^\$ ", joined, re.MULTILINE):
        return re.findall(r"^\$ (.*)$", joined, re.MULTILINE)
    lines: list[str] = []
    for line in joined.splitlines():
        if lines and lines[-1].count("'") % 2:
            lines[-1] += " " + line  # a text in quotes goes on
        elif line.strip() and not line.startswith("#"):
            lines.append(line)
    return lines


@pytest.mark.parametrize(("page", "code"), blocks("sh", "console"))
def test_commands_can_be_typed(page: str, code: str, capsys: pytest.CaptureFixture[str]):
    for command in commands(code):
        for part in re.split(r" && | \| ", command):
            words = [word for word in shlex.split(part, comments=True) if word != "&"]
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words:
                check(page, words, capsys)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_within_a_sentence_can_be_typed(page: Path, capsys: pytest.CaptureFixture[str]):
    for command in re.findall(r"`(jobq [a-z][^`\n]*)`", BLOCK.sub("", page.read_text())):
        if "..." not in command and page.name != "cli.md":
            parse(page.name, shlex.split(command)[1:], capsys, partly=True)


def check(page: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Check one command of a page."""
    if words[0] == "jobq":
        parse(page, words[1:], capsys)
    elif words[0] == "curl":
        if page not in TYPED_BY_TESTS:
            check_curl(page, words[1:])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{page}: {words}"
    elif words[0] not in ("source", "open"):
        assert words[0].rpartition("/")[2] in HAND, f"{page}: nobody looks at {words}"
        text = next(one.read_text() for one in PAGES if one.name == page)
        assert page in TYPED_BY_TESTS or re.search("by hand|not tried|not executed", text, re.IGNORECASE), page


def parse(page: str, words: list[str], capsys: pytest.CaptureFixture[str], *, partly: bool = False) -> None:
    """Parse the arguments of jobq. Words in capitals stand for values. ``partly``: some may be left out."""
    values = {"N": "1", "TIME": "1", "JSON": "{}", "mails.jsonl": os.devnull}
    try:
        build_parser().parse_args([values.get(word, word) for word in words])
        code = 0
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr().err
    assert not code or (partly and "required" in said), f"{page}: jobq {' '.join(words)}: {said}"


OPENAPI = document(keys=False)


def check_curl(page: str, words: list[str]) -> None:
    """Find the route of a call in the OpenAPI document, and the fields of its body in the schema."""
    method, body, url = "GET", None, ""
    rest = iter(words)
    for word in rest:
        if word == "-X":
            method = next(rest)
        elif word == "-d":
            body = json.loads(next(rest))
            method = "POST" if method == "GET" else method
        elif word == "-H":
            next(rest)
        elif not word.startswith("-"):
            url = word
    path = re.sub(r"^(https?://)?localhost:\d+", "", url).partition("?")[0]
    routes = [route for route in OPENAPI["paths"] if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", route), path)]
    found = [OPENAPI["paths"][route].get(method.lower()) for route in sorted(routes, key=lambda one: one.count("{"))]
    assert any(found) or path in ("/dashboard", "/docs"), f"{page}: there is no route {method} {path}"
    if body is not None:
        operation = next(one for one in found if one)
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert any(set(body) <= fields for fields in shapes(schema)), f"{page}: {method} {path} takes other fields"


def shapes(schema: dict[str, Any]) -> list[set[str]]:
    """The fields of each object that a schema allows."""
    if "$ref" in schema:
        return shapes(OPENAPI["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return [fields for one in schema["anyOf"] for fields in shapes(one)]
    return [set(schema.get("properties", {}))]
