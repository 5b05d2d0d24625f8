"""POST /jobs/{id}/rerun: a new job like an earlier one, with another payload or other options."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from jobq.http import schema
from jobq.http.call import ApiCall, decode, given, reply
from jobq.http.enqueue import changed, enqueued

if TYPE_CHECKING:
    from aiohttp import web

_decode = msgspec.json.Decoder(schema.Rerun)


async def rerun(call: ApiCall) -> web.Response:
    queue, job_id = call.job()
    query = call.query(schema.RerunQuery)
    body = decode(_decode, await call.body())
    new = changed(queue, await queue.again(job_id), body, call.idempotency_key, (call.key.name, job_id))
    accepted = await queue.submit(new, durability=given(query.durability))
    call.audit("rerun", queue, job=job_id, rerun=accepted.id)
    return reply(enqueued(queue, accepted), 200 if accepted.duplicate else 201)
