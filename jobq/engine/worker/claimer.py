"""The claimers of a queue, and their knowledge about its waiting jobs.

A source has two claimers: its lane and its waker. Each has its own request number, so that a claim whose reply was
lost can be repeated without taking other jobs. Each has its own back-off, so that errors of one queue do not delay
others.
"""

from __future__ import annotations

from enum import Enum

from jobq.engine.model.backoff import pause


class Demand(Enum):
    """The knowledge about a queue's waiting jobs. Each source has one value."""

    IDLE = "idle"
    """No job is known to wait. The waker listens for the wake token."""
    READY = "ready"
    """Jobs may be waiting. The lane should claim."""
    CLAIMING = "claiming"
    """The lane's claim is under way."""
    AGAIN = "again"
    """The lane's claim is under way, and a job may have arrived since. One more claim must follow."""

    def came(self) -> Demand:
        """There may be a new job, or a free slot for one."""
        return _CAME[self]

    def sent(self) -> Demand:
        """The lane has sent a claim."""
        return Demand.CLAIMING

    def answered(self, *, more: bool) -> Demand:
        """A claim was answered. ``more``: it got as many jobs as it requested, so more may be waiting."""
        return Demand.READY if more or self is not Demand.CLAIMING else Demand.IDLE

    def failed(self) -> Demand:
        """A claim was refused or not answered. It must be repeated."""
        return Demand.READY


_CAME = {
    Demand.IDLE: Demand.READY,
    Demand.READY: Demand.READY,
    Demand.CLAIMING: Demand.AGAIN,
    Demand.AGAIN: Demand.AGAIN,
}


class BackOff:
    """Pauses that grow with each failure."""

    __slots__ = ("failures", "until")

    def __init__(self) -> None:
        self.failures = 0
        self.until = 0.0
        """The loop's time of the next try."""

    def failed(self, now: float) -> None:
        """Make the pause before the next try longer."""
        self.failures += 1
        self.until = now + pause(self.failures)

    def worked(self) -> None:
        """Allow the next try at once."""
        self.failures = 0
        self.until = 0.0


class Claimer:
    """A claimer of a source. The server knows it as ``name``."""

    __slots__ = ("backoff", "flying", "name", "request", "want")

    def __init__(self, name: str) -> None:
        self.name = name
        self.request = 0
        """The number of the last claim."""
        self.want = 0
        """The number of jobs that the last claim requested. 0 once it was answered."""
        self.flying = False
        """Whether the last claim is under way."""
        self.backoff = BackOff()

    @property
    def unanswered(self) -> bool:
        """Whether the last claim got no answer. It may have taken jobs, so it must be repeated before any other
        claim."""
        return self.want > 0 and not self.flying

    def sent(self, want: int, *, repeated: bool) -> int:
        """A claim is sent. Returns its request number."""
        if not repeated:
            self.request += 1
        self.want = want
        self.flying = True
        return self.request

    def answered(self) -> None:
        """The answer arrived."""
        self.want = 0
        self.flying = False
        self.backoff.worked()

    def failed(self, now: float) -> None:
        """The claim was refused or not answered."""
        self.flying = False
        self.backoff.failed(now)
