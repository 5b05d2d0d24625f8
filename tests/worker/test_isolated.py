"""``isolate="process"``: handlers in child processes, which a kill or a timeout really stops."""

from __future__ import annotations

import asyncio
import os
import queue as queue_module
import signal
import threading
from pathlib import Path
from typing import Any

import isolated
import psutil
import pytest

from jobq import JobFailed, JobKilled, State
from jobq.engine.worker import child


@pytest.fixture
def process(queue):
    """Register a function of isolated.py as an isolated task."""

    def register(fn: Any, **options: Any) -> Any:
        return queue.task(isolate="process", **options)(fn)

    return register


async def _alive(where: Path, until: Any) -> int:
    await until(lambda: where.exists() and where.read_text(), "the child to run", timeout=20)
    return int(where.read_text())  # noqa: ASYNC240 - a few bytes


def _gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_a_handler_runs_in_a_child_process_that_is_used_again(process, start):
    add, pid = process(isolated.add), process(isolated.pid)
    await start(concurrency=1)
    assert await (await add.enqueue(a=1)).result(20) == 2
    first, second = [await (await pid.enqueue()).result(20) for _ in range(2)]
    assert first == second != os.getpid()


async def test_progress_and_log_lines_come_through(queue, process, start):
    talk = process(isolated.talk)
    await start()
    job = await talk.enqueue()
    assert await job.result(20) == job.id
    assert bytes((await job.row()).progress or b"") == b"2"
    assert (await job.row()).costs == {"tokens": 42}
    assert [line.message for line in await queue.logs(job.id)] == ["line 0", "line 1", "line 2"]


async def test_queue_job_and_attempt_are_bound_and_nothing_leaks_to_the_next_run(process, start):
    bound = process(isolated.bound)
    await start(concurrency=1)
    for _ in range(2):
        job = await bound.enqueue()
        assert await job.result(20) == [{"queue": "test", "job_id": job.id, "attempt": 1}, job.id]


async def test_kill_ends_the_process(queue, process, start, until, tmp_path):
    hang = process(isolated.hang)
    worker = await start()
    job = await hang.enqueue(where=str(tmp_path / "pid"))
    pid = await _alive(tmp_path / "pid", until)
    await queue.kill(job.id)
    await until(lambda: _gone(pid), "the child to be killed")
    with pytest.raises(JobKilled):
        await job.result(5)
    await until(lambda: worker.running == 0)


async def test_timeout_ends_the_process(process, start, until, tmp_path):
    hang, add = process(isolated.hang, attempts=1, timeout=3), process(isolated.add)
    await start(concurrency=1)
    # The timeout must not run while the child starts.
    await (await add.enqueue(a=1)).result(60)
    job = await hang.enqueue(where=str(tmp_path / "pid"))
    pid = await _alive(tmp_path / "pid", until)
    with pytest.raises(JobFailed, match="timeout of 3 s"):
        await job.result(10)
    await until(lambda: _gone(pid), "the child to be killed")


@pytest.mark.parametrize(("fn", "how"), [(isolated.segfault, "SIGSEGV"), (isolated.leave, "exit code 3")])
async def test_a_child_that_dies_fails_its_job_and_says_how(process, start, fn, how):
    crash, add = process(fn, attempts=1), process(isolated.add)
    await start(concurrency=1)
    job = await crash.enqueue()
    with pytest.raises(JobFailed, match=how) as failed:
        await job.result(20)
    assert failed.value.type == "ProcessCrashed"
    assert await (await add.enqueue(a=1)).result(20) == 2


async def test_a_child_that_died_while_idle_harms_no_job(process, start, until):
    pid = process(isolated.pid, attempts=1)
    await start(concurrency=1)
    first = await (await pid.enqueue()).result(20)
    # A stopped process handles nothing. Killed while it is stopped, it is found dead when the next job is sent to
    # it.
    os.kill(first, signal.SIGSTOP)
    job = await pid.enqueue()

    async def ordered() -> bool:
        return (await job.row()).state is State.ACTIVE

    await until(ordered)
    os.kill(first, signal.SIGKILL)
    assert await job.result(20) != first
    assert (await job.row()).errors == []


@pytest.mark.parametrize(
    ("how", "type_", "message", "state"),
    [
        ("plain", "ValueError", "plain", State.FAILED),
        ("exit", "SystemExit", "4", State.FAILED),
        ("discard", "Discard", "never", State.FAILED),
        ("retry", "Retry", "later", State.DELAYED),
        ("stop", "RuntimeError", "StopIteration", State.FAILED),
        ("broken", "isolated.fail.<locals>.Broken", "str() fails", State.FAILED),
        ("result", "InvalidResult", "cannot be encoded as JSON", State.FAILED),
    ],
)
async def test_an_exception_in_a_child_is_reported_by_the_worker(process, start, until, how, type_, message, state):
    final = how in ("discard", "result")
    fail = process(isolated.fail, attempts=2 if final or how == "retry" else 1)
    await start(concurrency=1)
    job = await fail.enqueue(how=how)

    async def ended() -> bool:
        return bool((await job.row()).errors)

    await until(ended, timeout=20)
    row = await job.row()
    error = row.errors[0]
    assert (row.state, error.type) == (state, type_)
    assert message in error.message
    if how == "plain":
        assert error.traceback is not None
        assert "isolated.py" in error.traceback.splitlines()[1]


async def test_a_dependency_of_worker_scope_lives_as_long_as_its_child(process, start):
    use = process(isolated.use)
    await start(concurrency=1)
    first = await (await use.enqueue()).result(20)
    assert await (await use.enqueue()).result(20) == first


async def test_worker_scope_is_closed_in_the_child(process, start, until, tmp_path, monkeypatch):
    note = tmp_path / "note"
    monkeypatch.setenv("JOBQ_TEST_NOTE", str(note))
    use = process(isolated.use_noted)
    worker = await start(concurrency=1)
    assert await (await use.enqueue()).result(20) == "open"
    assert not note.exists()
    worker.stop()
    await until(note.exists, "the dependency to be closed")
    await until(lambda: note.read_text() == "closed")


async def test_no_child_is_left_when_the_worker_stops(process, start, until, tmp_path):
    hang, add = process(isolated.hang), process(isolated.add)
    before = set(psutil.Process().children())
    worker = await start(concurrency=2, grace=0.1)
    await (await add.enqueue(a=1)).result(20)
    job = await hang.enqueue(where=str(tmp_path / "pid"))
    await _alive(tmp_path / "pid", until)
    worker.stop()
    await until(lambda: not set(psutil.Process().children()) - before, "the children to be gone")

    async def handed_back() -> bool:
        row = await job.row()
        return (row.state, row.attempts_made) == (State.WAITING, 0)

    await until(handed_back)


async def test_a_handler_that_no_child_could_find_is_refused_at_once(queue):
    with pytest.raises(TypeError, match="top level of a module"):

        @queue.task(isolate="process")
        def local() -> None: ...


async def test_children_end_with_their_parent(tmp_path, redis_url, until):
    script = tmp_path / "service.py"
    script.write_text(
        "import asyncio, sys\n"
        "from jobq import Queue, Worker\n"
        f"sys.path.insert(0, {str(Path(isolated.__file__).parent)!r})\n"
        "import isolated\n"
        f"queue = Queue('orphans', {redis_url!r})\n"
        "hang = queue.task(isolate='process')(isolated.hang)\n"
        "async def main():\n"
        "    async with queue, Worker(queue) as worker:\n"
        "        await hang.enqueue(where=sys.argv[1])\n"
        "        await worker.run()\n"
        "asyncio.run(main())\n"
    )
    import sys

    service = await asyncio.create_subprocess_exec(sys.executable, str(script), str(tmp_path / "pid"))
    pid = await _alive(tmp_path / "pid", until)
    service.kill()
    await service.wait()
    await until(lambda: _gone(pid), "the child to end with its killed parent")


def test_a_child_that_lost_the_connection_to_its_parent_ends(monkeypatch):
    """The handler used up its memory. If it could not notice the end of its parent, it would live on."""

    class Deaf:
        def makefile(self, _: str) -> Any:
            raise MemoryError

    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    deaf: Any = Deaf()
    child.listen(deaf, child.Channel(deaf), queue_module.SimpleQueue(), threading.Event())
    assert codes == [1]


@pytest.mark.parametrize("how", ["plain", "local"])
async def test_errors_of_child_processes_are_discarded_by_the_names_of_their_classes(process, start, how: str):
    fail = process(isolated.fail, attempts=5, discard_on=(ConnectionError, ValueError))
    await start()
    job = await fail.enqueue(how=how)
    with pytest.raises(JobFailed):
        await job.result(20)
    assert (await job.row()).attempts_made == 1
