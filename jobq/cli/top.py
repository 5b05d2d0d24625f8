"""``jobq top`` shows queues and workers live. With rich each update replaces the last one, otherwise it is appended."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobq.cli import render
from jobq.cli.look import known_workers
from jobq.cli.session import Queues, on_stop_signals, run
from jobq.engine.model.job import State
from jobq.errors import StoreUnavailable
from jobq.printable import printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Generator

    from jobq.engine.model.views import Stats
    from jobq.engine.queue.queue import Queue
    from jobq.settings import Settings

HEAD = (*render.STATS_HEAD[:-1], "DONE/S", "FAILED/S", "")
FAILURES = 5
"""The number of failed jobs that are shown, latest first."""


class Rates:
    """The rate of finished jobs since the last update."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, int, int]] = {}

    def of(self, stats: Stats, now: float) -> tuple[str, str]:
        """Completed and failed jobs per second, or "-" at the first update. ``now``: seconds of a monotonic clock."""
        before = self._last.get(stats.queue)
        self._last[stats.queue] = (now, stats.completed_total, stats.failed_total)
        if before is None or now <= before[0]:
            return ("-", "-")
        passed = now - before[0]
        done, failed = stats.completed_total - before[1], stats.failed_total - before[2]
        return (f"{done / passed:.1f}", f"{failed / passed:.1f}")


def top(args: argparse.Namespace, settings: Settings) -> None:
    """Update every ``--interval`` seconds until q, Ctrl-C or the end of the terminal."""

    async def main() -> None:
        quit_ = asyncio.Event()
        on_stop_signals(quit_.set)
        rates = Rates()
        async with Queues(settings) as opened:
            chosen = await opened.all(args.queue)

            async def queues() -> list[Queue]:
                return chosen if args.queue else await opened.all(None)  # New queues may appear.

            with _keys(quit_), _display() as draw:
                while not quit_.is_set():
                    draw(await _look(queues, rates))
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(quit_.wait(), args.interval)

    run(main())


async def _look(which: Callable[[], Awaitable[list[Queue]]], rates: Rates) -> list[str]:
    """The lines of one update."""
    head = f"jobq top  {time.strftime('%H:%M:%S')}  q quits"
    try:
        queues = await which()
        found = [await queue.stats() for queue in queues]
        workers = await known_workers(queues)
        failures = [row for queue in queues for row in (await queue.briefs(State.FAILED, limit=FAILURES)).jobs]
    except StoreUnavailable as error:
        return [head, "", f"{error}; trying again"]
    now = time.monotonic()
    rows = [(*(row := render.stats_row(one))[:-1], *rates.of(one, now), row[-1]) for one in found]
    lines = [head, "", *render.table(HEAD, rows)]
    if workers:
        lines += ["", *render.table(render.WORKERS_HEAD, [render.worker_line(row) for row in workers])]
    if failures:
        latest = sorted(failures, key=lambda row: -(row.finished_at or 0))[:FAILURES]
        reasons = [
            (render.ago(row.finished_at), f"{row.queue}:{row.id}", row.type, _reason(row.error)) for row in latest
        ]
        lines += ["", *render.table(("FAILED", "ID", "TYPE", "WHY"), reasons)]
    return lines


def _reason(error: render.AttemptError | None) -> str:
    return f"{error.type}: {' '.join(error.message.split())}" if error else ""


@contextmanager
def _display() -> Generator[Callable[[list[str]], None], None, None]:
    """The function that draws: on the terminal's alternate screen with rich, else as plain lines."""
    try:
        from rich.live import Live
        from rich.text import Text
    except ImportError:
        yield lambda lines: render.say(*lines, "")
        return
    if not sys.stdout.isatty():
        yield lambda lines: render.say(*lines, "")
        return

    def fitted(lines: list[str]) -> Text:
        fitting = lines[: shutil.get_terminal_size().lines - 1]
        return Text("\n".join(map(printable, fitting)), no_wrap=True, overflow="ellipsis")

    with Live(screen=True, auto_refresh=False) as live:
        yield lambda lines: live.update(fitted(lines), refresh=True)


@contextmanager
def _keys(quit_: asyncio.Event) -> Generator[None, None, None]:
    """Quit when q is pressed, without Enter, if stdin is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    loop = asyncio.get_running_loop()

    def pressed() -> None:
        # An empty read means that the terminal is gone.
        if (key := sys.stdin.read(1)) in ("q", "Q", ""):
            quit_.set()
        if not key:
            loop.remove_reader(stdin)

    tty.setcbreak(stdin)
    loop.add_reader(stdin, pressed)
    try:
        yield
    finally:
        loop.remove_reader(stdin)
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)
