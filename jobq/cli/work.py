"""``jobq work``: worker processes under a supervisor, or (in each of them) the worker itself."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

from jobq.cli.session import loaded, on_stop_signals, run
from jobq.cli.supervisor import Supervisor, follow_supervisor
from jobq.cli.target import load_target
from jobq.engine.worker.worker import Worker
from jobq.errors import TargetError
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

    The target is loaded here too, so that one clear line says what is wrong with it before anything starts.
    """
    configure(settings)
    supervised = follow_supervisor(grace=settings.grace + SETTLING)
    queues = _weighted(load_target(args.target), dict(args.weight))
    if supervised or args.processes == 0:
        return run(_work(queues))
    weights = [f"--weight={name}={weight}" for name, weight in args.weight]
    return run(_supervise(command(args.target, weights), args.processes, settings))


def command(target: str, options: Sequence[str] = ()) -> list[str]:
    """What a supervisor runs; the settings are in the environment."""
    return [sys.executable, "-m", "jobq", "work", target, *options]


async def _supervise(words: list[str], processes: int, settings: Settings) -> int:
    supervisor = Supervisor(words, processes, name="worker", grace=settings.grace + SETTLING)
    on_stop_signals(supervisor.stop)
    return await supervisor.run()


async def _work(queues: list[tuple[Queue, int]]) -> int:
    """Run until a signal stops it: gracefully, the second time at once."""
    worker = Worker(*queues, given_up=lambda: os._exit(STUCK))
    on_stop_signals(worker.stop)
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
