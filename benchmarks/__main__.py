"""``python -m benchmarks``: run, install, page."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from pathlib import Path

import msgspec

from benchmarks.run import load, run
from benchmarks.subjects import SUBJECTS, MissingPeer, Subject, default_peers_dir
from benchmarks.workloads import everything

LAST = Path(__file__).parent / "last.json"


def _parser() -> argparse.ArgumentParser:
    names = [workload.name for workload in everything()]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--peers-dir", type=Path, default=default_peers_dir(), help="environments of the peers")
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run", help="measure, and write JSON")
    running.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"default: all of {', '.join(names)}")
    running.add_argument("--subjects", default="jobq,limit", help="comma separated, or 'all': " + ", ".join(SUBJECTS))
    running.add_argument("--jobs", type=int, default=200_000, help="of a drain; slow subjects get fewer")
    running.add_argument("--repeats", type=int, default=3)
    running.add_argument("--server", default="redis-server", help="the server's program")
    running.add_argument("--out", type=Path, default=LAST, help="JSON; workloads in it that were not run stay")
    installing = verbs.add_parser("install", help="make the peers' environments")
    installing.add_argument("subjects", nargs="*", metavar="PEER", default=list(SUBJECTS))
    paging = verbs.add_parser("page", help="write docs/benchmarks.md and its plots from a run")
    paging.add_argument("--from", dest="source", type=Path, default=LAST)
    paging.add_argument("--docs", type=Path, default=Path(__file__).parent.parent / "docs")
    return parser


def _subjects(words: str | list[str]) -> list[Subject]:
    names = list(SUBJECTS) if words == "all" else words.split(",") if isinstance(words, str) else words
    unknown = [name for name in names if name not in SUBJECTS]
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(SUBJECTS)}")
    return [SUBJECTS[name] for name in names]


def _run(args: argparse.Namespace) -> None:
    known = {workload.name: workload for workload in everything()}
    unknown = [name for name in args.workloads if name not in known]
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = [known[name] for name in args.workloads] or list(known.values())
    for workload in chosen:
        report = asyncio.run(
            run(
                workload, _subjects(args.subjects),
                peers=args.peers_dir, server=args.server, jobs=args.jobs, repeats=args.repeats,
            )
        )  # fmt: skip
        # Write each result at once. A full run takes long and may be interrupted.
        if args.out.exists():
            earlier = load(args.out)
            earlier.merge(report)
            report = earlier
        args.out.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def main(argv: list[str] | None = None) -> None:
    """The program."""
    args = _parser().parse_args(argv)
    if args.verb == "run":
        _run(args)
    elif args.verb == "install":
        for subject in _subjects(args.subjects):
            try:
                subject.install(args.peers_dir)
            except (MissingPeer, subprocess.CalledProcessError) as error:
                print(f"{subject.name}: {error}", file=sys.stderr)
    else:
        from benchmarks.page import write

        for path in write(load(args.source), args.docs):
            print(path)


if __name__ == "__main__":
    main()
