"""Numbers and times in the sentences of a reason."""

from __future__ import annotations

from datetime import UTC, datetime


def many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def span(ms: float) -> str:
    """A time in the largest unit that fits: 250 ms, 1.5 s, 3 min."""
    for size, unit in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")):
        if ms >= size:
            return f"{ms / size:.3g} {unit}"
    return f"{max(0, ms):.0f} ms"


def in_time(moment: int, now: int) -> str:
    return f"in {span(moment - now)} ({at_time(moment)})"


def ago(moment: int, now: int) -> str:
    return f"{span(now - moment)} ago ({at_time(moment)})"


def at_time(moment: int) -> str:
    try:
        return datetime.fromtimestamp(moment / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"{moment} ms"  # a damaged time
