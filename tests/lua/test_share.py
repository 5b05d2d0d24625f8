"""Shares of the queue's own rule: all partitions together never exceed it, whoever balances them and when."""

from __future__ import annotations

import random
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from table import WAKE, Case, held, table, waiting

from jobq.engine.model.limits import Rule, parse_rule
from jobq.engine.store import Store
from jobq.engine.worker.balancer import RIGHT_MS, Balancer
from jobq.errors import StoreError

if TYPE_CHECKING:
    from table import Bench

N = 4


@table(
    [
        Case(
            "the first worker gets the right",
            {},
            lambda s: s.balance("w", 5000),
            {"meta": {"balancer": "1 6000 w"}},
            1,
        ),
        Case(
            "it keeps it",
            {"meta": {"balancer": "1 5999 w"}},
            lambda s: s.balance("w", 5000),
            {"meta": {"balancer": "1 6000 w"}},
            1,
        ),
        Case("another one is refused", {"meta": {"balancer": "1 1001 w"}}, lambda s: s.balance("v", 5000), {}, 0),
        Case(
            "another one gets it later",
            {"meta": {"balancer": "1 1000 w"}},
            lambda s: s.balance("v", 5000),
            {"meta": {"balancer": "2 6000 v"}},
            2,
        ),
        Case(
            "a right that was lost comes back with a later fence",
            {"meta": {"balancer": "1 1000 w"}},
            lambda s: s.balance("w", 5000),
            {"meta": {"balancer": "2 6000 w"}},
            2,
        ),
        Case(
            "a wrong clock does not keep it",
            {"meta": {"balancer": "1 99999999 w"}},
            lambda s: s.balance("v", 5000),
            {"meta": {"balancer": "2 6000 v"}},
            2,
        ),
        Case(
            "a damaged right is free",
            {"meta": {"balancer": "x"}},
            lambda s: s.balance("v", 5000),
            {"meta": {"balancer": "1 6000 v"}},
            1,
        ),
    ]
)
async def test_balance(bench: Bench, case: Case):
    await bench.check(case)


@table(
    [
        Case(
            "a look",
            waiting("a", "b") | {"rules": {"queue": "5\n9"}, "meta": {"rule": "2", "whole": "5"}},
            lambda s: s.share(3),
            {"meta": {"rule": "2", "whole": "5", "balanced": "3"}},
            [0, 2, "2", "5", "5"],
        ),
        Case(
            "an earlier worker is refused",
            {"meta": {"rule": "2", "whole": "5", "balanced": "4"}},
            lambda s: s.share(3, "5", "5"),
            {},
            [],
        ),
        Case(
            "running jobs count with their slots",
            held("a") | {"rules": {"queue": "\n9"}, "admitted": {"queue\0a\0" + "2": 0}, "weights": {"a": "2"}},
            lambda s: s.share(1, "4", "9"),
            WAKE | {"meta": {"rule": "4", "whole": "9", "limited": "1", "balanced": "1"}},
            [2, 0, "4", "9", "9"],
        ),
        Case(
            "a rule that was removed meanwhile leaves no share behind",
            {"meta": {"rule": "2", "whole": "5", "balanced": "1"}},
            lambda s: s.share(1, "3", "5"),
            WAKE | {"meta": {"balanced": "1"}},
            [0, 0, "", "", ""],
        ),
        Case(
            "a rule that was changed meanwhile keeps its shares until the next look",
            {"rules": {"queue": "4\n"}, "meta": {"rule": "2", "whole": "5", "balanced": "1"}},
            lambda s: s.share(1, "3", "5"),
            {},
            [0, 0, "2", "5", "4"],
        ),
        Case(
            "a band that is taken away gives its tokens back",
            {
                "rules": {"queue": "- 10/1000/5\n"},
                "meta": {"rule": "- 6/1000/3", "whole": "- 10/1000/5"},
                "spent": {"queue\0" + "1": 1_000 + 1000 / 6},
            },
            lambda s: s.share(1, "0", "- 10/1000/5"),
            WAKE | {"spent": {}, "meta": {"rule": "0", "whole": "- 10/1000/5", "limited": "1", "balanced": "1"}},
            [0, 0, "0", "- 10/1000/5", "- 10/1000/5", "2.000000"],
        ),
        Case(
            "a call that is repeated grants no tokens again",
            {
                "rules": {"queue": "- 10/1000/5\n"},
                "meta": {"rule": "- 6/1000/3", "whole": "- 10/1000/5"},
                "spent": {"queue\0" + "1": 1333.3333},
            },
            lambda s: s.share(1, "- 6/1000/3", "- 10/1000/5", [1]),
            {"meta": {"rule": "- 6/1000/3", "whole": "- 10/1000/5", "balanced": "1"}},
            [0, 0, "- 6/1000/3", "- 10/1000/5", "- 10/1000/5"],
        ),
        Case(
            "a band has only the tokens that it is given",
            {"rules": {"queue": "- 10/1000/5\n"}, "meta": {"rule": "0", "whole": "- 10/1000/5"}},
            lambda s: s.share(1, "- 6/1000/3", "- 10/1000/5", [1]),
            WAKE
            | {
                "spent": {"queue\0" + "1": 1333.3333},
                "meta": {"rule": "- 6/1000/3", "whole": "- 10/1000/5", "limited": "1", "balanced": "1"},
            },
            [0, 0, "- 6/1000/3", "- 10/1000/5", "- 10/1000/5", "0.000000"],
        ),
    ]
)
async def test_share(bench: Bench, case: Case):
    await bench.check(case)


class World:
    """A queue of four partitions on a clock of its own, and two workers that balance it."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.draw = random.Random(seed)
        self.parts = [
            Store(bench.store.connection, "test", clock=lambda: str(bench.now), partition=number) for number in range(N)
        ]
        queue: Any = SimpleNamespace(name="test", store=SimpleNamespace(parts=self.parts))
        self.balancers = [Balancer(queue, worker) for worker in ("ann", "bob")]
        self.running: list[dict[str, Any]] = [{} for _ in self.parts]
        self.started: list[int] = []
        self.count = 0

    async def rule(self, text: str) -> None:
        for part in self.parts:
            await part.do(part.rule("set", "queue", text))

    async def enqueue(self, partition: int, jobs: int) -> None:
        part = self.parts[partition]
        await part.do(part.enqueue([w for n in range(jobs) for w in (f"j{self.count + n}", "{}", "")]))
        self.count += jobs

    async def claim(self, partition: int, want: int) -> int:
        part = self.parts[partition]
        part.limited = True
        self.count += 1
        claimed = await part.do(part.claim(want, 10**9, "w", f"w:{self.count}", 1, repeated=False))
        if claimed is None:
            return 0
        self.running[partition] |= dict.fromkeys((job_id.decode() for job_id in claimed.ids), claimed.token)
        self.started += [self.bench.now] * len(claimed.ids)
        return len(claimed.ids)

    async def complete(self, partition: int) -> None:
        part = self.parts[partition]
        job_id, token = self.running[partition].popitem()
        part.limited = True
        await part.do(part.complete([job_id, token, "r", ""], []))

    async def complete_all(self, partition: int) -> None:
        flat: list[Any] = [
            word for job_id, token in self.running[partition].items() for word in (job_id, token, "r", "")
        ]
        self.running[partition] = {}
        if flat:
            await self.parts[partition].do(self.parts[partition].complete(flat, []))

    @property
    def used(self) -> int:
        return sum(map(len, self.running))

    def check(self, rule: Rule) -> None:
        if rule.concurrency is not None:
            assert self.used <= rule.concurrency
        for band in rule.rate:
            last = len(self.started)
            for first in range(max(0, last - 200), last):
                bound = band.burst + band.count * (self.started[-1] - self.started[first]) / band.per
                assert last - first <= bound + 0.001, "more starts than the rate allows"


async def ready(world: World, text: str) -> Rule:
    await world.rule(text)
    rule = parse_rule(text)
    assert rule is not None
    return rule


@pytest.mark.parametrize("text", ["7", "1", "- 50/1000/6", "- 20/1000/1", "5 40/1000/10 200/10000/30"])
@pytest.mark.parametrize("seed", range(3))
async def test_random_moves_never_exceed_the_rule(bench: Bench, seed: int, text: str):
    world = World(bench, seed)
    rule = await ready(world, text)
    draw = world.draw
    for _ in range(120):
        what = draw.random()
        partition = draw.choice((0, 1, 1, 1, 2, 3))
        if what < 0.2:
            await world.enqueue(partition, draw.choice((1, 3, 8)))
        elif what < 0.55:
            await world.claim(partition, draw.choice((1, 3, 10)))
        elif what < 0.75 and world.running[partition]:
            await world.complete(partition)
        elif what < 0.9:
            await balance(world, cut=draw.choice((None, None, None, 0, 1, 2, 5, 7)))
        else:
            bench.now += draw.choice((1, 10, 30, 200, RIGHT_MS + 1))
        world.check(rule)
    for _ in range(500):
        # Jobs end, time passes: every job runs in the end.
        await balance(world, cut=None)
        for partition in range(N):
            await world.claim(partition, 10)
            world.check(rule)
            await world.complete_all(partition)
        bench.now += 100
        if not any([await part.command(b"ZCARD", part.keys["waiting"]) for part in world.parts]):
            return
    raise AssertionError("jobs wait for ever")


async def balance(world: World, cut: int | None) -> None:
    """One of the workers balances. With ``cut``, it dies after so many calls of share."""
    worker = world.draw.choice(world.balancers)
    calls = 0
    made = Store.do

    async def dying(self: Store, call: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if cut is not None and calls > cut + 1:
            raise StoreError("the worker died")
        return await made(self, call, **named)  # pyright: ignore

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "do", dying)
        if cut is None:
            await worker.balance()
        else:
            with suppress(StoreError):
                await worker.balance()


@pytest.mark.parametrize("text", ["100", "- 1000/1000/100"])
async def test_nine_tenths_are_used_if_all_jobs_are_in_one_partition(bench: Bench, text: str):
    """Jobs of 100 ms, shares that are balanced each second, and another busy partition every five seconds."""
    world = World(bench, 1)
    rule = await ready(world, text)
    busy = 0
    for second in range(20):
        if second % 5 == 0:
            busy = (busy + 1) % N
        await world.enqueue(busy, 1100)
        await world.balancers[0].balance()
        for _ in range(10):
            for partition in range(N):
                await world.claim(partition, 125)
                world.check(rule)
            bench.now += 100
            for partition in range(N):
                await world.complete_all(partition)
    assert len(world.started) >= 0.9 * 1000 * 20
