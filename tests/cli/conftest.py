"""The command line as users meet it: in this process if only the output matters, as real processes if signals do."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from jobq.cli import main
from jobq.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
TASKS = """
import gc, multiprocessing, os, time
from jobq import Context, Discard, Queue, inject

queue = Queue("tasks")

@queue.task
async def echo(word: str = "hello", ctx: Context = inject) -> str:
    ctx.log(f"got {word}")
    return word

@queue.task(attempts=1)
async def broken() -> None:
    raise ValueError("no luck today")

@queue.task
def frozen() -> int:
    return gc.get_freeze_count()

@queue.task
def pid() -> int:
    return os.getpid()

@queue.task(attempts=1, timeout=20)
def pooled() -> list[int]:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(abs, [-1, -2])

@queue.task
def gated(file: str) -> None:
    while not os.path.exists(file):
        time.sleep(0.01)

@queue.task
def sleepy(seconds: float) -> None:
    time.sleep(seconds)
"""


class Said:
    """The output of a command and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> list[Any]:
        """The JSON documents of the output, one per line."""
        return [json.loads(line) for line in self.out.splitlines()]


Jobq = "Callable[..., Said]"


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    """A TARGET for one test."""
    file = tmp_path / "cli_tasks.py"
    file.write_text(TASKS)
    return f"{file}:queue"


@pytest.fixture
def jobq(redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """``jobq("stats", "--json")`` against the session's server, in this process."""
    # Every variable that a flag may set is restored afterwards.
    for field in Settings.__struct_fields__:
        monkeypatch.setenv(f"JOBQ_{field.upper()}", "")
    monkeypatch.setenv("JOBQ_REDIS_URL", redis_url)

    def call(*words: str) -> Said:
        capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as exit_:  # argparse exits in this way.
            code = int(str(exit_.code))
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return call


class Process:
    """``python -m jobq ...`` with its output, and all processes that it starts."""

    def __init__(self, words: list[str], env: dict[str, str]) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "jobq", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
            cwd=ROOT,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._new: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout
        for line in self.popen.stdout:
            self._new.put(line.rstrip("\n"))
        self._new.put(None)

    def wait_line(self, part: str, within: float = 30.0) -> str:
        """The next line that contains this text."""
        deadline = time.monotonic() + within
        while True:
            try:
                line = self._new.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {part!r} within {within} s:\n" + "\n".join(self.lines)) from None
            assert line is not None, f"ended without {part!r}:\n" + "\n".join(self.lines)
            self.lines.append(line)
            if part in line:
                return line

    def children(self) -> list[psutil.Process]:
        """The processes that it started, and theirs."""
        return psutil.Process(self.popen.pid).children(recursive=True)

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def end(self, within: float = 20.0) -> int:
        """Wait for its end and return its exit code."""
        return self.popen.wait(within)

    def clean_up(self) -> None:
        if self.popen.poll() is None:
            for process in [*self.children(), psutil.Process(self.popen.pid)]:
                process.kill()
            self.popen.wait()
        self._reader.join(10)
        assert self.popen.stdout
        self.popen.stdout.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """``start("dev", target)``: a process with an embedded server for this test, unless env says otherwise."""
    processes: list[Process] = []

    def begin(*words: str, **env: str) -> Process:
        clean = {"JOBQ_DATA_DIR": str(tmp_path / "data"), "JOBQ_LOG_FORMAT": "console", **env}
        processes.append(Process(list(words), clean))
        return processes[-1]

    yield begin
    for process in processes:
        process.clean_up()
