"""Shared code of all Python drivers. A driver is a program with two commands:

``work``: print "ready", wait for a line on stdin, run jobs until stdin closes. Each job marks its number in a shared
file, so that the harness can watch the drain and check that every job ran exactly once.

``produce``: print "ready", wait for a line, enqueue, print one line of JSON: {"seconds": ...}.

A driver subclasses ``Peer`` and calls ``main``. Nothing here needs more than the standard library. uvloop is used if
it is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import inspect
import json
import mmap
import os
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

PAD = "y" * 72
"""Makes a payload 100 bytes of JSON."""
TALLY = "BENCHMARK_TALLY"
LATENCIES = "BENCHMARK_LATENCIES"

_seen: Any = bytearray(1)
_late: list[float] = []


def ran(n: int) -> None:
    """Called by the handler of the no-op job: count one run of job number ``n``."""
    _seen[n] += 1


def timed(due: float) -> None:
    """Called by the handler of the timed job. ``due``: unix seconds when it could have started."""
    _late.append(time.time() - due)


def open_tally() -> None:
    """Map the file of the harness. The environment names it, so that child processes find it too."""
    global _seen  # noqa: PLW0603 - a handler is a plain function
    path = os.environ.get(TALLY)
    if path:
        with Path(path).open("r+b") as file:
            _seen = mmap.mmap(file.fileno(), 0)


def dump_latencies() -> None:
    """Write the times that ``timed`` recorded, in seconds, as JSON."""
    path = os.environ.get(LATENCIES)
    if path:
        Path(path).write_text(json.dumps(_late))


async def _wait(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def _line() -> str:
    return await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def go() -> None:
    """Report that the driver is ready, and wait for the harness's word."""
    print("ready", flush=True)
    await _line()


class Peer:
    """One queue library. Methods may be plain or async; ``delay`` is seconds."""

    bulk = True
    """Whether there is a call that enqueues many jobs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.url: str = options.redis
        self.concurrency: int = options.concurrency
        self.options = options

    def open(self) -> Any:
        """Prepare to produce."""

    def close(self) -> Any:
        """Done producing."""

    def enqueue(self, n: int) -> Any:
        """The no-op job number ``n``, with ``PAD``."""
        raise NotImplementedError

    def enqueue_many(self, numbers: range) -> Any:
        """The no-op jobs of these numbers in one call."""
        raise NotImplementedError

    def enqueue_timed(self, due: float, delay: float) -> Any:
        """The timed job, to run at once or after ``delay``."""
        raise NotImplementedError

    async def produce(self) -> dict[str, float]:
        """Enqueue as the options say. Returns the measured values."""
        how, jobs, chunk = self.options.how, self.options.jobs, self.options.chunk
        await _wait(self.open())
        await go()
        begun = time.perf_counter()
        if how == "one":
            for n in range(jobs):
                await _wait(self.enqueue(n))
        elif how == "gathered":
            for first in range(0, jobs, chunk):
                calls: list[Awaitable[Any]] = [self.enqueue(n) for n in range(first, min(first + chunk, jobs))]
                await asyncio.gather(*calls)
        elif how == "bulk":
            for first in range(0, jobs, chunk):
                await _wait(self.enqueue_many(range(first, min(first + chunk, jobs))))
        elif how == "paced":
            # The worker is idle and runs one job at a time, so every pickup starts from idle.
            for _ in range(jobs):
                await _wait(self.enqueue_timed(time.time(), 0))
                await asyncio.sleep(self.options.pause)
        else:  # Delayed jobs are due one after the other, and all are enqueued before the first is due.
            first = time.time() + self.options.delay
            for n in range(jobs):
                due = first + n * self.options.pause
                await _wait(self.enqueue_timed(due, due - time.time()))
        seconds = time.perf_counter() - begun
        await _wait(self.close())
        return {"seconds": seconds}

    async def work(self, stop: asyncio.Event) -> None:
        """Run jobs until ``stop`` is set. Called after the harness has said go."""
        raise NotImplementedError


async def work(peer: Peer) -> None:
    """Run jobs until the harness closes stdin."""
    open_tally()
    await go()
    stop = asyncio.Event()

    async def watch() -> None:
        await _line()
        stop.set()

    watching = asyncio.create_task(watch())
    await peer.work(stop)
    dump_latencies()
    watching.cancel()


async def until(stop: asyncio.Event, running: Awaitable[Any]) -> None:
    """Run a worker that has no stop of its own: cancel it when ``stop`` is set."""
    task = asyncio.ensure_future(running)
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
        raise RuntimeError("the worker ended before it was stopped")
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.shield(asyncio.gather(task, return_exceptions=True)), 10)


def parser() -> argparse.ArgumentParser:
    """The arguments of a driver."""
    words = argparse.ArgumentParser()
    words.add_argument("verb", choices=["work", "produce"])
    words.add_argument("--redis", required=True, help="URL")
    words.add_argument("--jobs", type=int, default=1)
    words.add_argument("--concurrency", type=int, default=100)
    words.add_argument("--how", default="one", choices=["one", "gathered", "bulk", "paced", "delayed", "naps"])
    words.add_argument("--pause", type=float, default=0.005, help="seconds between paced jobs, or due times")
    words.add_argument("--delay", type=float, default=1.0, help="seconds before the first delayed job is due")
    words.add_argument("--chunk", type=int, default=1000, help="jobs per bulk call, or gathered at a time")
    words.add_argument("--keep", type=int, default=0, help="finished jobs to keep; 0: the library's default")
    words.add_argument("--settings", default="", help="of one driver alone")
    return words


def runner() -> Any:
    """asyncio.Runner on uvloop, if it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def main(peer_type: type[Peer]) -> None:
    """A driver's main program."""
    options = parser().parse_args()
    with runner() as loop:
        if options.verb == "work":

            async def working() -> None:
                await work(peer_type(options))

            loop.run(working())
            # Some libraries leave threads or loops behind. The measurement is complete, so end at once.
            sys.stdout.flush()
            os._exit(0)

        async def producing() -> dict[str, float]:
            return await peer_type(options).produce()

        print(json.dumps(loop.run(producing())), flush=True)
