"""A chaos run: faults drawn from a seed are applied to a working system, and afterwards the promises are checked."""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import time
from typing import Final

import msgspec

from jobq import Queue, State
from jobq.engine.model.ids import partition_of
from tests.chaos.faults import OTHER_FAULTS, PARTITION_FAULTS, WORKERS_FAULTS, Fault
from tests.chaos.invariants import broken
from tests.chaos.world import ALL_AT_ONCE, ENDED_BY_LIMITS, ENDS, GRACE, LATE, LEASE, OVER, World

SETTLE: Final = 2 * LEASE + LEASE / 3 + 0.5 + 5.0 + 3 * LEASE + 5.0
"""Seconds after the last fault until everything must have ended: two leases (a recovery whose own reply was lost takes
a second one), the grace after an outage, a sweep, the check for a lost wake token, the longest handler, and the
backlog."""


class Report(msgspec.Struct):
    """The results of a run. ``allowed``: jobs that ran when faults hit, which is the bound of ``extra``."""

    seed: int
    fsync: str
    plan: list[str] = []
    acknowledged: int = 0
    completed: int = 0
    failed: int = 0
    late: int = 0
    over: int = 0
    extra: int = 0
    allowed: int = 0
    refused_effects: int = 0
    settled_in: float = 0.0
    refusals: dict[str, int] = {}
    wrong: list[str] = []
    log: str = ""

    def text(self) -> str:
        """The report as text. The plan comes last."""
        lines = [
            f"seed {self.seed}, appendfsync {self.fsync}: {self.acknowledged} acknowledged, {self.completed} completed,"
            f" {self.failed} failed as planned ({self.late} of them late, {self.over} over a limit),"
            f" {self.extra} extra starts of {self.allowed} in flight at faults,"
            f" {self.refused_effects} late effects refused, all ended {self.settled_in:.1f} s after the last fault",
            f"producers were told: {self.refusals}",
        ]
        if self.wrong:
            lines += ["WRONG:", *(f"  {line}" for line in self.wrong), f"workers' log: {self.log}"]
        return "\n".join([*lines, "plan:", *(f"  {line}" for line in self.plan)])


def draw_plan(chance: random.Random, partitions: int = 1) -> list[Fault]:
    """Every fault once, in random order. Faults of workers are as frequent as all others together."""
    plan = [*OTHER_FAULTS, *WORKERS_FAULTS, *WORKERS_FAULTS, *(PARTITION_FAULTS if partitions > 1 else ())]
    chance.shuffle(plan)
    return plan


async def run(seed: int, minutes: float, *, partitions: int = 1, say: bool = False) -> Report:
    """Run once. Faults are applied for ``minutes``. ``say`` prints each fault."""
    chance = random.Random(seed)
    report = Report(seed, fsync=chance.choice(["everysec", "always"]))
    async with World(random.Random(seed + 1), report.fsync, partitions) as world:
        report.log = str(world.log)
        producers = [
            asyncio.create_task(world.produce(0.05)),
            asyncio.create_task(world.produce(0.05)),
            asyncio.create_task(world.produce_rest(0.1)),
        ]
        watching = asyncio.create_task(world.watch_rule())
        began = time.monotonic()
        plan: list[Fault] = []
        await asyncio.sleep(2.0)
        while time.monotonic() - began < minutes * 60 and not any(producer.done() for producer in producers):
            plan = plan or draw_plan(chance, partitions)
            together = [plan.pop()]
            if together[0] in OTHER_FAULTS and chance.random() < 0.25:
                together.append(chance.choice(WORKERS_FAULTS))
            line = f"{time.monotonic() - began:6.1f} s  {' + '.join(fault.__name__ for fault in together)}"
            report.plan.append(line)
            if say:
                print(line, file=sys.stderr, flush=True)
            before = sum(world.sink.extra_starts().values())
            try:
                budgets = await asyncio.gather(*(fault(world) for fault in together))
            except Exception as error:  # noqa: BLE001 - the report says what failed and when
                report.wrong.append(f"{line}: {type(error).__name__}: {error}")
                break
            report.allowed += sum(budgets)
            await asyncio.sleep(chance.uniform(0.3, 1.5))
            report.plan[-1] += f" ({sum(budgets)} in flight, {sum(world.sink.extra_starts().values()) - before} extra)"
        last = time.monotonic()
        world.producing = False
        until = int((await world.command("TIME"))[0])
        for outcome in await asyncio.gather(*producers, *world.kills, return_exceptions=True):
            if isinstance(outcome, BaseException):
                report.wrong.append(f"a producer failed: {type(outcome).__name__}: {outcome}")
        await check_slots(world, report, until)
        await settle(world, report, last)
        watching.cancel()
        if partitions > 1 and world.most_active > ALL_AT_ONCE:
            report.wrong.append(f"{world.most_active} jobs were active at once, the rule of the queue is {ALL_AT_ONCE}")
        await judge(world, report)
    if not report.wrong:
        shutil.rmtree(world.folder)
    return report


async def check_slots(world: World, report: Report, until: int) -> None:
    """Wait until the schedule has no slot left, and check that each second until then got one job."""
    async with asyncio.timeout(SETTLE), Queue("chaos", world.direct) as queue:
        found = await world.slots()
        while not found or max(found) < until:
            await asyncio.sleep(0.1)
            found = await world.slots()
        await queue.delete_schedule("tick")
    found = await world.slots()
    lost = sorted(set(range(min(found), max(found) + 1)) - set(found))
    if lost:
        report.wrong.append(f"{len(lost)} slots of {len(found)} got no job: {lost[:5]}")
    world.acknowledged |= dict.fromkeys(found.values(), "plain")


async def settle(world: World, report: Report, last: float) -> None:
    """Wait until all jobs have ended."""
    while True:
        counts = [await part.do(part.stats()) for part in world.parts]
        rows = [0, *(sum(one[place] for one in counts) for place in range(1, 8))]
        unfinished = sum(rows[1:4]) + rows[6] + rows[7]
        report.settled_in = time.monotonic() - last
        if not unfinished:
            return
        if report.settled_in > SETTLE:
            report.wrong.append(f"{unfinished} jobs had not ended {SETTLE:.1f} s after the last fault: {rows[1:4]}")
            return
        await asyncio.sleep(0.05)


async def judge(world: World, report: Report) -> None:
    """Check all promises."""
    wrong = report.wrong
    # Before it is at work, a process that was started again ends by a SIGTERM as any program does.
    await world.wait_for_workers()
    codes = await world.workers.stop(GRACE + 15)
    if any(codes):
        wrong.append(f"workers ended with {codes} after a SIGTERM")
    known = {key.decode() for part in world.parts for key in part.keys.values()} | {"jobq:queues"}
    if strangers := {key.decode() for key in await world.command("KEYS", "*")} - known:
        wrong.append(f"keys that are no column: {sorted(strangers)[:5]}")
    for part in world.parts:
        wrong += [f"partition {part.partition}: {line}" for line in await broken(part)]
    report.acknowledged = len(world.acknowledged)
    report.refusals = world.refusals
    by_limits = dict.fromkeys(ENDED_BY_LIMITS, 0)
    for job_id, kind in world.acknowledged.items():
        keys = world.parts[partition_of(job_id)].keys
        for state in (State.COMPLETED, State.FAILED):
            if await world.command("ZSCORE", keys[state], job_id) is not None:
                break
        else:
            wrong.append(f"LOST: {kind} {job_id}")
            continue
        if state not in ENDS[kind]:
            row = await world.queue.get(job_id)
            wrong.append(f"{kind} {job_id} ended in {state}: {row.errors[-1:]}")
        if state is State.FAILED and kind in LATE:
            report.late += 1
            error = (await world.queue.get(job_id)).errors[-1]
            started = world.sink.all("SELECT 1 FROM runs WHERE job = ?", job_id)
            # The next attempt of a run that failed may lie behind the deadline.
            late = error.type in LATE[kind] or (kind == "urgent" and "after the job's deadline" in error.message)
            if not late or (kind == "hasty" and started):
                wrong.append(f"{kind} {job_id} was not late: {error}, started: {bool(started)}")
        if state is State.FAILED and kind in OVER:
            report.over += 1
            error = (await world.queue.get(job_id)).errors[-1]
            by_limits[error.type] = by_limits.get(error.type, 0) + 1
            if error.type not in OVER[kind] or f"the rule {kind} " not in error.message:
                wrong.append(f"{kind} {job_id} did not end by its rule: {error}")
            if error.type == "Dropped" and world.sink.all("SELECT 1 FROM runs WHERE job = ?", job_id):
                wrong.append(f"{job_id} was dropped, and it had started")
        report.completed += state is State.COMPLETED
        report.failed += state is State.FAILED
    for type_, counted in ENDED_BY_LIMITS.items():
        said = [await world.command("HGET", part.keys["metrics"], counted) for part in world.parts]
        if sum(int(number or 0) for number in said) != by_limits[type_]:
            wrong.append(f"{counted}: {said} are counted, {by_limits[type_]} jobs have the error {type_}")
    for job_id, earlier in world.reruns.items():
        row = await world.queue.get(job_id)
        if row.rerun_of != earlier or job_id not in (await world.queue.get(earlier)).reruns:
            wrong.append(f"{job_id} runs {earlier} again, and they do not say so")
    effects = {str(job): fence for job, fence in world.sink.all("SELECT job, fence FROM effects")}
    results = [word for part in world.parts for word in await world.command("HGETALL", part.keys["results"])]
    for job_id, row in zip(results[::2], results[1::2], strict=True):
        _, _, _, *result = msgspec.json.decode(row)
        if not result:
            continue  # A stubborn handler has no effect, so its result is null.
        fence = result[0]
        if effects.get(job_id.decode()) != fence:
            wrong.append(f"{job_id.decode()} completed under {fence}, its effect is of {effects.get(job_id.decode())}")
    if 2 * report.completed != len(results):
        wrong.append(f"{report.completed} completed, {len(results) // 2} results")
    report.refused_effects = len(world.sink.all("SELECT 1 FROM refused"))
    extra = world.sink.extra_starts()
    report.extra = sum(extra.values())
    if report.extra > report.allowed:
        wrong.append(
            f"{report.extra} extra starts, {report.allowed} jobs were in flight at the faults: {list(extra)[:5]}"
        )
