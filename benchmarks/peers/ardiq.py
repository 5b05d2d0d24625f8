"""ArdiQ (its worker loop is Rust), as its documentation shows: an app, tasks on it, ``enqueue_many`` of ``prepare``."""

from __future__ import annotations

import asyncio
from typing import Any

import kit
from ardiq import Ardiq as App


class Ardiq(kit.Peer):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.app = app = App(redis_url=self.url, queue_name="bench", concurrency=self.concurrency)

        @app.task()
        async def noop(n: int, x: str) -> None:
            kit.ran(n)

        @app.task()
        async def timed(due: float, x: str) -> None:
            kit.timed(due)

        self.noop, self.timed = noop, timed

    def enqueue(self, n: int) -> Any:
        return self.noop.enqueue(n, kit.PAD)

    def enqueue_many(self, numbers: range) -> Any:
        return self.app.enqueue_many([self.noop.prepare(n, kit.PAD) for n in numbers])

    def enqueue_timed(self, due: float, delay: float) -> Any:
        return self.timed.options(delay_ms=max(0, round(delay * 1000))).enqueue(due, kit.PAD)

    async def work(self, stop: asyncio.Event) -> None:
        running = asyncio.create_task(self.app.run())
        await stop.wait()
        self.app.stop()
        await asyncio.wait([running], timeout=10)


if __name__ == "__main__":
    kit.main(Ardiq)
