"""Build the site into build/site/html, and follow every link in it. Nothing is read from the network."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from website import llms
from website.config import config, read_nav
from website.folders import DOCS, ROOT
from website.links import broken
from website.pages import Pages

BUILD = ROOT / "build" / "site"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def main() -> int:
    """Build, check, and return the exit code."""
    nav = read_nav()
    pages = Pages()
    write(pages, BUILD / "docs")
    (BUILD / "zensical.toml").write_text(config(nav), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean"],
        cwd=BUILD,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode:
        print(_COLOUR.sub("", done.stdout + done.stderr), file=sys.stderr)
        return done.returncode
    (BUILD / "html" / "llms.txt").write_text(llms.index(nav), encoding="utf-8")
    (BUILD / "html" / "llms-full.txt").write_text(llms.full(nav, pages.texts), encoding="utf-8")
    faults = broken(BUILD / "html")
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(list((BUILD / 'html').rglob('*.html')))} pages in {BUILD / 'html'}")
    return 1 if faults else 0


def write(pages: Pages, folder: Path) -> None:
    """Write the sources of the site into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for place, text in pages.texts.items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    shutil.copy(Path(__file__).with_name("style.css"), folder)
    for image in DOCS.rglob("*.svg"):
        target = folder / image.relative_to(DOCS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, target)


if __name__ == "__main__":
    sys.exit(main())
