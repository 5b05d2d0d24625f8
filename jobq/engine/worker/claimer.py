"""Who claims from a queue, and what is known of the jobs that wait in it.

A source has two claimers: its lane, and its waker. Each has a request number of its own, so that a claim whose reply
was lost can be repeated without taking other jobs. Each has a back-off of its own, so one queue's trouble stays there.
"""

from __future__ import annotations

from enum import Enum

from jobq.engine.model.backoff import pause


class Demand(Enum):
    """What is known of a queue's waiting jobs. One value for each source."""

    IDLE = "idle"
    """Nothing waits, as far as is known: the waker listens for the wake token."""
    READY = "ready"
    """Something may wait: the lane should claim."""
    CLAIMING = "claiming"
    """The lane's claim is on its way."""
    AGAIN = "again"
    """The lane's claim is on its way, and something came meanwhile: one more claim must follow."""

    def came(self) -> Demand:
        """There may be a new job, or a free slot for one."""
        return _CAME[self]

    def sent(self) -> Demand:
        """The lane has sent a claim."""
        return Demand.CLAIMING

    def answered(self, *, more: bool) -> Demand:
        """A claim was answered. ``more``: it got all that it asked for, so more may wait."""
        return Demand.READY if more or self is not Demand.CLAIMING else Demand.IDLE

    def failed(self) -> Demand:
        """A claim was not answered, or refused: it must be repeated."""
        return Demand.READY


_CAME = {
    Demand.IDLE: Demand.READY,
    Demand.READY: Demand.READY,
    Demand.CLAIMING: Demand.AGAIN,
    Demand.AGAIN: Demand.AGAIN,
}


class BackOff:
    """Growing pauses after failures."""

    __slots__ = ("failures", "until")

    def __init__(self) -> None:
        self.failures = 0
        self.until = 0.0
        """The loop's time before which nothing is tried."""

    def failed(self, now: float) -> None:
        """The next try comes after a longer pause."""
        self.failures += 1
        self.until = now + pause(self.failures)

    def worked(self) -> None:
        """The next try may come at once."""
        self.failures = 0
        self.until = 0.0


class Claimer:
    """One of those who claim from a source, known to the server as ``name``."""

    __slots__ = ("backoff", "flying", "name", "request", "want")

    def __init__(self, name: str) -> None:
        self.name = name
        self.request = 0
        """The number of the last claim."""
        self.want = 0
        """How many jobs the last claim asked for; 0 once it was answered."""
        self.flying = False
        """The last claim is on its way."""
        self.backoff = BackOff()

    @property
    def unanswered(self) -> bool:
        """The last claim got no answer. It may have taken jobs, so it must be repeated before any other."""
        return self.want > 0 and not self.flying

    def sent(self, want: int, *, repeated: bool) -> int:
        """A claim goes out. Returns its request number."""
        if not repeated:
            self.request += 1
        self.want = want
        self.flying = True
        return self.request

    def answered(self) -> None:
        """The answer came."""
        self.want = 0
        self.flying = False
        self.backoff.worked()

    def failed(self, now: float) -> None:
        """No answer came, or a refusal."""
        self.flying = False
        self.backoff.failed(now)
