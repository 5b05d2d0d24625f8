"""Job ids are unique without coordination and sort by the time of their creation."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobq.engine.model.ids import IdMaker, is_id, new_id, time_of


def test_a_hundred_thousand_ids_are_unique_and_have_one_form():
    ids = [new_id() for _ in range(100_000)]
    assert len(set(ids)) == len(ids)
    assert ids == sorted(ids)
    assert all(len(one) == 17 and is_id(one) for one in ids)


@pytest.mark.parametrize("step", [0, -1, 1])
def test_ids_only_grow_even_if_the_clock_stands_or_goes_back(step: int):
    maker, ms = IdMaker(), 1_700_000_000_000
    ids = [maker.new(ms + step * (n // 7)) for n in range(100_000)]
    assert all(one < other for one, other in pairwise(ids))
    assert time_of(ids[-1]) == maker.ms
    assert abs(maker.ms - max(ms, ms + step * (len(ids) // 7))) <= 4, (
        "the time is right but for the counter's overflows"
    )


@given(st.lists(st.integers(0, 2**45 - 1), min_size=2, max_size=20))
def test_ids_sort_by_time(times: list[int]):
    ids = {ms: IdMaker().new(ms) for ms in times}
    assert [ids[ms] for ms in sorted(ids)] == sorted(ids.values())


def test_threads_make_different_ids():
    made: list[list[str]] = []
    threads = [Thread(target=lambda: made.append([new_id() for _ in range(5000)])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one for ids in made for one in ids}) == 20_000


@given(st.integers(0, 2**45 - 1))
def test_the_time_of_an_id_can_be_read(ms: int):
    job_id = IdMaker().new(ms)
    assert time_of(job_id) == time_of(job_id.encode()) == ms


@pytest.mark.parametrize("text", ["", "j0", "0" * 16, "0" * 18, "u" * 17, "\u00e9" * 17, " 12345678" + "0" * 8])
def test_a_text_that_is_not_an_id_has_the_time_0(text: str):
    assert time_of(text) == 0
    assert time_of(text.encode()) == 0


def test_an_id_without_a_given_time_has_the_machines_time():
    before = time.time_ns() // 1_000_000
    assert before <= time_of(new_id()) <= time.time_ns() // 1_000_000


def test_a_forked_child_makes_other_ids():
    read, write = os.pipe()
    parent = [new_id() for _ in range(10)]
    pid = os.fork()
    if pid == 0:
        os.write(write, "\n".join(new_id() for _ in range(10)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        child = pipe.read().split()
    parent += [new_id() for _ in range(10)]
    assert len(child) == 10
    assert {one[12:] for one in parent}.isdisjoint({one[12:] for one in child}), "25 random bits of its own"


def test_ids_of_the_users_own():
    for good in (new_id(), "a", "order-4711", "A.b_c~d-e", "x" * 64):
        assert is_id(good), good
    for bad in ("", "x" * 65, "a b", "a:b", "a/b", "a\n", "\u00e9", "a%2F", None, 5):
        assert not is_id(bad), bad
