"""Step 1: one task, which is tried again when the mail server fails. python examples/tutorial/shop1.py"""

import asyncio

from jobq import Backoff, Context, Queue, Worker, inject

queue = Queue("shop")


@queue.task(attempts=5, backoff=Backoff(delay=0.2), timeout=30)
async def send_mail(to: str, subject: str, ctx: Context = inject) -> str:
    """Pretend that the mail server hangs up on the first call."""
    if ctx.attempt == 1:
        raise ConnectionError("the mail server hung up")
    return f"sent {subject!r} to {to} in attempt {ctx.attempt}"


async def main() -> None:
    """Enqueue a job, run it, and print its result."""
    async with queue, Worker(queue) as worker:
        worker.start()
        job = await send_mail.enqueue(to="ada@example.com", subject="Welcome")
        print(await job.result(timeout=10))


if __name__ == "__main__":
    asyncio.run(main())
