"""How many workers a queue needs: the formula, and a simulated autoscaler around it."""

from __future__ import annotations

import random
from itertools import pairwise
from math import inf
from typing import Any

import pytest

from jobq.engine.model.scale import Demand, Load, read_demand, replicas

SLOTS = 10


def needed(
    backlog: int = 0,
    *,
    active: int = 0,
    arrivals: float = 0.0,
    ended: float = 0.0,
    mean: float | None = 1.0,
    workers: int = 0,
    limited: bool = False,
    most_active: float = inf,
    target: float = 60.0,
    least: int = 0,
    most: int = 100,
) -> int:
    demand = Demand(backlog, active, 0, most_active, limited)
    return replicas(
        demand, Load(arrivals, ended, mean), workers=workers, slots=SLOTS, target=target, least=least, most=most
    )


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ({}, 0),
        ({"backlog": 1}, 1),
        ({"backlog": 1, "mean": None}, 1),
        ({"backlog": 10_000, "mean": None}, 1),
        ({"backlog": 10_000, "mean": None, "workers": 3}, 3),
        ({"arrivals": 80.0}, 10),
        ({"arrivals": 80.0, "backlog": 4800}, 20),
        ({"arrivals": 80.0, "backlog": 4800, "target": 600.0}, 11),
        ({"arrivals": 80.0, "most": 5}, 5),
        ({"least": 2}, 2),
        ({"active": 35, "workers": 5}, 4),
        ({"active": 35, "workers": 2}, 2),
        ({"arrivals": 80.0, "workers": 11}, 11),
        ({"arrivals": 80.0, "workers": 20}, 12),
        ({"arrivals": 800.0, "ended": 8.0, "limited": True}, 1),
        ({"arrivals": 800.0, "most_active": 16}, 2),
    ],
)
def test_replicas(given: dict[str, Any], number: int) -> None:
    assert needed(**given) == number


def reply(
    waiting: int = 0,
    due: int = 0,
    active: int = 0,
    held: int = 0,
    lines: tuple[Any, ...] = (),
    keys: tuple[Any, ...] = (),
    stopped: bytes | None = None,
) -> list[Any]:
    flat = [word for key in (*keys, (b"queue", b"", active, 0)) for word in key]
    if any(key[0] == b"queue" for key in keys):
        flat = [word for key in keys for word in key]
    return [0, waiting, due, active, held, stopped, [word for line in lines for word in line], flat]


@pytest.mark.parametrize(
    ("given", "backlog", "held"),
    [
        ({"waiting": 3, "due": 2}, 5, 0),
        ({"held": 50, "lines": ((b"@a", 30), (b"@b", 20))}, 50, 0),
        ({"held": 50, "lines": ((b"@a", 30),)}, 30, 20),
        ({"held": 50, "lines": ((b"r:x", 50),), "keys": ((b"r:x", b"5", 2, 0),)}, 3, 47),
        ({"held": 50, "lines": ((b"r:x", 50),), "keys": ((b"r:x", b"5", 9, 0),)}, 0, 50),
        ({"held": 50, "lines": ((b"r:x", 50),), "keys": ((b"r:x", b"- 6/60000/4", 0, 0),)}, 10, 40),
        ({"held": 50, "lines": ((b"r:x", 50),), "keys": ((b"r:x", b"- 6/60000/4/tokens", 0, 0),)}, 50, 0),
        ({"held": 50, "lines": ((b"r:x", 50),), "keys": ((b"r:x", b"99", 0, 1),)}, 0, 50),
        ({"held": 50, "lines": ((b"@a\nr", 20), (b"@b\nr", 30)), "keys": ((b"r", b"25", 0, 0),)}, 25, 25),
        ({"waiting": 9, "keys": ((b"queue", b"5", 2, 0),)}, 3, 6),
        ({"waiting": 9, "stopped": b"1"}, 0, 9),
    ],
)
def test_jobs_that_a_limit_holds_ask_for_no_worker(given: dict[str, Any], backlog: int, held: int) -> None:
    demand = read_demand(reply(**given), 60.0)
    assert (demand.backlog, demand.held) == (backlog, held)


class Simulation:
    """A queue, its workers, and an autoscaler that asks every 15 s. Time goes in seconds."""

    def __init__(self, seed: int, mean: float) -> None:
        self.draw = random.Random(seed)
        self.mean = mean
        self.workers = 0
        self.backlog = 0.0
        self.active = 0.0
        self.arrived: list[float] = []
        self.known = False
        self.history: list[int] = []

    def second(self, rate: float) -> None:
        came = self.draw.gauss(rate, rate**0.5 / 4) if rate else 0.0
        self.arrived.append(max(0.0, came))
        self.backlog += self.arrived[-1]
        room = self.workers * SLOTS - self.active
        started = min(room, self.backlog)
        self.backlog -= max(0.0, started)
        self.active += max(0.0, started)
        ended = self.active / self.mean if self.mean > 1 else self.active
        self.active -= ended
        self.known |= ended > 0

    def ask(self) -> None:
        recent = self.arrived[-300:]
        self.workers = needed(
            int(self.backlog),
            active=round(self.active),
            arrivals=sum(recent) / max(1, len(recent)),
            mean=self.mean if self.known else None,
            workers=self.workers,
        )
        self.history.append(self.workers)

    def run(self, seconds: int, rate: float) -> list[int]:
        first = len(self.history)
        for second in range(seconds):
            self.second(rate)
            if second % 15 == 14:
                self.ask()
        return self.history[first:]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("rate", [3.0, 40.0, 77.0])
def test_a_scaling_loop_settles_and_goes_to_zero(seed: int, rate: float) -> None:
    loop = Simulation(seed, mean=2.0)
    assert loop.run(60, 0) == [0] * 4, "nothing to do"
    loop.run(900, rate)
    settled = loop.run(1800, rate)
    assert len(set(settled)) <= 2, "it does not oscillate"
    turns = [after - before for before, after in pairwise(settled) if after != before]
    assert len(turns) <= 1, "it does not go up and down"
    assert loop.backlog < rate, "the jobs are done as they arrive"
    assert loop.workers * SLOTS >= rate * loop.mean, "there are slots for all"
    assert loop.workers * SLOTS <= rate * loop.mean / 0.7 + SLOTS
    peak = max(loop.run(300, rate * 4))
    assert peak > settled[-1], "a peak gets workers"
    ends = loop.run(900, 0)
    assert ends[-1] == 0
    assert ends == sorted(ends, reverse=True), "it goes down without going up again"
