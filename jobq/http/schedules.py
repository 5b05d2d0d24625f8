"""The routes of schedules: what they take, what they answer and what they do."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import astuple, replace

from jobq.engine.model.job import DELAY_MAX_MS, NAME_MAX, PLAIN
from jobq.engine.queue.schedules import PREVIEW_MAX, preview
from jobq.engine.schedule.cron import TEXT_MAX
from jobq.engine.schedule.definition import (
    AT_MAX,
    COUNT_MAX,
    FAILURES_MAX,
    JITTER_MAX_MS,
    TIMES_MAX,
    CatchUp,
    Definition,
    Overlap,
    check_definition,
)
from jobq.engine.schedule.views import ScheduleRow  # noqa: TC001 - msgspec reads the annotation
from jobq.errors import InvalidJob
from jobq.http import schema
from jobq.http.call import ApiCall, decode, reply
from jobq.http.enqueue import new_job

if TYPE_CHECKING:
    from aiohttp import web

_Expression = Annotated[str, Meta(min_length=1, max_length=TEXT_MAX)]
_Cron = Annotated[
    _Expression | tuple[_Expression, ...],
    Meta(description=f"5 fields, or 6 with seconds first; or a list of {TIMES_MAX} expressions at most."),
]
_Every = Annotated[int, Meta(ge=1000, le=DELAY_MAX_MS, description="ms between slots, whole seconds.")]
_Moment = Annotated[int, Meta(ge=0, le=1 << 45, description="unix ms")]
_At = Annotated[_Moment | tuple[_Moment, ...], Meta(description=f"One time, or {AT_MAX} at most.")]
_Zone = Annotated[str, Meta(max_length=64, description="An IANA time zone; the default is UTC.")]
_Jitter = Annotated[int, Meta(ge=0, le=JITTER_MAX_MS, description="ms by which the slots come later at most.")]


class PutSchedule(schema.Enqueue, rename={"start": "from"}):
    """A schedule: one of ``cron``, ``every`` and ``at``. The other fields are those of POST /jobs/enqueue."""

    cron: _Cron | UnsetType | None = UNSET
    every: _Every | UnsetType | None = UNSET
    at: _At | UnsetType | None = UNSET
    tz: _Zone = "UTC"
    exclude: _Cron | UnsetType | None = UNSET
    overlap: Overlap = "skip"
    catch_up: CatchUp = "last"
    jitter: _Jitter = 0
    start: _Moment | UnsetType | None = UNSET
    until: _Moment | UnsetType | None = UNSET
    limit: Annotated[int, Meta(ge=1, le=COUNT_MAX)] | UnsetType | None = UNSET
    pause_after: Annotated[int, Meta(ge=1, le=FAILURES_MAX)] | UnsetType | None = UNSET


class PreviewSchedule(schema.In, rename={"start": "from"}):
    """When the slots of a schedule would be."""

    cron: _Cron | UnsetType | None = UNSET
    every: _Every | UnsetType | None = UNSET
    at: _At | UnsetType | None = UNSET
    tz: _Zone = "UTC"
    exclude: _Cron | UnsetType | None = UNSET
    start: _Moment | UnsetType | None = UNSET
    until: _Moment | UnsetType | None = UNSET
    limit: Annotated[int, Meta(ge=1, le=COUNT_MAX)] | UnsetType | None = UNSET
    after: Annotated[int, Meta(ge=0, le=1 << 42, description="unix ms; by default now")] | UnsetType = UNSET
    count: Annotated[int, Meta(ge=1, le=PREVIEW_MAX)] = 5


class PauseSchedule(schema.In):
    """Why the schedule is paused."""

    note: Annotated[str, Meta(max_length=500)] = ""


class Backfill(schema.In, rename={"start": "from"}):
    """The slots between these two times, unix ms, get jobs if they got none."""

    start: Annotated[int, Meta(ge=0, le=1 << 42)]
    until: Annotated[int, Meta(ge=0, le=1 << 42)]


class SchedulesQuery(schema.In):
    """Which page of the schedules."""

    limit: schema.PageSize = 500
    after: Annotated[str, Meta(max_length=NAME_MAX, description="The last name of the previous page.")] = ""


class Schedules(msgspec.Struct, frozen=True):
    """A page of schedules in the order of their names. ``after`` leads to the next one, null at the end."""

    schedules: list[ScheduleRow]
    after: str | None


class ScheduleDeleted(msgspec.Struct, frozen=True):
    """``declared``: code declares the schedule, so it goes on as the code says."""

    name: str
    declared: bool


class SchedulesPruned(msgspec.Struct, frozen=True):
    """The orphans that were removed."""

    names: list[str]


class SchedulePaused(msgspec.Struct, frozen=True):
    """Whether the schedule is paused."""

    name: str
    paused: bool


class ScheduleJob(msgspec.Struct, frozen=True):
    """The job that was enqueued."""

    id: str


class ScheduleJobs(msgspec.Struct, frozen=True):
    """The jobs that were enqueued."""

    ids: list[str]


_put = msgspec.json.Decoder(PutSchedule)
_preview = msgspec.json.Decoder(PreviewSchedule)
_pause = msgspec.json.Decoder(PauseSchedule)
_backfill = msgspec.json.Decoder(Backfill)
_OPTIONS = len(schema.Enqueue.__struct_fields__)


def _name(call: ApiCall) -> str:
    return call.request.match_info["name"]


async def schedules(call: ApiCall) -> web.Response:
    query = call.query(SchedulesQuery)
    rows = await call.queue.schedules(after=query.after, limit=query.limit)
    return reply(Schedules(rows, rows[-1].name if len(rows) == query.limit else None))


async def show_schedule(call: ApiCall) -> web.Response:
    return reply(await call.queue.get_schedule(_name(call)))


async def prune_schedules(call: ApiCall) -> web.Response:
    queue = call.queue
    names = await queue.prune_schedules()
    call.audit("prune schedules", queue, count=len(names), schedules=", ".join(names[:20]))
    return reply(SchedulesPruned(names))


async def put_schedule(call: ApiCall) -> web.Response:
    queue, name = call.queue, _name(call)
    body = decode(_put, await call.body())
    job = schema.Enqueue(*astuple(body)[:_OPTIONS])
    if body.id is not UNSET:
        raise InvalidJob("id is given, and the jobs of a schedule get their ids from their slots: leave it out")
    new = new_job(queue, job, None, ())
    names = tuple(
        field
        for field in schema.Enqueue.__struct_fields__
        if field not in ("type", "payload", "id") and getattr(job, field) is not UNSET
    )
    options = replace(PLAIN, **{field: getattr(new.options, field) for field in names})
    definition = check_definition(
        Definition(
            new.type, new.payload, overlap=body.overlap, catch_up=body.catch_up, jitter=body.jitter,
            limit=_given(body.limit), pause_after=_given(body.pause_after), options=options, given=names,
            **_times(body),
        )
    )  # fmt: skip
    row = await queue.put_definition(name, definition)
    call.audit("put schedule", queue, schedule=name)
    return reply(row)


async def delete_schedule(call: ApiCall) -> web.Response:
    queue, name = call.queue, _name(call)
    declared = await queue.delete_schedule(name)
    call.audit("delete schedule", queue, schedule=name)
    return reply(ScheduleDeleted(name, declared))


async def pause_schedule(call: ApiCall) -> web.Response:
    queue, name = call.queue, _name(call)
    note = decode(_pause, await call.body()).note if call.request.body_exists else ""
    await queue.pause_schedule(name, by=call.key.name, note=note)
    call.audit("pause schedule", queue, schedule=name)
    return reply(SchedulePaused(name, paused=True))


async def resume_schedule(call: ApiCall) -> web.Response:
    queue, name = call.queue, _name(call)
    await queue.resume_schedule(name)
    call.audit("resume schedule", queue, schedule=name)
    return reply(SchedulePaused(name, paused=False))


async def run_schedule(call: ApiCall) -> web.Response:
    queue, name = call.queue, _name(call)
    job = await queue.run_schedule(name)
    call.audit("run schedule", queue, schedule=name)
    return reply(ScheduleJob(f"{queue.name}:{job.id}"), 201)


async def backfill_schedule(call: ApiCall) -> web.Response:
    queue, name = call.queue, _name(call)
    body = decode(_backfill, await call.body())
    first, until = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (body.start, body.until))
    ids = await queue.backfill_schedule(name, first, until)
    call.audit("backfill schedule", queue, schedule=name, count=len(ids))
    return reply(ScheduleJobs([f"{queue.name}:{job_id}" for job_id in ids]))


async def preview_schedule(call: ApiCall) -> web.Response:
    body = decode(_preview, await call.body())
    definition = check_definition(Definition("preview", limit=_given(body.limit), **_times(body)))
    after = call.queue.store.now_ms() if body.after is UNSET else body.after
    return reply(preview(definition, after // 1000, body.count))


def _given(value: Any) -> Any:
    return None if value is UNSET else value


def _several(value: Any) -> tuple[Any, ...]:
    if value is UNSET or value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)  # pyright: ignore[reportUnknownVariableType]


def _times(body: PutSchedule | PreviewSchedule) -> dict[str, Any]:
    return {
        "cron": _several(body.cron),
        "every": _given(body.every),
        "at": _several(body.at),
        "tz": body.tz,
        "exclude": _several(body.exclude),
        "start": _given(body.start),
        "until": _given(body.until),
    }
