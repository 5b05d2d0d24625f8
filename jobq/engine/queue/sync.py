"""A queue for synchronous code: ``queue.sync()``. Flask, Django, scripts and ``def`` handlers use it.

Every method runs the queue's own coroutine in the background loop of bridge.py and waits for it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, Unpack

from jobq.engine.queue.bridge import Openable, bridge
from jobq.engine.queue.bulk import BulkVerbs
from jobq.engine.queue.checking import CheckVerbs
from jobq.engine.queue.events import EventVerbs
from jobq.engine.queue.schedules import ScheduleVerbs
from jobq.engine.queue.verbs import Verbs
from jobq.engine.queue.webhooks import WebhookVerbs
from jobq.engine.queue.why import WhyVerbs

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Iterable, Iterator
    from datetime import datetime

    from jobq.engine.model.event import EventKind, QueueEvent
    from jobq.engine.model.job import Durability, NewJob, Seconds
    from jobq.engine.model.options import Given
    from jobq.engine.task.handle import Job

P = ParamSpec("P")
R = TypeVar("R")


class AsyncQueue(Openable, Protocol):
    """The queue behind a SyncQueue."""

    def new(self, type: str, payload: Any = None, *, id: str | None = None, **given: Unpack[Given]) -> NewJob: ...
    async def send(self, new: NewJob, *, durability: Durability | None = None) -> Job[Any]: ...
    async def send_many(
        self, news: Iterable[NewJob], *, durability: Durability | None = None, spread: Seconds | None = None
    ) -> list[Job[Any]]: ...
    def events(
        self,
        *,
        since: str | datetime | Seconds | None = None,
        job: str | None = None,
        names: Collection[EventKind] | None = None,
    ) -> AsyncGenerator[QueueEvent]: ...


def _waiting(
    verb: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[SyncQueue, P], R]:
    called, instead = f"queue.sync().{verb.__name__}()", f"queue.{verb.__name__}(...)"

    @functools.wraps(verb)
    def call(self: SyncQueue, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.call(called, instead, lambda: verb(self.queue, *args, **kwargs))

    return call


class SyncQueue:
    """The methods of a queue for synchronous code. Each waits for its result. Threads may share the object.

    ``with queue.sync() as q:`` closes the connection at the end of the block. Without ``with`` it stays open until the
    process ends.
    """

    def __init__(self, queue: AsyncQueue) -> None:
        self.queue = queue

    def __repr__(self) -> str:
        return f"<SyncQueue of {self.queue!r}>"

    def __enter__(self) -> Self:
        bridge("queue.sync()", "queue.open()").enter(self.queue)
        return self

    def __exit__(self, *_: object) -> None:
        bridge("queue.sync()", "queue.aclose()").leave(self.queue)

    def call(self, called: str, instead: str, make: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Wait for ``make()``, which is called in the background loop. See ``bridge`` for the names."""
        return bridge(called, instead).call(self.queue, make)

    def new(self, type: str, payload: Any = None, *, id: str | None = None, **given: Unpack[Given]) -> NewJob:
        """As ``Queue.new``."""
        return self.queue.new(type, payload, id=id, **given)

    def enqueue(
        self,
        type: str,
        payload: Any = None,
        *,
        id: str | None = None,
        durability: Durability | None = None,
        **given: Unpack[Given],
    ) -> Job[Any]:
        """As ``Queue.enqueue``."""
        new = self.queue.new(type, payload, id=id, **given)
        return self.call(
            "queue.sync().enqueue()", "queue.enqueue(...)", lambda: self.queue.send(new, durability=durability)
        )

    def enqueue_many(
        self, jobs: Iterable[NewJob], *, durability: Durability | None = None, spread: Seconds | None = None
    ) -> list[Job[Any]]:
        """As ``Queue.enqueue_many``."""
        news = list(jobs)  # Read it in this thread: a generator may itself wait for something of this queue.
        return self.call(
            "queue.sync().enqueue_many()",
            "queue.enqueue_many(...)",
            lambda: self.queue.send_many(news, durability=durability, spread=spread),
        )

    def events(
        self,
        *,
        since: str | datetime | Seconds | None = None,
        job: str | None = None,
        names: Collection[EventKind] | None = None,
    ) -> Iterator[QueueEvent]:
        """As ``Queue.events``. Close the iterator to stop listening earlier than at its end."""
        called, instead = "queue.sync().events()", "queue.events(...)"

        async def begin() -> AsyncGenerator[QueueEvent]:
            return self.queue.events(since=since, job=job, names=names)

        async def following() -> QueueEvent | None:
            return await anext(events, None)

        events = self.call(called, instead, begin)
        try:
            while (event := self.call(called, instead, following)) is not None:
                yield event
        finally:
            self.call(called, instead, events.aclose)

    put_webhook = _waiting(WebhookVerbs.put_webhook)
    get_webhook = _waiting(WebhookVerbs.get_webhook)
    webhooks = _waiting(WebhookVerbs.webhooks)
    delete_webhook = _waiting(WebhookVerbs.delete_webhook)
    rotate_webhook = _waiting(WebhookVerbs.rotate_webhook)
    webhook_deliveries = _waiting(WebhookVerbs.webhook_deliveries)
    test_webhook = _waiting(WebhookVerbs.test_webhook)
    set_events = _waiting(EventVerbs.set_events)
    event_cursor = _waiting(EventVerbs.event_cursor)
    get_events = _waiting(EventVerbs.get_events)
    get = _waiting(Verbs.get)
    page = _waiting(Verbs.page)
    logs = _waiting(Verbs.logs)
    stats = _waiting(Verbs.stats)
    workers = _waiting(Verbs.workers)
    types = _waiting(Verbs.types)
    why = _waiting(WhyVerbs.why)
    check_jobs = _waiting(CheckVerbs.check_jobs)
    result = _waiting(Verbs.result)
    ready = _waiting(Verbs.ready)
    queues = _waiting(Verbs.queues)
    pause = _waiting(Verbs.pause)
    resume = _waiting(Verbs.resume)
    kill = _waiting(Verbs.kill)
    remove = _waiting(Verbs.remove)
    retry = _waiting(Verbs.retry)
    promote = _waiting(Verbs.promote)
    reprioritise = _waiting(Verbs.reprioritise)
    retry_all = _waiting(BulkVerbs.retry_all)
    remove_all = _waiting(BulkVerbs.remove_all)
    kill_all = _waiting(BulkVerbs.kill_all)
    promote_all = _waiting(BulkVerbs.promote_all)
    reprioritise_all = _waiting(BulkVerbs.reprioritise_all)
    put_schedule = _waiting(ScheduleVerbs.put_schedule)
    get_schedule = _waiting(ScheduleVerbs.get_schedule)
    schedules = _waiting(ScheduleVerbs.schedules)
    delete_schedule = _waiting(ScheduleVerbs.delete_schedule)
    prune_schedules = _waiting(ScheduleVerbs.prune_schedules)
    pause_schedule = _waiting(ScheduleVerbs.pause_schedule)
    resume_schedule = _waiting(ScheduleVerbs.resume_schedule)
    run_schedule = _waiting(ScheduleVerbs.run_schedule)
    backfill_schedule = _waiting(ScheduleVerbs.backfill_schedule)
    preview_schedule = _waiting(ScheduleVerbs.preview_schedule)
