"""What each route does: a few lines between the wire and the queue's verbs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import asdict, astuple, replace

from jobq.engine.model import job
from jobq.engine.model.job import PLAIN, Accepted, AttemptError, Durability, JobRow, NewJob, State, Stats
from jobq.engine.queue.results import KILLED
from jobq.errors import InvalidJob, JobFailed, JobKilled, UnreadableResult
from jobq.http import problems, schema
from jobq.http.call import Call, decode, no_content, reply

if TYPE_CHECKING:
    from aiohttp import web

    from jobq.engine.queue.queue import Queue

_enqueue = msgspec.json.Decoder(schema.Enqueue)
_priority = msgspec.json.Decoder(schema.SetPriority)
_items = msgspec.json.Decoder(list[msgspec.Raw])
_OPTIONS = schema.Enqueue.__struct_fields__[2:]
"""All but the type and the payload."""
_NOTHING_GIVEN = (UNSET,) * len(_OPTIONS)

T = TypeVar("T")


async def enqueue(call: Call) -> web.Response:
    durability: Durability | None = given(call.query(schema.EnqueueQuery).durability)
    body = await call.body()
    if body.lstrip()[:1] == b"[":
        return await _enqueue_many(call, body, durability)
    queue = call.queue
    new = _new_job(queue, decode(_enqueue, body), call.idempotency_key)
    accepted = await queue.submit(new, durability=durability)
    return reply(_enqueued(queue, accepted), 200 if accepted.duplicate else 201)


async def _enqueue_many(call: Call, body: bytes, durability: Durability | None) -> web.Response:
    items = _items.decode(body)
    if not 1 <= len(items) <= call.hub.limits.bulk:
        limit = call.hub.limits.bulk
        raise problems.HttpProblem(
            problems.TOO_LARGE, f"{len(items)} jobs at once; send 1 to {limit} a request", limit=limit
        )
    key = call.idempotency_key
    queue = call.queue
    answers: list[Any] = []
    news: dict[int, NewJob] = {}
    for place, item in enumerate(items):
        try:
            new = _new_job(queue, decode(_enqueue, item), None if key is None else f"{key}/{place}")
            queue.check(new)
        except (InvalidJob, problems.HttpProblem) as error:
            answers.append(problems.describe(error)[1])
        else:
            news[place] = new
            answers.append(None)
    submitted = await _submit_many(queue, list(news.values()), durability, each=key is not None)
    for place, answer in zip(news, submitted, strict=True):
        answers[place] = _enqueued(queue, answer) if isinstance(answer, Accepted) else problems.describe(answer)[1]
    refused = sum(isinstance(answer, dict) for answer in answers)
    return reply(answers, 207 if refused else 201)


async def _submit_many(
    queue: Queue, news: list[NewJob], durability: Durability | None, *, each: bool
) -> list[Accepted | InvalidJob]:
    if not each:
        return [*await queue.submit_many(news, durability=durability)]
    # with keys each may be refused by itself; they still share trips
    submits = [queue.submit(new, durability=durability) for new in news]
    answers = await asyncio.gather(*submits, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, InvalidJob):
            raise answer
    return [answer for answer in answers if isinstance(answer, Accepted | InvalidJob)]


def _new_job(queue: Queue, body: schema.Enqueue, idempotency_key: str | None) -> NewJob:
    task = queue.tasks.get(body.type)
    options = task.defaults if task else PLAIN
    values = astuple(body)[2:]
    if values != _NOTHING_GIVEN:
        given = {name: value for name, value in zip(_OPTIONS, values, strict=True) if value is not UNSET}
        if isinstance(body.backoff, schema.Backoff):
            given["backoff"] = job.Backoff(**asdict(body.backoff))
        options = replace(options, **given)
    if isinstance(body.payload, msgspec.Raw):
        return NewJob(body.type, body.payload, options, idempotency_key)
    return NewJob(body.type, options=options, idempotency_key=idempotency_key)


def _enqueued(queue: Queue, accepted: Accepted) -> schema.Enqueued:
    return schema.Enqueued(f"{queue.name}:{accepted.id}", accepted.duplicate)


async def show(call: Call) -> web.Response:
    queue, job_id = call.job()
    return reply(schema.public(await queue.get(job_id), tracebacks=call.tracebacks))


def given(value: T | UnsetType) -> T | None:
    """None where a query says nothing."""
    return None if value is UNSET else value


async def page(call: Call) -> web.Response:
    query = call.query(schema.ListQuery)
    found = await call.queue.page(
        given(query.state), type=given(query.type), limit=query.limit, cursor=given(query.cursor)
    )
    return reply(schema.Jobs([schema.JobBrief.of(row) for row in found.jobs], found.cursor))


async def failed(call: Call) -> web.Response:
    query = call.query(schema.FailedQuery)
    found = await call.queue.page(State.FAILED, limit=query.limit, cursor=given(query.cursor))
    rows = [schema.FailedJob.of(row, tracebacks=call.tracebacks) for row in found.jobs]
    return reply(schema.FailedJobs(rows, found.cursor))


async def stats(call: Call) -> web.Response:
    return reply(await call.queue.stats())


async def workers(call: Call) -> web.Response:
    return reply(schema.Workers(await call.queue.workers()))


async def logs(call: Call) -> web.Response:
    queue, job_id = call.job()
    return reply(schema.Logs(await queue.logs(job_id)))


async def result(call: Call) -> web.Response:
    queue, job_id = call.job()
    wait = call.query(schema.WaitQuery).wait
    try:
        if wait:
            with suppress(TimeoutError):
                async with call.hub.polling(wait / 1000):
                    return reply(await queue.result(job_id))
        return _outcome(await queue.get(job_id))
    except JobFailed as error:
        error.traceback = error.traceback if call.tracebacks else None
        raise


def _outcome(row: JobRow) -> web.Response:
    if row.state is State.COMPLETED:
        if "result" in row.unreadable:
            raise UnreadableResult(row.id, row.unreadable["result"])
        return reply(row.result)
    if row.state is State.FAILED:
        last = row.errors[-1] if row.errors else AttemptError(0, row.finished_at or 0, "unknown", "no record")
        kind = JobKilled if last.type == KILLED else JobFailed
        raise kind(row.id, last.type, last.message, last.traceback)
    return reply(schema.Moved(f"{row.queue}:{row.id}", row.state), 202)


async def pause(call: Call) -> web.Response:
    queue = call.queue
    await queue.pause()
    call.audit("pause", queue)
    return reply(schema.Paused(queue.name, paused=True))


async def resume(call: Call) -> web.Response:
    queue = call.queue
    await queue.resume()
    call.audit("resume", queue)
    return reply(schema.Paused(queue.name, paused=False))


async def kill(call: Call) -> web.Response:
    queue, job_id = call.job()
    await queue.kill(job_id)
    call.audit("kill", queue, job=job_id)
    return _moved(queue, job_id, State.FAILED)


async def remove(call: Call) -> web.Response:
    queue, job_id = call.job()
    await queue.remove(job_id)
    call.audit("remove", queue, job=job_id)
    return no_content()


async def retry(call: Call) -> web.Response:
    queue, job_id = call.job()
    await queue.retry(job_id)
    call.audit("retry", queue, job=job_id)
    return _moved(queue, job_id, State.WAITING)


async def promote(call: Call) -> web.Response:
    queue, job_id = call.job()
    await queue.promote(job_id)
    return _moved(queue, job_id, State.WAITING)


def _moved(queue: Queue, job_id: str, state: State) -> web.Response:
    return reply(schema.Moved(f"{queue.name}:{job_id}", state))


async def reprioritise(call: Call) -> web.Response:
    queue, job_id = call.job()
    body = decode(_priority, await call.body())
    await queue.reprioritise(job_id, body.priority)
    return reply(schema.Prioritised(f"{queue.name}:{job_id}", body.priority))


async def retry_many(call: Call) -> web.Response:
    query, queue = call.query(schema.RetryMany), call.queue
    count = await queue.retry_all(State(query.state), older_than=_seconds(query.older_than), limit=query.limit)
    call.audit("retry many", queue, state=query.state, count=count)
    return reply(schema.Count(count))


async def remove_many(call: Call) -> web.Response:
    query, queue = call.query(schema.RemoveMany), call.queue
    count = await queue.remove_all(State(query.state), older_than=_seconds(query.older_than), limit=query.limit)
    call.audit("remove many", queue, state=query.state, count=count)
    return reply(schema.Count(count))


def _seconds(ms: int | UnsetType) -> float | None:
    return None if ms is UNSET else ms / 1000


async def queues(call: Call) -> web.Response:
    hub = call.hub
    mine = [queue for queue in hub.queues.values() if call.key.may_reach(queue.name)]
    found = await asyncio.gather(*(queue.stats() for queue in mine))
    return reply(schema.Queues([_queue(queue, stats, hub.default) for queue, stats in zip(mine, found, strict=True)]))


def _queue(queue: Queue, stats: Stats, default: Queue) -> schema.QueueBrief:
    return schema.QueueBrief(
        queue.name, queue is default, stats.paused, sorted(queue.tasks),
        stats.waiting, stats.delayed, stats.active, stats.completed, stats.failed,
    )  # fmt: skip


async def alive(_: Call) -> web.Response:
    return reply(schema.Health())


async def ready(call: Call) -> web.Response:
    await asyncio.gather(*(queue.ready() for queue in call.hub.queues.values()))
    return reply(schema.Health())
