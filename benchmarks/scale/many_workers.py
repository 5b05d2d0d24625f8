"""A thousand idle workers, each of 200 out of 10,000 queues, as one server sees them.

    python -m benchmarks.scale.many_workers

Their processes do not fit on one machine, so only their connections are made: each worker has one that waits for its
200 queues, one that listens to their channels, and one of its heartbeats. The heartbeats and looks for jobs are sent at
their real rate by one process.
"""

from __future__ import annotations

import asyncio
import json
import random
import time

from benchmarks.scale.many_queues import cpu
from benchmarks.server import Server
from jobq import Connection
from jobq.engine.server.embedded import find_binary
from jobq.engine.store import Store, having, send_together
from jobq.engine.store.packing import pack

WORKERS = 1000
QUEUES = 10_000
OF_EACH = 200
SECONDS = 15.0
LOOKS = 2 / 5
"""Commands a second with which a worker looks for jobs and leases: one EXISTS each five seconds."""
ROWS = OF_EACH / 15
"""Rows a second that an idle worker writes."""


async def connect(port: int, command: bytes, kept: list[asyncio.StreamWriter]) -> asyncio.StreamReader:
    """A connection that has sent this command."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(command)
    kept.append(writer)
    return reader


async def wait(port: int, command: bytes, kept: list[asyncio.StreamWriter]) -> None:
    """Wait for tokens again and again."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    kept.append(writer)
    writer.write(command)
    while await reader.read(1000):
        writer.write(command)


async def main() -> None:
    with Server(str(find_binary())) as server:
        pid = int(server.client.info("server")["process_id"])
        empty = server.client.info("memory")["used_memory"]
        connection = Connection(server.url)
        stores = [Store(connection, f"q{n}") for n in range(QUEUES)]
        mine = [random.sample(stores, OF_EACH) for _ in range(WORKERS)]
        kept: list[asyncio.StreamWriter] = []
        waits: list[asyncio.Task[None]] = []
        for some in mine:
            blocking = pack((b"BZPOPMIN", *(store.keys["wake"] for store in some), 600))
            waits.append(asyncio.create_task(wait(server.port, blocking, kept)))
            await connect(server.port, pack((b"SUBSCRIBE", *(store.keys["control"] for store in some))), kept)
            await connect(server.port, pack((b"PING",)), kept)
        await stores[0].load()
        await asyncio.sleep(3)
        assert server.client.info("clients")["blocked_clients"] == WORKERS
        memory = server.client.info("memory")["used_memory"] - empty
        before, began = cpu(pid), time.monotonic()
        word = b"x" * 300
        beats = 0
        while (passed := time.monotonic() - began) < SECONDS:
            # What the workers send in the time that has passed.
            while beats < passed * WORKERS * ROWS / OF_EACH:
                some = mine[beats % WORKERS]
                await send_together([(store, [store.heartbeat(f"w{beats % WORKERS}", word)]) for store in some])
                for _ in range(round(LOOKS / (ROWS / OF_EACH))):
                    await having(some, "active", "start_by", "end_by")
                beats += 1
            await asyncio.sleep(0.001)
        idle = (cpu(pid) - before) / (time.monotonic() - began)
        before = cpu(pid)
        for n in range(1000):
            # A token wakes one worker, which waits again.
            await random.choice(stores).command(b"ZADD", mine[n % WORKERS][0].keys["wake"], 0, b"t")
        waking = (cpu(pid) - before) / 1000
        print(
            json.dumps(
                {
                    "connections": server.client.info("clients")["connected_clients"],
                    "server MB": round(memory / 1e6, 1),
                    "idle: share of the server's core": round(idle, 3),
                    "sent of the heartbeats": round(beats / (SECONDS * WORKERS * ROWS / OF_EACH), 2),
                    "us of the server for a token": round(waking * 1e6),
                }
            )
        )
        for one in waits:
            one.cancel()
        for writer in kept:
            writer.close()


if __name__ == "__main__":
    asyncio.run(main())
