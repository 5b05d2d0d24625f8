"""Every command that shows or changes jobs: its text, its JSON and its exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from jobq import JobFailed, LogLine, Queue, Worker
from jobq.cli.look import unseen
from jobq.cli.session import AT_ONCE
from jobq.cli.target import load_target
from jobq.engine.queue.published import Publisher
from jobq.http.auth import parse_keys

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Said

COMMANDS = (
    *("dev", "work", "serve", "bench", "queues", "stats", "workers", "top", "ls", "show", "logs"),
    *("enqueue", "retry", "kill", "promote", "rm", "pause", "resume", "queue", "limits", "breakers", "key"),
)
ID = re.compile(r"tasks:[0-9a-z]{17}")


def run_all(queue: Queue, ids: list[str]) -> None:
    """Run a worker until these jobs are finished."""

    async def main() -> None:
        async with queue, Worker(queue) as worker:
            worker.start()
            for word in ids:
                with contextlib.suppress(JobFailed):
                    await queue.result(word.rpartition(":")[2], timeout=20)

    asyncio.run(main())


@pytest.fixture
def finished(jobq: Callable[..., Said], tasks: str) -> dict[str, str]:
    """A completed and a failed job, by their type."""
    ids = {name: jobq("enqueue", name, "--queue", tasks).out.strip() for name in ("echo", "broken")}
    (queue,) = load_target(tasks)
    run_all(queue, list(ids.values()))
    return ids


def test_enqueue_prints_the_id(jobq, tasks):
    said = jobq("enqueue", "echo", '{"word": "hi"}', "--queue", tasks)
    assert said.code == 0
    assert ID.fullmatch(said.out.strip())
    (row,) = jobq("show", said.out.strip(), "--json").json
    assert (row["id"], row["type"], row["payload"], row["state"]) == (
        said.out.strip(),
        "echo",
        {"word": "hi"},
        "waiting",
    )


def test_attempts_without_a_limit_and_a_list_of_delays(jobq):
    words = ["--attempts", "unlimited", "--backoff", "1s,5s,1m", "--json"]
    (answer,) = jobq("enqueue", "anything", "--create", "--queue", "tasks", *words).json
    (row,) = jobq("show", answer["id"], "--json").json
    assert (row["attempts"], row["backoff"]["delays"]) == (None, [1000, 5000, 60_000])
    lines = jobq("show", answer["id"]).out.splitlines()
    assert "attempts   0 of any number" in lines
    assert any(line.startswith("backoff") and "[1000,5000,60000]" in line for line in lines)
    assert "0/no limit" in jobq("ls", "--queue", "tasks").out


@pytest.mark.parametrize(
    ("words", "text"),
    [(["--attempts", "0"], "attempts"), (["--attempts", "many"], "attempts"), (["--backoff", "1s,x"], "backoff")],
)
def test_attempts_and_delays_that_cannot_be_used(jobq, words: list[str], text: str):
    said = jobq("enqueue", "anything", "--create", "--queue", "tasks", *words)
    assert said.code != 0
    assert text in said.err


def test_enqueue_takes_every_option(jobq):
    words = ["--priority", "-5", "--delay", "1h", "--attempts", "7", "--backoff", "exponential:2s:1m"]
    words += ["--timeout", "90", "--lifo"]
    words += ["--retention", "1d", "--metadata", '{"by": "me"}', "--key", "k1", "--json"]
    (answer,) = jobq("enqueue", "anything", "--create", "--queue", "tasks", *words).json
    assert answer["duplicate"] is False
    (row,) = jobq("show", answer["id"], "--json").json
    assert row["state"] == "delayed"
    assert (row["priority"], row["attempts"], row["timeout"], row["lifo"]) == (-5, 7, 90_000, True)
    assert row["delay"] == 3_600_000
    assert (row["backoff"]["delay"], row["backoff"]["max"]) == (2000, 60_000)
    assert (row["retention"], row["metadata"], row["key"]) == (86_400_000, {"by": "me"}, "k1")
    again = jobq("enqueue", "anything", "--create", "--queue", "tasks", "--key", "k1")
    assert again.out.strip() == f"{answer['id']} (this job holds the key: it is delayed, and was returned)"
    words = [
        "--key",
        "k1",
        "--while",
        "unfinished",
        "--on-conflict",
        "replace",
        "--unique-delay",
        "5s",
        "--max-wait",
        "1m",
    ]
    (kept,) = jobq("enqueue", "anything", '{"n": 2}', "--create", "--queue", "tasks", *words, "--json").json
    assert (kept["id"], kept["state"], kept["done"]) == (answer["id"], "delayed", "replaced")
    (row,) = jobq("show", answer["id"], "--json").json
    assert row["payload"] == {"n": 2}
    refused = jobq("enqueue", "anything", "--create", "--queue", "tasks", "--key", "k1", "--on-conflict", "fail")
    assert refused.code == 1
    assert "(delayed) holds the key 'k1'" in refused.err
    unconfirmed = jobq("enqueue", "anything", "--create", "--queue", "tasks", "--durability", "replicated")
    assert unconfirmed.code == 1
    assert "'replicated' was not confirmed within 2000 ms; the jobs are enqueued" in unconfirmed.err


def test_enqueue_wait_prints_the_result(jobq, tasks, start, redis_url):
    start("work", tasks, JOBQ_REDIS_URL=redis_url).wait_line("worker started")
    said = jobq("enqueue", "echo", '{"word": "hi"}', "--queue", tasks, "--wait", "20")
    assert (said.code, said.out) == (0, '"hi"\n')
    said = jobq("enqueue", "frozen", "--queue", tasks, "--wait", "20")
    assert int(said.out) > 10_000, "what a worker has loaded is looked at by no collection"
    said = jobq("enqueue", "broken", "--queue", tasks, "--wait", "20")
    assert said.code == 1
    assert re.fullmatch(r"jobq: job \w+ failed: ValueError: no luck today \(errors/JobFailed/\)\n", said.err)


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (
            ["enqueue", "nope"],
            1,
            "unknown job type 'nope'; this queue serves: broken, echo, frozen, gated, pid, pooled, sleepy",
        ),
        (["enqueue", "echo", '{"words": 1}'], 1, "unknown field `words`"),
        (["enqueue", "echo", "{"], 2, "this is not JSON"),
        (["enqueue", "echo", "[1,2]"], 2, "the payload is not a JSON object; write the handler's arguments by name"),
        (["enqueue", "echo", "null"], 2, "the payload is not a JSON object"),
        (["enqueue", "echo", "--delay", "soon"], 2, "'soon' is not a time; write 5s, 250ms, 10m, 2h or 7d"),
        (["enqueue", "echo", "--backoff", "linear:5"], 2, "write fixed:DELAY, exponential:DELAY[:LONGEST] or"),
        (["enqueue", "echo", "--priority", "5000"], 1, "priority is 5000: it takes -1024 to 1023"),
        (["enqueue", "echo", "--metadata", "[]"], 2, "this is not a JSON object"),
        (["enqueue", "echo", "--durability", "fsynced"], 1, "durability='fsynced' needs"),
        (["enqueue", "echo", "--durability", "fsync"], 2, "invalid choice: 'fsync'"),
        (["show", "00000000000000000"], 1, "no job '00000000000000000'"),
        (["kill", "tasks:00000000000000000"], 1, "no job"),
        (["kill"], 2, "say which job: ID"),
        (["retry"], 2, "say which job: ID, or --all"),
        (["retry", "x", "--all"], 2, "either IDs or --all, not both"),
        (["rm", "--all"], 2, "say of which state: --state failed --all"),
        (["show", "other:00000000000000000", "--queue", "tasks"], 2, "is not in queue tasks"),
    ],
)
def test_a_wrong_command_prints_one_clear_line(jobq, tasks, words, code, error):
    jobq("enqueue", "echo", "--queue", tasks)
    takes_queue = "tasks:" not in " ".join(words) and "--queue" not in words
    said = jobq(*words, *(["--queue", tasks] if takes_queue else []))
    assert said.code == code
    assert error in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_a_mistyped_queue_is_named_and_not_made(jobq):
    assert "has no queues under the prefix 'jobq'" in jobq("ls").err
    jobq("enqueue", "x", "--create", "--queue", "real")
    by_flag = [
        ["ls"],
        ["enqueue", "x"],
        ["kill", "a"],
        ["show", "a"],
        ["logs", "a"],
        ["rm", "--all", "--state", "failed"],
    ]
    by_name = ["stats", "workers", "queues", "pause", "resume", "top"]
    for words in [
        *([*words, "--queue", "reel"] for words in by_flag),
        *([word, "reel"] for word in by_name),
        ["queue", "rm", "reel"],
    ]:
        said = jobq(*words)
        assert said.code == 1
        assert "there is no queue 'reel'; there are: real" in said.err
    assert [row["queue"] for row in jobq("stats", "--json").json] == ["real"]


def test_the_only_queue_needs_no_name_several_do(jobq):
    jobq("enqueue", "x", "--create", "--queue", "one")
    assert len(jobq("ls", "--json").json) == 1
    jobq("enqueue", "x", "--create", "--queue", "two")
    said = jobq("ls")
    assert said.code == 2
    assert "there are several queues (one, two); say which one: --queue NAME" in said.err
    jobq("enqueue", "x", "--create", "--queue", "default")
    assert [row["queue"] for row in jobq("ls", "--json").json] == ["default"]


def test_stats(jobq, finished):
    (stats,) = jobq("stats", "--json").json
    assert (stats["queue"], stats["completed"], stats["failed"], stats["paused"]) == ("tasks", 1, 1, False)
    head, line = jobq("stats").out.splitlines()
    assert head.split()[:3] == ["QUEUE", "WAITING", "DELAYED"]
    assert line.split()[:8] == ["tasks", "0", "0", "0", "0", "1", "1", "0"]


def test_stats_of_an_empty_server(jobq):
    said = jobq("stats")
    assert said.code == 0
    assert "has no queues under the prefix 'jobq'. Enqueue a job or start a worker." in said.out
    assert "the server has lost its data" in said.out, "as after FLUSHALL"
    assert jobq("queues").out == said.out
    assert jobq("stats", "--json").out == ""


def test_ls_filters_and_limits(jobq, finished):
    assert {row["id"] for row in jobq("ls", "--json").json} == set(finished.values())
    assert [row["id"] for row in jobq("ls", "--state", "failed", "--json").json] == [finished["broken"]]
    assert [row["id"] for row in jobq("ls", "--type", "echo", "--json").json] == [finished["echo"]]
    said = jobq("ls", "--limit", "1")
    assert len(said.out.splitlines()) == 3
    assert said.out.endswith("... there are more jobs; list them with --limit N or --all\n")


def test_ls_follows_all_pages(jobq):
    async def fill() -> None:
        async with Queue("tasks") as queue:
            await queue.enqueue_many([queue.new("x") for _ in range(450)])

    asyncio.run(fill())
    assert len({row["id"] for row in jobq("ls", "--all", "--json").json}) == 450
    lines = jobq("ls", "--all").out.splitlines()
    assert len(lines) == 451
    assert sum(line.startswith("ID") for line in lines) == 1


def test_show_prints_the_error_of_a_failed_job(jobq, finished):
    text = jobq("show", finished["broken"]).out
    assert "state      failed" in text
    assert "attempts   1 of 1" in text
    assert "attempt 1 failed at" in text
    assert "ValueError: no luck today" in text
    assert "Traceback (most recent call last)" in text
    text = jobq("show", finished["echo"]).out
    assert 'result     "hello"' in text


def test_a_kill_is_shown_as_a_kill(jobq):
    job = jobq("enqueue", "x", "--queue", "tasks", "--create").out.strip()
    jobq("kill", job)
    text = jobq("show", job).out
    assert re.search(r"^killed at \d{4}-\d\d-\d\d .*: killed by an operator$", text, re.MULTILINE)
    assert "attempt 0" not in text


def test_a_document_is_one_line_however_the_producer_wrote_it(jobq):
    job = jobq("enqueue", "x", '{\n  "big": 123456789012345678901,\n  "list": [ ]\n}', "--queue", "tasks", "--create")
    out = jobq("show", job.out.strip(), "--json").out
    assert out.count("\n") == 1
    assert '"payload":{"big":123456789012345678901,"list":[]}' in out


def test_logs(jobq, finished):
    assert jobq("logs", finished["echo"]).out.endswith("  got hello\n")
    (line,) = jobq("logs", finished["echo"], "--json").json
    assert line["message"] == "got hello"


def test_retry_kill_promote_rm(jobq, finished):
    job = finished["broken"]
    assert jobq("retry", job).out == f"retried {job}\n"
    assert jobq("kill", job, "--json").json == [{"id": job, "killed": True}]
    assert jobq("rm", job).out == f"removed {job}\n"
    assert jobq("show", job).code == 1
    delayed = jobq("enqueue", "x", "--create", "--queue", "tasks", "--delay", "1h").out.strip()
    assert jobq("promote", delayed).out == f"promoted {delayed}\n"
    said = jobq("promote", delayed)
    assert said.code == 1
    assert "it is waiting, and promote takes delayed" in said.err


def test_a_job_that_cannot_be_changed_does_not_keep_the_others_from_it(jobq, finished):
    said = jobq("rm", "tasks:00000000000000000", finished["echo"])
    assert said.code == 1
    assert said.out == f"removed {finished['echo']}\n"
    assert "no job" in said.err


def test_all_jobs_of_a_state_can_be_changed(jobq, finished):
    assert jobq("retry", "--all").out == "retried 1 failed job of tasks\n"
    assert jobq("retry", "--all", "--state", "completed", "--json").json == [
        {"queue": "tasks", "state": "completed", "retried": 1}
    ]
    assert jobq("rm", "--all", "--state", "waiting", "--limit", "1").out == "removed 1 waiting job of tasks\n"
    assert jobq("rm", "--all", "--state", "failed", "--older-than", "1h").out == "removed 0 failed jobs of tasks\n"


def test_pause_and_resume(jobq, finished):
    assert jobq("pause").out == "paused tasks\n"
    assert jobq("stats", "--json").json[0]["paused"] is True
    assert jobq("stats").out.splitlines()[1].endswith("paused")
    assert jobq("resume", "tasks", "--json").json == [{"queue": "tasks", "paused": False}]


def test_workers(jobq, tasks, start, redis_url):
    jobq("enqueue", "echo", "--queue", tasks)
    assert jobq("workers").out == "there are no workers; start some with jobq work TARGET\n"
    process = start("work", tasks, "--concurrency", "7", JOBQ_REDIS_URL=redis_url)
    process.wait_line("worker started")
    jobq("enqueue", "echo", "--queue", tasks, "--wait", "20")
    (row,) = jobq("workers", "--json").json
    assert (row["queues"], row["concurrency"]) == (["tasks"], 7)
    assert row["pid"] in [child.pid for child in process.children()]
    assert str(row["pid"]) in jobq("workers").out


def test_help_and_usage(jobq):
    said = jobq("--help")
    assert said.code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in said.out
        assert jobq(command, "--help").out.startswith(f"usage: jobq {command} ")
    titles = [line for line in said.out.splitlines() if line.endswith(":") and line[0].isupper()]
    assert titles == ["Processes:", "Look:", "Jobs:", "Queues:", "Limits:", "Schedules:", "Access:"]
    assert jobq("--version").out.startswith("jobq ")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["frobnicate"],
        ["queue"],
        ["queue", "mv"],
        *([command, "--nonsense"] for command in COMMANDS if command not in ("queue", "limits", "breakers")),
    ],
)
def test_wrong_usage_prints_one_line_that_refers_to_help(jobq, words):
    said = jobq(*words)
    assert (said.code, said.out) == (2, "")
    assert re.fullmatch(r"jobq: .+; see 'jobq( \w+)? --help'\n", said.err)


def test_flags_are_not_abbreviated(jobq):
    """A new flag with the same beginning could change the meaning of an abbreviation."""
    assert jobq("ls", "--queu", "x").err == "jobq: unrecognized arguments: --queu x; see 'jobq ls --help'\n"
    assert jobq("queue", "rm", "x", "-y").err == "jobq: unrecognized arguments: -y; see 'jobq queue rm --help'\n"


def test_an_unknown_variable_is_named(jobq, monkeypatch):
    monkeypatch.setenv("JOBQ_REDIS_ULR", "redis://elsewhere")
    said = jobq("queues", "--json")
    assert (said.code, said.out) == (0, "")
    assert said.err == "jobq: the variable JOBQ_REDIS_ULR is unknown and ignored; did you mean JOBQ_REDIS_URL?\n"


def test_redis_away_is_one_line(jobq):
    said = jobq("stats", "--redis", "redis://:hunter2@127.0.0.1:1/0")
    assert said.code == 1
    assert said.err.startswith("jobq: no answer from Redis")
    assert said.err.count("\n") == 1
    assert "hunter2" not in said.err


def test_settings_that_cannot_be_used(jobq, monkeypatch):
    monkeypatch.setenv("JOBQ_HTTP_PORT", "many")
    said = jobq("stats")
    assert said.code == 2
    assert "JOBQ_HTTP_PORT='many'" in said.err


def test_a_key_is_made(jobq):
    said = jobq("key", "ci", "--scope", "read", "--queue", "mail*")
    assert re.search(r"^  jobq_\S{20,}$", said.out, re.MULTILINE)
    entry = re.search(r"^  (ci:[0-9a-f]{64}:read:mail\*)$", said.out, re.MULTILINE)
    assert entry
    assert parse_keys(entry[1])[0].queues == ("mail*",)


@pytest.mark.parametrize(
    "words", [["a:b"], ["a,b"], [""], ["a b"], ["x" * 65], ["ok", "--queue", "a:b"], ["ok", "--queue", "a|b"]]
)
def test_a_key_that_serve_would_refuse_is_not_made(jobq, words):
    said = jobq("key", *words)
    assert (said.code, said.out) == (2, "")
    assert "it takes" in said.err or "the name takes" in said.err
    assert said.err.count("\n") == 1


def test_a_queue_is_made_on_request_or_by_its_code(jobq, tasks):
    assert jobq("enqueue", "x").out.startswith("default:"), "unnamed, there can be no typing error"
    assert jobq("enqueue", "x", "--queue", "one").code == 1
    assert jobq("enqueue", "x", "--queue", "one", "--create").code == 0
    assert jobq("pause", tasks).out == "paused tasks\n", "the code says that there is such a queue"
    assert jobq("enqueue", "echo", "--queue", tasks).code == 0


def test_queues(jobq, finished):
    jobq("enqueue", "x", "--queue", "other", "--create")
    jobq("pause", "other")
    head, first, second = (line.split() for line in jobq("queues").out.splitlines())
    assert head == ["QUEUE", "WAITING", "DELAYED", "HELD", "ACTIVE", "COMPLETED", "FAILED", "WORKERS"]
    assert first == ["other", "1", "0", "0", "0", "0", "0", "0", "paused"]
    assert second == ["tasks", "0", "0", "0", "0", "1", "1", "0"]
    (row,) = jobq("queues", "other", "--json").json
    assert (row["queue"], row["waiting"], row["workers"], row["paused"]) == ("other", 1, 0, True)


def test_queue_rm(jobq):
    jobq("enqueue", "x", "--queue", "tipo", "--create")
    said = jobq("queue", "rm", "tipo")
    assert (said.code, said.out) == (1, "")
    assert said.err == "jobq: queue 'tipo' has 1 job; --force removes it anyway\n"
    assert jobq("queue", "rm", "tipo", "--force").out == "removed queue tipo\n"
    assert jobq("queues", "--json").out == ""
    assert jobq("queue", "rm", "tipo").code == 1


def test_many_queues_share_a_few_connections(jobq, redis_url):
    async def connections() -> int:
        async with Queue("n0") as queue:
            text: bytes = await queue.store.command(b"INFO", b"stats")
        return int(text.decode().partition("total_connections_received:")[2].split()[0])

    async def fill() -> None:
        for n in range(30):
            async with Queue(f"n{n}") as queue:
                await queue.enqueue("x")

    asyncio.run(fill())
    before = asyncio.run(connections())
    for command in ("stats", "queues", "workers"):
        assert jobq(command).code == 0
    # Each command works on a few queues at the same time, whose trips need a connection each.
    assert asyncio.run(connections()) - before < 3 * AT_ONCE + 10 < 3 * 30


def test_a_name_is_never_run_as_code(jobq, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.py").write_text("raise SystemExit('it ran')")
    jobq("enqueue", "y", "--queue", "other", "--create")
    assert "there is no queue 'x.py'; there are: other; for the file write ./x.py" in jobq("stats", "x.py").err
    assert jobq("enqueue", "y", "--queue", "x.py", "--create").out.startswith("x.py:")
    job = jobq("ls", "--queue", "x.py", "--json").json[0]["id"]
    assert jobq("show", job).code == 0
    for word in ("./x.py:abc", "x:y:abc", ":abc"):
        said = jobq("show", word)
        assert (said.code, said.out) == (2, "")
        assert "is not a job id" in said.err


def test_logs_follow_until_the_job_is_finished(jobq, tasks, start, redis_url):
    job = jobq("enqueue", "echo", "--delay", "1h", "--queue", tasks).out.strip()
    follow = start("logs", job, "--follow", "--interval", "20ms", JOBQ_REDIS_URL=redis_url)
    start("work", tasks, "--processes", "1", JOBQ_REDIS_URL=redis_url).wait_line("worker started")
    assert follow.popen.poll() is None, "the job is delayed, so there is more to come"
    jobq("promote", job)
    follow.wait_line("got hello")
    assert follow.end() == 0


def test_lines_that_were_shown_are_not_shown_again():
    lines = [LogLine(at=n // 2, message=str(n % 3)) for n in range(20)]
    assert unseen([], lines) == lines
    assert unseen(lines[:5], lines) == lines[5:]
    assert unseen(lines, lines) == []
    assert unseen(lines[:10], lines[4:]) == lines[10:], "the first ones are gone by now"
    assert unseen(lines[:5], lines[10:]) == lines[10:]
    assert unseen(lines, []) == []


def test_enqueue_at_a_time_and_with_an_id(jobq):
    when = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    words = ("enqueue", "a", "--create", "--queue", "tasks", "--id", "mine", "--run-at")
    for _ in range(2):
        assert jobq(*words, when.isoformat()).out.strip() == "tasks:mine"
    (row,) = jobq("show", "tasks:mine", "--json").json
    assert (row["state"], row["run_at"]) == ("delayed", when.timestamp() * 1000)
    assert "another job" in jobq(*words, (when + timedelta(hours=1)).isoformat()).err
    assert "a time with an offset" in jobq("enqueue", "a", "--run-at", "2100-01-31").err


def test_enqueue_with_times_by_which_it_must_start_and_end(jobq):
    when = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    words = ("enqueue", "a", "--create", "--queue", "tasks", "--expires", "5m", "--deadline", when.isoformat())
    job_id = jobq(*words).out.strip()
    (row,) = jobq("show", job_id, "--json").json
    assert (row["expires_at"], row["deadline_at"]) == (row["enqueued_at"] + 300_000, when.timestamp() * 1000)
    assert {"expires", "deadline"} <= {line.split()[0] for line in jobq("show", job_id).out.splitlines() if line}
    assert "'soon' is not a time; write 5s, 10m, 2h or 7d, or a moment" in jobq("enqueue", "a", "--expires", "soon").err


def test_rerun_enqueues_a_new_job_and_links_both(jobq):
    first = jobq("enqueue", "a", '{"n": 1}', "--create", "--queue", "tasks").out.strip()
    second = jobq("rerun", first, "--payload", '{"n": 2}', "--priority", "3").out.strip()
    (row,) = jobq("show", second, "--json").json
    assert (row["payload"], row["priority"], row["rerun_of"]) == ({"n": 2}, 3, first.partition(":")[2])
    assert jobq("rerun", first, "--json").json[0]["rerun_of"] == first
    assert f"rerun of   {first}" in jobq("show", second).out
    assert second in jobq("show", first).out
    assert "nobody" in jobq("rerun", "tasks:nobody").err


def test_queues_lists_the_types_that_are_published(jobq, tasks):
    assert "there are no types; workers and servers publish them" in jobq("queues", "--types").out
    jobq("enqueue", "echo", '{"word": "hi"}', "--queue", tasks)
    (queue,) = load_target(tasks)

    async def publish() -> None:
        async with queue:
            await Publisher(queue.tasks, queue.rules, queue.name, "w1").publish(queue.store)

    asyncio.run(publish())
    said = jobq("queues", "--types")
    assert re.search(r"tasks +echo +w1", said.out)
    echo = next(row for row in jobq("queues", "--types", "--json").json if row["type"] == "echo")
    assert (echo["queue"], echo["publisher"], echo["differing"]) == ("tasks", "w1", [])


def test_a_type_that_nobody_has_is_told_at_once(jobq, tasks):
    jobq("enqueue", "echo", "--queue", tasks)
    assert jobq("enqueue", "ehco", "--queue", "tasks").err == ""  # Nobody has published what there is.
    (queue,) = load_target(tasks)

    async def publish() -> None:
        async with queue:
            await Publisher(queue.tasks, queue.rules, queue.name, "w1").publish(queue.store)

    asyncio.run(publish())
    said = jobq("enqueue", "ehco", "--queue", "tasks")
    assert (said.code, said.out.startswith("tasks:")) == (0, True)
    assert said.err.startswith("jobq: no worker or server has published the type 'ehco': the job waits for a worker")
    assert "known: broken, echo, frozen" in said.err
    assert jobq("enqueue", "echo", "--queue", "tasks").err == ""


def test_aging_is_set_and_switched_off(jobq: Callable[..., Said], tasks: str):
    assert jobq("aging", "90s", "--queue", tasks).out == "tasks: a step of priority is worth 1.5m of waiting\n"
    assert json.loads(jobq("stats", tasks, "--json").out)["aging_ms"] == 90_000
    assert json.loads(jobq("aging", "5m", "--json", "--queue", tasks).out) == {"queue": "tasks", "aging": 300.0}
    assert jobq("aging", "off", "--queue", tasks).out == "tasks: priorities are absolute\n"
    assert jobq("aging", "2d", "--queue", tasks).code == 1


def test_partitions_are_set_and_shown(jobq: Callable[..., Said], tasks: str):
    said = jobq("partitions", "set", "3", "--queue", tasks).out
    assert said.startswith("tasks: 3 partitions, no job with keys yet, 3 at most so far\n")
    row = json.loads(jobq("partitions", "show", "--queue", tasks, "--json").out)
    assert row == {"queue": "tasks", "partitions": 3, "homes": 0, "most": 3, "jobs": [0, 0, 0]}
    ids = [jobq("enqueue", "echo", '{"word": "a"}', "--queue", tasks).out.strip() for _ in range(2)]
    assert [jobq("show", job_id, "--json").json[0]["state"] for job_id in ids] == ["waiting"] * 2
    assert jobq("partitions", "set", "0", "--queue", tasks).code == 2


def test_a_bulk_is_enqueued_from_a_file_and_spread(jobq: Callable[..., Said], tasks: str, tmp_path: Path):
    lines = tmp_path / "jobs.jsonl"
    lines.write_text('{"word": "a"}\n\n{"word": "b"}\n{"word": "-"}\n')
    said = jobq("enqueue", "echo", "--each", str(lines), "--spread", "30s", "--priority", "5", "--queue", tasks)
    assert (said.code, said.err) == (0, "")
    rows = [json.loads(jobq("show", job_id, "--json").out) for job_id in said.out.split()]
    assert [row["payload"]["word"] for row in rows] == ["a", "b", "-"]
    assert [(row["state"], row["priority"]) for row in rows] == [("waiting", 5), ("delayed", 5), ("delayed", 5)]
    assert [row["run_at"] - row["enqueued_at"] for row in rows[1:]] == pytest.approx([10_000, 20_000], abs=2000)
    lines.write_text('{"word": "a"}\n[]\n')
    for words, code, part in (
        (["--each", str(lines)], 2, "line 2: the payload is not a JSON object"),
        (["--each", str(tmp_path / "none")], 2, "cannot be read"),
        (["--spread", "5m"], 1, "--spread spreads the jobs of --each"),
        (["{}", "--each", os.devnull], 1, "leave JSON out"),
        (["--id", "x", "--each", os.devnull], 1, "leave --id out"),
    ):
        said = jobq("enqueue", "echo", *words, "--queue", tasks)
        assert (said.code, said.out, said.err.count("\n")) == (code, "", 1), words
        assert part in said.err
