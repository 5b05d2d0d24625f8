"""What the commands share: a loop to run on, signals, and queues by name or target."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from jobq.cli.target import load_target
from jobq.engine.queue.connect import acquire
from jobq.engine.queue.queue import Queue
from jobq.engine.store import Store
from jobq.errors import TargetError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Generator

    from jobq.settings import Settings

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where it is installed; no event loop policy is touched."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def loaded() -> None:
    """What a process that runs for long has loaded by now stays for ever: no collection looks at it again."""
    gc.collect()
    gc.freeze()


def on_stop_signals(stop: Callable[[], None]) -> None:
    """Call ``stop`` at every SIGTERM and SIGINT (Ctrl-C), instead of dying of them."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


def is_target(word: str) -> bool:
    """Whether it leads to code, and is no queue's name: a name has neither ":" nor "/", and does not end in ".py"."""
    return ":" in word or "/" in word or word.endswith(".py")


@asynccontextmanager
async def one_queue(word: str | None, settings: Settings, *, new: bool = False) -> AsyncGenerator[Queue, None]:
    """The queue that is meant, open. Not said which: the only one there is, else "default".

    ``new``: it need not be known in Redis yet. Others must, lest a mistyped name makes a queue.

    :raises TargetError: it is not clear which one is meant, or there is none of that name.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(_without_warnings())
        if word is not None and is_target(word):
            queues = load_target(word)
        else:
            names = await stack.enter_async_context(_known(settings))
            name = word or _choose(names)
            if not new:
                _must_be_known(name, names)
            queues = [Queue(name, settings=settings)]
        if len(queues) > 1:
            listed = ", ".join(queue.name for queue in queues)
            raise TargetError(f"{word} has several queues ({listed}); say which one by its name")
        yield await stack.enter_async_context(queues[0])


@asynccontextmanager
async def all_queues(word: str | None, settings: Settings) -> AsyncGenerator[list[Queue], None]:
    """The queues of a name or target, open; not said which: all that are known in Redis.

    :raises TargetError: there is no queue of that name.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(_without_warnings())
        if word is not None and is_target(word):
            queues = load_target(word)
        else:
            names = await stack.enter_async_context(_known(settings))
            if word is not None:
                _must_be_known(word, names)
            queues = [Queue(name, settings=settings) for name in ([word] if word else names)]
        for queue in queues:
            await stack.enter_async_context(queue)
        yield queues


@contextmanager
def _without_warnings() -> Generator[None]:
    """What a server's operator should know is said by `serve`, `work` and `dev`, not by every look at a queue."""
    logger = logging.getLogger("jobq")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@asynccontextmanager
async def _known(settings: Settings) -> AsyncGenerator[list[str], None]:
    """The names of all queues in Redis. No queue is opened for it: that alone would enter its name."""
    lease = await acquire(None, settings)
    try:
        yield await Store(lease.connection, "default", prefix=settings.prefix).queues()
    finally:
        await lease.release()


def _choose(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    if not names or "default" in names:
        return "default"
    raise TargetError(f"there are several queues ({', '.join(names)}); say which one: --queue NAME")


def _must_be_known(name: str, names: list[str]) -> None:
    if not names:
        raise TargetError("there are no queues yet: enqueue a job, or start a worker")
    if name not in names:
        raise TargetError(f"there is no queue {name!r}; there are: {', '.join(names)}")


def split_id(word: str, queue: str | None) -> tuple[str | None, str]:
    """ "email:0h2k..." in its queue (None: not said) and the plain id.

    :raises TargetError: the id's queue is not the one given with --queue.
    """
    name, colon, job_id = word.rpartition(":")
    if not colon:
        return queue, word
    if queue is not None and queue != name and ":" not in queue:
        raise TargetError(f"job {word} is not in queue {queue}")
    return name, job_id
