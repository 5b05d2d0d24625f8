"""Two releases side by side: an earlier jobq, built as a wheel from its commit, and the current code."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil
import pytest

from jobq import Queue, State
from tests.chaos import upgrade_app
from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.conftest import NewServer

ROOT = Path(__file__).parents[2]
EARLIER = "73ce07a4510d02a7efa2a95e9221a53b3e24494b"
"""The commit since which the layout of the data has not changed. Update it when the layout changes on purpose."""
LEASE = "1.5"
Program = list[str]


def git(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, check=False)


@pytest.fixture(scope="session")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the earlier jobq, installed from its wheel."""
    if git("cat-file", "-e", EARLIER).returncode:
        pytest.skip("the earlier release is built from the repository's history, which is not here")
    folder = tmp_path_factory.mktemp("earlier")
    source, dist, installed = folder / "source", folder / "dist", folder / "installed"
    source.mkdir()
    archive = git("archive", "--format=tar", EARLIER)
    subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(dist)]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = dist.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    return installed


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a supervisor and then its worker. In the other order the supervisor would start its worker again."""
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for worker in workers:
        worker.kill()
    process.wait(10)


class Releases:
    """Starts programs of either release."""

    def __init__(self, earlier: Path, url: str, folder: Path) -> None:
        self._earlier = earlier
        self._url = url
        self._folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def env(self, release: str) -> dict[str, str]:
        """The environment of a process: which jobq it imports, and the answer of its handlers."""
        env = os.environ | {"JOBQ_REDIS_URL": self._url, "UPGRADE_RELEASE": release, "JOBQ_LEASE": LEASE}
        return env | ({"PYTHONPATH": str(self._earlier)} if release == "earlier" else {})

    def run(self, release: str, *words: str) -> str:
        """The output of a program, which must not fail."""
        done = subprocess.run(
            [sys.executable, *words],
            env=self.env(release),
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def produce(self, release: str) -> list[str]:
        """Enqueue with this release. Returns the ids of the jobs."""
        return self.run(release, "-c", upgrade_app.PRODUCE, str(Path(__file__).parent)).split()

    def work(self, release: str) -> subprocess.Popen[bytes]:
        """Start a worker of this release."""
        target = f"{Path(__file__).with_name('upgrade_app.py')}:queue"
        words = ["-m", "jobq", "work", target, "--concurrency", "4", "--log-level", "error"]
        process = subprocess.Popen([sys.executable, *words], env=self.env(release), cwd=self._folder)
        self.processes.append(process)
        return process


@pytest.fixture
def releases(earlier: Path, new_server: NewServer, tmp_path: Path) -> Iterator[Releases]:
    """Both releases, on one server."""
    server = new_server()
    releases = Releases(earlier, server.url, tmp_path)
    assert releases.run("earlier", "-c", "import jobq; print(jobq.__file__)").startswith(str(earlier))
    yield releases
    for process in releases.processes:
        if process.poll() is None:
            kill(process)


@pytest.fixture
async def queue(releases: Releases) -> Any:
    """The queue as this release shows it."""
    async with Queue("upgrade", releases.env("")["JOBQ_REDIS_URL"]) as queue:
        yield queue


async def test_each_release_runs_the_jobs_that_the_other_enqueued(releases: Releases, queue: Queue) -> None:
    await queue.pause()
    ids = [job_id for release in ("earlier", "now") for job_id in releases.produce(release)]
    assert len(set(ids)) == 281, "the key 'once' made one job, though both releases used it twice"
    for release in ("earlier", "now"):
        releases.work(release)
    await wait_until(lambda: _workers(queue, 2), "both workers are there", timeout=60)
    await queue.resume()
    await wait_until(lambda: _ended(queue, 281), "all jobs ended", timeout=60)

    results: Counter[str] = Counter()
    for job_id in set(ids):
        row = await queue.get(job_id)
        assert row.state is State.COMPLETED, row
        if row.type == "flaky":
            assert row.attempts_made == 3
            assert [re.sub(" by .*", "", line.message) for line in await queue.logs(job_id)] == [
                "attempt 1", "attempt 2", "attempt 3",
            ]  # fmt: skip
        results[msgspec.json.decode(row.result or b"", type=str).split()[0]] += 1
    assert results["earlier"] > 0
    assert results["now"] > 0
    # The earlier command line can still read the data of this release.
    assert " 281 " in releases.run("earlier", "-m", "jobq", "stats")
    assert ids[0].rpartition(":")[2] in releases.run("earlier", "-m", "jobq", "show", f"upgrade:{ids[0]}")


@pytest.mark.parametrize(("killed", "left"), [("earlier", "now"), ("now", "earlier")])
async def test_each_release_recovers_the_running_jobs_of_the_other(
    releases: Releases, queue: Queue, tmp_path: Path, killed: str, left: str
) -> None:
    begun = tmp_path / "begun"
    process = releases.work(killed)
    job = await queue.enqueue("stuck", {"begun": str(begun)}, attempts=3)
    await wait_until(begun.exists, "the first run has begun", timeout=30)
    kill(process)
    releases.work(left)
    assert await job.result(timeout=60) == left
    row = await job.row()
    assert [error.type for error in row.errors] == ["LeaseExpired"]


async def _workers(queue: Queue, count: int) -> bool:
    return len(await queue.workers()) == count


async def _ended(queue: Queue, count: int) -> bool:
    stats = await queue.stats()
    await asyncio.sleep(0.05)
    return stats.completed + stats.failed == count
