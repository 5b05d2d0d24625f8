"""``jobq events``: as text, as JSON, from an earlier place on, and what is told."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Said


def test_events_of_a_job(jobq: Callable[..., Said], tasks: str):
    job = jobq("enqueue", "echo", "--queue", tasks).out.strip()
    jobq("kill", job)
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \S+  killed     {job}\n", jobq("events", "--job", job).out)
    [event] = jobq("events", "--job", job, "--since", "5m", "--json").json
    assert (event["name"], event["job"], event["queue"]) == ("killed", job, "tasks")
    assert jobq("events", "--job", job, "--since", event["cursor"]).out == "", "the caller was told"


def test_what_is_told(jobq: Callable[..., Said], tasks: str):
    assert jobq("events", "--tell", "all", "--queue", tasks).out == "queue tasks tells all from now on\n"
    assert jobq("events", "--tell", "outcomes", "--queue", tasks, "--json").json == [
        {"queue": "tasks", "events": "outcomes"}
    ]


def test_wrong_input_is_one_line(jobq: Callable[..., Said], tasks: str):
    jobq("enqueue", "echo", "--queue", tasks)
    for words, said in (
        (["--since", "1-"], "is no cursor"),
        (["--since", "soon"], "is not a time"),
        (["--names", "done"], "there is no event 'done'"),
        (["--job", "tasks:nobody"], "no job"),
    ):
        answer = jobq("events", *words, *([] if "--job" in words else ["--queue", tasks]))
        assert answer.code in (1, 2)
        assert said in answer.err
        assert len(answer.err.splitlines()) == 1
