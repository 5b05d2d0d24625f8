"""taskiq with taskiq-redis: the broker that acknowledges (streams), and results with an expiry, as documented."""

from __future__ import annotations

import asyncio
from typing import Any

import kit
from taskiq.api import run_receiver_task
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker


class Taskiq(kit.Peer):
    bulk = False

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        results: Any = RedisAsyncResultBackend(redis_url=self.url, result_ex_time=3600)
        # "0" also runs jobs that were enqueued before the first worker started.
        self.broker = broker = RedisStreamBroker(url=self.url, consumer_id="0").with_result_backend(results)

        @broker.task(task_name="noop")
        async def noop(n: int, x: str) -> None:
            kit.ran(n)

        @broker.task(task_name="timed")
        async def timed(due: float, x: str) -> None:
            kit.timed(due)

        self.noop, self.timed = noop, timed

    async def open(self) -> None:
        await self.broker.startup()

    async def close(self) -> None:
        await self.broker.shutdown()

    def enqueue(self, n: int) -> Any:
        return self.noop.kiq(n, kit.PAD)

    def enqueue_timed(self, due: float, delay: float) -> Any:
        if delay:
            raise NotImplementedError("delays need a scheduler process of its own")
        return self.timed.kiq(due, kit.PAD)

    async def work(self, stop: asyncio.Event) -> None:
        self.broker.is_worker_process = True
        await self.broker.startup()
        await kit.until(stop, run_receiver_task(self.broker, max_async_tasks=self.concurrency))


if __name__ == "__main__":
    kit.main(Taskiq)
