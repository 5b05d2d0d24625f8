"""Four kinds of jobs. Run them with: jobq dev examples/email.py:queue"""

import asyncio
import time
from typing import Annotated

from msgspec import Meta

from jobq import Backoff, Context, Queue, inject

queue = Queue("email")

Address = Annotated[str, Meta(pattern="@", max_length=254, examples=["user@example.com"])]


@queue.task(timeout=30)
async def email(to: Address, subject: str = "Hello") -> str:
    """Send a mail (or pretend to). It is async: thousands can wait at the same time on one event loop."""
    await asyncio.sleep(0.1)
    return f"sent {subject!r} to {to}"


@queue.task
def report(rows: int = 100, ctx: Context = inject) -> dict[str, int]:
    """Write a report. It is a plain function, so it runs in a thread. It reports its progress."""
    for row in range(1, rows + 1):
        time.sleep(0.02)
        if row % 10 == 0 or row == rows:
            ctx.progress(100 * row // rows)
    ctx.log(f"wrote {rows} rows")
    return {"rows": rows}


@queue.task(attempts=5, backoff=Backoff(delay=0.5))
async def flaky(ctx: Context = inject) -> str:
    """Fail twice, then work: retries with a growing delay."""
    if ctx.attempt <= 2:
        raise ConnectionError(f"attempt {ctx.attempt}: the other side hung up")
    return f"worked at attempt {ctx.attempt}"


@queue.task(isolate="process", timeout=60)
def crunch(limit: int = 200_000) -> int:
    """Count primes. CPU work runs in a child process, so that it does not block others and can be killed."""
    sieve = bytearray([1]) * (limit + 1)
    for number in range(2, int(limit**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, limit + 1, number)))
    return max(0, sum(sieve) - 2)
