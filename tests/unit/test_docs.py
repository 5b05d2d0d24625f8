"""The code in README and docs runs and prints the documented output, and certain names are documented."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jobq
from jobq import Context, Settings, errors
from jobq.engine.model.options import Given

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples() -> list[tuple[str, str, str | None]]:
    """Python blocks, each with the text block that follows it directly."""
    found: list[tuple[str, str, str | None]] = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            if match[1] != "python" or match[2].startswith("# examples/"):
                continue  # tests/learn executes the examples
            following = BLOCK.match(text, match.end() + 2)
            output = following[2] if following and following[1] == "text" else None
            found.append((f"{page.name}:{text[: match.start()].count(chr(10)) + 1}", match[2], output))
    return found


@pytest.mark.parametrize(("place", "code", "output"), examples(), ids=lambda value: str(value).split("\n")[0][:40])
def test_each_example_prints_the_output_on_its_page(
    place: str, code: str, output: str | None, redis_url: str, tmp_path: Path
) -> None:
    script = tmp_path / "example.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"JOBQ_REDIS_URL": redis_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{place}: {done.stderr}"
    if output is not None:
        assert done.stdout == output, place


def test_each_decision_has_a_number_a_status_a_context_and_a_decision() -> None:
    numbers = [page.name[:4] for page in DECISIONS]
    assert len(set(numbers)) == len(numbers)
    for page in DECISIONS:
        lines = page.read_text().splitlines()
        assert lines[0].startswith(f"# {int(page.name[:4])}. "), page.name
        assert re.match(r"Status: (accepted|replaced)\b.*\.$", lines[2]), f"{page.name}: its third line is its status"
        for part in ("Context", "Decision"):
            found = re.search(rf"^(\*\*|## ){part}\b", page.read_text(), re.MULTILINE)
            assert found, f"{page.name} does not say its {part}"


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, *DECISIONS, ROOT / "scripts" / "lua" / "README.md", ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_each_promise_names_a_test_that_exists() -> None:
    promises = re.findall(r"^- .*?(?=^- |^$)", PROMISES, re.MULTILINE | re.DOTALL)
    assert len(promises) >= 12
    for promise in promises:
        names = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", promise)
        assert names, f"no test named: {promise}"
        for path, test in names:
            assert f"def {test}(" in (ROOT / path).read_text(), f"{path} has no {test}"


PROMISES = (ROOT / "docs" / "reliability.md").read_text().partition("## The promises\n")[2].partition("\n## ")[0]


def test_each_promise_of_the_readme_is_one_of_the_page() -> None:
    table = (ROOT / "README.md").read_text().partition("## What is promised\n")[2].partition("\n## ")[0]
    short = re.findall(r"^\| ([\w ]+) \| (?!in short)", table, re.MULTILINE)
    assert len(short) >= 12
    named = {name.rstrip(".").lower() for name in re.findall(r"^- \*\*(.+?)\*\*", PROMISES, re.MULTILINE)}
    assert set(short) <= named


GUIDES = "\n".join(page.read_text() for page in PAGES if page.name not in ("cli.md", "benchmarks.md"))
ERRORS_PAGE = (ROOT / "docs" / "errors.md").read_text()
LOGGING_PAGE = (ROOT / "docs" / "logging.md").read_text()


def in_code(text: str) -> set[str]:
    """The words in code: in backticks, or in a block."""
    code = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    code += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    return set(re.findall(r"\w+", " ".join(code)))


def test_every_public_name_is_documented():
    assert set(jobq.__all__) - in_code(GUIDES) == set()


def test_every_option_of_a_job_is_documented():
    table = (ROOT / "docs" / "retries.md").read_text().partition("## Options\n")[2].partition("\n## ")[0]
    named = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(named))) == set(Given.__annotations__)


def test_every_setting_is_documented():
    assert {f"JOBQ_{name.upper()}" for name in Settings.__struct_fields__} - in_code(GUIDES) == set()


def test_every_exception_is_in_the_page_of_errors():
    kinds = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}
    assert kinds - in_code(ERRORS_PAGE) == set()


@pytest.mark.parametrize("member", [name for name in dir(Context) if not name.startswith("_") and name != "spec"])
def test_everything_a_handler_can_ask_of_its_run_is_documented(member: str):
    assert member in in_code((ROOT / "docs" / "handlers.md").read_text())


LOGS = re.compile(r"^_?(log|audit)\.(info|warning|error|exception)$|^level$|\.warn$")
"""The name of the logging method that is called."""


def events() -> list[tuple[str, str]]:
    """Log messages of the engine and REST at info and above: their place, and their text without the values."""
    found: list[tuple[str, str]] = []
    for path in sorted([*(ROOT / "jobq" / "engine").rglob("*.py"), *(ROOT / "jobq" / "http").rglob("*.py")]):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and call.args and LOGS.search(ast.unparse(call.func)):
                found += [(f"{path.name}:{call.lineno}", text) for text in literals(call.args[0])]
    return found


def literals(message: ast.expr) -> list[str]:
    """The longest part of a message that is written in the code. None if all of it is a variable."""
    parts = message.values if isinstance(message, ast.JoinedStr) else [message]
    texts = [str(part.value).strip(" :;,.()\n") for part in parts if isinstance(part, ast.Constant)]
    return [max(texts, key=len)] if texts else []


@pytest.mark.parametrize(("place", "text"), events(), ids=lambda value: str(value)[:40])
def test_every_log_message_is_in_the_page_of_logging(place: str, text: str):
    """Operators search the docs for messages that they read in a log."""
    assert " ".join(text.split()) in " ".join(LOGGING_PAGE.split()), (
        f"docs/logging.md does not have the message of {place}"
    )
