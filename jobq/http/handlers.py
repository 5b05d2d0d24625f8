"""The handlers of the routes. Each reads its request, calls a method of the queue, and answers."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from jobq.engine.model.job import AttemptError, State
from jobq.engine.queue.results import failure_kind
from jobq.errors import JobFailed, UnreadableResult
from jobq.http import bodies, problems, schema
from jobq.http.call import ApiCall, decode, given, no_content, reply

if TYPE_CHECKING:
    from aiohttp import web

    from jobq.engine.model.views import JobRow, Stats
    from jobq.engine.queue.queue import Queue

_priority = msgspec.json.Decoder(schema.SetPriority)


async def show(call: ApiCall) -> web.Response:
    queue, job_id = call.job()
    return reply(bodies.public(await queue.get(job_id), tracebacks=call.tracebacks))


async def page(call: ApiCall) -> web.Response:
    query = call.query(schema.ListQuery)
    found = await call.queue.briefs(
        given(query.state),
        type=given(query.type),
        group=given(query.group),
        limit=query.limit,
        cursor=given(query.cursor),
    )
    return reply(bodies.Jobs([bodies.JobBrief.of(row) for row in found.jobs], found.cursor))


async def failed(call: ApiCall) -> web.Response:
    query = call.query(schema.FailedQuery)
    found = await call.queue.page(State.FAILED, limit=query.limit, cursor=given(query.cursor))
    rows = [bodies.FailedJob.of(row, tracebacks=call.tracebacks) for row in found.jobs]
    return reply(bodies.FailedJobs(rows, found.cursor))


async def stats(call: ApiCall) -> web.Response:
    return reply(await call.queue.stats())


async def workers(call: ApiCall) -> web.Response:
    return reply(bodies.Workers(await call.queue.workers()))


async def types(call: ApiCall) -> web.Response:
    return reply(bodies.Types(await call.queue.types()))


async def logs(call: ApiCall) -> web.Response:
    queue, job_id = call.job()
    return reply(bodies.Logs(await queue.logs(job_id)))


async def result(call: ApiCall) -> web.Response:
    queue, job_id = call.job()
    wait = call.query(schema.WaitQuery).wait
    try:
        if wait:
            with suppress(TimeoutError):
                async with call.hub.polling(wait / 1000):
                    return reply(await queue.result(job_id))
        return _outcome(await queue.get(job_id))
    except JobFailed as error:
        if call.tracebacks:
            raise
        # All waiters of a job share one exception. Others may see its traceback, so it must not be changed here.
        raise type(error)(error.job_id, error.type, error.message) from None


def _outcome(row: JobRow) -> web.Response:
    if row.state is State.COMPLETED:
        if "result" in row.unreadable:
            raise UnreadableResult(row.id, row.unreadable["result"])
        return reply(row.result)
    if row.state is State.FAILED:
        last = row.errors[-1] if row.errors else AttemptError(0, row.finished_at or 0, "unknown", "no record")
        raise failure_kind(last)(row.id, last.type, last.message, last.traceback)
    return reply(bodies.Moved(f"{row.queue}:{row.id}", row.state), 202)


async def pause(call: ApiCall) -> web.Response:
    queue = call.queue
    await queue.pause()
    call.audit("pause", queue)
    return reply(bodies.Paused(queue.name, paused=True))


async def resume(call: ApiCall) -> web.Response:
    queue = call.queue
    await queue.resume()
    call.audit("resume", queue)
    return reply(bodies.Paused(queue.name, paused=False))


async def kill(call: ApiCall) -> web.Response:
    queue, job_id = call.job()
    await queue.kill(job_id)
    call.audit("kill", queue, job=job_id)
    return _moved(queue, job_id, State.FAILED)


async def remove(call: ApiCall) -> web.Response:
    queue, job_id = call.job()
    await queue.remove(job_id)
    call.audit("remove", queue, job=job_id)
    return no_content()


async def retry(call: ApiCall) -> web.Response:
    queue, job_id = call.job()
    await queue.retry(job_id)
    call.audit("retry", queue, job=job_id)
    return _moved(queue, job_id, State.WAITING)


async def promote(call: ApiCall) -> web.Response:
    queue, job_id = call.job()
    await queue.promote(job_id)
    return _moved(queue, job_id, State.WAITING)


def _moved(queue: Queue, job_id: str, state: State) -> web.Response:
    return reply(bodies.Moved(f"{queue.name}:{job_id}", state))


async def reprioritise(call: ApiCall) -> web.Response:
    queue, job_id = call.job()
    body = decode(_priority, await call.body())
    await queue.reprioritise(job_id, body.priority)
    return reply(bodies.Prioritised(f"{queue.name}:{job_id}", body.priority))


async def retry_many(call: ApiCall) -> web.Response:
    query, queue = call.query(schema.RetryMany), call.queue
    group = given(query.group)
    count = await queue.retry_all(
        State(query.state), group=group, older_than=_seconds(query.older_than), limit=query.limit
    )
    call.audit("retry many", queue, state=query.state, group=group, count=count)
    return reply(bodies.Count(count))


async def remove_many(call: ApiCall) -> web.Response:
    query, queue = call.query(schema.RemoveMany), call.queue
    group = given(query.group)
    count = await queue.remove_all(
        State(query.state), group=group, older_than=_seconds(query.older_than), limit=query.limit
    )
    call.audit("remove many", queue, state=query.state, group=group, count=count)
    return reply(bodies.Count(count))


async def kill_many(call: ApiCall) -> web.Response:
    query, queue = call.query(schema.KillMany), call.queue
    group = given(query.group)
    count = await queue.kill_all(State(query.state), group=group, limit=query.limit)
    call.audit("kill many", queue, state=query.state, group=group, count=count)
    return reply(bodies.Count(count))


async def promote_many(call: ApiCall) -> web.Response:
    query, queue = call.query(schema.PromoteMany), call.queue
    group = given(query.group)
    count = await queue.promote_all(group=group, limit=query.limit)
    call.audit("promote many", queue, group=group, count=count)
    return reply(bodies.Count(count))


async def reprioritise_many(call: ApiCall) -> web.Response:
    query, queue = call.query(schema.PrioritiseMany), call.queue
    group, body = given(query.group), decode(_priority, await call.body())
    count = await queue.reprioritise_all(State(query.state), body.priority, group=group, limit=query.limit)
    call.audit("reprioritise many", queue, state=query.state, priority=body.priority, group=group, count=count)
    return reply(bodies.Count(count))


def _seconds(ms: int | UnsetType) -> float | None:
    return None if ms is UNSET else ms / 1000


async def queues(call: ApiCall) -> web.Response:
    hub = call.hub
    mine = [queue for queue in hub.queues.values() if call.key.may_reach(queue.name)]
    found = await asyncio.gather(*(queue.stats() for queue in mine))
    return reply(bodies.Queues([_queue(queue, stats, hub.default) for queue, stats in zip(mine, found, strict=True)]))


def _queue(queue: Queue, stats: Stats, default: Queue) -> bodies.QueueBrief:
    return bodies.QueueBrief(
        queue.name, queue is default, stats.paused, sorted(queue.tasks),
        stats.waiting, stats.delayed, stats.active, stats.completed, stats.failed,
    )  # fmt: skip


async def alive(_: ApiCall) -> web.Response:
    return reply(bodies.Health())


async def ready(call: ApiCall) -> web.Response:
    error = await call.hub.readiness.check()
    return reply(bodies.Ready(call.hub.duties.failing)) if error is None else problems.response(error)
