"""``ApiCall`` is the request that a handler gets. The functions below it make answers."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from jobq.engine.log import get_logger
from jobq.engine.model.ids import is_id
from jobq.errors import JobNotFound
from jobq.http.answer import Answer
from jobq.http.auth import ApiKey, Scope
from jobq.http.duties import Duties
from jobq.http.feeds import Feeds
from jobq.http.problems import (
    COMMON_HEADERS,
    FORBIDDEN,
    INVALID_JOB,
    INVALID_QUERY,
    TIMEOUT,
    TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    HttpProblem,
    not_found,
    validation_problem,
)
from jobq.http.ready import Readiness
from jobq.http.strict import check_body

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from jobq.engine.queue.queue import Queue
    from jobq.engine.worker.worker import Worker
    from jobq.http.guard import Guard

_audit = get_logger("jobq.audit")
_encode = msgspec.json.Encoder().encode

Struct = TypeVar("Struct", bound=msgspec.Struct)
T = TypeVar("T")


class Limits(msgspec.Struct, frozen=True):
    """Limits of one request. ``body``: bytes. ``bulk``: jobs. ``body_seconds``: time for the whole body to arrive."""

    body: int
    bulk: int = 1000
    body_seconds: float = 30.0


class Hub:
    """State that all routes of one application share."""

    def __init__(self, queues: list[Queue], guard: Guard, limits: Limits, workers: Sequence[Worker] = ()) -> None:
        self.queues = {queue.name: queue for queue in queues}
        self.default = queues[0]
        self.guard = guard
        self.limits = limits
        self.duties = Duties()
        self.feeds = Feeds()
        self.readiness = Readiness(queues, workers)
        self.unwrap: Callable[[web.Request], web.Request] | None = None
        """Used by ``asgi``: returns the request as the ASGI server received it."""
        self._polls: set[asyncio.Timeout] = set()
        self._closing = False

    @asynccontextmanager
    async def polling(self, seconds: float) -> AsyncGenerator[None]:
        """Run a long poll. It ends with ``TimeoutError`` after ``seconds``, or as soon as the server closes."""
        async with asyncio.timeout(0 if self._closing else seconds) as poll:
            self._polls.add(poll)
            try:
                yield
            finally:
                self._polls.discard(poll)

    def end_polls(self) -> None:
        """Let every long poll answer now, so that the server can stop without waiting for them."""
        self._closing = True
        now = asyncio.get_running_loop().time()
        for poll in self._polls:
            poll.reschedule(now)


ROOT: Final = web.RequestKey("jobq_root", str)
"""The prefix under which an ASGI server has mounted the application."""
HUB: Final = web.AppKey("jobq_hub", Hub)
"""The key of the hub in an application of ``create_app``."""


def docs_of(request: web.Request, segments: int) -> str:
    """The path of the documentation page. ``segments``: how many segments the path of the route has. The application
    may be mounted under a prefix, which stands before them."""
    before = request.rel_url.raw_path.split("/")[:-segments]
    return f"{request.get(ROOT, '')}{'/'.join(before)}/docs"


class ApiCall:
    """An admitted request and its API key."""

    __slots__ = ("hub", "key", "request")

    def __init__(self, hub: Hub, request: web.Request, key: ApiKey) -> None:
        self.hub = hub
        self.request = request
        self.key = key

    def prefix(self, own: str) -> str:
        """The path under which the application is mounted, '' at the top. ``own``: the path of the route itself."""
        return self.request.get(ROOT, "") + self.request.rel_url.raw_path.removesuffix(own)

    @property
    def tracebacks(self) -> bool:
        """Whether the caller may see tracebacks. They show the inside of the workers."""
        return self.key.scope >= Scope.WRITE

    @property
    def queue(self) -> Queue:
        """The queue named in the path, or the default.

        :raises HttpProblem: the queue is not served here, or the key is not valid for it.
        """
        name = self.request.match_info.get("queue")
        return self._default() if name is None else self._find(name)

    def job(self, given: str | None = None) -> tuple[Queue, str]:
        """The queue and the id of a job, by default of the one in the path. An id without a queue belongs to the path's
        queue, or to the default one.

        :raises HttpProblem: the path's queue is not served here, or the key is not valid for the default queue.
        :raises JobNotFound: no job can have this id, or the key is not valid for its queue.
        """
        given = given or self.request.match_info["id"]
        prefix, _, job_id = given.rpartition(":")
        named = self.request.match_info.get("queue")
        if named is not None:
            queue = self._find(named)
        elif prefix:
            queue = self._reachable(prefix)
        else:
            queue = self._default()
        if queue is None or not is_id(job_id) or prefix not in ("", queue.name):
            raise JobNotFound(given[:200])
        return queue, job_id

    def _reachable(self, name: str) -> Queue | None:
        """The queue, or None if it is not served here or the key is not valid for it. Both cases look alike to the
        caller: a key must not reveal which other queues there are."""
        return self.hub.queues.get(name) if self.key.may_reach(name) else None

    def _find(self, name: str) -> Queue:
        queue = self._reachable(name)
        if queue is None:
            not_found(name, [known for known in self.hub.queues if self.key.may_reach(known)])
        return queue

    def _default(self) -> Queue:
        if not self.key.may_reach(self.hub.default.name):
            detail = f"the key {self.key.name!r} is not valid for the default queue; use /queues/{{queue}}/..."
            raise HttpProblem(FORBIDDEN, detail)
        return self.hub.default

    def query(self, kind: type[Struct]) -> Struct:
        """The query string as a struct.

        :raises HttpProblem: an unknown parameter, one given twice, or one out of its range.
        """
        if not self.request.rel_url.raw_query_string:  # Most calls have none, and parsing it costs time.
            return convert_query({}, kind)
        given = self.request.query
        if len(set(given)) != len(given):
            raise HttpProblem(INVALID_QUERY, "a query parameter is given twice; give each once")
        return convert_query(dict(given), kind)

    @property
    def idempotency_key(self) -> str | None:
        """The header Idempotency-Key.

        :raises HttpProblem: it is empty, too long, or not printable ASCII.
        """
        key = self.request.headers.get("Idempotency-Key")
        if key is not None and not (1 <= len(key) <= 255 and key.isascii() and key.isprintable()):
            raise HttpProblem(INVALID_JOB, "the header Idempotency-Key takes 1 to 255 printable ASCII characters")
        return key

    async def body(self, limit: int | None = None) -> bytes:
        """The body, checked to be sound JSON; without a body ``{}``. ``limit``: bytes, by default that of the hub.

        :raises HttpProblem: its content type is not JSON, it is too large, or it arrives too slowly.
        :raises BadJSON: it is not JSON.
        """
        if not self.request.body_exists:
            # All fields of the request may be optional. If one is not, the answer names it.
            return b"{}"
        body = await self.unchecked_body(limit)
        await check_body(body)
        return body

    async def unchecked_body(self, limit: int | None = None) -> bytes:
        """As ``body``, but only the content type is checked. Pass it to ``check_body`` before any of it is stored.

        :raises HttpProblem: its content type is not JSON, it is too large, or it arrives too slowly.
        """
        kind = self.request.headers.get("Content-Type")
        if kind != "application/json":
            _check_content_type(kind)
        limit = limit or self.hub.limits.body
        content = self.request.content
        if not content.is_eof():
            return await self.read(limit)
        # The body arrived together with the head, so there is nothing to wait for.
        self._refuse_encodings()
        body = content.read_nowait()
        if len(body) > limit:
            _too_large(len(body), limit)
        return body

    async def read(self, limit: int) -> bytes:
        """The body without any check of its content.

        :raises HttpProblem: it is compressed, larger than ``limit`` bytes, or arrives too slowly.
        """
        self._refuse_encodings()
        content = self.request.content
        if (self.request.content_length or 0) > limit:
            _too_large(self.request.content_length or 0, limit)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.hub.limits.body_seconds):
                while chunk := await content.readany():
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > limit:
                        _too_large(size, limit)
        except TimeoutError:
            seconds = self.hub.limits.body_seconds
            raise HttpProblem(
                TIMEOUT, f"the body did not arrive within {seconds:g} s; send it faster or in parts"
            ) from None
        return b"".join(chunks)

    def _refuse_encodings(self) -> None:
        """Refuse a compressed body. A few hundred bytes could inflate to gigabytes."""
        encoding = self.request.headers.get("Content-Encoding")
        if encoding is not None and encoding.strip().lower() != "identity":
            raise HttpProblem(
                UNSUPPORTED_MEDIA_TYPE,
                f"the header Content-Encoding says {encoding[:40]!r}; send the body uncompressed",
                headers={"Accept-Encoding": "identity"},
            )

    def audit(self, action: str, queue: Queue, **facts: Any) -> None:
        """Log which key changed what."""
        facts = {"queue": queue.name, **facts}
        key, remote = self.key.name, self.request.remote
        what = ", ".join(f"{name} {value}" for name, value in facts.items())
        _audit.info(
            f"REST: {action} by key {key} from {remote}: {what}", action=action, key=key, remote=remote, **facts
        )


def reply(value: Any, status: int = 200) -> web.Response:
    """A struct as JSON."""
    return Answer(_encode(value), status)


def no_content() -> web.Response:
    """204, without a body."""
    return web.Response(status=204, headers=COMMON_HEADERS)


def given(value: T | UnsetType) -> T | None:
    """The value of a query parameter, or None if it was not given."""
    return None if value is UNSET else value


def decode(decoder: msgspec.json.Decoder[Struct], body: bytes | msgspec.Raw) -> Struct:
    """The body as a struct.

    :raises HttpProblem: a field does not fit; the problem names it.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise validation_problem(error, decoder.type) from None


def convert_query(given: dict[str, str], kind: type[Struct]) -> Struct:
    """Query parameters as a struct.

    :raises HttpProblem: a parameter does not fit; the problem names it.
    """
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise validation_problem(error, kind) from None


def _check_content_type(kind: str | None) -> None:
    name, _, parameters = (kind or "").partition(";")
    charset = parameters.strip().lower().replace(" ", "").replace('"', "")
    if name.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        given = f"it is {kind[:80]!r}" if kind else "the header is missing"
        raise HttpProblem(UNSUPPORTED_MEDIA_TYPE, f"the header Content-Type must be application/json (UTF-8); {given}")


def _too_large(size: int, limit: int) -> None:
    raise HttpProblem(
        TOO_LARGE, f"the body has {size} bytes or more, the limit is {limit}; send less at once", limit=limit
    )
