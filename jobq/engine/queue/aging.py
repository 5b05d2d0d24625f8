"""Aging: what operators set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from jobq.engine.log import get_logger
from jobq.engine.model.aging import AGING_JOBS_MAX, aging_ms, aging_text
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from jobq.engine.model.job import Seconds
    from jobq.engine.store import Store

log = get_logger("jobq.queue")


class AgingVerbs(ABC):
    """What operators set of the order of jobs."""

    name: str

    @property
    @abstractmethod
    def store(self) -> Store:
        """The verbs underneath."""

    async def set_aging(self, aging: Seconds | None) -> None:
        """Set how much waiting a step of priority is worth. None: priorities are absolute, however long a job waits.

        It acts at once for all programs. Jobs that wait count as enqueued now. Programs that declare another
        ``Queue(aging=...)`` are refused when they start.

        :raises InvalidJob: it is no time of at most a day, or more than 1,000 jobs wait. Nothing was changed.
        """
        ms = aging_ms(aging)
        await self.store.register()  # It may be set before the first job of the queue.
        _, waiting = await self.store.do(self.store.aging(ms))
        if waiting:
            raise InvalidJob(
                f"{waiting} jobs of queue {self.name!r} wait, and aging can change while {AGING_JOBS_MAX} wait at most:"
                " let the workers finish some of them first"
            )
        log.info(f"Queue {self.name} has {aging_text(ms)} from now on", queue=self.name)
