"""Makes text that clients chose harmless for a terminal.

Payloads, errors, log lines and keys come from clients. Written as they are, they could move the cursor, retitle the
window, reverse a line (U+202E) or look like a line of jobq. Characters without a visible form are shown as escape
sequences.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_NOT_ASCII = re.compile(r"[^ -~]")
_JOINERS: Final = "\u200c\u200d"
"""Joiners that some scripts and emoji need. They do not affect other characters."""


def printable(text: str) -> str:
    r"""The text as one line: a newline becomes ``\n``, an escape character ``\x1b``."""
    if text.isprintable():
        return text
    return _NOT_ASCII.sub(_escape, text)


def printable_json(document: str) -> str:
    """A JSON document on one line. It is an equal document with escapes for characters that are not printable."""
    if document.isprintable():
        return document
    return _NOT_ASCII.sub(_escape_in_json, document)


def printable_lines(text: str, indent: str = "") -> list[str]:
    """The lines of a text that may have several, such as a traceback.

    The indent makes sure that no line looks like a line of jobq, which starts at the margin.
    """
    return [indent + printable(line.expandtabs(4)) for line in text.rstrip().replace("\r\n", "\n").split("\n")]


def _is_visible(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"


def _escape(found: re.Match[str]) -> str:
    return found[0] if _is_visible(found[0]) else ascii(found[0])[1:-1]


def _escape_in_json(found: re.Match[str]) -> str:
    if _is_visible(found[0]):
        return found[0]
    units = found[0].encode("utf-16-be", errors="surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
