"""Timers of workers. The deadlines of runs share one; its loop is a fake whose clock the tests advance."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import jobq
from jobq.engine.worker.timers import BETWEEN_TIMEOUTS, Deadlines, DueTimer


class Handle:
    def __init__(self, loop: Loop, when: float, call: Any) -> None:
        self.loop, self.when, self.call = loop, when, call

    def cancel(self) -> None:
        self.loop.timers.remove(self)


class Loop:
    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Handle] = []
        self.made = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Any, *, context: Any) -> Handle:
        self.made += 1
        self.timers.append(Handle(self, when, call))
        return self.timers[-1]

    def go(self, to: float) -> None:
        """Let time pass. Timers are called when they are due, and so are timers that these set."""
        while due := [timer for timer in self.timers if timer.when <= to]:
            first = min(due, key=lambda timer: timer.when)
            self.timers.remove(first)
            self.now = max(self.now, first.when)
            first.call()
        self.now = to


class Run:
    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.stopped: list[tuple[str, float]] = []

    def stop(self, reason: str) -> None:
        self.stopped.append((reason, self.loop.now))


def deadlines(loop: Any) -> Deadlines:
    return Deadlines(loop)


def test_each_run_is_stopped_at_its_own_deadline():
    loop = Loop()
    runs = {seconds: Run(loop) for seconds in (30.0, 5.0, 60.0)}
    timers = deadlines(loop)
    for seconds, run in runs.items():
        timers.add(run, seconds)
    loop.go(200.0)
    for seconds, run in runs.items():
        assert run.stopped == [("timeout", 100.0 + seconds)]
    assert not loop.timers


def test_runs_that_end_in_time_make_no_timers_of_their_own():
    loop = Loop()
    timers = deadlines(loop)
    for n in range(1000):
        run = Run(loop)
        timers.add(run, 30)
        loop.go(100 + n / 1000)
        timers.remove(run)
        assert not run.stopped
    assert loop.made == 1
    late = Run(loop)
    timers.add(late, 30)
    loop.go(200.0)
    assert len(late.stopped) == 1
    assert not loop.timers


def test_close_deadlines_are_checked_together():
    """Each check reads all runs. A thousand checks of a thousand runs would block the loop."""
    loop = Loop()
    timers = deadlines(loop)
    runs = [Run(loop) for _ in range(1000)]
    for n, run in enumerate(runs):
        timers.add(run, 1 + n / 10_000)
    loop.go(102.0)
    assert loop.made <= 0.1 / BETWEEN_TIMEOUTS + 3
    for n, run in enumerate(runs):
        ((_, moment),) = run.stopped
        assert 0 <= moment - (101 + n / 10_000) <= BETWEEN_TIMEOUTS + 1e-9


def test_nothing_is_stopped_after_the_end_of_the_worker():
    loop = Loop()
    timers = deadlines(loop)
    run = Run(loop)
    timers.add(run, 1)
    timers.close()
    loop.go(200.0)
    assert not run.stopped


@pytest.mark.parametrize("loops", ["asyncio", "uvloop"])
def test_a_job_that_is_due_at_once_is_heard_of_twice(loops: str):
    """uvloop gives a timer that is due within half a ms no time. A worker that asked for it failed."""
    make = asyncio.new_event_loop if loops == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    looks: list[float] = []

    async def main() -> None:
        timer = DueTimer(asyncio.get_running_loop(), lambda: looks.append(1))
        timer.not_later(0)
        timer.not_later(0)
        timer.not_later(1000)
        await asyncio.sleep(0.01)

    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(main())
    assert looks == [1]


def test_no_timer_is_asked_for_its_time():
    """Remember the time beside the timer: see above."""
    assert [str(path) for path in Path(jobq.__file__).parent.rglob("*.py") if ".when()" in path.read_text()] == []
