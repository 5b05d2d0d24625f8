"""The commands of limits: their text, their JSON and their exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Said


def test_a_rule_is_set_listed_and_reset(jobq: Callable[..., Said], tasks: str):
    assert "no limits; set one: jobq limits set RULE --concurrency N" in jobq("limits", "ls", "--queue", tasks).out
    said = jobq("limits", "set", "tenant", "--concurrency", "5", "--rate", "100/1m/20", "--queue", tasks)
    assert said.out == "set tenant of tasks: 5 at once, rate 100/1m/20\n"
    assert jobq("enqueue", "echo", "--limits", "tenant:a", "--limits", "tenant:b", "--queue", tasks).code == 0
    lines = jobq("limits", "ls", "--queue", tasks).out.splitlines()
    assert lines[0].split() == ["RULE", "CONCURRENCY", "RATE", "OVER", "FROM", "ACTIVE", "HELD", "CLOSED", "OPENS"]
    assert lines[1].split() == ["tenant", "5", "100/1m/20", "wait", "operator", "0", "1", "0", "-"]
    [rule] = [json.loads(line) for line in jobq("limits", "ls", "--json", "--queue", tasks).out.splitlines()]
    assert (rule["concurrency"], rule["rate"]) == (5, [{"count": 100, "per": 60000, "burst": 20}])
    [key] = [json.loads(line) for line in jobq("limits", "keys", "tenant", "--json", "--queue", tasks).out.splitlines()]
    assert (key["key"], key["held"]) == ("tenant:a", 1)
    lines = jobq("limits", "show", "tenant", "--queue", tasks).out.splitlines()
    shown = dict(line.split(maxsplit=1) for line in lines[:9])
    assert (shown["concurrency"], shown["rate"], shown["from"], shown["held"]) == ("5", "100/1m/20", "operator", "1")
    assert [line.split()[0] for line in lines[9:] if line] == ["KEY", "tenant:a"]
    assert json.loads(jobq("limits", "show", "tenant", "--json", "--queue", tasks).out) == rule
    said = jobq("limits", "reset", "tenant", "--queue", tasks)
    assert said.out == "reset tenant of tasks: no code declares it, so there is no limit now\n"


def test_what_a_new_setting_replaces_is_told(jobq: Callable[..., Said], tasks: str):
    """An operator who raises the concurrency would otherwise not see that the rate is gone."""
    jobq("limits", "set", "tenant", "--concurrency", "2", "--rate", "20/1s/5", "--over", "drop", "--queue", tasks)
    said = jobq("limits", "set", "tenant", "--concurrency", "4", "--queue", tasks)
    was = "it was 2 at once, rate 20/1s/5; jobs without room are dropped"
    assert said.out == f"set tenant of tasks: 4 at once, rate any; {was}\n"
    said = jobq("limits", "set", "tenant", "--concurrency", "4", "--queue", tasks)
    assert said.out == "set tenant of tasks: 4 at once, rate any\n"


def test_a_mistyped_rule_is_told(jobq: Callable[..., Said], tasks: str):
    jobq("limits", "set", "tenant", "--concurrency", "2", "--queue", tasks)
    said = jobq("limits", "set", "tenants", "--concurrency", "4", "--queue", tasks)
    assert said.code == 0
    assert said.out.splitlines()[1] == (
        "tenants is a new rule: only jobs that name it count under it; there were: tenant"
    )
    assert jobq("limits", "set", "queue", "--concurrency", "4", "--queue", tasks).out.count("\n") == 1


def test_a_dry_run_changes_nothing(jobq: Callable[..., Said], tasks: str):
    jobq("limits", "set", "r", "--concurrency", "3", "--queue", tasks)
    jobq("enqueue", "echo", "--limits", "r", "--queue", tasks)
    said = jobq("limits", "set", "r", "--concurrency", "0", "--dry-run", "--queue", tasks)
    assert said.out == "it would hold 1 job now\n"
    [rule] = [json.loads(line) for line in jobq("limits", "ls", "--json", "--queue", tasks).out.splitlines()]
    assert rule["concurrency"] == 3


def test_what_cannot_be_set_is_one_line(jobq: Callable[..., Said], tasks: str):
    for words in (
        ["r"],
        ["r", "--concurrency", "-1"],
        ["r", "--rate", "5"],
        ["r", "--rate", "x/1m"],
        ["a:b", "--rate", "1/1s"],
    ):
        said = jobq("limits", "set", *words, "--queue", tasks)
        assert said.code in (1, 2), words
        assert said.out == ""
        assert said.err.count("\n") == 1
    said = jobq("enqueue", "echo", "--limits", "nope", "--queue", tasks)
    assert (said.code, "there is no rule 'nope'" in said.err) == (1, True)


def test_a_key_is_closed_and_opened(jobq: Callable[..., Said], tasks: str):
    jobq("limits", "set", "tenant", "--concurrency", "3", "--queue", tasks)
    assert jobq("limits", "close", "tenant:a", "5m", "--queue", tasks).out == "closed tenant:a of tasks for 5m\n"
    [key] = [json.loads(line) for line in jobq("limits", "keys", "tenant", "--json", "--queue", tasks).out.splitlines()]
    assert (key["key"], key["closed_until"]) == ("tenant:a", key["opens_at"])
    assert jobq("limits", "open", "tenant:a", "--queue", tasks).out == "opened tenant:a of tasks\n"
    assert jobq("limits", "keys", "tenant", "--json", "--queue", tasks).out == ""
    said = jobq("limits", "close", "nope", "5m", "--queue", tasks)
    assert (said.code, "there is no rule 'nope'" in said.err) == (1, True)
    assert jobq("limits", "close", "queue", "1s", "--queue", tasks).code == 0
    assert jobq("limits", "open", "queue", "--queue", tasks).code == 0


def test_rates_count_costs(jobq: Callable[..., Said], tasks: str):
    said = jobq("limits", "set", "model", "--rate", "90000/1m/900/tokens", "--queue", tasks)
    assert said.out == "set model of tasks: any at once, rate 90000/1m/900/tokens\n"
    words = ("--limits", "model", "--cost", "tokens=500", "--slots", "3", "--queue", tasks)
    job_id = jobq("enqueue", "echo", *words).out.strip()
    row = json.loads(jobq("show", job_id, "--json").out)
    assert (row["costs"], row["slots"]) == ({"tokens": 500}, 3)
    said = jobq("enqueue", "echo", "--cost", "tokens", "--queue", tasks)
    assert said.code == 2
    assert "'tokens': it takes UNIT=N, such as tokens=500" in said.err


def test_a_rule_says_what_happens_to_jobs_without_room(jobq: Callable[..., Said], tasks: str):
    said = jobq("limits", "set", "r", "--concurrency", "1", "--over", "drop", "--queue", tasks)
    assert said.out == "set r of tasks: 1 at once, rate any; jobs without room are dropped\n"
    jobq("enqueue", "echo", "--limits", "r", "--queue", tasks)
    said = jobq("enqueue", "echo", "--limits", "r", "--queue", tasks)
    assert said.out.endswith(" (dropped: a limit had no room)\n")
    answer = json.loads(jobq("enqueue", "echo", "--limits", "r", "--json", "--queue", tasks).out)
    assert (answer["duplicate"], answer["state"], answer["done"]) == (False, "failed", "dropped")
    assert jobq("limits", "ls", "--queue", tasks).out.splitlines()[1].split()[:4] == ["r", "1", "any", "drop"]
    said = jobq("limits", "set", "r", "--rate", "1/1s", "--over", "kill_running", "--queue", tasks)
    assert (said.code, "no token" in said.err) == (1, True)


def test_a_rule_is_removed(jobq: Callable[..., Said], tasks: str):
    jobq("limits", "set", "r", "--concurrency", "1", "--queue", tasks)
    assert jobq("limits", "rm", "r", "--queue", tasks).out == "removed r of tasks\n"
    assert jobq("limits", "ls", "--json", "--queue", tasks).out == ""
    jobq("limits", "set", "r", "--concurrency", "1", "--queue", tasks)
    answer = json.loads(jobq("limits", "rm", "r", "--json", "--queue", tasks).out)
    assert answer == {"queue": "tasks", "rule": "r", "returns": False}


def test_a_rule_that_does_not_exist_is_one_line_with_those_that_do(jobq: Callable[..., Said], tasks: str):
    jobq("limits", "set", "tenant", "--concurrency", "1", "--queue", tasks)
    for words in (
        ["show", "r"],
        ["rm", "r"],
        ["reset", "r"],
        ["keys", "r"],
        ["close", "r:a", "5m"],
        ["open", "r"],
        ["rm", "a:b"],
    ):
        said = jobq("limits", *words, "--queue", tasks)
        assert (said.code, said.out, said.err.count("\n")) == (1, "", 1), words
        assert f"there is no rule {words[1].removesuffix(':a')!r}; there are: tenant." in said.err, words


def test_each_command_answers_in_json(jobq: Callable[..., Said], tasks: str):
    def said(*words: str) -> Any:
        found = jobq("limits", *words, "--json", "--queue", tasks)
        assert found.code == 0, found.err
        return found.json

    rule = {"queue": "tasks", "rule": "r"}
    limit = {"concurrency": 2, "rate": [], "over": "wait"}
    assert said("set", "r", "--concurrency", "2") == [rule | limit]
    assert said("set", "r", "--concurrency", "1", "--dry-run") == [rule | {"would_hold": 0}]
    assert said("keys", "r") == []
    assert jobq("limits", "keys", "r", "--queue", tasks).out == "no jobs under r now\n"
    assert said("close", "r", "1m") == [{"queue": "tasks", "key": "r", "closed_ms": 60_000}]
    assert said("open", "r") == [{"queue": "tasks", "key": "r", "closed_ms": 0}]
    assert said("reset", "r") == [rule | {"declared": None}]
    said("set", "r", "--concurrency", "2")
    assert said("rm", "r") == [rule | {"returns": False}]
