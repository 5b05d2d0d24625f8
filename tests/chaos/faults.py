"""The faults of a chaos run. Each returns the number of jobs that it may start once more: those that were running."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from jobq.errors import StoreError
from tests.chaos.world import GRACE, LEASE, PARTITIONS_MOST, World

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from jobq import Queue

Fault = Callable[[World], Awaitable[int]]
BEYOND: Final = LEASE * 1.6
"""Seconds, longer than any lease."""
SPELL: Final = 1.5
"""Seconds that a repeated short fault lasts."""


async def _soon() -> None:
    """After this time the server has executed everything that a dying process had sent."""
    await asyncio.sleep(0.05)


# -- workers -------------------------------------------------------------------------------------------------------


async def worker_sigkill(world: World) -> int:
    """A worker dies."""
    process = world.workers.any(world.chance)
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await _soon()
    return await world.held(process.pid)


async def worker_sigstop(world: World) -> int:
    """A worker freezes for longer than its leases, then continues."""
    process = world.workers.any(world.chance)
    with contextlib.suppress(ProcessLookupError), world.sink.to_itself():
        process.send_signal(signal.SIGSTOP)
        await _soon()
    held = await world.held(process.pid)
    await asyncio.sleep(BEYOND)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
    return held


async def _terminate(world: World, process: Process) -> int:
    """Tell a worker to stop. Returns how many jobs it has at that moment: it is frozen while they are counted."""
    held = 0
    with contextlib.suppress(ProcessLookupError):
        with world.sink.to_itself():
            process.send_signal(signal.SIGSTOP)
            await _soon()
        held = await world.held(process.pid)
        process.terminate()
        process.send_signal(signal.SIGCONT)
    return held


async def worker_sigterm(world: World) -> int:
    """A worker is told to stop. It hands back the jobs that do not end in its grace."""
    process = world.workers.any(world.chance)
    held = await _terminate(world, process)
    await process.wait()
    return held


async def worker_sigterm_twice(world: World) -> int:
    """A worker is told to stop at once."""
    process = world.workers.any(world.chance)
    held = await _terminate(world, process)
    with contextlib.suppress(ProcessLookupError):
        await _soon()
        process.terminate()
    await process.wait()
    return held


async def worker_sigterm_twice_sigkill(world: World) -> int:
    """A worker is told to stop, then to stop at once, and dies while it stops."""
    process = world.workers.any(world.chance)
    held = await _terminate(world, process)
    with contextlib.suppress(ProcessLookupError):
        await asyncio.sleep(world.chance.uniform(0, GRACE))
        process.terminate()
        await asyncio.sleep(world.chance.uniform(0, 0.1))
        process.kill()
    await process.wait()
    return held


# -- the server ----------------------------------------------------------------------------------------------------


async def redis_sigkill(world: World) -> int:
    """The server dies and restarts with its append-only file. Nothing was lost, so no job starts twice."""
    world.server.kill()
    await asyncio.sleep(world.chance.uniform(0.05, 1.2))
    await asyncio.to_thread(world.server.start)
    return 0


async def client_kill(world: World) -> int:
    """All connections are cut every 100 ms."""
    for _ in range(int(SPELL / 0.1)):
        await world.command("CLIENT", "KILL", "TYPE", "normal")
        await world.command("CLIENT", "KILL", "TYPE", "pubsub")
        await asyncio.sleep(0.1)
    return 0


async def script_flush(world: World) -> int:
    """The server forgets its scripts every 50 ms."""
    for _ in range(int(SPELL / 0.05)):
        await world.command("SCRIPT", "FLUSH")
        await asyncio.sleep(0.05)
    return 0


async def client_pause(world: World) -> int:
    """The server answers nobody for longer than the leases. No job may be recovered."""
    await world.command("CLIENT", "PAUSE", int(BEYOND * 1000), "ALL")
    await asyncio.sleep(BEYOND)
    return 0


async def debug_sleep(world: World) -> int:
    """The server hangs for longer than the leases. No job may be recovered."""
    await world.command("PING")  # Makes sure that the next command has a working connection.
    await world.once("DEBUG", "SLEEP", str(BEYOND))
    return 0


async def foreign_script(world: World) -> int:
    """Another program's script keeps the server BUSY for longer than the leases."""
    # Use bare sockets, because a busy server does not even answer the greeting of a client.
    _, script = await asyncio.open_connection("127.0.0.1", world.server.port)
    _, killer = await asyncio.open_connection("127.0.0.1", world.server.port)
    script.write(b'EVAL "while true do end" 0\r\n')
    await asyncio.sleep(BEYOND)
    killer.write(b"SCRIPT KILL\r\n")
    await _soon()
    for writer in (script, killer):
        writer.close()
    return 0


async def maxmemory(world: World) -> int:
    """The server has no memory left. Enqueue is refused, and everything else continues. Workers that are stopped, or
    whose loop a handler blocks, cannot send outcomes, so they do not count."""
    refused = sum(world.refusals.values())
    able = _able(world)
    before = await _short_jobs_held(world)
    await world.command("CONFIG", "SET", "maxmemory", 1)
    await asyncio.sleep(SPELL)
    after = await _short_jobs_held(world)
    await world.command("CONFIG", "SET", "maxmemory", 0)
    assert sum(world.refusals.values()) > refused, "nothing was refused at maxmemory"
    able &= _able(world)
    asked = {pair for pair in before if any(f"-{pid}-" in pair[1] for pid in able)}
    assert not asked or not asked <= after, f"none of {len(asked)} jobs was settled at maxmemory: {asked}"
    return 0


async def _short_jobs_held(world: World) -> set[tuple[str, str]]:
    """Id and token of the active jobs that end, successfully or not, in much less time than the fault lasts."""
    short = ("plain", "flaky", "threaded")
    return {(job, token) for job, token in (await world.leases()).items() if world.acknowledged.get(job) in short}


def _able(world: World) -> set[int]:
    """Worker processes that can send outcomes: they live, are not stopped, and no handler blocks their loop."""
    blocked = {pid for job, pid in world.sink.unended().items() if world.acknowledged.get(job, "blocker") == "blocker"}
    return {process.pid for process in world.workers.processes.values() if world.workers.runs(process.pid)} - blocked


async def misconf(world: World) -> int:
    """The disk is full for snapshots, so the server refuses writes (MISCONF)."""
    obstacle = world.server.folder / "dump.rdb"
    obstacle.mkdir(exist_ok=True)
    (obstacle / "full").touch()
    await world.command("CONFIG", "SET", "save", "3600 1000000")
    try:
        await world.command("BGSAVE")
        await asyncio.sleep(BEYOND)
    finally:
        (obstacle / "full").unlink()
        obstacle.rmdir()
        await world.command("CONFIG", "SET", "save", "")
    return 0


async def readonly(world: World) -> int:
    """The server is made a replica for longer than the leases."""
    await world.command("REPLICAOF", "127.0.0.1", 1)
    await asyncio.sleep(BEYOND)
    await world.command("REPLICAOF", "NO", "ONE")
    return 0


# -- the network ---------------------------------------------------------------------------------------------------


async def replies_dropped(world: World) -> int:
    """Calls are executed, and their replies are lost."""
    world.proxy.drop_replies = world.chance.randint(1, 25)
    await asyncio.sleep(SPELL)
    world.proxy.heal()
    return 0


async def delay(world: World) -> int:
    """The network is slow."""
    world.proxy.delay = world.chance.uniform(0.01, 0.12)
    await asyncio.sleep(SPELL)
    world.proxy.heal()
    return 0


async def blackhole(world: World) -> int:
    """All packets are lost for longer than the leases."""
    world.proxy.blackhole = True
    await asyncio.sleep(BEYOND)
    world.proxy.heal()
    return 0


async def half_open(world: World) -> int:
    """Existing connections are dead without a notice. New ones work."""
    world.proxy.freeze_all()
    await asyncio.sleep(BEYOND)
    world.proxy.heal()
    return 0


async def one_byte_chunks(world: World) -> int:
    """Replies arrive in pieces of one byte."""
    world.proxy.chunk = 1
    await asyncio.sleep(SPELL)
    world.proxy.heal()
    return 0


# -- operators -----------------------------------------------------------------------------------------------------


async def resize(world: World) -> int:
    """Another number of partitions gets new jobs, while the queue is in use."""
    await _insist(lambda queue: queue.set_partitions(world.chance.randint(world.partitions, PARTITIONS_MOST)), world)
    return 0


async def pause_cut(world: World) -> int:
    """A pause reaches the first partition only. Workers finish it, and it is resumed."""
    first = world.parts[0]
    await world.direct_queue.store.do(first.setting())
    await world.direct_queue.store.do(first.pause())
    await asyncio.sleep(SPELL)
    await _insist(lambda queue: queue.resume(), world)
    return 0


async def _insist(call: Callable[[Queue], Awaitable[object]], world: World) -> None:
    """An operator repeats a call that got no answer."""
    for _ in range(20):
        try:
            await call(world.direct_queue)
            return
        except StoreError:
            await asyncio.sleep(0.2)
    raise AssertionError("an operator's call was refused twenty times")


WORKERS_FAULTS: Final[tuple[Fault, ...]] = (
    worker_sigkill, worker_sigstop, worker_sigterm, worker_sigterm_twice, worker_sigterm_twice_sigkill,
)  # fmt: skip
OTHER_FAULTS: Final[tuple[Fault, ...]] = (
    redis_sigkill, client_kill, script_flush, client_pause, debug_sleep, foreign_script, maxmemory, misconf, readonly,
    replies_dropped, delay, blackhole, half_open, one_byte_chunks,
)  # fmt: skip
PARTITION_FAULTS: Final[tuple[Fault, ...]] = (resize, pause_cut, resize, pause_cut)
