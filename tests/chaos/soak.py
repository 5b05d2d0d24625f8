"""Steady work for a long time: ``python -m tests.chaos.soak --minutes M --out FILE``. Memory must stay flat.

Two worker processes, a REST server, a producer over Python, a client over REST and one that listens to its events.
Every ten seconds the resident memory of each process and the size of Redis's data are taken and, with ``--out``,
written as a line of JSON. The first quarter is warming up (retention fills, allocators settle); after it none may grow
by more than a tenth.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, TextIO

import psutil
from aiohttp import ClientError, ClientSession, ClientTimeout

from jobq import NewJob, Options, Queue
from jobq.engine.model.ids import new_id
from jobq.engine.model.job import StoredUnique
from tests.chaos.conftest import free_port
from tests.conftest import Server, wait_until

SOAK = f"{Path(__file__)}:queue"
ROOT = Path(__file__).parents[2]
RATE, REST_RATE = 300, 100
"""Jobs and REST calls per second. The load leaves room for other work on the machine."""
EVERY = 10.0
"""Seconds between two samples."""
UNIQUE = {
    1: StoredUnique(key="debounced", while_="queued", on="replace", delay=200, max_wait=1000),
    2: StoredUnique(key="latest", on="keep_last"),
    3: StoredUnique(key="running", while_="running", on="kill_running"),
    4: StoredUnique(key="ended", while_="unfinished", for_=50, on="replace_all"),
}
"""The uniqueness of some jobs, by the remainder of their number."""
queue = Queue("soak", keep_completed=2_000, keep_failed=100)


@queue.schedule(every=1, name="tick", payload={"n": 1}, overlap="allow")
@queue.task(attempts=2)
async def work(n: int) -> dict[str, int]:
    """Fails sometimes."""
    await asyncio.sleep(0.002)
    if n % 50 == 0:
        raise ValueError("now and then")
    return {"n": n}


async def produce(queue: Queue, until: float) -> None:
    """Enqueue jobs of every kind steadily."""
    number = 0
    while time.monotonic() < until:
        began = time.monotonic()
        jobs: list[NewJob] = []
        for _ in range(RATE // 10):
            number += 1
            options = Options(attempts=2, delay=500 if number % 10 == 0 else 0, priority=number % 3,
                              key=f"key-{number}" if number % 20 == 0 else None,
                              key_ttl=5_000 if number % 20 == 0 else None,
                              unique=UNIQUE.get(number % 30))  # fmt: skip
            base = queue.new("work", {"n": number})
            jobs.append(NewJob("work", base.payload, options, id=new_id()))
        await queue.submit_many(jobs)
        await asyncio.sleep(max(0.0, 0.1 - (time.monotonic() - began)))


class Rest:
    """The REST clients of the run, and their number of calls."""

    def __init__(self, session: ClientSession) -> None:
        self._session = session
        self.calls = 0
        self.events = 0

    async def call(self, until: float) -> None:
        """Enqueue and read, over kept connections and sometimes over a new one."""
        while time.monotonic() < until:
            began = time.monotonic()
            body = {"type": "work", "payload": {"n": self.calls}}
            enqueued = await self._do("POST", "/jobs/enqueue", json=body)
            await self._do("GET", f"/jobs/{enqueued['id']}")
            await self._do("GET", "/jobs/stats", headers={"Connection": "close"} if self.calls % 10 == 0 else {})
            await self._do("GET", "/jobs?limit=20")
            await self._do("GET", f"/jobs/{enqueued['id']}/result?wait=5", expected=(200, 202, 409))
            await asyncio.sleep(max(0.0, 5 / REST_RATE - (time.monotonic() - began)))

    async def _do(
        self, method: str, path: str, expected: tuple[int, ...] = (200, 201), **options: Any
    ) -> dict[str, Any]:
        async with self._session.request(method, path, **options) as response:
            self.calls += 1
            assert response.status in expected, f"{method} {path}: {response.status} {await response.text()}"
            return await response.json(content_type=None)

    async def listen(self, until: float) -> None:
        """Read the events. The stream ends after an hour and is then opened again."""
        end = asyncio.timeout(until - time.monotonic())
        try:
            async with end:
                while True:
                    async with self._session.get("/jobs/stats/events", timeout=ClientTimeout(sock_read=30)) as stream:
                        async for line in stream.content:
                            self.events += line.startswith(b"event: stats")
        except TimeoutError:
            if not end.expired():  # The stream is silent.
                raise

    async def alive(self) -> bool:
        """Whether the server answers."""
        try:
            return bool(await self._do("GET", "/healthz"))
        except ClientError:
            return False


async def process(stack: AsyncExitStack, *words: str, **env: str) -> int:
    """Run a process of jobq's command line until the context ends. Yields its pid."""
    command = [sys.executable, "-m", "jobq", *words]
    started = await asyncio.create_subprocess_exec(
        *command, env=os.environ | {"PYTHONPATH": str(ROOT)} | env, stderr=asyncio.subprocess.DEVNULL
    )

    async def end() -> None:
        with suppress(ProcessLookupError):
            started.send_signal(signal.SIGTERM)
        await started.wait()

    stack.push_async_callback(end)
    return started.pid


class Samples:
    """Memory over time, in MB, of processes and of Redis's data."""

    def __init__(self, watched: dict[str, int], producer: Queue, rest: Rest, out: TextIO | None) -> None:
        self._watched = {name: psutil.Process(pid) for name, pid in watched.items()}
        self._producer = producer
        self._rest = rest
        self._out = out
        self.taken: list[dict[str, float]] = []

    async def take(self, seconds: float) -> None:
        """Take samples for the given time."""
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            await asyncio.sleep(min(EVERY, seconds / 20, seconds - passed))
            sample = {name: process.memory_info().rss / 1e6 for name, process in self._watched.items()}
            memory = (await self._producer.store.connection.trip(b"INFO memory\r\n", 1))[0].decode()
            lines = dict(line.partition(":")[::2] for line in memory.splitlines())
            sample["data in Redis"] = int(lines["used_memory"]) / 1e6
            self.taken.append(sample)
            stats = await self._producer.stats()
            facts = {"seconds": round(time.monotonic() - began), "done": stats.completed_total,
                     "waiting": stats.waiting, "calls": self._rest.calls, "events": self._rest.events}  # fmt: skip
            if self._out:
                print(json.dumps(facts | {name: round(size, 2) for name, size in sample.items()}), file=self._out)
                self._out.flush()
            if len(self.taken) % max(1, round(seconds / 20 / EVERY)) == 0:
                print("  ".join(f"{name} {value}" for name, value in facts.items()),
                      *(f"{name} {size:.1f}" for name, size in sample.items()), sep="  ", flush=True)  # fmt: skip

    def flat(self) -> bool:
        """Print the table. Returns whether no memory grew."""
        after, last = self.taken[len(self.taken) // 4], self.taken[-1]
        print("\n| MB | after a quarter | most since | at the end |\n|---|---|---|---|")
        for name in last:
            most = max(sample[name] for sample in self.taken[len(self.taken) // 4 :])
            print(f"| {name} | {after[name]:.1f} | {most:.1f} | {last[name]:.1f} |")
        return all(last[name] < after[name] * 1.1 + 1 for name in last)


async def soak(minutes: float, out: TextIO | None) -> int:
    """Run. Returns 1 if memory grew."""
    async with AsyncExitStack() as stack:
        server = Server("--appendonly", "yes", port=free_port()).start()
        stack.callback(server.stop)
        assert server.process is not None
        port = free_port()
        watched = {"REST server": await process(stack, "serve", SOAK, f"--port={port}", JOBQ_REDIS_URL=server.url)}
        for name in ("worker 1", "worker 2"):
            watched[name] = await process(stack, "work", SOAK, "--processes=0", JOBQ_REDIS_URL=server.url)
        watched |= {"producer and clients": os.getpid(), "Redis": server.process.pid}
        # This is not the queue above; the workers find that one by their environment.
        producer = await stack.enter_async_context(Queue("soak", server.url))
        rest = Rest(await stack.enter_async_context(ClientSession(f"http://127.0.0.1:{port}")))
        await wait_until(rest.alive, "the REST server", 20)
        samples = Samples(watched, producer, rest, out)
        until = time.monotonic() + minutes * 60
        async with asyncio.TaskGroup() as steady:
            steady.create_task(produce(producer, until))
            steady.create_task(rest.call(until))
            steady.create_task(rest.listen(until))
            await samples.take(minutes * 60)
        return int(not samples.flat())


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=argparse.FileType("w"), help="a file for the samples, a line of JSON each")
    args = parser.parse_args()
    return asyncio.run(soak(args.minutes, args.out))


if __name__ == "__main__":
    sys.exit(main())
