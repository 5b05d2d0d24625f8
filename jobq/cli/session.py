"""Shared by the commands: the event loop, signals, and queues by name or target."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from jobq.cli.target import load_target
from jobq.engine.queue.connect import acquire
from jobq.engine.queue.overview import glances
from jobq.engine.queue.queue import Queue
from jobq.engine.queue.webhooks import delivers_for
from jobq.engine.store import Store
from jobq.engine.worker.forks import restore_signals_in_forks
from jobq.errors import TargetError, UnknownQueue
from jobq.redact import redact

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Sequence

    from jobq.engine.model.views import Stats
    from jobq.engine.queue.overview import Glance
    from jobq.engine.store import Connection
    from jobq.settings import Settings

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE: Final = 8
"""Queues of which a command opens or reads so many at the same time."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop if it is installed. The event loop policy of the process stays as it is."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def loaded() -> None:
    """Exempt all existing objects from garbage collection. Call it when a long-running process has loaded its code."""
    gc.collect()
    gc.freeze()


def on_stop_signals(stop: Callable[[], None], at_once: Callable[[], None] | None = None) -> None:
    """Call ``stop`` at every SIGTERM and SIGINT (Ctrl-C). The process does not end by itself.

    ``at_once`` is called at SIGQUIT, which a supervisor sends at its second stop. The default is ``stop``.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGQUIT, at_once or stop)
    restore_signals_in_forks()


def is_target(word: str) -> bool:
    """Whether the word names code and not a queue: it contains a ":" or a "/", which a queue's name cannot contain.

    So ``x.py`` is a queue's name. Names come from Redis or from a job's id, and must never run a file.
    """
    return ":" in word or "/" in word


@asynccontextmanager
async def one_queue(word: str | None, settings: Settings, *, create: bool = False) -> AsyncGenerator[Queue, None]:
    """The named queue, open. Without a name: the only queue there is, else "default".

    :raises TargetError: there is no name, and there are several queues.
    :raises UnknownQueue: Redis has no queue of this name. ``create`` allows a new one; otherwise a mistyped name would
        create a queue.
    """
    async with Queues(settings) as queues:
        yield await queues.one(word, create=create)


@asynccontextmanager
async def all_queues(word: str | None, settings: Settings) -> AsyncGenerator[list[Queue], None]:
    """The queues of a name or target, open. Without a name: all queues in Redis.

    :raises UnknownQueue: Redis has no queue of this name.
    """
    async with Queues(settings) as queues:
        yield await queues.all(word)


class Queues:
    """Opens queues by name or target. Queues by name share one connection, which is made when it is first needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._connection: Connection | None = None
        self._names: list[str] = []
        self._open: dict[str, Queue] = {}

    async def __aenter__(self) -> Self:
        self._stack.enter_context(_without_warnings())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def one(self, word: str | None, *, create: bool = False) -> Queue:
        """As ``one_queue``. The same name returns the same queue again."""
        if word is not None and is_target(word):
            queues = load_target(word)
            if len(queues) > 1:
                listed = ", ".join(queue.name for queue in queues)
                raise TargetError(f"{word} has several queues ({listed}); say which one by its name")
            return await self._stack.enter_async_context(queues[0])
        await self._connect()
        name = word or self._choose()
        if not create and name not in self._names:
            raise UnknownQueue(self._unknown(name))
        return await self._named(name)

    async def all(self, word: str | None) -> list[Queue]:
        """As ``all_queues``."""
        if word is not None and is_target(word):
            queues = list(load_target(word))
            await side_by_side(self._stack.enter_async_context, queues)
            return queues
        await self._connect(again=True)
        if word is not None and word not in self._names:
            raise UnknownQueue(self._unknown(word))
        return await side_by_side(self._named, [word] if word else self._names)

    async def stats(self, word: str | None) -> list[Stats]:
        """The stats of the queues of a name or target. Without a name: of all queues in Redis, which may be thousands.

        :raises UnknownQueue: Redis has no queue of this name.
        """
        if word is not None:
            return await side_by_side(Queue.stats, await self.all(word))
        queues = await self.closed(None)

        async def read(pair: tuple[Queue, Glance | None]) -> Stats:
            queue, seen = pair
            return seen.stats if seen is not None else await (await self._named(queue.name)).stats()

        return await side_by_side(read, list(zip(queues, await self.glances(queues), strict=True)))

    async def glances(self, queues: Sequence[Queue]) -> list[Glance | None]:
        """What is read of queues of ``closed`` without opening them. None: it must be opened."""
        if self._connection is None or len(queues) < 2:
            return [None] * len(queues)
        return await glances(queues, self._connection)

    async def closed(self, word: str | None) -> list[Queue]:
        """As ``all``, but the queues are not open yet. ``open`` opens one, so an error is that of one queue."""
        if word is not None and is_target(word):
            return list(load_target(word))
        await self._connect(again=True)
        if word is not None and word not in self._names:
            raise UnknownQueue(self._unknown(word))
        return [Queue(name, self._connection, settings=self._settings) for name in ([word] if word else self._names)]

    async def open(self, queue: Queue) -> None:
        """Open a queue until the end of the command."""
        await self._stack.enter_async_context(queue)

    @property
    def store(self) -> Store:
        """The verbs on the server of the settings, which may have no queue yet. Call ``closed`` or ``all`` first."""
        assert self._connection
        return Store(self._connection, "default", prefix=self._settings.prefix)

    @property
    def nothing(self) -> str:
        """The message for a Redis without queues."""
        assert self._connection
        where = redact(self._connection.url)
        if self._settings.redis_url is None:
            where = f"the embedded server of {self._settings.data_path}"
        return (
            f"{where} has no queues under the prefix {self._settings.prefix!r}. Enqueue a job or start a worker. "
            "If there were queues before, check --redis, --data-dir and --prefix. Or the server has lost its data"
        )

    async def _connect(self, *, again: bool = False) -> None:
        """Connect and ask for the names of all queues. ``again``: ask even if they are already known."""
        if self._connection is None:
            lease = await acquire(None, self._settings)
            self._stack.push_async_callback(lease.release)
            self._connection = lease.connection
            again = True
        if again:
            self._names = await self.store.queues()

    async def _named(self, name: str) -> Queue:
        if name not in self._open:
            queue = Queue(name, self._connection, settings=self._settings)
            self._open[name] = await self._stack.enter_async_context(queue)
        return self._open[name]

    def _choose(self) -> str:
        # jobq makes the queues of deliveries by itself, so they do not count.
        names = [name for name in self._names if delivers_for(name) not in self._names]
        if len(names) == 1:
            return names[0]
        if not names or "default" in names:
            return "default"
        raise TargetError(f"there are several queues ({_listed(names)}); say which one: --queue NAME")

    def _unknown(self, name: str) -> str:
        if not self._names:
            return self.nothing
        hint = f"; for the file write ./{name}" if name.endswith(".py") else ""
        return f"there is no queue {name[:80]!r}; there are: {_listed(self._names)}{hint}"


async def side_by_side(work: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
    """The results of the work for each item, in their order. Much of it runs at the same time, because a server may
    have thousands of queues.

    :raises Exception: the first error, in the order of the items.
    """
    results: list[R] = []
    for at in range(0, len(items), AT_ONCE):
        done = await asyncio.gather(*(work(item) for item in items[at : at + AT_ONCE]), return_exceptions=True)
        for result in done:
            if isinstance(result, BaseException):
                raise result
            results.append(result)
    return results


def _listed(names: list[str]) -> str:
    """The first names, in one line. A server may have thousands."""
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


@contextmanager
def _without_warnings() -> Generator[None]:
    """Hide warnings about the Redis server. They are for its operator, and `serve`, `work` and `dev` log them."""
    logger = logging.getLogger("jobq")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def split_id(word: str, queue: str | None) -> tuple[str | None, str]:
    """Split "email:0h2k..." into its queue and the id alone. The queue is None if it is not given.

    :raises TargetError: the id's queue differs from --queue or is not a valid name.
    """
    name, colon, job_id = word.rpartition(":")
    if not colon:
        return queue, word
    if is_target(name) or not name:
        raise TargetError(f"{word[:80]!r} is not a job id; write QUEUE:ID, or ID with --queue")
    if queue is not None and queue != name and not is_target(queue):
        raise TargetError(f"job {word} is not in queue {queue}")
    return name, job_id
