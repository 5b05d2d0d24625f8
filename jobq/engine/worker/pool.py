"""The parts of a worker: its slots, for each queue a source with a lane, and what the sources of a server share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobq.engine.worker.control import Control
from jobq.engine.worker.lane import Lane
from jobq.engine.worker.meter import LoopMeter
from jobq.engine.worker.slots import Slots
from jobq.engine.worker.source import Source
from jobq.engine.worker.waker import Waker

if TYPE_CHECKING:
    import asyncio

    from jobq.engine.queue.queue import Queue
    from jobq.engine.store import Store
    from jobq.engine.task.inject import Resources
    from jobq.engine.worker.children import Children
    from jobq.engine.worker.idle import Idle
    from jobq.engine.worker.reserve import Reserve
    from jobq.engine.worker.run import Run


class Pool:
    """The parts of one running worker, named ``worker``."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        concurrency: int,
        lease_ms: int,
        worker: str,
        reserve: Reserve | None = None,
    ) -> None:
        self.loop = loop
        self.lease_ms = lease_ms
        self.worker = worker
        self.slots = Slots(loop, concurrency, reserve)
        self.meter = LoopMeter()
        self.sources: list[Source] = []
        self.lanes: list[Lane] = []
        self.wakers: list[Waker] = []
        """One for each server or cluster."""
        self.controls: list[Control] = []
        """One for each server or cluster."""

    def add(
        self, queue: Queue, weight: float, resources: Resources, children: Children, store: Store | None = None
    ) -> Source:
        """Serve one more queue, or the partition of one that ``store`` is."""
        source = Source(queue, weight, self.slots, self.worker, self.lease_ms, resources, children, store)
        lane = Lane(source, self.slots)
        self.sources.append(source)
        self.lanes.append(lane)
        waker = next((waker for waker in self.wakers if waker.serves(source)), None)
        if waker is None:
            waker = Waker(self.slots)
            self.wakers.append(waker)
        waker.add(lane)
        control = next((control for control in self.controls if control.serves(source)), None)
        if control is None:
            control = Control()
            self.controls.append(control)
        control.add(source)
        return source

    @property
    def running(self) -> int:
        """The number of handlers that run now."""
        return self.slots.running

    def elsewhere(self, queue: Queue) -> int:
        """Slots that run jobs of other queues. The heartbeat thread asks, so it works on copies."""
        others = [source for source in self.sources if source.runs and source.queue is not queue]
        return sum(run.slots for source in others for run in list(source.runs.values()))

    def idle(self, queue: Queue) -> Idle | None:
        """Why the last claim from this queue brought nothing."""
        return next((source.idle for source in self.sources if source.queue is queue), None)

    def unfinished(self) -> list[Run]:
        """The runs that have started and not ended."""
        return [
            run for source in self.sources for run in source.runs.values() if run.task is not None and not run.ended
        ]

    def close(self) -> None:
        """Let the lanes end."""
        for lane in self.lanes:
            lane.close()
        self.slots.close()
