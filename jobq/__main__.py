"""Runs the command line for ``python -m jobq``."""

from __future__ import annotations

import sys

from jobq.cli import main

if __name__ == "__main__":
    sys.exit(main())
