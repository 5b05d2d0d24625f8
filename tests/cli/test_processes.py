"""dev, serve, work and top as processes: their output, and what remains after Ctrl-C and SIGKILL."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import redis
from waiting import holds

from jobq.http.auth import new_key
from jobq.http.serve import free_port
from jobq.redact import redact

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Process

EXAMPLE = "examples/email.py:queue"
ROOT = Path(__file__).parents[2]


def get(url: str, payload: Any = None) -> Any:
    """Send a request with the standard library's client. Both bodies are JSON."""
    body = None if payload is None else json.dumps(payload).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def of_directory(folder: Path) -> list[psutil.Process]:
    """Every process with this directory as its working directory, in its command line or in its environment."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            about = [process.cwd(), *process.cmdline(), *process.environ().values()]
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found += [process] if any(str(folder) in word for word in about) else []
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def begin_dev(start: Callable[..., Process], *words: str, **env: str) -> tuple[Process, str]:
    """``jobq dev`` after it has printed its summary and both workers run. Yields its address."""
    port = free_port()
    dev = start("dev", EXAMPLE, "--port", str(port), *words, **env)
    dev.wait_line("Ctrl-C stops")
    dev.wait_line("worker started")
    dev.wait_line("worker started")
    return dev, f"http://127.0.0.1:{port}"


def test_the_commands_that_dev_shows_can_be_run(start, tmp_path):
    dev, rest = begin_dev(start)
    screen = "\n".join(dev.lines)
    assert "queue    email: email, report, flaky, crunch" in screen
    assert f"redis    embedded, data in {tmp_path / 'data'}" in screen
    assert f"rest     {rest}" in screen
    assert f"look     {rest}/dashboard" in screen
    assert "workers  2 processes, 100 jobs at a time each" in screen
    curls = [line.strip() for line in dev.lines if line.strip().startswith("curl ")]
    assert len(curls) == 3
    if not shutil.which("curl"):
        pytest.skip("there is no curl")
    enqueue, stats, jobs = ([*shlex.split(line), "--silent", "--fail"] for line in curls)
    job = json.loads(subprocess.check_output(enqueue))["id"]
    assert "waiting" in json.loads(subprocess.check_output(stats))
    holds(
        lambda: job in [row["id"] for row in json.loads(subprocess.check_output(jobs))["jobs"]],
        "the job is among the completed ones",
    )


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_and_keeps_the_data(start, tmp_path):
    dev, rest = begin_dev(start)
    job = get(f"{rest}/jobs/enqueue", {"type": "email", "payload": {"to": "a@example.com"}, "delay": 3_600_000})["id"]
    get(f"{rest}/jobs/enqueue", {"type": "crunch", "payload": {"limit": 10}})
    assert len(of_directory(tmp_path)) >= 5, "dev, two workers, keeper, server"
    dev.signal(signal.SIGINT)
    assert dev.end() == 0
    assert of_directory(tmp_path) == []
    with pytest.raises(OSError, match="refused"):
        get(f"{rest}/healthz")
    dev, rest = begin_dev(start)
    assert get(f"{rest}/jobs/{job}")["state"] == "delayed"


def test_ctrl_c_twice_does_not_wait_for_jobs(start, tmp_path):
    dev, rest = begin_dev(start, "--grace", "1h")
    get(f"{rest}/jobs/enqueue", {"type": "report", "payload": {"rows": 100_000}})
    holds(lambda: get(f"{rest}/jobs/stats")["active"] == 1, "the job runs")
    dev.signal(signal.SIGINT)
    dev.wait_line("press Ctrl-C again to stop at once")
    dev.signal(signal.SIGINT)
    assert dev.end() == 0
    assert of_directory(tmp_path) == []


@pytest.mark.slow
def test_a_killed_dev_leaves_nothing_behind_either(start, tmp_path):
    dev, rest = begin_dev(start)
    get(f"{rest}/jobs/enqueue", {"type": "report", "payload": {"rows": 100_000}})
    holds(lambda: get(f"{rest}/jobs/stats")["active"] == 1, "the job runs")
    dev.signal(signal.SIGKILL)
    dev.end()
    holds(lambda: not of_directory(tmp_path), "workers, keeper and server follow", 30)


def test_a_killed_worker_process_is_replaced(start):
    dev, rest = begin_dev(start)
    workers = [child for child in dev.children() if "work" in child.cmdline()]
    assert len(workers) == 2
    workers[0].kill()
    dev.wait_line("worker died")
    dev.wait_line("worker started")
    job = get(f"{rest}/jobs/enqueue", {"type": "email", "payload": {"to": "a@example.com"}})["id"]
    assert "sent" in get(f"{rest}/jobs/{job}/result?wait=10000")


@pytest.mark.slow
def test_a_second_process_joins_the_embedded_server(start, tmp_path):
    dev, rest = begin_dev(start)
    job = get(f"{rest}/jobs/enqueue", {"type": "email", "payload": {"to": "a@example.com"}})["id"]
    show = start("show", job, "--json")
    assert job in show.wait_line("email")
    assert show.end() == 0
    work = start("work", EXAMPLE)
    work.wait_line("worker started")
    dev.signal(signal.SIGINT)
    assert dev.end() == 0
    # The process that joined keeps the server, and stops it at the end.
    stats = start("stats", "--json")
    assert '"workers":1' in stats.wait_line("email")
    stats.end()
    work.signal(signal.SIGTERM)
    assert work.end() == 0
    holds(lambda: not of_directory(tmp_path), "the last one out stopped the server")


def test_dev_on_a_server_of_the_users(start, tmp_path, redis_url):
    dev, rest = begin_dev(start, JOBQ_REDIS_URL=redis_url)
    assert f"redis    {redact(redis_url)}" in "\n".join(dev.lines)
    job = get(f"{rest}/jobs/enqueue", {"type": "email", "payload": {"to": "a@example.com"}})["id"]
    assert "sent" in get(f"{rest}/jobs/{job}/result?wait=10000")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["dev", "examples/email.py:nope"], "has no 'nope'; its queues are: queue"),
        (["work", "no_such_module:queue"], "there is no module 'no_such_module'"),
        (["work", EXAMPLE, "--weight", "mail=2"], "--weight: there is no queue mail; the queues are email"),
        (["serve", "--host", "0.0.0.0"], "no API key is set"),
        (["serve", "--api-keys", "nonsense"], "it takes name:sha256-of-the-key:scope"),
        (["serve", "--host", "192.0.2.1", "--api-keys", f"a:{'0' * 64}:read"], "cannot listen on 192.0.2.1"),
    ],
)
def test_a_command_that_cannot_start_prints_one_line(start, words, error):
    process = start(*words)
    assert error in process.wait_line("jobq: ")
    assert process.end() == 2


@pytest.mark.slow
def test_a_taken_port(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for command in (["dev", EXAMPLE], ["serve", "--queue", "q"]):
            process = start(*command, "--port", str(port))
            assert f"port {port} of 127.0.0.1 is taken: choose another with --port" in process.wait_line("jobq: ")
            assert process.end() == 2


def test_a_session_holds_in_each_of_several_processes(start, redis_url):
    port, (secret, key) = free_port(), new_key("ops")
    serve = start("serve", "--processes", "2", "--port", str(port), JOBQ_REDIS_URL=redis_url, JOBQ_API_KEYS=key.entry())
    serve.wait_line("serving")
    serve.wait_line("serving")
    address, kind = f"http://127.0.0.1:{port}", {"Content-Type": "application/json"}
    body = json.dumps({"key": secret}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{address}/dashboard/login", body, kind), timeout=10) as answer:
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
    for _ in range(20):  # Each request has its own connection, so that both processes get some.
        request = urllib.request.Request(f"{address}/jobs/stats", headers={"Cookie": cookie})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200


@pytest.mark.slow
def test_serve_on_one_port_with_several_processes(start, tmp_path):
    port = free_port()
    serve = start("serve", "--queue", "mail", "--queue", "other", "--processes", "2", "--port", str(port))
    serve.wait_line("serving")
    serve.wait_line("serving")
    rest = f"http://127.0.0.1:{port}"
    assert get(f"{rest}/jobs/enqueue", {"type": "x", "payload": {}})["id"].startswith("mail:")
    assert get(f"{rest}/queues/other/jobs/enqueue", {"type": "x", "payload": {}})["id"].startswith("other:")
    servers = [child for child in serve.children() if "serve" in child.cmdline()]
    assert len(servers) == 2
    servers[0].kill()
    serve.wait_line("server died")
    serve.wait_line("serving")
    serve.signal(signal.SIGTERM)
    assert serve.end() == 0
    assert of_directory(tmp_path) == []


def test_work_gives_running_jobs_their_grace(start, tasks, tmp_path):
    work = start("work", tasks, "--processes", "1")
    work.wait_line("worker started")
    gate = json.dumps({"file": str(tmp_path / "gate")})
    job = start("enqueue", "gated", gate, "--queue", "tasks", "--create").wait_line("tasks:")
    holds(lambda: '"state":"active"' in start("show", job, "--json").wait_line("tasks:"), "the job runs")
    keep = start("work", tasks, "--processes", "0")  # Keeps the server for the last check.
    keep.wait_line("worker started")
    work.signal(signal.SIGTERM)
    work.wait_line("worker stops")
    (tmp_path / "gate").touch()
    assert work.end() == 0
    assert '"state":"completed"' in start("show", job, "--json").wait_line("tasks:")


def test_sigterm_to_every_process_gives_running_jobs_their_grace(start, tasks, redis_url, jobq):
    """This is systemd's default, KillMode=control-group. The worker gets it from the system and from its supervisor."""
    work = start("work", tasks, "--grace", "30", JOBQ_REDIS_URL=redis_url)
    work.wait_line("worker started")
    job = jobq("enqueue", "sleepy", '{"seconds": 2}', "--queue", "tasks").out.strip()
    holds(lambda: jobq("show", job, "--json").json[0]["state"] == "active", "the job runs")
    everybody = [*work.children(), psutil.Process(work.popen.pid)]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        for process in everybody[:-1]:
            process.send_signal(number)
    everybody[-1].send_signal(signal.SIGTERM)
    assert work.end() == 0
    row = jobq("show", job, "--json").json[0]
    assert (row["state"], row["attempts_made"]) == ("completed", 1)


@pytest.mark.parametrize("processes", ["0", "1"])
def test_a_handler_may_leave_a_pool(start, tasks, redis_url, jobq, processes):
    """That sends SIGTERM to copies of the worker. They have to end, and the worker has to go on."""
    jobs = [jobq("enqueue", "pooled", "--queue", "tasks", "--create").out.strip() for _ in range(5)]
    work = start("work", tasks, "--burst", "--concurrency", "1", "--processes", processes, JOBQ_REDIS_URL=redis_url)
    assert work.end(60) == 0
    rows = [jobq("show", job, "--json").json[0] for job in jobs]
    assert [(row["state"], row["attempts_made"]) for row in rows] == [("completed", 1)] * 5


@pytest.mark.parametrize("processes", ["0", "2"])
def test_a_burst_ends_when_nothing_is_left_to_do(start, tasks, redis_url, jobq, processes):
    for word in ("a", "b", "c"):
        jobq("enqueue", "echo", json.dumps({"word": word}), "--queue", "tasks", "--create")
    jobq("enqueue", "sleepy", '{"seconds": 1}', "--queue", "tasks")
    later = jobq("enqueue", "echo", "--delay", "1h", "--queue", "tasks").out.strip()
    work = start("work", tasks, "--burst", "--processes", processes, JOBQ_REDIS_URL=redis_url)
    assert work.end(60) == 0
    stats = jobq("stats", "tasks", "--json").json[0]
    assert (stats["waiting"], stats["active"], stats["completed"]) == (0, 0, 4)
    assert jobq("show", later, "--json").json[0]["state"] == "delayed"


def test_a_burst_does_not_wait_for_a_paused_queue(start, tasks, redis_url, jobq):
    jobq("enqueue", "echo", "--queue", "tasks", "--create")
    jobq("pause", "tasks")
    assert start("work", tasks, "--burst", JOBQ_REDIS_URL=redis_url).end(60) == 0
    assert jobq("stats", "tasks", "--json").json[0]["waiting"] == 1


def test_a_burst_does_not_wait_for_a_paused_group(start, tasks, redis_url, jobq):
    jobq("enqueue", "echo", "--group", "a", "--queue", "tasks", "--create")
    jobq("enqueue", "echo", "--group", "b", "--queue", "tasks")
    jobq("groups", "pause", "a", "--queue", "tasks")
    assert start("work", tasks, "--burst", JOBQ_REDIS_URL=redis_url).end(60) == 0
    stats = jobq("stats", "tasks", "--json").json[0]
    assert (stats["held"], stats["completed"]) == (1, 1)


def test_a_burst_that_waits_for_held_jobs_says_so(start, tasks, redis_url, jobq):
    jobq("limits", "set", "api", "--concurrency", "0", "--queue", tasks)
    jobq("enqueue", "echo", "--limits", "api", "--queue", "tasks")
    work = start("work", tasks, "--burst", JOBQ_REDIS_URL=redis_url)
    work.wait_line("--burst waits for held jobs of tasks: jobq why --queue QUEUE says what holds them")
    jobq("limits", "set", "api", "--concurrency", "1", "--queue", "tasks")
    assert work.end(60) == 0


@pytest.mark.slow
def test_dev_reloads_rest_and_workers(start, tasks, tmp_path):
    port = free_port()
    dev = start("dev", tasks, "--reload", "--port", str(port), "--processes", "1")
    dev.wait_line("Ctrl-C stops")
    dev.wait_line("worker started")
    file = tmp_path / "cli_tasks.py"
    file.write_text(file.read_text() + "\n@queue.task\nasync def added() -> int:\n    return 7\n")
    dev.wait_line("added")
    dev.wait_line("worker started")
    job = get(f"http://127.0.0.1:{port}/jobs/enqueue", {"type": "added"})["id"]
    assert get(f"http://127.0.0.1:{port}/jobs/{job}/result?wait=10000") == 7
    dev.signal(signal.SIGINT)
    assert dev.end() == 0
    assert of_directory(tmp_path) == []


def test_a_second_signal_to_the_supervisor_hands_jobs_back_at_once(start, tasks, redis_url, jobq):
    work = start("work", tasks, "--grace", "1h", JOBQ_REDIS_URL=redis_url)
    work.wait_line("worker started")
    job = jobq("enqueue", "sleepy", '{"seconds": 60}', "--queue", "tasks").out.strip()
    holds(lambda: jobq("show", job, "--json").json[0]["state"] == "active", "the job runs")
    work.signal(signal.SIGTERM)
    work.wait_line("jobs still run, and have")
    work.signal(signal.SIGTERM)
    assert work.end() == 0
    row = jobq("show", job, "--json").json[0]
    assert (row["state"], row["attempts_made"]) == ("waiting", 0)


@pytest.mark.parametrize(
    ("url", "error"),
    [("unix://nobody:wrong@{socket}", "Redis refuses this user"), ("unix:///nowhere/redis", "no answer from Redis")],
    ids=["password", "address"],
)
def test_work_prints_one_line_if_redis_refuses_it(start, tasks, server, url, error):
    work = start("work", tasks, JOBQ_REDIS_URL=url.format(socket=server.socket))
    assert error in work.wait_line("jobq: ")
    assert work.end() == 1
    assert not [line for line in work.lines if "died" in line]
    with redis.Redis.from_url(server.admin_url) as admin:
        admin.execute_command("ACL", "LOG", "RESET")  # The test expects a refusal.


def test_a_worker_that_redis_refuses_later_is_not_started_again_and_again(start, tasks, server, redis_url):
    with redis.Redis.from_url(server.admin_url) as admin:
        admin.execute_command("ACL", "SETUSER", "passing", "on", ">secret", "~*", "&*", "+@all")
        work = start("work", tasks, JOBQ_REDIS_URL=f"unix://passing:secret@{server.socket}")
        work.wait_line("worker started")
        admin.execute_command("ACL", "SETUSER", "passing", "resetpass", ">another")
        (worker,) = [child for child in work.children() if "work" in child.cmdline()]
        worker.kill()
        assert work.end() == 1
        assert "a restart would not help" in work.wait_line("worker cannot run")
        admin.execute_command("ACL", "DELUSER", "passing")
        admin.execute_command("ACL", "LOG", "RESET")


@pytest.mark.slow
def test_a_stuck_thread_does_not_keep_a_worker_process_alive(start, tasks):
    work = start("work", tasks, "--grace", "0.1")
    work.wait_line("worker started")
    start("enqueue", "sleepy", '{"seconds": 3600}', "--queue", "tasks", "--create").wait_line("tasks:")
    holds(
        lambda: '"active":1' in start("stats", "--json").wait_line("tasks"),
        "the job runs",
    )
    work.signal(signal.SIGTERM)
    assert work.end(15) == 0


def test_weights_reach_the_workers(start, tmp_path):
    file = tmp_path / "two.py"
    file.write_text("from jobq import Queue\na, b = Queue('a'), Queue('b')\nboth = [a, b]\n")
    work = start("work", f"{file}:both", "--weight", "a=3")
    work.wait_line("worker started")
    (worker,) = [child for child in work.children() if "work" in child.cmdline()]
    assert "--weight=a=3" in worker.cmdline()


@pytest.mark.parametrize("rich", [True, False], ids=["rich", "plain"])
def test_top_is_live_and_q_quits(tmp_path, redis_url, jobq, rich):
    jobq("enqueue", "x", "--queue", "shown", "--create")
    if not rich:  # A module of this name that cannot be imported is found first.
        (tmp_path / "rich.py").write_text("raise ImportError\n")
    ours, theirs = pty.openpty()
    env = {**os.environ, "JOBQ_REDIS_URL": redis_url, "TERM": "xterm", "COLUMNS": "140", "LINES": "40"}
    env["PYTHONPATH"] = str(tmp_path)
    top = subprocess.Popen(
        [sys.executable, "-m", "jobq", "top", "--interval", "50ms"], stdin=theirs, stdout=theirs, stderr=theirs, env=env
    )
    os.close(theirs)
    seen = b""
    while b"shown" not in seen:
        seen += os.read(ours, 65536)
    os.write(ours, b"q")
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
    except OSError:  # Linux reports in this way that the other side is closed.
        pass
    assert top.wait(10) == 0
    os.close(ours)
    assert b"Traceback" not in seen
    assert (b"\x1b[?1049l" in seen) == rich, "the terminal's own screen is back"


def test_top_into_a_pipe_is_plain_text(start, redis_url, jobq):
    jobq("enqueue", "x", "--queue", "shown", "--create")
    top = start("top", "--interval", "50ms", JOBQ_REDIS_URL=redis_url)
    top.wait_line("QUEUE")
    assert re.match(r"shown +1 +0", top.wait_line("shown"))
    top.wait_line("QUEUE")
    top.signal(signal.SIGINT)
    assert top.end() == 0


@pytest.mark.skipif(not shutil.which("bash"), reason="PIPESTATUS is bash's")
def test_output_into_a_closed_pipe_is_not_an_error(redis_url, jobq):
    for _ in range(3):
        jobq("enqueue", "x", "--queue", "shown", "--create")
    command = f"{shlex.quote(sys.executable)} -m jobq ls --json | true; exit ${{PIPESTATUS[0]}}"
    env = {**os.environ, "JOBQ_REDIS_URL": redis_url}
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, check=True)
    assert done.stderr == b""


def test_the_script_example_runs_from_anywhere(tmp_path):
    script = ROOT / "examples" / "embedding" / "script.py"
    env = {**os.environ, "JOBQ_DATA_DIR": str(tmp_path / "data"), "JOBQ_REDIS_URL": ""}
    said = subprocess.check_output([sys.executable, str(script)], env=env, cwd=tmp_path, text=True, timeout=60)
    assert said == "Hello, Ada!\nHello, Grace!\nHello, Edsger!\n"
    assert of_directory(tmp_path) == []
