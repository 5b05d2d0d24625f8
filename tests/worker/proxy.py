"""A TCP proxy in front of the server's socket. It can lose replies, cut connections and refuse new ones."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self
from urllib.parse import urlsplit


class Proxy:
    """``url`` leads through the proxy. Connections pass unchanged until a fault is requested.

    ``node``: the port of the cluster's node that ``upstream`` leads to. The other nodes are reached without the proxy.
    """

    def __init__(self, upstream: str, node: int = 0) -> None:
        self._node = node
        parts = urlsplit(upstream)
        self._upstream = parts.path
        self._user = parts.netloc
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._awaited: bytes | None = None
        self._cut_after: int | None = None
        self._refused: bytes | None = None
        self.refusals = 0
        """The number of further requests that are lost, each with its connection."""
        self.lost = asyncio.Event()
        self.away = False
        self.refused = 0
        """The number of connections that were tried while the server was away."""
        self.port = 0
        self._passing = asyncio.Event()
        self._passing.set()

    @property
    def url(self) -> str:
        """The URL for clients."""
        here = f"127.0.0.1:{self.port}"
        if self._node:
            return f"redis+cluster://{self._user}{here}?address_map=127.0.0.1:{self._node}={here}"
        return f"redis://{self._user}{here}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for pipe in list(self._pipes):
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    def lose_reply(self, request: bytes, *, after: int = 0) -> None:
        """The next connection that sends ``request`` gets ``after`` bytes of its reply and is then cut."""
        self._awaited, self._cut_after = request, after
        self.lost.clear()

    def lose_requests(self, request: bytes, times: int) -> None:
        """This number of connections that send ``request`` are cut before it reaches the server."""
        self._refused, self.refusals = request, times

    def hold_replies(self) -> None:
        """Let requests pass, and keep all replies back."""
        self._passing.clear()

    def pass_replies(self) -> None:
        """Let replies pass again."""
        self._passing.set()

    def cut(self) -> None:
        """Cut all connections."""
        for writer in list(self._writers):
            writer.transport.abort()

    def go_away(self) -> None:
        """Cut all connections, and refuse new ones."""
        self.away = True
        self.cut()

    def come_back(self) -> None:
        """Accept new connections again."""
        self.away = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.away:
            self.refused += 1
            writer.transport.abort()
            return
        their_reader, their_writer = await asyncio.open_unix_connection(self._upstream)
        if self.away:
            # The server went away meanwhile.
            self.refused += 1
            writer.transport.abort()
            their_writer.transport.abort()
            return
        self._writers |= {writer, their_writer}
        doomed = asyncio.Event()
        for pipe in (self._requests(reader, their_writer, doomed), self._replies(their_reader, writer, doomed)):
            task = asyncio.create_task(pipe)
            self._pipes.add(task)
            task.add_done_callback(self._pipes.discard)

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doomed: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.refusals and self._refused is not None and self._refused in data:
                    self.refusals -= 1
                    break
                if self._awaited is not None and self._awaited in data:
                    self._awaited = None
                    doomed.set()
                writer.write(data)
        self._end(writer)

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doomed: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._passing.wait()
                if doomed.is_set():
                    writer.write(data[: self._cut_after])
                    self.lost.set()
                    break
                writer.write(data)
        self._end(writer)

    def _end(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.close()
