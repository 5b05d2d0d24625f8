"""``jobq webhooks``: made, listed, shown without the secret, rotated, tested, removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Said

URL = "https://example.com/hook"


def test_a_webhook_from_its_beginning_to_its_end(jobq: Callable[..., Said], tasks: str):
    at = ("--queue", tasks)
    assert "jobq webhooks set NAME URL" in jobq("webhooks", "ls", *at).out
    made = jobq("webhooks", "set", "crm", URL, "--events", "failed,completed", *at)
    assert "whsec_" in made.out
    assert "Keep the secret" in made.out
    [row] = jobq("webhooks", "ls", "--json", *at).json
    assert (row["name"], row["url"], row["events"]) == ("crm", URL, ["completed", "failed"])
    for words in (("ls",), ("show", "crm"), ("set", "crm", URL, "--no-enabled")):
        said = jobq("webhooks", *words, *at)
        assert URL in said.out
        assert "whsec_" not in said.out
    assert jobq("webhooks", "show", "crm", "--json", *at).json[0]["enabled"] is False
    [rotated] = jobq("webhooks", "rotate", "crm", "--json", *at).json
    assert rotated["secret"] not in made.out
    [tested] = jobq("webhooks", "test", "crm", "--json", *at).json
    assert tested["id"].startswith("tasks.webhooks:")
    assert "nothing was delivered to crm yet" in jobq("webhooks", "deliveries", "crm", *at).out
    assert jobq("webhooks", "deliveries", "crm", "--json", *at).json == []
    assert jobq("webhooks", "rm", "crm", *at).out == "webhook crm of queue tasks was removed\n"
    gone = jobq("webhooks", "show", "crm", *at)
    assert gone.code != 0
    assert "crm" in gone.err


def test_wrong_input_is_one_line(jobq: Callable[..., Said], tasks: str):
    for words, said in (
        (("crm", "example.com"), "give https://host/path"),
        (("crm", URL, "--events", "done"), "give a list of"),
        (("a b", URL), "webhook name"),
    ):
        answer = jobq("webhooks", "set", *words, "--queue", tasks)
        assert answer.code != 0
        assert said in answer.err


def test_the_queue_of_deliveries_is_not_a_second_queue(jobq: Callable[..., Said], tasks: str):
    """The first webhook makes it. The command line still knows which queue is meant."""
    jobq("webhooks", "set", "crm", URL, "--queue", tasks)
    jobq("webhooks", "test", "crm")
    assert "tasks.webhooks" in jobq("stats").out
    for words in (("ls",), ("webhooks", "ls"), ("limits", "ls"), ("why",)):
        said = jobq(*words)
        assert (said.code, said.err) == (0, ""), words
    assert jobq("ls", "--queue", "tasks.webhooks").code == 0


def test_the_help_of_a_menu_has_a_line_for_each_command(jobq: Callable[..., Said]):
    for menu, command in (("webhooks", "rotate     make a new secret"), ("schedules", "run        enqueue a job now")):
        lines = jobq(menu, "--help").out.splitlines()
        assert lines[0] == f"usage: jobq {menu} COMMAND ..."
        assert any(line.startswith(f"  {command}") for line in lines)
