"""JSON answers whose head is made once: aiohttp makes each anew, which was a sixth of an enqueue's time."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.helpers import rfc822_formatted_time
from multidict import CIMultiDict, getversion

from jobq.http.problems import COMMON_HEADERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.abc import AbstractStreamWriter

_HEADERS: Final = CIMultiDict(COMMON_HEADERS | {"Content-Type": "application/json"})

_version: Callable[[CIMultiDict[str]], int] = getversion  # pyright: ignore[reportAssignmentType] - it takes any values


@lru_cache
def _head(status: int, reason: str) -> bytes:
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in _HEADERS.items())]
    return "\r\n".join(lines).encode()


class Answer(web.Response):
    """A JSON body and the common headers.

    One that an application around ours has changed, or wants to see before it goes, goes aiohttp's way.
    """

    def __init__(self, body: bytes, status: int) -> None:
        super().__init__(body=body, status=status, headers=_HEADERS)
        self._headers_made, self._status_made = _version(self._headers), status

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send all of it in one write, where nothing speaks against it."""
        body = self._body
        if not isinstance(body, bytes) or self._changed() or not _usual(request):
            return await super().prepare(request)
        self._keep_alive = True
        writer = request.writer
        head, date = _head(self._status, self._reason), rfc822_formatted_time().encode()
        await writer.write(b"%b\r\nContent-Length: %d\r\nDate: %b\r\n\r\n%b" % (head, len(body), date, body))
        # a small write does not wait by itself, and a client that asks on and never reads would fill the memory
        await writer.drain()
        self._eof_sent = True
        self._body_length = writer.output_size
        return None

    def _changed(self) -> bool:
        return (
            _version(self._headers) != self._headers_made
            or self._cookies is not None
            or self._keep_alive is not None
            or self._chunked
            or self._compression
            or self._status != self._status_made
        )


def _usual(request: web.BaseRequest) -> bool:
    """Whether the answer to it needs no header of its own, and nobody has asked to see the answer first."""
    return (
        isinstance(request, web.Request)
        and request.version == HttpVersion11
        and request.keep_alive
        and request.method != hdrs.METH_HEAD
        and not any(app.on_response_prepare for app in request.match_info.apps)
    )
