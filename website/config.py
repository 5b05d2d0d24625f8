"""The navigation of the site, which is the list of pages in docs/README.md, and the file that Zensical reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

from website.pages import DOCS, MOVED, place

TEMPLATE = Path(__file__).with_name("zensical.toml")
_LINK = re.compile(r"\[([^\]]+)\]\(([^)#]+)\)")

Nav = dict[str, list[tuple[str, str]]]
"""Sections, each with titles and places of its pages."""


def read_nav() -> Nav:
    """The sections of docs/README.md. Every list item begins with links to its pages."""
    sections: Nav = {}
    for line in (DOCS / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            sections[line.removeprefix("## ")] = []
        elif line.startswith("- ") and sections:
            links = _LINK.findall(line.partition(": ")[0])
            list(sections.values())[-1] += [(title, _place(target)) for title, target in links]
    return sections


def missing(nav: Nav) -> list[str]:
    """Pages of docs/ that docs/README.md does not list."""
    listed = {place for pages in nav.values() for _, place in pages}
    return sorted(page.name for page in DOCS.glob("*.md") if page.name not in listed and page.name != "README.md")


def config(nav: Nav) -> str:
    """The text of zensical.toml."""
    sections = ['{ "Home" = "index.md" }']
    for section, pages in nav.items():
        rows = ", ".join(f"{{ {json.dumps(title)} = {json.dumps(target)} }}" for title, target in pages)
        sections.append(f"{{ {json.dumps(section)} = [{rows}] }}")
    text = TEMPLATE.read_text(encoding="utf-8")
    return text.replace("[project]\n", f"[project]\nnav = [{', '.join(sections)}]\n", 1)


def _place(target: str) -> str:
    """The place of the page that docs/README.md links to."""
    if target == "decisions":
        return "decisions/index.md"
    return MOVED.get(target.removeprefix("../"), "") if target.startswith("../") else place(f"docs/{target}")
