"""The child process's side of children.py: ``python -m jobq.engine.worker.child FD``."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import importlib.util
import inspect
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from contextlib import AsyncExitStack
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import msgspec
from structlog.contextvars import bind_contextvars

from jobq.engine.model.outcome import encode_result
from jobq.engine.model.unreadable import read_spec
from jobq.engine.task.context import Context, current, lender
from jobq.engine.task.inject import Injector, Resources
from jobq.engine.task.signature import Signature
from jobq.engine.task.task import Task
from jobq.engine.worker.child_errors import MAIN, pack
from jobq.engine.worker.child_logging import install, set_levels
from jobq.engine.worker.child_messages import (
    CLOSING,
    HEAD,
    MESSAGE_MAX,
    Message,
    Request,
    Wait,
    WaitAnswer,
    decode_from_worker,
    encode_wait,
    frame,
)
from jobq.engine.worker.forks import restore_signals_in_forks
from jobq.engine.worker.process import STOP_SIGNALS, unblock_stop_signals
from jobq.errors import InvalidPayload, InvalidResult, TooManyWaiting
from jobq.redact import misfit

if TYPE_CHECKING:
    from types import FrameType, ModuleType

RESULT_MAX: Final = MESSAGE_MAX - 1024
"""Bytes of a result that fit into a message."""
LOG_LINE_MAX: Final = 65_536
"""Characters of a log line that are sent. The worker keeps fewer."""


def load(module: str, file: str | None) -> ModuleType:
    """The module of a handler: by its name if that leads to the same file, else from the file itself."""
    if module in sys.modules and module != "__main__":
        return sys.modules[module]
    if file is not None:
        name = MAIN if module == "__main__" else module
        if name in sys.modules:
            return sys.modules[name]
        try:
            found = importlib.util.find_spec(module) if module != "__main__" else None
        except (ImportError, ValueError):
            found = None
        if found is None or not found.origin or Path(found.origin).resolve() != Path(file).resolve():
            spec = importlib.util.spec_from_file_location(name, file)
            assert spec is not None
            assert spec.loader is not None
            loaded = importlib.util.module_from_spec(spec)
            sys.modules[name] = loaded
            try:
                spec.loader.exec_module(loaded)
            except BaseException:
                del sys.modules[name]
                raise
            return loaded
    return importlib.import_module(module)


class Channel:
    """The child's end of the connection, for any thread.

    It sends only for the current request. A thread or task of an earlier job may still log, and its lines must not
    be written to the current job.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._number = 0
        self._asks = 0
        self._answers: dict[int, queue.SimpleQueue[int | None]] = {}

    def begin(self, number: int) -> None:
        """A request begins."""
        with self._lock:
            self._number = number
            self._send("taken", b"")

    def finish(self, message: Message) -> None:
        """Send the last message of the current request. It is sent even if handlers use the channel meanwhile."""
        with self._lock:
            self._number = 0
            self._sock.sendall(frame(message))

    def _send(self, kind: Any, data: bytes) -> None:
        self._sock.sendall(frame(Message(kind, self._number, self._pid, data)))

    def say(self, number: int, what: Literal["progress", "log", "spent"], value: bytes | str) -> None:
        """Send progress, or a line of the job's own log.

        :raises RuntimeError: this process is a copy that the handler forked.
        :raises ValueError: the value is too large to be sent.
        """
        if self._pid != os.getpid():
            raise RuntimeError(
                "only the process that runs the handler can report progress and log lines: this is a copy of it that "
                "the handler forked; pass them to the handler first, for example through a multiprocessing.Queue"
            )
        data = value if isinstance(value, bytes) else value[:LOG_LINE_MAX].encode(errors="replace")
        with self._lock:
            if self._number == number:
                self._send(what, data)

    def begin_wait(self, number: int, of: str, job_id: str) -> int | None:
        """Report that a handler wants to wait for a job of the queue ``of``. Returns None if it may, else how many
        handlers wait already. A forked copy has no slot to lend, so it may."""
        answer: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        with self._lock:
            if self._pid != os.getpid() or self._number != number:
                return None
            self._asks += 1
            self._answers[self._asks] = answer
            self._send("wait", encode_wait(Wait(of, job_id, self._asks)))
        # The worker's event loop answers at once. If it never does, its connection closes and this process ends.
        return answer.get()

    def end_wait(self, number: int, job_id: str) -> None:
        """Report that a handler no longer waits for a job."""
        if self._pid == os.getpid():
            with self._lock:
                if self._number == number:
                    self._send("waited", job_id.encode())

    def pass_answer(self, answer: WaitAnswer) -> None:
        """The worker has answered ``begin_wait``."""
        if (waiting := self._answers.pop(answer.ask, None)) is not None:
            waiting.put(answer.others)

    def send_line(self, kind: Literal["record", "event"], data: bytes) -> bool:
        """Send log lines, see child_logging.py."""
        if self._pid != os.getpid():
            return False
        with self._lock:
            if not self._number:
                return False
            self._send(kind, data)
            return True

    def leave_to_original(self) -> None:
        """Close the connection in a forked copy. It belongs to the original process, and the copy would keep it
        open."""
        self._sock.close()


def listen(
    sock: socket.socket, channel: Channel, requests: queue.SimpleQueue[Request | None], busy: threading.Event
) -> None:
    """Read requests into the queue, and None after the last one. Answers to waits go to the channel.

    The worker's end of the connection closes when the worker dies. A busy child then ends at once, with the programs
    that its handler started. An idle child closes what it has opened first.
    """
    try:
        stream = sock.makefile("rb")
        while True:
            head = stream.read(HEAD.size)
            if len(head) < HEAD.size:
                if busy.is_set():
                    end_group()
                last = threading.Timer(CLOSING, end_group)
                last.daemon = True
                last.start()
                requests.put(None)
                return
            received = decode_from_worker(stream.read(HEAD.unpack(head)[0]))
            if isinstance(received, WaitAnswer):
                channel.pass_answer(received)
            else:
                busy.set()
                requests.put(received)
    except BaseException:  # noqa: BLE001 - a handler may have used up the memory
        # Without this thread the process would wait for requests for ever, even after the end of the worker.
        os._exit(1)


def end_group() -> None:
    """End this process and the programs that its handlers started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


async def call(fn: Any, kwargs: dict[str, Any]) -> Any:
    """Call the handler. A copy of this process that the handler forks ends where the handler ends.

    Otherwise the copy would report an outcome as well, close the original's dependencies and wait for requests.
    """
    pid = os.getpid()
    try:
        value = fn(**kwargs) if inspect.iscoroutinefunction(fn) else _without_loop(fn, kwargs)
        return await value if inspect.isawaitable(value) else value
    finally:
        if os.getpid() != pid:
            _end_copy(sys.exc_info()[1])


def _without_loop(fn: Any, kwargs: dict[str, Any]) -> Any:
    """Call a sync handler so that it sees no running event loop, as in any thread.

    It may call ``asyncio.run`` and ``task.enqueue_sync``. It stays in the main thread, where signals work. The
    dependencies' context managers stay open in this task.
    """
    loop = asyncio.get_running_loop()
    asyncio._set_running_loop(None)  # noqa: SLF001 - the documented function for code that runs event loops
    try:
        return fn(**kwargs)
    finally:
        asyncio._set_running_loop(loop)  # noqa: SLF001


def _end_copy(error: BaseException | None) -> None:
    """End this process as the interpreter would, but without the clean-up that the original process will do."""
    code: Any = 0
    if isinstance(error, SystemExit):
        code = error.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    elif error is not None:
        traceback.print_exception(error)
        code = 1
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit((code or 0) & 0xFF)


signature_of = functools.cache(Signature)


class RemoteLender:
    """Tells the worker for which jobs the handler of one request waits. The worker then lends the handler's slot."""

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel = channel
        self._number = number

    def begin_wait(self, context: Context, queue: str, job_id: str) -> None:
        """The wait begins.

        :raises TooManyWaiting: too many handlers of the worker wait already.
        """
        others = self._channel.begin_wait(self._number, queue, job_id)
        if others is not None:
            raise TooManyWaiting(f"{context.type} {context.id}", job_id, others)

    def end_wait(self, context: Context, job_id: str) -> None:
        """The wait is over."""
        self._channel.end_wait(self._number, job_id)


class LoadError(Exception):
    """The handler could not be loaded. Its cause is the error."""


async def run(request: Request, channel: Channel, resources: Resources) -> Any:
    """Run one request's handler.

    :raises LoadError: it cannot be loaded.
    """
    try:
        found: Any = load(request.module, request.file)
        for name in request.qualname.split("."):
            found = getattr(found, name)
    except BaseException as error:
        raise LoadError from error
    # queue.task(module.function) leaves the plain function under its name.
    fn: Any = cast("Any", found).fn if isinstance(found, Task) else found
    signature = signature_of(fn)
    spec = read_spec(request.spec)
    try:
        # Unknown fields are ignored. The worker has logged them.
        args = signature.read(spec.payload)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise InvalidPayload(f"the payload does not fit {spec.type}'s signature: {misfit(error)}") from None

    def say(_: Context, what: Literal["progress", "log", "spent"], value: bytes | str) -> None:
        channel.say(request.number, what, value)

    context = Context(
        request.id,
        request.queue,
        spec,
        request.attempt,
        request.worker,
        request.fence,
        say,
        request.snoozes,
        request.rate_limited,
    )
    current.set(context)
    lender.set(RemoteLender(channel, request.number))
    async with AsyncExitStack() as stack:
        kwargs = {name: getattr(args, name) for name in signature.names}
        if signature.open:
            kwargs |= signature.extras(spec.payload)
        await Injector(context, resources, stack).fill(kwargs, signature.injected)
        return await call(fn, kwargs)


def answer(request: Request, channel: Channel, runner: asyncio.Runner, resources: Resources) -> Message:
    """The last message of a request. Never raises."""

    def failed(error: BaseException, *, leaving: bool = False) -> Message:
        return Message("error", request.number, os.getpid(), error=pack(error), leaving=leaving)

    try:
        # Each run has its own context, so that it does not see variables of earlier runs.
        context = copy_context()
        context.run(bind_contextvars, queue=request.queue, job_id=request.id, attempt=request.attempt)
        result = bytes(encode_result(runner.run(run(request, channel, resources), context=context)))
        if len(result) > RESULT_MAX:
            raise InvalidResult(
                f"the handler's result has {len(result)} bytes, the limit is {RESULT_MAX}; store it elsewhere and "
                "return a reference"
            )
        return Message("done", request.number, os.getpid(), result)
    except LoadError as error:
        # A failed import leaves modules behind, and another try would register their tasks twice. A new process starts
        # without them.
        cause = error.__cause__
        assert cause is not None
        return failed(cause, leaving=True)
    except BaseException as error:  # noqa: BLE001 - any exception of a handler is its outcome
        return failed(error)


def _ignore(_: int, __: FrameType | None) -> None:
    """Ignore a signal to which the worker reacts."""


def main() -> None:
    """Serve requests until the worker ends."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    channel = Channel(sock)
    # A service manager sends its stop signal to every process, and the worker ends its children itself. Do not use
    # SIG_IGN, which the programs of a handler would inherit.
    for number in STOP_SIGNALS:
        signal.signal(number, _ignore)
    restore_signals_in_forks()
    unblock_stop_signals()
    os.register_at_fork(after_in_child=channel.leave_to_original)
    install(channel)
    requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=listen, args=(sock, channel, requests, busy), daemon=True).start()
    with asyncio.Runner() as runner:
        resources = Resources()
        while (request := requests.get()) is not None:
            set_levels(request.levels)
            channel.begin(request.number)
            message = answer(request, channel, runner, resources)
            # Do this before sending, because the next request may arrive right after it.
            busy.clear()
            channel.finish(message)
        runner.run(resources.aclose())
    # Ask the programs that handlers left behind to end. This process ignores the signal.
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGTERM)


if __name__ == "__main__":
    main()
