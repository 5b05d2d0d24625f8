"""POST /jobs/enqueue: one job, or an array of them.

A body may have megabytes, and other requests share the event loop. So a large body is first split without reading its
payloads, which is quick. Too many jobs and payloads that are too large are refused there. The rest is checked in
pieces.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import astuple, replace

from jobq.engine.model import job
from jobq.engine.model.groups import TEMPLATES
from jobq.engine.model.job import Accepted, Durability, NewJob
from jobq.engine.model.times import to_unix_ms
from jobq.engine.model.unique import bind, of_type
from jobq.errors import IdempotencyConflict, InvalidJob, JobIdTaken, KeyTaken, PayloadTooLarge
from jobq.http import bodies, problems, schema
from jobq.http.call import ApiCall, decode, docs_of, given, reply
from jobq.http.strict import PIECE, REFUSALS, check_body, check_json, refusal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from aiohttp import web

    from jobq.engine.model.job import Options
    from jobq.engine.queue.queue import Queue

_decode_job = msgspec.json.Decoder(schema.Enqueue)
_decode_metadata = msgspec.json.Decoder(dict[str, Any] | None)
_PAGE = 4 * PIECE
"""Bytes of payloads that are submitted together."""
_OPTIONS = schema.Enqueue.__struct_fields__[2:-1]
"""All fields of a job but the type, the payload and the id."""
_EMPTY = msgspec.Raw(b"{}")
_NOTHING_GIVEN = (UNSET,) * len(_OPTIONS)


async def enqueue(call: ApiCall) -> web.Response:
    query = call.query(schema.EnqueueQuery)
    durability: Durability | None = given(query.durability)
    body = await call.unchecked_body()
    if body.lstrip()[:1] == b"[":
        return await _enqueue_many(call, body, durability, given(query.spread) or 0)
    if query.spread is not UNSET:
        detail = "spread goes with an array of jobs: one job has a delay"
        raise problems.HttpProblem(problems.INVALID_FIELD, detail, field="spread")
    queue = call.queue
    if len(body) <= PIECE:
        check_json(body)
        read = decode(_decode_job, body)
    else:
        read = await _read_large(queue, body)
    new = new_job(queue, read, call.idempotency_key, (call.key.name,))
    try:
        accepted = await queue.submit(new, durability=durability)
    except InvalidJob as error:
        raise _placed(queue, error) from None
    return reply(enqueued(queue, accepted), 200 if accepted.duplicate else 201)


async def _enqueue_many(call: ApiCall, body: bytes, durability: Durability | None, spread: int) -> web.Response:
    key, queue = call.idempotency_key, call.queue
    answers: list[Any] = []
    news: dict[int, NewJob] = {}
    place = 0
    items = _split(body, call.hub.limits.bulk)
    async for item in _in_turns(items):
        try:
            if len(item) <= PIECE:
                check_json(bytes(item), 1)
                read = decode(_decode_job, item)
            else:
                read = await _read_large(queue, bytes(item), 1)
            new = new_job(queue, read, key, (call.key.name, str(place)))
            if spread:
                new = replace(new, offset=spread * place // len(items))
            queue.check(new)
        except (InvalidJob, problems.HttpProblem) as error:
            answers.append(_problem(call, error))
        else:
            news[place] = new
            answers.append(None)
        place += 1
    each = key is not None or any(_alone(new) for new in news.values())
    submitted = await _submit_many(queue, list(news.values()), durability, each=each)
    for place, answer in zip(news, submitted, strict=True):
        answers[place] = enqueued(queue, answer) if isinstance(answer, Accepted) else _problem(call, answer)
    refused = sum(isinstance(answer, dict) for answer in answers)
    return reply(answers, 207 if refused else 201)


def _problem(call: ApiCall, error: Exception) -> dict[str, Any]:
    kind, body, _ = problems.describe(error)
    return body | problems.help_of(kind, docs_of(call.request, 4 if "queue" in call.request.match_info else 2))


def _alone(new: NewJob) -> bool:
    """Whether the job may be refused although the other jobs of its array are accepted."""
    unique = new.options.unique
    return (
        new.id is not None
        or bool(new.options.limits)
        or (unique is not None and (unique.on == "fail" or bool(unique.by)))
    )


@lru_cache
def _items(most: int) -> msgspec.json.Decoder[msgspec.Struct]:
    """Reads an array as a struct of ``most`` values. It stops at the first value too many; reading a list of a
    million values would take 70 ms."""
    fields = [(f"i{place}", msgspec.Raw | UnsetType, UNSET) for place in range(most)]
    return msgspec.json.Decoder(msgspec.defstruct("Items", fields, array_like=True, forbid_unknown_fields=True))


def _split(body: bytes, most: int) -> list[msgspec.Raw]:
    """The jobs of an array.

    :raises HttpProblem: there are more than ``most``, or none.
    :raises BadJSON: it is not JSON.
    """
    try:
        values = astuple(_items(most).decode(body))
    except msgspec.ValidationError:
        detail = f"the array has more than {most} jobs; send 1 to {most} in a request"
        raise problems.HttpProblem(problems.TOO_LARGE, detail, limit=most) from None
    except REFUSALS as error:
        raise refusal(error) from None
    items = [cast("msgspec.Raw", value) for value in values if value is not UNSET]
    if not items:
        raise problems.HttpProblem(problems.TOO_LARGE, f"the array is empty; send 1 to {most} jobs", limit=most)
    return items


async def _in_turns(items: Sequence[msgspec.Raw]) -> AsyncGenerator[msgspec.Raw]:
    """Yields the items in order, and lets other requests run after each ``PIECE`` bytes."""
    size = 0
    for item in items:
        size += len(item)
        if size > PIECE:
            size = len(item)
            await asyncio.sleep(0)
        yield item


async def _read_large(queue: Queue, text: bytes, level: int = 0) -> schema.Enqueue:
    """Read a job from a large text. Its size is checked first, because that is cheap.

    :raises HttpProblem: a field does not fit.
    :raises PayloadTooLarge: the payload or the metadata have more bytes than the queue takes.
    :raises BadJSON: the text is not sound.
    """
    try:
        read = decode(_decode_job, text)
    except REFUSALS:
        await check_body(text, level)  # This raises the better error if the text is not JSON.
        raise
    for part in (read.payload, read.metadata):
        if isinstance(part, msgspec.Raw):
            _check_size(queue, part)
    await check_body(text, level)
    return read


def _check_size(queue: Queue, part: msgspec.Raw) -> None:
    if len(part) > queue.max_payload:
        raise PayloadTooLarge(len(part), queue.max_payload)


def new_job(queue: Queue, body: schema.Enqueue, idempotency_key: str | None, scope: tuple[str, ...]) -> NewJob:
    """``scope``: the API key and the position in the array, which an idempotency key belongs to."""
    task = queue.tasks.get(body.type)
    options = task.defaults if task else queue.default_options
    values = astuple(body)[2:-1]
    names = None if queue.tasks else ()
    if values != _NOTHING_GIVEN:
        options, given = _with_given(queue, options, body, values)
        if task and "unique" in given:
            options = bind(options, body.type, task.signature.defaults)
        hidden = ("limits_by", "costs_by", *TEMPLATES.values())
        names = None if queue.tasks else tuple(name for name in given if name not in hidden)
    payload = body.payload if isinstance(body.payload, msgspec.Raw) else _EMPTY
    job_id = None if body.id is UNSET else body.id
    return NewJob(body.type, payload, options, idempotency_key, job_id, scope, names)


def changed(queue: Queue, new: NewJob, body: Any, idempotency_key: str | None, scope: tuple[str, ...]) -> NewJob:
    """A rerun, with what the body of the request replaces."""
    values = astuple(body)[1:-1]
    options = _with_given(queue, new.options, body, values)[0] if values != _NOTHING_GIVEN else new.options
    payload = body.payload if isinstance(body.payload, msgspec.Raw) else new.payload
    job_id = None if body.id is UNSET else body.id
    return replace(
        new, payload=payload, options=options, idempotency_key=idempotency_key, id=job_id, idempotency_scope=scope
    )


def _with_given(queue: Queue, options: Options, body: Any, values: tuple[Any, ...]) -> tuple[Options, dict[str, Any]]:
    """The options with those that a body gives, and these."""
    given = {name: value for name, value in zip(_OPTIONS, values, strict=True) if value is not UNSET}
    if isinstance(body.backoff, schema.Backoff):
        given["backoff"] = job.StoredBackoff(*astuple(body.backoff))
    if isinstance(body.unique, schema.Unique):
        given["unique"] = of_type(body.unique.stored(), options)
        for name in ("key", "key_ttl"):
            given.setdefault(name, None)  # in place of the task's
    elif "key" in given and (given["key"] is not None or options.unique is None or options.unique.key is not None):
        given.setdefault("unique", None)
    if "limits" in given:
        given["limits"] = given["limits"] or ()
        given["limits_by"] = ()  # nor those of the task that an argument completes
    if "costs" in given:
        given["costs"] = given["costs"] or {}
        given["costs_by"] = ()
    given |= {template: None for name, template in TEMPLATES.items() if name in given}
    if isinstance(body.metadata, msgspec.Raw):
        given["metadata"] = _metadata(queue, body.metadata)
    if given.get("run_at") is not None:
        given["run_at"] = to_unix_ms("run_at", given["run_at"])
        given.setdefault("delay", 0)  # run_at replaces the task's default delay.
    elif given.get("delay"):
        given.setdefault("run_at", None)
    for name in ("expires", "deadline"):
        if given.get(at := f"{name}_at") is not None:
            given[at] = to_unix_ms(at, given[at])
        if name in given or at in given:
            given.setdefault(name, None)  # each replaces the other of the task
            given.setdefault(at, None)
    return replace(options, **given), given


def _metadata(queue: Queue, text: msgspec.Raw) -> dict[str, Any] | None:
    _check_size(queue, text)
    try:
        return _decode_metadata.decode(text)
    except msgspec.ValidationError as error:
        detail = f"metadata: {str(error)[:200]}"
        raise problems.HttpProblem(problems.INVALID_FIELD, detail, field="metadata") from None


async def _submit_many(
    queue: Queue, news: list[NewJob], durability: Durability | None, *, each: bool
) -> list[Accepted | InvalidJob]:
    answers: list[Accepted | InvalidJob] = []
    for page in _pages(news):
        if not each:
            answers += await queue.submit_each(page, durability=durability, checked=True)
            continue
        # Calls that are made together still share a round trip.
        submits = [queue.submit(new, durability=durability, checked=True) for new in page]
        for answer in await asyncio.gather(*submits, return_exceptions=True):
            if isinstance(answer, BaseException) and not isinstance(answer, InvalidJob):
                raise answer
            answers.append(answer)
    return [_placed(queue, answer) if isinstance(answer, InvalidJob) else answer for answer in answers]


def _placed(queue: Queue, error: InvalidJob) -> InvalidJob:
    """The error, with the queue in the id of the job that it names: over REST an id says its queue."""
    if isinstance(error, KeyTaken | JobIdTaken | IdempotencyConflict) and ":" not in error.job_id:
        error.job_id = f"{queue.name}:{error.job_id}"
    return error


def _pages(news: list[NewJob]) -> Iterator[list[NewJob]]:
    """Pages that are small enough for checking and encoding one not to delay other requests for long."""
    page: list[NewJob] = []
    size = 0
    for new in news:
        if page and size + len(new.payload) > _PAGE:
            yield page
            page, size = [], 0
        page.append(new)
        size += len(new.payload)
    if page:
        yield page


def enqueued(queue: Queue, accepted: Accepted) -> bodies.Enqueued:
    job_id = f"{queue.name}:{accepted.id}"
    return bodies.Enqueued(
        job_id, duplicate=accepted.duplicate, state=accepted.state or UNSET, done=accepted.done or UNSET
    )
