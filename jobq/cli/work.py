"""``jobq work`` supervises worker processes. In each of these processes it runs the worker itself."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

from jobq.cli import render
from jobq.cli.reload import watch
from jobq.cli.session import loaded, on_stop_signals, run
from jobq.cli.supervisor import REFUSED, Supervisor, follow_supervisor
from jobq.cli.target import load_target
from jobq.engine.worker.life import open_queues
from jobq.engine.worker.reserve import read_reserve
from jobq.engine.worker.worker import Worker
from jobq.errors import NoServer, SettingsError, StoreError, StoreRefused, TargetError
from jobq.logging import configure
from jobq.settings import NUMBER

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from jobq.engine.queue.queue import Queue
    from jobq.settings import Settings

SETTLING = 10.0
"""Seconds that a worker may need after its grace to send outcomes and to close children and connections."""
LEAVING = 1.0
"""Seconds for the interpreter to end by itself. It waits for threads, which cannot be stopped."""
STUCK = 70
"""Exit code of a worker whose event loop is given up."""
LOOKING: Final = 0.2
"""Seconds between two checks of ``--burst``."""
HELD_LOOKS: Final = 25
"""Checks that find nothing but held jobs, before ``--burst`` says so."""
GROUPS_MAX: Final = 1 << 20


def work(args: argparse.Namespace, settings: Settings) -> int:
    """Supervise ``--processes`` workers, or run the worker itself with 0.

    The supervisor also loads the target and opens its queues. So an error in them is reported once, in one line, before
    anything starts.
    """
    configure(settings)
    if args.reload and args.processes == 0:
        raise SettingsError("--reload restarts worker processes: it needs --processes 1 or more")
    try:
        read_reserve(settings.reserve, settings.concurrency)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    supervised = follow_supervisor(grace=settings.grace + SETTLING)
    queues = _weighted(load_target(args.target), dict(args.weight))
    if supervised:
        try:
            return run(_work(queues, settings, supervised=True, burst=args.burst))
        except (StoreRefused, NoServer, SettingsError) as error:
            render.complain(str(error))
            return REFUSED
    if args.processes == 0:
        return run(_work(queues, settings, supervised=False, burst=args.burst))
    weights = [f"--weight={name}={weight}" for name, weight in args.weight]
    words = command(args.target, [*weights, *(["--burst"] if args.burst else [])])
    supervisor = partial(
        Supervisor,
        words,
        args.processes,
        name="worker",
        grace=settings.grace + SETTLING,
        once=args.burst,
        restarts=args.reload,
    )
    return run(supervise(supervisor, [queue for queue, _ in queues], reload=args.reload))


def command(target: str, options: Sequence[str] = ()) -> list[str]:
    """The command that the supervisor runs. The settings are in the environment."""
    return [sys.executable, "-m", "jobq", "work", target, *options]


async def supervise(make: Callable[[], Supervisor], queues: list[Queue], *, reload: bool) -> int:
    """Run a supervisor until a signal stops it. ``reload``: its processes are restarted when the code changes."""
    supervisor = make()
    on_stop_signals(supervisor.stop)
    async with AsyncExitStack() as stack:
        # The queues stay open while the workers run. Otherwise an embedded server could end in between.
        await open_queues([(queue, 1) for queue in queues], stack)
        watching = asyncio.create_task(watch(supervisor.restart)) if reload else None
        try:
            return await supervisor.run()
        finally:
            if watching is not None:
                watching.cancel()


async def _stop_when_empty(worker: Worker, queues: Sequence[Queue]) -> None:
    """Stop the worker when no job is waiting, held, active or due. Jobs of a paused queue or group do not count.

    Queues are read one after another, and a job that ends between two reads may have enqueued others. So two checks
    in a row must find no job.
    """
    empty = waited = 0
    while empty < 2:
        await asyncio.sleep(LOOKING)
        try:
            left = [await _left(queue) for queue in queues]
        except StoreError:
            continue  # The worker has logged the error, and continues when Redis is back.
        busy = worker.running > 0 or any(left)
        empty = 0 if busy else empty + 1
        waited = waited + 1 if not worker.running and set(left) <= {"", "held"} and any(left) else 0
        if waited == HELD_LOOKS:
            # A key may be closed for hours, and the next start of a cron job would wait beside this one.
            names = ", ".join(queue.name for queue, what in zip(queues, left, strict=True) if what)
            render.complain(f"--burst waits for held jobs of {names}: jobq why --queue QUEUE says what holds them")
    worker.stop()


async def _left(queue: Queue) -> str:
    """What a burst has to wait for: "jobs", only "held" ones, or nothing."""
    stats = await queue.stats()
    if stats.active > 0:
        return "jobs"
    if stats.paused:
        return ""
    if stats.waiting > 0 or stats.next_due_ms == 0:
        return "jobs"
    if not stats.held:
        return ""
    aside = sum(row.held for row in await queue.groups(limit=GROUPS_MAX) if row.paused)
    return "held" if stats.held > aside else ""


async def _work(queues: list[tuple[Queue, int]], settings: Settings, *, supervised: bool, burst: bool) -> int:
    """Run until a signal stops the worker: gracefully at the first, at once at the second. ``burst``: also stop when no
    job is left.

    Under a supervisor SIGTERM is always graceful, and SIGQUIT means at once. systemd sends SIGTERM to every process of
    a service, so it arrives here twice: from the system and from the supervisor.
    """
    port = settings.metrics_port
    if port:
        # Each process of a supervisor has a port of its own.
        port += int(os.environ.get(NUMBER, "1")) - 1
    worker = Worker(*queues, given_up=lambda: os._exit(STUCK), metrics_port=port, metrics_host=settings.metrics_host)

    def gracefully() -> None:
        if not (supervised and worker.state == "stopping"):
            worker.stop()

    def at_once() -> None:
        for _ in range(2):
            worker.stop()

    on_stop_signals(gracefully, at_once)
    async with worker:
        loaded()
        watching = asyncio.create_task(_stop_when_empty(worker, [queue for queue, _ in queues])) if burst else None
        try:
            await worker.run()
        finally:
            if watching is not None:
                watching.cancel()
    # Only a handler's thread can hang here. Its job is fenced, so there is no need to wait for it.
    leave = threading.Timer(LEAVING, os._exit, [0])
    leave.daemon = True
    leave.start()
    return 0


def _weighted(queues: list[Queue], weights: dict[str, int]) -> list[tuple[Queue, int]]:
    names = {queue.name for queue in queues}
    if unknown := sorted(set(weights) - names):
        raise TargetError(
            f"--weight: there is no queue {', '.join(unknown)}; the queues are {', '.join(sorted(names))}"
        )
    return [(queue, weights.get(queue.name, 1)) for queue in queues]
