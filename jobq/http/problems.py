"""Every error is answered with a problem (RFC 9457). ``TABLE`` maps exceptions to kinds of problems."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from jobq import errors
from jobq.engine.log import get_logger
from jobq.http.shapes import choices_at, fields_at
from jobq.http.strict import BadJSON

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = get_logger("jobq.http")
_encode = msgspec.json.Encoder().encode

COMMON_HEADERS = {
    "Server": "jobq",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_HEADERS = COMMON_HEADERS | {"Content-Type": "application/problem+json"}


class Kind(NamedTuple):
    """A kind of problem; ``slug`` ends its ``type``, which never changes."""

    slug: str
    status: int
    title: str
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def type(self) -> str:
        return f"urn:jobq:problem:{self.slug}"


_SOON = (("Retry-After", "1"),)
_LATER = (("Retry-After", "10"),)

MALFORMED_REQUEST = Kind("malformed-request", 400, "The request is not sound HTTP")
INVALID_JSON = Kind("invalid-json", 400, "The body is not sound JSON")
UNAUTHENTICATED = Kind("unauthenticated", 401, "An API key is needed", (("WWW-Authenticate", 'Bearer realm="jobq"'),))
FORBIDDEN = Kind("forbidden", 403, "The API key does not allow this")
CROSS_ORIGIN = Kind("cross-origin", 403, "A page of another origin must not change anything")
NOT_FOUND = Kind("not-found", 404, "There is no such route")
UNKNOWN_QUEUE = Kind("unknown-queue", 404, "This server does not serve that queue")
SCHEDULE_NOT_FOUND = Kind("schedule-not-found", 404, "There is no such schedule")
WEBHOOK_NOT_FOUND = Kind("webhook-not-found", 404, "There is no such webhook")
RULE_NOT_FOUND = Kind("rule-not-found", 404, "There is no such rule of limits")
JOB_NOT_FOUND = Kind("job-not-found", 404, "There is no such job")
METHOD_NOT_ALLOWED = Kind("method-not-allowed", 405, "The route does not take this method")
TIMEOUT = Kind("request-timeout", 408, "The request took too long to arrive")
WRONG_STATE = Kind("wrong-state", 409, "The job's state does not allow this")
JOB_FAILED = Kind("job-failed", 409, "The job has failed, there is no result")
JOB_EXPIRED = Kind("job-expired", 409, "The job did not start or end in time, there is no result")
JOB_KILLED = Kind("job-killed", 409, "The job was killed, there is no result")
UNREADABLE_RESULT = Kind("unreadable-result", 409, "The job has completed, but its stored result cannot be read")
TOO_LARGE = Kind("too-large", 413, "The request is over a limit")
UNSUPPORTED_MEDIA_TYPE = Kind("unsupported-media-type", 415, "The body must be JSON")
EXPECTATION_FAILED = Kind("expectation-failed", 417, "Only Expect: 100-continue is known")
MISDIRECTED = Kind("host-not-allowed", 421, "This server does not answer to that Host")
UNKNOWN_FIELD = Kind("unknown-field", 422, "There is no such field")
MISSING_FIELD = Kind("missing-field", 422, "A field is missing")
INVALID_FIELD = Kind("invalid-field", 422, "A field has a value that is not allowed")
INVALID_JOB = Kind("invalid-job", 422, "The job cannot be enqueued as given")
INVALID_LIMIT = Kind("invalid-limit", 422, "The limit cannot be used as given")
INVALID_GROUP = Kind("invalid-group", 422, "The group cannot be used as given")
INVALID_SCHEDULE = Kind("invalid-schedule", 422, "The schedule cannot be used as given")
INVALID_WEBHOOK = Kind("invalid-webhook", 422, "The webhook cannot be used as given")
INVALID_SETTING = Kind("invalid-setting", 422, "The setting of the queue cannot be changed as given")
UNKNOWN_BREAKER = Kind("unknown-breaker", 404, "The type has no circuit breaker")
UNKNOWN_RULE = Kind("unknown-rule", 422, "A limit key of the job has no rule")
UNKNOWN_TYPE = Kind("unknown-type", 422, "The queue has no such job type")
IDEMPOTENCY_CONFLICT = Kind("idempotency-conflict", 422, "The idempotency key was used for another request")
JOB_ID_TAKEN = Kind("job-id-taken", 409, "Another job has this id")
KEY_TAKEN = Kind("key-taken", 409, "Another job holds the key")
DURABILITY_REFUSED = Kind("durability-refused", 422, "This Redis cannot give the durability asked for")
INVALID_QUERY = Kind("invalid-query", 422, "The query cannot be answered as given")
GROUP_FULL = Kind("group-full", 429, "The group of the job holds as many jobs as it may", _LATER)
RATE_LIMITED = Kind("rate-limited", 429, "Too many requests")
HTTP_ERROR = Kind("http-error", 400, "The request cannot be served")
INTERNAL = Kind("internal", 500, "The server has an internal error")
NOT_INSTALLED = Kind("not-installed", 501, "The server lacks an optional package")
UNAVAILABLE = Kind("redis-unavailable", 503, "Redis does not answer", _SOON)
FULL = Kind("redis-full", 503, "Redis is full and accepts no new jobs", _LATER)
REFUSED = Kind("redis-unfit", 503, "The Redis server cannot be used as it is")
WORKER_FAILED = Kind("worker-failed", 503, "A worker in this process has failed")
BUSY = Kind("busy", 503, "Too many connections", _SOON)
UNCONFIRMED = Kind("unconfirmed", 504, "The jobs are enqueued, but the copies asked for are not confirmed")

INVALID: tuple[Kind, ...] = (
    INVALID_JOB, INVALID_LIMIT, INVALID_GROUP, INVALID_SCHEDULE, INVALID_WEBHOOK, INVALID_SETTING,
)  # fmt: skip
"""The kinds that stand for ``InvalidJob``. Each route has one of them, see ``Route``."""

KINDS: tuple[Kind, ...] = tuple(kind for kind in list(globals().values()) if isinstance(kind, Kind))


class HttpProblem(Exception):
    """An error that the REST interface itself finds."""

    def __init__(self, kind: Kind, detail: str, *, headers: Mapping[str, str] | None = None, **fields: Any) -> None:
        self.kind = kind
        self.detail = detail
        self.headers = headers or {}
        self.fields = fields
        super().__init__(detail)


class _Row(NamedTuple):
    kind: Kind
    fields: tuple[str, ...] = ()
    """Attributes of the exception that become members of the problem, as ``name=attribute`` if the names differ."""
    detail: str = ""
    """Replaces the exception's own text if that could reveal internals, such as addresses."""


_FAILURE = ("error_type=type", "error_message=message", "traceback")

TABLE: dict[type[BaseException], _Row] = {
    BadJSON: _Row(INVALID_JSON),
    errors.InvalidJob: _Row(INVALID_JOB),
    errors.GroupFull: _Row(GROUP_FULL, ("group",)),
    errors.UnknownBreaker: _Row(UNKNOWN_BREAKER, ("known",)),
    errors.UnknownRule: _Row(UNKNOWN_RULE, ("rule", "known")),
    errors.UnknownType: _Row(UNKNOWN_TYPE, ("known",)),
    errors.PayloadTooLarge: _Row(TOO_LARGE, ("size", "limit")),
    errors.IdempotencyConflict: _Row(IDEMPOTENCY_CONFLICT, ("job_id",)),
    errors.JobIdTaken: _Row(JOB_ID_TAKEN, ("job_id",)),
    errors.KeyTaken: _Row(KEY_TAKEN, ("job_id", "key", "state")),
    errors.InvalidQuery: _Row(INVALID_QUERY),
    errors.JobNotFound: _Row(JOB_NOT_FOUND),
    errors.ScheduleNotFound: _Row(SCHEDULE_NOT_FOUND),
    errors.WebhookNotFound: _Row(WEBHOOK_NOT_FOUND),
    errors.WrongState: _Row(WRONG_STATE, ("state", "allowed")),
    errors.JobFailed: _Row(JOB_FAILED, _FAILURE),
    errors.JobExpired: _Row(JOB_EXPIRED, _FAILURE),
    errors.JobKilled: _Row(JOB_KILLED, _FAILURE),
    errors.UnreadableResult: _Row(UNREADABLE_RESULT),
    errors.StoreUnavailable: _Row(
        UNAVAILABLE,
        detail="Redis does not answer; repeat the request (an Idempotency-Key makes sure that it enqueues once)",
    ),
    errors.StoreFull: _Row(
        FULL,
        detail="Redis is at maxmemory and accepts no new jobs, but workers go on; repeat later or add memory",
    ),
    errors.StoreRefused: _Row(REFUSED, detail="Redis must be configured differently; the server's log says how"),
    errors.DurabilityRefused: _Row(DURABILITY_REFUSED),
    errors.DurabilityUnavailable: _Row(
        UNCONFIRMED,
        detail="the jobs are enqueued, but the copies or the fsync asked for were not confirmed in time;"
        " repeating with the same Idempotency-Key is harmless",
    ),
    HttpProcessingError: _Row(MALFORMED_REQUEST),
    web.RequestPayloadError: _Row(MALFORMED_REQUEST, detail="the body is incomplete or not encoded as its headers say"),
}


def response(error: Exception, docs: str | None = None, invalid: Kind = INVALID_JOB) -> web.Response:
    """The answer to an exception: a problem of the table, or 500 with a traceback in the log. ``docs``: the path of
    the page of this server that describes all kinds of problems. ``invalid``: see ``Route``."""
    kind, body, headers = describe(error, invalid)
    body |= help_of(kind, docs)
    return web.Response(status=body["status"], body=encode(body), headers=_HEADERS | dict(kind.headers) | dict(headers))


def causes(kind: Kind) -> list[type[errors.JobqError]]:
    """The exceptions that are answered with this kind."""
    if kind in INVALID:
        return [errors.InvalidJob]
    return [one for one, row in TABLE.items() if row.kind == kind and issubclass(one, errors.JobqError)]


def help_of(kind: Kind, docs: str | None) -> dict[str, str]:
    """The member that leads to the description of a problem. ``docs``: the path of the page, if it is known."""
    return {} if docs is None else {"help": f"{docs}#{kind.slug}"}


def describe(error: Exception, invalid: Kind = INVALID_JOB) -> tuple[Kind, dict[str, Any], Mapping[str, str]]:
    """The kind of problem for an exception, its body and its extra headers."""
    if type(error) is errors.InvalidJob:
        return invalid, _body(invalid, str(error), {}), {}
    if isinstance(error, HttpProblem):
        return error.kind, _body(error.kind, error.detail, error.fields), error.headers
    if isinstance(error, msgspec.ValidationError):
        return describe(validation_problem(error))
    if isinstance(error, web.HTTPException):
        return HTTP_ERROR, _body(HTTP_ERROR, error.reason, {}) | {"status": error.status}, {}
    for base in type(error).__mro__:
        if row := TABLE.get(base):
            fields = {
                name: getattr(error, attribute or name) for name, _, attribute in (f.partition("=") for f in row.fields)
            }
            return row.kind, _body(row.kind, row.detail or str(error), fields), {}
    _log.error("A request failed, and was answered with 500", exc_info=error)
    return INTERNAL, _body(INTERNAL, "the server's log has the traceback; please report it", {}), {}


def encode(body: Any) -> bytes:
    """Encode as JSON. Lone surrogates, which a broken header may contain, become escapes."""
    try:
        return _encode(body)
    except UnicodeEncodeError:
        return _encode({name: _visible(value) for name, value in body.items()})


def _visible(value: Any) -> Any:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _body(kind: Kind, detail: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": kind.type, "title": kind.title, "status": kind.status, "detail": detail, **fields}


_UNKNOWN = "Object contains unknown field `"
_MISSING = "Object missing required field `"
_DETAIL_MAX = 1000
"""Characters of msgspec's message that are sent back; it may quote a value of the client in full."""


def validation_problem(error: msgspec.ValidationError, struct: type[msgspec.Struct] | None = None) -> HttpProblem:
    """The problem that names the field that msgspec refused. ``struct``: the type of the whole value."""
    # The path is made by msgspec and comes last. The text before it may quote the client and be long, so it is not
    # searched with a regular expression.
    message, _, path = str(error).rpartition(" - at `$")
    message, path = (message, path.removesuffix("`").removeprefix(".")) if message else (str(error), "")
    for start, kind in ((_UNKNOWN, UNKNOWN_FIELD), (_MISSING, MISSING_FIELD)):
        if message.startswith(start):
            name = message.removeprefix(start).removesuffix("`")
            known = fields_at(struct, path)
            field = f"{path}.{name}" if path else name
            does = "there is no field" if kind is UNKNOWN_FIELD else "missing:"
            allowed = f"; the fields are: {', '.join(known)}" if known else ""
            return HttpProblem(kind, f"{does} {field[:200]!r}{allowed}", field=field[:200], **_known(known))
    message = message[:_DETAIL_MAX]
    if message.startswith("Invalid enum value") and (choices := choices_at(struct, path)):
        message += f"; it takes {', '.join(choices)}"
    if not path:
        return HttpProblem(INVALID_FIELD, message)
    return HttpProblem(INVALID_FIELD, f"{path}: {message}", field=path)


def _known(known: list[str]) -> dict[str, Any]:
    return {"allowed": known} if known else {}


def not_found(queue: str, known: list[str]) -> NoReturn:
    """Raise the problem for a queue that is not served here."""
    raise HttpProblem(
        UNKNOWN_QUEUE, f"no queue {queue[:80]!r} here; this server serves: {', '.join(known)}", known=known
    )
