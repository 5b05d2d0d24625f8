"""A queue: its life, and what producers do. Operators' verbs are in verbs.py, tasks in registry.py."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

import msgspec

from jobq.engine.model.encoding import encode
from jobq.engine.model.entry import encode_entry
from jobq.engine.model.ids import is_id
from jobq.engine.model.job import (
    PLAIN,
    Accepted,
    Durability,
    NewJob,
    Seconds,
)
from jobq.engine.model.options import Given, check, check_durability, check_key, check_type, count_of, merge
from jobq.engine.model.times import time_given
from jobq.engine.queue.connect import acquire
from jobq.engine.queue.handle import Job
from jobq.engine.queue.session import Session
from jobq.engine.queue.sync import SyncQueue
from jobq.engine.queue.verbs import Verbs
from jobq.engine.store import Connection, Store
from jobq.engine.store.keys import check_queue_name
from jobq.engine.task.awaited import lost_unless_awaited, no_loop
from jobq.engine.task.registry import Registry
from jobq.errors import (
    InvalidJob,
    JobIdTaken,
    PayloadTooLarge,
    StoreError,
    UnknownType,
)
from jobq.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable


class Queue(Registry, Verbs):
    """One queue, for producing, operating and (with tasks) running.

    ``redis``: a URL, or a ``Connection`` shared with other queues; None: ``JOBQ_REDIS_URL``, or an embedded server.
    ``keep_completed``, ``keep_failed``, ``keep_for``: how many finished jobs stay, and how long.
    ``durability``: what must be confirmed before an enqueue returns: nothing beyond Redis's answer, an fsync
    ("fsynced", WAITAOF) or a copy on a replica ("replicated", WAIT), within ``durability_timeout`` seconds. A call may
    say its own, which then counts for it in place of the queue's.
    ``unknown_fields``: what an enqueue does with fields of a payload that the handler has no argument for: "refuse" or
    "ignore". A worker always ignores them, because a newer version of the program may have enqueued the job.
    ``unserved_for``: how long a job is handed on among workers that do not know its type or cannot read its payload,
    because a newer or older version may know it; then it fails.
    ``clock``: gives unix ms in place of the server's time; for tests.

    :raises InvalidJob: the name has characters other than letters, digits and ``._-``; there is no such durability.
    """

    def __init__(
        self,
        name: str = "default",
        redis: str | Connection | None = None,
        *,
        prefix: str | None = None,
        settings: Settings | None = None,
        max_payload: int | None = None,
        max_result: int | None = None,
        keep_completed: int = 10_000,
        keep_failed: int = 10_000,
        keep_for: Seconds = timedelta(days=7),
        durability: Durability = "none",
        durability_timeout: Seconds = 2.0,
        unknown_fields: Literal["refuse", "ignore"] = "refuse",
        unserved_for: Seconds = timedelta(days=1),
        clock: Callable[[], int] | None = None,
    ) -> None:
        super().__init__()
        self.name = check_queue_name(name)
        self.settings = settings or Settings.from_env()
        self.prefix = prefix or self.settings.prefix
        self.max_payload = self.settings.max_payload if max_payload is None else count_of("max_payload", max_payload, 1)
        self.max_result = self.settings.max_result if max_result is None else count_of("max_result", max_result, 1)
        self.keep_completed = count_of("keep_completed", keep_completed)
        self.keep_failed = count_of("keep_failed", keep_failed)
        self.keep_for_ms = time_given("keep_for", keep_for)
        if unknown_fields not in ("refuse", "ignore"):
            raise InvalidJob(f"unknown_fields is {unknown_fields!r:.80}: it takes 'refuse' or 'ignore'")
        self.unknown_fields = unknown_fields
        self.unserved_for_ms = time_given("unserved_for", unserved_for)
        check_durability(durability)
        self.durability: Durability = durability
        self.clock = clock
        self._redis = redis
        self._durability_timeout_ms = time_given("durability_timeout", durability_timeout)
        self._sessions: dict[asyncio.AbstractEventLoop, Session] = {}
        self._last: Session | None = None
        """The session that was opened last: nearly always the only one."""
        self._looked_at = False
        """Whether the log has the warnings about the server. They are not repeated by each event loop."""
        self._checked = PLAIN
        """The last options that were found well: thousands of jobs of one call share theirs."""

    def __repr__(self) -> str:
        return f"<Queue {self.name}>"

    @property
    def place(self) -> tuple[str, str, str]:
        """Where its jobs are: server, prefix and name. Two queues of one place share their jobs."""
        redis = self._redis
        url = redis.url if isinstance(redis, Connection) else redis or self.settings.redis_url
        return url or str(self.settings.data_path), self.prefix, self.name

    # -- life ------------------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Connect and check the server, in the event loop that runs now. Each further loop opens the queue for itself.

        Opening twice in one loop is fine: the last ``aclose`` closes.

        :raises StoreUnavailable: no answer from Redis.
        :raises StoreRefused: the server or its data do not fit this jobq.
        :raises NoServer: no URL, and no server binary to start.
        """
        loop = asyncio.get_running_loop()
        dead = self._take_dead_sessions()
        session = self._sessions.get(loop)
        if session is None:
            session = self._sessions[loop] = Session(loop)
        session.depth += 1
        try:
            async with session.opening:
                if not session.is_open:
                    await self._connect(session)
            self._last = session
        except BaseException:
            session.depth -= 1
            if not session.depth:
                self._sessions.pop(loop, None)
            raise
        finally:
            # only now: an embedded server that a dead loop held must not stop before it is held here
            for one in dead:
                await one.abandon()
        return self

    def _take_dead_sessions(self) -> list[Session]:
        """Drop the sessions of closed loops; asyncio.run() may have ended before the queue was closed.

        After a fork the parent's sessions are dropped too, and left alone.
        """
        dead: list[Session] = []
        for loop, session in list(self._sessions.items()):
            if session.loop is None or loop.is_closed():
                del self._sessions[loop]
                if session.loop is not None:
                    dead.append(session)
        return dead

    async def _connect(self, session: Session) -> None:
        use = await acquire(self._redis, self.settings)
        try:
            store = self.new_store(use.connection)
            use.connection.looked_at |= self._looked_at
            await store.open(self.durability)
            self._looked_at = True
        except BaseException:
            await use.release()
            raise
        session.begin(use, store, self.durability, self._durability_timeout_ms)

    async def aclose(self) -> None:
        """Finish what is being sent, and let the connection go. Closing a queue that is not open does nothing."""
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None or session.loop is None:
            return
        session.depth -= 1
        if not session.depth:
            # first, so that an opening meanwhile makes its own
            del self._sessions[loop]
            await session.aclose()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def is_open(self) -> bool:
        """Whether the verbs can be used in the event loop that runs now (without one: in any)."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return any(one.is_open and one.loop and not one.loop.is_closed() for one in list(self._sessions.values()))
        session = self._sessions.get(loop)
        return session is not None and session.is_open and session.loop is loop

    @property
    def _session(self) -> Session:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise StoreError(f"queue {self.name!r} is used outside of an event loop: await it in a coroutine") from None
        session = self._last
        if session is None or session.loop is not loop or not session.is_open:
            session = self._sessions.get(loop)
            if session is None or session.loop is not loop or not session.is_open:
                elsewhere = " in this event loop (each loop opens it for itself)" if self._sessions else ""
                raise StoreError(
                    f"queue {self.name!r} is not open{elsewhere}: use 'async with queue:' or 'await queue.open()'"
                )
            self._last = session
        return session

    @property
    def store(self) -> Store:
        """The verbs underneath.

        :raises StoreError: the queue is not open in the event loop that runs now.
        """
        return self._session.store

    def new_store(self, connection: Connection) -> Store:
        """The same verbs on another connection; a worker's heartbeat thread has its own."""
        clock = self.clock
        return Store(connection, self.name, prefix=self.prefix, clock=(lambda: str(clock())) if clock else None)

    def sync(self) -> SyncQueue:
        """The queue's verbs for synchronous code: each waits for its result. See sync.py."""
        return SyncQueue(self)

    # -- producers -------------------------------------------------------------------------------------------------

    def check(self, new: NewJob) -> None:
        """Check a job before it is enqueued.

        :raises InvalidJob: an option or the payload does not fit (``UnknownType``, ``PayloadTooLarge``).
        """
        size = len(bytes(new.payload))
        if size > self.max_payload:
            raise PayloadTooLarge(size, self.max_payload)
        defaults = PLAIN
        if self.tasks:
            task = self.tasks.get(new.type)
            if task is None:
                raise UnknownType(new.type, list(self.tasks))
            task.check(new.payload)
            defaults = task.defaults
        else:
            check_type(new.type)
        if new.options is not defaults and new.options is not self._checked:
            check(new.options)
            if new.options.metadata is not None and (size := len(encode(new.options.metadata))) > self.max_payload:
                raise InvalidJob(f"metadata has {size} bytes, the limit is max_payload, {self.max_payload}")
            self._checked = new.options
        if new.idempotency_key is not None:
            check_key("idempotency key", new.idempotency_key)
            for part in new.idempotency_scope:
                check_key("idempotency scope", part)
        if new.id is not None and not is_id(new.id):
            raise InvalidJob(f"id {new.id!r:.80}: 1 to 64 letters, digits and ._~-; jobq.new_id() makes one")

    async def submit(self, new: NewJob, *, durability: Durability | None = None, checked: bool = False) -> Accepted:
        """Check and enqueue one job, in one trip with whatever else is being enqueued.

        ``durability``: what must be confirmed before this returns; None: what the queue says.
        ``checked``: the caller has called ``check`` for it.

        :raises InvalidJob: nothing was written (``JobIdTaken``: another job has the ``id``).
        :raises DurabilityRefused: the server cannot give it; nothing was written.
        :raises DurabilityUnavailable: it was not confirmed in time; the job is enqueued all the same.
        :raises StoreUnavailable: no answer; with the same ``id`` or key, repeating is harmless.
        :raises StoreFull: Redis is at maxmemory; nothing was written.
        """
        session = self._session
        if new.given is not None and not self.tasks:
            (new,), given = await session.defaults.complete([new]), new
            checked &= new is given
        if not checked:
            self.check(new)
        entry = encode_entry(new, session.ids, session.store.now_ms())
        producer = session.producer if durability is None else session.producer_for(durability)
        try:
            return await producer.send(entry)
        except JobIdTaken:
            if new.id is not None:
                raise
        # an id that we drew, and another process too
        session.ids.redraw()
        return await self.submit(new, durability=durability)

    async def submit_many(
        self, news: Iterable[NewJob], *, durability: Durability | None = None, checked: bool = False
    ) -> list[Accepted]:
        """Check all, then enqueue all, hundreds a trip. ``durability``, ``checked``: as for ``submit``.

        :raises InvalidJob: one does not fit; none was written.
        :raises IdempotencyConflict: a key was used for another job; the others are written (as with ``JobIdTaken``).
        :raises StoreError: some may be written.
        """
        session = self._session
        producer = session.producer_for(durability)
        news = given = list(news)
        if not self.tasks and any(new.given is not None for new in news):
            news = await session.defaults.complete(news)
        for new, before in zip(news, given, strict=True):
            if not checked or new is not before:
                self.check(new)
        answers = await producer.send_many([encode_entry(new, session.ids, session.store.now_ms()) for new in news])
        for place, answer in enumerate(answers):
            if isinstance(answer, JobIdTaken) and news[place].id is None:
                session.ids.redraw()
                answers[place] = await self.submit(news[place], durability=durability)
        accepted: list[Accepted] = []
        for answer in answers:
            if not isinstance(answer, Accepted):
                raise answer
            accepted.append(answer)
        return accepted

    async def send(self, new: NewJob, returns: Any = Any, *, durability: Durability | None = None) -> Job[Any]:
        """As ``submit``, answering with a handle whose result is decoded as ``returns``."""
        accepted = await self.submit(new, durability=durability)
        return Job(self, accepted.id, returns, duplicate=accepted.duplicate)

    async def send_many(
        self, news: Iterable[NewJob], returns: Any = Any, *, durability: Durability | None = None
    ) -> list[Job[Any]]:
        """As ``submit_many``, answering with handles."""
        accepted = await self.submit_many(news, durability=durability)
        return [Job(self, one.id, returns, duplicate=one.duplicate) for one in accepted]

    def new(self, type: str, payload: Any = None, *, id: str | None = None, **given: Unpack[Given]) -> NewJob:
        """A job of a type whose handler's code need not be here. ``id``: as for ``enqueue``.

        Options that are not given are those of the type's task. A queue without tasks takes what workers and servers
        publish of it (see ``types``) when the job is enqueued.

        :raises InvalidJob: an option is out of its range, or the payload has no JSON form.
        """
        task = self.tasks.get(type)
        options = merge(task.defaults if task else PLAIN, given)
        names = None if self.tasks else tuple(given)
        try:
            return NewJob(type, msgspec.Raw(encode({} if payload is None else payload)), options, id=id, given=names)
        except (TypeError, ValueError, UnicodeEncodeError, RecursionError) as error:
            raise InvalidJob(f"payload of {type[:80]!r}: {error}") from None

    def enqueue(
        self,
        type: str,
        payload: Any = None,
        *,
        id: str | None = None,
        durability: Durability | None = None,
        **given: Unpack[Given],
    ) -> Coroutine[Any, Any, Job[Any]]:
        """Enqueue a job by its type's name. ``payload``: a dict of the handler's arguments, or a ``msgspec.Raw``.

        ``id``: one of your own, or of ``jobq.new_id()``. Repeating the call is then harmless while the job is kept.
        ``durability``: as for ``submit``.

        :raises InvalidJob: nothing was written (``JobIdTaken``: another job has the ``id``).
        :raises StoreError: Redis is away or full.
        :raises RuntimeError: no event loop runs in this thread.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise no_loop("queue.enqueue", "queue.sync().enqueue(...)") from None
        return self._enqueue(type, payload, id, durability, given)

    @lost_unless_awaited("queue.enqueue", "queue.sync().enqueue(...)")
    async def _enqueue(
        self, type: str, payload: Any, id: str | None, durability: Durability | None, given: Given
    ) -> Job[Any]:
        return await self.send(self.new(type, payload, id=id, **given), durability=durability)

    def enqueue_many(
        self, jobs: Iterable[NewJob], *, durability: Durability | None = None
    ) -> Coroutine[Any, Any, list[Job[Any]]]:
        """Enqueue many jobs made by ``queue.new``. ``durability``: as for ``submit``.

        :raises InvalidJob: one does not fit; none was written.
        :raises RuntimeError: no event loop runs in this thread.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise no_loop("queue.enqueue_many", "queue.sync().enqueue_many(...)") from None
        return self._enqueue_many(jobs, durability)

    @lost_unless_awaited("queue.enqueue_many", "queue.sync().enqueue_many(...)")
    async def _enqueue_many(self, jobs: Iterable[NewJob], durability: Durability | None) -> list[Job[Any]]:
        return await self.send_many(jobs, durability=durability)
