"""Handlers that child processes import by the name of this file."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import structlog

from jobq import Context, Depends, Discard, Queue, RateLimited, Retry, Snooze, TooManyWaiting, inject
from jobq.engine.task.context import current


def add(a: int, b: int = 1) -> int:
    return a + b


async def pid() -> int:
    return os.getpid()


def talk(ctx: Context = inject) -> str:
    for n in range(3):
        ctx.progress(n)
        ctx.log(f"line {n}")
        ctx.spent("tokens", n + 40)
    return ctx.id


def snooze(ctx: Context = inject) -> list[int]:
    if not ctx.snoozes:
        raise Snooze(0, "in a child")
    return [ctx.attempt, ctx.snoozes]


def rate_limited(ctx: Context = inject) -> list[int]:
    if not ctx.rate_limited:
        raise RateLimited("in a child", retry_after=timedelta(0), scope="job")
    return [ctx.attempt, ctx.rate_limited]


def bound() -> list[Any]:
    seen = structlog.contextvars.get_contextvars()
    structlog.contextvars.bind_contextvars(leak=1)
    return [seen, current.get().id]


def hang(where: str) -> None:
    """Writes its process id to a file, then uses CPU until a signal ends it."""
    with open(where, "w") as file:  # noqa: PTH123 - a child imports as little as it can
        file.write(str(os.getpid()))
    while True:
        time.sleep(60)


def segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> None:
    os._exit(3)


def fail(how: str) -> Any:
    if how == "exit":
        raise SystemExit(4)
    if how == "discard":
        raise Discard("never")
    if how == "retry":
        raise Retry("later", delay="soon")  # type: ignore[arg-type]
    if how == "stop":
        return next(iter([]))
    if how == "broken":

        class Broken(Exception):
            def __str__(self) -> str:
                raise ValueError

        raise Broken
    if how == "local":

        class Local(ConnectionError):
            """The worker cannot recreate this exception, because it cannot find its class."""

        raise Local("gone")
    if how == "result":
        return object()
    raise ValueError("plain")


opened = 0


def resource():
    global opened  # noqa: PLW0603 - once per child is what is tested
    opened += 1
    yield opened


async def noted():
    yield "open"
    await asyncio.sleep(0)
    Path(os.environ["JOBQ_TEST_NOTE"]).write_text("closed")  # noqa: ASYNC240


def use_noted(value: Annotated[str, Depends(noted, scope="worker")] = inject) -> str:
    return value


def use(value: Annotated[int, Depends(resource, scope="worker")] = inject) -> list[int]:
    return [os.getpid(), value]


def pool_then_die() -> None:
    """The pool's processes are forks, so they hold all open files of this process."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map_async(time.sleep, [60, 60])
        os.kill(os.getpid(), signal.SIGKILL)


def pool() -> int:
    """Leaving the pool sends SIGTERM to its processes and waits for them."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(add, (1, 2))


def fork(how: str) -> str:
    """The copy of this process also returns from the handler."""
    if os.fork() == 0:
        if how == "exit":
            sys.exit(0)
        if how == "raise":
            raise ValueError("in the copy")
        return "the copy"
    os.wait()
    return "the original"


async def fork_async() -> str:
    if os.fork() == 0:
        return "the copy"
    await asyncio.to_thread(os.wait)
    return "the original"


def fork_and_talk(ctx: Context = inject) -> str:
    """The error that the copy gets when it calls ``ctx.log``."""
    ours, theirs = os.pipe()
    if os.fork() == 0:
        try:
            ctx.log("from the copy")
        except RuntimeError as error:
            os.write(theirs, str(error).encode())
        os._exit(0)
    os.wait()
    ctx.log("from the original")
    return os.read(ours, 1000).decode()


def daemonise(where: str) -> None:
    """The classic double fork. The daemon is in its own session and lives on."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            Path(where).write_text(str(os.getpid()))
            time.sleep(60)
        os._exit(0)
    os.wait()
    os._exit(0)


_asked, _said = threading.Event(), threading.Event()


def leave_a_thread(ctx: Context = inject) -> None:
    def talk() -> None:
        _asked.wait()
        ctx.log("of the first job")
        ctx.progress("of the first job")
        logging.getLogger("app").warning("of a left-over thread")
        _said.set()

    threading.Thread(target=talk, daemon=True).start()


def let_it_talk(ctx: Context = inject) -> None:
    ctx.log("mine")
    ctx.progress("mine")
    _asked.set()
    _said.wait(10)


def start_program(where: str) -> None:
    program = subprocess.Popen(["sleep", "60"])
    Path(where).write_text(str(program.pid))
    program.wait()


def leave_program(where: str) -> None:
    Path(where).write_text(str(subprocess.Popen(["sleep", "60"]).pid))


def stop_program() -> int:
    """A program that gets SIGTERM ends: it has not inherited an ignored signal."""
    program = subprocess.Popen(["sleep", "60"])
    program.terminate()
    return program.wait()


def get_signals() -> str:
    """The signal that Ctrl-C or a service manager sends to every process."""
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    return "still here"


def run_a_loop() -> int:
    async def inner() -> int:
        await asyncio.sleep(0)
        return 5

    return asyncio.run(inner())


def enqueue_sync(url: str) -> str:
    """A handler without ``async`` that enqueues another job."""
    return Queue("other", url).sync().enqueue("x").id


def read_stdin() -> str:
    return input()


def print_much(lines: int) -> int:
    for _ in range(lines):
        print("x" * 1000)
    return lines


def close_all() -> None:
    os.closerange(3, 256)


def write_nonsense(data: str) -> None:
    """Write into the connection to the worker. Its number is the argument of this process."""
    os.write(int(sys.argv[1]), bytes.fromhex(data))
    time.sleep(60)


def big(size: int) -> str:
    return "x" * size


def write_log() -> None:
    log = logging.getLogger("app")
    log.debug("not sent")
    log.info("a line with %s", "an argument", extra={"customer": 7, "odd": 1 + 2j})
    try:
        raise ValueError("inner")
    except ValueError:
        log.exception("it failed")
    structlog.get_logger().warning("an event", customer=8)
    log.info("x" * 100_000)
    log.info("large fields", extra={"field": "y" * 100_000})


class Odd(Exception):
    """Its arguments differ from those of its __init__."""

    def __init__(self, code: int, where: str) -> None:
        super().__init__(f"{where}: {code}")
        self.code = code


def raise_(how: str) -> None:
    if how == "os":
        open("/does/not/exist")  # noqa: PTH123, SIM115
    if how == "odd":
        raise Odd(7, "here")
    if how == "json":
        raise structlog.DropEvent("from a library")
    if how == "object":
        raise ValueError(object())
    if how == "group":
        raise ExceptionGroup("several", [ValueError(1)])

    class Local(Exception): ...

    raise Local("of nowhere")


def add_or_not(url: str, queue: str) -> str:
    """Waits for another job, unless too many handlers of the worker wait already."""
    with Queue(queue, url).sync() as sync:
        job = sync.enqueue("add", {"a": 1})
        try:
            job.result_sync(20)
        except TooManyWaiting as error:
            return f"{error.waiting} {error.awaited == job.id} {error.others}"
    return "it waited"


def wait_for_add(url: str, queue: str, a: int, type: str = "add") -> int:
    """A handler without ``async`` that waits for another job of its own queue."""
    with Queue(queue, url).sync() as sync:
        return sync.enqueue(type, {"a": a}).result_sync(20)
