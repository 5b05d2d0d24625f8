"""The documentation site: its list of pages is complete, and every link of its sources leads somewhere."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath

import pytest

import jobq
from jobq import JobqError, Settings
from jobq.http.problems import KINDS
from jobq.http.routes import ROUTES
from website import llms
from website.config import missing, read_nav
from website.links import broken
from website.pages import Pages, for_python_markdown, prose
from website.reference import kinds

NAV = read_nav()
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """The pages, by their place. They are made by the process that tests them, and not wherever tests are collected."""
    return Pages().texts


def test_every_page_is_listed():
    assert missing(NAV) == [], "add a line to docs/README.md, which is the navigation of the site"


def test_the_navigation_names_only_pages_that_exist(texts: dict[str, str]):
    assert {one.place for pages in NAV.values() for one in pages} - texts.keys() == set()


def test_the_reference_has_every_name_setting_route_and_error(texts: dict[str, str]):
    for name in jobq.__all__:
        assert f"[{name}]" in texts["reference/python/index.md"]
    for field in Settings.__struct_fields__:
        assert f"JOBQ_{field.upper()}`" in texts["reference/settings.md"]
    for route in ROUTES:
        assert f"## {route.method} {route.path}\n" in texts["reference/rest.md"]
    for kind in kinds():
        assert "**When**" in texts[f"errors/{kind.__name__}.md"] or kind is JobqError
    for problem in KINDS:
        assert f"## {problem.slug}\n" in texts["reference/problems.md"]
    assert "| `jobq_wait_seconds` | histogram | queue, type |" in texts["reference/metrics.md"]


@pytest.mark.parametrize("kind", [kind for kind in kinds() if issubclass(kind, JobqError) and kind is not JobqError])
def test_the_page_that_an_error_names_exists(kind: type[JobqError], texts: dict[str, str]):
    assert f"{kind.page().removesuffix('/')}.md" in texts


def test_language_models_get_a_list_of_the_pages(texts: dict[str, str]):
    assert "- [Quickstart](quickstart/): a running service" in llms.index(NAV)
    assert "# Limits\n" in llms.full(NAV, texts)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = [line for line, is_code in prose(text) if not is_code and re.match(r"#+ ", line)]
    words = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lstrip("#").strip().lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", one).replace(" ", "-") for one in words}


def test_every_link_and_anchor_leads_somewhere(texts: dict[str, str]):
    places = {page: anchors(text) for page, text in texts.items()}
    lost: list[str] = []
    for page in texts:
        if page.startswith("source/"):
            continue
        text = "\n".join(re.sub(r"`[^`]*`", "", line) for line, is_code in prose(texts[page]) if not is_code)
        for target, anchor in LINK.findall(text):
            found = os.path.normpath(PurePosixPath(page).parent / target) if target else page
            if found not in texts and not found.endswith(".svg"):
                lost.append(f"{page} links to {target}")
            elif anchor and anchor not in places[found]:
                lost.append(f"{page} links to {target}#{anchor}")
    assert lost == []


def test_lists_are_written_as_python_markdown_reads_them():
    text = "What follows:\n- one\n  more\n  - below\n1. two\n   ```console\n   $ ls\n   ```\n\nEnd\n    code"
    wanted = "What follows:\n\n- one\n    more\n    - below\n1. two\n    ```console\n    $ ls\n    ```\n\nEnd\n    code"
    assert for_python_markdown(text) == wanted


def test_the_check_of_the_built_site_finds_what_is_broken(tmp_path):
    (tmp_path / "index.html").write_text(
        '<h1 id="top">A</h1><a href="#top">ok</a><a href="#gone"></a><a href="no/">x</a><a href="https://nohost/">x</a>'
        '<a href="https://example.com/x#y">ok</a><script src="https://cdn.example.com/x.js"></script>'
    )
    assert broken(tmp_path) == [
        "index.html loads https://cdn.example.com/x.js from another host",
        "index.html: the page has no such anchor: #gone",
        "index.html: there is no such page: no/",
        "index.html: this is no URL of the web: https://nohost/",
    ]
