"""``jobq work``: worker processes under a supervisor, or (in each of them) the worker itself."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from jobq.cli import render
from jobq.cli.session import loaded, on_stop_signals, run
from jobq.cli.supervisor import REFUSED, Supervisor, follow_supervisor
from jobq.cli.target import load_target
from jobq.engine.worker.worker import Worker
from jobq.errors import NoServer, StoreRefused, TargetError
from jobq.logging import configure

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from jobq.engine.queue.queue import Queue
    from jobq.settings import Settings

SETTLING = 10.0
"""Seconds that a worker may need after its grace: last settles, its children, its connections."""
LEAVING = 1.0
"""Seconds for the interpreter to end by itself; it waits for threads, which nothing can stop."""
STUCK = 70
"""Exit code of a worker whose event loop is given up."""


def work(args: argparse.Namespace, settings: Settings) -> int:
    """Supervise ``--processes`` workers; 0: be the worker.

    The supervisor loads the target and opens its queues, too: what is wrong with them is said in one line, before
    anything starts.
    """
    configure(settings)
    supervised = follow_supervisor(grace=settings.grace + SETTLING)
    queues = _weighted(load_target(args.target), dict(args.weight))
    if supervised:
        try:
            return run(_work(queues, supervised=True))
        except (StoreRefused, NoServer) as error:
            render.complain(str(error))
            return REFUSED
    if args.processes == 0:
        return run(_work(queues, supervised=False))
    weights = [f"--weight={name}={weight}" for name, weight in args.weight]
    words = command(args.target, weights)
    return run(_supervise(words, args.processes, settings, [queue for queue, _ in queues]))


def command(target: str, options: Sequence[str] = ()) -> list[str]:
    """What a supervisor runs; the settings are in the environment."""
    return [sys.executable, "-m", "jobq", "work", target, *options]


async def _supervise(words: list[str], processes: int, settings: Settings, queues: list[Queue]) -> int:
    supervisor = Supervisor(words, processes, name="worker", grace=settings.grace + SETTLING)
    on_stop_signals(supervisor.stop)
    async with AsyncExitStack() as stack:
        for queue in queues:
            # open for as long as the workers run, so that an embedded server does not end between them
            await stack.enter_async_context(queue)
        return await supervisor.run()


async def _work(queues: list[tuple[Queue, int]], *, supervised: bool) -> int:
    """Run until a signal stops it: gracefully, the second time at once.

    Under a supervisor SIGTERM is always graceful, and SIGQUIT means at once. systemd sends SIGTERM to every process of
    a service, so that it arrives here twice, from the system and from the supervisor.
    """
    worker = Worker(*queues, given_up=lambda: os._exit(STUCK))

    def gracefully() -> None:
        if not (supervised and worker.state == "stopping"):
            worker.stop()

    def at_once() -> None:
        for _ in range(2):
            worker.stop()

    on_stop_signals(gracefully, at_once)
    async with worker:
        loaded()
        await worker.run()
    # what now hangs is a handler's thread: fenced off, and nobody's to wait for
    leave = threading.Timer(LEAVING, os._exit, [0])
    leave.daemon = True
    leave.start()
    return 0


def _weighted(queues: list[Queue], weights: dict[str, int]) -> list[tuple[Queue, int]]:
    names = {queue.name for queue in queues}
    if unknown := sorted(set(weights) - names):
        raise TargetError(f"--weight: no queue {', '.join(unknown)}; there are {', '.join(sorted(names))}")
    return [(queue, weights.get(queue.name, 1)) for queue in queues]
