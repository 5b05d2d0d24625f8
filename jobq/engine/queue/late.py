"""Jobs that did not start or end in time end in failed. Workers do this, and servers for queues without workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobq.engine.log import get_logger
from jobq.engine.model.job import AttemptError
from jobq.engine.model.outcome import EXPIRED
from jobq.engine.model.rows import job_row
from jobq.engine.task.events import Event
from jobq.engine.task.handle import Job
from jobq.errors import StoreError

if TYPE_CHECKING:
    from jobq.engine.queue.queue import Queue
    from jobq.engine.store import Call, Store

log = get_logger("jobq.queue")

PAGE: Final = 100

_encode = msgspec.json.Encoder().encode


def late_call(store: Store) -> Call[list[Any]]:
    """The call that ends a page of late jobs."""
    at = store.now_ms()
    expired = AttemptError(attempt=0, at=at, type=EXPIRED, message="the job did not start within its expires")
    missed = AttemptError(attempt=0, at=at, type=EXPIRED, message="the job did not run before its deadline")
    return store.lapse(PAGE, _encode(expired), _encode(missed))


async def end_late(queue: Queue, store: Store | None = None) -> None:
    """End all jobs of a queue that are late. ``store``: only those of this partition.

    :raises StoreError: Redis is away.
    """
    store, more = store or queue.store, True
    while more:
        more = tell_late(queue, await store.do(late_call(store)))


def tell_late(queue: Queue, answer: list[Any]) -> bool:
    """Log what the call has done, and tell the hooks. Returns whether more jobs may be late."""
    more, *ids = answer
    if ids:
        log.info(
            f"{len(ids)} jobs of queue {queue.name} expired: they did not start or end in time",
            queue=queue.name, jobs=[job_id.decode() for job_id in ids],
        )  # fmt: skip
        if queue.hooks and queue.hook_calls.wanted("final_failure"):
            queue.hook_calls.spawn(_tell_hooks(queue, ids))
    return bool(more)


async def _tell_hooks(queue: Queue, ids: list[bytes]) -> None:
    while ids:
        try:
            # Large jobs make the reply shorter.
            rows = await queue.store.do(queue.store.rows(ids))
        except StoreError as error:
            log.warning(
                f"Hooks of queue {queue.name} were not told of expired jobs, because they could not be read: {error}",
                queue=queue.name, error=str(error),
            )  # fmt: skip
            return
        for job_id, row in zip(ids, rows, strict=False):
            if row:
                queue.hook_calls.call(_event(queue, job_id.decode(), row))
        ids = ids[max(1, len(rows)) :]


def _event(queue: Queue, job_id: str, row: list[Any]) -> Event:
    found = job_row(queue.name, job_id, row)
    task = queue.tasks.get(found.type)
    return Event(
        name="final_failure",
        job=Job(queue, job_id, task.signature.returns if task is not None else Any),
        type=found.type,
        attempt=found.attempts_made,
        attempts=found.attempts,
        payload=found.payload,
        metadata=found.metadata or {},
        error=found.errors[-1] if found.errors else None,
    )
