"""The keeper of an embedded server: a process of its own that runs the server while anyone uses it.

Run as a plain file, with nothing but the standard library (20 ms, 10 MB), never imported:

    python -I -S keeper.py LOCK_FD FIRST_FD SOCKETS LOGFILE server-binary [options ...]

Each user holds one connection to the door, the unix socket SOCKETS.keeper, for as long as it needs the
server, which listens on SOCKETS.server. The starter's own connection arrives as FIRST_FD, so that there is
no moment without a user. On a connection is said:

    keeper -> user    ready              the server answers PING (said again if it died and is back)
                      failed: <why>      it does not start; the keeper ends
    user -> keeper    (end of file)      done; the kernel says it for a user that was killed
    keeper -> user    stays              other users are left
                      stopped            that was the last one: the server has written its data and is gone
    keeper -> user    (end of file)

So no signal and no crash of a user leaves a server behind, and no user takes it away from another.
A server that dies is started again. LOCK_FD is an flock on the data directory, inherited by the server too:
never do two servers write the same files. On Linux a killed keeper takes its server along (PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

STOP_WITHIN = 10.0
"""Seconds that the server gets to flush its data after SIGTERM, before SIGKILL."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(4 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
"""For a server over glibc's allocator, as the one of the extra is. Else a large table may come from its heap, zeroed in
the one call that makes a set grow: 28 ms for the 32 MB of two million jobs, 8 ms from the kernel."""


class Keeper:
    """One server, its users and its door."""

    def __init__(self, lock: int, first: int, sockets: str, log: str, command: list[str]) -> None:
        self.lock = lock
        self.door_path = Path(f"{sockets}.keeper")
        self.server_path = Path(f"{sockets}.server")
        self.log = Path(log)
        self.command = command
        self.users: set[socket.socket] = set()
        self.selector = selectors.DefaultSelector()
        self.server: subprocess.Popen[bytes] | None = None
        self.ready = False
        self.was_ready = False
        self.signalled = False
        self._welcome(socket.socket(fileno=first))

    def run(self) -> None:
        """Keep the server until its last user left or a SIGTERM came."""
        self._listen()
        self._watch_signals()
        try:
            self._start()
            leaver = self._serve()
        except OSError as error:
            self._tell_all(f"failed: {error}")
            leaver = None
        self._close_door()
        self._stop()
        os.close(self.lock)  # before the answer: who hears "stopped" may start the next server
        if leaver:
            tell(leaver, "stopped")

    def _serve(self) -> socket.socket | None:
        while True:
            for key, _ in self.selector.select(None if self.ready else 0.01):
                leaver = key.data(key.fileobj)
                if leaver and not self.users:
                    return leaver
                if leaver:
                    tell(leaver, "stays")
                    leaver.close()
            if self.signalled or not self._server_stands():
                return None

    def _server_stands(self) -> bool:
        """Greet the users of a server that became ready; start the server again if it died."""
        assert self.server
        if self.server.poll() is not None:
            if not self.was_ready:
                self._tell_all(f"failed: exit code {self.server.returncode}: {self._last_words()}")
                return False
            time.sleep(0.2)  # a server that dies at once must not make this a busy loop
            self._start()
        elif not self.ready and answers(self.server_path):
            self.ready = self.was_ready = True
            self._tell_all("ready")
        return True

    def _start(self) -> None:
        self.ready = False
        self.server = subprocess.Popen(  # noqa: S603 - the starter's own command
            self.command,
            env={**ALLOCATOR, **os.environ},
            pass_fds=[self.lock],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - no threads here
        )

    def _stop(self) -> None:
        if self.server is None or self.server.poll() is not None:
            return
        self.server.terminate()
        try:
            self.server.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()

    def _listen(self) -> None:
        self.door_path.unlink(missing_ok=True)  # a stale one: we hold the lock
        self.door = socket.socket(socket.AF_UNIX)
        self.door.bind(str(self.door_path))
        self.door.listen(64)
        self.selector.register(self.door, selectors.EVENT_READ, self._accept)

    def _close_door(self) -> None:
        # whoever still waits in the backlog reads the end of file and looks for the next keeper
        self.door.close()
        self.door_path.unlink(missing_ok=True)

    def _watch_signals(self) -> None:
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno())
        self._wakeup = (reader, writer)
        self.selector.register(reader, selectors.EVENT_READ, self._woken)
        signal.signal(signal.SIGCHLD, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _on_signal(self, number: int, _: object) -> None:
        self.signalled = self.signalled or number == signal.SIGTERM

    def _woken(self, reader: socket.socket) -> None:
        reader.recv(64)

    def _accept(self, _: object) -> None:
        user, _address = self.door.accept()
        self._welcome(user)
        if self.ready:
            tell(user, "ready")

    def _welcome(self, user: socket.socket) -> None:
        self.users.add(user)
        self.selector.register(user, selectors.EVENT_READ, self._heard)

    def _heard(self, user: socket.socket) -> socket.socket | None:
        with contextlib.suppress(ConnectionError):
            if user.recv(64):
                return None
        self.selector.unregister(user)
        self.users.discard(user)
        return user

    def _tell_all(self, words: str) -> None:
        for user in self.users:
            tell(user, words)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            return " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-3:])
        return "it wrote no log"


def tell(user: socket.socket, words: str) -> None:
    """Send one line; a user that is gone is noticed by its end of file."""
    with contextlib.suppress(OSError):
        user.sendall(words.encode() + b"\n")


def answers(path: Path) -> bool:
    """Whether the server on this unix socket is through with loading its data."""
    with socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
        server.settimeout(1)
        server.connect(str(path))
        server.sendall(b"PING\r\n")
        return server.recv(64).startswith(b"+PONG")
    return False


def die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the keeper dies: the server then writes its data and ends."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def main() -> None:
    """Detach from the starter, then keep."""
    if os.fork():
        os._exit(0)  # the keeper is nobody's child: no zombie in the starter, however long it lives
    os.umask(0o077)  # the data is its owner's alone, whatever the mode of the directory that was given
    lock, first, sockets, log, *command = sys.argv[1:]
    Keeper(int(lock), int(first), sockets, log, command).run()


if __name__ == "__main__":
    main()
