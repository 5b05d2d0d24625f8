"""A task: a handler with the name of its type, its options, and typed methods that enqueue it."""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, ParamSpec, Protocol, TypeVar, Unpack

import msgspec

from jobq.engine.model.job import Durability, NewJob, Options
from jobq.engine.model.options import Given, check_type, merge
from jobq.engine.model.unique import bind, job_key
from jobq.engine.task.awaited import no_loop, warns_unless_awaited
from jobq.engine.task.events import Hook, add_hook
from jobq.engine.task.handle import Job, Sender
from jobq.engine.task.hooks import schema_of
from jobq.engine.task.inject import behind, name_of
from jobq.engine.task.signature import Signature, misfit_of_type
from jobq.engine.task.versions import Versions
from jobq.errors import InvalidJob
from jobq.redact import misfit

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from jobq.engine.model.job import Seconds
    from jobq.engine.model.policy import RetryPolicy
    from jobq.engine.task.events import EventName, Hooks

P = ParamSpec("P")
R = TypeVar("R")
H = TypeVar("H", bound=Hook)
U = TypeVar("U", bound="Callable[[dict[str, Any]], Any]")

SAID_MAX: Final = 100
"""The most different warnings about one task that a worker logs."""

Kind = Literal["async", "thread", "process"]


class Owner(Sender, Protocol):
    """The interface of a queue that its tasks use."""

    @property
    def hooks(self) -> Hooks:
        """Its hooks, and those of its tasks."""
        ...


class Task(Generic[P, R]):
    """Made by ``@queue.task``. Calling it calls the handler, in this process, without any queue.

    ``kind``: ``async def`` runs on the event loop, ``def`` in a thread, ``isolate="process"`` in a child process.
    """

    def __init__(
        self,
        queue: Owner,
        fn: Callable[P, Any],
        name: str,
        defaults: Options,
        isolate: Literal["process"] | None,
        policy: RetryPolicy | None = None,
        aliases: tuple[str, ...] = (),
    ) -> None:
        check_type(name)
        self.queue = queue
        self.fn = fn
        self.name = name
        self.defaults = defaults
        self.policy = policy
        self.aliases = aliases
        self.versions = Versions(name, defaults.version)
        self.signature = Signature(fn)
        self.kind: Kind = _kind(fn, isolate)
        self.inline = self.kind == "async" and self.signature.plain
        """The handler is called with the values of the payload and nothing else."""
        self._said: set[str] = set()
        self.__doc__ = fn.__doc__
        self.__wrapped__ = fn

    def __repr__(self) -> str:
        return f"<Task {self.queue.name}:{self.name}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call the handler itself."""
        return self.fn(*args, **kwargs)

    def on(self, event: EventName) -> Callable[[H], H]:
        """As ``queue.on``, for the jobs of this type only.

        :raises TypeError: there is no such event, or the hook is not ``async`` or does not take one argument.
        """

        def register(hook: H) -> H:
            add_hook(self.queue.hooks, event, self.name, hook)
            return hook

        return register

    def upcast(self, version: int) -> Callable[[U], U]:
        """Convert payloads of ``version`` to the next version: ``@send.upcast(1)`` above ``def _(old): return {...}``.

        A job whose payload has an older version is converted step by step, before it is checked. The function gets the
        payload as a dict, which it may change, and returns the new one. It must not wait for anything.

        :raises TypeError: the task has no later version, or the function cannot convert payloads.
        """

        def register(fn: U) -> U:
            self.versions.add(version, fn)
            return fn

        return register

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the payload."""
        return schema_of(self.signature.struct)

    def check(self, payload: bytes | msgspec.Raw) -> None:
        """Validate a payload against the signature.

        :raises InvalidJob: the payload does not fit. Unknown fields do if the queue's ``unknown_fields`` is "ignore".
        """
        try:
            if self.queue.unknown_fields == "ignore":
                self.signature.read(payload)
            else:
                self.signature.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidJob(f"payload of {self.name!r}: {misfit(error)}") from None
        except (Exception, SystemExit) as error:
            # The code of an argument's type may raise anything. A SystemExit would end the server that enqueues.
            raise InvalidJob(f"payload of {self.name!r}: {misfit_of_type(error)}") from error

    def first_time(self, text: str) -> bool:
        """Whether a warning about this task is new. Clients may choose its text, so few are remembered."""
        if text in self._said or len(self._said) >= SAID_MAX:
            return False
        self._said.add(text)
        return True

    def new(self, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options, id: str | None = None) -> NewJob:
        """A job with these arguments. The queue checks them against the signature before it enqueues the job.

        :raises InvalidJob: the handler does not take these arguments, or they have no JSON form.
        """
        try:
            payload = self.signature.encode(args, kwargs)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidJob(f"payload of {self.name!r}: {error}") from None
        return NewJob(self.name, msgspec.Raw(payload), options, id=id)

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Job[R]]:
        """Enqueue a run with these arguments.

        :raises InvalidJob: the arguments do not fit the signature.
        :raises StoreError: Redis does not answer, or is full. Repeating is harmless only with a ``key`` or an ``id``.
        :raises RuntimeError: no event loop runs in this thread.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise no_loop("task.enqueue", "task.enqueue_sync(...)") from None
        return self._enqueue(args, kwargs)

    @warns_unless_awaited("task.enqueue", "task.enqueue_sync(...)")
    async def _enqueue(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Job[R]:
        # not over `queue.send`: a coroutine more costs a tenth of a gathered enqueue
        accepted = await self.queue.submit(self.new(args, kwargs, self.defaults))
        return Job(
            self.queue,
            accepted.id,
            self.signature.returns,
            duplicate=accepted.duplicate,
            state=accepted.state,
            done=accepted.done,
        )

    def enqueue_sync(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """As ``enqueue``, for synchronous code: Flask, Django, scripts, ``def`` handlers.

        :raises RuntimeError: an event loop runs in this thread.
        """
        return Bound(self, self.defaults).enqueue_sync(*args, **kwargs)

    def options(
        self, *, id: str | None = None, durability: Durability | None = None, **given: Unpack[Given]
    ) -> Bound[P, R]:
        """The same task with other options: ``await send.options(delay=5).enqueue(...)``.

        ``id``: the id of the job, for one enqueue. Repeating that enqueue is harmless as long as the job is kept.
        ``durability``: what must be confirmed before its enqueues return. None stands for the queue's own.

        :raises InvalidJob: an option is out of its range.
        """
        return Bound(self, bind(merge(self.defaults, given), self.name, self.signature.defaults), durability, id)

    def unique_key(self, *args: P.args, **kwargs: P.kwargs) -> str | None:
        """The key of a job with these arguments. None if the task's jobs have no key.

        :raises InvalidJob: the handler does not take these arguments.
        """
        return job_key(self.new(args, kwargs, self.defaults))

    def enqueue_many(
        self, jobs: Iterable[dict[str, Any]], *, spread: Seconds | None = None
    ) -> Coroutine[Any, Any, list[Job[R]]]:
        """Enqueue one job per dict of arguments, hundreds per trip.

        ``spread``: their due times are spread evenly over this time, in order. It adds to the delay of each job.

        :raises InvalidJob: a dict does not fit the signature. No job was enqueued.
        """
        return Bound(self, self.defaults).enqueue_many(jobs, spread=spread)

    def enqueue_many_sync(self, jobs: Iterable[dict[str, Any]], *, spread: Seconds | None = None) -> list[Job[R]]:
        """As ``enqueue_many``, for synchronous code."""
        return Bound(self, self.defaults).enqueue_many_sync(jobs, spread=spread)


def _kind(fn: Any, isolate: Any) -> Kind:
    """The place where a handler runs: the event loop, a thread or a child process.

    :raises TypeError: it cannot run, or cannot run in a child process.
    """
    function = behind(fn)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{name_of(fn)} is a generator: a handler returns its result once, it does not yield")
    if isolate not in (None, "process"):
        raise TypeError(f"isolate is {isolate!r:.80}: it takes 'process' or None")
    if isolate:
        if not inspect.isfunction(fn) or "<locals>" in fn.__qualname__:
            raise TypeError(f"{name_of(fn)}: a child process can only find functions at the top level of a module")
        return "process"
    return "async" if inspect.iscoroutinefunction(function) else "thread"


class Bound(Generic[P, R]):
    """A task with its own options: what ``task.options(...)`` returns."""

    __slots__ = ("_durability", "_id", "_options", "_task")

    def __init__(
        self, task: Task[P, R], options: Options, durability: Durability | None = None, id: str | None = None
    ) -> None:
        self._task = task
        self._options = options
        self._durability: Durability | None = durability
        self._id = id

    def __repr__(self) -> str:
        return f"{self._task!r} with options"

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Job[R]]:
        """As ``Task.enqueue``."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise no_loop("enqueue", "enqueue_sync(...)") from None
        return self._enqueue(args, kwargs)

    @warns_unless_awaited("enqueue", "enqueue_sync(...)")
    async def _enqueue(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Job[R]:
        task = self._task
        new = task.new(args, kwargs, self._options, self._id)
        return await task.queue.send(new, task.signature.returns, durability=self._durability)

    def enqueue_sync(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """As ``Task.enqueue_sync``."""
        task, durability = self._task, self._durability
        new = task.new(args, kwargs, self._options, self._id)
        send = functools.partial(task.queue.send, new, task.signature.returns, durability=durability)
        return task.queue.sync().call("task.enqueue_sync()", "task.enqueue(...)", send)

    def enqueue_many(
        self, jobs: Iterable[dict[str, Any]], *, spread: Seconds | None = None
    ) -> Coroutine[Any, Any, list[Job[R]]]:
        """As ``Task.enqueue_many``."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise no_loop("enqueue_many", "enqueue_many_sync(...)") from None
        return self._enqueue_many(jobs, spread)

    @warns_unless_awaited("enqueue_many", "enqueue_many_sync(...)")
    async def _enqueue_many(self, jobs: Iterable[dict[str, Any]], spread: Seconds | None) -> list[Job[R]]:
        task = self._task
        news = self._news(jobs)
        return await task.queue.send_many(news, task.signature.returns, durability=self._durability, spread=spread)

    def enqueue_many_sync(self, jobs: Iterable[dict[str, Any]], *, spread: Seconds | None = None) -> list[Job[R]]:
        """As ``Task.enqueue_many_sync``."""
        task, durability = self._task, self._durability
        news = self._news(jobs)
        returns = task.signature.returns
        send = functools.partial(task.queue.send_many, news, returns, durability=durability, spread=spread)
        return task.queue.sync().call("task.enqueue_many_sync()", "task.enqueue_many(...)", send)

    def _news(self, jobs: Iterable[dict[str, Any]]) -> list[NewJob]:
        if self._id is not None:
            raise InvalidJob("several jobs cannot have one id: enqueue them one by one, or leave the id out")
        news = [self._task.new((), dict(job), self._options) for job in jobs]
        unique = self._options.unique
        if (self._options.key is not None or (unique is not None and unique.key is not None)) and len(news) > 1:
            raise InvalidJob(
                "several jobs cannot have one key, because only the first would be enqueued: give each its own,"
                " queue.enqueue_many([queue.new(type, payload, key=...), ...])"
            )
        return news
