"""The routes that say why a job does not run, and why a queue runs none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from jobq.http.call import ApiCall, reply

if TYPE_CHECKING:
    from aiohttp import web


async def why(call: ApiCall) -> web.Response:
    queue, job_id = call.job()
    answer = await queue.why(job_id)
    # REST's ids begin with the queue.
    reasons = [replace(one, job=f"{queue.name}:{one.job}") if one.job else one for one in answer.reasons]
    return reply(replace(answer, reasons=reasons))


async def why_queue(call: ApiCall) -> web.Response:
    return reply(await call.queue.why())
