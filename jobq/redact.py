"""Removes the passwords of URLs from log lines, tracebacks and error texts.

The text often comes from a client, so every step takes time linear in its length. A slow step would hold the GIL and
stop the whole worker. tests/unit/test_redact.py tries hostile texts of 1 MB.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MASK: Final = "***"
MARGIN: Final = 4096
"""Characters beyond a cut that are also searched. Otherwise a password at the cut would be shown in part."""
MISFIT_MAX: Final = 1000
"""Characters of such words."""

_END_OF_URL = re.compile(r"[\s\"'<>]")
_USER = re.compile(r"[^/@:]*:")
_PORT = re.compile(r"\d{1,5}[/?#,]")
_WEB = ("http:", "https:", "ws:", "wss:")
_IN_QUERY = re.compile(
    r"[?&][\w-]{0,40}?(?:password|passwd|pwd|pass|token|secret|api_?key|signature)=([^&\s\"'<>]+)", re.IGNORECASE
)


def redact(text: str) -> str:
    """The text with ``***`` in place of the passwords of its URLs."""
    return _masked(text, 0, len(text))


def excerpt(text: str, most: int) -> str:
    """The redacted text. If it is longer than ``most`` characters, only its start and its end.

    The text is cut before it is searched, so the work depends on ``most`` and not on the length of the text.
    """
    if len(text) <= most:
        return redact(text)
    half = most // 2
    head = text[: half + MARGIN]
    tail = text[-(half + MARGIN) :]
    left_out = f"... {len(text) - 2 * half} characters left out ..."
    return f"{_masked(head, 0, half)}\n{left_out}\n{_masked(tail, len(tail) - half, len(tail))}"


def misfit(error: Exception) -> str:
    """The message of msgspec about a value that does not fit. It is cut, because it may quote a long name in full."""
    return excerpt(str(error), MISFIT_MAX)


def _masked(text: str, start: int, end: int) -> str:
    """``text[start:end]`` with its secrets masked, also a secret that is only partly inside."""
    parts: list[str] = []
    for first, last in sorted([*_in_front_of_hosts(text), *_in_queries(text)]):
        if first >= end:
            break
        if last > start:
            parts += (text[start : max(start, first)], MASK)
            start = last
    parts.append(text[start:end])
    return "".join(parts)


def _in_front_of_hosts(text: str) -> Iterator[tuple[int, int]]:
    """The positions of passwords in ``scheme://user:password@host``.

    A password extends to the last @ of the URL, because people forget to encode @ and / in it.
    Every character is visited a fixed number of times: a run that ``_USER`` scans ends at a slash, @ or colon, and the
    next run starts after it.
    """
    at_slashes = text.find("//")
    while at_slashes != -1:
        found = _END_OF_URL.search(text, at_slashes)
        end = found.start() if found else len(text)
        last_at = text.rfind("@", at_slashes, end)
        while -1 < at_slashes < last_at:
            user = _USER.match(text, at_slashes + 2, last_at)
            if user and not _is_web_host(text, at_slashes, user.end()):
                yield user.end(), last_at
                break
            at_slashes = text.find("//", at_slashes + 1, last_at)
        at_slashes = text.find("//", end)


def _is_web_host(text: str, at_slashes: int, behind_colon: int) -> bool:
    """Whether this is ``http://host:80/...``. The path of such a URL may contain an @."""
    scheme = text[max(0, at_slashes - 6) : at_slashes].lower()
    return behind_colon > at_slashes + 3 and scheme.endswith(_WEB) and _PORT.match(text, behind_colon) is not None


def _in_queries(text: str) -> Iterator[tuple[int, int]]:
    """The positions of values of ``?password=...`` and similar parameters."""
    return (found.span(1) for found in _IN_QUERY.finditer(text))
