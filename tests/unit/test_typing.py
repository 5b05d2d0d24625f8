"""What a type checker says of a program that uses jobq. ``make types`` checks this file strictly. In it a comment that
ignores an error is itself an error if there is none, so a wrong call that is no longer found fails the check."""
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import Annotated, assert_type

from jobq import Context, Depends, Job, Queue, inject

queue = Queue("typed")


def default_size() -> int:
    return 100


@queue.task
async def send(to: str, count: int = 1, ctx: Context = inject) -> str:
    """Callers leave out ``ctx``, and inside it is a ``Context``."""
    assert_type(ctx, Context)
    return f"{to} {count} {ctx.id}"


@queue.task(attempts=5)
def resize(image: str, size: Annotated[int, Depends(default_size)] = inject) -> dict[str, int]:
    assert_type(size, int)
    return {image: size}


async def program() -> None:
    """It is checked and never run."""
    job = await send.enqueue("ada", count=2)
    assert_type(job, Job[str])
    assert_type(await job.result(timeout=5), str)
    assert_type(await (await send.options(delay=5).enqueue(to="ada")).result(), str)
    assert_type(await send.enqueue_many([{"to": "ada"}]), list[Job[str]])
    assert_type(await (await resize.enqueue(image="cat.png")).result(), dict[str, int])
    await send.enqueue(5)  # pyright: ignore[reportArgumentType]
    await send.enqueue()  # pyright: ignore[reportCallIssue]
    await send.enqueue("ada", number=2)  # pyright: ignore[reportCallIssue]
    send.options(prioritty=1)  # pyright: ignore[reportCallIssue]
    send.options(priority="high")  # pyright: ignore[reportArgumentType]


def test_injected_parameters_are_no_part_of_the_payload() -> None:
    assert send.signature.names == ("to", "count")
    assert resize.signature.names == ("image",)
