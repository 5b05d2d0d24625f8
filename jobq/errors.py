"""Everything jobq raises.

JobqError
  x InvalidJob              the enqueue's arguments do not fit; nothing was written
    + UnknownType           the queue knows its types and this is none of them
    + PayloadTooLarge
    + IdempotencyConflict   the key was used for another request
    + JobIdTaken            another job has the id that was given
  x InvalidQuery            a cursor, state or limit that cannot be used
  x JobNotFound
  x WrongState              the job stands in a state that the verb does not move
  x UnknownQueue            Redis knows no queue of that name
  x QueueInUse              the queue has jobs or workers and is not dropped
  x JobFailed               raised by ``job.result()``: the job ended in failed
    + JobKilled
  x UnreadableResult        raised by ``job.result()``: the stored result is damaged
  x ResultTimeout           the job had no result within the time given
  x TooManyWaiting          a handler may not wait for another job: too many of its worker wait already
  x StoreError
    + StoreUnavailable      no answer from Redis; nothing is known to be lost
    + StoreFull             Redis is at maxmemory; only enqueue is refused
    + StoreRefused          the server is unfit: version, layout, rights, persistence
      + DurabilityRefused   it cannot give the durability asked for; nothing was written
    + DurabilityUnavailable the write stands, the asked-for copies or fsync do not
  x NoServer                no Redis URL and no server binary to start
  x TargetError             "module:name" on the command line does not lead to a queue
  x SettingsError           an environment variable or flag that cannot be used
  x RemoteError             what middleware sees of an isolated handler's exception that cannot be sent

The worker's own reasons why an attempt failed. Stored as the error's ``type``; middleware sees those with a *:

  x Timeout *               the run took longer than the job's timeout
  x InvalidPayload *        the payload does not fit the handler's signature
  x Unserved *              no worker had a handler for the job's type
  x InvalidResult           the handler's result has no JSON form, or is too large
  x ProcessCrashed *        the child process of an isolated handler died
  x LeaseExpired            the worker died, hung or lost its network
  x OutcomeRefused          Redis refuses to store how the run ended

Raised by handlers, to steer their own job:

  x Discard                 fail now, whatever attempts are left
  x Retry                   run again after a delay of the handler's choosing
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

E = TypeVar("E", bound=BaseException)


class JobqError(Exception):
    """Base of every error that jobq raises on purpose."""


class InvalidJob(JobqError, ValueError):
    """The job cannot be enqueued as given; nothing was written."""


class UnknownType(InvalidJob):
    """The queue knows its task types and the given one is none of them."""

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
    """Another job has the id that was given for this one."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"the id {job_id!r} belongs to another job; give each job an id of its own, or none")


class InvalidQuery(JobqError, ValueError):
    """A cursor, state, age or limit that cannot be used."""


class JobNotFound(JobqError, LookupError):
    """No such job: it never was, was removed, or its retention ran out."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"no job {job_id!r}: never enqueued, removed, or past its retention")


class WrongState(JobqError):
    """The job stands in a state that the verb does not move."""

    def __init__(self, job_id: str, verb: str, state: str, allowed: Sequence[str], hint: str = "") -> None:
        self.job_id = job_id
        self.verb = verb
        self.state = state
        self.allowed = tuple(allowed)
        hint = f"; {hint}" if hint else ""
        super().__init__(f"cannot {verb} job {job_id}: it is {state}, and {verb} takes {' or '.join(allowed)}{hint}")


class UnknownQueue(JobqError, LookupError):
    """Redis knows no queue of that name."""


class QueueInUse(JobqError):
    """The queue has jobs or living workers; it is dropped only with ``force``."""

    def __init__(self, name: str, jobs: int, workers: int) -> None:
        self.queue = name
        self.jobs = jobs
        self.workers = workers
        parts = [f"{n} {word}{'' if n == 1 else 's'}" for n, word in ((jobs, "job"), (workers, "living worker")) if n]
        super().__init__(f"queue {name!r} has {' and '.join(parts)}; force removes it all the same")


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


class UnreadableResult(JobqError):
    """The job completed, but its stored result cannot be read: it is damaged, or another program wrote it."""

    def __init__(self, job_id: str, found: str) -> None:
        self.job_id = job_id
        super().__init__(f"job {job_id} completed, but its stored result cannot be read: {found}")


class ResultTimeout(JobqError, TimeoutError):
    """The job had no result within the time given; it goes on."""


class TooManyWaiting(JobqError):
    """A handler waits for another job while too many handlers of its worker do the same."""

    def __init__(self, waiting: str, awaited: str, others: int) -> None:
        super().__init__(
            f"job {waiting} may not wait for job {awaited}: {others} jobs of this worker wait for other jobs already;"
            " enqueue without waiting, or let the last job of the chain go on with the work"
        )


class StoreError(JobqError):
    """Base of what goes wrong between jobq and Redis."""


class StoreUnavailable(StoreError, ConnectionError):
    """No answer from Redis. The call may be repeated: ids and fences make repeats harmless."""


class StoreFull(StoreError):
    """Redis is at maxmemory and refuses new jobs. Running, settling and removing go on."""


class StoreRefused(StoreError):
    """The server cannot be used as it is: version, layout, rights or configuration."""


class DurabilityRefused(StoreRefused):
    """The server cannot give the durability asked for; nothing was written."""


class DurabilityUnavailable(StoreError):
    """The jobs are enqueued, but the copies or the fsync asked for were not confirmed in time."""


class NoServer(JobqError):
    """There is neither a Redis URL nor a server binary to start one with."""


class TargetError(JobqError):
    """``module:name`` or ``path/file.py:name`` does not lead to a queue."""


class SettingsError(JobqError, ValueError):
    """An environment variable or flag that cannot be used."""


class RemoteError(JobqError):
    """A handler with ``isolate="process"`` raised an exception that cannot be made again in the worker.

    Middleware sees it in place of that exception. ``type`` is the exception's name (``package.SomeError``), ``message``
    its text and ``traceback`` the traceback in the child process. ``final``: no other attempt follows. ``delay``: ms
    until the next attempt, if the handler asked for that.
    """

    def __init__(
        self, type_: str, message: str, traceback: str | None = None, *, final: bool = False, delay: int | None = None
    ) -> None:
        self.type = type_
        self.message = message
        self.traceback = traceback
        self.final = final
        self.delay = delay
        super().__init__(message)


class Timeout(JobqError, TimeoutError):
    """The run took longer than the job's timeout."""


class InvalidPayload(JobqError):
    """The payload does not fit the handler's signature (any more); running it again cannot help."""


class Unserved(JobqError):
    """The worker has no handler for the job's type, or cannot read the job: a worker of another version might.

    ``invalid``: the payload does not fit the handler's signature.
    """

    def __init__(self, message: str, *, invalid: bool = False) -> None:
        self.invalid = invalid
        super().__init__(message)


class InvalidResult(JobqError):
    """The handler's result has no JSON form, or is too large. Its work is done: running it again cannot help."""


class ProcessCrashed(JobqError):
    """The child process that ran the handler died."""


class LeaseExpired(JobqError):
    """The worker stopped renewing the job's lease: it was killed, hung, or lost its network."""


class OutcomeRefused(JobqError):
    """Redis refuses to store how the run ended: the result is larger than the server accepts, say."""


class Discard(Exception):
    """Raised by a handler: this job fails now, whatever attempts are left."""


class Retry(Exception):
    """Raised by a handler: run again, after ``delay`` (seconds) instead of the backoff. Charged as an attempt."""

    def __init__(self, message: str = "retry requested", *, delay: float | timedelta | None = None) -> None:
        self.delay = delay
        super().__init__(message)


def twin(error: E) -> E:
    """The same error once more, for another caller: an exception object keeps the tracebacks of all who raise it."""
    copy = type(error).__new__(type(error), *error.args)
    vars(copy).update(vars(error))
    copy.__cause__ = error.__cause__
    return copy
