"""streaQ, as its documentation shows: a Worker, tasks registered on it, ``enqueue_many`` for many."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import kit
from streaq import Worker


class Streaq(kit.Peer):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.worker = worker = Worker(redis_url=self.url, concurrency=self.concurrency, handle_signals=False)

        @worker.task
        async def noop(n: int, x: str) -> None:
            kit.ran(n)

        @worker.task
        async def timed(due: float, x: str) -> None:
            kit.timed(due)

        self.noop, self.timed = noop, timed

    async def open(self) -> None:
        await self.worker.__aenter__()

    async def close(self) -> None:
        await self.worker.__aexit__(None, None, None)

    async def enqueue(self, n: int) -> None:
        await self.noop.enqueue(n, kit.PAD)

    def enqueue_many(self, numbers: range) -> Any:
        return self.worker.enqueue_many([self.noop.enqueue(n, kit.PAD) for n in numbers])

    async def enqueue_timed(self, due: float, delay: float) -> None:
        task = self.timed.enqueue(due, kit.PAD)
        await (task.start(delay=timedelta(seconds=delay)) if delay else task)

    async def work(self, stop: asyncio.Event) -> None:
        await kit.until(stop, self.worker.run_async())


if __name__ == "__main__":
    kit.main(Streaq)
