"""JSON answers with a prepared head. aiohttp builds each head anew, which took a sixth of an enqueue's time."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from aiohttp import HttpVersion11, hdrs, web
from multidict import CIMultiDict, getversion

from jobq.http.problems import COMMON_HEADERS

if TYPE_CHECKING:
    from collections.abc import Callable
    from http.cookies import SimpleCookie

    from aiohttp.abc import AbstractStreamWriter

_HEADERS: Final = CIMultiDict(COMMON_HEADERS | {"Content-Type": "application/json"})

_version: Callable[[CIMultiDict[str]], int] = getversion  # pyright: ignore[reportAssignmentType] - it takes any values


@lru_cache
def _head(status: int, reason: str) -> bytes:
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in _HEADERS.items())]
    return "\r\n".join(lines).encode()


@lru_cache(1)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


class Answer(web.Response):
    """A JSON body and the common headers.

    It uses only the public parts of aiohttp. An answer that an embedding application has changed, or wants to see
    before it is sent, is sent by aiohttp in the usual way.
    """

    def __init__(self, body: bytes, status: int) -> None:
        super().__init__(body=body, status=status, headers=_HEADERS)
        self._made = self.headers
        self._made_version, self._made_status = _version(self._made), status
        self._touched = False
        """Whether the answer has cookies, or its connection is to be closed."""
        self._sent = 0

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the whole answer in one write, if it has not been changed."""
        if self._sent:
            return None
        body, status = self.body, self.status
        if not isinstance(body, bytes) or status != self._made_status or self._changed() or not _usual(request):
            return await super().prepare(request)
        writer = request.writer
        head, date = _head(status, self.reason), _date(int(time.time()))
        whole = b"%b\r\nContent-Length: %d\r\nDate: %b\r\n\r\n%b" % (head, len(body), date, body)
        self._sent = len(whole)
        await writer.write(whole)
        # A small write does not wait by itself. A client that sends requests and never reads would fill the memory.
        await writer.drain()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """End the answer, unless it was already sent in one write."""
        if not self._sent:
            await super().write_eof(data)

    @property
    def prepared(self) -> bool:
        return self._sent > 0 or super().prepared

    @property
    def keep_alive(self) -> bool | None:
        return True if self._sent else super().keep_alive

    @property
    def body_length(self) -> int:
        return self._sent or super().body_length

    @property
    def cookies(self) -> SimpleCookie:
        self._touched = True
        return super().cookies

    def set_cookie(self, *args: Any, **options: Any) -> None:
        self._touched = True
        super().set_cookie(*args, **options)

    def del_cookie(self, *args: Any, **options: Any) -> None:
        self._touched = True
        super().del_cookie(*args, **options)

    def force_close(self) -> None:
        self._touched = True
        super().force_close()

    def _changed(self) -> bool:
        return _version(self._made) != self._made_version or self._touched or self.chunked or self.compression


def _usual(request: web.BaseRequest) -> bool:
    """Whether the answer needs no special header, and no application asks to see it before it is sent."""
    return (
        isinstance(request, web.Request)
        and request.version == HttpVersion11
        and request.keep_alive
        and request.method != hdrs.METH_HEAD
        and not any(app.on_response_prepare for app in request.match_info.apps)
    )
