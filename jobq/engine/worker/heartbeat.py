"""The heartbeat: a thread with its own event loop renews the leases of a worker.

So a handler that blocks the worker's event loop keeps its lease, and its job is not started a second time elsewhere.
Each Redis server has its own task and connection here, so a server that does not answer does not delay renewals on
others. The thread also watches the worker's loop. If the loop hangs, it logs the stack, and after ``stuck_after``
seconds it stops renewing.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobq.engine.log import get_logger, indented
from jobq.engine.store import Store, send_together, unregistered
from jobq.engine.worker.outbox import HAND_BACK_MAX
from jobq.engine.worker.source import RENEW_PAGE
from jobq.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from jobq.engine.model.views import WorkerRow
    from jobq.engine.queue.queue import Queue
    from jobq.engine.store import Call
    from jobq.engine.worker.pool import Pool
    from jobq.engine.worker.run import Run
    from jobq.engine.worker.source import Source

    Stores = list[tuple[Source, Store]]
    """Sources with their verbs on the heartbeat's own connection."""

log = get_logger("jobq.heartbeat")

STALL_SECONDS: Final = 1.0
"""A loop that does not answer for this time is logged."""
RESTART_SECONDS: Final = 1.0
"""Pause before a heartbeat that failed starts again."""
IDLE_BEATS: Final = 3
"""A worker of many queues writes its row in one without running jobs at each third heartbeat: at the latest every 15
seconds. After 30 it would not count as alive."""
PARTITION_BEATS: Final = 60
"""The same for partitions other than the first one, whose row says that the worker is alive. In the others the row only
keeps what is recorded of claims, which is removed a day after the last row."""
LEAVE_SECONDS: Final = 1.0
"""Time to remove the worker's row from each server."""

_encode = msgspec.json.Encoder().encode


class Heartbeat(threading.Thread):
    """Renews until ``halt``, or until the worker's event loop is closed.

    ``given_up`` is called in this thread when the worker's loop has been blocked for ``stuck_after`` seconds.
    """

    def __init__(
        self,
        pool: Pool,
        describe: Callable[[Queue], WorkerRow],
        stuck_after: float,
        given_up: Callable[[], None] | None,
    ) -> None:
        super().__init__(name="jobq-heartbeat", daemon=True)
        self.ended: asyncio.Future[None] = pool.loop.create_future()
        """A future of the worker's loop. It is done when the thread has ended."""
        self._pool = pool
        self._describe = describe
        self._stuck_after = stuck_after
        self._given_up = given_up
        self._interval = min(pool.lease_ms / 3000, 5.0)
        self._watched = threading.get_ident()
        self._answered = time.monotonic()
        self._reported = False
        self._stuck = False
        """Whether the worker's loop is given up. Then nothing is renewed until it answers again."""
        self._failing: set[Source] = set()
        self._beats = 0
        self._halted = threading.Event()
        self._waking: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._servers: list[Stores] = []
        self._group: asyncio.TaskGroup | None = None

    def halt(self) -> None:
        """Tell the thread to end. It does not wait, so that it can be called even while the worker is being
        cancelled."""
        self._halted.set()
        if self._waking is not None:
            loop, halt = self._waking
            with contextlib.suppress(RuntimeError):  # Its loop is closed, so the thread has ended.
                loop.call_soon_threadsafe(halt.set)

    def add(self, source: Source) -> None:
        """Renew the leases of one more source. Called in the worker's loop, after the source joined the pool."""
        if self._waking is not None:
            loop, halt = self._waking
            with contextlib.suppress(RuntimeError):  # its loop is closed: the next one reads the pool's sources
                loop.call_soon_threadsafe(self._serve_also, source, halt)

    def word(self, queue: Queue) -> bytes:
        """The worker's row for readers of this queue, as JSON."""
        return _encode(self._describe(queue))

    def run(self) -> None:
        """The thread's main function. After an error the heartbeat starts again, because without it every job would
        lose its lease."""
        try:
            while not self._run_once():
                pass
        finally:
            with contextlib.suppress(RuntimeError):  # The worker's loop is closed.
                self._pool.loop.call_soon_threadsafe(self._end)

    def _run_once(self) -> bool:
        """Run the heartbeat. Returns False if it failed and has to start again."""
        try:
            asyncio.run(self._main())
        except Exception:
            log.exception(f"The heartbeat failed and starts again in {RESTART_SECONDS:g} s", in_s=RESTART_SECONDS)
            return self._halted.wait(RESTART_SECONDS)
        return True

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    async def _main(self) -> None:
        halt = asyncio.Event()
        self._waking = asyncio.get_running_loop(), halt
        if self._halted.is_set():  # The halt was requested before this loop existed.
            halt.set()
        self._servers = []
        try:
            async with asyncio.TaskGroup() as self._group:
                self._group.create_task(self._watch(halt))
                for source in list(self._pool.sources):
                    self._serve_also(source, halt)
        finally:
            self._group = None
            for stores in self._servers:
                await stores[0][1].connection.aclose()

    def _serve_also(self, source: Source, halt: asyncio.Event) -> None:
        """Renew for a source, too. Each server or cluster has one task, and connections of the heartbeat's own."""
        if self._group is None or halt.is_set() or any(source is one for stores in self._servers for one, _ in stores):
            return
        shared = source.store.connection
        same = next((stores for stores in self._servers if stores[0][0].store.connection is shared), None)
        if same is not None:
            same.append((source, source.new_store(same[0][1].connection)))
            return
        # A dead connection must be noticed and replaced before the leases run out. In a cluster, leases on the other
        # nodes wait for one that hangs, for as long.
        mine = shared.another(min(shared.timeout, max(self._pool.lease_ms / 6000, 0.25)))
        stores = [(source, source.new_store(mine))]
        self._servers.append(stores)
        self._group.create_task(self._serve(stores, halt))

    async def _serve(self, stores: Stores, halt: asyncio.Event) -> None:
        """Renew on one server until the halt; then remove the worker's row there."""
        while not halt.is_set():
            renewed = self._stuck or await self._beat(stores)
            # Try again soon after a failure: a third of the lease after an outage, others may recover the jobs.
            await _sleep(self._interval if renewed else self._interval / 5, halt)
        # If this fails, the row expires. Wait for the last heartbeat first, because it would write the row again.
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await send_together([(store, [store.heartbeat(self._pool.worker, b"")]) for _, store in stores])

    async def _beat(self, stores: Stores) -> bool:
        """Renew all leases on one server. Returns False if some were not renewed and must be tried again soon."""
        if len(stores) == 1:
            renewed = await self._beat_alone(*stores[0])
        else:
            renewed = await self._beat_together(list(stores))
        self._beats += 1
        return renewed

    async def _beat_alone(self, source: Source, store: Store) -> bool:
        held = source.held()
        calls = self._calls(source, store, held, row=True)
        try:
            answers, known = await store.trip_and_look(*calls)
            self._renewed(source, held, answers)
            if not known:
                # Redis was emptied or lost its data. Register the queue again, or it could not be found.
                await store.register()
        except Exception as error:  # noqa: BLE001 - renewals go on
            return self._failed(source, error)
        return self._worked(source)

    async def _beat_together(self, stores: Stores) -> bool:
        """Renew leases of several queues in few writes. The rows of queues without running jobs are written in turn."""
        parts: list[tuple[Source, Store, list[tuple[bytes, bytes]], list[Call[Any]]]] = []
        for place, (source, store) in enumerate(stores):
            held = source.held()
            beats = PARTITION_BEATS if store.partition else IDLE_BEATS
            row = bool(held) or source in self._failing or (place + self._beats) % beats == 0
            if calls := self._calls(source, store, held, row=row):
                parts.append((source, store, held, calls))
        renewed = True
        answered: list[Store] = []
        answers = await send_together([(store, calls) for _, store, _, calls in parts])
        for (source, store, held, _), found in zip(parts, answers, strict=True):
            try:
                self._renewed(source, held, found)
            except Exception as error:  # noqa: BLE001 - renewals of the others go on
                renewed = self._failed(source, error)
            else:
                self._worked(source)
                answered.append(store)
        if answered:
            try:
                for store in await unregistered(answered):
                    await store.register()
            except StoreError as error:
                log.debug("The registry was not read", error=str(error))
        return renewed

    def _calls(self, source: Source, store: Store, held: list[tuple[bytes, bytes]], *, row: bool) -> list[Call[Any]]:
        """Renewals of what is held. ``row``: and the worker's row."""
        pages = [held[at : at + RENEW_PAGE] for at in range(0, len(held), RENEW_PAGE)]
        calls: list[Call[Any]] = [
            store.renew([word for pair in page for word in pair], self._pool.lease_ms) for page in pages
        ]
        if row:
            calls.append(store.heartbeat(self._pool.worker, self.word(source.queue)))
        return calls

    def _renewed(self, source: Source, held: list[tuple[bytes, bytes]], answers: list[Any]) -> None:
        """The answers to ``_calls``.

        :raises StoreError: the server's error for one of them.
        """
        tokens = dict(held)
        pages = len(range(0, len(held), RENEW_PAGE))
        lost = [
            (job_id, tokens[job_id])
            for answer in answers[:pages]
            if not isinstance(answer, StoreError)
            for job_id in answer
        ]
        if lost:
            with contextlib.suppress(RuntimeError):  # The worker's loop is closed, so no run is left.
                self._pool.loop.call_soon_threadsafe(source.leases_lost, lost)
        for answer in answers:
            if isinstance(answer, StoreError):
                raise answer

    def _failed(self, source: Source, error: Exception) -> bool:
        name = source.name
        if not isinstance(error, StoreError):
            log.error(f"Leases of queue {name} were not renewed; tried again soon", queue=name, exc_info=error)
            return False
        # Log one line when an outage begins and one when it ends.
        level = log.debug if source in self._failing else log.warning
        level(f"Leases of queue {name} were not renewed; tried again soon: {error}", queue=name, error=str(error))
        self._failing.add(source)
        return False

    def _worked(self, source: Source) -> bool:
        if source in self._failing:
            self._failing.discard(source)
            log.warning(f"Leases of queue {source.name} are renewed again", queue=source.name)
        return True

    async def _watch(self, halt: asyncio.Event) -> None:
        """Ask the worker's loop to answer repeatedly. When it is closed, the heartbeat ends."""
        pause = min(STALL_SECONDS / 2, self._interval)
        measured = time.monotonic()
        while not halt.is_set():
            try:
                self._pool.loop.call_soon_threadsafe(self._answer, time.monotonic())
            except RuntimeError:
                halt.set()
                return
            await _sleep(pause, halt)
            self._pool.meter.busy += self._pool.running * (time.monotonic() - measured)
            measured = time.monotonic()
            silent = time.monotonic() - self._answered
            if silent < STALL_SECONDS:
                self._reported = False
                if self._stuck:
                    self._stuck = False
                    log.warning("The event loop answers again: leases are renewed again")
                continue
            if not self._reported:
                self._reported = True
                log.warning(
                    f"A handler blocks the event loop, for {silent:.1f} s so far:\n{indented(self._stack())}",
                    silent_s=round(silent, 1),
                )
                await asyncio.gather(*self._give_back())
            if silent >= self._stuck_after and not self._stuck:
                self._stuck = True
                log.error(
                    f"The event loop is stuck for {silent:.0f} s: its leases are not renewed any more:"
                    f"\n{indented(self._stack())}",
                    silent_s=round(silent),
                )
                if self._given_up is not None:
                    self._given_up()

    def _give_back(self) -> list[Coroutine[Any, Any, None]]:
        """Hand back jobs that were claimed ahead. They should not wait for the handler that blocks."""
        unstarted = self._pool.slots.buffer.take_all()
        return [
            self._release(source, store, [run for run in unstarted if run.source is source])
            for stores in self._servers
            for source, store in stores
        ]

    async def _release(self, source: Source, store: Store, runs: list[Run]) -> None:
        # Each call puts its jobs before all waiting ones. So if there are several calls, the last jobs are sent first.
        for end in range(len(runs), 0, -HAND_BACK_MAX):
            page = runs[max(0, end - HAND_BACK_MAX) : end]
            try:
                await store.do(store.release([word for run in page for word in (run.id, run.token)]))
            except StoreError as error:
                # They are still in `source.runs` and are renewed. The loop hands them back once it answers.
                log.warning(
                    f"Jobs of queue {source.name} that have not started could not be handed back yet: {error}",
                    queue=source.name, error=str(error),
                )  # fmt: skip
                self._pool.loop.call_soon_threadsafe(self._release_later, source, runs[:end])
                return
            # In the loop's thread, which may have claimed one of them again meanwhile.
            self._pool.loop.call_soon_threadsafe(self._released, source, page)

    @staticmethod
    def _released(source: Source, runs: list[Run]) -> None:
        for run in runs:
            if source.runs.get(run.id) is run:
                del source.runs[run.id]

    @staticmethod
    def _release_later(source: Source, runs: list[Run]) -> None:
        for run in runs:
            source.release(run)

    def _answer(self, asked: float) -> None:
        self._answered = time.monotonic()
        self._pool.meter.lag.add(self._answered - asked)

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._watched)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - documented; there is no other way
        return "".join(traceback.format_stack(frame)[-12:]) if frame else ""


async def _sleep(seconds: float, halt: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await halt.wait()
