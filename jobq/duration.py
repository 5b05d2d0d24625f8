"""Times as text, such as "5s", "250ms", "10m", "2h" or "7d", and the header ``Retry-After``."""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime
from time import time

_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)")
_UNITS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def to_seconds(text: str) -> float | None:
    """Parse a time such as "5s", "250ms", "10m", "2h" or "7d". A number without a unit is seconds."""
    found = _TIME.fullmatch(text[:400])
    return float(found[1]) * _UNITS[found[2]] if found else None


def read_retry_after(text: str) -> float | None:
    """Seconds of a header ``Retry-After``: a number, or until an HTTP date such as "Fri, 31 Dec 1999 23:59:59 GMT". A
    text such as "5m" too. None if it is none of these."""
    text = text.strip()[:100]
    seconds = to_seconds(text)
    if seconds is not None:
        return seconds
    try:
        date = parsedate_to_datetime(text)
        # A date without a zone is in UTC. One that is over means: now.
        return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time())
    except (ValueError, OverflowError):
        # A zone may have any number of digits.
        return None
