"""What the commands share: a loop to run on, signals, and queues by name or target."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from jobq.engine.queue import Queue
from jobq.engine.target import load_target
from jobq.errors import TargetError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine

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


def on_stop_signals(stop: Callable[[], None]) -> None:
    """Call ``stop`` at every SIGTERM and SIGINT (Ctrl-C), instead of dying of them."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


def named(word: str, settings: Settings) -> list[Queue]:
    """Queues by a name or a TARGET: a name has neither ":" nor "/" and does not end in ".py".

    :raises TargetError: the target leads nowhere.
    """
    if ":" in word or "/" in word or word.endswith(".py"):
        return load_target(word)
    return [Queue(word, settings=settings)]


@asynccontextmanager
async def one_queue(word: str | None, settings: Settings) -> AsyncGenerator[Queue, None]:
    """The queue that is meant, open. Not said which: the only one there is, else "default".

    :raises TargetError: it is not clear which one is meant.
    """
    async with AsyncExitStack() as stack:
        if word is None:
            default = await stack.enter_async_context(Queue(settings=settings))
            word = _choose(await default.queues())
        queues = named(word, settings)
        if len(queues) > 1:
            names = ", ".join(queue.name for queue in queues)
            raise TargetError(f"{word} has several queues ({names}); say which one by its name")
        yield await stack.enter_async_context(queues[0])


def _choose(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    if not names or "default" in names:
        return "default"
    raise TargetError(f"there are several queues ({', '.join(sorted(names))}); say which one: --queue NAME")


@asynccontextmanager
async def all_queues(word: str | None, settings: Settings) -> AsyncGenerator[list[Queue], None]:
    """The queues of a name or target, open; not said which: all that are known in Redis, or "default"."""
    async with AsyncExitStack() as stack:
        if word is not None:
            queues = named(word, settings)
        else:
            default = await stack.enter_async_context(Queue(settings=settings))
            names = sorted(await default.queues()) or ["default"]
            queues = [Queue(name, settings=settings) for name in names]
        for queue in queues:
            await stack.enter_async_context(queue)
        yield queues


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
