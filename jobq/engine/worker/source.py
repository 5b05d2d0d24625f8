"""What a worker has of one queue: the jobs it holds, and the outcomes that wait for the next trip."""

from __future__ import annotations

import asyncio
import contextlib
from threading import get_ident
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobq.engine.log import debugging, get_logger
from jobq.engine.model.ids import time_of
from jobq.engine.model.job import LogLine
from jobq.engine.model.outcome import judge
from jobq.engine.model.rows import UNREADABLE, shown_attempts
from jobq.engine.worker.outbox import OUTCOMES, WORDS, Outbox
from jobq.engine.worker.run import Run, base_context
from jobq.errors import JobqError, StoreError

if TYPE_CHECKING:
    from jobq.engine.queue.queue import Queue
    from jobq.engine.store import Call, Claimed, Settled
    from jobq.engine.task.context import Context
    from jobq.engine.task.inject import Resources
    from jobq.engine.worker.children import Children
    from jobq.engine.worker.pool import Pool

log = get_logger("jobq.worker")

DEFER_FIRST_MS: Final = 250
DEFER_LONGEST_MS: Final = 60_000
HESITANT_SECONDS: Final = 120.0
"""For so long after a job of an unknown type, this worker lets others go first when something comes due."""
TRIM_PAGE: Final = 250
"""As many as a trip settles: finished jobs must not pile up."""
LOG_LINE_MAX: Final = 8192
RENEW_PAGE: Final = 500

TYPES_SAID: Final = 20
"""How many types a word to the other workers names."""

_encode = msgspec.json.Encoder().encode
_decode_unserved = msgspec.json.Decoder(tuple[int, list[str]]).decode


class Source:
    """One queue of one worker.

    ``runs`` holds every job from its claim until its settle is confirmed: what is in it is renewed.
    """

    def __init__(
        self, queue: Queue, weight: int, pool: Pool, worker: str, resources: Resources, children: Children
    ) -> None:
        self.queue = queue
        self.name = queue.name
        self.store = queue.store
        self.tasks = queue.tasks
        self.middlewares = queue.middlewares
        self.weight = weight
        self.worker = worker
        self.resources = resources
        self.children = children
        self.loop: asyncio.AbstractEventLoop = pool.loop
        self.threads = pool.threads
        self.runs: dict[bytes, Run] = {}
        self.outbox = Outbox()
        self.ready = True
        """There may be something to claim."""
        self.hungry = asyncio.Event()
        """Set when there is room and nothing to claim: time to listen for a wake token."""
        self.speaking = False
        """Progress or log lines are under way. Two trips may overtake each other, and words must not be overtaken:
        not by later ones, and not by the outcome that ends their lease. So the outbox waits."""
        self.standing = 0
        """Finished jobs over the retention's count, as the last settle reported."""
        self.requests = [0, 0, 0]
        self.unanswered = [0, 0, 0]
        """Per lane, and last the waker: how many jobs a claim asked for whose reply was lost; 0: none."""
        self.claiming = 0
        """Lanes that are claiming from it now."""
        self.deep = False
        """The last claim got all it wanted: there is work for both lanes."""
        self.killed_early: set[tuple[bytes, bytes]] = set()
        """Ids and tokens of kills that came before the claim's own reply."""
        self.context = base_context(queue.name)
        self.timer: asyncio.TimerHandle | None = None
        self.hesitant_until = 0.0
        self._pool = pool
        self._worker_json = _encode(worker)
        self._own = b" " + worker.encode()

    # -- outcomes, called by runs ----------------------------------------------------------------------------------

    def freed(self, run: Run) -> None:
        """The run's slot is free."""
        self._pool.freed(run)

    def completed(self, run: Run, result: bytes | msgspec.Raw, seconds: float) -> None:
        """The run returned."""
        spec = run.spec
        assert spec is not None
        outbox = self.outbox
        micros = int(seconds * 1e6)
        started = self._pool.server_ms(run.started)
        outbox.completed += (
            run.id,
            run.token,
            # as a Result encodes; null is its default and need not be kept
            b"[%d,%d,%b]" % (started, micros // 1000, self._worker_json)
            if result == b"null"
            else b"[%d,%d,%b,%b]" % (started, micros // 1000, self._worker_json, bytes(result)),
            "" if spec.retention is None else spec.retention,
        )
        counts = outbox.counts
        bucket = b"run:%d" % micros.bit_length()
        counts[bucket] = counts.get(bucket, 0) + 1
        # a job that was put back has waited since then, not since its enqueue a week ago
        since = spec.ready_at(run.id) if run.since is None else run.since
        bucket = b"wait:%d" % (max(0, started - since) * 1000).bit_length()
        counts[bucket] = counts.get(bucket, 0) + 1
        self._pool.notify()

    def failed(self, run: Run, error: BaseException) -> None:
        """The run failed: another attempt, or the end."""
        spec = run.spec or UNREADABLE
        started = self._pool.server_ms(run.started) if run.started else None
        failure = judge(spec, run.attempt, error, self.worker, self.store.now_ms(), started)
        if failure.delay is None:
            retention = "" if spec.retention is None else spec.retention
            self.outbox.failed += (run.id, run.token, run.attempt, failure.record, retention)
        else:
            self.outbox.retried += (run.id, run.token, run.attempt, failure.delay, failure.record)
        self._pool.notify()
        log.warning(
            "job failed",
            queue=self.name, job_id=run.id.decode(), type=spec.type, attempt=run.attempt, attempts=spec.attempts,
            error=failure.type, why=failure.message, retry_in_ms=failure.delay,
        )  # fmt: skip

    def deferred(self, run: Run, why: str) -> None:
        """This worker cannot run the job, but another version of it might: handed back, uncharged."""
        self.outbox.deferred += (run.id, run.token)
        self.hesitate()
        self._pool.notify()
        log.warning(
            f"Job {run.name} was handed back for workers of another version: {why}",
            queue=self.name, job_id=run.id.decode(), type=run.spec and run.spec.type, why=why,
        )  # fmt: skip

    async def unserved_ms(self, run: Run) -> int:
        """For how long a job has been handed back by workers that could not run it."""
        spec = run.spec
        if spec is not None and self._pool.server_ms(perf_counter()) < (
            (spec.at or time_of(run.id)) + self.queue.unserved_for_ms
        ):
            # most are younger than the time in question, and need no trip
            return 0
        try:
            times = (await self.queue.get(run.id.decode())).unserved
        except (JobqError, msgspec.MsgspecError):
            return 0
        return sum(min(DEFER_LONGEST_MS, DEFER_FIRST_MS << n) for n in range(min(times, 9))) + DEFER_LONGEST_MS * max(
            0, times - 9
        )

    def released(self, run: Run) -> None:
        """Handed back, uncharged."""
        self.outbox.released += (run.id, run.token)
        self._pool.notify()

    def forget(self, run: Run) -> None:
        """The job is somebody else's now, or over."""
        if self.runs.get(run.id) is run:
            del self.runs[run.id]
        log.warning("run stopped", queue=self.name, job_id=run.id.decode(), reason=run.reason)
        self._pool.notify()

    def say(self, context: Context, what: str, value: bytes | str) -> None:
        """Progress or a log line, from any thread."""
        run = self.runs.get(context.id.encode())
        if run is None or run.context is not context:
            return
        if what != "progress":
            text = str(value)[:LOG_LINE_MAX].encode(errors="replace").decode()
            value = _encode(LogLine(at=self.store.now_ms(), message=text))
        if get_ident() == self._pool.thread:
            self._said(what, run, value)
        else:
            # the outbox belongs to the loop's thread: a word put in while it is swapped would be lost
            self.loop.call_soon_threadsafe(self._said, what, run, value)

    def _said(self, what: str, run: Run, value: bytes | str) -> None:
        words = self.outbox.progress if what == "progress" else self.outbox.logs
        words += (run.id, run.token, value)
        self._pool.notify()

    # -- trips, called by lanes ------------------------------------------------------------------------------------

    def take(self) -> Outbox:
        """What the next trip carries."""
        if self.speaking:
            return Outbox()
        outbox, self.outbox = self.outbox.split()
        self.speaking = bool(outbox.progress or outbox.logs)
        return outbox

    def calls(self, outbox: Outbox) -> list[tuple[str, Call[Any]]]:
        """The scripts for an outbox; what was said goes before the settle that ends its lease."""
        store = self.store
        calls: list[tuple[str, Call[Any]]] = []
        if outbox.progress:
            calls.append(("progress", store.progress(outbox.progress)))
        if outbox.logs:
            calls.append(("logs", store.log(outbox.logs)))
        if outbox.completed:
            flat: list[Any] = []
            for pair in outbox.counts.items():
                flat += pair
            calls.append(("completed", store.complete(outbox.completed, flat)))
        if outbox.retried:
            calls.append(("retried", store.reschedule(outbox.retried)))
        if outbox.failed:
            calls.append(("failed", store.fail(outbox.failed)))
        if outbox.released:
            calls.append(("released", store.release(outbox.released)))
        if outbox.deferred:
            types = self._types(outbox.deferred[::2])
            calls.append(("deferred", store.defer(outbox.deferred, DEFER_FIRST_MS, DEFER_LONGEST_MS, types)))
        if self.standing > 0:
            queue = self.queue
            calls.append(("trim", store.trim(queue.keep_completed, queue.keep_failed, queue.keep_for_ms, TRIM_PAGE)))
        return calls

    def _types(self, ids: list[bytes]) -> bytes:
        """The types of jobs that are handed back, as ``defer`` takes them. A few: who knows none of them hesitates."""
        runs = (self.runs.get(job_id) for job_id in ids)
        return _encode(sorted({run.spec.type for run in runs if run and run.spec})[:TYPES_SAID])

    def settled(self, kind: str, outbox: Outbox, answer: Any, *, repeated: bool) -> None:
        """The reply to one settling script: the jobs in it are held no more."""
        if kind in WORDS:
            return
        if kind == "trim":
            self.standing = self.standing - answer if answer else 0
            return
        flat: list[Any] = getattr(outbox, kind)
        step, _ = OUTCOMES[kind]
        runs = self.runs
        for job_id, token in zip(flat[::step], flat[1::step], strict=True):
            # not by the id alone: the other lane may hold the same job again already
            run = runs.get(job_id)
            if run is not None and run.token == token:
                del runs[job_id]
        lost: list[bytes]
        if kind in ("completed", "failed"):
            settled: Settled = answer
            lost = settled.lost
            keep = self.queue.keep_completed if kind == "completed" else self.queue.keep_failed
            self.standing = max(self.standing, settled.standing - keep)
        else:
            lost = answer
        if debugging("jobq.worker"):
            for job_id in flat[::step]:
                if job_id not in lost:
                    log.debug(kind, queue=self.name, job_id=job_id.decode())
        if lost and not repeated:
            for job_id in lost:
                log.warning(
                    "settled too late: the lease was lost", queue=self.name, job_id=job_id.decode(), outcome=kind
                )

    def took(self, claimed: Claimed, now: float) -> list[Run]:
        """The claimed jobs, held from here on."""
        runs: list[Run] = []
        token, charged = claimed.token, claimed.charged
        for i, job_id in enumerate(claimed.ids):
            raw = claimed.specs[i]
            runs_charged, since = shown_attempts(charged[i]) if charged else (0, None)
            # a row that is gone cannot run; b"" fails to decode and ends in failed
            run = Run(self, job_id, token, raw or b"", runs_charged + 1, now, since)
            before = self.runs.get(job_id)
            if before is not None and not before.ended:
                # our own lease had run out (this machine slept, say): the old run counts for nothing any more
                self.drop(before, "lost")
            self.runs[job_id] = run
            runs.append(run)
        return runs

    def without_killed(self, runs: list[Run]) -> list[Run]:
        """The runs just claimed, without those that were killed before the claim's reply came."""
        if not self.killed_early:
            return runs
        alive: list[Run] = []
        for run in runs:
            if (run.id, run.token) in self.killed_early:
                run.reason = "killed"
                self.forget(run)
            else:
                alive.append(run)
        return alive

    def lost(self, pairs: list[tuple[bytes, bytes]]) -> None:
        """Leases that a renewal found gone."""
        for job_id, token in pairs:
            run = self.runs.get(job_id)
            if run is not None and run.token == token and not run.ended:
                self.drop(run, "lost")

    def drop(self, run: Run, reason: Any) -> None:
        """Stop a run, or take it out of the buffer."""
        if run.task is None:
            if not self._pool.buffer.remove(run):
                return
            run.reason = reason
            self.forget(run)
        else:
            run.stop(reason)

    def heard(self, message: bytes) -> None:
        """A word on the control channel."""
        verb, _, rest = message.partition(b" ")
        if verb == b"kill":
            job_id, _, token = rest.partition(b" ")
            run = self.runs.get(job_id)
            if run is None or run.token != token:
                if token.endswith(self._own):
                    # claimed for this worker, and the claim's reply is on its way
                    self.killed_early.add((job_id, token))
            elif not run.ended:
                self.drop(run, "killed")
        elif verb == b"unserved":
            with contextlib.suppress(msgspec.MsgspecError):  # a worker that says it in another way
                due_ms, types = _decode_unserved(rest)
                if not any(type_ in self.tasks for type_ in types):
                    self.hesitate()
                self._pool.look_in(self, due_ms)

    def hesitate(self) -> None:
        """Let others go first when something comes due: there are jobs whose type this worker does not know."""
        self.hesitant_until = self.loop.time() + HESITANT_SECONDS

    async def look_for_lost(self) -> None:
        """Learn what the control channel may have said while nobody listened.

        :raises StoreError: no answer.
        """
        held = self.held()
        for at in range(0, len(held), RENEW_PAGE):
            page = dict(held[at : at + RENEW_PAGE])
            call = self.store.renew([word for pair in page.items() for word in pair], self._pool.lease_ms)
            self.lost([(job_id, page[job_id]) for job_id in await self.store.do(call)])

    def held(self) -> list[tuple[bytes, bytes]]:
        """Ids and tokens of what is held, for the heartbeat thread."""
        return [(job_id, run.token) for job_id, run in list(self.runs.items())]

    def report(self, error: StoreError) -> None:
        """A trip failed; the outcomes are kept."""
        log.warning(
            "no trip to Redis; outcomes are kept and sent again", queue=self.name, error=str(error), held=len(self.runs)
        )
