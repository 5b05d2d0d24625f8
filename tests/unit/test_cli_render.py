"""Times, tables and example jobs as the command line prints them, and times as it reads them."""

from __future__ import annotations

import argparse
import sys
from datetime import date, datetime  # noqa: TC003 - handlers' types are looked up at run time
from decimal import Decimal  # noqa: TC003
from typing import Annotated, Literal
from uuid import UUID  # noqa: TC003

import msgspec
import pytest

from jobq import Backoff, JobRow, Queue, State
from jobq.cli import dev, render, values
from jobq.cli.example import example


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.0004, "0ms"),
        (0.25, "250ms"),
        (1, "1s"),
        (59.94, "59.9s"),
        (90, "1.5m"),
        (7200, "2h"),
        (864000, "10d"),
    ],
)
def test_span(seconds: float, text: str):
    assert render.span(seconds) == text


def test_ago():
    assert render.ago(None) == "-"
    assert render.ago(1000, now_ms=4000) == "3s ago"
    assert render.ago(301_000, now_ms=1000) == "in 5m"


def test_a_job_shows_how_often_it_was_snoozed():
    row = JobRow("1", "q", "send", State.DELAYED, msgspec.Raw(b"{}"), 0, 3, 0, 0, snoozes=4)
    assert "snoozes    4" in render.job_lines(row)
    assert not [line for line in render.job_lines(msgspec.structs.replace(row, snoozes=0)) if "snoozes" in line]


def test_a_table_aligns_numbers_to_the_right_and_text_to_the_left():
    lines = render.table(("NAME", "N"), [("a", 1), ("long name", 200)])
    assert lines == ["NAME         N", "a            1", "long name  200"]


def test_progress_with_and_without_rich(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with render.progress("removing", 20, quiet=False) as heard:
        heard(20)
    assert "20/20" in capsys.readouterr().err
    for module in ("rich", "rich.console", "rich.progress"):
        monkeypatch.setitem(sys.modules, module, None)
    with render.progress("removing", 20, quiet=False) as heard:
        heard(10)
        heard(20)
    assert capsys.readouterr().err == "\rremoving: 10 of 20\rremoving: 20 of 20\n"


def test_no_progress_for_programs(capsys):
    with render.progress("removing", 20, quiet=True) as heard:
        heard(10)
    assert capsys.readouterr().err == ""


def test_an_empty_table_is_its_head():
    assert render.table(("NAME", "N"), []) == ["NAME  N"]


@pytest.mark.parametrize(
    ("word", "seconds"), [("5", 5), ("1.5s", 1.5), ("250ms", 0.25), ("10m", 600), ("2h", 7200), ("7d", 604800)]
)
def test_times_are_read(word: str, seconds: float):
    assert values.seconds(word) == seconds


@pytest.mark.parametrize("word", ["", "-5", "5 s", "1w", "inf", "nan", "1e3"])
def test_a_text_that_is_not_a_time_is_refused(word: str):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a time"):
        values.seconds(word)


def test_backoffs_are_read():
    assert values.backoff("fixed:5s") == Backoff(type="fixed", delay=5)
    assert values.backoff("exponential:1s") == Backoff(delay=1)
    assert values.backoff("exponential:2h") == Backoff(delay=7200, max=7200)
    assert values.backoff("exponential:1s:1h") == Backoff(delay=1, max=3600)
    assert values.backoff("1s,5s,1m") == Backoff(delays=[1, 5, 60])


@pytest.mark.parametrize("word", ["fixed", "fixed:1s:2s", "exponential", "exponential:1s:2s:3s", "other:1s"])
def test_a_text_that_is_not_a_backoff_is_refused(word: str):
    with pytest.raises(argparse.ArgumentTypeError, match="write fixed:DELAY"):
        values.backoff(word)


class Part(msgspec.Struct):
    """A part of the payload."""

    name: str
    size: int = 3


async def test_the_example_of_jobq_dev_is_a_job_that_the_queue_accepts(queue: Queue):
    @queue.task
    async def everything(
        text: str,
        number: Annotated[int, msgspec.Meta(ge=7)],
        ratio: float,
        flag: bool,
        parts: list[Part],
        part: Part,
        choice: Literal["red", "green"],
        address: Annotated[str, msgspec.Meta(pattern="@", examples=["a@example.com"])],
        either: int | None,
        optional: str = "",
    ) -> None: ...

    job = example(queue)
    assert job is not None
    assert "optional" not in job["payload"]
    new = queue.new(job["type"], job["payload"])
    queue.check(new)


class Tree(msgspec.Struct):
    """A type that contains itself."""

    left: Tree | None
    items: list[Tree]


async def test_the_example_is_of_a_type_for_which_one_can_be_made(queue: Queue):
    @queue.task
    async def odd(what: Annotated[str, msgspec.Meta(pattern="^[0-9]{7}$")]) -> None: ...

    assert example(queue) is None, "the server would refuse it"
    screen = dev.screen([queue], queue.settings, "http://x", 1)
    assert "  open http://x/docs  # how to enqueue jobs of odd" in screen

    @queue.task
    async def moments(
        at: Annotated[datetime, msgspec.Meta(tz=True)],
        day: date,
        id: UUID,
        price: Decimal,
        tree: Tree,
        long: Annotated[str, msgspec.Meta(min_length=9)],
        pair: Annotated[list[int], msgspec.Meta(min_length=2)],
        counts: dict[str, int],
        above: Annotated[int, msgspec.Meta(gt=3)],
    ) -> None: ...

    job = example(queue)
    assert job is not None
    assert job["type"] == "moments"
    queue.check(queue.new(job["type"], job["payload"]))


async def test_a_type_without_a_schema_is_skipped(queue: Queue, monkeypatch: pytest.MonkeyPatch):
    @queue.task
    async def odd() -> None: ...

    def no_schema() -> dict[str, object]:
        raise TypeError("Generating JSON schema for custom types requires a schema_hook")

    monkeypatch.setattr(queue.tasks["odd"], "schema", no_schema)
    assert example(queue) is None


def test_the_example_of_a_queue_without_tasks():
    assert example(Queue("empty")) == {"type": "anything", "payload": {}}
