"""The context of a run, which tells a handler of its run, and the markers of injected parameters."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Protocol, TypeVar

from jobq.engine.model.costs import check_unit, cost
from jobq.engine.model.encoding import encode
from jobq.engine.model.ids import time_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from jobq.engine.model.job import Scheduled, Spec

T = TypeVar("T")

PROGRESS_MAX: Final = 65_536
"""Bytes of a job's progress. It is shown with the job, and sent many times."""

current: ContextVar[Context] = ContextVar("jobq_context")
"""The run that this code belongs to. It is set while a handler runs."""


class Context:
    """One run of one job. A parameter annotated ``Context`` gets it.

    ``attempt`` counts from 1, ``attempts`` is the total number of runs, ``enqueued_at`` is unix ms. ``snoozes`` counts
    the runs that raised ``Snooze``, and ``rate_limited`` those that raised ``RateLimited``. They were not charged.
    ``fence`` grows from run to run. So a database can refuse a run that was replaced: its fence is lower than the
    job's last one.
    ``progress``, ``spent`` and ``log`` may be called from any thread and cost no trip of their own.
    """

    __slots__ = (
        "_say",
        "attempt",
        "fence",
        "id",
        "lost",
        "queue",
        "rate_limited",
        "snoozes",
        "spec",
        "stopped",
        "trace",
        "worker",
    )

    def __init__(
        self,
        id: str,
        queue: str,
        spec: Spec,
        attempt: int,
        worker: str,
        fence: int,
        say: Callable[[Context, Literal["progress", "log", "spent"], bytes | str], None],
        snoozes: int = 0,
        rate_limited: int = 0,
    ) -> None:
        self.id = id
        self.queue = queue
        self.spec = spec
        self.attempt = attempt
        self.worker = worker
        self.fence = fence
        self.snoozes = snoozes
        self.rate_limited = rate_limited
        self.lost = False
        """True once this run has lost the job: it was killed, timed out, lost its lease, or was handed back because
        the worker stops. The outcome of the handler will be refused. A thread cannot be stopped, so long sync
        handlers should check this from time to time."""
        self.stopped: Literal["killed", "lost", "timeout", "shutdown"] | None = None
        """Why the worker cancelled the handler. None if it did not."""
        self.trace: str | None = None
        """The span of this run as a ``traceparent``. None if runs are not traced."""
        self._say = say

    @property
    def type(self) -> str:
        """The job's type."""
        return self.spec.type

    @property
    def attempts(self) -> int | None:
        """Total number of runs. None if there is no limit."""
        return self.spec.attempts

    @property
    def enqueued_at(self) -> int:
        """Unix ms."""
        return self.spec.at or time_of(self.id)

    @property
    def deadline(self) -> datetime | None:
        """When the job must have ended, in UTC. The run is cancelled then. None if it has no deadline."""
        at = self.spec.deadline_at
        return None if at is None else datetime.fromtimestamp(at / 1000, UTC)

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata that the producer gave the job."""
        return self.spec.metadata or {}

    @property
    def schedule(self) -> Scheduled | None:
        """The schedule that enqueued the job: its name, the slot, how many slots were missed, and the previous run.
        None if no schedule did."""
        return self.spec.schedule

    def progress(self, value: Any) -> None:
        """Store how far the job is: any JSON value, often a number from 0 to 100. The last value counts.

        :raises TypeError: the value cannot be encoded as JSON.
        :raises ValueError: its JSON is larger than 64 KiB.
        """
        try:
            data = encode(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"progress takes a value with a JSON form: {error}") from None
        if len(data) > PROGRESS_MAX:
            raise ValueError(
                f"progress has {len(data)} bytes, the limit is {PROGRESS_MAX}: store it elsewhere, and give a reference"
            )
        self._say(self, "progress", data)

    def spent(self, unit: str, amount: float) -> None:
        """Say what this run really cost, in place of the estimate that its rates with this unit were charged. The last
        value counts. It is stored before the outcome of the run, whatever that is.

        :raises InvalidJob: the unit or the amount does not fit.
        """
        self._say(self, "spent", f"{check_unit(unit)} {cost(unit, amount)}")

    def log(self, message: str) -> None:
        """Write a line into the job's own log, which ``GET /jobs/{id}/logs`` and ``jobq logs`` show."""
        self._say(self, "log", message)


class Lender(Protocol):
    """The worker of a run, as the code of its handler sees it."""

    def begin_wait(self, context: Context, queue: str, job_id: str) -> None: ...
    def end_wait(self, context: Context, job_id: str) -> None: ...


lender: ContextVar[Lender] = ContextVar("jobq_lender")
"""The worker whose handler this code belongs to."""


@contextmanager
def waiting_for(queue: str, job_id: str) -> Generator[None]:
    """Put this around a wait for another job: a handler lends its slot meanwhile. Elsewhere it does nothing.

    :raises TooManyWaiting: too many handlers of the worker wait for other jobs already.
    """
    context, worker = current.get(None), lender.get(None)
    if context is None or worker is None:
        yield
        return
    worker.begin_wait(context, queue, job_id)
    try:
        yield
    finally:
        worker.end_wait(context, job_id)


class Depends(Generic[T]):
    """``pool: Annotated[Pool, Depends(connect)]``, or ``pool: Pool = Depends(connect)``: the parameter gets the value
    that ``connect`` returns or yields.

    ``connect`` may be a function, a coroutine function, or a (sync or async) generator function that yields once, also
    one that is decorated with ``contextmanager`` or ``asynccontextmanager``. Any other context manager that it returns
    is handed over as it is. Its own parameters may be ``Context`` (scope "run" only) or ``Depends``. Scope "run": once
    for each run, however many parameters ask for it, and closed after the run. Scope "worker": once per worker (with
    ``isolate="process"`` per child), at the first use, closed at its end.

    :raises TypeError: ``call`` is not callable, or ``scope`` is neither "run" nor "worker".
    """

    __slots__ = ("call", "scope")

    def __init__(self, call: Callable[..., Any], *, scope: Literal["run", "worker"] = "run") -> None:
        if not callable(call):
            raise TypeError(f"Depends takes a function that returns the value, not {call!r:.80}")
        if scope not in ("run", "worker"):
            raise TypeError(f"scope is {scope!r:.80}: it takes 'run' or 'worker'")
        self.call = call
        self.scope: Literal["run", "worker"] = scope


inject: Any = None
"""A default for injected parameters, so that type checkers let callers omit them, as in ``ctx: Context = inject``."""
