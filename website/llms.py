"""For language models: ``llms.txt`` lists the pages, and ``llms-full.txt`` has the text of those that people write."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from website.config import Nav


def index(nav: Nav) -> str:
    """The list of pages, each with what docs/README.md says about it."""
    parts = ["# jobq", "> Background jobs for Python services: asyncio and Lua over Redis or Valkey."]
    for section, pages in nav.items():
        rows = [
            f"- [{one.title}]({one.place.removesuffix('index.md').removesuffix('.md')}/): {one.words}" for one in pages
        ]
        parts.append(f"## {section}\n\n" + "\n".join(row.replace("//)", "/)") for row in rows))
    return "\n\n".join(parts) + "\n"


def full(nav: Nav, texts: dict[str, str]) -> str:
    """The text of the pages of the navigation. Generated references and benchmarks are left out, for their length."""
    places = ["index.md", *(one.place for pages in nav.values() for one in pages)]
    kept = [place for place in places if not place.startswith(("reference/", "decisions/", "benchmarks", "errors/"))]
    return "\n\n---\n\n".join(f"<!-- {place} -->\n{texts[place]}" for place in kept)


def address(place: str) -> str:
    """The address of a page on the site."""
    return place.removesuffix("index.md") if place.endswith("index.md") else place.removesuffix(".md") + "/"
