"""Types the console blocks of a page into bash, and compares what the commands print."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

from jobq.http.serve import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ID = re.compile(r"\b[0-9][0-9a-z]{15,17}\b")


def steps(page: str) -> Iterator[tuple[str, str]]:
    """Each command of a page of docs/, with the output that the page shows."""
    for block in _BLOCK.findall((ROOT / "docs" / page).read_text()):
        for typed in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = typed.partition("\n")
            yield command, output


class Console:
    """A shell in a folder. Its servers listen on a free port in place of 8000."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self._folder = folder
        bin_folder = Path(sys.executable).parent
        path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
        self._env = os.environ | {"JOBQ_REDIS_URL": redis_url, "PATH": path, "PYTHONUNBUFFERED": "1"}
        self._ids: dict[str, str] = {}
        self._servers: list[subprocess.Popen[bytes]] = []
        self.port = free_port()

    def start(self, command: str) -> None:
        """Start a server, and wait until its REST interface is ready."""
        args = command.removesuffix("&").split()
        if args[0] == "uvicorn":
            args += ["--port", str(self.port)]
        if args[0] == "python":
            script = (self._folder / args[1]).read_text().replace("port=8000", f"port={self.port}")
            (self._folder / "server.py").write_text(script)
            args = ["python", "server.py"]
        args[0] = shutil.which(args[0], path=self._env["PATH"]) or args[0]
        server = subprocess.Popen(args, cwd=self._folder, env=self._env, stdout=subprocess.DEVNULL)
        self._servers.append(server)
        end = time.monotonic() + 120
        while not self._is_ready():
            assert server.poll() is None, f"{command} ended with {server.returncode}"
            assert time.monotonic() < end, f"{command} is not ready"
            time.sleep(0.1)  # a server in another process gives no event to wait for

    def run(self, command: str, shown: str) -> None:
        """Run a command to its end, and compare its output with the one that is shown. A line "..." is any lines."""
        for sample, real in self._ids.items():
            command, shown = command.replace(sample, real), shown.replace(sample, real)
        command = command.replace("localhost:8000", f"127.0.0.1:{self.port}")
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self._folder,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
        if not shown:
            return
        shown = shown.replace('": ', '":')
        pattern = "".join(
            "(?:.*\n)*" if line == "..." else r"\S[^\n]*".join(map(re.escape, line.split("..."))) + "\n"
            for line in shown.splitlines()
        )
        pattern = _ID.sub(lambda found: f"(?P<id_{found[0]}>[0-9a-z]+)", pattern, count=1)
        said = done.stdout if done.stdout.endswith("\n") else done.stdout + "\n"
        said = said.replace('": ', '":')  # libraries space JSON differently
        found = re.fullmatch(pattern, said)
        assert found, f"{command} printed\n{done.stdout}\nand the page shows\n{shown}"
        self._ids |= {name.removeprefix("id_"): value for name, value in found.groupdict().items()}

    def stop(self) -> None:
        """End the servers."""
        for server in self._servers:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
        self._servers.clear()

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/jobq/readyz", timeout=5):
                return True
        except OSError:
            return False
