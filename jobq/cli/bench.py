"""``jobq bench``. It imports the benchmark only when it runs, because other commands do not need it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from jobq.errors import JobqError

if TYPE_CHECKING:
    import argparse

    from jobq.settings import Settings


def bench(args: argparse.Namespace, settings: Settings) -> int:
    """Run the benchmark.

    :raises JobqError: this installation has no benchmarks.
    """
    try:
        harness = importlib.import_module("jobq.bench")
    except ModuleNotFoundError as error:
        raise JobqError(f"the benchmarks cannot be loaded: {error}") from None
    return harness.main(args, settings)
