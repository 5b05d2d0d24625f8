"""Counts the instructions of a job: in an earlier commit, in this checkout, and here on a cluster of one node.

Other load on the machine does not change them.

    python -m benchmarks.instructions COMMIT     # writes benchmarks/instructions.json and docs/benchmarks.md

Needs valgrind. The server runs in its `cachegrind`, and in another run the client; the other side is not slowed down,
because what happens every second would count for more. Each part runs with few and with many jobs, and what the many
cost beyond the few is divided by their number. So starting and loading cost nothing. Of three measurements the least
counts: chance only adds.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import redis

from benchmarks.page import COUNTS, write
from benchmarks.run import load
from benchmarks.scale.nodes import SLOTS
from benchmarks.server import free_port
from jobq.engine.server.embedded import find_binary

HERE: Final = Path(__file__).parent
COUNTED: Final = HERE / "counted.py"
PARTS: Final = {
    "bulk enqueue": (("bulk",), 3_000, 33_000),
    "enqueue one by one": (("single",), 1_000, 6_000),
    "drain": (("bulk", "drain"), 3_000, 33_000),
}
"""The verbs that run one after the other, each in a process of its own, and how many jobs: few, many."""
REPEATS: Final = 3
Side = Literal["server", "client"]
SIDES: Final[tuple[Side, ...]] = ("server", "client")
VALGRIND: Final = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")


def _counted(words: str) -> int:
    found = re.search(r"I\s+refs:\s+([\d,]+)", words)
    if found is None:
        raise SystemExit(f"valgrind counted nothing: {words[-500:]}")
    return int(found[1].replace(",", ""))


def _run(tree: Path, side: Side, verbs: tuple[str, ...], jobs: int, *, cluster: bool) -> int:
    """Instructions of the server, or of the process of the last verb."""
    port = free_port()
    url = f"redis{'+cluster' if cluster else ''}://127.0.0.1:{port}"
    mode = ("--cluster-enabled", "yes", "--cluster-port", str(free_port())) if cluster else ()
    with tempfile.TemporaryDirectory(prefix="jobq-bench-") as folder:
        server = subprocess.Popen(
            [
                *(VALGRIND if side == "server" else ()), str(find_binary()), "--port", str(port), "--bind", "127.0.0.1",
                "--save", "", "--dir", folder, "--loglevel", "warning", "--dynamic-hz", "no", *mode,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        client: Any
        with redis.Redis(port=port) as client:
            _until(client.ping)
            if cluster:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
                _until(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"))
            said = ""
            for verb in verbs:
                counting = VALGRIND if side == "client" and verb == verbs[-1] else ()
                said = subprocess.run(
                    [*counting, sys.executable, "-P", str(COUNTED), verb, url, str(jobs)],
                    check=True,
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd=tree,
                    # Dictionaries of strings differ between runs without it.
                    env=os.environ | {"PYTHONPATH": str(tree), "PYTHONHASHSEED": "0"},
                ).stderr
            client.shutdown(nosave=True)
        end = server.communicate()[1]
        return _counted(end if side == "server" else said)


def _until(works: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if works():
                return
        except redis.ConnectionError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError("the server did not start")
        time.sleep(0.1)


def _per_job(tree: Path, *, cluster: bool = False) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name, (verbs, few, many) in PARTS.items():
        counts: dict[str, float] = {}
        for side in SIDES:
            fixed, whole = (
                min(_run(tree, side, verbs, jobs, cluster=cluster) for _ in range(REPEATS)) for jobs in (few, many)
            )
            counts[side] = (whole - fixed) / (many - few)
        found[name] = counts
    # The server that was drained had also taken the jobs.
    found["drain"]["server"] -= found["bulk enqueue"]["server"]
    return found


def main() -> None:
    """Measure both trees."""
    commit, here = sys.argv[1], HERE.parent

    def git(*words: str) -> str:
        return subprocess.run(("git", *words), check=True, cwd=here, stdout=subprocess.PIPE, text=True).stdout.strip()

    with tempfile.TemporaryDirectory(prefix="jobq-bench-") as folder:
        git("worktree", "add", "--detach", folder, commit)
        try:
            before = _per_job(Path(folder))
        finally:
            git("worktree", "remove", "--force", folder)
    about = {"hash": git("rev-parse", "--short", commit), "date": git("show", "-s", "--format=%cs", commit)}
    counts = {"commit": about, "before": before, "now": _per_job(here), "cluster": _per_job(here, cluster=True)}
    COUNTS.write_text(json.dumps(counts, indent=1) + "\n")
    for page in write(load(HERE / "last.json"), here / "docs"):
        print(page)


if __name__ == "__main__":
    main()
