"""``jobq check``: its lines, its JSON and its exit code, which stops a deploy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Said


def test_code_that_can_run_everything(jobq: Callable[..., Said], tasks: str):
    jobq("enqueue", "echo", "--queue", tasks)
    said = jobq("check", tasks)
    assert (said.code, said.out) == (0, "queue tasks: 1 job and 0 schedules read. This code can run all of them.\n")
    [report] = jobq("check", tasks, "--json").json
    assert report == {"fits": True, "queue": "tasks", "jobs": 1, "schedules": 0, "complete": True, "misfits": []}


def test_code_that_cannot_run_some_jobs_ends_with_1(jobq: Callable[..., Said], tasks: str):
    lost = jobq("enqueue", "removed", "--queue", "tasks", "--create").out.strip()
    newer = jobq("enqueue", "echo", "--queue", "tasks", "--payload-version", "2").out.strip()
    said = jobq("check", tasks)
    assert said.code == 1
    assert said.out.splitlines() == [
        "queue tasks: 2 jobs and 0 schedules read.",
        "- error: 1 job of type removed, version 1: there is no handler for this type. For example " + lost,
        "- error: 1 job of type echo, version 2: its payload has version 2, and echo has version 1 here. For example "
        + newer,
    ]
    assert jobq("check", tasks, "--state", "delayed").code == 0
    limited = jobq("check", tasks, "--limit", "1")
    assert "1 job and 0 schedules read, and there are more." in limited.out
    [report] = jobq("check", tasks, "--json").json
    assert [one["type"] for one in report["misfits"]] == ["removed", "echo"]
    assert jobq("show", newer, "--json").json[0]["version"] == 2


def test_a_name_of_a_queue_is_no_code(jobq: Callable[..., Said], tasks: str):
    jobq("enqueue", "echo", "--queue", tasks)
    said = jobq("check", "tasks")
    assert (said.code, said.out) == (2, "")
    assert "package.module:name" in said.err
