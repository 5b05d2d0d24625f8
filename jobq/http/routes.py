"""The table of routes. Requests, the OpenAPI document and the page at /docs are made from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from jobq.engine.model.views import JobRow, Stats
from jobq.http import enqueue, events, handlers, schema
from jobq.http import problems as p
from jobq.http.auth import Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import web

    from jobq.http.call import ApiCall


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One row. ``responses``: what it answers with, by status. ``errors``: the problems of its own, see
    ``problems_of``.

    ``per_queue``: it also stands under /queues/{queue}, where it means that queue instead of the default.
    ``media``: the content type of its answers.
    """

    method: str
    path: str
    scope: Scope
    handler: Callable[[ApiCall], Awaitable[web.StreamResponse]]
    summary: str
    responses: dict[int, Any]
    description: str = ""
    request: Any = None
    query: type[msgspec.Struct] | None = None
    errors: tuple[p.Kind, ...] = ()
    per_queue: bool = True
    media: str = "application/json"

    def paths(self) -> list[str]:
        """Where it stands."""
        return [self.path, f"/queues/{{queue}}{self.path}"] if self.per_queue else [self.path]


_STATES = (p.JOB_NOT_FOUND, p.WRONG_STATE)
_JOB = "/jobs/{id}"

ROUTES: tuple[Route, ...] = (
    Route(
        method="POST", path="/jobs/enqueue", scope=Scope.WRITE, handler=enqueue.enqueue,
        summary="Enqueue a job, or many",
        description="201 for a new job, 200 with `duplicate` for one that was there already (by `key` or"
        " Idempotency-Key). An array of jobs gets an array of answers in its order: 201 when all were taken, 207"
        " when at least one was refused, whose answer is then a problem; the others are enqueued. With the header"
        " Idempotency-Key the request can be repeated for 24 hours, also after the job was removed. Such a key counts"
        " for one API key and one queue; in an array each place has one of its own.",
        request=schema.Enqueue | list[schema.Enqueue], query=schema.EnqueueQuery,
        responses={
            200: schema.Enqueued,
            201: schema.Enqueued | list[schema.Enqueued],
            207: list[schema.BulkAnswer],
        },
        errors=(
            p.INVALID_JOB, p.UNKNOWN_TYPE, p.IDEMPOTENCY_CONFLICT, p.JOB_ID_TAKEN, p.TOO_LARGE, p.FULL,
            p.DURABILITY_REFUSED, p.UNCONFIRMED,
        ),
    ),
    Route(
        method="GET", path="/jobs", scope=Scope.READ, handler=handlers.page,
        summary="List jobs", query=schema.ListQuery,
        description="Unfinished ones in their order, finished ones newest first. Pass `cursor` on until it is null;"
        " a page may be short, or empty, before that.",
        responses={200: schema.Jobs}, errors=(p.INVALID_QUERY,),
    ),
    Route(
        method="DELETE", path="/jobs", scope=Scope.ADMIN, handler=handlers.remove_many,
        summary="Remove many jobs", query=schema.RemoveMany,
        description="By state and age, oldest first. ApiCall again while `count` equals `limit`.",
        responses={200: schema.Count}, errors=(p.INVALID_QUERY,),
    ),
    Route(
        method="GET", path="/jobs/stats", scope=Scope.READ, handler=handlers.stats,
        summary="Counts, totals and latencies", responses={200: Stats},
    ),
    Route(
        method="GET", path="/jobs/failed/jobs", scope=Scope.READ, handler=handlers.failed,
        summary="Failed jobs: error, attempts, traceback", query=schema.FailedQuery,
        description="Newest first. Tracebacks need the scope `write`.",
        responses={200: schema.FailedJobs}, errors=(p.INVALID_QUERY,),
    ),
    Route(
        method="POST", path="/jobs/pause", scope=Scope.ADMIN, handler=handlers.pause,
        summary="Pause the queue",
        description="No worker takes another job, on any machine, until it is resumed. Running jobs go on.",
        responses={200: schema.Paused},
    ),
    Route(
        method="POST", path="/jobs/resume", scope=Scope.ADMIN, handler=handlers.resume,
        summary="Resume the queue", responses={200: schema.Paused},
    ),
    Route(
        method="POST", path="/jobs/retry", scope=Scope.ADMIN, handler=handlers.retry_many,
        summary="Retry many jobs", query=schema.RetryMany,
        description="By state and age, oldest first. ApiCall again while `count` equals `limit`.",
        responses={200: schema.Count}, errors=(p.INVALID_QUERY,),
    ),
    Route(
        method="GET", path=_JOB, scope=Scope.READ, handler=handlers.show,
        summary="All there is to know of a job", description="Tracebacks need the scope `write`.",
        responses={200: JobRow}, errors=(p.JOB_NOT_FOUND,),
    ),
    Route(
        method="DELETE", path=_JOB, scope=Scope.ADMIN, handler=handlers.remove, summary="Remove a job",
        description="With all that is known of it. An active job has to be killed first.",
        responses={204: None}, errors=_STATES,
    ),
    Route(
        method="GET", path=f"{_JOB}/result", scope=Scope.READ, handler=handlers.result,
        summary="Wait for the result", query=schema.WaitQuery,
        description="200 with what the handler returned; 202 while the job has not ended after `wait` ms;"
        " 409 when it failed or was killed.",
        responses={200: Any, 202: schema.Moved},
        errors=(p.JOB_NOT_FOUND, p.JOB_FAILED, p.JOB_KILLED, p.UNREADABLE_RESULT),
    ),
    Route(
        method="GET", path=f"{_JOB}/logs", scope=Scope.READ, handler=handlers.logs,
        summary="What the handler logged", responses={200: schema.Logs}, errors=(p.JOB_NOT_FOUND,),
    ),
    Route(
        method="POST", path=f"{_JOB}/kill", scope=Scope.WRITE, handler=handlers.kill, summary="Kill a job",
        description="An unfinished job goes to failed; a running handler is stopped.",
        responses={200: schema.Moved}, errors=_STATES,
    ),
    Route(
        method="POST", path=f"{_JOB}/retry", scope=Scope.WRITE, handler=handlers.retry,
        summary="Run a finished job again", responses={200: schema.Moved}, errors=_STATES,
    ),
    Route(
        method="POST", path=f"{_JOB}/promote", scope=Scope.WRITE, handler=handlers.promote,
        summary="Run a delayed job now", responses={200: schema.Moved}, errors=_STATES,
    ),
    Route(
        method="POST", path=f"{_JOB}/priority", scope=Scope.WRITE, handler=handlers.reprioritise,
        summary="Change a job's priority", request=schema.SetPriority,
        responses={200: schema.Prioritised}, errors=_STATES,
    ),
    Route(
        method="GET", path="/workers", scope=Scope.READ, handler=handlers.workers,
        summary="The queue's workers", responses={200: schema.Workers},
    ),
    Route(
        method="GET", path="/types", scope=Scope.READ, handler=handlers.types,
        summary="The types that workers and servers publish",
        description="With the default options and the JSON Schema of each. `differing` is not empty while two of them"
        " publish different ones.",
        responses={200: schema.Types},
    ),
    Route(
        method="GET", path="/events", scope=Scope.READ, handler=events.events,
        summary="The queue's stats, live",
        description="Server-Sent Events: once a second a `stats` event with what /jobs/stats answers, or a `problem`"
        " while Redis cannot be asked. The stream ends after an hour; EventSource opens it again.",
        responses={200: Stats}, errors=(p.BUSY,), media="text/event-stream",
    ),
    Route(
        method="GET", path="/queues", scope=Scope.READ, handler=handlers.queues,
        summary="The queues served here", responses={200: schema.Queues}, per_queue=False,
    ),
    Route(
        method="GET", path="/healthz", scope=Scope.PUBLIC, handler=handlers.alive, summary="Alive",
        description="The process answers.", responses={200: schema.Health}, per_queue=False,
    ),
    Route(
        method="GET", path="/readyz", scope=Scope.PUBLIC, handler=handlers.ready, summary="Ready",
        description="A script runs on Redis, and no worker of this process has failed.",
        responses={200: schema.Health}, errors=(p.UNAVAILABLE, p.REFUSED, p.WORKER_FAILED), per_queue=False,
    ),
)  # fmt: skip


def problems_of(route: Route, path: str) -> list[p.Kind]:
    """Every problem that the route can answer with, at that path."""
    kinds = [*route.errors, p.MALFORMED_REQUEST]
    if "{queue}" in path:
        kinds.append(p.UNKNOWN_QUEUE)
    if route.request is not None:
        kinds += [
            p.INVALID_JSON, p.TIMEOUT, p.TOO_LARGE, p.UNSUPPORTED_MEDIA_TYPE,
            p.UNKNOWN_FIELD, p.MISSING_FIELD, p.INVALID_FIELD,
        ]  # fmt: skip
    if route.query is not None:
        kinds += [p.UNKNOWN_FIELD, p.MISSING_FIELD, p.INVALID_FIELD, p.INVALID_QUERY]
    if route.scope is not Scope.PUBLIC:
        kinds += [p.UNAUTHENTICATED, p.FORBIDDEN, p.MISDIRECTED, p.RATE_LIMITED, p.UNAVAILABLE, p.REFUSED]
        if route.method != "GET":
            kinds.append(p.CROSS_ORIGIN)
    return sorted(set(kinds), key=lambda kind: (kind.status, kind.slug))
