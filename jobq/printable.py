"""Makes text from others harmless for a terminal.

Payloads, errors, log lines and keys are chosen by clients. Written as they are, they could move the cursor, retitle
the window, reverse a line (U+202E) or look like a line of ours. What has no visible form is
shown as an escape sequence.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_NOT_ASCII = re.compile(r"[^ -~]")
_JOINERS: Final = "\u200c\u200d"
"""Scripts and emoji need them, and they do nothing to other characters."""


def printable(text: str) -> str:
    r"""The text as one line: a newline becomes ``\n``, an escape character ``\x1b``."""
    if text.isprintable():
        return text
    return _NOT_ASCII.sub(_escape, text)


def printable_json(document: str) -> str:
    """A JSON document on one line, as another form of the same document."""
    if document.isprintable():
        return document
    return _NOT_ASCII.sub(_escape_in_json, document)


def printable_lines(text: str, indent: str = "") -> list[str]:
    """The lines of a text that may have several, such as a traceback.

    With an indent, no line can pass for one that we wrote at the margin.
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
