"""A worker's part of one queue: its jobs, and the outcomes that wait for the next trip."""

from __future__ import annotations

import asyncio
import contextlib
from threading import get_ident
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobq.engine.log import get_logger
from jobq.engine.model.history import OTHER
from jobq.engine.model.outcome import Snoozed, Throttled, judge, put_off
from jobq.engine.model.unreadable import NEVER_RUN, UNREADABLE, shown_attempts, slots_of
from jobq.engine.queue.firing import Firing
from jobq.engine.worker.claimer import Claimer, Demand
from jobq.engine.worker.idle import Idle
from jobq.engine.worker.meter import TripMeter
from jobq.engine.worker.outbox import COMPLETED, FAILED, RELEASED, RETRIED, SNOOZED, THROTTLED, Outbox, Tally
from jobq.engine.worker.run import Run, base_context
from jobq.engine.worker.run_log import log_failure, log_rate_limit, log_snooze, log_stop
from jobq.engine.worker.tell import tell_start
from jobq.engine.worker.timers import DueTimer
from jobq.engine.worker.unserved import Unserved
from jobq.engine.worker.whole import Whole
from jobq.errors import LeaseExpired, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobq.engine.queue.queue import Queue
    from jobq.engine.store import Claimed, Connection, Store
    from jobq.engine.task.context import Context
    from jobq.engine.task.inject import Resources
    from jobq.engine.worker.children import Children
    from jobq.engine.worker.slots import Slots

log = get_logger("jobq.worker")

RENEW_PAGE: Final = 500
KILLED_EARLY_MAX: Final = 1000
"""The most kills that are kept for claims whose reply has not arrived."""

_encode = msgspec.json.Encoder().encode
_decode_unserved = msgspec.json.Decoder(tuple[int, list[str]]).decode


class Source:
    """One queue of one worker, or one of its partitions, which ``store`` is.

    ``runs`` holds every job from its claim until its outcome is confirmed. The heartbeat renews all of them.
    """

    def __init__(
        self,
        queue: Queue,
        weight: float,
        slots: Slots,
        worker: str,
        lease_ms: int,
        resources: Resources,
        children: Children,
        store: Store | None = None,
    ) -> None:
        self.queue = queue
        self.name = queue.name
        self.store = store or queue.store
        self.tasks = queue.tasks
        self.middlewares = queue.middlewares
        self.hooks = queue.hooks
        self.weight = weight
        self.worker = worker
        self.lease_ms = lease_ms
        self.resources = resources
        self.children = children
        self.loop: asyncio.AbstractEventLoop = slots.loop
        self.threads = slots.threads
        self.deadlines = slots.deadlines
        self.context = base_context(queue.name, self)
        self.runs: dict[bytes, Run] = {}
        self.idle = Idle(queue.name, self.store)
        self.meter = TripMeter()
        self.outbox = Outbox()
        self.demand = Demand.READY
        self.claimer = Claimer(f"{worker}:0")
        """The lane's."""
        self.waking = Claimer(f"{worker}:1")
        """The waker's."""
        self.hungry, self.grown = asyncio.Event(), asyncio.Event()
        """Set when slots are free and there is nothing to claim: the waker may wait for the wake token. Set when the
        queue may have more partitions."""
        self.standing = 0
        """Finished jobs over the retention's count, as the last settle reported."""
        self.recounted: bytes | str = ""
        """Where the comparison of limits with jobs goes on."""
        self.holds = False
        """At the last trip jobs were held, or waited for the queue's own limits. The end of a job may let one start."""
        self.recalls = False
        """Jobs of types that this worker knows may be parked: the next claim recalls them first."""
        self.unserved, self.whole = Unserved(self), Whole(queue, self.store)
        self.firing = Firing(queue)
        """Enqueues the jobs of schedules. It needs no slot, so slots come in time while all are taken."""
        self.timer = DueTimer(self.loop, self._due)
        self.wake: Callable[[], object] = _nobody
        """Wakes the lane."""
        self.due: Callable[[], object] = _nobody
        """Tells the lane that a delayed job is due."""
        self._slots = slots
        slots.lending.served.add(queue.name)
        self._completed: list[Any] = self.outbox.rows[COMPLETED]
        self._clock_ms = 0.0
        self._killed_early: dict[tuple[bytes, bytes], None] = {}
        """Ids and tokens of kills that arrived before the reply of the claim, the oldest first."""
        self._worker_json = _encode(worker)
        self._own = b" " + worker.encode()

    def new_store(self, connection: Connection) -> Store:
        """The same store on another connection."""
        return self.queue.new_store(connection, self.store.partition)

    def _due(self) -> None:
        self.due()

    def server_ms(self, moment: float) -> int:
        """A ``perf_counter`` moment on the server's clock, unix ms."""
        return int(self._clock_ms + moment * 1000)

    # -- outcomes, called by runs ----------------------------------------------------------------------------------

    def tell_start(self, run: Run) -> None:
        """Call the hooks for the start of a run."""
        tell_start(run, self.queue)

    def freed(self, run: Run) -> None:
        """The run's slot is free."""
        self._slots.freed(run)

    def complete(self, run: Run, result: bytes | msgspec.Raw, seconds: float) -> None:
        """The run returned."""
        spec = run.spec
        assert spec is not None
        micros = int(seconds * 1e6)
        started = self.server_ms(run.started)
        self._completed += (
            run.id,
            run.token,
            # This is the encoding of a Result. null is the default and need not be stored.
            b"[%d,%d,%b]" % (started, micros // 1000, self._worker_json)
            if result == b"null"
            else b"[%d,%d,%b,%b]" % (started, micros // 1000, self._worker_json, bytes(result)),
            "" if spec.retention is None else spec.retention,
        )
        tally = self.outbox.counts.get(spec.type)
        if tally is None:
            tally = self.outbox.counts[spec.type] = Tally()
        bits = micros.bit_length()
        tally.run[bits] = tally.run.get(bits, 0) + 1
        tally.run_us += micros
        # The waiting time of a retried or released job starts again, not at its enqueue.
        since = spec.ready_at(run.id) if run.since is None else run.since
        micros = max(0, started - since) * 1000
        bits = micros.bit_length()
        tally.wait[bits] = tally.wait.get(bits, 0) + 1
        tally.wait_us += micros
        self.wake()

    def fail(self, run: Run, error: BaseException) -> None:
        """The run raised: another one follows, or the end."""
        spec = run.spec or UNREADABLE
        started = self.server_ms(run.started) if run.started else None
        task = self.tasks.get(spec.type)
        policy = task.policy if task is not None else None
        left_ms = None if spec.deadline_at is None else spec.deadline_at - self.store.now_ms()
        snoozed = put_off(error, run.snoozes, policy, run.rate_limited, left_ms)
        if isinstance(snoozed, Snoozed):
            self.outbox.rows[SNOOZED] += (run.id, run.token, snoozed.delay)
            self.wake()
            log_snooze(run, snoozed)
            return
        if isinstance(snoozed, Throttled):
            self.outbox.rows[THROTTLED] += (run.id, run.token, snoozed.delay, snoozed.scope)
            self.wake()
            log_rate_limit(run, snoozed)
            return
        if self.hooks:
            run.error = snoozed or error
        trace = run.context.trace if run.context is not None else None
        failure = judge(spec, run.attempt, snoozed or error, self.worker, self.store.now_ms(), started, policy, trace)
        # Clients choose the types of jobs, and code those of tasks. Only these are counted by name.
        micros = int((perf_counter() - run.started) * 1e6) if run.started else 0
        counted = (OTHER if task is None else spec.type, micros, issubclass(type(error), LeaseExpired))
        if failure.delay is None:
            retention = "" if spec.retention is None else spec.retention
            self.outbox.rows[FAILED] += (run.id, run.token, run.attempt, failure.record, retention, *counted)
        else:
            self.outbox.rows[RETRIED] += (run.id, run.token, run.attempt, failure.delay, failure.record, *counted)
        self.wake()
        log_failure(run, spec, failure)

    def defer(self, run: Run, why: str, left_ms: int = 0) -> None:
        """Hand back a job that this worker cannot run and another version may run, uncharged."""
        self.unserved.defer(run, why, left_ms)

    async def unserved_ms(self, run: Run) -> int:
        """The time for which a job has been delayed because no worker could run it."""
        return await self.unserved.spent_ms(run)

    def release(self, run: Run) -> None:
        """Hand the job back, uncharged."""
        self.outbox.rows[RELEASED] += (run.id, run.token)
        self.wake()

    def forget(self, run: Run) -> None:
        """Another worker holds the job now, or it has ended."""
        if self.runs.get(run.id) is run:
            del self.runs[run.id]
        log_stop(run)
        self.wake()

    def begin_wait(self, context: Context, queue: str, job_id: str) -> None:
        """A handler waits for another job, in any thread. Meanwhile its slot is lent to another job.

        :raises TooManyWaiting: too many others wait already.
        """
        run = self.runs.get(context.id.encode())
        if run is not None and run.context is context:
            self._slots.lending.begin(run, queue, job_id)

    def end_wait(self, context: Context, job_id: str) -> None:
        """The wait is over."""
        self._slots.lending.end(context, job_id)

    def say(self, context: Context, what: str, value: bytes | str) -> None:
        """Progress, a cost or a log line, from any thread."""
        run = self.runs.get(context.id.encode())
        if run is None or run.context is not context:
            return
        notes, key = self.outbox.notes, (run.id, run.token)
        if what == "progress":
            first = notes.progress(key, value if isinstance(value, bytes) else value.encode())
        elif what == "spent":
            first = notes.spent(key, str(value))
        else:
            text = value if isinstance(value, str) else value.decode(errors="replace")
            # An earlier run, or one that was handed back, may also have written lines.
            appends = run.attempt > 1 or run.since is not None
            first = notes.log(key, run, text, self.store.now_ms(), appends=appends)
        if not first:
            return
        if get_ident() == self._slots.thread:
            self.wake()
        else:
            self.loop.call_soon_threadsafe(self.wake)

    # -- jobs that are held ----------------------------------------------------------------------------------------

    def took(self, claimed: Claimed, now: float) -> list[Run]:
        """Make runs of claimed jobs. From here on the worker holds them."""
        runs: list[Run] = []
        self._clock_ms = claimed.now - now * 1000
        token, charged = claimed.token, claimed.charged
        for i, job_id in enumerate(claimed.ids):
            raw = claimed.specs[i]
            runs_charged, since, snoozes, rate_limited = shown_attempts(charged[i]) if charged else NEVER_RUN
            # A job without a row cannot run. b"" cannot be decoded, so the job ends in failed.
            run = Run(self, job_id, token, raw or b"", runs_charged + 1, now, since, snoozes, rate_limited)
            before = self.runs.get(job_id)
            if before is not None and not before.ended:
                # Our own lease had run out, for example because this machine slept. The old run has lost the job.
                self.drop(before, "lost")
            self.runs[job_id] = run
            runs.append(run)
        for run, weight in zip(runs, claimed.weights, strict=False):
            run.slots = slots_of(weight)
        for run in runs[: claimed.urgent]:
            run.urgent = True
        return runs

    def without_killed(self, runs: list[Run]) -> list[Run]:
        """The claimed runs, without those that were killed before the reply arrived."""
        if not self._killed_early:
            return runs
        alive: list[Run] = []
        for run in runs:
            if (run.id, run.token) in self._killed_early:
                del self._killed_early[run.id, run.token]
                run.reason = "killed"
                self.forget(run)
            else:
                alive.append(run)
        return alive

    def leases_lost(self, pairs: list[tuple[bytes, bytes]]) -> None:
        """Stop the runs whose leases a renewal did not find any more."""
        for job_id, token in pairs:
            run = self.runs.get(job_id)
            if run is not None and run.token == token and not run.ended:
                self.drop(run, "lost")

    def drop(self, run: Run, reason: Any) -> None:
        """Stop a run, or take it out of the buffer."""
        if run.task is None:
            if not self._slots.buffer.remove(run):
                return
            run.ended = True
            run.reason = reason
            self.forget(run)
        else:
            run.stop(reason)

    def heard(self, message: bytes) -> None:
        """A message on the control channel."""
        verb, _, rest = message.partition(b" ")
        if verb == b"kill":
            job_id, _, token = rest.partition(b" ")
            run = self.runs.get(job_id)
            if run is None or run.token != token:
                if token.endswith(self._own):
                    # The job was claimed for this worker, and the claim's reply has not arrived. Keep the kill, because
                    # other claims may be answered first.
                    self._killed_early[job_id, token] = None
                    if len(self._killed_early) > KILLED_EARLY_MAX:
                        del self._killed_early[next(iter(self._killed_early))]
            elif not run.ended:
                self.drop(run, "killed")
        elif verb == b"room":
            # Another worker has too few free slots for the next job.
            if rest.isdigit() and self._slots.for_others >= int(rest):
                self.demand = self.demand.came()
                self.wake()
        elif verb == b"unserved":
            with contextlib.suppress(msgspec.MsgspecError):  # A worker of another version sends it in another form.
                due_ms, types = _decode_unserved(rest)
                self.timer.not_later(due_ms)
                if any(type_ in self.tasks for type_ in types):
                    self.recall()
        elif verb == b"schedules":
            self.firing.look()
        elif verb == b"partitions":
            self.grown.set()

    def recall(self) -> None:
        """Parked jobs may be of types that this worker knows: recall them as soon as a slot is free."""
        if self.tasks:
            self.recalls = True
            self.demand = self.demand.came()
            self.wake()

    async def look_for_lost_leases(self) -> None:
        """Catch up on messages of the control channel that were missed.

        :raises StoreError: no answer.
        """
        held = self.held()
        for at in range(0, len(held), RENEW_PAGE):
            page = dict(held[at : at + RENEW_PAGE])
            call = self.store.renew([word for pair in page.items() for word in pair], self.lease_ms)
            self.leases_lost([(job_id, page[job_id]) for job_id in await self.store.do(call)])

    def held(self) -> list[tuple[bytes, bytes]]:
        """Ids and tokens of what is held, for the heartbeat thread."""
        return [(job_id, run.token) for job_id, run in list(self.runs.items())]

    def warn(self, what: str, error: StoreError) -> None:
        """Log that a trip failed, or a part of it. ``what``: a sentence without its full stop."""
        log.warning(f"{what} (queue {self.name}): {error}", queue=self.name, error=str(error), held=len(self.runs))


def _nobody() -> None:
    """The lane has ended."""
