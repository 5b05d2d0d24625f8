"""Numbers on the command line: a word is a whole number in plain digits, or an error that says so."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import pytest

from jobq.cli import render, values

if TYPE_CHECKING:
    from collections.abc import Callable

ODD = ["", " 1", "1 ", "+1", "1_0", "1.0", "1e3", "0x1", "\u0661", "\u00b2", "9" * 5000, "--1"]
"""``int`` takes some of these, ``str.isdecimal`` takes others."""


@pytest.mark.parametrize(
    ("parse", "form", "one"),
    [
        (values.integer, "{}", 1),
        (values.whole(1), "{}", 1),
        (values.whole_or_any, "{}", 1),
        (values.attempts, "{}", 1),
        (values.weight, "email={}", ("email", 1)),
        (values.cost, "tokens={}", ("tokens", 1)),
    ],
    ids=["integer", "whole", "whole_or_any", "attempts", "weight", "cost"],
)
def test_a_number_has_plain_digits(parse: Callable[[str], Any], form: str, one: object):
    assert parse(form.format(1)) == one
    for odd in ODD:
        with pytest.raises(argparse.ArgumentTypeError, match=r"number|UNIT=N"):
            parse(form.format(odd))


@pytest.mark.parametrize("odd", ODD[1:])
def test_a_rate_has_plain_digits(odd: str):
    for word in (f"{odd}/1m", f"1/1m/{odd}"):
        with pytest.raises(argparse.ArgumentTypeError, match="it takes COUNT/TIME"):
            values.rate(word)


def test_a_negative_number_is_a_priority_and_no_count():
    assert values.integer("-5") == -5
    with pytest.raises(argparse.ArgumentTypeError, match="0 or more"):
        values.whole(0)("-5")


def test_one_thing_has_no_plural():
    assert [render.number_of(count, "job") for count in (0, 1, 2)] == ["0 jobs", "1 job", "2 jobs"]
