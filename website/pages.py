"""Markdown of the repository becomes pages of the site: its links lead to pages, and its lists suit Python-Markdown."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath

from website import reference, rest
from website.folders import DOCS, ROOT

MOVED = {
    "README.md": "index.md",
    "docs/README.md": "pages.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "scripts/lua/README.md": "scripts.md",
}
"""Pages outside docs/ and their places on the site."""
LANGUAGES = {
    ".py": "python",
    ".sh": "sh",
    ".lua": "lua",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".json": "json",
    ".toml": "toml",
}

LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)(?=[)#])")
_FENCE = re.compile(r"^ *(```+)(\w*)(.*)$")
_ITEM = re.compile(r"^ *([-*]|\d+\.) ")


class Pages:
    """The pages of the site, by their place under its docs folder."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self._sources: set[str] = set()
        for path in sorted(DOCS.rglob("*.md")):
            if path != DOCS / "README.md":
                self.add_file(path.relative_to(ROOT).as_posix())
        for path in MOVED:
            self.add_file(path)
        self.texts["decisions/index.md"] = _decisions()
        self.texts |= reference.pages()
        self.texts["reference/rest.md"] = rest.page()

    def add_file(self, path: str) -> None:
        """Add a Markdown file of the repository."""
        self.texts[place(path)] = self.adapt((ROOT / path).read_text(encoding="utf-8"), path)

    def adapt(self, text: str, path: str) -> str:
        """The text of the file at ``path``, as the site needs it."""
        lines: list[str] = []
        for line, is_code in prose(for_python_markdown(text)):
            lines.append(line if is_code else LINK.sub(lambda found: self._target(found[1], path), line))
        return "\n".join(lines) + "\n"

    def _target(self, link: str, path: str) -> str:
        """Where a link of the file at ``path`` leads on the site."""
        found = os.path.normpath(PurePosixPath(path).parent / link)
        if found == "docs/decisions":
            target = "decisions/index.md"
        elif found in MOVED or (found.startswith("docs/") and (ROOT / found).is_file()):
            target = place(found)
        else:
            target = self._source(found)
        return os.path.relpath(target, PurePosixPath(place(path)).parent)

    def _source(self, path: str) -> str:
        """The page that shows a file or folder of the repository."""
        whole = ROOT / path
        target = f"source/{path}/index.md" if whole.is_dir() else f"source/{path}.md"
        if path in self._sources:
            return target
        self._sources.add(path)
        if whole.is_dir():
            files = sorted(one for one in whole.rglob("*") if one.is_file() and "__pycache__" not in one.parts)
            rows = [f"- [{one.relative_to(whole)}](/{one.relative_to(ROOT)})" for one in files]
            links = [
                row.replace(f"(/{one.relative_to(ROOT)})", f"({self._link(target, one.relative_to(ROOT).as_posix())})")
                for row, one in zip(rows, files, strict=True)
            ]
            self.texts[target] = "\n".join([f"# {path}", "", *links, ""])
        else:
            language = LANGUAGES.get(whole.suffix, "text")
            text = whole.read_text(encoding="utf-8")
            self.texts[target] = f"# {path}\n\n`````{language}\n{text.rstrip()}\n`````\n"
        return target

    def _link(self, page: str, path: str) -> str:
        return os.path.relpath(self._source(path), PurePosixPath(page).parent)


def place(path: str) -> str:
    """The place on the site of a Markdown file of the repository."""
    return MOVED.get(path) or path.removeprefix("docs/")


def prose(text: str) -> list[tuple[str, bool]]:
    """The lines of a page, each with whether it belongs to a block of code."""
    lines: list[tuple[str, bool]] = []
    fence = ""
    for line in text.splitlines():
        found = _FENCE.match(line)
        if found and not fence:
            fence = found[1]
            lines.append((line, True))
        elif found and found[1] == fence and not found[2]:
            fence = ""
            lines.append((line, True))
        else:
            lines.append((line, bool(fence)))
    return lines


def for_python_markdown(text: str) -> str:
    """Lists as Python-Markdown reads them: with an empty line before them and indented by 4. GitHub needs neither."""
    lines: list[str] = []
    in_list = False
    for line, is_code in prose(text):
        indent = len(line) - len(line.lstrip())
        is_item = bool(_ITEM.match(line)) and not is_code
        if is_item and not indent and not in_list and lines and lines[-1].strip():
            lines.append("")
        if is_item:
            in_list = True
        elif line.strip() and not indent:
            in_list = False
        fence = _FENCE.match(line) if is_code else None
        words = f"{' ' * indent}{fence[1]}{fence[2]}" if fence else line
        deeper = (
            " " * (4 * ((indent + 1) // 3 if indent < 4 else 2) - indent) if in_list and indent and line.strip() else ""
        )
        lines.append(deeper + words)
    return "\n".join(lines)


def _decisions() -> str:
    rows: list[str] = []
    for path in sorted((DOCS / "decisions").glob("*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        rows.append(f"- [{title.replace('. ', ': ', 1)}]({path.name})")
    return "\n".join(["# Decisions", "", "Why jobq is as it is: each choice with its figures.", "", *rows, ""])
