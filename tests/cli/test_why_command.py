"""``jobq why``: the reasons as sentences, and as JSON."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Said

NO_WORKER = "- No worker is alive: nothing runs until one starts (jobq work TARGET).\n"


def test_why_a_job_does_not_run(jobq: Callable[..., Said], tasks: str):
    job = jobq("enqueue", "echo", "--queue", tasks).out.strip()
    assert jobq("why", job).out == f"{job} is waiting\n{NO_WORKER}Nobody can know when it starts.\n"
    [answer] = jobq("why", job, "--json").json
    assert (answer["id"], answer["state"], answer["starts_in_ms"]) == (job, "waiting", None)
    assert [reason["code"] for reason in answer["reasons"]] == ["no_worker"]
    assert re.search(r"^why +No worker is alive", jobq("show", job).out, re.MULTILINE)


def test_why_a_queue_runs_nothing(jobq: Callable[..., Said], tasks: str):
    jobq("enqueue", "echo", "--queue", tasks)
    jobq("pause", "tasks")
    jobq("limits", "close", "queue", "10m", "--queue", "tasks")
    paused, closed, worker = jobq("why").out.splitlines()[1:]
    assert paused == "- The queue is paused: no worker takes a job until it is resumed."
    assert closed.startswith("- The queue is closed and opens in ")
    assert f"{worker}\n" == NO_WORKER
    [answer] = jobq("why", "--queue", "tasks", "--json").json
    assert [reason["code"] for reason in answer["reasons"]] == ["queue_paused", "queue_closed", "no_worker"]
    assert answer["queue"] == "tasks"
    for command in ("stats", "queues"):
        assert re.search(r"paused, closed, opens in (10m|9\.\dm)$", jobq(command, "tasks").out, re.MULTILINE), command


def test_a_finished_job_says_how_it_ended(jobq: Callable[..., Said], tasks: str):
    job = jobq("enqueue", "echo", "--queue", tasks).out.strip()
    jobq("kill", job)
    said = jobq("why", job).out
    assert said == f"{job} is failed\n- It was killed: Killed: killed by an operator. A retry runs it again.\n"
    assert "why " not in jobq("show", job).out


def test_a_job_that_does_not_exist_is_one_line(jobq: Callable[..., Said], tasks: str):
    jobq("enqueue", "echo", "--queue", tasks)
    said = jobq("why", "tasks:nothing")
    assert (said.code, said.out) == (1, "")
    assert len(said.err.splitlines()) == 1
