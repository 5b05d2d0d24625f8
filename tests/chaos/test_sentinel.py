"""Failover by real Sentinels: the URL names them instead of a server."""

from __future__ import annotations

import asyncio
import gc
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from jobq import Connection, NewJob, Queue, Worker
from jobq.engine.model.ids import new_id
from jobq.engine.store.packing import pack
from jobq.errors import StoreError
from tests.chaos.conftest import free_port
from tests.conftest import server_binary, server_kind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.chaos.conftest import NewServer
    from tests.conftest import Server, Until


class Sentinels:
    """Three Sentinels that watch a master."""

    def __init__(self, folder: Path, master: Server) -> None:
        self.ports = [free_port() for _ in range(3)]
        self.processes: list[subprocess.Popen[bytes]] = []
        for port in self.ports:
            config = folder / f"sentinel-{port}.conf"
            config.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
                f"sentinel monitor jobs 127.0.0.1 {master.port} 2\n"
                "sentinel down-after-milliseconds jobs 500\nsentinel failover-timeout jobs 3000\n"
            )
            self.processes.append(
                subprocess.Popen(
                    [server_binary(server_kind()), str(config), "--sentinel"],
                    stdout=subprocess.DEVNULL,
                    stdin=subprocess.DEVNULL,
                )
            )

    @property
    def url(self) -> str:
        """A URL that leads to the current master."""
        return "redis+sentinel://" + ",".join(f"127.0.0.1:{port}" for port in self.ports) + "/jobs"

    def stop(self) -> None:
        """End them."""
        for process in self.processes:
            process.terminate()
            process.wait(10)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the Sentinels' files."""
    folder = tmp_path_factory.mktemp("sentinel")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


async def ask(port: int, *words: str | int) -> object:
    """Send one command to a port."""
    connection = Connection(f"redis://127.0.0.1:{port}", timeout=20)
    try:
        return (await connection.trip(pack(words), 1))[0]
    finally:
        await connection.aclose()


@pytest.mark.chaos
# redis-py does not close a socket of its Sentinel clients if a connect is cancelled during a failover.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize(("by_hand", "count"), [(False, 2), (True, 1), (True, 2)])
async def test_failover_under_load(
    new_server: NewServer, folder: Path, until: Until, by_hand: bool, count: int
) -> None:
    """The master is killed, or an operator replaces it, while jobs are enqueued with durability="replicated". No
    acknowledged job is lost."""
    master = new_server("--repl-diskless-sync-delay", "0")
    replicas = [new_server("--replicaof", f"127.0.0.1 {master.port}") for _ in range(count)]
    await until(lambda: ask_copies(master.port, count), "the replicas", timeout=20)
    sentinels = Sentinels(folder, master)
    try:

        async def known() -> bool:
            try:
                rows = await ask(sentinels.ports[0], "SENTINEL", "replicas", "jobs")
                others = await ask(sentinels.ports[0], "SENTINEL", "sentinels", "jobs")
            except StoreError:
                return False
            return (
                isinstance(rows, list) and len(rows) == len(replicas) and isinstance(others, list) and len(others) == 2
            )

        await until(known, "the sentinels to know everybody", timeout=20)
        queue = Queue("failover", sentinels.url, durability="replicated", durability_timeout=1, keep_completed=20_000)

        @queue.task(attempts=20)
        async def work() -> int:
            return 1

        acknowledged: list[str] = []
        running = True

        async def produce() -> None:
            while running:
                job = NewJob("work", id=new_id())
                while True:
                    try:
                        await queue.submit(job)
                        break
                    except StoreError:
                        await asyncio.sleep(0.1)
                acknowledged.append(str(job.id))

        async with queue, Worker(queue, lease=2, concurrency=10) as worker:
            worker.start()
            producing = asyncio.create_task(produce())
            await until(lambda: len(acknowledged) > 50, "the first jobs")
            if by_hand:
                # Many jobs wait and run, and the master stays alive. It becomes a replica.
                many = [NewJob("work", id=new_id()) for _ in range(5_000)]
                acknowledged += [one.id for one in await queue.submit_many(many)]
                if count > 1:
                    # The old master lives on, and the other replica would confirm jobs that it takes meanwhile.
                    assert await ask(master.port, "CLIENT", "PAUSE", 10_000, "WRITE") == b"OK"
                assert await ask(sentinels.ports[0], "SENTINEL", "FAILOVER", "jobs") == b"OK"

                async def replaced() -> bool:
                    try:
                        role = await ask(master.port, "ROLE")
                    except StoreError:
                        return False
                    return isinstance(role, list) and role[0] == b"slave"

                await until(replaced, "the failover", timeout=40)
            else:
                master.kill()
            before = len(acknowledged)
            await until(lambda: len(acknowledged) > before + 50, "jobs after the failover", timeout=40)
            running = False
            await producing

            async def done() -> bool:
                stats = await queue.stats()
                return not (stats.waiting + stats.active + stats.delayed)

            await until(done, "all ended", timeout=30)
            for job_id in acknowledged:
                assert (await queue.get(job_id)).state == "completed"
    finally:
        sentinels.stop()
        gc.collect()


async def ask_copies(port: int, count: int) -> bool:
    """Whether so many replicas confirm a write."""
    connection = Connection(f"redis://127.0.0.1:{port}", timeout=20)
    try:
        _, copies = await connection.trip(pack(("SETEX", "probe", 1, "x")) + pack(("WAIT", count, 1000)), 2)
        return copies == count
    finally:
        await connection.aclose()
