"""The table of routes. Requests, the OpenAPI document and the page at /docs are made from it."""

from __future__ import annotations

from typing import Any

from jobq.engine.model.event import QueueEvent
from jobq.engine.model.history import Performance
from jobq.engine.model.scale import Scale
from jobq.engine.model.views import JobRow, Stats
from jobq.engine.model.webhook import Webhook
from jobq.engine.model.why import Why
from jobq.http import (
    aging,
    bodies,
    enqueue,
    events,
    groups,
    handlers,
    metrics,
    partitions,
    performance,
    rerun,
    schema,
    streams,
    webhooks,
    why,
)
from jobq.http import problems as p
from jobq.http.auth import Scope
from jobq.http.flow_routes import FLOW_ROUTES
from jobq.http.route import Route

_STATES = (p.JOB_NOT_FOUND, p.WRONG_STATE)
_JOB = "/jobs/{id}"
_WEBHOOK = "/webhooks/{name}"
_WEBHOOKS = (p.WEBHOOK_NOT_FOUND,)

ROUTES: tuple[Route, ...] = (
    Route(
        method="POST", path="/jobs/enqueue", scope=Scope.WRITE, handler=enqueue.enqueue,
        summary="Enqueue a job, or many",
        description="Answers 201 for a new job, and 200 with `duplicate` for a job that exists already (found by `key`,"
        " `unique` or Idempotency-Key), with its `state` and what was `done` with it. An array of jobs gets an array of"
        " answers in the same order: 201 if all were accepted,"
        " 207 if at least one was refused. The answer of a refused job is a problem; the other jobs are enqueued."
        " With the header Idempotency-Key the request can be repeated for 24 hours, even after the job was removed."
        " An idempotency key is valid for one API key and one queue; in an array it is valid for each position.",
        request=schema.Enqueue | list[schema.Enqueue], query=schema.EnqueueQuery,
        responses={
            200: bodies.Enqueued,
            201: bodies.Enqueued | list[bodies.Enqueued],
            207: list[bodies.BulkAnswer],
        },
        errors=(
            p.UNKNOWN_RULE, p.UNKNOWN_TYPE, p.IDEMPOTENCY_CONFLICT, p.JOB_ID_TAKEN, p.KEY_TAKEN,
            p.TOO_LARGE, p.FULL, p.DURABILITY_REFUSED, p.UNCONFIRMED,
        ),
        invalid=p.INVALID_JOB,
    ),
    Route(
        method="GET", path="/jobs", scope=Scope.READ, handler=handlers.page,
        summary="List jobs", query=schema.ListQuery,
        description="Unfinished jobs in the order in which they will run, finished jobs newest first. Pass `cursor` to"
        " the next request until it is null. Any page before that may be short or empty.",
        responses={200: bodies.Jobs}, errors=(p.INVALID_QUERY,),
    ),
    Route(
        method="DELETE", path="/jobs", scope=Scope.ADMIN, handler=handlers.remove_many,
        summary="Remove many jobs", query=schema.RemoveMany,
        description="Selected by state and age, oldest first. Call again while `count` equals `limit`.",
        responses={200: bodies.Count}, errors=(p.INVALID_QUERY,),
    ),
    Route(
        method="GET", path="/jobs/stats", scope=Scope.READ, handler=handlers.stats,
        summary="Counts, totals and latencies", responses={200: Stats},
    ),
    Route(
        method="GET", path="/performance", scope=Scope.READ, handler=performance.performance,
        summary="Throughput, failures and latencies of each type", query=performance.PerformanceQuery,
        description="Of the runs that ended in the last hour, day or week. The window begins with a whole interval, at"
        " `since`. They do not depend on how long finished jobs are kept.",
        responses={200: Performance}, errors=(p.INVALID_QUERY,),
    ),
    Route(
        method="GET", path="/scale", scope=Scope.READ, handler=performance.scale,
        summary="How many workers the queue needs", query=performance.ScaleQuery,
        description="`replicas` is always a number. It follows from the jobs that arrive, the time that runs take and"
        " the backlog, without jobs that a limit holds. For autoscalers such as KEDA.",
        responses={200: Scale}, errors=(p.INVALID_QUERY,),
    ),
    Route(
        method="GET", path="/jobs/failed/jobs", scope=Scope.READ, handler=handlers.failed,
        summary="Failed jobs: error, attempts, traceback", query=schema.FailedQuery,
        description="Newest first. Tracebacks need the scope `write`.",
        responses={200: bodies.FailedJobs}, errors=(p.INVALID_QUERY,),
    ),
    Route(
        method="POST", path="/jobs/pause", scope=Scope.ADMIN, handler=handlers.pause,
        summary="Pause the queue",
        description="No worker on any machine takes another job until the queue is resumed. Running jobs continue.",
        responses={200: bodies.Paused},
    ),
    Route(
        method="POST", path="/jobs/resume", scope=Scope.ADMIN, handler=handlers.resume,
        summary="Resume the queue", responses={200: bodies.Paused},
    ),
    Route(
        method="GET", path="/charge", scope=Scope.READ, handler=groups.charge,
        summary="What a turn of a group costs", responses={200: groups.Charged},
    ),
    Route(
        method="PUT", path="/charge", scope=Scope.ADMIN, handler=groups.set_charge,
        summary="Set what a turn of a group costs", request=groups.SetCharge,
        description="It acts at once, also on jobs that run. Programs that declare another `Queue(charge=...)` do not"
        " change it.",
        responses={200: groups.Charged},
    ),
    Route(
        method="PUT", path="/aging", scope=Scope.ADMIN, handler=aging.set_aging,
        summary="Set how much waiting a step of priority is worth", request=aging.SetAging,
        description="It acts at once, and jobs that wait count as enqueued now. It is refused while more than 1,000"
        " jobs wait. Programs that declare another value are refused when they start. `GET /jobs/stats` shows it.",
        responses={200: aging.AgingSet}, invalid=p.INVALID_SETTING,
    ),
    Route(
        method="GET", path="/partitions", scope=Scope.READ, handler=partitions.partitions,
        summary="Over how many partitions a queue is spread", responses={200: partitions.Partitioned},
    ),
    Route(
        method="PUT", path="/partitions", scope=Scope.ADMIN, handler=partitions.set_partitions,
        summary="Set over how many partitions a queue is spread", request=partitions.SetPartitions,
        description="It acts while the queue is in use, and no job moves. There are never fewer than `homes`.",
        responses={200: partitions.Partitioned}, invalid=p.INVALID_SETTING,
    ),
    Route(
        method="POST", path="/jobs/kill", scope=Scope.ADMIN, handler=handlers.kill_many,
        summary="Kill many jobs", query=schema.KillMany,
        description="Unfinished jobs of a state, or those of one group. Call again while `count` equals `limit`.",
        responses={200: bodies.Count}, errors=(p.INVALID_QUERY,),
    ),
    Route(
        method="POST", path="/jobs/promote", scope=Scope.ADMIN, handler=handlers.promote_many,
        summary="Run delayed jobs now", query=schema.PromoteMany,
        description="All delayed jobs, or those of one group. Call again while `count` equals `limit`.",
        responses={200: bodies.Count}, errors=(p.INVALID_QUERY,),
    ),
    Route(
        method="POST", path="/jobs/priority", scope=Scope.ADMIN, handler=handlers.reprioritise_many,
        summary="Give many jobs another priority", query=schema.PrioritiseMany, request=schema.SetPriority,
        description="Jobs of a state that have not started, or those of one group. They keep their order in time."
        " `count` are those that had another priority. Call again while it equals `limit`.",
        responses={200: bodies.Count}, errors=(p.INVALID_QUERY,),
    ),
    Route(
        method="POST", path="/jobs/retry", scope=Scope.ADMIN, handler=handlers.retry_many,
        summary="Retry many jobs", query=schema.RetryMany,
        description="Selected by state and age, oldest first. Call again while `count` equals `limit`.",
        responses={200: bodies.Count}, errors=(p.INVALID_QUERY,),
    ),
    Route(
        method="GET", path=_JOB, scope=Scope.READ, handler=handlers.show,
        summary="Show a job in full", description="Tracebacks need the scope `write`.",
        responses={200: JobRow}, errors=(p.JOB_NOT_FOUND,),
    ),
    Route(
        method="DELETE", path=_JOB, scope=Scope.ADMIN, handler=handlers.remove, summary="Remove a job",
        description="Removes its result, errors and log lines too. Kill an active job first.",
        responses={204: None}, errors=_STATES,
    ),
    Route(
        method="GET", path=f"{_JOB}/result", scope=Scope.READ, handler=handlers.result,
        summary="Wait for the result", query=schema.WaitQuery,
        description="Answers 200 with the value that the handler returned, 202 if the job has not ended after `wait`"
        " ms, and 409 if it failed, expired or was killed.",
        responses={200: Any, 202: bodies.Moved},
        errors=(p.JOB_NOT_FOUND, p.JOB_FAILED, p.JOB_KILLED, p.JOB_EXPIRED, p.UNREADABLE_RESULT),
    ),
    Route(
        method="GET", path=f"{_JOB}/logs", scope=Scope.READ, handler=handlers.logs,
        summary="Log lines of a job", responses={200: bodies.Logs}, errors=(p.JOB_NOT_FOUND,),
    ),
    Route(
        method="GET", path=f"{_JOB}/why", scope=Scope.READ, handler=why.why,
        summary="Why a job does not run, and about when it will",
        description="`reasons`: the one that decides first comes first. Each has a stable `code`. `starts_in_ms` is an"
        " estimate; null if nobody can know.",
        responses={200: Why}, errors=(p.JOB_NOT_FOUND,),
    ),
    Route(
        method="GET", path="/why", scope=Scope.READ, handler=why.why_queue,
        summary="Why the queue runs no job", responses={200: Why},
        description="The same reasons for the whole queue. `state` and `starts_in_ms` are null.",
    ),
    Route(
        method="POST", path=f"{_JOB}/kill", scope=Scope.WRITE, handler=handlers.kill, summary="Kill a job",
        description="An unfinished job goes to failed; a running handler is stopped.",
        responses={200: bodies.Moved}, errors=_STATES,
    ),
    Route(
        method="POST", path=f"{_JOB}/retry", scope=Scope.WRITE, handler=handlers.retry,
        summary="Run a finished job again", responses={200: bodies.Moved}, errors=_STATES,
    ),
    Route(
        method="POST", path=f"{_JOB}/rerun", scope=Scope.WRITE, handler=rerun.rerun,
        summary="Run a job again as a new job", query=schema.RerunQuery, request=schema.Rerun,
        description="With the payload and the options of the earlier job, except for times, unless the body replaces"
        " them. The body may be empty. `rerun_of` of the new job and `reruns` of the earlier one link them. A key that"
        " is held is a 409 that names the holder. `Idempotency-Key` makes it repeatable.",
        responses={201: bodies.Enqueued, 200: bodies.Enqueued},
        errors=(p.JOB_NOT_FOUND, p.KEY_TAKEN, p.UNKNOWN_TYPE, p.TOO_LARGE, p.FULL), invalid=p.INVALID_JOB,
    ),
    Route(
        method="POST", path=f"{_JOB}/promote", scope=Scope.WRITE, handler=handlers.promote,
        summary="Run a delayed job now", responses={200: bodies.Moved}, errors=_STATES,
    ),
    Route(
        method="POST", path=f"{_JOB}/priority", scope=Scope.WRITE, handler=handlers.reprioritise,
        summary="Change a job's priority", request=schema.SetPriority,
        responses={200: bodies.Prioritised}, errors=_STATES,
    ),
    Route(
        method="GET", path="/workers", scope=Scope.READ, handler=handlers.workers,
        summary="The queue's workers", responses={200: bodies.Workers},
    ),
    Route(
        method="GET", path="/types", scope=Scope.READ, handler=handlers.types,
        summary="The types that workers and servers publish",
        description="With the default options and the JSON Schema of each type. `differing` lists the types for which"
        " two processes publish different ones.",
        responses={200: bodies.Types},
    ),
    *FLOW_ROUTES,
    Route(
        method="GET", path="/events", scope=Scope.READ, handler=events.events,
        summary="What happens to jobs, live", query=events.EventsQuery,
        description="Server-Sent Events, in the order in which they happened. The id of each is its cursor, so a"
        " browser that connects again continues behind the last one (Last-Event-ID). An event `missed` says that"
        " events were dropped before they were read, `problem` that Redis does not answer. With `job` the stream"
        " ends after the job has ended, and 204 is the answer to a browser that connects again. Other streams end after"
        " an hour.",
        responses={200: QueueEvent, 204: None}, errors=(p.BUSY, p.JOB_NOT_FOUND, p.INVALID_QUERY),
        media="text/event-stream",
    ),
    Route(
        method="PUT", path="/events", scope=Scope.ADMIN, handler=events.set_events,
        summary="Set which events the queue tells", request=events.SetEvents,
        description="`outcomes`, or `all`: also each start and each progress. It acts at once. Programs that declare"
        " another `Queue(events=...)` do not change it.",
        responses={200: events.EventsSet},
    ),
    Route(
        method="GET", path="/jobs/stats/events", scope=Scope.READ, handler=streams.stats_events,
        summary="The queue's stats, live",
        description="Server-Sent Events: once a second a `stats` event with the answer of /jobs/stats, or a `problem`"
        " event while Redis does not answer. The stream ends after an hour; EventSource opens it again.",
        responses={200: Stats}, errors=(p.BUSY,), media="text/event-stream",
    ),
    Route(
        method="GET", path="/webhooks", scope=Scope.ADMIN, handler=webhooks.webhooks,
        summary="The webhooks of the queue", responses={200: webhooks.Webhooks},
        description="Addresses that are told of events of the queue. Servers deliver, by jobs of the queue"
        " `<queue>.webhooks`.",
    ),
    Route(
        method="GET", path=_WEBHOOK, scope=Scope.ADMIN, handler=webhooks.show_webhook,
        summary="A webhook", responses={200: Webhook}, errors=_WEBHOOKS, invalid=p.INVALID_WEBHOOK,
    ),
    Route(
        method="PUT", path=_WEBHOOK, scope=Scope.ADMIN, handler=webhooks.put_webhook,
        summary="Make or change a webhook", request=webhooks.PutWebhook, responses={200: Webhook},
        invalid=p.INVALID_WEBHOOK,
        description="It is told of events from now on, in the format of Standard Webhooks. The answer that makes it has"
        " its `secret`; nobody can read that later. It also enables a webhook that jobq has disabled.",
    ),
    Route(
        method="DELETE", path=_WEBHOOK, scope=Scope.ADMIN, handler=webhooks.delete_webhook,
        summary="Remove a webhook", responses={204: None}, errors=_WEBHOOKS, invalid=p.INVALID_WEBHOOK,
    ),
    Route(
        method="GET", path=f"{_WEBHOOK}/deliveries", scope=Scope.ADMIN, handler=webhooks.webhook_deliveries,
        summary="The last deliveries of a webhook", query=webhooks.DeliveriesQuery,
        responses={200: webhooks.WebhookDeliveries}, errors=_WEBHOOKS, invalid=p.INVALID_WEBHOOK,
        description="Those that were tried, newest first. They are searched among the newest 2,000 of each state.",
    ),
    Route(
        method="POST", path=f"{_WEBHOOK}/rotate", scope=Scope.ADMIN, handler=webhooks.rotate_webhook,
        summary="Give a webhook a new secret", responses={200: Webhook}, errors=_WEBHOOKS, invalid=p.INVALID_WEBHOOK,
        description="The answer has it. For 24 hours deliveries are signed with the earlier one, too.",
    ),
    Route(
        method="POST", path=f"{_WEBHOOK}/test", scope=Scope.ADMIN, handler=webhooks.test_webhook,
        summary="Deliver a test event", description="`id` is the job that delivers it.",
        responses={202: webhooks.WebhookTested}, errors=_WEBHOOKS, invalid=p.INVALID_WEBHOOK,
    ),
    Route(
        method="GET", path="/queues", scope=Scope.READ, handler=handlers.queues,
        summary="The queues served here", responses={200: bodies.Queues}, per_queue=False,
    ),
    Route(
        method="GET", path="/metrics", scope=Scope.READ, handler=metrics.metrics,
        summary="The numbers of all queues, for Prometheus",
        description="In the text format of Prometheus, of the queues that the key may reach. It needs the package"
        " prometheus-client: the extra `metrics`.",
        responses={200: str}, errors=(p.NOT_INSTALLED,), per_queue=False, media="text/plain",
    ),
    Route(
        method="GET", path="/healthz", scope=Scope.PUBLIC, handler=handlers.alive, summary="Alive",
        description="The process answers.", responses={200: bodies.Health}, per_queue=False,
    ),
    Route(
        method="GET", path="/readyz", scope=Scope.PUBLIC, handler=handlers.ready, summary="Ready",
        description="A script runs on Redis, and no worker of this process has failed. `failing` names what else has"
        " failed of the server's own work. It stays ready, because another server would fail in the same way.",
        responses={200: bodies.Ready}, errors=(p.UNAVAILABLE, p.REFUSED, p.WORKER_FAILED), per_queue=False,
    ),
)  # fmt: skip
