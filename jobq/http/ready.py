"""Readiness: every Redis server behind this application runs scripts, and no worker of this process has failed.

/readyz needs no key, so anybody may call it at any rate. Therefore a probe runs one script per server that reads
nothing. Calls that arrive meanwhile share the probe, and its answer is kept for a moment.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from jobq.http.problems import WORKER_FAILED, HttpProblem

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from jobq.engine.queue.queue import Queue
    from jobq.engine.worker.worker import Worker

KEPT: Final = 0.5
"""Seconds that an answer is kept."""


class Readiness:
    """The readiness of these queues' servers and of workers that run in this process."""

    def __init__(self, queues: Collection[Queue], workers: Sequence[Worker] = ()) -> None:
        self._queues = queues
        self._workers = workers
        self._probe: asyncio.Task[Exception | None] | None = None
        self._stale_at = 0.0

    async def check(self) -> Exception | None:
        """The first error, or None if there is none. The answer of Redis is at most ``KEPT`` seconds old."""
        if any(worker.state == "failed" for worker in self._workers):
            # Anybody may read this answer, so the error itself is only in the log.
            return HttpProblem(WORKER_FAILED, "a worker in this process has failed; the server's log has its error")
        loop = asyncio.get_running_loop()
        if self._probe is None or (self._probe.done() and loop.time() >= self._stale_at):
            self._probe = loop.create_task(self._ask(), name="jobq-ready")
        # The client that started the probe may leave; the others still wait for it.
        return await asyncio.shield(self._probe)

    async def _ask(self) -> Exception | None:
        one_per_server = {id(queue.store.node): queue for queue in self._queues}.values()
        answers = await asyncio.gather(*(queue.ready() for queue in one_per_server), return_exceptions=True)
        self._stale_at = asyncio.get_running_loop().time() + KEPT
        return next((answer for answer in answers if isinstance(answer, Exception)), None)

    async def aclose(self) -> None:
        """Cancel a probe that still runs."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait([self._probe])
