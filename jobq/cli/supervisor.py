"""Runs N processes of one command. It restarts those that die, stops all of them, and leaves none behind.

- A process that ends by itself is started again, after a delay that doubles up to 30 s while it keeps dying.
- A restart does not help against some errors. Exit code 2 means that a process was used wrongly (usage, target,
  settings), exit code 78 that Redis refused it (password, rights, layout). The supervisor then stops the other
  processes and ends with 2 or 1.
- ``stop()`` sends SIGTERM: graceful. A second ``stop()`` sends SIGQUIT: at once. The signals differ because systemd and
  others send SIGTERM to every process of a service. A process then gets it twice, and both mean one graceful stop.
- A process that has not ended in time gets SIGKILL, and so do the processes that it started.
- If the supervisor is killed, its processes end too. Each has the read end of a pipe (``LIFELINE`` is the number of its
  descriptor). Nobody writes to the pipe; its end of file means that the supervisor is gone.
- ``restart()`` replaces the processes gracefully, without a delay.
- The processes run in sessions of their own: the terminal's Ctrl-C reaches them once, through the supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from jobq.engine.log import get_logger
from jobq.settings import LIFELINE, NUMBER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CANNOT_RUN = 2
"""Exit code of a process that was used wrongly: usage, target or settings."""
REFUSED = 78
"""Exit code of a process that Redis refuses, or that has no server. It is EX_CONFIG of sysexits.h."""
FATAL = {CANNOT_RUN: 2, REFUSED: 1}
"""Exit codes after which a restart would not help, with the exit code of the supervisor."""
DELAY_MIN = 0.1
DELAY_MAX = 30.0
"""Seconds before a process that died is started again."""
STEADY_AFTER = 10.0
"""Seconds that a process must have run for the delay to start again from the beginning."""
AT_ONCE_WITHIN = 5.0
"""Seconds that a process gets after the second stop, before SIGKILL."""

log = get_logger(__name__)


class Supervisor:
    """``processes`` copies of ``command``. ``grace``: seconds from ``stop()`` to SIGKILL.

    ``name`` is for the log. ``env`` is added to our own environment. ``once``: a process that ends with 0 has done its
    work and is not started again. ``restarts``: ``restart`` will be called when the code changes, so a process that
    cannot run waits for that, and the others are not stopped.
    """

    def __init__(
        self,
        command: Sequence[str],
        processes: int,
        *,
        name: str = "process",
        env: Mapping[str, str] | None = None,
        grace: float = 30.0,
        once: bool = False,
        restarts: bool = False,
    ) -> None:
        self._command = list(command)
        self._processes = processes
        self._name = name
        self._env = {**os.environ, **(env or {})}
        self._grace = grace
        self._once = once
        self._restarts = restarts
        self._stops = 0
        self._stopping = False
        self._news = asyncio.Event()
        """Set by the next ``stop`` or ``restart``."""
        self._replaced: set[asyncio.subprocess.Process] = set()
        """Processes that ``restart`` has told to end."""
        self._running: set[asyncio.subprocess.Process] = set()
        self._deadlines: list[tuple[float, asyncio.TimerHandle]] = []
        self._code = 0

    async def run(self) -> int:
        """Keep the processes running until ``stop()``.

        Returns 0 after a stop or when all have done their work, and another exit code if a process cannot run.
        Cancellation kills the processes.
        """
        lifeline, ours = os.pipe()
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(1, self._processes + 1):
                    group.create_task(self._keep(number, lifeline))
        finally:
            os.close(lifeline)
            os.close(ours)
            for _, deadline in self._deadlines:
                deadline.cancel()
        return self._code

    def stop(self) -> None:
        """End the processes gracefully, at the second call at once. Call it on the event loop. It never blocks."""
        self._stops += 1
        self._stopping = True
        self._tell()
        if self._stops <= 2:
            within = self._grace if self._stops == 1 else AT_ONCE_WITHIN
            self._end(set(self._running), signal.SIGTERM if self._stops == 1 else signal.SIGQUIT, within)

    def restart(self) -> None:
        """End the processes gracefully and start new ones, also in place of those that could not run. Call it on the
        event loop."""
        if self._stopping:
            return
        self._tell()
        old = self._running - self._replaced
        self._replaced |= old
        self._end(old, signal.SIGTERM, self._grace)

    @property
    def pids(self) -> list[int]:
        """Ids of the processes that run now."""
        return sorted(process.pid for process in self._running)

    async def _keep(self, number: int, lifeline: int) -> None:
        """Keep one of the N processes running: start it, wait for its end, start it again."""
        delay = DELAY_MIN
        while not self._stopping:
            began, news = time.monotonic(), self._news
            code, replaced = await self._run_once(number, lifeline, news)
            if self._stopping or (self._once and code == 0 and not replaced):
                return
            if replaced:
                delay = DELAY_MIN
                continue
            if code in FATAL and self._restarts:
                log.error(f"{self._name} cannot run; it is started again when the code changes", reason=describe(code))
                await news.wait()
                continue
            if code in FATAL:
                log.error(f"{self._name} cannot run, and a restart would not help: stopping", reason=describe(code))
                self._code = FATAL[code]
                self.stop()
                return
            if time.monotonic() - began > STEADY_AFTER:
                delay = DELAY_MIN
            log.warning(f"{self._name} died", number=number, reason=describe(code), restart_in_s=delay)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), delay)
            delay = min(delay * 2, DELAY_MAX)

    async def _run_once(self, number: int, lifeline: int, news: asyncio.Event) -> tuple[int, bool]:
        """Start a process and wait for its end. Returns its exit code (negative for a signal), and whether it was
        replaced."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            env={**self._env, LIFELINE: str(lifeline), NUMBER: str(number)},
            pass_fds=[lifeline],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._running.add(process)
        try:
            if news.is_set():  # stop() or restart() was called while it was being started.
                self._replaced.add(process)
                self._end({process}, signal.SIGTERM, self._grace)
            code = await process.wait()
            return code, process in self._replaced
        finally:
            kill_session(process.pid)  # This also kills the processes that it started, if it is itself dead.
            await process.wait()
            self._running.discard(process)
            self._replaced.discard(process)

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _end(self, processes: set[asyncio.subprocess.Process], number: signal.Signals, within: float) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
        loop = asyncio.get_running_loop()
        # Timers of uvloop that are due within half a ms cannot tell their time.
        self._deadlines = [pair for pair in self._deadlines if pair[0] > loop.time()]
        self._deadlines.append((loop.time() + within, loop.call_later(within, self._kill, processes)))

    def _kill(self, processes: set[asyncio.subprocess.Process]) -> None:
        for process in processes & self._running:
            log.warning(f"{self._name} did not end in time; killing it", pid=process.pid)
            kill_session(process.pid)


def kill_session(pid: int) -> None:
    """Send SIGKILL to a process that leads a session, and to all processes that it started there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def describe(code: int) -> str:
    """A description of an exit code: "exit code 1" or "signal SIGKILL"."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def follow_supervisor(*, grace: float) -> bool:
    """End this process when its supervisor is gone. Returns False if it has no supervisor.

    It sends SIGTERM to this process, and SIGKILL to its whole session ``grace`` seconds later.
    """
    lifeline = os.environ.pop(LIFELINE, None)  # Our own children must not inherit it.
    if lifeline is None:
        return False
    threading.Thread(target=_follow, args=(int(lifeline), grace), name="jobq-lifeline", daemon=True).start()
    return True


def _follow(lifeline: int, grace: float) -> None:
    os.read(lifeline, 1)  # Nobody writes to it, so this returns at the end of file.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    kill_session(os.getpid())
