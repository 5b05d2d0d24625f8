"""The command line in a process whose wall clock is wrong: ``python -m tests.chaos.skewed SECONDS work ...``."""

from __future__ import annotations

import sys
import time


def skew(seconds: float) -> None:
    """Move what this process takes for the time."""
    right, right_ns = time.time, time.time_ns
    time.time = lambda: right() + seconds
    time.time_ns = lambda: right_ns() + int(seconds * 1e9)


if __name__ == "__main__":
    skew(float(sys.argv.pop(1)))
    from jobq.__main__ import main

    sys.exit(main())
