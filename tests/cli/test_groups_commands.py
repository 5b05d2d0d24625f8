"""The commands of groups: their text, their JSON and their exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Said


def test_a_group_is_set_listed_and_reset(jobq: Callable[..., Said], tasks: str):
    assert "no groups now" in jobq("groups", "ls", "--queue", tasks).out
    said = jobq("groups", "set", "a", "--weight", "2.5", "--max-queued", "1", "--queue", tasks)
    assert said.out == "set a of tasks: weight 2.5, at most 1 job queued\n"
    assert jobq("enqueue", "echo", "--group", "a", "--queue", tasks).code == 0
    said = jobq("enqueue", "echo", "--group", "a", "--queue", tasks)
    assert said.code == 1
    assert "group 'a' holds as many jobs as it may" in said.err
    lines = jobq("groups", "ls", "--queue", tasks).out.splitlines()
    assert lines[0].split()[:6] == ["GROUP", "HELD", "ACTIVE", "OLDEST", "WEIGHT", "PAUSED"]
    assert lines[1].split()[:3] == ["a", "1", "0"]
    [row] = [json.loads(line) for line in jobq("groups", "ls", "--json", "--queue", tasks).out.splitlines()]
    assert (row["group"], row["weight"], row["max_queued"]) == ("a", 2.5, 1)
    shown = dict(line.split(maxsplit=1) for line in jobq("groups", "show", "a", "--queue", tasks).out.splitlines()[:6])
    assert (shown["group"], shown["held"], shown["weight"], shown["paused"]) == ("a", "1", "2.5", "no")
    assert json.loads(jobq("groups", "show", "a", "--json", "--queue", tasks).out) == row
    assert json.loads(jobq("groups", "show", "nobody", "--json", "--queue", tasks).out)["weight"] == 1
    assert jobq("groups", "show", "a\nb", "--queue", tasks).code == 1
    said = jobq("groups", "reset", "a", "--queue", tasks)
    assert said.out == "reset a of tasks: weight 1, not paused, any number of jobs queued\n"
    assert jobq("groups", "set", "a", "--weight", "0", "--queue", tasks).code == 1


def test_a_part_of_the_settings_is_changed(jobq: Callable[..., Said], tasks: str):
    jobq("groups", "set", "a", "--weight", "2", "--max-queued", "9", "--queue", tasks)
    assert jobq("groups", "pause", "a", "--queue", tasks).out == "paused a of tasks\n"
    said = jobq("groups", "set", "a", "--weight", "3", "--queue", tasks)
    assert said.out == "set a of tasks: weight 3, at most 9 jobs queued, paused\n"
    assert jobq("groups", "resume", "a", "--queue", tasks).out == "resumed a of tasks\n"
    said = jobq("groups", "set", "a", "--max-queued", "any", "--queue", tasks)
    assert said.out == "set a of tasks: weight 3, any number of jobs queued\n"
    said = jobq("groups", "set", "a", "--paused", "--queue", tasks)
    assert said.out == "set a of tasks: weight 3, any number of jobs queued, paused\n"
    said = jobq("groups", "set", "a", "--no-paused", "--queue", tasks)
    assert said.out == "set a of tasks: weight 3, any number of jobs queued\n"
    assert json.loads(jobq("groups", "pause", "a", "--json", "--queue", tasks).out)["paused"] is True


def test_a_whole_group_is_moved(jobq: Callable[..., Said], tasks: str):
    for group in "ab":
        jobq("enqueue", "echo", "--group", group, "--queue", tasks)
        jobq("enqueue", "echo", "--group", group, "--delay", "1h", "--queue", tasks)
    said = jobq("priority", "-5", "--all", "--state", "held", "--group", "a", "--queue", tasks)
    assert said.out == "moved 1 held job of tasks\n"
    said = jobq("promote", "--all", "--group", "b", "--queue", tasks)
    assert said.out == "promoted 1 delayed job of tasks\n"
    assert jobq("priority", "3", "--all", "--queue", tasks).code == 2
    rows = [json.loads(line) for line in jobq("ls", "--state", "held", "--json", "--queue", tasks).out.splitlines()]
    assert sorted((row["group"], row["priority"]) for row in rows) == [("a", -5), ("b", 0), ("b", 0)]
    [one] = [row["id"] for row in rows if row["group"] == "a"]
    assert jobq("priority", "2", one).out == f"moved {one}\n"


def test_the_charge_is_set_and_shown(jobq: Callable[..., Said], tasks: str):
    assert jobq("groups", "charge", "--queue", tasks).out == "tasks: a turn of a group costs one job (count)\n"
    said = jobq("groups", "charge", "actual", "--queue", tasks)
    assert said.out == "tasks: a turn of a group costs the time that its jobs run (actual)\n"
    assert jobq("groups", "charge", "--queue", tasks, "--json").json == [{"queue": "tasks", "charge": "actual"}]
    assert jobq("groups", "charge", "time", "--queue", tasks).code == 2
