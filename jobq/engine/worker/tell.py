"""What a worker tells hooks of its runs: that they have started, and how they ended once Redis has stored it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobq.engine.model.rows import read_errors, read_result
from jobq.engine.model.unreadable import UNREADABLE
from jobq.engine.task.events import Event
from jobq.engine.task.handle import Job
from jobq.engine.worker.outbox import COMPLETED, FAILED, RETRIED
from jobq.errors import StoreError

if TYPE_CHECKING:
    from jobq.engine.queue.queue import Queue
    from jobq.engine.task.events import EventName
    from jobq.engine.worker.outbox import Outcome
    from jobq.engine.worker.run import Run

TOLD: dict[Outcome, tuple[EventName, ...]] = {
    COMPLETED: ("success",),
    RETRIED: ("failure", "retry"),
    FAILED: ("failure", "final_failure"),
}
"""Hooks hear nothing of runs that were handed back, snoozed or rate limited."""


def tell_start(run: Run, queue: Queue) -> None:
    """The run has started."""
    if queue.hook_calls.wanted("start"):
        queue.hook_calls.call(_event("start", run, queue))


def tell_settled(
    queue: Queue, outcome: Outcome, runs: list[Run | None], flat: list[Any], lost: list[bytes], *, repeated: bool
) -> None:
    """Redis has answered to the outcomes of these runs. ``flat``: what was sent, a row for each run. None: the job is
    not this worker's any more.

    A job is lost if its lease was. After a lost reply it may be lost only because this very outcome was stored before:
    then the stored record tells.
    """
    calls = queue.hook_calls
    names: list[EventName] = [name for name in TOLD.get(outcome, ()) if calls.wanted(name)]
    if not names:
        return
    for place, run in enumerate(runs):
        row = flat[place * outcome.width : (place + 1) * outcome.width]
        if run is None or run.token != row[1]:
            continue
        if run.id not in lost:
            _call(names, run, queue, outcome, row)
        elif repeated:
            calls.spawn(_call_if_stored(names, run, queue, outcome, row))


async def _call_if_stored(names: list[EventName], run: Run, queue: Queue, outcome: Outcome, row: list[Any]) -> None:
    try:
        found = (await queue.store.do(queue.store.rows([run.id])))[0]
    except StoreError:
        return
    if not found:
        return
    errors, result = found[6], found[7]
    stored = [result] if outcome is COMPLETED else (errors or b"").split(b"\n")
    if _record(outcome, row) in stored:
        _call(names, run, queue, outcome, row)


def _record(outcome: Outcome, row: list[Any]) -> bytes:
    """The result record, or the error record. No two attempts have the same one: times and worker are in it."""
    return row[2] if outcome is COMPLETED else row[4] if outcome is RETRIED else row[3]


def _call(names: list[EventName], run: Run, queue: Queue, outcome: Outcome, row: list[Any]) -> None:
    record = _record(outcome, row)
    facts: dict[str, Any] = {}
    if outcome is COMPLETED:
        facts["result"] = read_result(run.id.decode(), record).result
    else:
        facts["error"], facts["exception"] = read_errors(record)[0], run.error
    for name in names:
        delay = {"delay": row[3] / 1000} if name == "retry" else {}
        queue.hook_calls.call(_event(name, run, queue, **facts, **delay))


def _event(name: EventName, run: Run, queue: Queue, **facts: Any) -> Event:
    spec = run.spec or UNREADABLE
    task = queue.tasks.get(spec.type)
    returns: Any = task.signature.returns if task is not None else Any
    return Event(
        name=name,
        job=Job(queue, run.id.decode(), returns),
        type=spec.type,
        attempt=run.attempt,
        attempts=spec.attempts,
        payload=spec.payload,
        metadata=spec.metadata or {},
        worker=run.source.worker,
        **facts,
    )
