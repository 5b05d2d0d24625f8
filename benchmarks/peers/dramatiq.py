"""dramatiq with its Redis broker; threads run the actors, as many as its command line starts by default."""

from __future__ import annotations

import asyncio
from typing import Any

import kit
from dramatiq import Worker, actor, set_broker
from dramatiq.brokers.redis import RedisBroker

THREADS = 8


class Dramatiq(kit.Peer):
    bulk = False

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.broker: Any = RedisBroker(url=self.url)
        set_broker(self.broker)

        @actor(broker=self.broker)
        def noop(n: int, x: str) -> None:
            kit.ran(n)

        @actor(broker=self.broker)
        def timed(due: float, x: str) -> None:
            kit.timed(due)

        self.noop, self.timed = noop, timed

    def enqueue(self, n: int) -> Any:
        self.noop.send(n, kit.PAD)

    def enqueue_timed(self, due: float, delay: float) -> Any:
        self.timed.send_with_options(args=(due, kit.PAD), delay=round(delay * 1000) or None)

    async def work(self, stop: asyncio.Event) -> None:
        worker = Worker(self.broker, worker_threads=THREADS)
        worker.start()
        await stop.wait()
        await asyncio.to_thread(worker.stop, 5000)


if __name__ == "__main__":
    kit.main(Dramatiq)
