"""Which jobq this is."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version


@functools.cache
def jobq_version() -> str:
    """The version of the installed package; empty when jobq runs from files that were never installed."""
    try:
        return version("jobq")
    except PackageNotFoundError:
        return ""
