"""The guide in docs/cluster.md: a queue moves from one server to a cluster while its jobs wait and its workers run."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from jobq import Queue
from tests.conftest import Server, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.local_cluster import LocalCluster

pytestmark = pytest.mark.slow

APP = """
from jobq import Queue

queue = Queue("a")

@queue.task(attempts=1)
async def note(n: int) -> None:
    with open("ran", "a") as file:
        file.write(f"{n}\\n")
"""


class Programs:
    """Runs the commands of the guide in a folder with the application."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._workers: list[subprocess.Popen[bytes]] = []
        (folder / "app.py").write_text(APP)

    def start(self, url: str, *words: str) -> subprocess.Popen[bytes]:
        """Start ``jobq`` with the URL in its environment."""
        env = os.environ | {"JOBQ_REDIS_URL": url}
        process = subprocess.Popen(
            [sys.executable, "-m", "jobq", *words], env=env, cwd=self._folder, stdout=subprocess.PIPE
        )
        self._workers.append(process)
        return process

    async def run(self, url: str, *words: str) -> str:
        """The output of ``jobq``, which must end without an error."""
        process = self.start(url, *words)
        out, _ = await asyncio.to_thread(process.communicate, timeout=60)
        assert process.returncode == 0
        return out.decode()

    def ran(self) -> list[int]:
        """What the jobs wrote."""
        path = self._folder / "ran"
        return sorted(map(int, path.read_text().split())) if path.exists() else []

    def close(self) -> None:
        """Kill what still runs: first the supervisors, which would start their workers again."""
        for process in self._workers:
            if process.poll() is None:
                children = psutil.Process(process.pid).children(recursive=True)
                process.kill()
                for child in children:
                    child.kill()
            process.communicate()


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """The commands of the guide. What still runs is killed."""
    programs = Programs(tmp_path)
    yield programs
    programs.close()


@pytest.fixture
def single() -> Iterator[Server]:
    """The server that the queue leaves."""
    server = Server().start()
    yield server
    server.stop()


@pytest.mark.chaos
async def test_from_one_server_to_a_cluster(cluster: LocalCluster, single: Server, programs: Programs) -> None:
    async with Queue("a", single.url) as before, Queue("a", cluster.url) as after:
        serving = programs.start(single.url, "work", "app:queue")
        await before.enqueue("note", {"n": 0})
        await wait_until(lambda: programs.ran() == [0], "the old worker to run", timeout=30)
        # The new workers come first. Then producers use the cluster, one after the other.
        programs.start(cluster.url, "work", "app:queue")
        for n in range(1, 101):
            queue = after if n % 4 > n % 3 else before
            await queue.enqueue("note", {"n": n}, delay=1 if n % 10 == 0 else 0)
        serving.terminate()
        assert await asyncio.to_thread(serving.wait, 30) == 0
        for n in range(101, 121):
            await before.enqueue("note", {"n": n}, delay=1 if n % 10 == 0 else 0)
        # The commands of the guide: drain the old server, and see that nothing is left there.

        async def drained() -> bool:
            await programs.run(cluster.url, "work", "app:queue", "--burst", "--redis", single.url)
            stats = json.loads(await programs.run(cluster.url, "stats", "--json", "--redis", single.url))
            return not any(stats[state] for state in ("waiting", "delayed", "held", "active"))

        await wait_until(drained, "the old server to be empty", timeout=30)
        await wait_until(lambda: len(programs.ran()) == 121, "the jobs on the cluster", timeout=30)
    assert programs.ran() == list(range(121)), "each job ran once"
