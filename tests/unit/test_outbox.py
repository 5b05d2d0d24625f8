"""The content of a trip: outcomes within bounds, and log lines before their outcome. No job waits for those of
another."""

from __future__ import annotations

from typing import Any

import msgspec

from jobq.engine.worker import outbox as outbox_module
from jobq.engine.worker.notes import LOG_KEPT, NOTES_BYTES, NOTES_MAX, Notes, RunNotes, log_rows
from jobq.engine.worker.outbox import (
    COMPLETED,
    FAILED,
    HAND_BACK_MAX,
    RELEASED,
    SETTLE_BYTES,
    SETTLE_MAX,
    Outbox,
    Tally,
)

TOKEN = b"1 w"


def completed(outbox: Outbox, *ids: bytes, result: bytes = b"[]") -> None:
    for job_id in ids:
        outbox.rows[COMPLETED] += (job_id, TOKEN, result, "")


def ids(flat: list[Any], width: int) -> list[bytes]:
    return flat[::width]


def numbers(count: int) -> list[bytes]:
    return [b"%d" % n for n in range(count)]


def test_a_trip_carries_a_bounded_number_of_outcomes_and_the_rest_keeps_its_order():
    outbox = Outbox()
    completed(outbox, *numbers(SETTLE_MAX + 3))
    assert ids(outbox.take().rows[COMPLETED], 4) == numbers(SETTLE_MAX)
    assert ids(outbox.take().rows[COMPLETED], 4) == numbers(SETTLE_MAX + 3)[-3:]
    assert not outbox


def test_large_results_are_sent_a_few_per_trip():
    outbox = Outbox()
    completed(outbox, b"a", b"b", b"c", result=b"x" * (SETTLE_BYTES // 2 + 1))
    assert ids(outbox.take().rows[COMPLETED], 4) == [b"a", b"b"]
    assert ids(outbox.take().rows[COMPLETED], 4) == [b"c"]


def tally(*micros: int) -> Tally:
    """What is counted of runs that took so long."""
    found = Tally()
    for time in micros:
        one = Tally()
        one.run, one.run_us = {time.bit_length(): 1}, time
        found.add(one)
    return found


def test_outcomes_of_a_lost_trip_are_sent_again_first_with_their_metrics():
    outbox = Outbox()
    completed(outbox, b"a", b"b")
    outbox.counts = {"t": tally(2, 3), "u": tally(1)}
    parcel = outbox.take(1)
    assert not parcel.repeated
    completed(outbox, b"c")
    outbox.counts = {"t": tally(1, 1)}
    outbox.put_back(parcel)
    again = outbox.take()
    assert again.repeated
    assert ids(again.rows[COMPLETED], 4) == [b"a", b"b", b"c"]
    assert again.counts["t"].words("t") == ["run_us:t", 7, "wait_us:t", 0, "run1:t", 2, "run2:t", 2]
    assert again.counts["u"].words("u") == ["run_us:u", 1, "wait_us:u", 0, "run1:u", 1]
    assert not outbox.repeated


def test_a_bound_counts_all_outcomes_together():
    outbox = Outbox()
    completed(outbox, b"a", b"b")
    outbox.rows[FAILED] += (b"c", TOKEN, 1, b"{}", "")
    parcel = outbox.take(2)
    assert len(parcel) == 2
    assert FAILED not in parcel.rows
    last = outbox.take(2)
    assert list(last.rows) == [FAILED]
    assert last.alone


def test_of_many_released_jobs_the_last_are_sent_first():
    """Each call puts its jobs before all waiting ones."""
    outbox = Outbox()
    for job_id in numbers(HAND_BACK_MAX + 2):
        outbox.rows[RELEASED] += (job_id, TOKEN)
    parcel = outbox.take()
    assert ids(parcel.rows[RELEASED], 2) == numbers(HAND_BACK_MAX + 2)[2:]
    outbox.put_back(parcel)
    assert ids(outbox.rows[RELEASED], 2) == numbers(HAND_BACK_MAX + 2)
    outbox.take()
    assert ids(outbox.take().rows[RELEASED], 2) == [b"0", b"1"]


def test_jobs_that_are_handed_back_keep_the_order_of_their_claims():
    outbox = Outbox()
    outbox.rows[RELEASED] += (b"c", b"20 w", b"a", b"3 w", b"b", b"3 w")
    assert ids(outbox.take().rows[RELEASED], 2) == [b"a", b"b", b"c"]


def test_an_outcome_waits_only_for_the_log_lines_of_its_own_job(monkeypatch):
    monkeypatch.setattr(outbox_module, "NOTES_MAX", 2)
    outbox = Outbox()
    for job_id in (b"running", b"a", b"b", b"c"):
        outbox.notes.progress((job_id, TOKEN), b"1")
    completed(outbox, b"a", b"silent", b"b", b"c")
    first = outbox.take()
    assert [job_id for job_id, _ in first.notes] == [b"a", b"b"]
    assert ids(first.rows[COMPLETED], 4) == [b"a", b"silent", b"b"]
    second = outbox.take()
    assert [job_id for job_id, _ in second.notes] == [b"c", b"running"]
    assert ids(second.rows[COMPLETED], 4) == [b"c"]
    assert not outbox


class Speaker:
    """A run that has written nothing yet."""

    lines = 0


def messages(said: dict[tuple[bytes, bytes], RunNotes]) -> list[str]:
    return [
        msgspec.json.decode(line)[1] if line.startswith(b"[") else msgspec.json.decode(line)["message"]
        for text in log_rows(said)[4::5]
        for line in text.split(b"\n")
    ]


def test_the_last_lines_are_kept_and_one_line_counts_the_dropped_ones():
    notes, key, writer = Notes(), (b"a", TOKEN), Speaker()
    for n in range(10_000):
        notes.log(key, writer, f"line {n}", n, appends=False)
    taken = notes.take([], 10)
    said = taken[key]
    assert said.size <= LOG_KEPT
    # The server did not get them, and more arrived meanwhile.
    for n in range(10_000, 10_010):
        notes.log(key, writer, f"line {n}", n, appends=False)
    notes.put_back(taken)
    taken = notes.take([], 10)
    lines = messages(taken)
    assert log_rows(taken)[2:4] == [10_010 - len(lines), 10_010], "the lines by their numbers; the note is one of them"
    assert lines[-1] == "line 10009"
    assert lines[0] == f"... {10_010 - (len(lines) - 1)} lines were left out ..."
    assert lines[1:] == [f"line {n}" for n in range(10_011 - len(lines), 10_010)]


def test_a_trip_counts_the_earlier_lines_that_the_server_may_have_to_move():
    """Redis reads and writes 64 KiB to append one line. The first lines of a job cost almost nothing."""
    for appends, jobs in ((False, NOTES_MAX), (True, NOTES_BYTES // LOG_KEPT + 1)):
        notes = Notes()
        for n in range(2 * NOTES_MAX):
            notes.log((b"%d" % n, TOKEN), Speaker(), "line", 0, appends=appends)
        assert len(notes.take([], NOTES_MAX)) == jobs


def test_a_trip_moves_little_more_than_a_megabyte_of_log_lines():
    """Redis serves nobody else while it moves them. With 2 MB of thousands of short lines that took more than 10 ms."""
    notes = Notes()
    for number in range(20):
        key, writer = (b"%d" % number, TOKEN), Speaker()
        for _ in range(2200):
            notes.log(key, writer, "a", 0, appends=True)
    assert sum(said.weight for said in notes.take([], NOTES_MAX).values()) <= (1 << 20) + 2 * LOG_KEPT


def test_lines_of_a_lost_trip_are_counted_as_possibly_stored():
    notes, key, writer = Notes(), (b"a", TOKEN), Speaker()
    notes.log(key, writer, "line", 0, appends=True)
    lost = notes.take([], 1)
    notes.log(key, writer, "line", 0, appends=False)
    notes.put_back(lost)
    assert notes.take([], 1)[key].appends


def test_the_last_progress_is_sent_even_after_a_lost_trip():
    notes, key = Notes(), (b"a", TOKEN)
    assert notes.progress(key, b"1")
    assert not notes.progress(key, b"2")
    taken = notes.take([], 10)
    notes.progress(key, b"3")
    notes.put_back(taken)
    assert notes.take([], 10)[key].progress == b"3"
