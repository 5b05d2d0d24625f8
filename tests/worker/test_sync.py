"""Synchronous code: ``enqueue_sync``, ``result_sync``, ``queue.sync()``; and an enqueue that nobody awaits."""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

import psutil
import pytest

from jobq import JobFailed, Queue, State, Worker
from jobq.engine.queue import bridge
from jobq.errors import InvalidJob, StoreError
from jobq.testing import drain

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def app(redis_url: str) -> Iterator[Queue]:
    """A queue as in an application. Its bridge ends with the test."""
    queue = Queue("app", redis_url)

    @queue.task(attempts=1)
    async def double(n: int) -> int:
        if n < 0:
            raise ValueError("negative")
        return 2 * n

    yield queue
    bridge._close()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - what the interpreter's exit does


def run_waiting(queue: Queue) -> None:
    """Run the waiting jobs in a new event loop."""
    asyncio.run(drain(queue))


# -- doors -------------------------------------------------------------------------------------------------------------


def test_enqueue_and_result(app):
    double = app.tasks["double"]
    job = double.enqueue_sync(4)
    later = double.options(delay=60).enqueue_sync(n=5)
    many = double.enqueue_many_sync([{"n": n} for n in range(3)])
    bad = double.enqueue_sync(-1)
    run_waiting(app)
    assert job.result_sync(10) == 8
    assert [one.result_sync(timeout=10) for one in many] == [0, 2, 4]
    with pytest.raises(JobFailed, match="negative"):
        bad.result_sync(10)
    with pytest.raises(InvalidJob):
        double.enqueue_sync("no number")
    assert app.sync().get(later.id).state is State.DELAYED


def test_the_verbs_of_a_queue(app):
    with app.sync() as q:
        job = q.enqueue("double", {"n": 1}, priority=3)
        assert q.get(job.id).priority == 3
        q.enqueue_many(q.new("double", {"n": n}) for n in range(2))
        q.pause()
        assert (q.stats().waiting, q.stats().paused) == (3, True)
        q.resume()
        assert len(q.page(State.WAITING, limit=10).jobs) == 3
        q.kill(job.id)
        assert q.remove_all(State.WAITING) == 2
        assert q.queues() == ["app"]
        with pytest.raises(JobFailed):
            q.result(job.id, timeout=5)


def test_a_with_block_closes_the_queue_and_a_call_without_one_keeps_it_open(app):
    def connections() -> int:
        return sum(found.status != "LISTEN" for found in psutil.Process().net_connections("unix"))

    before = connections()
    with app.sync() as q, app.sync() as again:
        q.enqueue("double", {"n": 1})
        again.enqueue("double", {"n": 1})
        assert connections() > before
    # The loop's own socket pair stays open.
    assert connections() - before <= 2
    app.sync().ready()
    kept = connections()
    assert kept - before > 2
    app.sync().ready()
    assert connections() == kept


def test_a_server_that_is_away_is_an_error_and_the_next_call_tries_again(redis_url, tmp_path):
    queue = Queue("app", f"unix://{tmp_path}/none")
    for _ in range(2):
        with pytest.raises(StoreError):
            queue.sync().enqueue("x")
    with pytest.raises(StoreError), queue.sync():
        raise AssertionError("it is not reached")
    bridge._close()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


# -- threads, forks, exit ----------------------------------------------------------------------------------------------


def test_threads_share_one_queue(app):
    double = app.tasks["double"]
    with ThreadPoolExecutor(16) as threads:
        jobs = list(threads.map(double.enqueue_sync, range(200)))
    assert len({job.id for job in jobs}) == 200
    run_waiting(app)
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(lambda job: job.result_sync(20), jobs)) == [2 * n for n in range(200)]
    assert sum(thread.name == "jobq-sync" for thread in threading.enumerate()) == 1


def _enqueue_in_child(queue: Queue, ids: Any) -> None:
    ids.put(queue.sync().enqueue("double", {"n": 7}).id)


def test_a_forked_child_has_a_loop_and_a_connection_of_its_own(app):
    fork = multiprocessing.get_context("fork")
    ids: Any = fork.Queue()
    with app.sync() as q:
        job = q.enqueue("double", {"n": 1})
        children = [fork.Process(target=_enqueue_in_child, args=(app, ids)) for _ in range(3)]
        with warnings.catch_warnings():
            # Python 3.12 warns about forks beside threads, which is the case under test.
            warnings.simplefilter("ignore", DeprecationWarning)
            for child in children:
                child.start()
        found = {ids.get(timeout=30) for _ in children}
        for child in children:
            child.join(30)
        assert [child.exitcode for child in children] == [0, 0, 0]
        assert len(found) == 3
        assert q.stats().waiting == 4
        run_waiting(app)
        assert job.result_sync(10) == 2


@pytest.mark.parametrize("whose", ["given", "started by the script"])
def test_a_script_ends_cleanly(redis_url, tmp_path, whose):
    """With a server that the script itself started, its exit printed a traceback."""
    url = redis_url if whose == "given" else None
    script = tmp_path / "script.py"
    script.write_text(
        "from jobq import Queue\n"
        f"queue = Queue('app', {url!r})\n"
        "@queue.task\n"
        "def double(n: int) -> int: return 2 * n\n"
        "print(double.enqueue_sync(1).duplicate)\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", str(script)],
        env=os.environ | {"JOBQ_DATA_DIR": str(tmp_path / "data")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # The test server has no persistence, and the log warns about that. On a busy machine asyncio's debug mode logs each
    # step that took long.
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("Redis keeps nothing", "Executing <"))]
    assert (done.returncode, done.stdout, lines) == (0, "False\n", [])


def test_a_wsgi_application(app):
    double = app.tasks["double"]

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        job = double.enqueue_sync(int(environ["QUERY_STRING"]))
        start_response("202 Accepted", [("Content-Type", "text/plain")])
        return [job.id.encode()]

    def request(n: int) -> str:
        environ: dict[str, Any] = {"QUERY_STRING": str(n), "wsgi.input": io.BytesIO()}
        setup_testing_defaults(environ)
        return b"".join(application(environ, lambda *_: None)).decode()

    with ThreadPoolExecutor(4) as threads:
        ids = list(threads.map(request, range(20)))
    run_waiting(app)
    assert [int(bytes(app.sync().result(job_id, timeout=10))) for job_id in ids] == [2 * n for n in range(20)]


async def test_a_sync_handler_enqueues_and_waits(app: Queue):
    double = app.tasks["double"]

    @app.task(attempts=1)
    def parent(n: int) -> int:
        assert double.enqueue_sync(n).result_sync(20) == 2 * n
        return n

    async with app, Worker(app, concurrency=4) as worker:
        worker.start()
        jobs = await parent.enqueue_many([{"n": n} for n in range(3)])
        assert [await job.result(30) for job in jobs] == [0, 1, 2]


# -- where it cannot be used -------------------------------------------------------------------------------------------


async def test_in_a_running_event_loop_the_error_names_the_call_to_await(app):
    double = app.tasks["double"]
    with pytest.raises(RuntimeError, match=r"would block the event loop .* write 'await queue.enqueue\(...\)'"):
        app.sync().enqueue("double", {"n": 1})
    with pytest.raises(RuntimeError, match=r"write 'await task.enqueue\(...\)'"):
        double.enqueue_sync(1)
    with pytest.raises(RuntimeError, match="would block"), app.sync():
        raise AssertionError("it is not reached")
    async with app:
        job = await double.enqueue(1)
        with pytest.raises(RuntimeError, match=r"write 'await job.result\(...\)'"):
            job.result_sync()


def test_an_enqueue_without_an_event_loop_is_refused_at_once(app):
    double = app.tasks["double"]
    for call in (
        lambda: double.enqueue(1),
        lambda: double.options(delay=1).enqueue(1),
        lambda: double.enqueue_many([{"n": 1}]),
        lambda: app.enqueue("double", {"n": 1}),
        lambda: app.enqueue_many([]),
    ):
        with pytest.raises(RuntimeError, match=r"nothing was enqueued: .*(_sync\(...\)|queue.sync\(\))"):
            call()


async def test_an_enqueue_that_is_not_awaited_says_that_nothing_was_enqueued(app):
    double = app.tasks["double"]
    async with app:
        for call in (
            lambda: double.enqueue(1),
            lambda: double.options(delay=1).enqueue(1),
            lambda: double.enqueue_many([{"n": 1}]),
            lambda: app.enqueue("double", {"n": 1}),
            lambda: app.enqueue_many([]),
        ):
            with pytest.warns(RuntimeWarning, match=r"nothing was enqueued; write 'await' .*sync"):
                call()
        assert (await app.stats()).waiting == 0


def test_each_enqueue_that_is_not_awaited_is_shown():
    code = (
        "import asyncio, jobq\n"
        "queue = jobq.Queue('app', 'redis://127.0.0.1:1')\n"
        "async def main():\n"
        "    for _ in range(3):\n"
        "        queue.enqueue('x')\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"},
    )
    assert done.stderr.count("nothing was enqueued") == 3
