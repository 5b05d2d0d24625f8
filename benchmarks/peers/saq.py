"""saq, as its documentation shows: a Queue from a URL, a Worker with ``concurrency``. It has no call for many jobs."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import kit
from saq import Queue, Worker


async def noop(_: Any, *, n: int, x: str) -> None:
    kit.ran(n)


async def timed(_: Any, *, due: float, x: str) -> None:
    kit.timed(due)


class Saq(kit.Peer):
    bulk = False

    async def open(self) -> None:
        self.queue = Queue.from_url(self.url)
        await self.queue.connect()

    async def close(self) -> None:
        await self.queue.disconnect()

    def enqueue(self, n: int) -> Any:
        return self.queue.enqueue("noop", n=n, x=kit.PAD)

    def enqueue_timed(self, due: float, delay: float) -> Any:
        # It supports whole seconds only.
        scheduled = {"scheduled": int(time.time() + delay)} if delay else {}
        return self.queue.enqueue("timed", due=due, x=kit.PAD, **scheduled)

    async def work(self, stop: asyncio.Event) -> None:
        queue = Queue.from_url(self.url)
        worker = Worker(queue, functions=[noop, timed], concurrency=self.concurrency)
        worker.SIGNALS = []
        running = asyncio.create_task(worker.start())
        await stop.wait()
        await worker.stop()
        running.cancel()


if __name__ == "__main__":
    kit.main(Saq)
