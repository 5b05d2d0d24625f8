"""Producer and worker in one plain script, on the embedded server: python examples/embedding/script.py"""

import asyncio

from jobq import Queue, Worker

queue = Queue("greetings")


@queue.task
async def greet(name: str) -> str:
    """Say hello."""
    return f"Hello, {name}!"


async def main() -> None:
    async with queue, Worker(queue, concurrency=10) as worker:
        worker.start()
        jobs = await greet.enqueue_many([{"name": name} for name in ("Ada", "Grace", "Edsger")])
        for job in jobs:
            print(await job.result(timeout=10))


if __name__ == "__main__":
    asyncio.run(main())
