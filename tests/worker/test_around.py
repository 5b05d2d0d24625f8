"""What surrounds a run: injected dependencies, middleware, hooks.

Annotations are real objects here, not text: they name functions local to a test.
"""

import asyncio
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest

from jobq import Context, Depends, JobFailed, Worker, inject


async def test_dependencies_of_a_run_are_made_anew_and_closed_after_it(queue, start):
    events: list[str] = []

    def plain() -> int:
        events.append("plain")
        return 1

    async def coroutine(n: Annotated[int, Depends(plain)]) -> int:
        events.append("coroutine")
        return n + 1

    async def generator(n: Annotated[int, Depends(coroutine)], ctx: Context):
        events.append("open")
        yield [n, ctx.id]
        events.append("close")

    def sync_generator():
        events.append("sync open")
        yield "s"
        events.append("sync close")

    @asynccontextmanager
    async def manager():
        events.append("enter")
        yield "m"
        events.append("exit")

    @queue.task
    async def use(
        a: Annotated[list[Any], Depends(generator)] = inject,
        b: Annotated[str, Depends(sync_generator)] = inject,
        c: Annotated[str, Depends(manager)] = inject,
    ) -> list[Any]:
        events.append("run")
        return [a, b, c]

    await start()
    for _ in range(2):
        events.clear()
        job = await use.enqueue()
        assert await job.result(5) == [[2, job.id], "s", "m"]
        assert events == ["plain", "coroutine", "open", "sync open", "enter", "run", "exit", "sync close", "close"]


async def test_dependencies_of_a_worker_are_opened_once_and_closed_at_its_end(queue):
    events: list[str] = []

    async def pool():
        events.append("open")
        await asyncio.sleep(0)
        yield object()
        events.append("close")

    @queue.task
    async def use(pool: Annotated[object, Depends(pool, scope="worker")] = inject) -> int:
        return id(pool)

    @queue.task
    def use_in_thread(pool: Annotated[object, Depends(pool, scope="worker")] = inject) -> int:
        return id(pool)

    async with Worker(queue) as worker:
        worker.start()
        jobs = [*await use.enqueue_many([{} for _ in range(20)]), await use_in_thread.enqueue()]
        assert len({await job.result(5) for job in jobs}) == 1
        assert events == ["open"]
    assert events == ["open", "close"]


async def test_a_worker_dependency_that_fails_is_tried_again_by_the_next_run(queue, start):
    tries = 0

    async def shaky() -> int:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ConnectionError("database away")
        return tries

    @queue.task(attempts=1)
    async def use(n: Annotated[int, Depends(shaky, scope="worker")] = inject) -> int:
        return n

    await start()
    with pytest.raises(JobFailed, match="database away"):
        await (await use.enqueue()).result(5)
    assert await (await use.enqueue()).result(5) == 2


async def test_a_run_killed_while_it_opens_a_worker_dependency_takes_no_other_with_it(queue, start, gate):
    async def slow() -> int:
        await gate.passing()
        return 7

    @queue.task(attempts=1)
    async def use(n: Annotated[int, Depends(slow, scope="worker")] = inject) -> int:
        return n

    await start()
    first = await use.enqueue()
    await gate.arrival()
    second = await use.enqueue()
    await queue.kill(first.id)
    gate.open()
    assert await second.result(5) == 7


async def test_errors_in_dependencies_fail_the_run_and_close_the_others(queue, start):
    closed: list[str] = []

    def outer():
        yield
        closed.append("outer")

    def broken():
        raise LookupError("no tenant")

    def broken_at_the_end():
        yield
        raise OSError("cannot close")

    @queue.task(attempts=1)
    async def before(a: Annotated[None, Depends(outer)] = inject, b: Annotated[None, Depends(broken)] = inject): ...

    @queue.task(attempts=1)
    async def after(b: Annotated[None, Depends(broken_at_the_end)] = inject): ...

    await start()
    with pytest.raises(JobFailed, match="LookupError: no tenant"):
        await (await before.enqueue()).result(5)
    with pytest.raises(JobFailed, match="OSError: cannot close"):
        await (await after.enqueue()).result(5)
    assert closed == []  # the error was thrown into it, as into any context manager


async def test_a_handlers_error_passes_through_its_dependencies(queue, start):
    seen: list[str] = []

    async def transaction():
        try:
            yield
        except ValueError as error:
            seen.append(f"rollback: {error}")
            raise

    async def greedy():
        try:
            yield
        except ValueError:
            seen.append("swallowed")

    @queue.task(attempts=1)
    async def fails(t: Annotated[None, Depends(transaction)] = inject) -> None:
        raise ValueError("bad")

    @queue.task(attempts=1)
    async def hidden(t: Annotated[None, Depends(greedy)] = inject) -> None:
        raise ValueError("bad")

    await start()
    with pytest.raises(JobFailed, match="ValueError: bad"):
        await (await fails.enqueue()).result(5)
    # swallowed, the run would look like a success that returned nothing
    with pytest.raises(JobFailed, match="swallowed the handler's error"):
        await (await hidden.enqueue()).result(5)
    assert seen == ["rollback: bad", "swallowed"]


async def test_a_worker_dependency_cannot_ask_for_a_run(queue, start):
    async def confused(ctx: Context) -> str:
        return ctx.id

    @queue.task(attempts=1)
    async def use(n: Annotated[str, Depends(confused, scope="worker")] = inject) -> str:
        return n

    await start()
    with pytest.raises(JobFailed, match="cannot ask for a Context"):
        await (await use.enqueue()).result(5)


async def test_middleware_wraps_in_the_order_of_registration_and_sees_results_and_errors(queue, start):
    events: list[str] = []

    @queue.middleware
    async def outer(context, call_next):
        events.append(f"outer in {context.type} {context.attempt}")
        try:
            return [await call_next(), "outer"]
        except ValueError:
            events.append("outer saw it")
            raise

    @queue.middleware
    async def inner(context, call_next):
        events.append("inner in")
        value = await call_next()
        events.append("inner out")
        return [value, "inner"]

    @queue.task(attempts=1)
    async def fine() -> str:
        return "value"

    @queue.task(attempts=1)
    def thread() -> str:
        return "value"

    @queue.task(attempts=1)
    async def fails() -> None:
        raise ValueError("bad")

    await start()
    for task in (fine, thread):
        events.clear()
        job = await queue.enqueue(task.name)
        assert await job.result(5) == [["value", "inner"], "outer"]
        assert events == [f"outer in {task.name} 1", "inner in", "inner out"]
    with pytest.raises(JobFailed, match="ValueError: bad"):
        await (await fails.enqueue()).result(5)
    assert events[-1] == "outer saw it"


async def test_middleware_can_answer_itself(queue, start):
    ran = False

    @queue.middleware
    async def maintenance(context, call_next):
        return "closed today"

    @queue.task
    async def work() -> None:
        nonlocal ran
        ran = True

    await start()
    assert await (await queue.enqueue("work")).result(5) == "closed today"
    assert not ran


async def test_hooks_run_before_the_first_claim_and_after_the_last_run(queue):
    events: list[str] = []

    @queue.on_startup
    def sync_hook() -> None:
        events.append("up 1")

    @queue.on_startup
    async def async_hook() -> None:
        await asyncio.sleep(0)
        events.append("up 2")

    @queue.on_shutdown
    async def down() -> None:
        events.append("down")

    @queue.task
    async def work() -> None:
        events.append("run")

    job = await work.enqueue()
    async with Worker(queue) as worker:
        worker.start()
        await job.result(5)
    assert events == ["up 1", "up 2", "run", "down"]


async def test_a_failing_startup_hook_stops_the_worker_before_it_claims(queue):
    @queue.on_startup
    async def broken() -> None:
        raise LookupError("no database")

    @queue.task
    async def work() -> None: ...

    await work.enqueue()
    async with Worker(queue) as worker:
        for _ in range(2):  # it may be run again
            with pytest.raises(LookupError, match="no database"):
                await worker.run()
    stats = await queue.stats()
    assert (stats.waiting, stats.active) == (1, 0)


async def test_an_error_at_the_end_does_not_skip_the_rest_of_it(queue):
    events: list[str] = []

    async def resource():
        yield 1
        raise OSError("cannot close")

    @queue.on_shutdown
    def down() -> None:
        events.append("down")

    @queue.task
    async def use(n: Annotated[int, Depends(resource, scope="worker")] = inject) -> int:
        return n

    async def serve() -> None:
        async with Worker(queue) as worker:
            worker.start()
            await (await use.enqueue()).result(5)

    with pytest.raises(OSError, match="cannot close"):
        await serve()
    assert events == ["down"]
    assert await queue.workers() == []
