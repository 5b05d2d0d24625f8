"""Child processes for ``isolate="process"``. A kill or a timeout really stops them.

A child runs one job at a time and is kept for the next. Worker and child communicate over a socket pair
(child_messages.py). The child loads the handler's module by name or file, as ``multiprocessing``'s spawn does. The
name comes from the worker's registry and never from a payload.

A child has its own session. So Ctrl-C in a terminal does not reach it, and ending its process group also ends the
programs that its handlers started. A program that leaves the group on purpose (a daemon) is not reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobq.engine.log import get_logger
from jobq.engine.task.context import lender
from jobq.engine.worker.child_errors import rebuild
from jobq.engine.worker.child_logging import levels, write_received
from jobq.engine.worker.child_messages import (
    CLOSING,
    HEAD,
    MESSAGE_MAX,
    Message,
    Request,
    WaitAnswer,
    decode_message,
    decode_wait,
    frame,
)
from jobq.engine.worker.process import Process
from jobq.errors import ProcessCrashed, TooManyWaiting

if TYPE_CHECKING:
    from jobq.engine.task.context import Context, Lender
    from jobq.engine.task.task import Task
    from jobq.engine.worker.child_messages import Wait

log = get_logger("jobq.worker")

STARTING: Final = 60.0
"""Seconds from the start of a child process until it takes its first job. The import of the handler's module comes
later. It is part of the run, and the job's timeout bounds it."""
ENDING: Final = 1.0
"""Seconds to wait for a child's end after its connection has ended. A child that lives on is killed, because it can
neither report its job's outcome nor get another job."""

_json = msgspec.json.Encoder().encode


def _say(context: Context, message: Message) -> None:
    """What the handler says of its run."""
    if message.kind == "progress":
        context.progress(msgspec.Raw(message.data))
    elif message.kind == "log":
        context.log(message.data.decode())
    else:
        unit, _, amount = message.data.decode().partition(" ")
        context.spent(unit, int(amount))


class NeverTakenError(Exception):
    """The child died between two jobs, so this job is not the cause."""


class Child:
    """One child process and its socket."""

    def __init__(
        self,
        process: Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        sock: socket.socket,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._socket = sock
        self._requests = 0
        self._leaving = False
        self._ended = asyncio.create_task(self._wait_for_end(), name="jobq-child")

    @classmethod
    async def start(cls) -> Child:
        ours, theirs = socket.socketpair()
        # The streams own the socket. This second descriptor is needed to shut it down.
        spare = ours.dup()
        try:
            process = await Process.start(
                [sys.executable, "-m", "jobq.engine.worker.child", str(theirs.fileno())],
                theirs,
                os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            # A child that has already started ends with its connection.
            spare.close()
            ours.close()
            raise
        return cls(process, reader, writer, spare)

    @property
    def alive(self) -> bool:
        """Whether it can take another job."""
        return self._process.returncode is None and not self._leaving

    async def _wait_for_end(self) -> None:
        """Detect the end of the process by the process itself.

        The connection may stay open, because copies of the process that a handler forked hold it too. After the
        shutdown ``run`` reads everything that the child sent before its end, and then the end of the stream.
        """
        await self._process.wait()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._kill_group()
        self._socket.close()

    def _kill_group(self) -> None:
        # The system does not reuse the group's number while it has members. macOS returns EPERM if it has only zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def run(self, task: Task[Any, Any], context: Context) -> Message:
        """Let the child run a job. Returns its last message, "done" or "error".

        :raises ProcessCrashed: the child died, or sent invalid messages.
        :raises NeverTakenError: the child died before it took the job.
        """
        self._requests += 1
        number = self._requests
        taken = False
        worker = lender.get(None)
        awaited: list[str] = []
        try:
            async with asyncio.timeout(STARTING) as starting:
                self._writer.write(frame(_request(number, task, context)))
                await self._writer.drain()
                while True:
                    message = await self._read()
                    if message.pid != self._process.pid:
                        continue  # This message is from a copy of the child that a handler forked.
                    if message.kind in ("record", "event"):
                        write_received(message.kind, message.data)
                    elif message.number != number:
                        # This message is from a thread or task that an earlier job left behind.
                        if message.kind == "wait":
                            self._writer.write(frame(WaitAnswer(decode_wait(message.data).ask)))
                    elif message.kind == "taken":
                        taken = True
                        starting.reschedule(None)
                    elif message.kind in ("progress", "log", "spent"):
                        _say(context, message)
                    elif message.kind == "wait":
                        self._writer.write(frame(_begin_wait(worker, context, decode_wait(message.data), awaited)))
                    elif message.kind == "waited":
                        if worker is not None and (job_id := message.data.decode()) in awaited:
                            awaited.remove(job_id)
                            worker.end_wait(context, job_id)
                    else:
                        self._leaving = message.leaving
                        return message
        except (asyncio.IncompleteReadError, ConnectionError):
            how = await self._how_it_ended()
            if number > 1 and not taken:
                raise NeverTakenError from None
            raise ProcessCrashed(f"the child process that ran the handler died: {how}") from None
        except msgspec.MsgspecError:
            raise ProcessCrashed(
                "the child process that ran the handler was killed: something else than jobq wrote into its connection"
            ) from None
        except TimeoutError:
            raise ProcessCrashed(f"the child process did not start within {STARTING:.0f} s and was killed") from None
        finally:
            if worker is not None:
                for job_id in awaited:
                    worker.end_wait(context, job_id)

    async def _read(self) -> Message:
        """The next message.

        :raises msgspec.MsgspecError: the bytes are not a message.
        """
        (size,) = HEAD.unpack(await self._reader.readexactly(HEAD.size))
        if size > MESSAGE_MAX:
            raise msgspec.DecodeError(f"a message of {size} bytes")
        return decode_message(await self._reader.readexactly(size))

    async def _how_it_ended(self) -> str:
        await asyncio.wait([self._ended], timeout=ENDING)
        code = self._process.returncode
        if code is None:
            self._kill_group()
            return "it closed its connection to the worker and was killed"
        if code >= 0:
            return f"exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = "unknown"
        how = f"signal {-code} ({name})"
        if code == -signal.SIGKILL:
            how += ", as the system sends it when memory runs out"
        return how

    async def end(self) -> None:
        """Let an idle child close its dependencies. It is killed if that takes longer than ``CLOSING``."""
        with contextlib.suppress(TimeoutError, OSError, RuntimeError):
            async with asyncio.timeout(CLOSING):
                self._writer.write_eof()
                await self._process.wait()
        await self.kill()

    async def kill(self) -> None:
        """Kill the child now, with the programs that it started."""
        if self._process.returncode is None:
            self._kill_group()
        self._writer.close()
        await self._ended


def _begin_wait(worker: Lender | None, context: Context, wait: Wait, awaited: list[str]) -> WaitAnswer:
    """The handler wants to wait for a job. If it may, the job is added to ``awaited``."""
    if worker is not None:
        try:
            worker.begin_wait(context, wait.queue, wait.job_id)
        except TooManyWaiting as error:
            return WaitAnswer(wait.ask, error.others)
        awaited.append(wait.job_id)
    return WaitAnswer(wait.ask)


def _request(number: int, task: Task[Any, Any], context: Context) -> Request:
    module = sys.modules[task.fn.__module__]
    return Request(
        number=number,
        module=task.fn.__module__,
        file=getattr(module, "__file__", None),
        qualname=task.fn.__qualname__,
        queue=context.queue,
        id=context.id,
        attempt=context.attempt,
        worker=context.worker,
        fence=context.fence,
        spec=_json(context.spec),
        levels=levels(),
        snoozes=context.snoozes,
        rate_limited=context.rate_limited,
    )


class Children:
    """The child processes of one worker."""

    def __init__(self) -> None:
        self._idle: list[Child] = []
        self._busy: set[Child] = set()

    async def run(self, task: Task[Any, Any], context: Context) -> msgspec.Raw:
        """Run a task's handler in a child. Returns its encoded result. A cancellation kills the child.

        :raises Exception: the handler's exception, or a ``RemoteError`` that describes it.
        :raises ProcessCrashed: the child died.
        """
        while True:
            child = await self._take()
            self._busy.add(child)
            try:
                message = await child.run(task, context)
            except NeverTakenError:
                await child.kill()
                continue
            except BaseException:
                await asyncio.shield(child.kill())
                raise
            finally:
                self._busy.discard(child)
            if child.alive:
                self._idle.append(child)
            else:
                log.warning("The child process could not load the handler and ends; the next job gets a new one")
                await asyncio.shield(child.kill())
            if message.error is not None:
                raise rebuild(message.error)
            return msgspec.Raw(message.data)

    async def _take(self) -> Child:
        while self._idle:
            child = self._idle.pop()
            if child.alive:
                return child
            await child.kill()
        return await Child.start()

    async def aclose(self) -> None:
        """End all children."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(child.end() for child in idle), *(child.kill() for child in self._busy))
