"""``isolate="process"`` with handlers that fork, start programs, leave threads, print, and break their process."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import isolated
import psutil
import pytest
from structlog.contextvars import get_contextvars
from test_isolated import _alive, _gone

from jobq import JobFailed, Queue
from jobq.engine.model.outcome import RemoteTraceback
from jobq.engine.worker import children, lending
from jobq.errors import ProcessCrashed, RemoteError


@pytest.fixture
def process(queue):
    """Register a function of isolated.py as an isolated task."""

    def register(fn: Any, **options: Any) -> Any:
        return queue.task(isolate="process", **options)(fn)

    return register


# -- forks -------------------------------------------------------------------------------------------------------------


async def test_a_killed_child_ends_its_job_although_forks_hold_its_connection(process, start):
    task, pid = process(isolated.pool_then_die, attempts=1), process(isolated.pid)
    await start(concurrency=1)
    with pytest.raises(JobFailed, match="SIGKILL"):
        await (await task.enqueue()).result(20)
    assert await (await pid.enqueue()).result(20)


async def test_the_processes_of_a_pool_end_with_the_child(process, start, until):
    task = process(isolated.pool_then_die, attempts=1)
    await start(concurrency=1)
    before = {found.pid for found in psutil.process_iter()}
    with pytest.raises(JobFailed):
        await (await task.enqueue()).result(20)
    command = "jobq.engine.worker.child"

    def left() -> list[psutil.Process]:
        return [
            found
            for found in psutil.process_iter(["cmdline"])
            if found.pid not in before and command in (found.info["cmdline"] or []) and not _gone(found.pid)
        ]

    await until(lambda: not left(), "the forks to end")


async def test_a_handler_may_leave_a_multiprocessing_pool_open(process, start):
    pool = process(isolated.pool)
    await start()
    assert await (await pool.enqueue()).result(20) == 3


@pytest.mark.parametrize("how", ["exit", "raise", "return"])
async def test_a_forked_copy_of_a_handler_cannot_end_the_job(process, start, how):
    fork, add = process(isolated.fork), process(isolated.add)
    await start(concurrency=1)
    assert await (await fork.enqueue(how=how)).result(20) == "the original"
    assert [await (await add.enqueue(a=n)).result(20) for n in range(3)] == [1, 2, 3]


async def test_a_forked_copy_of_an_async_handler_cannot_end_the_job(process, start):
    fork, add = process(isolated.fork_async), process(isolated.add)
    await start(concurrency=1)
    assert await (await fork.enqueue()).result(20) == "the original"
    assert await (await add.enqueue(a=1)).result(20) == 2


async def test_a_forked_copy_of_a_handler_gets_an_error_when_it_reports(queue, process, start):
    task = process(isolated.fork_and_talk)
    await start()
    job = await task.enqueue()
    assert "a copy of it that the handler forked" in await job.result(20)
    assert [line.message for line in await queue.logs(job.id)] == ["from the original"]


async def test_a_daemon_does_not_keep_its_job_active(process, start, until, tmp_path):
    task = process(isolated.daemonise, attempts=1)
    await start()
    job = await task.enqueue(where=str(tmp_path / "pid"))
    with pytest.raises(JobFailed, match="exit code 0"):
        await job.result(20)
    where = tmp_path / "pid"
    await until(lambda: where.exists() and where.read_text(), "the daemon to say its process id", timeout=20)
    os.kill(int(where.read_text()), signal.SIGKILL)


# -- what a job leaves behind ------------------------------------------------------------------------------------------


async def test_a_thread_left_over_by_a_handler_cannot_log_into_the_next_job(queue, process, start, caplog):
    first, second = process(isolated.leave_a_thread), process(isolated.let_it_talk)
    bound: list[Any] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            bound.append((record.getMessage(), get_contextvars()))

    handler = Handler()
    logging.root.addHandler(handler)
    try:
        await start(concurrency=1)
        await (await first.enqueue()).result(20)
        job = await second.enqueue()
        await job.result(20)
    finally:
        logging.root.removeHandler(handler)
    assert [line.message for line in await queue.logs(job.id)] == ["mine"]
    assert bytes((await job.row()).progress or b"") == b'"mine"'
    # The line itself is not lost, and names no job.
    assert ("of a left-over thread", {}) in bound


@pytest.mark.parametrize("how", ["kill", "timeout"])
async def test_a_kill_and_a_timeout_end_the_programs_of_the_handler(queue, process, start, until, tmp_path, how):
    task = process(isolated.start_program, attempts=1, timeout=3 if how == "timeout" else None)
    add = process(isolated.add)
    await start(concurrency=1)
    # The timeout must not run while the child starts.
    await (await add.enqueue(a=1)).result(60)
    job = await task.enqueue(where=str(tmp_path / "pid"))
    pid = await _alive(tmp_path / "pid", until)
    if how == "kill":
        await queue.kill(job.id)
    await until(lambda: _gone(pid), "the program to end")


async def test_programs_that_handlers_left_end_with_the_worker(process, start, until, tmp_path):
    task = process(isolated.leave_program)
    worker = await start()
    await (await task.enqueue(where=str(tmp_path / "pid"))).result(20)
    pid = await _alive(tmp_path / "pid", until)
    assert not _gone(pid)
    worker.stop()
    await until(lambda: _gone(pid), "the program to end")


async def test_a_child_whose_import_failed_is_replaced(queue, start, tmp_path, monkeypatch, logs):
    flag = tmp_path / "flag"
    (tmp_path / "late_module.py").write_text(
        "import os\n"
        f"if os.path.exists({str(flag)!r}):\n"
        f"    os.unlink({str(flag)!r})\n"
        "    raise ConnectionError('the configuration server is away')\n"
        "def work(x: int) -> int:\n"
        "    return x\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    work = queue.task(isolate="process", attempts=1)(importlib.import_module("late_module").work)
    try:
        await start(concurrency=1)
        flag.touch()
        with pytest.raises(JobFailed, match="the configuration server is away"):
            await (await work.enqueue(x=0)).result(20)
        assert [await (await work.enqueue(x=n)).result(20) for n in (1, 2)] == [1, 2]
        logs.one("could not load the handler")
    finally:
        del sys.modules["late_module"]


# -- signals and standard streams --------------------------------------------------------------------------------------


async def test_signals_to_every_process_do_not_end_a_child(process, start):
    signals, stop = process(isolated.get_signals), process(isolated.stop_program)
    await start()
    assert await (await signals.enqueue()).result(20) == "still here"
    assert await (await stop.enqueue()).result(20) == -signal.SIGTERM


async def test_signals_while_a_child_starts_do_not_end_it(process, start, tmp_path, monkeypatch):
    """The interpreter runs sitecustomize before jobq could install any signal handler."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        f"open({str(tmp_path / 'signalled')!r}, 'w').close()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    add, stop = process(isolated.add, attempts=1), process(isolated.stop_program)
    await start(concurrency=1)
    assert await (await add.enqueue(a=1)).result(20) == 2
    assert (tmp_path / "signalled").exists()
    assert await (await stop.enqueue()).result(20) == -signal.SIGTERM, "the program's signals are not blocked"


async def test_a_child_is_in_a_session_of_its_own(process, start):
    pid = process(isolated.pid)
    await start()
    found = await (await pid.enqueue()).result(20)
    assert os.getsid(found) == os.getpgid(found) == found


async def test_a_sync_handler_may_run_a_loop_and_enqueue(process, start, redis_url):
    task, enqueue, add = process(isolated.run_a_loop), process(isolated.enqueue_sync), process(isolated.add)
    await start(concurrency=1)
    assert await (await task.enqueue()).result(20) == 5
    job_id = await (await enqueue.enqueue(url=redis_url)).result(20)
    assert await (await add.enqueue(a=1)).result(20) == 2
    async with Queue("other", redis_url) as other:
        assert (await other.get(job_id)).type == "x"


async def test_a_handler_that_reads_stdin_fails_at_once(process, start):
    task = process(isolated.read_stdin, attempts=1)
    await start()
    with pytest.raises(JobFailed) as failed:
        await (await task.enqueue()).result(20)
    assert failed.value.type == "EOFError"


async def test_output_that_a_handler_prints_is_not_read_as_a_message(process, start):
    task = process(isolated.print_much)
    await start()
    assert await (await task.enqueue(lines=2000)).result(20) == 2000


def _slots(worker: Any) -> int:
    return worker._pool.slots.concurrency  # noqa: SLF001


async def test_an_isolated_handler_that_waits_for_another_job_lends_its_slot(queue, process, start, redis_url):
    wait, _ = process(isolated.wait_for_add), process(isolated.add)
    worker = await start(concurrency=1)
    job = await wait.enqueue(url=redis_url, queue=queue.name, a=1)
    assert await job.result(20) == 2
    assert _slots(worker) == 1  # The lent slot was taken back.


async def test_an_isolated_handler_catches_that_too_many_wait(queue, process, start, redis_url, monkeypatch):
    monkeypatch.setattr(lending, "LENT_MAX", 0)
    parent, add = process(isolated.add_or_not), process(isolated.add)
    worker = await start(concurrency=2)
    job = await parent.enqueue(url=redis_url, queue=queue.name)
    assert await job.result(20) == f"add_or_not {job.id} True 0"
    assert await (await add.enqueue(a=1)).result(20) == 2, "the child goes on"
    assert _slots(worker) == 2


async def test_a_child_that_dies_while_it_waits_takes_its_slot_back(queue, process, start, redis_url, until):
    wait = process(isolated.wait_for_add)
    worker = await start(concurrency=1)
    job = await wait.enqueue(url=redis_url, queue=queue.name, a=1, type="nobody-serves-this")
    await until(lambda: _slots(worker) == 2, "the slot to be lent", timeout=20)
    await queue.kill(job.id)
    await until(lambda: _slots(worker) == 1, "the slot to be taken back")


# -- broken children ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "arguments", "why"),
    [
        (isolated.close_all, {}, "exit code 1"),
        (isolated.write_nonsense, {"data": "ffffffff"}, "something else than jobq"),
        (isolated.write_nonsense, {"data": "00000001ff"}, "something else than jobq"),
    ],
)
async def test_a_child_that_breaks_its_connection_fails_its_job_only(process, start, fn, arguments, why):
    task, add = process(fn, attempts=1), process(isolated.add)
    await start(concurrency=1)
    with pytest.raises(JobFailed, match=why) as failed:
        await (await task.enqueue(**arguments)).result(20)
    assert failed.value.type == "ProcessCrashed"
    assert await (await add.enqueue(a=1)).result(20) == 2


async def test_a_child_that_does_not_start_is_killed(process, start, tmp_path, monkeypatch):
    (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(children, "STARTING", 0.1)
    add = process(isolated.add, attempts=1)
    await start()
    with pytest.raises(JobFailed, match="did not start within"):
        await (await add.enqueue(a=1)).result(20)


async def test_a_result_that_no_message_can_hold_fails_the_job(process, start):
    big, add = process(isolated.big), process(isolated.add)
    await start(concurrency=1)
    with pytest.raises(JobFailed, match="the handler's result has") as failed:
        await (await big.enqueue(size=children.MESSAGE_MAX)).result(60)
    assert failed.value.type == "InvalidResult"
    assert await (await add.enqueue(a=1)).result(20) == 2


# -- logs and errors ---------------------------------------------------------------------------------------------------


async def test_log_lines_are_the_workers_with_the_jobs_id(process, start, caplog, capfd):
    task = process(isolated.write_log)
    bound: dict[str, Any] = {}

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            bound[record.getMessage()] = get_contextvars()

    handler = Handler()
    caplog.set_level(logging.INFO, logger="app")
    logging.getLogger("app").addHandler(handler)
    try:
        await start()
        job = await task.enqueue()
        await job.result(20)
    finally:
        logging.getLogger("app").removeHandler(handler)
    records = [record for record in caplog.records if record.name == "app"]
    texts = [record.getMessage() for record in records]
    assert texts[:2] == ["a line with an argument", "it failed"]
    assert "characters left out" in texts[2]
    assert len(texts[2]) < 10_000
    assert texts[3:] == ["large fields"]
    plain, failed = records[:2]
    assert (plain.customer, plain.odd) == (7, "(1+2j)")  # type: ignore[attr-defined]
    assert (plain.levelname, plain.funcName, plain.filename) == ("INFO", "write_log", "isolated.py")
    assert plain.process != os.getpid()
    assert failed.exc_text is not None
    assert "ValueError: inner" in failed.exc_text
    assert bound["it failed"] == {"queue": "test", "job_id": job.id, "attempt": 1}
    # The worker's structlog writes the events of structlog. By default it prints them.
    out = capfd.readouterr().out
    assert "an event" in out
    assert job.id in out


@pytest.mark.parametrize(
    ("how", "type_", "rebuilt", "message"),
    [
        ("os", FileNotFoundError, True, "/does/not/exist"),
        ("odd", isolated.Odd, True, "here: 7"),
        ("local", RemoteError, False, "of nowhere"),
        ("object", RemoteError, False, "<object object at"),
        ("group", RemoteError, False, "several"),
    ],
)
async def test_middleware_sees_the_handlers_exception(queue, process, start, how, type_, rebuilt, message):
    seen: list[Exception] = []

    @queue.middleware
    async def look(_: Any, call_next: Any) -> Any:
        try:
            return await call_next()
        except Exception as error:
            seen.append(error)
            raise

    task = process(isolated.raise_, attempts=1)
    await start()
    with pytest.raises(JobFailed) as failed:
        await (await task.enqueue(how=how)).result(20)
    (error,) = seen
    assert type(error) is type_
    assert message in str(error)
    trace = failed.value.traceback
    assert trace is not None
    assert "isolated.py" in trace
    if rebuilt:
        assert str(error.__cause__) == trace
        assert isinstance(error.__cause__, RemoteTraceback)
    else:
        assert isinstance(error, RemoteError)
        assert error.traceback == trace
        assert error.type == failed.value.type
    if isinstance(error, OSError):
        assert (error.errno, error.filename) == (2, "/does/not/exist")
    if isinstance(error, isolated.Odd):
        assert error.code == 7
    assert not isinstance(error, ProcessCrashed)
    assert Path(isolated.__file__).name in trace
