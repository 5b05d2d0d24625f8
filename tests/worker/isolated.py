"""Handlers that child processes load by this file's name."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Annotated, Any

import structlog

from jobq import Context, Depends, Discard, Retry, inject
from jobq.engine.task.context import current


def add(a: int, b: int = 1) -> int:
    return a + b


async def pid() -> int:
    return os.getpid()


def talk(ctx: Context = inject) -> str:
    for n in range(3):
        ctx.progress(n)
        ctx.log(f"line {n}")
    return ctx.id


def bound() -> list[Any]:
    seen = structlog.contextvars.get_contextvars()
    structlog.contextvars.bind_contextvars(leak=1)
    return [seen, current.get().id]


def hang(where: str) -> None:
    """Says that it runs by its process id in a file, then burns time that only a signal can end."""
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
