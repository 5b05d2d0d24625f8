"""The commands of schedules: their text, their JSON and their exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Said


def test_a_schedule_is_written_listed_run_and_removed(jobq: Callable[..., Said], tasks: str):
    def said(*words: str) -> str:
        done = jobq("schedules", *words, "--queue", tasks)
        assert done.code == 0, done.err
        return done.out

    assert "no schedules; write one: jobq schedules put NAME TYPE --cron EXPRESSION" in said("ls")
    out = said(
        "put", "nightly", "echo", '{"word": "a"}', "--cron", "30 2 * * *", "--tz", "Europe/Berlin", "--overlap",
        "allow", "--pause-after", "3", "--priority", "-1", "--until", "2090-01-01T00:00:00Z",
    )  # fmt: skip
    assert out.startswith("wrote nightly of tasks: At 02:30 every day; next: in ")
    said("put", "often", "echo", '{"word": "a"}', "--every", "5m", "--jitter", "10s")
    lines = said("ls").splitlines()
    assert lines[0].split() == ["SCHEDULE", "TYPE", "WHEN", "ZONE", "NEXT", "FROM", "STATE"]
    assert lines[1].startswith("nightly")
    assert lines[2].split()[:4] == ["often", "echo", "every", "5m"]
    [first, _] = [json.loads(line) for line in said("ls", "--json").splitlines()]
    assert (first["name"], first["options"], first["pause_after"]) == ("nightly", {"priority": -1}, 3)
    assert said("pause", "nightly", "--note", "why not") == "paused nightly of tasks\n"
    assert "(why not)" in said("show", "nightly")
    assert said("resume", "nightly") == "resumed nightly of tasks\n"
    assert said("run", "often").startswith("tasks:often~")
    out = said("backfill", "often", "2026-01-01T00:00:00Z", "2026-01-01T00:10:00Z")
    assert out.splitlines()[:2] == ["enqueued 3 jobs", "tasks:often~20260101T000000Z"]
    out = said("show", "often")
    assert "every 5m (UTC): Every 5 minutes" in out
    assert "backfill" in out
    out = said("preview", "30 2 * * *", "--tz", "Europe/Berlin", "--after", "2027-03-27T12:00:00Z", "--count", "2")
    assert out.splitlines() == ["At 02:30 every day", "2027-03-28T03:00:00+02:00", "2027-03-29T02:30:00+02:00"]
    out = said("preview", "--every", "6h", "--after", "2027-03-27T12:00:00Z", "--until", "2027-03-28T00:00:00Z")
    assert out.splitlines() == ["Every 6 hours", "2027-03-27T18:00:00+00:00", "2027-03-28T00:00:00+00:00"]
    assert said("prune") == "removed 0 orphans\n"
    assert said("rm", "often") == "removed often of tasks\n"
    for verb in ("pause", "resume", "rm"):
        assert json.loads(said(verb, "nightly", "--json"))["name"] == "nightly"


def test_what_cannot_be_used_is_one_line(jobq: Callable[..., Said], tasks: str):
    for words in (
        ["put", "x", "echo"],
        ["put", "x", "echo", "--cron", "0 0 30 2 *"],
        ["put", "x", "echo", "--cron", "* * * * *", "--tz", "Mars"],
        ["put", "x", "echo", "--every", "soon"],
        ["put", "a~b", "echo", "--every", "5m"],
        ["put", "x", "echo", "--every", "5m", "--overlap", "never"],
        ["show", "nothing"],
        ["run", "nothing"],
        ["preview", "61 * * * *"],
    ):
        said = jobq("schedules", *words, "--queue", tasks)
        assert said.code in (1, 2), words
        assert said.out == ""
        assert said.err.count("\n") == 1


def test_each_command_answers_in_json(jobq: Callable[..., Said], tasks: str):
    def said(*words: str) -> Any:
        found = jobq("schedules", *words, "--json", "--queue", tasks)
        assert found.code == 0, found.err
        return found.json

    schedule = {"queue": "tasks", "name": "s"}
    [row] = said("put", "s", "echo", "--every", "5m", "--attempts", "unlimited")
    assert (row["name"], row["options"]) == ("s", {"attempts": None})
    assert said("show", "s")[0]["every"] == 300_000
    assert said("pause", "s") == [schedule | {"state": "paused"}]
    assert said("resume", "s") == [schedule | {"state": "resumed"}]
    assert said("run", "s")[0]["id"].startswith("tasks:s~")
    [filled] = said("backfill", "s", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z")
    assert filled == schedule | {"ids": ["tasks:s~20260101T000000Z"]}
    [preview] = said("preview", "--every", "5m", "--count", "2")
    assert len(preview["times"]) == 2
    assert said("prune") == [{"queue": "tasks", "names": []}]
    assert said("rm", "s") == [schedule | {"declared": False}]
