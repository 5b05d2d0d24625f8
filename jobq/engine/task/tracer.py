"""The interface by which a queue's enqueues are traced. jobq/otel.py implements it with OpenTelemetry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobq.engine.model.job import Accepted, Durability, NewJob, Seconds
    from jobq.errors import InvalidJob


class Submitter(Protocol):
    """The methods of a queue that a tracer calls, with jobs that have a trace context."""

    @property
    def name(self) -> str:
        """The queue's name."""
        ...

    async def submit(self, new: NewJob, *, durability: Durability | None, checked: bool) -> Accepted:
        """Enqueue one job."""
        ...

    async def submit_each(
        self, news: Sequence[NewJob], *, durability: Durability | None, checked: bool, spread: Seconds | None
    ) -> list[Accepted | InvalidJob]:
        """Enqueue many jobs."""
        ...


class Tracer(Protocol):
    """Makes a span of each enqueue, and gives the jobs its context. No job that it passes on has ``trace`` None."""

    async def submit(self, queue: Submitter, new: NewJob, *, durability: Durability | None, checked: bool) -> Accepted:
        """Enqueue one job in a span."""
        ...

    async def submit_each(
        self,
        queue: Submitter,
        news: Sequence[NewJob],
        *,
        durability: Durability | None,
        checked: bool,
        spread: Seconds | None,
    ) -> list[Accepted | InvalidJob]:
        """Enqueue many jobs in one span."""
        ...

    def scheduled(self, new: NewJob) -> NewJob:
        """A schedule is about to enqueue a job: begin its span."""
        ...

    def fired(self, new: NewJob, *, enqueued: bool) -> None:
        """The schedule has enqueued the job, or somebody else has: end its span, or forget it."""
        ...
