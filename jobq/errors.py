"""All exceptions that jobq raises.

JobqError
  x InvalidJob              a job or a setting does not fit; nothing was written
    + UnknownType           the queue has no task of this type
    + UnknownRule           nobody declared or set the rule of this name
    + GroupFull             the group of the job holds as many jobs as it may
    + PayloadTooLarge
    + IdempotencyConflict   the key was used for another request
    + JobIdTaken            another job has this id
    + KeyTaken              another job holds the key, and ``unique`` says on="fail"
  x InvalidQuery            a cursor, state or limit that cannot be used
  x JobNotFound
  x ScheduleNotFound        the queue has no schedule of that name
  x WebhookNotFound         the queue has no webhook of that name
  x WrongState              the job's state does not allow the call, such as retry of a running job
  x UnknownBreaker          no task of this type has a circuit breaker
  x UnknownQueue            Redis knows no queue of that name
  x QueueInUse              the queue has jobs, living workers or schedules, so it was not dropped
  x JobFailed               raised by ``job.result()``: the job ended in failed
    + JobKilled
    + JobExpired          it did not start or end in time
  x UnreadableResult        raised by ``job.result()``: the stored result is damaged
  x ResultTimeout           the job had no result within the time given
  x TooManyWaiting          a handler may not wait for a job: too many handlers of its worker wait already
  x StoreError
    + StoreUnavailable      no answer from Redis; nothing is known to be lost
    + StoreFull             Redis is at maxmemory; only enqueue is refused
    + StoreRefused          the server is unfit: version, layout, rights, persistence
      + DurabilityRefused   the server cannot give the requested durability; nothing was written
    + DurabilityUnavailable the jobs are written, but copies or fsync were not confirmed
  x NoServer                no Redis URL and no server binary to start
  x TargetError             "module:name" on the command line does not lead to a queue
  x SettingsError           an environment variable or flag that cannot be used
  x RemoteError             stands for an exception of an isolated handler that cannot be sent to middleware

Errors of an attempt that the worker itself finds. They are stored as the error's ``type``. Middleware sees those
with a *:

  x Timeout *               the run took longer than the job's timeout
  x InvalidPayload *        the payload does not fit the handler's signature
  x Unserved *              no worker had a handler for the job's type
  x InvalidResult           the handler's result cannot be encoded as JSON, or is too large
  x ProcessCrashed *        the child process of an isolated handler died
  x DeadlineExceeded        the job's deadline came while it ran, or would come before its next attempt
  x LeaseExpired            the worker died, hung or lost its network
  x OutcomeRefused          Redis refuses to store the outcome of the run
  x TooManySnoozes          the job was snoozed as often as its task allows
  x TooManyRateLimits       the job was rate limited as often as its task allows

Raised by handlers to control their own job:

  x Discard                 fail now, even if attempts are left
  x Retry                   run again, after a delay that the handler chooses
  x Snooze                  the same, without using an attempt
  x RateLimited             the same, and a limit key or the queue stays closed meanwhile
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypeVar

from jobq.duration import read_retry_after

if TYPE_CHECKING:
    from collections.abc import Sequence

E = TypeVar("E", bound=BaseException)


class JobqError(Exception):
    """Base of every error that jobq raises on purpose."""

    @classmethod
    def page(cls) -> str:
        """The page of the documentation site about this error: ``errors/JobNotFound/``. The command line prints it."""
        return f"errors/{cls.__name__}/"


class InvalidJob(JobqError, ValueError):
    """A job cannot be enqueued as given, or a limit, a group, a schedule, a webhook or a setting of the queue cannot be
    used as given. Nothing was written."""


class UnknownRule(InvalidJob):
    """Nobody declared or set the rule of this name."""

    def __init__(self, rule: str, known: list[str]) -> None:
        self.rule = rule
        self.known = known
        rules = ", ".join(known[:20]) if known else "none yet"
        super().__init__(
            f"there is no rule {rule[:80]!r}; there are: {rules}. Set it with queue.set_limit(...), PUT"
            " /limits/{rule} or `jobq limits set`. If code declares it, start a worker or server of this code once"
        )


class GroupFull(InvalidJob):
    """The group of the job holds as many jobs as its ``max_queued`` allows. Enqueue it later."""

    def __init__(self, group: str) -> None:
        self.group = group
        super().__init__(
            f"group {group[:80]!r} holds as many jobs as it may: enqueue later, or raise its max_queued with"
            " queue.set_group(...), PUT /groups/{group} or `jobq groups set`"
        )


class UnknownType(InvalidJob):
    """The queue has tasks, and none of them has the type of the job."""

    def __init__(self, type_: str, known: Sequence[str]) -> None:
        self.type = type_
        self.known = sorted(known)
        super().__init__(f"unknown job type {type_[:80]!r}; this queue serves: {', '.join(self.known)}")


class PayloadTooLarge(InvalidJob):
    """The encoded payload is over the queue's limit."""

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(
            f"the payload has {size} bytes, the limit is {limit}; store it elsewhere and enqueue a reference"
        )


class IdempotencyConflict(InvalidJob):
    """The idempotency key was used before, for a request with another body."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(
            f"this idempotency key belongs to job {job_id}, enqueued with another body; use a new key for a new job"
        )


class JobIdTaken(InvalidJob):
    """Another job already has the given id."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"the id {job_id!r} belongs to another job; give each job an id of its own, or none")


class KeyTaken(InvalidJob):
    """Another job holds the key, and the job was enqueued with ``on="fail"``."""

    def __init__(self, job_id: str, key: str, state: str) -> None:
        self.job_id = job_id
        self.key = key
        self.state = state
        super().__init__(
            f"job {job_id} ({state}) holds the key {key[:80]!r}; wait for its end, kill it, or enqueue with another on="
        )


class InvalidQuery(JobqError, ValueError):
    """A cursor, state, age or limit that cannot be used."""


class JobNotFound(JobqError, LookupError):
    """There is no such job: it was never enqueued, was removed, or its retention has ended."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"no job {job_id!r}: never enqueued, removed, or past its retention")


class WebhookNotFound(JobqError, LookupError):
    """The queue has no webhook of this name."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"there is no webhook {name[:80]!r}: `jobq webhooks ls` or queue.webhooks() lists them")


class ScheduleNotFound(JobqError, LookupError):
    """The queue has no schedule of this name."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"there is no schedule {name[:80]!r}: `jobq schedules ls` or queue.schedules() lists them")


class WrongState(JobqError):
    """The state of the job does not allow the call."""

    def __init__(self, job_id: str, verb: str, state: str, allowed: Sequence[str], hint: str = "") -> None:
        self.job_id = job_id
        self.verb = verb
        self.state = state
        self.allowed = tuple(allowed)
        hint = f"; {hint}" if hint else ""
        super().__init__(f"cannot {verb} job {job_id}: it is {state}, and {verb} takes {' or '.join(allowed)}{hint}")


class UnknownQueue(JobqError, LookupError):
    """Redis knows no queue of that name."""


class UnknownBreaker(JobqError, LookupError):
    """The type has no circuit breaker."""

    def __init__(self, type_: str, known: Sequence[str]) -> None:
        self.type = type_
        self.known = list(known)
        super().__init__(
            f"type {type_[:80]!r} has no circuit breaker; there are: {', '.join(self.known[:20]) or 'none'}. Declare"
            " one with @queue.task(breaker=Breaker(...)), and start a worker or server of this code once"
        )


class QueueInUse(JobqError):
    """The queue has jobs, living workers or schedules. ``force`` drops it anyway."""

    def __init__(self, name: str, jobs: int, workers: int, schedules: int = 0) -> None:
        self.queue = name
        self.jobs = jobs
        self.workers = workers
        self.schedules = schedules
        counts = ((jobs, "job"), (workers, "living worker"), (schedules, "schedule"))
        parts = [f"{n} {word}{'' if n == 1 else 's'}" for n, word in counts if n]
        super().__init__(f"queue {name!r} has {' and '.join(parts)}; force removes it anyway")


class JobFailed(JobqError):
    """The awaited job ended in failed."""

    def __init__(self, job_id: str, type_: str, message: str, traceback: str | None = None) -> None:
        self.job_id = job_id
        self.type = type_
        self.message = message
        self.traceback = traceback
        super().__init__(f"job {job_id} failed: {type_}: {message}")


class JobKilled(JobFailed):
    """The awaited job was killed."""


class JobExpired(JobFailed):
    """The awaited job did not start within its ``expires``, or not before its ``deadline``."""


class UnreadableResult(JobqError):
    """The job completed, but its stored result is damaged or was written by another program."""

    def __init__(self, job_id: str, found: str) -> None:
        self.job_id = job_id
        super().__init__(f"job {job_id} completed, but its stored result cannot be read: {found}")


class ResultTimeout(JobqError, TimeoutError):
    """The job had no result within the given time. It is not cancelled."""


class TooManyWaiting(JobqError):
    """A handler wants to wait for another job, but too many handlers of its worker do that already."""

    def __init__(self, waiting: str, awaited: str, others: int) -> None:
        self.waiting = waiting
        self.awaited = awaited
        self.others = others
        super().__init__(
            f"job {waiting} may not wait for job {awaited}: {others} jobs of this worker wait for other jobs already;"
            " enqueue without waiting, or let the awaited job do the rest of the work"
        )


class StoreError(JobqError):
    """Base of all errors between jobq and Redis."""


class StoreUnavailable(StoreError, ConnectionError):
    """No answer from Redis. The call may be repeated: ids and fences make repeats harmless."""


class StoreFull(StoreError):
    """Redis is at maxmemory and refuses new jobs. Jobs can still be run, finished and removed."""


class StoreRefused(StoreError):
    """The server cannot be used as it is: version, layout, rights or configuration."""


class DurabilityRefused(StoreRefused):
    """The server cannot give the requested durability. Nothing was written."""


class DurabilityUnavailable(StoreError):
    """The jobs are enqueued, but the requested copies or fsync were not confirmed in time."""


class NoServer(JobqError):
    """There is neither a Redis URL nor a server binary to start one with."""


class TargetError(JobqError):
    """``module:name`` or ``path/file.py:name`` does not lead to a queue."""


class SettingsError(JobqError, ValueError):
    """An environment variable or flag that cannot be used."""


class RemoteError(JobqError):
    """A handler with ``isolate="process"`` raised an exception that cannot be recreated in the worker.

    Middleware sees it in place of that exception. ``type`` is the exception's name (``package.SomeError``), ``message``
    its text and ``traceback`` the traceback in the child process. ``final``: no other attempt follows. ``delay``: ms
    until the next attempt, if the handler asked for that. ``snooze``: ms until the next run, if it was a ``Snooze``.
    ``rate_limit``: ms and scope, if it was a ``RateLimited``.
    """

    def __init__(
        self,
        type_: str,
        message: str,
        traceback: str | None = None,
        *,
        final: bool = False,
        delay: int | None = None,
        snooze: int | None = None,
        rate_limit: tuple[int, str] | None = None,
    ) -> None:
        self.type = type_
        self.message = message
        self.traceback = traceback
        self.final = final
        self.delay = delay
        self.snooze = snooze
        self.rate_limit = rate_limit
        super().__init__(message)


class Timeout(JobqError, TimeoutError):
    """The run took longer than the job's timeout."""


class InvalidPayload(JobqError):
    """The payload does not fit the handler's signature. Running it again cannot help."""


class Unserved(JobqError):
    """The worker has no handler for the job's type or cannot read the job. A worker of another version may be able to.

    ``invalid``: the payload does not fit the handler's signature.
    """

    def __init__(self, message: str, *, invalid: bool = False) -> None:
        self.invalid = invalid
        super().__init__(message)


class InvalidResult(JobqError):
    """The handler's result cannot be written as JSON, or is too large. Running it again cannot help."""


class ProcessCrashed(JobqError):
    """The child process that ran the handler died."""


class DeadlineExceeded(JobqError):
    """The job's deadline came while it ran, or it asked for another run after it."""


class LeaseExpired(JobqError):
    """The worker stopped renewing the job's lease: it was killed, hung, or lost its network."""


class OutcomeRefused(JobqError):
    """Redis refuses to store the outcome of the run, for example because the result is too large for the server."""


class TooManySnoozes(JobqError):
    """The job was snoozed as often as its task allows (``max_snoozes``), so this run is its last one."""


class TooManyRateLimits(JobqError):
    """The job was rate limited as often as its task allows (``max_rate_limited``), so this run is its last one."""


class Discard(Exception):
    """Raised by a handler: the job fails now, even if attempts are left."""


class Retry(Exception):
    """Raised by a handler: the job runs again after ``delay`` (seconds) instead of its backoff. It uses an attempt."""

    def __init__(self, message: str = "retry requested", *, delay: float | timedelta | None = None) -> None:
        self.delay = delay
        super().__init__(message)


class Snooze(Exception):
    """Raised by a handler: not yet, run again after ``delay`` (seconds or a ``timedelta``). No attempt is charged.

    :raises ValueError: ``delay`` is not a time, or negative.
    """

    def __init__(self, delay: float | timedelta, message: str = "snoozed") -> None:
        if not _is_time(delay):
            raise ValueError(f"Snooze takes seconds from 0 on, or a timedelta, not {delay!r:.80}")
        self.delay = delay
        super().__init__(message)


class RateLimited(Exception):
    """Raised by a handler: a service refuses more calls for ``retry_after``. No attempt is charged.

    ``retry_after`` is seconds, a ``timedelta``, a text such as ``"5m"``, or the ``Retry-After`` header of an answer:
    seconds such as ``"30"``, or an HTTP date, which counts from the time of this machine.
    ``scope`` says what waits until then: "key" closes the job's limit keys for all jobs, "queue" closes the whole
    queue, and "job" closes nothing. The job itself waits in each case, and keeps its place in front of later jobs.

    :raises ValueError: ``retry_after`` is not a time, or negative, or there is no such scope.
    """

    def __init__(
        self,
        message: str = "rate limited",
        *,
        retry_after: float | timedelta | str,
        scope: Literal["job", "key", "queue"] = "key",
    ) -> None:
        delay = read_retry_after(retry_after) if isinstance(retry_after, str) else retry_after
        if not _is_time(delay):
            raise ValueError(
                "RateLimited takes retry_after= as seconds from 0 on, a timedelta, a text such as '30' or '5m', or an"
                " HTTP date, not"
                f" {retry_after!r:.80}"
            )
        if scope not in ("job", "key", "queue"):
            raise ValueError(f"RateLimited takes scope='job', 'key' or 'queue', not {scope!r:.80}")
        self.delay = delay
        self.scope = scope
        super().__init__(message)


def _is_time(value: object) -> bool:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    return isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds < float("inf")


def twin(error: E) -> E:
    """A copy of the error for another caller. One exception object would collect the tracebacks of all who raise it."""
    copy = type(error).__new__(type(error), *error.args)
    vars(copy).update(vars(error))
    copy.__cause__ = error.__cause__
    return copy
