"""Bad input to the commands of limits, groups, schedules, breakers and unique jobs: one line that says what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Said

PUT = ("schedules", "put", "s", "send")
REFUSED: list[tuple[tuple[str, ...], int, str]] = [
    (("limits", "set", "pool", "--rate", "10/1m/5/"), 2, "it takes COUNT/TIME"),
    (("limits", "set", "pool", "--rate", "-5/1m"), 2, "one that begins with '-' is written --rate=VALUE"),
    (("groups", "set", "acme"), 1, "give --weight, --paused, --no-paused or --max-queued"),
    (("groups", "set", "acme", "--weight", "x"), 2, "'x' is not a number of 0 or more; write it like 2 or 0.5"),
    (("groups", "set", "acme", "--weight", "nan"), 2, "'nan' is not a number of 0 or more"),
    (("groups", "set", "acme", "--weight", "-1"), 2, "'-1' is not a number of 0 or more"),
    (("groups", "set", "acme", "--weight", "0"), 1, "it takes a number from 0.001 to 1000"),
    ((*PUT, "--every", "0"), 1, "every is 0 ms: it takes whole seconds from 1 to"),
    ((*PUT, "--every", "-5m"), 2, "a value is missing; one that begins with '-' is written --every=VALUE"),
    ((*PUT, "--every=-5m",), 2, "'-5m' is not a time"),
    ((*PUT, "--every", "1m", "--cron", "* * * * *"), 1, "takes one of cron, every and at, and has cron and every"),
    ((*PUT, "--every", "1m", "--exclude", "x"), 1, "exclude: cron is 'x': it takes 5 fields"),
    (("breakers", "trip", "send", "--time", "-1m"), 2, "is written --time=VALUE"),
    (("enqueue", "send", "{}", "--by", "n"), 1, "the payload has no 'n', which unique.by names; it has no fields"),
    (("enqueue", "send", "{}", "--expires", "-1s"), 2, "is written --expires=VALUE"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "code", "part"), REFUSED, ids=[" ".join(words) for words, _, _ in REFUSED])
def test_it_is_refused_in_one_line(jobq: Callable[..., Said], words: tuple[str, ...], code: int, part: str):
    jobq("enqueue", "other", "--queue", "q", "--create")
    said = jobq(*words, "--queue", "q")
    assert (said.code, said.out) == (code, "")
    assert part in said.err
    assert said.err.count("\n") == 1
    assert jobq("groups", "ls", "--json", "--queue", "q").out == ""
    assert jobq("schedules", "ls", "--json", "--queue", "q").out == ""
