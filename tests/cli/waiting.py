"""Waiting for other processes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def holds(condition: Callable[[], Any], what: str, within: float = 15.0) -> Any:
    """Check repeatedly until it holds. Other processes send us no events."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.02)
    return value
