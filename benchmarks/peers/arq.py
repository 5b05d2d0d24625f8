"""arq, as its documentation shows: a pool to enqueue, a Worker with ``max_jobs``. It has no call for many jobs."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import kit
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker


async def noop(_: dict[Any, Any], n: int, x: str) -> None:
    kit.ran(n)


async def timed(_: dict[Any, Any], due: float, x: str) -> None:
    kit.timed(due)


class Arq(kit.Peer):
    bulk = False

    async def open(self) -> None:
        self.pool = await create_pool(RedisSettings.from_dsn(self.url))

    async def close(self) -> None:
        await self.pool.aclose()

    def enqueue(self, n: int) -> Any:
        return self.pool.enqueue_job("noop", n, kit.PAD)

    def enqueue_timed(self, due: float, delay: float) -> Any:
        return self.pool.enqueue_job("timed", due, kit.PAD, _defer_by=timedelta(seconds=delay) if delay else None)

    async def work(self, stop: asyncio.Event) -> None:
        worker = Worker(
            [noop, timed],
            redis_settings=RedisSettings.from_dsn(self.url),
            max_jobs=self.concurrency,
            handle_signals=False,
        )
        await kit.until(stop, worker.async_run())
        await worker.close()


if __name__ == "__main__":
    kit.main(Arq)
