"""The producers' methods of an open queue: checking jobs and enqueueing them."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Unpack

import msgspec

from jobq.engine.model.encoding import check_sound, encode
from jobq.engine.model.entry import spread_out
from jobq.engine.model.groups import check_option_name
from jobq.engine.model.ids import is_id
from jobq.engine.model.job import PLAIN, Accepted, Durability, NewJob, Options
from jobq.engine.model.options import Given, check, check_type, merge
from jobq.engine.model.times import option_ms
from jobq.engine.model.unique import bind, check_key, job_key
from jobq.engine.queue.bulk import BulkVerbs
from jobq.engine.queue.producer import PartitionsFound
from jobq.engine.store import Partitions
from jobq.engine.task.awaited import no_loop, warns_unless_awaited
from jobq.engine.task.events import Event
from jobq.engine.task.handle import Job
from jobq.engine.task.registry import Registry
from jobq.engine.task.versions import Inconvertible
from jobq.errors import InvalidJob, JobIdTaken, PayloadTooLarge, UnknownType

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

    from jobq.engine.model.job import Seconds
    from jobq.engine.task.handle import Blocking


class Producing(Registry, BulkVerbs):
    """The producers' methods of a queue."""

    max_payload: int
    _checked: Options = PLAIN
    """The options that were checked last. The jobs of one call share their options, so one check is enough."""

    async def homes(self) -> int:
        """The partitions that get jobs with keys, which are decided now if they were not. 1 if the queue has only one
        partition.

        :raises StoreError: Redis is away, or refuses.
        """
        store = self.store
        if not isinstance(store, Partitions):
            return 1
        await store.decide_homes()
        return store.spread_now.homes

    @abstractmethod
    def sync(self) -> Blocking:
        """The queue for synchronous code."""

    def check(self, new: NewJob) -> None:
        """Check a job before it is enqueued.

        :raises InvalidJob: an option or the payload does not fit (``UnknownType``, ``PayloadTooLarge``).
        """
        size = len(new.payload)
        if size > self.max_payload:
            raise PayloadTooLarge(size, self.max_payload)
        defaults = PLAIN
        if self.tasks:
            task = self.tasks.get(new.type)
            if task is None:
                raise UnknownType(new.type, list(self.tasks))
            defaults = task.defaults
            if new.options is not defaults and new.options.version != defaults.version:
                check(new.options)
                new = self.current(new)
            task.check(new.payload)
        else:
            check_type(new.type)
            if new.given is None:
                # made by hand: what `new` makes is sound
                self._check_sound(new)
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

    @staticmethod
    def _check_sound(new: NewJob) -> None:
        try:
            check_sound(new.payload)
        except ValueError as error:
            raise InvalidJob(f"payload of {new.type[:80]!r}: {error}") from None

    async def submit(self, new: NewJob, *, durability: Durability | None = None, checked: bool = False) -> Accepted:
        """Check and enqueue one job, in one trip with other jobs that are being enqueued.

        ``durability``: what must be confirmed before this returns. None stands for the queue's own.
        ``checked``: the caller has called ``check`` for the job.

        :raises InvalidJob: nothing was written (``JobIdTaken``: another job has the ``id``).
        :raises DurabilityRefused: the server cannot give this durability. Nothing was written.
        :raises DurabilityUnavailable: it was not confirmed in time. The job is enqueued all the same.
        :raises StoreUnavailable: Redis did not answer. With the same ``id`` or key, repeating is harmless.
        :raises StoreFull: Redis is at maxmemory. Nothing was written.
        """
        if self.tracer is not None and new.trace is None:
            return await self.tracer.submit(self, new, durability=durability, checked=checked)
        session = self._sessions.here
        if new.given is not None and not self.tasks:
            (new,), given = await session.defaults.complete([new]), new
            checked &= new is given
        if not checked:
            self.check(new)
        if self.revised:
            new = self.current(new)
        if self.name_functions:
            new = self.named(new)
        options = new.options
        if options.limits or options.limits_by or options.breaker:
            await session.declared.check([new], self.rules, self.declared_breakers)
        entry = session.entries.make(new, session.store.now_ms())
        producer = session.producer if durability is None else session.producer_for(durability)
        try:
            accepted = await producer.send(entry)
        except PartitionsFound:
            return await self.submit(new, durability=durability, checked=True)
        except JobIdTaken:
            if new.id is not None:
                raise
        else:
            if self.hooks:
                self.tell_enqueued(new, accepted)
            return accepted
        # Another process has drawn the same id.
        session.entries.ids.redraw()
        return await self.submit(new, durability=durability)

    def current(self, new: NewJob) -> NewJob:
        """The job as the code here would make it: by the name of its task, with its payload in the current version.

        So its keys, its group and its costs are found in the arguments that the handler has now.

        :raises InvalidJob: its payload cannot be converted, or is newer than the code here.
        """
        task = self.tasks.get(new.type)
        if task is None or (new.type == task.name and new.options.version == task.versions.current):
            return new
        if new.options.version == task.versions.current:
            return msgspec.structs.replace(new, type=task.name)
        try:
            payload = task.versions.convert(new.payload, new.options.version)
        except Inconvertible as error:
            raise InvalidJob(f"a job of {new.type!r} cannot be enqueued here: {error}") from error.__cause__
        options = msgspec.structs.replace(new.options, version=task.versions.current)
        return msgspec.structs.replace(new, type=task.name, payload=payload, options=options)

    def named(self, new: NewJob) -> NewJob:
        """The job, with the group and the ``partition_by`` that functions of its task give it.

        :raises InvalidJob: a function raised, or returned something else than a name.
        """
        functions = self.name_functions.get(new.type, {})
        missing = {option: fn for option, fn in functions.items() if getattr(new.options, option) is None}
        if not missing:
            return new
        arguments = self.tasks[new.type].signature.arguments(new.payload)
        names: dict[str, Any] = {}
        for option, function in missing.items():
            try:
                name = function(**arguments)
            except (Exception, SystemExit) as error:  # a SystemExit would end the server that enqueues
                raise InvalidJob(f"the {option} function of {new.type!r} raised {error!r:.200}") from error
            if name is not None and not isinstance(name, str):
                raise InvalidJob(f"the {option} function of {new.type!r} returned {name!r:.80}, not a text or None")
            if name is not None:
                names[option] = check_option_name(option, name)
        return msgspec.structs.replace(new, options=msgspec.structs.replace(new.options, **names))

    def tell_enqueued(self, new: NewJob, accepted: Accepted) -> None:
        """Call the hooks for an enqueue."""
        calls = self.hook_calls
        if accepted.duplicate or not calls.wanted("enqueue"):
            return
        task = self.tasks.get(new.type)
        calls.call(
            Event(
                name="enqueue",
                job=Job(self, accepted.id, task.signature.returns if task else Any),
                type=new.type,
                attempt=0,
                attempts=new.options.attempts,
                payload=new.payload,
                metadata=new.options.metadata or {},
            )
        )

    async def submit_many(
        self,
        news: Iterable[NewJob],
        *,
        durability: Durability | None = None,
        checked: bool = False,
        spread: Seconds | None = None,
    ) -> list[Accepted]:
        """Check all jobs, then enqueue all, hundreds a trip. ``durability`` and ``checked``: as for ``submit``.

        ``spread``: their due times are spread evenly over this time, in order. It adds to the delay of each job.

        :raises InvalidJob: a job does not fit. No job was written.
        :raises IdempotencyConflict: a key was used for another job. The others are written (as with ``JobIdTaken``,
            ``KeyTaken`` and ``GroupFull``).
        :raises StoreError: some of the jobs may be written.
        """
        accepted: list[Accepted] = []
        for answer in await self.submit_each(news, durability=durability, checked=checked, spread=spread):
            if not isinstance(answer, Accepted):
                raise answer
            accepted.append(answer)
        return accepted

    async def submit_each(
        self,
        news: Iterable[NewJob],
        *,
        durability: Durability | None = None,
        checked: bool = False,
        spread: Seconds | None = None,
    ) -> list[Accepted | InvalidJob]:
        """As ``submit_many``, but the refusal of a job is returned in its place.

        :raises InvalidJob: a job does not fit. No job was written.
        :raises StoreError: some of the jobs may be written.
        """
        news = list(news)
        if self.tracer is not None and any(new.trace is None for new in news):
            return await self.tracer.submit_each(self, news, durability=durability, checked=checked, spread=spread)
        session = self._sessions.here
        session.producer_for(durability)  # It refuses an unknown durability before anything else happens.
        given = news
        if spread is not None:
            news = given = spread_out(news, option_ms("spread", spread))
        if not self.tasks and any(new.given is not None for new in news):
            news = await session.defaults.complete(news)
        if not checked or news is not given:
            for new in news:
                self.check(new)
        if self.revised:
            news = [self.current(new) for new in news]
        if self.name_functions:
            news = [self.named(new) for new in news]
        if limited := [one for one in news if (of := one.options).limits or of.limits_by or of.breaker]:
            await session.declared.check(limited, self.rules, self.declared_breakers)
        make, now = session.entries.make, session.store.now_ms()
        rows = [make(new, now) for new in news]
        try:
            answers = await session.producer_for(durability).send_many(rows)
        except PartitionsFound:
            return await self.submit_each(news, durability=durability, checked=True)
        if self.hooks:
            for new, answer in zip(news, answers, strict=True):
                if isinstance(answer, Accepted):
                    self.tell_enqueued(new, answer)
        for place, answer in enumerate(answers):
            if isinstance(answer, JobIdTaken) and news[place].id is None:
                session.entries.ids.redraw()
                answers[place] = await self.submit(news[place], durability=durability)
        return list(answers)

    async def send(self, new: NewJob, returns: Any = Any, *, durability: Durability | None = None) -> Job[Any]:
        """As ``submit``. Returns a handle, whose result is decoded as ``returns``."""
        accepted = await self.submit(new, durability=durability)
        return self._handle(accepted, returns)

    async def send_many(
        self,
        news: Iterable[NewJob],
        returns: Any = Any,
        *,
        durability: Durability | None = None,
        spread: Seconds | None = None,
    ) -> list[Job[Any]]:
        """As ``submit_many``. Returns handles."""
        accepted = await self.submit_many(news, durability=durability, spread=spread)
        return [self._handle(one, returns) for one in accepted]

    def _handle(self, one: Accepted, returns: Any = Any) -> Job[Any]:
        return Job(self, one.id, returns, duplicate=one.duplicate, state=one.state, done=one.done)

    def new(self, type: str, payload: Any = None, *, id: str | None = None, **given: Unpack[Given]) -> NewJob:
        """Make a job. The handler of its type need not be in this program. ``id``: as for ``enqueue``.

        Options that are not given are those of the type's task. A queue without tasks takes those that workers and
        servers publish (see ``types``) when the job is enqueued.

        :raises InvalidJob: an option is out of its range, or the payload cannot be encoded as JSON.
        """
        task = self.tasks.get(type)
        options = merge(task.defaults if task else self.default_options, given)
        if task and options.unique is not task.defaults.unique:
            options = bind(options, type, task.signature.defaults)
        names = None if self.tasks else tuple(given)
        try:
            return NewJob(type, msgspec.Raw(encode({} if payload is None else payload)), options, id=id, given=names)
        except (TypeError, ValueError, UnicodeEncodeError, RecursionError) as error:
            raise InvalidJob(f"payload of {type[:80]!r}: {error}") from None

    def unique_key(self, type: str, payload: Any = None, **given: Unpack[Given]) -> str | None:
        """The key that a job would have; None if it would have none. The options are those of ``enqueue``.

        A queue without tasks knows no defaults of its types. It needs ``unique`` or ``key``.

        :raises InvalidJob: an option is out of its range, or the payload lacks an argument of ``by``.
        """
        return job_key(self.new(type, payload, **given))

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

        ``id``: your own, or one from ``jobq.new_id()``. Repeating the call is then harmless while the job is kept.
        ``durability``: as for ``submit``.

        :raises InvalidJob: nothing was written (``JobIdTaken``: another job has the ``id``).
        :raises StoreError: Redis does not answer, or is full.
        :raises RuntimeError: no event loop runs in this thread.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise no_loop("queue.enqueue", "queue.sync().enqueue(...)") from None
        return self._enqueue(type, payload, id, durability, given)

    @warns_unless_awaited("queue.enqueue", "queue.sync().enqueue(...)")
    async def _enqueue(
        self, type: str, payload: Any, id: str | None, durability: Durability | None, given: Given
    ) -> Job[Any]:
        accepted = await self.submit(self.new(type, payload, id=id, **given), durability=durability)
        return self._handle(accepted)

    def enqueue_many(
        self, jobs: Iterable[NewJob], *, durability: Durability | None = None, spread: Seconds | None = None
    ) -> Coroutine[Any, Any, list[Job[Any]]]:
        """Enqueue many jobs made by ``queue.new``. ``durability`` and ``spread``: as for ``submit_many``.

        :raises InvalidJob: a job does not fit. No job was written.
        :raises RuntimeError: no event loop runs in this thread.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise no_loop("queue.enqueue_many", "queue.sync().enqueue_many(...)") from None
        return self._enqueue_many(jobs, durability, spread)

    @warns_unless_awaited("queue.enqueue_many", "queue.sync().enqueue_many(...)")
    async def _enqueue_many(
        self, jobs: Iterable[NewJob], durability: Durability | None, spread: Seconds | None
    ) -> list[Job[Any]]:
        jobs = list(jobs)
        if strange := next((one for one in jobs if not isinstance(one, NewJob)), None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidJob(f"{strange!r:.80} is no job: make each with queue.new(type, payload, ...)")
        return await self.send_many(jobs, durability=durability, spread=spread)
