"""A queue: its settings, opening and closing.

What it can do is in its base classes: tasks in registry.py, producing in producing.py, operating in verbs.py, limits in
limits.py, schedules in schedules.py, reruns in rerun.py, events in events.py, monitoring in performance.py and
scale.py.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Literal, Self

from jobq.engine.log import get_logger
from jobq.engine.model.aging import aging_ms
from jobq.engine.model.declared import queue_rule
from jobq.engine.model.event import check_level
from jobq.engine.model.groups import check_charge
from jobq.engine.model.options import check_durability, count_of, queue_options
from jobq.engine.model.spread import Spread, check_partitions
from jobq.engine.model.times import time_given
from jobq.engine.queue.aging import AgingVerbs
from jobq.engine.queue.breakers import BreakerVerbs
from jobq.engine.queue.checking import CheckVerbs
from jobq.engine.queue.connect import acquire
from jobq.engine.queue.groups import GroupVerbs
from jobq.engine.queue.limits import LimitVerbs
from jobq.engine.queue.partitions import PartitionVerbs
from jobq.engine.queue.performance import PerformanceVerbs
from jobq.engine.queue.rerun import RerunVerbs
from jobq.engine.queue.scale import ScaleVerbs
from jobq.engine.queue.schedules import ScheduleVerbs
from jobq.engine.queue.session import Session, Sessions
from jobq.engine.queue.sync import SyncQueue
from jobq.engine.queue.webhooks import WebhookVerbs, delivering_queue
from jobq.engine.queue.why import WhyVerbs
from jobq.engine.store import Connection, Store
from jobq.engine.store.keys import check_queue_name
from jobq.errors import InvalidJob, StoreRefused
from jobq.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobq.engine.model.event import EventLevel
    from jobq.engine.model.groups import Charge
    from jobq.engine.model.job import Durability, Seconds
    from jobq.engine.model.limits import Concurrency, Rate
    from jobq.engine.model.options import QueueGiven


log = get_logger("jobq.queue")


class Queue(
    RerunVerbs,
    CheckVerbs,
    ScheduleVerbs,
    LimitVerbs,
    GroupVerbs,
    BreakerVerbs,
    AgingVerbs,
    WhyVerbs,
    PerformanceVerbs,
    ScaleVerbs,
    PartitionVerbs,
    WebhookVerbs,
):
    """One queue, for producing, operating and (with tasks) running.

    ``redis``: a URL, or a ``Connection`` that queues share. None stands for ``JOBQ_REDIS_URL``, or an embedded server.
    ``keep_completed``, ``keep_failed``, ``keep_for``: how many finished jobs are kept, and for how long.
    ``durability``: what must be confirmed before an enqueue returns: Redis's answer alone ("none"), an fsync
    ("fsynced", WAITAOF) or a copy on a replica ("replicated", WAIT), within ``durability_timeout`` seconds. A call can
    choose another one.
    ``unknown_fields``: what an enqueue does with fields of a payload that the handler has no argument for: "refuse" or
    "ignore". A worker always ignores them, because a newer version of the program may have enqueued the job.
    ``unserved_for``: how long a job is handed on among workers that do not know its type or cannot read its payload,
    because a newer or older version may know it; then it fails.
    ``limits``: how many jobs of the whole queue run at once or start in a time, whatever their type.
    ``aging``: how much waiting a step of priority is worth, so that no job starves. It is stored with the queue, and
    programs that declare different values are refused. None: as it is stored; without a stored value priorities are
    absolute.
    ``charge``: what a turn of a group costs: "count", one job, or "actual", the time that its jobs run. It is stored
    with the queue. None: as it is stored; without a stored value one job.
    ``partitions``: over how many partitions the queue is spread, each in a slot of its own (see docs/partitions.md). It
    is stored with the queue, and programs that declare different numbers are refused. None: as it is stored; without a
    stored value one.
    ``events``: which events the queue tells (see ``events``): "outcomes", or "all": also each start and each progress.
    It is stored with the queue. None: as it is stored; without a stored value the outcomes.
    ``defaults``: options of its jobs, such as ``{"attempts": 5}``, for which neither their task nor their call says
    anything.
    ``clock``: gives unix ms in place of the server's time; for tests.

    :raises InvalidJob: the name has characters other than letters, digits and ``._-``, or a setting is out of range.
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
        limits: Sequence[Concurrency | Rate] = (),
        aging: Seconds | None = None,
        charge: Charge | None = None,
        partitions: int | None = None,
        events: EventLevel | None = None,
        defaults: QueueGiven | None = None,
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
        self.unknown_fields: Literal["refuse", "ignore"] = unknown_fields
        self.unserved_for_ms = time_given("unserved_for", unserved_for)
        check_durability(durability)
        self.durability: Durability = durability
        self.declare(queue_rule(limits))
        self.aging_ms = aging_ms(aging)
        """What this program declares; 0: nothing."""
        self.charge: Charge | None = None if charge is None else check_charge(charge)
        self.partitions = None if partitions is None else check_partitions(partitions)
        """What this program declares."""
        self.events_level: EventLevel | None = None if events is None else check_level(events)
        self.default_options = queue_options(defaults)
        self.clock = clock
        self._redis = redis
        self._durability_timeout_ms = time_given("durability_timeout", durability_timeout)
        self._sessions = Sessions(self.name, self._connect)
        self._looked_at = False
        """Whether the warnings about the server were logged. They are not repeated for each event loop."""

    def __repr__(self) -> str:
        return f"<Queue {self.name}>"

    @property
    def place(self) -> tuple[str, str, str]:
        """Where its jobs are: server, prefix and name. Two queues at one place share their jobs."""
        redis = self._redis
        url = redis.url if isinstance(redis, Connection) else redis or self.settings.redis_url
        return url or str(self.settings.data_path), self.prefix, self.name

    # -- life ------------------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Connect and check the server, in the event loop that runs now. Each further loop opens the queue for itself.

        A queue may be opened several times in one loop. The last ``aclose`` closes it.

        :raises StoreUnavailable: Redis does not answer.
        :raises StoreRefused: this jobq cannot use the server or its data.
        :raises NoServer: there is no URL, and no server binary to start.
        """
        await self._sessions.open()
        return self

    async def _connect(self, session: Session) -> None:
        use = await acquire(self._redis, self.settings)
        try:
            store = self.new_store(use.connection)
            use.connection.looked_at |= self._looked_at
            await store.open(self.durability)
            self._looked_at = True
            spread = await self._spread(store)
        except BaseException:
            await use.release()
            raise
        session.begin(use, store, self.durability, self._durability_timeout_ms, self.hooks, self.default_options)
        session.watch(spread, lambda partition: self.new_store(use.connection, partition))

    async def _spread(self, store: Store) -> Spread:
        """Over how many partitions the queue is spread, or will be once it is used.

        :raises StoreRefused: another program declared another number.
        """
        stored = await store.stored_spread()
        wanted = self.partitions
        if not stored.who:
            return Spread() if wanted is None else Spread(wanted, 0 if wanted > 1 else 1, wanted)
        if wanted is None or wanted == stored.count:
            return stored
        change = f"jobq partitions set {wanted} --queue {self.name}"
        if stored.who == "code":
            raise StoreRefused(
                f"queue {self.name!r} has {stored.count} partitions, and this program declares {wanted}: all programs"
                f" must agree. To change it for all: {change}"
            )
        log.warning(
            f"Queue {self.name} has {stored.count} partitions, which an operator set, and this program declares"
            f" {wanted}: the stored number counts. To change it: {change}",
            queue=self.name,
        )
        return stored

    async def aclose(self) -> None:
        """Finish what is being sent, and release the connection. Closing a queue that is not open does nothing."""
        await self._sessions.aclose()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def is_open(self) -> bool:
        """Whether the queue can be used in the event loop that runs now. Without a running loop: in any loop."""
        return self._sessions.is_open

    def new_store(self, connection: Connection, partition: int = 0) -> Store:
        """A store of a partition on another connection. A worker's heartbeat thread has its own."""
        clock = self.clock
        store = Store(
            connection,
            self.name,
            prefix=self.prefix,
            clock=(lambda: str(clock())) if clock else None,
            aging_ms=self.aging_ms,
            charge=self.charge,
            partition=partition,
            partitions=0 if partition else self.partitions or 0,
            events=self.events_level,
        )
        most = self.settings
        store.rules_max, store.limit_keys_max = most.max_rules, most.max_limit_keys
        store.schedules_max, store.breakers_max = most.max_schedules, most.max_breakers
        store.groups_max = most.max_groups
        return store

    def webhook_queue(self) -> Queue:
        """The queue of the jobs that deliver events to webhooks.

        :raises InvalidJob: the name of this queue is too long for that.
        """
        name = delivering_queue(self.name)
        return Queue(name, self._redis, prefix=self.prefix, settings=self.settings, clock=self.clock)

    def sync(self) -> SyncQueue:
        """The queue for synchronous code: each method waits for its result. See sync.py."""
        return SyncQueue(self)
