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
    assert lines[0].split()[:6] == ["GROUP", "QUEUED", "ACTIVE", "OLDEST", "WEIGHT", "PAUSED"]
    assert lines[1].split()[:3] == ["a", "1", "0"]
    [row] = [json.loads(line) for line in jobq("groups", "ls", "--json", "--queue", tasks).out.splitlines()]
    assert (row["group"], row["weight"], row["max_queued"]) == ("a", 2.5, 1)
    said = jobq("groups", "reset", "a", "--queue", tasks)
    assert said.out == "reset a of tasks: weight 1, not paused, any number of jobs queued\n"
    assert jobq("groups", "set", "a", "--weight", "0", "--queue", tasks).code == 1
