"""A server that has the handlers' code publishes their options and schemas, for producers that do not have it."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Final

from jobq.engine.log import get_logger
from jobq.engine.queue.published import Publisher
from jobq.errors import StoreError

if TYPE_CHECKING:
    from jobq.engine.queue.queue import Queue

log = get_logger("jobq.http")

PUBLISH_SECONDS: Final = 30.0


async def publish(queue: Queue) -> None:
    """Publish the tasks of an open queue until cancelled. A queue without tasks and limits has nothing to publish."""
    name = f"server {socket.gethostname()}:{os.getpid()}"
    publisher = Publisher(queue.tasks, queue.rules, queue.name, name, breakers=queue.declared_breakers)
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
