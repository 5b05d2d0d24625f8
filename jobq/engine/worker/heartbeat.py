"""The heartbeat: a thread with its own event loop and connection renews the leases of a worker.

So a handler that blocks the worker's event loop keeps its leases instead of being run a second time elsewhere. The
thread also watches that loop: it says where it hangs, and gives it up after ``stuck_after``.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobq.engine.log import get_logger
from jobq.engine.store import Connection, Store
from jobq.engine.worker.outbox import HAND_BACK_MAX
from jobq.engine.worker.source import RENEW_PAGE
from jobq.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobq.engine.model.job import WorkerRow
    from jobq.engine.worker.pool import Pool
    from jobq.engine.worker.run import Run
    from jobq.engine.worker.source import Source

log = get_logger("jobq.heartbeat")

STALL_SECONDS: Final = 1.0
"""A loop that does not answer for longer is reported."""

_encode = msgspec.json.Encoder().encode


class Heartbeat(threading.Thread):
    """Renews until ``stop``. A loop blocked for ``stuck_after`` seconds is given up: ``given_up``, in this thread."""

    def __init__(
        self, pool: Pool, describe: Callable[[], WorkerRow], stuck_after: float, given_up: Callable[[], None] | None
    ) -> None:
        super().__init__(name="jobq-heartbeat", daemon=True)
        self._pool = pool
        self._describe = describe
        self._stuck_after = stuck_after
        self._given_up = given_up
        self._interval = min(pool.lease_ms / 3000, 5.0)
        self._watched = threading.get_ident()
        self._answered = time.monotonic()
        self._reported = False
        self._dead = False
        self._begun = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._halt: asyncio.Event | None = None

    def stop(self, timeout: float) -> None:
        """End the thread; waits up to ``timeout`` seconds."""
        self._begun.wait(timeout)
        if self._loop is not None and self._halt is not None and self.is_alive():
            self._loop.call_soon_threadsafe(self._halt.set)
            self.join(timeout)

    def word(self) -> bytes:
        """What the worker says of itself, JSON."""
        return _encode(self._describe())

    def run(self) -> None:
        """The thread."""
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._halt = asyncio.Event()
        self._begun.set()
        connections: dict[int, Connection] = {}
        stores: list[tuple[Source, Store]] = []
        # a dead connection must be noticed, and replaced, before the leases run out
        timeout = min(self._pool.sources[0].store.connection.timeout, max(self._pool.lease_ms / 6000, 0.25))
        for source in self._pool.sources:
            shared = source.store.connection
            own = connections.setdefault(id(shared), Connection(shared.url, timeout=timeout))
            stores.append((source, source.queue.new_store(own)))
        try:
            watch = asyncio.create_task(self._watch(stores))
            while not self._halt.is_set() and not self._pool.loop.is_closed():
                renewed = self._dead or await self._beat(stores)
                try:
                    # soon again after a failure: others may reap from a third of the lease after an outage on
                    await asyncio.wait_for(self._halt.wait(), self._interval if renewed else self._interval / 5)
                except TimeoutError:
                    continue
            watch.cancel()
            await self._leave(stores)
        finally:
            for connection in connections.values():
                await connection.aclose()

    async def _beat(self, stores: list[tuple[Source, Store]]) -> bool:
        """Renew everything that is held. False: something was not renewed. Whatever happens, this thread goes on."""
        renewed = True
        for source, store in stores:
            try:
                await self._renew(source, store)
            except StoreError as error:
                renewed = False
                log.warning("leases not renewed; tried again soon", queue=source.name, error=str(error))
            except Exception:
                renewed = False
                log.exception("leases not renewed; tried again soon", queue=source.name)
        return renewed

    async def _renew(self, source: Source, store: Store) -> None:
        held = source.held()
        pages = [held[at : at + RENEW_PAGE] for at in range(0, len(held), RENEW_PAGE)]
        calls: list[Any] = [
            store.renew([word for pair in page for word in pair], self._pool.lease_ms) for page in pages
        ]
        calls.append(store.heartbeat(self._pool.worker, self.word()))
        answers = await store.trip(*calls)
        tokens = dict(held)
        refused = [answer for answer in answers if isinstance(answer, StoreError)]
        lost = [
            (job_id, tokens[job_id])
            for answer in answers[:-1]
            if not isinstance(answer, StoreError)
            for job_id in answer
        ]
        if lost:
            self._pool.loop.call_soon_threadsafe(source.lost, lost)
        if refused:
            raise refused[0]

    async def _leave(self, stores: list[tuple[Source, Store]]) -> None:
        for _, store in stores:
            try:
                async with asyncio.timeout(1.0):
                    await store.do(store.heartbeat(self._pool.worker, b""))
            except (StoreError, TimeoutError):
                return  # its row goes with time

    async def _watch(self, stores: list[tuple[Source, Store]]) -> None:
        """Ask the worker's loop to answer, again and again."""
        pause = min(STALL_SECONDS / 2, self._interval)
        while True:
            try:
                self._pool.loop.call_soon_threadsafe(self._answer)
            except RuntimeError:
                return  # closed: nobody waits for this worker any more
            await asyncio.sleep(pause)
            silent = time.monotonic() - self._answered
            if silent < STALL_SECONDS:
                self._reported = False
                continue
            if not self._reported:
                self._reported = True
                log.warning("a handler blocks the event loop", silent_s=round(silent, 1), stack=self._stack())
                await self._give_back(stores)
            if silent >= self._stuck_after and not self._dead:
                self._dead = True
                log.error(
                    "the event loop is stuck: its leases are not renewed any more",
                    silent_s=round(silent),
                    stack=self._stack(),
                )
                if self._given_up is not None:
                    self._given_up()

    async def _give_back(self, stores: list[tuple[Source, Store]]) -> None:
        """What was claimed ahead of a free slot should not wait behind the handler that blocks."""
        unstarted = self._pool.buffer.take_all()
        for source, store in stores:
            runs = [run for run in unstarted if run.source is source]
            for at in range(0, len(runs), HAND_BACK_MAX):
                page = runs[at : at + HAND_BACK_MAX]
                try:
                    await store.do(store.release([word for run in page for word in (run.id, run.token)]))
                except StoreError as error:
                    # still in `runs`, so still renewed: the loop hands them back once it answers
                    log.warning("could not hand back unstarted jobs", queue=source.name, error=str(error))
                    self._pool.loop.call_soon_threadsafe(self._release_later, source, runs[at:])
                    break
                for run in page:
                    if source.runs.get(run.id) is run:
                        del source.runs[run.id]

    @staticmethod
    def _release_later(source: Source, runs: list[Run]) -> None:
        for run in runs:
            source.released(run)

    def _answer(self) -> None:
        self._answered = time.monotonic()

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._watched)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - documented; there is no other way
        return "".join(traceback.format_stack(frame)[-12:]) if frame else ""
