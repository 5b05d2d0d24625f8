"""The supervisor with real processes and real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from jobq.cli import supervisor as module
from jobq.cli.supervisor import CANNOT_RUN, REFUSED, Supervisor, describe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

POLITE = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
open(sys.argv[1], "a").write(f"{os.getpid()}\\n")
signal.pause()
signal.pause()
"""
SIGNALLED = """
import os, signal, sys

def say(number, _):
    open(sys.argv[1], "a").write(f"{int(number)}\\n")
    if number == signal.SIGQUIT:
        sys.exit(0)

signal.signal(signal.SIGTERM, say)
signal.signal(signal.SIGQUIT, say)
open(sys.argv[1], "a").write(f"{os.getpid()}\\n")
while True:
    signal.pause()
"""
STUBBORN = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
open(sys.argv[1], "a").write(f"{os.getpid()}\\n{child.pid}\\n")
signal.pause()
"""
SUPERVISE = """
import asyncio, sys
from jobq.cli.supervisor import Supervisor
asyncio.run(Supervisor([sys.executable, "-c", sys.argv[2], sys.argv[1]], 2).run())
"""
FOLLOWER = """
import os, signal, sys
from jobq.cli.supervisor import follow_supervisor
assert follow_supervisor(grace=0.2)
assert not follow_supervisor(grace=0.2), "the descriptor is taken out of the environment"
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "a").write(f"{os.getpid()}\\n")
while True:
    signal.pause()
"""


async def until(condition: Callable[[], bool], what: str, within: float = 15.0) -> None:
    """Check repeatedly until it holds. Other processes send us no events."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def command(code: str, file: Path) -> list[str]:
    return [sys.executable, "-c", code, str(file)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pids"


async def test_a_supervisor_runs_and_stops_the_given_number_of_processes(file: Path):
    supervisor = Supervisor(command(POLITE, file), 3)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: len(pids(file)) == 3, "all run")
    assert sorted(pids(file)) == supervisor.pids
    supervisor.stop()
    assert await running == 0
    assert not any(map(alive, pids(file)))


async def test_a_killed_process_is_replaced(file: Path):
    supervisor = Supervisor(command(POLITE, file), 2)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: len(pids(file)) == 2, "both run")
    victim = pids(file)[0]
    os.kill(victim, signal.SIGKILL)
    await until(lambda: len(pids(file)) == 3, "the replacement runs")
    assert victim not in supervisor.pids
    assert len(supervisor.pids) == 2
    supervisor.stop()
    assert await running == 0


async def test_the_delay_grows_while_it_keeps_dying(file: Path, monkeypatch):
    delays: list[float] = []
    monkeypatch.setattr(module.log, "warning", lambda *_, restart_in_s, **__: delays.append(restart_in_s))
    monkeypatch.setattr(module, "DELAY_MIN", 0.01)
    monkeypatch.setattr(module, "DELAY_MAX", 0.05)
    supervisor = Supervisor([sys.executable, "-I", "-S", "-c", "raise SystemExit(1)"], 1)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: len(delays) >= 5, "it died five times")
    supervisor.stop()
    assert await running == 0
    assert delays[:5] == [0.01, 0.02, 0.04, 0.05, 0.05]


@pytest.mark.parametrize(("code", "answer"), [(CANNOT_RUN, 2), (REFUSED, 1)])
async def test_a_process_that_cannot_run_is_not_started_again(file: Path, code: int, answer: int):
    words = command(f"raise SystemExit({code})", file)
    assert await asyncio.wait_for(Supervisor(words, 2).run(), 15) == answer


async def test_a_restart_replaces_each_process_gracefully_and_at_once(file: Path, monkeypatch):
    monkeypatch.setattr(module, "DELAY_MIN", 3600.0)
    supervisor = Supervisor(command(POLITE, file), 2, restarts=True)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: len(pids(file)) == 2, "both run")
    first = set(pids(file))
    supervisor.restart()
    supervisor.restart()
    await until(lambda: len(pids(file)) == 4, "both are replaced")
    assert not first & set(supervisor.pids)
    supervisor.stop()
    supervisor.restart()
    assert await running == 0
    assert len(pids(file)) == 4


async def test_a_process_that_does_not_end_for_a_restart_is_killed(file: Path):
    supervisor = Supervisor(command(STUBBORN, file), 1, grace=0.1, restarts=True)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: len(pids(file)) == 2, "process and child run")
    supervisor.restart()
    await until(lambda: len(pids(file)) == 4, "the replacement runs")
    assert not any(map(alive, pids(file)[:2]))
    supervisor.stop()
    assert await running == 0


async def test_a_process_that_cannot_run_waits_for_a_restart(file: Path, monkeypatch):
    """A file is saved with an error, which is corrected a minute later."""
    said: list[str] = []
    monkeypatch.setattr(module.log, "error", lambda text, **_: said.append(text))
    code = f"import os, sys\nif not os.path.exists(sys.argv[1] + '.ok'): sys.exit({CANNOT_RUN})\n" + POLITE
    supervisor = Supervisor(command(code, file), 1, restarts=True)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: bool(said), "it cannot run")
    file.with_name(file.name + ".ok").touch()
    supervisor.restart()
    await until(lambda: len(pids(file)) == 1, "it runs")
    supervisor.stop()
    assert await running == 0


async def test_a_process_that_has_done_its_work_is_not_started_again(file: Path):
    """The first start of each process fails, and the second one succeeds."""
    code = "import os, sys\nopen(sys.argv[1], 'a').write('0\\n')\nsys.exit(len(open(sys.argv[1]).readlines()) < 3)"
    assert await asyncio.wait_for(Supervisor(command(code, file), 1, once=True).run(), 15) == 0
    assert len(pids(file)) == 3


async def test_a_stop_is_sigterm_and_a_second_one_another_signal(file: Path):
    """The system may send SIGTERM as well, so a second SIGTERM must not mean "at once"."""
    supervisor = Supervisor(command(SIGNALLED, file), 1, grace=3600)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: len(pids(file)) == 1, "it runs")
    supervisor.stop()
    await until(lambda: pids(file)[1:] == [signal.SIGTERM], "SIGTERM")
    os.kill(pids(file)[0], signal.SIGTERM)
    await until(lambda: pids(file)[1:] == [signal.SIGTERM] * 2, "the system's SIGTERM")
    supervisor.stop()
    assert await asyncio.wait_for(running, 15) == 0
    assert pids(file)[1:] == [signal.SIGTERM, signal.SIGTERM, signal.SIGQUIT]


async def test_processes_that_do_not_stop_are_killed_with_their_children(file: Path):
    supervisor = Supervisor(command(STUBBORN, file), 1, grace=0.1)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: len(pids(file)) == 2, "process and child run")
    supervisor.stop()
    assert await running == 0
    await until(lambda: not any(map(alive, pids(file))), "none is left")


async def test_a_second_stop_shortens_the_wait(file: Path, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE_WITHIN", 0.1)
    supervisor = Supervisor(command(STUBBORN, file), 1, grace=3600)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: len(pids(file)) == 2, "process and child run")
    supervisor.stop()
    supervisor.stop()
    assert await asyncio.wait_for(running, 15) == 0


async def test_cancelling_leaves_nothing(file: Path):
    running = asyncio.create_task(Supervisor(command(STUBBORN, file), 1).run())
    await until(lambda: len(pids(file)) == 2, "process and child run")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: not any(map(alive, pids(file))), "none is left")


async def test_a_killed_supervisor_takes_its_processes_along(file: Path):
    supervising = subprocess.Popen([sys.executable, "-c", SUPERVISE, str(file), FOLLOWER])  # noqa: ASYNC220
    await until(lambda: len(pids(file)) == 2, "both run")
    supervising.kill()
    supervising.wait()
    await until(lambda: not any(map(alive, pids(file))), "they follow, even those that ignore SIGTERM")


@pytest.mark.parametrize(("code", "words"), [(1, "exit code 1"), (-9, "signal SIGKILL"), (-200, "signal 200")])
def test_exit_codes_are_described(code: int, words: str):
    assert describe(code) == words
