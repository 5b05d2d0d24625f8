"""Job ids: unique without coordination, in the order of their making."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobq.engine.model.ids import is_id, new_id, time_of


def test_a_hundred_thousand_are_unique_and_of_one_form():
    ids = [new_id() for _ in range(100_000)]
    assert len(set(ids)) == len(ids)
    assert all(len(one) == 17 and is_id(one) for one in ids)


def test_a_whole_counter_fits_into_one_millisecond():
    ids = [new_id(1_700_000_000_000) for _ in range(32_768)]
    assert len(set(ids)) == len(ids)


@given(st.lists(st.integers(0, 2**45 - 1), min_size=2, max_size=20))
def test_they_sort_by_time(times: list[int]):
    ids = {ms: new_id(ms) for ms in times}
    assert [ids[ms] for ms in sorted(ids)] == sorted(ids.values())


@given(st.integers(0, 2**45 - 1))
def test_they_say_their_time(ms: int):
    assert time_of(new_id(ms)) == time_of(new_id(ms).encode()) == ms


@pytest.mark.parametrize("text", ["", "j0", "0" * 16, "0" * 18, "u" * 17, "\u00e9" * 17, " 12345678" + "0" * 8])
def test_no_id_no_time(text: str):
    assert time_of(text) == 0
    assert time_of(text.encode()) == 0


def test_without_a_time_it_is_the_machines():
    before = time.time_ns() // 1_000_000
    assert new_id(before)[:9] <= new_id()[:9] <= new_id(time.time_ns() // 1_000_000)[:9]


def test_after_a_fork_the_child_is_another_process():
    read, write = os.pipe()
    parent = [new_id(1) for _ in range(10)]
    pid = os.fork()
    if pid == 0:
        os.write(write, "\n".join(new_id(1) for _ in range(10)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        child = pipe.read().split()
    parent += [new_id(1) for _ in range(10)]
    assert len(child) == 10
    assert {one[12:] for one in parent}.isdisjoint({one[12:] for one in child}), "25 random bits of its own"


def test_what_is_no_id():
    good = new_id()
    assert is_id(good)
    for bad in ("", good[:-1], good + "0", good[:-1] + "u", good.upper(), good[:-1] + "\n", good + "\n", "i" * 17):
        assert not is_id(bad), bad
