"""The navigation of the site, which is the list of pages in docs/README.md, and the file that Zensical reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from website.folders import DOCS
from website.pages import MOVED, place
from website.reference import python_names

TEMPLATE = Path(__file__).with_name("zensical.toml")
_LINK = re.compile(r"\[([^\]]+)\]\(([^)#]+)\)")


class Entry(NamedTuple):
    """A page of the navigation."""

    title: str
    place: str
    words: str
    """What docs/README.md says about it."""


PYTHON = "reference/python/index.md"
Nav = dict[str, list[Entry]]
"""The pages of each section."""

GENERATED = [
    Entry("Python", PYTHON, "everything that `from jobq import ...` offers"),
    Entry("REST", "reference/rest.md", "every route, its parameters, bodies and problems"),
    Entry("Settings", "reference/settings.md", "every variable and flag"),
    Entry("Metrics", "reference/metrics.md", "what `GET /metrics` shows"),
    Entry("All errors", "errors/all.md", "a page for each exception"),
    Entry("Problems", "reference/problems.md", "every `type` of an error over REST"),
]
"""Pages of the section Reference that are made from the code, so docs/README.md cannot link to them."""


def read_nav() -> Nav:
    """The sections of docs/README.md. Every list item begins with links to its pages."""
    sections: Nav = {}
    for line in (DOCS / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            sections[line.removeprefix("## ")] = []
        elif line.startswith("- ") and sections:
            links, _, words = line.partition(": ")
            entries = [Entry(title, _place(target), words) for title, target in _LINK.findall(links)]
            list(sections.values())[-1].extend(entries)
    sections["Reference"] += GENERATED
    return sections


def missing(nav: Nav) -> list[str]:
    """Pages of docs/ that docs/README.md does not list."""
    listed = {one.place for pages in nav.values() for one in pages}
    return sorted(page.name for page in DOCS.glob("*.md") if page.name not in listed and page.name != "README.md")


def config(nav: Nav) -> str:
    """The text of zensical.toml."""
    sections = ['{ "Home" = "index.md" }']
    for section, pages in nav.items():
        rows = ", ".join(_row(title, target) for title, target, _ in pages)
        sections.append(f"{{ {json.dumps(section)} = [{rows}] }}")
    text = TEMPLATE.read_text(encoding="utf-8")
    return text.replace("[project]\n", f"[project]\nnav = [{', '.join(sections)}]\n", 1)


def _row(title: str, target: str) -> str:
    """A row of the navigation. The page of Python's names has a page below it for each name."""
    if target != PYTHON:
        return _leaf(title, target)
    below = [_leaf("All names", PYTHON), *(_leaf(name, f"reference/python/{name}.md") for name in python_names())]
    return f"{{ {json.dumps(title)} = [{', '.join(below)}] }}"


def _leaf(title: str, target: str) -> str:
    return f"{{ {json.dumps(title)} = {json.dumps(target)} }}"


def _place(target: str) -> str:
    """The place of the page that docs/README.md links to."""
    if target == "decisions":
        return "decisions/index.md"
    return MOVED.get(target.removeprefix("../"), "") if target.startswith("../") else place(f"docs/{target}")
