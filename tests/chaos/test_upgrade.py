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
        self._producers: list[subprocess.Popen[bytes]] = []
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

    def produce(self, release: str) -> Path:
        """Enqueue with this release until ``end``. Returns the file that gets the ids of the jobs."""
        path = self._folder / f"produced-{release}"
        words = [sys.executable, "-c", upgrade_app.PRODUCE, str(Path(__file__).parent)]
        with path.open("w") as file:
            process = subprocess.Popen(words, env=self.env(release), cwd=self._folder, stdout=file)
        self.processes.append(process)
        self._producers.append(process)
        return path

    def end(self) -> None:
        """End the producers."""
        (self._folder / "stop").touch()
        assert [process.wait(30) for process in self._producers] == [0, 0]

    def runs(self) -> list[list[str]]:
        """The id, the release and the process of each run that got to its end."""
        path = self._folder / upgrade_app.RUNS
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

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


@pytest.mark.slow
async def test_two_releases_run_side_by_side_under_load(releases: Releases, queue: Queue, tmp_path: Path) -> None:
    """Producers of both never pause, while workers of both are started, stopped and killed."""
    await queue.pause()
    produced = [releases.produce(release) for release in ("earlier", "now")]
    await wait_until(lambda: all(path.read_text().count("\n") > 10 for path in produced), "both to produce", timeout=30)
    await queue.resume()
    earlier = await started(releases, "earlier")
    now = await started(releases, "now")

    earlier.terminate()
    assert await asyncio.to_thread(earlier.wait, 30) == 0
    first = await stuck_job(queue, tmp_path / "first")
    earlier = await started(releases, "earlier")
    kill(now)
    assert await first.result(timeout=30) == "earlier -1", "it has recovered what the other release ran"

    second = await stuck_job(queue, tmp_path / "second")
    now = await started(releases, "now")
    kill(earlier)
    assert await second.result(timeout=30) == "now -1"

    await asyncio.to_thread(releases.end)
    ids = [path.read_text().split() for path in produced]
    assert ids[0][0] == ids[1][0], "the key 'once' made one job, though both releases used it"
    every = {*ids[0], *ids[1], first.id, second.id}
    await wait_until(lambda: ended(queue, len(every)), f"all {len(every)} jobs to end", timeout=60)
    await check_jobs(queue, every, Counter(job_id for job_id, _, _ in releases.runs()))
    # The earlier command line can still read the data of this release.
    assert f" {len(every)} " in releases.run("earlier", "-m", "jobq", "stats")
    job_id = ids[1][0]
    assert job_id.rpartition(":")[2] in releases.run("earlier", "-m", "jobq", "show", f"upgrade:{job_id}")


async def started(releases: Releases, release: str) -> subprocess.Popen[bytes]:
    """A further worker of this release, which has run some of the jobs."""
    before = {process for _, _, process in releases.runs()}
    supervisor = releases.work(release)

    def works() -> bool:
        return sum(of == release and process not in before for _, of, process in releases.runs()) >= 20

    await wait_until(works, f"jobs to be run by the new worker ({release})", timeout=60)
    return supervisor


async def stuck_job(queue: Queue, begun: Path) -> Any:
    """A job whose first run has begun, and will not end."""
    job = await queue.enqueue("stuck", {"begun": str(begun)}, attempts=5)
    await wait_until(begun.exists, "the first run to begin", timeout=30)
    return job


async def ended(queue: Queue, count: int) -> bool:
    stats = await queue.stats()
    await asyncio.sleep(0.05)
    return stats.completed + stats.failed == count


async def check_jobs(queue: Queue, ids: set[str], ends: Counter[str]) -> None:
    """Each job has one result. It was run to its end once, unless its worker was killed in or after that run."""
    results: Counter[str] = Counter()
    for job_id in ids:
        row = await queue.get(job_id)
        assert row.state is State.COMPLETED, row
        errors = Counter(error.type for error in row.errors)
        killed = errors.pop("LeaseExpired", 0)
        assert row.attempts_made == 1 + killed + errors.total(), row
        assert 1 <= ends[job_id] <= 1 + killed, (row, ends[job_id])
        if row.type == "flaky":
            assert 2 <= killed + errors["RuntimeError"] <= 4, row
            attempts = [re.sub(" by .*", "", line.message) for line in await queue.logs(job_id)]
            assert set(attempts) <= {f"attempt {n + 1}" for n in range(row.attempts_made)}
            assert len(attempts) >= row.attempts_made - killed
        else:
            assert not errors, row
        results[msgspec.json.decode(row.result or b"", type=str).split()[0]] += 1
    assert results["earlier"] > 0
    assert results["now"] > 0
