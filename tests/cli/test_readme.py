"""The shell commands of the README work as they are written."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from jobq.cli.parser import build_parser
from jobq.http.serve import free_port

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
ENDLESS = 28
"""The exit code of curl when --max-time ends a request that has no end of its own: /events."""


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="the lines are for curl in a shell")
def test_each_curl_line_is_answered(start):
    port = free_port()
    dev = start("dev", "examples/email.py:queue", "--port", str(port))
    dev.wait_line("Ctrl-C")
    lines = [line.split(" # ")[0].strip() for line in BLOCKS.splitlines() if line.startswith("curl ")]
    assert len(lines) >= 3
    for line in lines:
        command = line.replace("localhost:7800", f"localhost:{port}") + " --max-time 3 --fail-with-body"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        streams = "/events" in line
        assert done.returncode == (ENDLESS if streams else 0), f"{line}\n{done.stdout}{done.stderr}"
        assert done.stdout, line


def test_each_jobq_line_is_understood():
    parser = build_parser()
    lines = [line.split("  #")[0].strip() for line in BLOCKS.splitlines() if line.startswith("jobq ")]
    assert lines
    for line in lines:
        for words in line.removeprefix("jobq ").split(" | "):
            assert parser.parse_args(shlex.split(words)).run, words
