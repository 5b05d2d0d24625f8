"""Helpers of the REST tests: a served application with raw connections, a running worker, checks of problems."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient

from jobq import Queue, Worker
from jobq.http.serve import serve

Client = TestClient[web.Request, web.Application]
NewClient = Callable[..., Awaitable[Client]]
Until = Callable[..., Awaitable[None]]
"""The fixture ``until``: ``await until(predicate, "what")``."""


class Served:
    """An application under ``serve``, and raw connections to it."""

    def __init__(self, port: int, stop: asyncio.Event, task: asyncio.Task[None]) -> None:
        self.port = port
        self.stop = stop
        self.task = task

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A raw TCP connection."""
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def exchange(self, raw: bytes, *, to_end: bool = True) -> bytes:
        """Send bytes, and return everything until the server closes the connection."""
        reader, writer = await self.connect()
        try:
            writer.write(raw)
            await writer.drain()
            return await asyncio.wait_for(reader.read() if to_end else reader.read(65536), 10)
        finally:
            writer.close()


@asynccontextmanager
async def serving(app: web.Application, **options: Any) -> AsyncIterator[Served]:
    """Serve on a free port until the block ends."""
    stop = asyncio.Event()
    address: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    told = lambda _, port: address.set_result(port)  # noqa: E731
    task = asyncio.create_task(serve(app, port=0, stop=stop, started=told, **options))
    await asyncio.wait([task, address], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        yield Served(address.result(), stop, task)
    finally:
        stop.set()
        await task


@asynccontextmanager
async def working(*queues: Queue, **options: Any) -> AsyncIterator[Worker]:
    """A worker that runs during the block."""
    async with Worker(*queues, **options) as worker:
        worker.start()
        yield worker


async def problem(response: ClientResponse, status: int, slug: str) -> dict[str, Any]:
    """Check that the response is this problem, complete and well-formed. Returns its body."""
    body = await response.json(content_type="application/problem+json")
    assert (response.status, body["type"]) == (status, f"urn:jobq:problem:{slug}"), body
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    return body


async def enqueue(client: Client, body: Any = None, **fields: Any) -> str:
    """Enqueue over REST and return the id."""
    response = await client.post("/jobs/enqueue", json=body or {"type": "any"} | fields)
    assert response.status == 201, await response.text()
    return (await response.json())["id"]


async def deaf(port: int) -> asyncio.StreamWriter:
    """A client that opens a stream of events and never reads it."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.transport.pause_reading()  # pyright: ignore
    writer.write(b"GET /jobs/stats/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await writer.drain()
    return writer
