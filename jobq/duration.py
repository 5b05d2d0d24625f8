"""Times as text, such as "5s", "250ms", "10m", "2h" or "7d"."""

from __future__ import annotations

import re

_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)")
_UNITS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def to_seconds(text: str) -> float | None:
    """Parse a time such as "5s", "250ms", "10m", "2h" or "7d". A number without a unit is seconds."""
    found = _TIME.fullmatch(text[:400])
    return float(found[1]) * _UNITS[found[2]] if found else None
