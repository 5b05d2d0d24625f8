"""Text from clients reaches the terminal as text only, in every command, as text and as JSON."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

import jobq.cli
from jobq import Context, JobFailed, Queue, Worker, inject
from jobq.http.serve import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Process, Said

HOSTILE = {
    "escape": "\x1b]0;title\x07\x1b[2J",
    "C1": "\x9b31m\x85",
    "bidi": "\u202eabc\u2066\u200f",
    "lines": "a\r\nattempt 9 failed at 2000-01-01 00:00:00.000: Forged\nQUEUE  forged",
    "separators": "\u2028\u2029\x0b\x0c\x1c",
    "invisible": "\u200b\ufeff\u00ad\U000e0041",
    "delete": "\x7f\x08\x08",
    "surrogate": "\ud83d",
}


async def _fill(text: str) -> tuple[str, str]:
    """A completed and a failed job that contain the text in every place that a client or a handler can write."""
    queue = Queue("tasks")
    stored = text.encode(errors="backslashreplace").decode()

    @queue.task(name="echo", attempts=1)
    async def echo(word: str, ctx: Context = inject) -> str:
        ctx.log(stored)
        ctx.progress({stored: stored})
        return word

    @queue.task(name="broken", attempts=1)
    async def broken(word: str) -> None:
        raise ValueError(text)

    async with queue, Worker(queue) as worker:
        worker.start()
        options = {"key": stored.replace("\n", " "), "metadata": {stored: stored}}
        with contextlib.suppress(ValueError):  # A key with control characters may be refused.
            await queue.enqueue("echo", {"word": stored}, delay=3600, **options)
        good = await echo.options(metadata={stored: stored}).enqueue(word=stored)
        bad = await broken.enqueue(word=stored)
        assert await good.result(timeout=20) == stored
        with pytest.raises(JobFailed):
            await bad.result(timeout=20)
        return f"tasks:{good.id}", f"tasks:{bad.id}"


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_every_command_shows_text_only(jobq: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, text: str):
    good, bad = asyncio.run(_fill(text))
    monkeypatch.setattr("jobq.cli.top.on_stop_signals", lambda stop: stop())
    commands = [
        ["show", good],
        ["show", bad],
        ["logs", good],
        ["ls"],
        ["stats"],
        ["workers"],
        ["top"],
        ["show", text],
        ["ls", "--queue", text],
        ["kill", f"tasks:{text}"],
        ["pause", text],
        ["enqueue", text, text],
        ["enqueue", "echo", json.dumps({"word": text}), "--queue", "tasks"],
        ["key", text],
    ]
    for words in commands:
        said = jobq(*words)
        for stream in (said.out, said.err):
            assert stream.replace("\n", "").isprintable(), words
            assert "\nQUEUE  forged" not in stream
            assert "\nattempt 9" not in stream
    for words in (["show", good], ["show", bad], ["logs", good], ["ls"]):
        said = jobq(*words, "--json")
        assert all(line.isprintable() for line in said.out.splitlines())
        assert said.json, "each line is a document"


def test_only_one_module_writes():
    """``render.say``, ``say_json`` and ``complain`` make all text printable. A bare ``print`` would not."""
    for path in Path(jobq.cli.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name != "print", f"{path.name} line {node.lineno}: use render.say"
                if path.name != "render.py":
                    assert not name.endswith((".stdout.write", ".stderr.write")), f"{path.name} line {node.lineno}"


def test_text_that_the_terminal_cannot_encode_is_escaped(
    jobq: Callable[..., Said], start: Callable[..., Process], redis_url: str
):
    job = jobq("enqueue", "x", "--create", "--queue", "tasks", "--metadata", '{"name": "Zoë"}').out.strip()
    process = start("show", job, JOBQ_REDIS_URL=redis_url, PYTHONIOENCODING="ascii")
    process.wait_line(r"Zo\xeb")
    assert process.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_dev_can_be_stopped_when_nobody_reads_its_output(tmp_path: Path, tasks: str, number: int):
    """The same as ``jobq dev TARGET 2>&1 | head``."""
    env = {**os.environ, "JOBQ_DATA_DIR": str(tmp_path / "data"), "PYTHONUNBUFFERED": "1"}
    words = [sys.executable, "-m", "jobq", "dev", tasks, "--port", str(free_port()), "--processes", "1"]
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as dev:
        assert dev.stdout
        try:
            for line in dev.stdout:
                if "worker started" in line:
                    break
            children = psutil.Process(dev.pid).children(recursive=True)
            dev.stdout.close()
            dev.send_signal(number)
            assert dev.wait(20) == 0
            assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        finally:
            dev.kill()
