"""Shared by worker tests: gates for handlers, a reader of the engine's log, counts of commands."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from tests.conftest import on_all

if TYPE_CHECKING:
    import logging

    import pytest

    from jobq.engine.store import Store


class Gate:
    """Handlers announce themselves here and wait: ``await gate.passing(x)``, or ``gate.hold(x)`` in a thread."""

    def __init__(self) -> None:
        self.arrivals: asyncio.Queue[Any] = asyncio.Queue()
        self._opened = asyncio.Event()
        self._thread_opened = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None

    async def passing(self, who: Any = None) -> None:
        """Announce the handler, then wait until the gate opens."""
        self.arrivals.put_nowait(who)
        await self._opened.wait()

    def hold(self, who: Any = None, timeout: float = 20.0) -> None:
        """The same for a thread. ``arrival`` must have been awaited on the loop before, or ``loop`` be set."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.arrivals.put_nowait, who)
        self._thread_opened.wait(timeout)

    async def arrival(self, timeout: float = 10.0) -> Any:
        """The next handler that announced itself."""
        async with asyncio.timeout(timeout):
            return await self.arrivals.get()

    def open(self) -> None:
        """Let all handlers pass from now on."""
        self._opened.set()
        self._thread_opened.set()


class Logs:
    """The engine's log events."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def all(self, event: str, level: str | None = None) -> list[logging.LogRecord]:
        """The records of an event, oldest first."""
        return [
            record
            for record in self._caplog.records
            if event in record.getMessage() and record.name.startswith("jobq") and level in (None, record.levelname)
        ]

    def one(self, event: str, level: str | None = None) -> Any:
        """The only record of an event."""
        found = self.all(event, level)
        assert len(found) == 1, (
            f"{len(found)} records of {event!r} among {[r.getMessage() for r in self._caplog.records]}"
        )
        return found[0]


async def commands(admin: Store) -> dict[str, int]:
    """The number of calls per command since the server started."""
    info = await admin.command(b"INFO", b"commandstats")
    lines = [line for line in info.decode().splitlines() if line.startswith("cmdstat_")]
    return {
        name.removeprefix("cmdstat_"): int(figures.split(",")[0].removeprefix("calls="))
        for name, figures in (line.split(":", 1) for line in lines)
    }


async def blocked(admin: Store, clients: int) -> bool:
    """At least this number of clients block, for example on a wake token. The queues may be on several nodes."""
    lines = [line for info in await on_all(admin.connection, (b"INFO", b"clients")) for line in info.splitlines()]
    counts = [int(line.partition(b":")[2]) for line in lines if line.startswith(b"blocked_clients:")]
    return sum(counts) >= clients


async def reading(admin: Store) -> bool:
    """A client blocks in a read of a stream, so a caller waits for a result. The queue may be on any node."""
    answers = await on_all(admin.connection, (b"CLIENT", b"LIST"))
    clients = [client for answer in answers for client in answer.splitlines()]
    return any(b"cmd=xread" in client and b" flags=b" in client for client in clients)


async def listening(admin: Store, workers: int = 1) -> bool:
    """At least this number of workers listen to the control channel."""
    return (await admin.command(b"PUBSUB", b"NUMSUB", admin.keys["control"]))[1] >= workers
