"""The subjects: jobq, its bare limit, and the peers. Each has its own environment outside the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec

HERE = Path(__file__).parent
KIT = HERE / "peers" / "kit"


class MissingPeer(Exception):
    """A peer's environment does not exist, or cannot be made."""


class Subject(msgspec.Struct, frozen=True):
    """A driver. ``share``: its share of a workload's jobs. Slow queues need fewer jobs for a run of some seconds."""

    name: str
    share: float
    node: bool = False
    own: bool = False
    """Whether it runs in this Python."""
    can: frozenset[str] = frozenset({"drain", "one", "gathered", "bulk", "paced", "delayed"})

    @property
    def program(self) -> Path:
        """The driver's source."""
        if self.name == "limit":
            return HERE / "limit" / "bare.py"
        return HERE / "peers" / f"{self.name}.{'mjs' if self.node else 'py'}"

    def home(self, peers: Path) -> Path:
        """Its environment."""
        return peers / self.name

    def command(self, peers: Path) -> list[str]:
        """The command that starts the driver.

        :raises MissingPeer: its environment was not installed.
        """
        if self.own:
            return [sys.executable, "-P", str(self.program)]
        if self.node:
            home = self.home(peers)
            if not (home / "node_modules").is_dir():
                raise MissingPeer(f"{self.name} is not installed: python -m benchmarks install {self.name}")
            # node searches packages beside the program.
            shutil.copy(self.program, home)
            return ["node", str(home / self.program.name)]
        python = self.home(peers) / "bin" / "python"
        if not python.exists():
            raise MissingPeer(f"{self.name} is not installed: python -m benchmarks install {self.name}")
        return [str(python), "-P", str(self.program)]

    def version(self, peers: Path) -> str:
        """The pinned version of the library."""
        if self.own:
            return ""
        if self.node:
            return json.loads(self.program.with_suffix(".json").read_text())["dependencies"][self.name]
        found = re.search(r"==(\S+)", self.program.with_suffix(".txt").read_text())
        return found[1] if found else ""

    def install(self, peers: Path) -> None:
        """Make its environment.

        :raises MissingPeer: the interpreter or npm is missing.
        :raises subprocess.CalledProcessError: the installation failed.
        """
        if self.own:
            return
        home = self.home(peers)
        home.mkdir(parents=True, exist_ok=True)
        if self.node:
            if shutil.which("npm") is None:
                raise MissingPeer(f"{self.name} needs npm")
            shutil.copy(self.program.with_suffix(".json"), home / "package.json")
            subprocess.run(["npm", "install", "--no-audit", "--no-fund"], cwd=home, check=True)
            return
        pins = self.program.with_suffix(".txt")
        subprocess.run([_python(pins.read_text()), "-m", "venv", str(home)], check=True)
        subprocess.run([home / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", pins], check=True)


def _python(pins: str) -> str:
    """An interpreter that is new enough for "# python >= 3.x"."""
    found = re.search(r"# python >= 3\.(\d+)", pins)
    least = int(found[1]) if found else 11
    if sys.version_info >= (3, least):
        return sys.executable
    for minor in range(13, least - 1, -1):
        python = shutil.which(f"python3.{minor}")
        # There may be a shim without an interpreter.
        if python and subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0:
            return python
    raise MissingPeer(f"no python3.{least} or newer in PATH")


_NO_BULK = frozenset({"drain", "one", "gathered", "paced", "delayed"})

SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("jobq", 1.0, own=True),
        Subject("limit", 1.0, own=True, can=frozenset({"drain", "bulk"})),
        Subject("bullmq", 0.4, node=True),
        Subject("ardiq", 0.25),
        Subject("streaq", 0.1),
        Subject("arq", 0.04, can=_NO_BULK),
        Subject("saq", 0.05, can=_NO_BULK - {"delayed"}),
        Subject("taskiq", 0.05, can=_NO_BULK - {"delayed"}),
        Subject("dramatiq", 0.04, can=frozenset({"drain", "one", "paced", "delayed"})),
        Subject("celery", 0.02, can=frozenset({"drain", "one"})),
    )
}


def default_peers_dir() -> Path:
    """The default directory of environments: the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jobq-benchmarks"
