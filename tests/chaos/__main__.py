"""``python -m tests.chaos --seed N --minutes M``. The exit code is 1 if a promise was broken."""

from __future__ import annotations

import argparse
import asyncio
import sys

from tests.chaos.run import run


def main() -> int:
    """Run and print the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--partitions", type=int, default=1)
    args = parser.parse_args()
    report = asyncio.run(run(args.seed, args.minutes, partitions=args.partitions, say=True))
    print(report.text())
    return int(bool(report.wrong))


sys.exit(main())
