"""A TCP proxy between jobq and a Redis of the tests, which breaks the connections that pass through it."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Self

from tests.conftest import USER


@dataclass(eq=False)
class Link:
    """One connection through the proxy: to the client and to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    frozen: bool = False
    """Half-open: nothing passes any more, and neither side is notified."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def cut(self) -> None:
        """Reset both connections."""
        for writer in (self.client, self.server):
            writer.transport.abort()


class Proxy:
    """Listens on a port of 127.0.0.1 and forwards to ``(host, port)``. Faults are plain attributes.

    ``delay``: seconds before each piece is forwarded. ``chunk``: bytes per piece to the client (0: as they arrive).
    ``blackhole``: connections are accepted, and nothing passes. ``drop_replies``: the number of requests that are still
    forwarded and executed, and whose connection is then reset instead of replying. ``only``: bytes that a request must
    contain to count for ``drop_replies``.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self.links: set[Link] = set()
        self.delay = 0.0
        self.chunk = 0
        self.blackhole = False
        self.drop_replies = 0
        self.only = b""
        self.dropped = 0
        self._open = asyncio.Event()
        self._open.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        tasks = [task for link in self.links for task in link.tasks]
        self.cut_all()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @property
    def port(self) -> int:
        """The port on which it listens."""
        assert self._server is not None
        return self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        """URL of Redis through this proxy."""
        return f"redis://{USER}127.0.0.1:{self.port}"

    def cut_all(self) -> None:
        """Reset every connection."""
        for link in list(self.links):
            link.cut()

    def freeze_all(self) -> None:
        """Make every connection half-open. New ones work."""
        for link in self.links:
            link.frozen = True

    def heal(self) -> None:
        """No faults from now on. Frozen connections are reset, as by a peer that comes back."""
        self.delay, self.chunk, self.blackhole, self.drop_replies, self.only = 0.0, 0, False, 0, b""
        for link in list(self.links):
            if link.frozen:
                link.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        link = Link(writer, server_writer)
        self.links.add(link)
        dropping = asyncio.Event()
        link.tasks = [
            asyncio.create_task(self._requests(link, reader, dropping)),
            asyncio.create_task(self._replies(link, server_reader, dropping)),
        ]
        try:
            await asyncio.wait(link.tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            link.cut()
            for task in link.tasks:
                task.cancel()
            self.links.discard(link)

    async def _requests(self, link: Link, reader: asyncio.StreamReader, dropping: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.delay:
                    await asyncio.sleep(self.delay)
                if link.frozen or self.blackhole:
                    link.frozen = True
                    continue
                if self.drop_replies > 0 and self.only in data:
                    self.drop_replies -= 1
                    dropping.set()
                link.server.write(data)
                await link.server.drain()

    async def _replies(self, link: Link, reader: asyncio.StreamReader, dropping: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if dropping.is_set():
                    self.dropped += 1
                    return  # The request was executed, and the client never gets the reply.
                if link.frozen or self.blackhole:
                    link.frozen = True
                    continue
                step = self.chunk or len(data)
                for at in range(0, len(data), step):
                    link.client.write(data[at : at + step])
                    await link.client.drain()
                    if self.chunk:
                        await asyncio.sleep(0)
