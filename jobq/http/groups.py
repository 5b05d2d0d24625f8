"""The routes of groups: what they take, what they answer and what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from jobq.engine.model.groups import QUEUED_MAX, WEIGHT_MAX, WEIGHT_MIN, Charge, GroupRow
from jobq.http import schema
from jobq.http.call import ApiCall, decode, no_content, reply
from jobq.http.strict import BadJSON

if TYPE_CHECKING:
    from aiohttp import web


class SetGroup(schema.In):
    """The settings of a group. They replace all earlier ones."""

    weight: Annotated[float, Meta(ge=WEIGHT_MIN, le=WEIGHT_MAX, description="Its share, compared with others.")] = 1.0
    paused: Annotated[bool, Meta(description="Start none of its jobs.")] = False
    max_queued: (
        Annotated[int, Meta(ge=0, le=QUEUED_MAX, description="Held jobs beyond which an enqueue is refused.")] | None
    ) = None


class SetCharge(schema.In):
    """What a turn of a group costs."""

    charge: Annotated[Charge, Meta(description='"count": one job. "actual": the time that its jobs run.')]


class Charged(msgspec.Struct, frozen=True):
    """What a turn of a group costs in a queue."""

    queue: str
    charge: Charge


class ChangeGroup(schema.In):
    """Settings of a group that change. The others stay."""

    weight: Annotated[float, Meta(ge=WEIGHT_MIN, le=WEIGHT_MAX)] | UnsetType = UNSET
    paused: bool | UnsetType = UNSET
    max_queued: Annotated[int, Meta(ge=0, le=QUEUED_MAX)] | UnsetType | None = UNSET


class GroupsQuery(schema.In):
    """Which groups come first."""

    sort: Literal["waiting", "oldest", "name"] = "waiting"
    limit: schema.PageSize = 50


class Groups(msgspec.Struct, frozen=True):
    """Groups that have jobs or settings."""

    groups: list[GroupRow]


class GroupSet(msgspec.Struct, frozen=True):
    """The settings of a group."""

    group: str
    weight: float
    paused: bool
    max_queued: int | None


_set = msgspec.json.Decoder(SetGroup)
_change = msgspec.json.Decoder(ChangeGroup)


async def groups(call: ApiCall) -> web.Response:
    query = call.query(GroupsQuery)
    return reply(Groups(await call.queue.groups(sort=query.sort, limit=query.limit)))


async def show_group(call: ApiCall) -> web.Response:
    return reply(await call.queue.group(call.request.match_info["group"]))


async def set_group(call: ApiCall) -> web.Response:
    if not call.request.body_exists:
        # All fields are optional. A client that forgot the body would reset the group.
        raise BadJSON("the body is empty; send the settings, and {} for those of a new group")
    return await _write(call, decode(_set, await call.body()))


async def change_group(call: ApiCall) -> web.Response:
    return await _write(call, decode(_change, await call.body()))


async def _write(call: ApiCall, body: SetGroup | ChangeGroup) -> web.Response:
    queue, group = call.queue, call.request.match_info["group"]
    new = await queue.set_group(group, weight=body.weight, paused=body.paused, max_queued=body.max_queued)
    call.audit("set group", queue, group=group, settings=new.text())
    return reply(GroupSet(group, new.weight, new.paused, new.max_queued))


async def reset_group(call: ApiCall) -> web.Response:
    queue, group = call.queue, call.request.match_info["group"]
    await queue.reset_group(group)
    call.audit("reset group", queue, group=group)
    return no_content()


_charge = msgspec.json.Decoder(SetCharge)


async def charge(call: ApiCall) -> web.Response:
    return reply(Charged(call.queue.name, await call.queue.get_charge()))


async def set_charge(call: ApiCall) -> web.Response:
    body, queue = decode(_charge, await call.body()), call.queue
    await queue.set_charge(body.charge)
    call.audit("set charge", queue, charge=body.charge)
    return reply(Charged(queue.name, body.charge))
