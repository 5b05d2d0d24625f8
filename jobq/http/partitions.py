"""The routes of partitions: what they take, what they answer and what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from jobq.engine.model.ids import PARTITIONS_MAX
from jobq.http import schema
from jobq.http.call import ApiCall, decode, reply

if TYPE_CHECKING:
    from aiohttp import web

    from jobq.engine.queue.partitions import PartitionRow


class SetPartitions(schema.In):
    """Over how many partitions a queue is spread."""

    partitions: Annotated[int, Meta(ge=1, le=PARTITIONS_MAX, description="Those that get new jobs.")]


class Partitioned(msgspec.Struct, frozen=True):
    """The partitions of a queue. `homes`: the first ones, which alone get jobs with keys, limits, a group or
    `partition_by`; 0: there was no such job yet. `most`: the most that there ever were. `jobs`: how many unfinished
    jobs each of them has."""

    queue: str
    partitions: int
    homes: int
    most: int
    jobs: list[int]


_set = msgspec.json.Decoder(SetPartitions)


def _answer(queue: str, row: PartitionRow) -> web.Response:
    return reply(Partitioned(queue, row.partitions, row.homes, row.most, row.jobs))


async def partitions(call: ApiCall) -> web.Response:
    return _answer(call.queue.name, await call.queue.get_partitions())


async def set_partitions(call: ApiCall) -> web.Response:
    body, queue = decode(_set, await call.body()), call.queue
    row = await queue.set_partitions(body.partitions)
    call.audit("set partitions", queue, partitions=body.partitions)
    return _answer(queue.name, row)
