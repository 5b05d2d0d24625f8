"""Child processes for ``isolate="process"``: what a kill or a timeout can really end.

A child runs one job at a time and is kept for the next. Parent and child talk in length-prefixed msgpack frames over a
socket pair. The child loads the handler's module by name or file, as ``multiprocessing``'s spawn does; the parent's
registry says which, never a payload.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobq.engine.model.outcome import ProcessCrashed, Reported

if TYPE_CHECKING:
    from jobq.engine.task.context import Context
    from jobq.engine.task.task import Task


class Order(msgspec.Struct, frozen=True):
    """Parent to child: run this job. ``spec`` is the encoded row."""

    module: str
    file: str | None
    qualname: str
    queue: str
    id: str
    attempt: int
    worker: str
    fence: int
    spec: bytes


class Word(msgspec.Struct, frozen=True):
    """Child to parent. ``kind``: taken, progress, log, done or error; ``data``: JSON, or the text."""

    kind: str
    data: bytes = b""
    type: str = ""
    message: str = ""
    trace: str | None = None
    final: bool = False
    delay: int | None = None


CLOSING: Final = 2.0
"""Seconds that a child may take to close its dependencies of scope "worker"."""

_encode = msgspec.msgpack.Encoder().encode
_word = msgspec.msgpack.Decoder(Word).decode
_json = msgspec.json.Encoder().encode


def frame(message: msgspec.Struct) -> bytes:
    """A message with its length in front."""
    body = _encode(message)
    return struct.pack("!I", len(body)) + body


class DiedIdle(Exception):
    """The child had died since its last job, and never took this one: no job's fault."""


class Child:
    """One child process and its socket."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.process = process
        self._served = False
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls) -> Child:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "jobq.engine.worker.child", str(theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    stdin=asyncio.subprocess.DEVNULL,
                )  # fmt: skip
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()  # its end ends the child, if there is one already
            raise
        return cls(process, reader, writer)

    async def run(self, order: Order, context: Context) -> msgspec.Raw:
        """Send an order and hear its words until the last.

        :raises Reported: the handler failed.
        :raises ProcessCrashed: the child died.
        :raises DiedIdle: it had died before.
        """
        taken = False
        try:
            self._writer.write(frame(order))
            await self._writer.drain()
            while True:
                (size,) = struct.unpack("!I", await self._reader.readexactly(4))
                word = _word(await self._reader.readexactly(size))
                if word.kind == "taken":
                    taken = True
                elif word.kind == "done":
                    self._served = True
                    return msgspec.Raw(word.data)
                elif word.kind == "error":
                    self._served = True
                    raise Reported(word.type, word.message, word.trace, final=word.final, delay=word.delay)
                elif word.kind == "progress":
                    context.progress(msgspec.Raw(word.data))
                else:
                    context.log(word.data.decode())
        except (asyncio.IncompleteReadError, ConnectionError):
            code = await self.process.wait()
            if self._served and not taken:
                raise DiedIdle from None
            how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
            if code == -signal.SIGKILL:
                how += ", as the system sends it when memory runs out"
            raise ProcessCrashed(f"the child process that ran the handler died: {how}") from None

    async def end(self) -> None:
        """Let an idle one close what it has opened; killed if that takes longer than ``CLOSING``."""
        with contextlib.suppress(TimeoutError, OSError, RuntimeError):
            async with asyncio.timeout(CLOSING):
                self._writer.write_eof()
                await self.process.wait()
        await self.kill()

    async def kill(self) -> None:
        """End it now."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self._writer.close()
        await self.process.wait()


class Children:
    """The child processes of one worker."""

    def __init__(self) -> None:
        self._idle: list[Child] = []
        self._busy: set[Child] = set()

    async def run(self, task: Task[Any, Any], context: Context) -> msgspec.Raw:
        """Run a task's handler in a child. Cancelled: the child is killed.

        :raises Reported: the handler failed.
        :raises ProcessCrashed: the child died.
        """
        module = sys.modules[task.fn.__module__]
        file = getattr(module, "__file__", None)
        order = Order(
            module=task.fn.__module__,
            file=file,
            qualname=task.fn.__qualname__,
            queue=context.queue,
            id=context.id,
            attempt=context.attempt,
            worker=context.worker,
            fence=context.fence,
            spec=_json(context.spec),
        )
        while True:
            child = self._idle.pop() if self._idle else await Child.start()
            self._busy.add(child)
            try:
                result = await child.run(order, context)
            except DiedIdle:
                await child.kill()
            except Reported:
                self._idle.append(child)
                raise
            except BaseException:
                await asyncio.shield(child.kill())
                raise
            else:
                self._idle.append(child)
                return result
            finally:
                self._busy.discard(child)

    async def aclose(self) -> None:
        """End all of them."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(child.end() for child in idle), *(child.kill() for child in self._busy))
