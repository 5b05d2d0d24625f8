"""A server that has the handlers' code publishes their options and schemas, for producers that do not have it. It also
fires schedules, because there may be no worker that does."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from jobq.engine.log import get_logger
from jobq.engine.model.backoff import pause
from jobq.engine.queue.firing import Firing
from jobq.engine.queue.published import Publisher
from jobq.engine.store import listen_together
from jobq.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobq.engine.queue.queue import Queue
    from jobq.engine.store import Connection

log = get_logger("jobq.http")

PUBLISH_SECONDS: Final = 30.0


async def publish(queue: Queue) -> None:
    """Publish the tasks of an open queue until cancelled. A queue without tasks and limits has nothing to publish."""
    name = f"server {socket.gethostname()}:{os.getpid()}"
    publisher = Publisher(
        queue.tasks,
        queue.rules,
        queue.name,
        name,
        schedules=queue.declared_schedules,
        breakers=queue.declared_breakers,
    )
    failing = False
    while queue.tasks or queue.rules:
        try:
            await queue.store.register()
            await publisher.publish(queue.store)
            failing = False
        except StoreError as error:
            # Log one warning when an outage begins.
            level = log.debug if failing else log.warning
            level(
                f"Types of queue {queue.name} were not published; tried again: {error}",
                queue=queue.name,
                error=str(error),
            )
            failing = True
        await asyncio.sleep(PUBLISH_SECONDS)


async def fire_schedules(*queues: Queue, failed: Callable[[Queue], None] | None = None) -> None:
    """Fire the schedules of open queues until cancelled. A queue without tasks leaves it to others: this process does
    not know the options of their types. One connection hears of changed schedules of all queues of a Redis server.

    ``failed``: called after an error that nobody expected. It is tried again.
    """
    firings = {
        queue: Firing(queue, None if failed is None else partial(failed, queue)) for queue in queues if queue.tasks
    }
    together: dict[Connection, list[Queue]] = {}
    for queue in firings:
        together.setdefault(queue.store.connection, []).append(queue)
    async with asyncio.TaskGroup() as tasks:
        for some in together.values():
            tasks.create_task(_listen({queue: firings[queue] for queue in some}))
        for queue, firing in firings.items():
            tasks.create_task(firing.run())
            tasks.create_task(_watch_clock(queue, firing))


async def _listen(firings: dict[Queue, Firing]) -> None:
    """Tell the firings of the queues of one Redis server when a schedule has changed."""
    failures = 0

    def heard_by(firing: Firing) -> Callable[[bytes], None]:
        def heard(message: bytes) -> None:
            if message == b"schedules":
                firing.look()

        return heard

    async def joined() -> None:
        # Messages may have been missed.
        nonlocal failures
        failures = 0
        for firing in firings.values():
            firing.look()

    while True:
        with suppress(StoreError):
            await listen_together({queue.store: heard_by(firing) for queue, firing in firings.items()}, joined)
        failures = min(failures + 1, 10)
        await asyncio.sleep(pause(failures))


async def _watch_clock(queue: Queue, firing: Firing) -> None:
    while True:
        await asyncio.sleep(PUBLISH_SECONDS)
        with suppress(StoreError):
            await queue.store.look_at_clock()
            firing.check_clock()
