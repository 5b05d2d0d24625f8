"""The child process's side of children.py: ``python -m jobq.engine.worker.child FD``."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import os
import queue
import signal
import socket
import struct
import sys
import threading
from contextlib import AsyncExitStack
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec
from structlog.contextvars import bind_contextvars

from jobq.engine.model.outcome import InvalidPayload, encode_result, facts
from jobq.engine.model.rows import read_spec
from jobq.engine.task.context import Context, current
from jobq.engine.task.inject import Resources, provide
from jobq.engine.task.signature import Signature
from jobq.engine.task.task import Task
from jobq.engine.worker.children import CLOSING, Order, Word, frame

if TYPE_CHECKING:
    from types import ModuleType


_order = msgspec.msgpack.Decoder(Order).decode


def load(module: str, file: str | None) -> ModuleType:
    """The module of a handler: by its name where that leads to the same file, else from the file itself."""
    if module in sys.modules and module != "__main__":
        return sys.modules[module]
    if file is not None:
        name = "__jobq_main__" if module == "__main__" else module
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
            spec.loader.exec_module(loaded)
            return loaded
    return importlib.import_module(module)


class Mouth:
    """Says words to the parent, from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def say(self, word: Word) -> None:
        with self._lock:
            self._sock.sendall(frame(word))

    def relay(self, _: Context, what: Literal["progress", "log"], value: bytes | str) -> None:
        self.say(Word(what, value if isinstance(value, bytes) else value.encode(errors="replace")))


def listen(sock: socket.socket, orders: queue.SimpleQueue[Order | None], busy: threading.Event) -> None:
    """Read orders, and put None when there will be no more. The parent's end closes when it dies: then so does this
    process, whatever it is doing; one that does nothing closes what it has opened first."""
    try:
        stream = sock.makefile("rb")
        while True:
            head = stream.read(4)
            if len(head) < 4:
                if busy.is_set():
                    os._exit(0)
                last = threading.Timer(CLOSING, os._exit, [0])
                last.daemon = True
                last.start()
                orders.put(None)
                return
            busy.set()
            orders.put(_order(stream.read(struct.unpack("!I", head)[0])))
    except BaseException:  # noqa: BLE001 - a handler may have left no memory to read with
        # deaf, it would wait for orders for ever, also when the parent is gone
        os._exit(1)


async def run(order: Order, mouth: Mouth, resources: Resources) -> Any:
    """Run one order's handler."""
    found: Any = load(order.module, order.file)
    for name in order.qualname.split("."):
        found = getattr(found, name)
    # queue.task(module.function) leaves the plain function under its name
    fn: Any = cast("Any", found).fn if isinstance(found, Task) else found
    signature = Signature(fn)
    spec = read_spec(order.spec)
    try:
        args = signature.decode(spec.payload)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise InvalidPayload(f"the payload does not fit {spec.type}'s signature: {error}") from None
    context = Context(order.id, order.queue, spec, order.attempt, order.worker, order.fence, mouth.relay)
    current.set(context)
    bind_contextvars(queue=order.queue, job_id=order.id, attempt=order.attempt)
    async with AsyncExitStack() as stack:
        kwargs = {name: getattr(args, name) for name in signature.names}
        if signature.open:
            kwargs |= signature.extras(spec.payload)
        for name, marker in signature.injected.items():
            kwargs[name] = await provide(marker, context, resources, stack)
        value = fn(**kwargs)
        return await value if inspect.isawaitable(value) else value


def answer(order: Order, mouth: Mouth, runner: asyncio.Runner, resources: Resources) -> Word:
    """The last word on an order."""
    try:
        # a context of its own: what one run sets, the next must not see
        coroutine = run(order, mouth, resources)
        return Word("done", bytes(encode_result(runner.run(coroutine, context=copy_context()))))
    except BaseException as error:  # noqa: BLE001 - whatever a handler raises is its outcome
        told = facts(error)
        return Word("error", type=told.type, message=told.message, trace=told.trace, final=told.final, delay=told.delay)


def main() -> None:
    """Serve orders until the parent goes."""
    # Ctrl-C reaches the whole group; the worker decides what becomes of its children
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sock = socket.socket(fileno=int(sys.argv[1]))
    orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=listen, args=(sock, orders, busy), daemon=True).start()
    mouth = Mouth(sock)
    with asyncio.Runner() as runner:
        resources = Resources()
        while (order := orders.get()) is not None:
            mouth.say(Word("taken"))
            word = answer(order, mouth, runner, resources)
            # before the word: the next order may be here as soon as it is out
            busy.clear()
            mouth.say(word)
        runner.run(resources.aclose())


if __name__ == "__main__":
    main()
