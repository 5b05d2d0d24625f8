"""The command line in a process with a wrong wall clock: ``python -m tests.chaos.skewed SECONDS work ...``."""

from __future__ import annotations

import sys
import time


def skew(seconds: float) -> None:
    """Shift the time that this process reads."""
    right, right_ns = time.time, time.time_ns
    time.time = lambda: right() + seconds
    time.time_ns = lambda: right_ns() + int(seconds * 1e9)


if __name__ == "__main__":
    skew(float(sys.argv.pop(1)))
    from jobq.__main__ import main

    sys.exit(main())
