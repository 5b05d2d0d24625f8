"""Cron expressions in time zones, compared with a simulation of Debian's cron that looks at every minute.

By default some zones are looked at. ``JOBQ_TEST_ZONES=all`` looks at all of them, from 2000 to 2040, in some minutes.
"""

from __future__ import annotations

import os
import random
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobq import InvalidJob
from jobq.engine.queue.schedules import preview
from jobq.engine.schedule.cron import CORRECTION, Cron, zone
from jobq.engine.schedule.definition import Definition
from jobq.engine.schedule.timing import COMPUTED, Timing, check_slots

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

ALWAYS = (
    *("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Antarctica/Troll", "Pacific/Apia", "UTC"),
    *("Africa/Casablanca", "Asia/Pyongyang", "America/Caracas", "Asia/Tehran", "Antarctica/Casey"),
    "America/Scoresbysund",
)
"""Zones with changes of half an hour, of two hours, of a whole day, twice a year around Ramadan, and for ever."""
FULL = os.environ.get("JOBQ_TEST_ZONES") == "all"
ZONES = (
    sorted(available_timezones()) if FULL else [*ALWAYS, *random.Random(7).sample(sorted(available_timezones()), 12)]
)
FIRST, LAST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2040, 12, 31, tzinfo=UTC)
EXPRESSIONS: dict[str, tuple[set[int], set[int], bool]] = {
    # minutes, hours, and whether both fields are fixed
    "30 2 * * *": ({30}, {2}, True),
    "0,30 0-3 * * *": ({0, 30}, {0, 1, 2, 3}, True),
    "5 0 * * *": ({5}, {0}, True),
    "15 1,23 * * *": ({15}, {1, 23}, True),
    "*/15 * * * *": ({0, 15, 30, 45}, set(range(24)), False),
    "20 * * * *": ({20}, set(range(24)), False),
    "*/10 1-2 * * *": ({0, 10, 20, 30, 40, 50}, {1, 2}, False),
    "0 */2 * * *": ({0}, set(range(0, 24, 2)), False),
}
WINDOW = 5 * 3600


@contextmanager
def at_most(calls: int) -> Iterator[None]:
    """Count the calls of Python functions in the block. Each step of a search makes some, and no load of the machine
    changes their number. A search that looks at each second needs many times the bounds below."""
    count = 0

    def counted(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        yield
    finally:
        sys.setprofile(before)
    assert count <= calls


def offset(tz: ZoneInfo, moment: int) -> int:
    found = datetime.fromtimestamp(moment, UTC).astimezone(tz).utcoffset()
    assert found is not None
    return round(found.total_seconds())


def changes(tz: ZoneInfo) -> Iterator[int]:
    """The moments at which the offset changes, unix seconds."""
    step = 86_400
    low = int(FIRST.timestamp())
    before = offset(tz, low)
    while low < LAST.timestamp():
        after = offset(tz, low + step)
        if after != before:
            a, b = low, low + step
            while b - a > 1:
                middle = (a + b) // 2
                a, b = (middle, b) if offset(tz, middle) == before else (a, middle)
            yield b
        low, before = low + step, after


def simulated(walls: list[int], change: int, shift: int, minutes: set[int], hours: set[int], fixed: bool) -> list[int]:
    """What Debian's cron does around a change, one minute after the other. ``walls``: what the clock shows."""
    follows = not fixed or abs(shift) >= CORRECTION
    fired: list[int] = []
    start = (change - WINDOW) // 60 * 60
    for place, wall in enumerate(walls):
        moment = start + 60 * place
        seen = [wall]
        if not follows and shift > 0 and moment - 60 < change <= moment:
            # The minutes that the wall skips count now.
            seen += range(wall - shift, wall, 60)
        if not follows and shift < 0 and change <= moment < change - shift:
            continue  # These minutes come for the second time.
        if any(one // 60 % 60 in minutes and one // 3600 % 24 in hours for one in seen):
            fired.append(moment)
    return fired


@pytest.mark.timeout(3000 if FULL else 120)
@pytest.mark.parametrize("name", ZONES)
def test_every_change_of_the_clock_is_as_debian_has_it(name: str):
    tz = zone(name)
    found = list(changes(tz))
    if not FULL:
        found = random.Random(3).sample(found, min(len(found), 8))
    for change in found:
        if any(other != change and abs(other - change) < 2 * WINDOW + 86_400 for other in found) or change % 60:
            continue  # the simulation knows one change, at a whole minute
        start, shift = (change - WINDOW) // 60 * 60, offset(tz, change) - offset(tz, change - 1)
        walls = [moment + offset(tz, moment) for moment in range(start, change + WINDOW, 60)]
        for text, (minutes, hours, fixed) in EXPRESSIONS.items():
            cron = Cron(text, tz)
            moment = start - 1
            slots: list[int] = []
            while (slot := cron.after(moment)) is not None and slot < change + WINDOW:
                slots.append(slot)
                moment = slot
            expected = simulated(walls, change, shift, minutes, hours, fixed)
            assert slots == expected, (name, text, datetime.fromtimestamp(change, UTC))


def walls(text: str, tz: str, start: str, count: int = 4) -> list[str]:
    moment = int(datetime.fromisoformat(start).timestamp())
    found: list[str] = []
    for _ in range(count):
        slot = Cron(text, zone(tz)).after(moment)
        assert slot is not None
        found.append(datetime.fromtimestamp(slot, zone(tz)).strftime("%d %H:%M:%S%z"))
        moment = slot
    return found


def test_seconds_follow_the_same_rule():
    """node-red-cron-plus#108: every 15 seconds stopped for an hour."""
    assert walls("*/15 * * * * *", "Europe/Berlin", "2027-10-31T02:59:30+02:00") == [
        "31 02:59:45+0200", "31 02:00:00+0100", "31 02:00:15+0100", "31 02:00:30+0100",
    ]  # fmt: skip
    assert walls("10 30 2 * * *", "Europe/Berlin", "2027-10-30T12:00:00+02:00", 2) == [
        "31 02:30:10+0200", "01 02:30:10+0100",
    ]  # fmt: skip


def test_a_day_that_was_skipped():
    """Samoa had no 30 December 2011. That is a correction of the clock: the day's times do not come."""
    assert walls("0 3 * * *", "Pacific/Apia", "2011-12-29T12:00:00-10:00", 2) == [
        "31 03:00:00+1400",
        "01 03:00:00+1400",
    ]
    with at_most(1_000):
        assert walls("* * * * * *", "Pacific/Apia", "2011-12-29T23:59:58-10:00", 2)[1] == "31 00:00:00+1400"


def test_a_repeated_hour_with_all_its_seconds_costs_little():
    cron = Cron("0-59 0-59 0-23 * * *", zone("Europe/Berlin"))
    moment = int(datetime.fromisoformat("2027-10-31T02:00:05+01:00").timestamp())
    with at_most(1_000):
        slot = cron.after(moment)
        assert slot is not None
        assert datetime.fromtimestamp(slot, zone("Europe/Berlin")).isoformat() == "2027-10-31T03:00:00+01:00"


UNUSABLE = [
    *("0 0 30 2 *", "0 0 31 2,4,6 *", "0 0 31 4 *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *"),
    *("* * * * 8", "*/0 * * * *", "5-1 * * * *", "a b c d e", "", "* * * *", "* * * * * * *", "@reboot", "@every 5m"),
    *("1/2/3 * * * *", "L * * * *", "* * L/x * *", "* * * * #", "* * * * 1#6", "* * * * L", "* * 1#L * *"),
    *("-1 * * * *", "\u0661 * * * *", "* * ? * *", "* * * * mon#0"),
    *("," * 250, "*" * 257, "1," * 200 + "1 * * * *"),
]


@pytest.mark.parametrize(
    ("keyword", "expression"),
    [
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@monthly", "0 0 1 * *"),
        ("@weekly", "0 0 * * 0"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        (" @Hourly ", "0 * * * *"),
    ],
)
def test_keywords_stand_for_expressions(keyword: str, expression: str):
    ours, same = Cron(keyword, zone("Europe/Berlin")), Cron(expression, zone("Europe/Berlin"))
    moment = int(datetime(2027, 3, 27, 12, tzinfo=UTC).timestamp())
    assert [ours.after(moment + n) for n in range(0, 200_000, 50_000)] == [
        same.after(moment + n) for n in range(0, 200_000, 50_000)
    ]
    assert ours.words() == same.words()


@pytest.mark.parametrize("text", UNUSABLE)
def test_expressions_that_cannot_be_used(text: str):
    with at_most(2_000), pytest.raises(InvalidJob):
        Cron(text, zone("UTC"))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text("0123456789*,-/L#WMONFRI? ", max_size=12), min_size=4, max_size=7).map(" ".join))
def test_any_text_is_an_expression_or_an_error_in_bounded_time(text: str):
    with at_most(5_000):
        try:
            cron = Cron(text, zone("Europe/Berlin"))
            cron.words()
            cron.after(1_800_000_000)
        except InvalidJob:
            pass


def test_the_rarest_days_come_in_bounded_time():
    with at_most(5_000):
        assert walls("0 0 29 2 */7", "UTC", "2027-01-01T00:00:00+00:00", 1) == ["29 00:00:00+0000"]
        assert Timing(Definition("t", cron=("0 0 29 2 */7",))).after(1_800_000_000) == 1_834_704_000 + (
            int(datetime(2032, 2, 29, tzinfo=UTC).timestamp()) - 1_834_704_000
        )


def test_exclusions_of_whole_days_are_passed_over_at_once():
    timing = Timing(Definition("t", cron=("* * * * * *",), exclude=("* * 25-31 12 *", "* * * 1-6 *")))
    with at_most(20_000):
        slot = timing.after(int(datetime(2027, 12, 24, 23, 59, 59, tzinfo=UTC).timestamp()))
        assert slot == int(datetime(2028, 7, 1, tzinfo=UTC).timestamp())


def test_exclusions_around_a_change_of_the_clock_lose_no_time():
    timing = Timing(Definition("t", cron=("*/30 * * * *",), exclude=("* 1 * * *",), tz="Europe/Berlin"))
    start = int(datetime(2027, 3, 28, 0, 45, tzinfo=zone("Europe/Berlin")).timestamp())
    found = [
        datetime.fromtimestamp(slot, zone("Europe/Berlin")).strftime("%H:%M")
        for slot in timing.between(start, start + 7200, 9)
    ]
    assert found == ["03:00", "03:30"]


@given(st.integers(0, 2_000_000), st.sampled_from(["*/7 * * * *", "0 */5 * * *", "13 4 * * mon"]), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_the_last_slot_up_to_a_time_is_that_of_counting(start: int, text: str, days: int):
    timing = Timing(Definition("t", cron=(text,), tz="Europe/Berlin"))
    first = timing.after(1_790_000_000 + start)
    assert first is not None
    end = first + days * 86_400
    counted = timing.between(first, end, 1_000_000)
    last, count = timing.up_to(first, end)
    assert (last, count) == (counted[-1], min(len(counted), 1000))


def test_slots_of_an_interval_do_not_depend_on_when_it_was_written():
    timing = Timing(Definition("t", every=int(timedelta(days=7).total_seconds()) * 1000))
    slots = {timing.after(1_800_000_000 + n * 3600) for n in range(24)}
    assert len(slots) == 1


SECONDS = tuple(f"{n},{n + 20},{n + 40} * * * * *" for n in range(16))


@pytest.mark.parametrize(
    ("cron", "exclude"),
    [
        (SECONDS, ("* * * * * *",)),
        (tuple(f"{n} 0 29 2 *" for n in range(16)), tuple(f"{n} 0 29 2 *" for n in range(16))),
        (SECONDS, SECONDS),
    ],
)
def test_many_expressions_that_exclude_each_other_are_refused_in_bounded_time(
    cron: tuple[str, ...], exclude: tuple[str, ...]
):
    """It took two seconds, in which a server answered nobody."""
    timing = Timing(Definition("x", cron=cron, exclude=exclude, tz="Europe/Berlin"))
    with pytest.raises(InvalidJob, match="never comes"):
        check_slots(timing, 0)
    assert timing.tries <= COMPUTED + 20


def test_a_schedule_with_many_expressions_may_pause_for_most_of_a_year():
    cron = tuple(f"{n} {n} * * *" for n in range(16))
    timing = Timing(Definition("x", cron=cron, exclude=("* * * 1-11 *",), tz="Europe/Berlin"))
    last = int(datetime(2027, 12, 31, 22, tzinfo=UTC).timestamp())
    assert timing.after(last) == int(datetime(2028, 11, 30, 23, tzinfo=UTC).timestamp())


def test_a_preview_is_bounded():
    definition = Definition("x", cron=SECONDS, exclude=tuple(f"* * {n} * * *" for n in range(1, 16)))
    assert len(preview(definition, 0, 100).times) == 100
    rare = Definition("x", cron=("* * * * * *",), exclude=("1-59 * * * * *",))
    assert 50 < len(preview(rare, 0, 100).times) <= 100
