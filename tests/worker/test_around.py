"""Injected dependencies, middleware and hooks.

Annotations are real objects here and not text, because they name functions that are local to a test.
"""

import asyncio
import functools
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, Optional

import pytest
import structlog

from jobq import Context, Depends, JobFailed, Queue, Worker, inject
from jobq.engine.task.context import current


async def test_dependencies_of_a_run_are_opened_for_it_and_closed_after_it(queue: Queue, start):
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


async def test_dependencies_of_a_worker_are_opened_once_and_closed_at_its_end(queue: Queue):
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


async def test_a_worker_dependency_that_fails_is_tried_again_by_the_next_run(queue: Queue, start):
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


async def test_killing_a_run_that_opens_a_worker_dependency_does_not_affect_other_runs(queue: Queue, start, gate):
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


async def test_errors_in_dependencies_fail_the_run_and_close_the_others(queue: Queue, start):
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
    assert closed == []  # The error was thrown into the dependency, as into any context manager.


async def test_a_handlers_error_passes_through_its_dependencies(queue: Queue, start):
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
    # If the error were swallowed, the run would look like a success that returned nothing.
    with pytest.raises(JobFailed, match="swallowed the handler's error"):
        await (await hidden.enqueue()).result(5)
    assert seen == ["rollback: bad", "swallowed"]


async def test_a_dependency_is_opened_once_per_run_even_if_several_need_it(queue: Queue, start):
    opened: list[str] = []

    async def session():
        opened.append("open")
        yield object()
        opened.append("close")

    async def repository(session: Annotated[object, Depends(session)]) -> object:
        return session

    @queue.task
    async def use(
        a: Annotated[object, Depends(session)] = inject,
        b: Annotated[object, Depends(session)] = inject,
        c: Annotated[object, Depends(repository)] = inject,
    ) -> bool:
        return a is b is c

    await start()
    for _ in range(2):
        opened.clear()
        assert await (await use.enqueue()).result(5) is True
        assert opened == ["open", "close"]


async def test_a_worker_dependency_of_other_dependencies_is_opened_once(queue: Queue, start, gate):
    opened: list[str] = []

    async def settings() -> str:
        opened.append("settings")
        await gate.passing()
        return "s"

    async def pool(settings: Annotated[str, Depends(settings, scope="worker")]) -> str:
        opened.append("pool")
        return settings + "p"

    async def cache(settings: Annotated[str, Depends(settings, scope="worker")]) -> str:
        opened.append("cache")
        return settings + "c"

    @queue.task
    async def use_pool(pool: Annotated[str, Depends(pool, scope="worker")] = inject) -> str:
        return pool

    @queue.task
    async def use_cache(cache: Annotated[str, Depends(cache, scope="worker")] = inject) -> str:
        return cache

    await start()
    jobs = [await use_pool.enqueue(), await use_cache.enqueue()]
    await gate.arrival()
    gate.open()
    assert [await job.result(5) for job in jobs] == ["sp", "sc"]
    assert sorted(opened) == ["cache", "pool", "settings"]


async def test_defaults_and_optional_annotations_are_injected_too(queue: Queue, start):
    def connect() -> str:
        return "db"

    @queue.task
    async def use(
        n: int,
        db: str = Depends(connect),  # pyright: ignore[reportArgumentType]
        ctx: Context | None = None,
        other: Optional[Context] = None,  # noqa: UP045
    ) -> list[Any]:
        return [n, db, ctx and ctx.type, other is ctx]

    await start()
    assert await (await use.enqueue(n=1)).result(5) == [1, "db", "use", True]


async def test_context_managers_are_opened_and_closed(queue: Queue, start):
    events: list[str] = []

    @contextmanager
    def plain():
        events.append("enter")
        yield "p"
        events.append("exit")

    class Lock:
        def __enter__(self):
            raise AssertionError("an object that happens to be a context manager is the handler's to enter")

        def __exit__(self, *_: object): ...

    @queue.task
    async def use(
        a: Annotated[str, Depends(plain)] = inject,
        b: Annotated[Lock, Depends(Lock)] = inject,
        c: Annotated[str, Depends(functools.partial(plain))] = inject,
    ) -> list[Any]:
        return [a, type(b).__name__, c]

    await start()
    assert await (await use.enqueue()).result(5) == ["p", "Lock", "p"]
    assert events == ["enter", "enter", "exit", "exit"]


async def test_a_worker_dependency_does_not_keep_the_context_of_the_job_that_came_first(queue: Queue, start):
    def job_id() -> Any:
        return structlog.contextvars.get_contextvars().get("job_id")

    async def pool() -> Any:
        return [job_id(), current.get(None)]

    @queue.task
    async def use(pool: Annotated[Any, Depends(pool, scope="worker")] = inject) -> list[Any]:
        return [job_id() is not None, pool]

    await start()
    assert await (await use.enqueue()).result(5) == [True, [None, None]]


async def test_a_worker_dependency_that_exits_fails_the_run_and_not_the_worker(queue: Queue, start):
    def exits() -> None:
        raise SystemExit(3)

    @queue.task(attempts=1)
    async def use(x: Annotated[None, Depends(exits, scope="worker")] = inject) -> None: ...

    @queue.task
    async def fine() -> int:
        return 1

    await start()
    with pytest.raises(JobFailed, match="SystemExit: 3"):
        await (await use.enqueue()).result(5)
    assert await (await fine.enqueue()).result(5) == 1


class Mailer:
    """A callable object, which some frameworks make from functions."""

    async def __call__(self, to: str) -> str:
        return to


async def test_partials_and_callable_objects_are_handlers(queue: Queue, start):
    def add(a: int, b: int) -> int:
        return a + b

    async def mul(a: int, b: int = 1) -> int:
        return a * b

    add_one = queue.task(name="add_one")(functools.partial(add, 1))
    double = queue.task(name="double")(functools.partial(mul, b=2))
    mail = queue.task(name="mail")(Mailer())
    assert (add_one.kind, double.kind, mail.kind) == ("thread", "async", "async")
    await start()
    assert await (await add_one.enqueue(b=2)).result(5) == 3
    assert await (await double.enqueue(a=4)).result(5) == 8
    assert await (await mail.enqueue(to="a")).result(5) == "a"


def _yields():
    yield


async def _yields_too():
    yield


def _asks(ctx: Context) -> str:
    return ctx.id


def _through(x: Annotated[str, Depends(_asks)]) -> str:
    return x


def _needs(x: int) -> int:
    return x


def _needs_unknown(x: "NotThere") -> None:  # type: ignore[name-defined] # noqa: F821
    ...


def _using(depends: Any) -> Any:
    async def use(x=depends): ...

    return use


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda queue: queue.task(_yields), "_yields is a generator: a handler returns its result once"),
        (lambda queue: queue.task(name="x")(functools.partial(_yields_too)), "is a generator"),
        (lambda queue: queue.task("send"), "a handler is a function, not 'send'; give the name of the type as name="),
        (lambda queue: queue.task(functools.partial(_needs)), "has no name: give the name of the type as name="),
        (lambda queue: queue.task(isolate="thread")(_needs), "isolate is 'thread': it takes 'process' or None"),
        (lambda queue: queue.task(isolate="process", name="x")(Mailer()), "can only find functions at the top level"),
        (lambda queue: queue.task(isolate="process")(lambda: 1), "can only find functions at the top level"),
        (lambda queue: queue.task(_using(Depends(_asks, scope="worker"))), "it cannot ask for a Context"),
        (lambda queue: queue.task(_using(Depends(_through, scope="worker"))), "_asks has scope 'worker'"),
        (lambda queue: queue.task(_using(Depends(_needs))), "nothing is injected for its parameter 'x'"),
        (lambda queue: queue.task(_using(Depends(_needs_unknown))), "name 'NotThere' is not defined"),
        (lambda queue: Depends(_needs, scope="wroker"), "scope is 'wroker': it takes 'run' or 'worker'"),  # type: ignore
        (lambda queue: Depends(7), "Depends takes a function that returns the value, not 7"),  # type: ignore[arg-type]
        (lambda queue: queue.middleware(_needs), "middleware _needs is not async: write async def _needs"),
        (lambda queue: queue.middleware(Mailer()), r"middleware Mailer does not take \(context, call_next\)"),
        (lambda queue: queue.middleware(_yields_too), "is not async"),
    ],
)  # fmt: skip
async def test_handlers_and_options_that_cannot_work_are_refused_at_decoration(queue: Queue, make, says):
    with pytest.raises(TypeError, match=says):
        make(queue)


async def test_middleware_wraps_in_the_order_of_registration_and_sees_results_and_errors(queue: Queue, start):
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


async def test_middleware_is_told_why_a_handler_was_stopped(queue: Queue, start, gate, until):
    seen: list[Any] = []

    @queue.middleware
    async def watch(context, call_next):
        try:
            return await call_next()
        except BaseException as error:
            await asyncio.sleep(0)  # The middleware can still await, to report the error.
            seen.append((context.type, type(error).__name__, context.stopped))
            raise

    @queue.task(attempts=1, timeout=0.05)
    async def slow() -> None:
        await gate.passing()

    @queue.task(attempts=1, timeout=0.05, name="thread")
    def slow_thread() -> None:
        gate.hold()

    @queue.task(attempts=1)
    async def killed() -> None:
        await gate.passing()

    gate.loop = asyncio.get_running_loop()
    await start()
    for task in (slow, slow_thread):
        with pytest.raises(JobFailed, match="timeout"):
            await (await task.enqueue()).result(5)
    job = await killed.enqueue()
    for _ in range(3):
        await gate.arrival()
    await queue.kill(job.id)
    with pytest.raises(JobFailed):
        await job.result(5)
    await until(lambda: len(seen) == 3)
    assert seen == [
        ("slow", "Timeout", "timeout"), ("thread", "Timeout", "timeout"), ("killed", "CancelledError", "killed"),
    ]  # fmt: skip


async def test_middleware_sees_the_errors_of_dependencies_too(queue: Queue, start):
    """A transaction that cannot be committed fails the job. A counter must not count that as a success."""
    seen: list[str] = []
    stuck = asyncio.Event()

    @queue.middleware
    async def watch(context: Context, call_next: Any) -> Any:
        try:
            result = await call_next()
        except Exception as error:
            seen.append(f"{context.type}: {type(error).__name__}")
            raise
        seen.append(f"{context.type}: ended")
        return result

    async def closed():
        raise ConnectionError("no database")

    async def transaction():
        yield
        raise ConnectionError("cannot commit")

    async def slow():
        yield
        await stuck.wait()

    @queue.task(attempts=1)
    async def cannot_open(t: Annotated[None, Depends(closed)] = inject) -> None: ...

    @queue.task(attempts=1)
    async def cannot_commit(t: Annotated[None, Depends(transaction)] = inject) -> None: ...

    @queue.task(attempts=1, timeout=0.05)
    async def slow_to_close(t: Annotated[None, Depends(slow)] = inject) -> None: ...

    @queue.task
    async def work() -> None: ...

    await start()
    for task, failure in ((cannot_open, "no database"), (cannot_commit, "cannot commit"), (slow_to_close, "Timeout")):
        with pytest.raises(JobFailed, match=failure):
            await (await task.enqueue()).result(5)
    await (await work.enqueue()).result(5)
    assert seen == [
        "cannot_open: ConnectionError",
        "cannot_commit: ConnectionError",
        "slow_to_close: Timeout",
        "work: ended",
    ]


async def test_middleware_can_return_a_result_without_the_handler(queue: Queue, start):
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


async def test_hooks_run_before_the_first_claim_and_after_the_last_run(queue: Queue):
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


@pytest.mark.parametrize("register", ["on_startup", "on_shutdown"])
def test_a_hook_that_cannot_be_called_is_refused_where_it_is_registered(queue: Queue, register):
    def needs(pool: Any) -> None: ...

    async def yields():
        yield

    for hook, says in ((5, "is a function, not 5"), (needs, "needs is called without"), (yields, "is a generator")):
        with pytest.raises(TypeError, match=says):
            getattr(queue, register)(hook)
    assert not queue.startup_hooks
    assert not queue.shutdown_hooks
    assert getattr(queue, register)(functools.partial(needs, None))


async def test_a_failing_startup_hook_stops_the_worker_before_it_claims(queue: Queue):
    @queue.on_startup
    async def broken() -> None:
        raise LookupError("no database")

    @queue.task
    async def work() -> None: ...

    await work.enqueue()
    async with Worker(queue) as worker:
        for _ in range(2):  # The worker may run again.
            with pytest.raises(LookupError, match="no database"):
                await worker.run()
    stats = await queue.stats()
    assert (stats.waiting, stats.active) == (1, 0)


async def test_an_error_on_shutdown_does_not_skip_the_other_steps(queue: Queue):
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
