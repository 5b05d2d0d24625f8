"""Workers in the test's own event loop. They are started, and stopped after the test even if it failed."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from tools import Gate, Logs

from jobq import Queue, Worker
from jobq.engine.worker import life

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


@pytest.fixture
async def start(queue: Queue) -> AsyncIterator[Callable[..., Any]]:
    """``worker = await start()``: a worker of ``queue`` (or of the queues given) in the background."""
    async with AsyncExitStack() as stack:

        async def begin(*queues: Any, grace: float = 1.0, **options: Any) -> Worker:
            worker = await stack.enter_async_context(Worker(*(queues or [queue]), grace=grace, **options))
            worker.start()
            return worker

        yield begin


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate for handlers, which is opened at the end of the test."""
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def logs(caplog: pytest.LogCaptureFixture) -> Logs:
    """The log of the engine, at debug and above."""
    caplog.set_level(logging.DEBUG, logger="jobq")
    return Logs(caplog)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that stops while its Redis is away gives up after a moment. By default that takes seconds."""
    monkeypatch.setattr(life, "SETTLE_SECONDS", 0.1)
