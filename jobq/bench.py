"""``jobq bench`` measures jobq on this machine in ten seconds. ``python -m benchmarks`` compares it with others.

It uses a queue of its own, which is removed afterwards, on an embedded server with an empty data directory or on the
Redis that ``--redis`` names. Producer and worker share one process, as in an embedded service.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from jobq.cli.session import run as run_on_loop
from jobq.engine.model.ids import new_id
from jobq.engine.model.job import State
from jobq.engine.queue.queue import Queue
from jobq.engine.worker.worker import Worker
from jobq.errors import JobqError

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncGenerator

    from jobq.settings import Settings

PAD = "y" * 72
"""The field that makes a payload 100 bytes of JSON."""
CHUNK = 1000
CONCURRENCY = 100
PICKUPS = 200
PAUSE = 0.01
"""Seconds between two timed jobs, so that the worker is idle before each."""


class BenchOptions(msgspec.Struct, frozen=True):
    """``seconds``: the length of each of the two enqueue measurements. Drain and latency take as long as they need."""

    seconds: float = 2.0
    concurrency: int = CONCURRENCY


class Report(msgspec.Struct, frozen=True):
    """Rates are jobs a second. ``redis_us`` is the Redis CPU time of a job from enqueue to completion."""

    server: str
    enqueue_one: float
    enqueue_bulk: float
    drain: float
    drained: int
    exactly_once: bool
    pickup_p50_ms: float
    pickup_p99_ms: float
    redis_us: float


class Progress(Protocol):
    """A callable that shows the progress of the run, from 0 to 1, and the name of the current step."""

    def __call__(self, done: float, what: str) -> None: ...


class _Bench:
    def __init__(self, queue: Queue, options: BenchOptions, progress: Progress) -> None:
        self.queue = queue
        self.options = options
        self.progress = progress
        self.seen = bytearray()
        self.ran = 0
        self.due = 0
        self.drained = asyncio.Event()
        self.late: list[float] = []
        self.timed_all = asyncio.Event()

        async def noop(n: int, x: str) -> None:
            self.seen[n] += 1
            self.ran += 1
            if self.ran == self.due:
                self.drained.set()

        async def timed(sent: float, x: str) -> None:
            self.late.append(perf_counter() - sent)
            if len(self.late) == PICKUPS:
                self.timed_all.set()

        self.noop = queue.task(noop)
        self.timed = queue.task(timed)

    async def redis_cpu(self) -> float:
        """CPU time of the server in seconds, user and system."""
        text: bytes = await self.queue.store.command(b"INFO", b"cpu")
        facts = dict(line.split(":") for line in text.decode().splitlines() if ":" in line)
        return float(facts["used_cpu_user"]) + float(facts["used_cpu_sys"])

    async def one_by_one(self) -> float:
        """Await each enqueue before the next one."""
        begun, count = perf_counter(), 0
        while (spent := perf_counter() - begun) < self.options.seconds:
            await self.noop.enqueue(n=count, x=PAD)
            count += 1
            if count % 200 == 0:
                self.progress(0.2 * spent / self.options.seconds, "enqueue, one by one")
        await self.queue.remove_all(State.WAITING)
        return count / spent

    async def bulk(self) -> float:
        """Enqueue a thousand jobs per call."""
        begun = perf_counter()
        while (spent := perf_counter() - begun) < self.options.seconds:
            await self.noop.enqueue_many([{"n": n, "x": PAD} for n in range(self.due, self.due + CHUNK)])
            self.due += CHUNK
            self.progress(0.2 + 0.2 * spent / self.options.seconds, "enqueue, bulk")
        return self.due / spent

    async def drain(self) -> float:
        """Run all jobs with one worker."""
        self.seen = bytearray(self.due)
        begun = perf_counter()
        while not self.drained.is_set():
            try:
                await asyncio.wait_for(self.drained.wait(), 0.1)
            except TimeoutError:
                self.progress(0.4 + 0.3 * self.ran / self.due, "drain")
        return self.due / (perf_counter() - begun)

    async def pickups(self) -> tuple[float, float]:
        """Time from the call of enqueue to the start of the handler: p50 and p99, ms."""
        for number in range(PICKUPS):
            await asyncio.sleep(PAUSE)
            await self.timed.enqueue(sent=perf_counter(), x=PAD)
            self.progress(0.7 + 0.3 * number / PICKUPS, "pickup latency")
        await asyncio.wait_for(self.timed_all.wait(), 5)
        ordered = sorted(self.late)
        return ordered[len(ordered) // 2] * 1000, ordered[int(len(ordered) * 0.99)] * 1000


async def run(settings: Settings, options: BenchOptions, progress: Progress) -> Report:
    """Run all measurements.

    :raises JobqError: there is no server, or it cannot be used.
    """
    async with _queue(settings) as queue:
        bench = _Bench(queue, options, progress)
        text: bytes = await queue.store.command(b"INFO", b"server")
        facts = dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
        one = await bench.one_by_one()
        cpu = -await bench.redis_cpu()
        bulk = await bench.bulk()
        async with Worker(queue, concurrency=options.concurrency) as worker:
            worker.start()
            drain = await bench.drain()
            cpu += await bench.redis_cpu()
            p50, p99 = await bench.pickups()
        progress(1.0, "done")
        return Report(
            server=f"Valkey {facts['valkey_version']}"
            if "valkey_version" in facts
            else f"Redis {facts['redis_version']}",
            enqueue_one=one,
            enqueue_bulk=bulk,
            drain=drain,
            drained=bench.due,
            exactly_once=bytes(bench.seen) == b"\1" * bench.due,
            pickup_p50_ms=p50,
            pickup_p99_ms=p99,
            redis_us=cpu * 1e6 / bench.due,
        )


@asynccontextmanager
async def _queue(settings: Settings) -> AsyncGenerator[Queue, None]:
    """A queue of our own, which is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="jobq-bench-") as folder:
        if settings.redis_url is None:
            settings = msgspec.structs.replace(settings, data_dir=str(Path(folder)))
        queue = Queue(f"bench-{new_id()}", settings=settings, prefix=f"{settings.prefix}-bench")
        async with queue:
            try:
                yield queue
            finally:
                await queue.store.command(b"UNLINK", f"{queue.prefix}:queues", *queue.store.keys.values())


def _show(report: Report) -> None:
    rows = [
        ("enqueue, awaited one by one", f"{report.enqueue_one:,.0f} jobs/s"),
        ("enqueue, bulk", f"{report.enqueue_bulk:,.0f} jobs/s"),
        ("drain, one worker", f"{report.drain:,.0f} jobs/s"),
        ("pickup latency, p50", f"{report.pickup_p50_ms:.2f} ms"),
        ("pickup latency, p99", f"{report.pickup_p99_ms:.2f} ms"),
        ("Redis CPU per job, whole life", f"{report.redis_us:.1f} us"),
        ("every job ran exactly once", f"{'yes' if report.exactly_once else 'NO'}, of {report.drained:,}"),
    ]
    title = f"jobq on {report.server}, no-op jobs with 100 bytes"
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(title)
        for name, value in rows:
            print(f"  {name:32}{value:>24}")
        return
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


class _Bar:
    """A progress bar on a terminal if rich is installed, otherwise nothing."""

    def __init__(self) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            try:
                from rich.console import Console
                from rich.progress import Progress as Bar
            except ImportError:
                return
            self._bar = Bar(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("starting", total=1.0)
            self._bar.start()

    def __call__(self, done: float, what: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=what)

    def stop(self) -> None:
        """Remove the bar from the screen."""
        if self._bar is not None:
            self._bar.stop()


def main(args: argparse.Namespace, settings: Settings) -> int:
    """Run all measurements and print the report.

    :raises JobqError: a job was lost or ran twice, or there is no server.
    """
    bar = _Bar()
    try:
        report = run_on_loop(run(settings, BenchOptions(args.seconds, args.concurrency), bar))
    finally:
        bar.stop()
    if args.json:
        print(msgspec.json.encode(report).decode())
    else:
        _show(report)
    if not report.exactly_once:
        raise JobqError("a job was lost, or ran more than once")
    return 0
