"""A child process that is started with SIGTERM and SIGINT blocked.

A service manager may send its stop signal to every process of a service at any time, even before a new process has
installed its handlers. The signal would end it, and its job would be charged. A blocked signal waits until the
process unblocks it. The mask belongs to a thread and is inherited, so a separate thread starts the process.
``asyncio.create_subprocess_exec`` would need the event loop's thread, and uvloop clears the mask of new processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import threading
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
"""Signals that are blocked in the new process until it unblocks them."""


class Process:
    """A process in its own session. The thread that started it waits for its end."""

    def __init__(self, pid: int, ended: asyncio.Future[int]) -> None:
        self.pid = pid
        self._ended = ended

    @classmethod
    async def start(cls, command: Sequence[str], sock: socket.socket, env: Mapping[str, str]) -> Self:
        """Start it with ``sock`` as a descriptor of the same number. The socket is closed in this process."""
        loop = asyncio.get_running_loop()
        started: asyncio.Future[int] = loop.create_future()
        ended: asyncio.Future[int] = loop.create_future()

        def tell(call: Callable[[], None]) -> None:
            with contextlib.suppress(RuntimeError):  # The loop is closed, so nobody waits any more.
                loop.call_soon_threadsafe(call)

        def resolve(future: asyncio.Future[int], value: int) -> None:
            if not future.done():
                future.set_result(value)

        def refuse(error: Exception) -> None:
            if not started.done():
                started.set_exception(error)

        def start_and_wait() -> None:
            try:
                with sock:
                    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
                    popen = subprocess.Popen(  # noqa: S603 - every argument is ours
                        command,
                        pass_fds=[sock.fileno()],
                        env=env,
                        stdin=subprocess.DEVNULL,
                        start_new_session=True,
                    )
            except Exception as error:  # noqa: BLE001 - raised in the caller that waits for the process
                failure = error
                tell(lambda: refuse(failure))
                return
            tell(lambda: resolve(started, popen.pid))
            code = popen.wait()
            tell(lambda: resolve(ended, code))

        threading.Thread(target=start_and_wait, name="jobq-child", daemon=True).start()
        return cls(await started, ended)

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal. None while the process runs."""
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        """Wait for its end."""
        await asyncio.wait([self._ended])  # A plain await would cancel the future together with the caller.
        return self._ended.result()


def unblock_stop_signals() -> None:
    """Call it in the new process when its handlers are installed. Programs that it starts inherit the mask too."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
