"""The code in README and docs runs, and prints what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples() -> list[tuple[str, str, str | None]]:
    """Python blocks with the text block that follows them at once."""
    found: list[tuple[str, str, str | None]] = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            if match[1] != "python":
                continue
            following = BLOCK.match(text, match.end() + 2)
            output = following[2] if following and following[1] == "text" else None
            found.append((f"{page.name}:{text[: match.start()].count(chr(10)) + 1}", match[2], output))
    return found


@pytest.mark.parametrize(("place", "code", "output"), examples(), ids=lambda value: str(value).split("\n")[0][:40])
def test_example_prints_what_the_page_says(
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


def test_each_decision_has_a_number_of_its_own_and_a_status() -> None:
    numbers = [page.name[:4] for page in DECISIONS]
    assert numbers == [f"{n:04}" for n in range(1, len(DECISIONS) + 1)]
    for page in DECISIONS:
        lines = page.read_text().splitlines()
        assert lines[0].startswith(f"# {int(page.name[:4])}. "), page.name
        assert re.match(r"Status: (accepted|replaced)\b.*\.$", lines[2]), f"{page.name}: its third line is its status"


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
