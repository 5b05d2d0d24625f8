"""The faults of a chaos run. Each returns how many jobs it may make start once more: those in flight where it hit."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from typing import Final

from tests.chaos.world import GRACE, LEASE, World

Fault = Callable[[World], Awaitable[int]]
BEYOND: Final = LEASE * 1.6
"""Seconds: longer than any lease lasts."""
SPELL: Final = 1.5
"""Seconds that a disturbance of short beats goes on."""


async def _soon() -> None:
    """What a dying process had sent already is executed by now."""
    await asyncio.sleep(0.05)


# -- workers -------------------------------------------------------------------------------------------------------


async def worker_sigkill(world: World) -> int:
    """A worker dies in the middle of everything."""
    process = world.workers.any(world.chance)
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await _soon()
    return await world.held(process.pid)


async def worker_sigstop(world: World) -> int:
    """A worker freezes for longer than its leases, then goes on as if nothing were."""
    process = world.workers.any(world.chance)
    with contextlib.suppress(ProcessLookupError), world.sink.to_itself():
        process.send_signal(signal.SIGSTOP)
        await _soon()
    held = await world.held(process.pid)
    await asyncio.sleep(BEYOND)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
    return held


async def worker_sigterm(world: World) -> int:
    """A worker is asked to go; what it does not finish in its grace is handed back."""
    process = world.workers.any(world.chance)
    held = await world.held(process.pid)
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    await process.wait()
    return held


async def worker_sigterm_twice(world: World) -> int:
    """A worker is asked to go at once."""
    process = world.workers.any(world.chance)
    held = await world.held(process.pid)
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        await _soon()
        process.terminate()
    await process.wait()
    return held


async def worker_sigterm_twice_sigkill(world: World) -> int:
    """A worker is asked to go, then to go at once, and dies while it is at it."""
    process = world.workers.any(world.chance)
    held = await world.held(process.pid)
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        await asyncio.sleep(world.chance.uniform(0, GRACE))
        process.terminate()
        await asyncio.sleep(world.chance.uniform(0, 0.1))
        process.kill()
    await process.wait()
    return held


# -- the server ----------------------------------------------------------------------------------------------------


async def redis_sigkill(world: World) -> int:
    """The server dies and comes back with its append-only file. Nothing was lost, so nothing starts twice."""
    world.server.kill()
    await asyncio.sleep(world.chance.uniform(0.05, 1.2))
    await asyncio.to_thread(world.server.start)
    return 0


async def client_kill(world: World) -> int:
    """Every connection is cut, again and again."""
    for _ in range(int(SPELL / 0.1)):
        await world.command("CLIENT", "KILL", "TYPE", "normal")
        await world.command("CLIENT", "KILL", "TYPE", "pubsub")
        await asyncio.sleep(0.1)
    return 0


async def script_flush(world: World) -> int:
    """The server forgets its scripts, again and again."""
    for _ in range(int(SPELL / 0.05)):
        await world.command("SCRIPT", "FLUSH")
        await asyncio.sleep(0.05)
    return 0


async def client_pause(world: World) -> int:
    """The server serves nobody for longer than the leases: no false recovery."""
    await world.command("CLIENT", "PAUSE", int(BEYOND * 1000), "ALL")
    await asyncio.sleep(BEYOND)
    return 0


async def debug_sleep(world: World) -> int:
    """The server hangs for longer than the leases: no false recovery."""
    await world.command("PING")  # a living connection comes first now
    await world.once("DEBUG", "SLEEP", str(BEYOND))
    return 0


async def foreign_script(world: World) -> int:
    """Somebody's script keeps the server BUSY for longer than the leases."""
    # bare sockets: a busy server answers no client's greeting
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
    """No memory is left: enqueue is refused, everything else goes on. A worker that is stopped, or whose loop a handler
    blocks, settles nothing now or at any other time, so it is not asked."""
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
    """Id and token of the held jobs that end, done or failed, in much less than a spell."""
    leases = await world.command("HGETALL", "jobq:{chaos}:leases")
    held = {job.decode(): token.decode() for job, token in zip(leases[::2], leases[1::2], strict=True)}
    short = ("plain", "flaky", "threaded")
    return {(job, token) for job, token in held.items() if world.acknowledged.get(job) in short}


def _able(world: World) -> set[int]:
    """Worker processes that can settle something: they live, are not stopped, and no handler blocks their loop."""
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
    """Executed, and nobody hears of it."""
    world.proxy.drop_replies = world.chance.randint(1, 25)
    await asyncio.sleep(SPELL)
    world.proxy.heal()
    return 0


async def delay(world: World) -> int:
    """A slow network."""
    world.proxy.delay = world.chance.uniform(0.01, 0.12)
    await asyncio.sleep(SPELL)
    world.proxy.heal()
    return 0


async def blackhole(world: World) -> int:
    """Packets vanish for longer than the leases, for everybody."""
    world.proxy.blackhole = True
    await asyncio.sleep(BEYOND)
    world.proxy.heal()
    return 0


async def half_open(world: World) -> int:
    """Connections that exist are dead, and nobody says so; new ones work."""
    world.proxy.freeze_all()
    await asyncio.sleep(BEYOND)
    world.proxy.heal()
    return 0


async def one_byte_chunks(world: World) -> int:
    """Replies in pieces of one byte."""
    world.proxy.chunk = 1
    await asyncio.sleep(SPELL)
    world.proxy.heal()
    return 0


WORKERS_FAULTS: Final[tuple[Fault, ...]] = (
    worker_sigkill, worker_sigstop, worker_sigterm, worker_sigterm_twice, worker_sigterm_twice_sigkill,
)  # fmt: skip
OTHER_FAULTS: Final[tuple[Fault, ...]] = (
    redis_sigkill, client_kill, script_flush, client_pause, debug_sleep, foreign_script, maxmemory, misconf, readonly,
    replies_dropped, delay, blackhole, half_open, one_byte_chunks,
)  # fmt: skip
