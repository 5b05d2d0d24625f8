"""Follow every link and anchor of the built site. Links to other hosts are checked for their form only."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from pathlib import Path

_LOADS = {"script", "link", "img", "iframe", "source"}
"""Elements whose URL a browser loads by itself."""


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if name := given.get("id") or (given.get("name") if tag == "a" else None):
            self.ids.add(name)
        target = given.get("href") or given.get("src")
        if target and not target.startswith(("data:", "mailto:", "javascript:")):
            self.links.append(target)
            if tag in _LOADS and given.get("rel") != "canonical":
                self.loads.append(target)


def broken(site: Path) -> list[str]:
    """A sentence for each link that leads nowhere, and for each page that loads something from another host."""
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    faults: list[str] = []
    for path, page in pages.items():
        name = path.relative_to(site)
        if name.name == "404.html":
            continue  # its links begin at the root of the host
        faults += [f"{name} loads {target} from another host" for target in page.loads if "://" in target]
        for link in dict.fromkeys(page.links):
            if fault := _fault(link, path, pages):
                faults.append(f"{name}: {fault}: {link}")
    return faults


def _fault(link: str, path: Path, pages: dict[Path, _Page]) -> str:
    try:
        url = urlsplit(link)
    except ValueError:
        return "this is no URL"
    if url.scheme or url.netloc:
        return (
            ""
            if url.scheme in ("http", "https") and (url.hostname == "localhost" or "." in (url.hostname or ""))
            else "this is no URL of the web"
        )
    target = path
    if url.path:
        target = (path.parent / unquote(url.path)).resolve()
        if target.is_dir():
            target /= "index.html"
        if not target.exists():
            return "there is no such page"
    if url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids:
        return "the page has no such anchor"
    return ""
