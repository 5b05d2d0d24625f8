"""Aging: what operators set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from jobq.engine.log import get_logger
from jobq.engine.model.aging import AGING_JOBS_MAX, aging_ms, aging_text
from jobq.engine.queue.changing import changing
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
        parts = self.store.parts
        if len(parts) > 1:
            # Look first, so that no partition is changed if another one cannot be.
            for part in parts:
                await _check_few(part, ms)
        async with changing(self.store):
            for part in parts:
                _, waiting = await part.do(part.aging(ms))
                if waiting:
                    raise _too_many(part, waiting)
        log.info(f"Queue {self.name} has {aging_text(ms)} from now on", queue=self.name)


async def _check_few(part: Store, ms: int) -> None:
    stored, waiting, held = await part.commands(
        (b"HGET", part.keys["meta"], b"aging"),
        (b"ZCARD", part.keys["waiting"]),
        (b"ZCARD", part.keys["held"]),
    )
    if stored != b"%d" % ms and waiting + held > AGING_JOBS_MAX:
        raise _too_many(part, waiting + held)


def _too_many(part: Store, waiting: int) -> InvalidJob:
    where = f"partition {part.partition} of queue" if part.partition else "queue"
    return InvalidJob(
        f"{waiting} jobs of {where} {part.name!r} wait, and aging can change while {AGING_JOBS_MAX} wait at most: let"
        " the workers finish some of them first"
    )
