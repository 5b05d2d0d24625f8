"""Passwords of URLs have no place in logs, tracebacks and error texts."""

from __future__ import annotations

import re

_IN_FRONT_OF_HOST = re.compile(
    r"(//[^/@\s:]*:)"  # the user's name, perhaps empty
    r"(?!\d+[/?#,])"  # that was a host, and a port follows
    r"[^\s\"'<>]+@"  # up to the last @: people forget to encode those in passwords, and slashes too
)
_IN_QUERY = re.compile(r"([?&](?:password|passwd|token|secret)=)[^&\s\"'<>]+", re.IGNORECASE)


def redact(text: str) -> str:
    """The text with ``***`` in place of the passwords of its URLs."""
    return _IN_QUERY.sub(r"\1***", _IN_FRONT_OF_HOST.sub(r"\1***@", text))
