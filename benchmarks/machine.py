"""The machine, and the resources that processes use, from /proc."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from benchmarks.server import Server
from jobq.engine.server.embedded import find_binary
from jobq.errors import NoServer

TICK = os.sysconf("SC_CLK_TCK")


def describe() -> dict[str, str]:
    """Properties of the machine on which figures depend."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(memory[1]) / 2**20:.0f} GiB" if memory else "",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "node": _version("node", "--version"),
        "wrk": _version("wrk", "--version"),
        "embedded": _embedded(),
    }


def _embedded() -> str:
    try:
        binary = find_binary()
    except NoServer:
        return "none"
    with Server(str(binary)) as probe:
        return probe.version()


def _version(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+[\d.]*", said.stdout + said.stderr)
    return found[0] if found else ""


def _tree(pid: int) -> list[int]:
    """A process and its descendants."""
    pids, new = [pid], [pid]
    while new:
        parent = new.pop()
        for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                children = [int(word) for word in tasks.read_text().split()]
            except OSError:
                continue
            pids += children
            new += children
    return pids


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its living descendants."""
    ticks = 0
    for one in _tree(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and its living descendants."""
    total = 0
    for one in _tree(pid):
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    return total


def load() -> float:
    """Load average of the last minute: the load of other programs."""
    return os.getloadavg()[0]
