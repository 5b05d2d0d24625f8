"""Replies of the reading scripts as Python objects. Quantiles are computed from a histogram of powers of two."""

from __future__ import annotations

import statistics
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobq import AttemptError, LogLine, State
from jobq.engine.model.history import latency
from jobq.engine.model.ids import IdMaker, time_of
from jobq.engine.model.job import Result, Spec, StoredBackoff
from jobq.engine.model.rows import job_row, read_errors, read_logs
from jobq.engine.model.stats import read_stats
from jobq.engine.model.unreadable import read_spec
from jobq.engine.model.views import Minute

ID = "0htk3v9c20047qm2x"
SPEC = Spec("send", 1000, payload=msgspec.Raw(b'{"to":[]}'), priority=-3, attempts=5, key="k", metadata={"a": 1})


def row(state: str, score: str, **columns: Any) -> list[Any]:
    """A reply of rows.lua for one job."""
    names = ("token", "spec", "priority", "attempts", "errors", "result", "progress", "unserved", "limits", "weights")
    names += ("reruns", "start_by", "end_by")
    columns = {"spec": msgspec.json.encode(SPEC)} | columns
    return [state.encode(), score.encode(), *[columns.get(name) for name in names]]


def test_waiting():
    job = job_row("mail", ID, row("waiting", "-10995116277760"))
    assert (job.id, job.queue, job.type, job.state) == (ID, "mail", "send", State.WAITING)
    assert bytes(job.payload) == b'{"to":[]}'
    assert (job.priority, job.attempts, job.attempts_made, job.enqueued_at) == (-3, 5, 0, 1000)
    assert (job.key, job.metadata, job.errors, job.unserved) == ("k", {"a": 1}, [], 0)
    assert (job.run_at, job.lease_until, job.finished_at, job.worker, job.result) == (None,) * 5


def test_delayed_after_failures():
    errors = [AttemptError(1, 2000, "E", "one"), AttemptError(2, 3000, "E", "two", worker="w")]
    reply = row(
        "delayed",
        "5000",
        attempts=b"2 1500 3",
        unserved=b"4",
        priority=b"7L",
        errors=b"\n".join(map(msgspec.json.encode, errors)),
    )
    job = job_row("mail", ID, reply)
    assert (job.state, job.run_at, job.attempts_made, job.unserved) == (State.DELAYED, 5000, 2, 4)
    assert job.snoozes == 3
    assert job.priority == 7, "as reprioritised, not as enqueued"
    assert job.errors == errors


def test_active_counts_the_running_attempt():
    job = job_row(
        "mail", ID, row("active", "9000", token=b"1722470400123000 host:12:ab", attempts=b"1", progress=b"[5]")
    )
    assert (job.lease_until, job.worker, job.attempts_made) == (9000, "host:12:ab", 2)
    assert job.started_at == 1722470400123, "when it was claimed"
    assert job.progress is not None
    assert bytes(job.progress) == b"[5]"


def test_completed():
    result = Result(started=1500, ran=40, worker="w", result=msgspec.Raw(b"[]"))
    job = job_row("mail", ID, row("completed", "1540", result=msgspec.json.encode(result)))
    assert (job.started_at, job.duration, job.finished_at, job.worker, job.attempts_made) == (1500, 40, 1540, "w", 1)
    assert job.result is not None
    assert bytes(job.result) == b"[]"


def test_failed_shows_its_last_run():
    errors = [AttemptError(1, 900, "E", "one", worker="v"), AttemptError(2, 1540, "E", "two", worker="w", started=1500)]
    job = job_row("mail", ID, row("failed", "1540", errors=b"\n".join(map(msgspec.json.encode, errors))))
    assert (job.worker, job.started_at, job.duration, job.finished_at) == ("w", 1500, 40, 1540)


def test_put_back_shows_the_runs_charged():
    job = job_row("mail", ID, row("waiting", "1", attempts=b"3 1722470400123"))
    assert (job.attempts_made, job.unreadable) == (3, {})


def test_attempts_made_of_a_failed_job_are_the_charged_ones():
    job = job_row("mail", ID, row("failed", "1540", attempts=b"5"))
    assert (job.state, job.attempts_made, job.finished_at) == (State.FAILED, 5, 1540)


def test_options_of_the_spec_are_shown():
    spec = Spec("t", 1, delay=5, backoff=StoredBackoff("fixed"), timeout=7, lifo=True, retention=0)
    job = job_row("mail", ID, row("waiting", "1", spec=msgspec.json.encode(spec)))
    assert (job.delay, job.backoff, job.timeout, job.lifo, job.retention) == (5, StoredBackoff("fixed"), 7, True, 0)


def test_the_time_of_enqueue_is_read_from_the_id():
    at = 1_700_000_000_123
    assert job_row("mail", IdMaker().new(at), row("waiting", "1", spec=b'{"type":"t"}')).enqueued_at == at
    stats = read_stats(
        "mail", reply(now=at + 7_000, oldest=[IdMaker().new(at).encode(), None, b'{"type":"t","delay":4000}'])
    )
    assert stats.oldest_waiting_ms == 3_000


DEEP = b'{"type":"t","at":1,"payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize("spec", [b"", b"\x00", b"{}", b'{"type":1,"at":1}', b'{"type":"\xff","at":1}', DEEP])
def test_a_row_of_another_program_does_not_hide_others(spec: bytes):
    job = job_row("mail", ID, row("failed", "1", spec=spec))
    assert (job.type, job.state) == ("?", State.FAILED)
    assert job.enqueued_at in (1, time_of(ID))
    assert job.unreadable
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError, RecursionError)):
        read_spec(spec)


def test_lines():
    lines = [LogLine(1, "a"), LogLine(2, "b\nc")]
    assert read_logs(b"\n".join(map(msgspec.json.encode, lines))) == lines
    assert read_logs(b"") == []
    assert read_errors(None) == []


def reply(now: int = 120_000, metrics: dict[str, int] | None = None, **given: Any) -> list[Any]:
    """A reply of stats.lua."""
    flat = [word for name, count in (metrics or {}).items() for word in (name.encode(), str(count).encode())]
    sizes = [
        given.get(state, 0) for state in ("waiting", "delayed", "active", "completed", "failed", "blocked", "held")
    ]
    return [
        now,
        *sizes,
        given.get("paused"),
        given.get("closed"),
        given.get("workers", 0),
        given.get("oldest", []),
        given.get("due"),
        flat,
        given.get("history", b""),
        given.get("oldest_held", []),
        given.get("aging"),
    ]


def test_stats_of_an_empty_queue():
    stats = read_stats("mail", reply())
    assert (stats.queue, stats.waiting, stats.paused, stats.workers) == ("mail", 0, False, 0)
    assert (stats.oldest_waiting_ms, stats.next_due_ms, stats.wait, stats.run, stats.minutes) == (None,) * 4 + ([],)


def test_stats():
    stats = read_stats(
        "mail",
        reply(
            waiting=2, delayed=3, active=4, completed=5, failed=6, blocked=7, held=8,
            paused=b"99", workers=2, due=b"150000",
            oldest=[ID.encode(), None, msgspec.json.encode(Spec("t", 100_000, delay=5_000))],
            metrics={"completed": 50, "failed": 60, "retried": 70, "unserved": 80, "s:0:run7": 1},
            history=b"f 0 wait0=1\nh 0 wait0=5",
            oldest_held=[ID.encode(), b"0 119000", b""],
        ),
    )  # fmt: skip
    assert [stats.waiting, stats.delayed, stats.active, stats.completed, stats.failed, stats.blocked] == [
        2,
        3,
        4,
        5,
        6,
        7,
    ]
    assert [stats.completed_total, stats.failed_total, stats.retried_total, stats.unserved_total] == [50, 60, 70, 80]
    assert (stats.paused, stats.workers, stats.next_due_ms) == (True, 2, 30_000)
    assert stats.oldest_waiting_ms == 15_000, "it has waited since it was due"
    assert stats.oldest_held_ms == 1_000
    assert stats.run is not None
    assert stats.wait is not None
    assert (stats.run.count, stats.wait.count) == (1, 1)


def test_an_overdue_job_is_due_now():
    stats = read_stats("mail", reply(due=b"5", oldest=[ID.encode(), None, msgspec.json.encode(Spec("t", 500_000))]))
    assert (stats.next_due_ms, stats.oldest_waiting_ms) == (0, 0)


def test_minutes_of_the_last_hour_with_jobs_are_listed():
    metrics = {"m:70:completed": 1, "m:70:failed": 2, "m:129:retried": 3, "m:69:completed": 9, "m:130:failed": 9}
    stats = read_stats("mail", reply(now=129 * 60_000 + 59_999, metrics=metrics))
    assert stats.minutes == [Minute(70 * 60_000, completed=1, failed=2), Minute(129 * 60_000, retried=3)]


def test_the_oldest_of_all_priorities_counts():
    spec = msgspec.json.encode(Spec("t", 100_000))
    oldest = [b"a", b"0 119000", spec, b"b", None, spec, b"c", b"damaged", spec]
    assert read_stats("mail", reply(oldest=oldest)).oldest_waiting_ms == 20_000
    assert read_stats("mail", reply(oldest=oldest[:3])).oldest_waiting_ms == 1_000, "since it was put back"


def test_stats_without_any_job_have_no_latency():
    assert latency({}, 0) is None


@pytest.mark.parametrize(
    ("metrics", "p50", "p99"),
    [
        ({0: 10}, 0.001, 0.001),  # 0 us
        ({1: 4}, 0.002, 0.002),  # 1 us, in [1, 2)
        ({11: 100}, 1.536, 2.038),  # [1024, 2048) us
        ({11: 99, 21: 1}, 1.541, 2.048),
        ({11: 50, 21: 50}, 2.048, 2076.18),
    ],
)  # fmt: skip
def test_quantiles(metrics: dict[int, int], p50: float, p99: float):
    found = latency(metrics, 5_000)
    assert found is not None
    assert found.p50 == pytest.approx(p50, rel=0.01, abs=0.001)
    assert found.p99 == pytest.approx(p99, rel=0.01, abs=0.001)
    assert found.count == sum(metrics.values())
    assert found.mean == pytest.approx(5 / found.count)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=200))
def test_quantiles_are_right_to_a_factor_of_two(micros: list[int]):
    metrics: dict[int, int] = {}
    for value in sorted(micros):
        metrics[value.bit_length()] = metrics.get(value.bit_length(), 0) + 1
    found = latency(metrics, sum(micros))
    assert found is not None
    assert found.p50 <= found.p90 <= found.p99
    exact = statistics.median_low(micros)
    assert exact / 2000 - 0.001 <= found.p50 <= max(exact, 1) * 2 / 1000 + 0.001


def test_readable_fields_of_a_newer_spec_are_shown():
    spec = b'{"type":"t","at":1,"payload":[1],"backoff":{"type":"fibonacci","delay":5},"colour":"red","priority":4}'
    job = job_row("mail", ID, row("failed", "1", spec=spec))
    assert (job.type, bytes(job.payload), job.priority, job.backoff) == ("t", b"[1]", 4, None)
    assert job.unreadable == {"backoff": '{"type":"fibonacci","delay":5}'}


def test_stored_bytes_that_are_not_utf8_are_marked_unreadable():
    """msgspec does not check a Raw. Otherwise the answer of GET /jobs/{id} would not be UTF-8."""
    job = job_row("mail", ID, row("failed", "1", spec=b'{"type":"t","payload":"\xff"}', progress=b'"\xfe"'))
    assert (job.type, bytes(job.payload), job.progress) == ("t", b"null", None)
    assert job.unreadable == {"payload": '"\\xff"', "progress": '"\\xfe"'}


def test_an_unreadable_value_is_cut():
    job = job_row("mail", ID, row("waiting", "1", progress=b"x" * 1_000_000))
    assert job.unreadable == {"progress": "x" * 200 + "... (1000000 bytes)"}


def test_an_unreadable_line_does_not_hide_the_others():
    good = [msgspec.json.encode(LogLine(1, "a")), msgspec.json.encode(LogLine(2, "b"))]
    lines = read_logs(b"\n".join([good[0], b"oops", good[1]]))
    assert [line.message for line in lines] == ["a", "this stored log line cannot be read: oops", "b"]
    errors = read_errors(b"\n".join([msgspec.json.encode(AttemptError(1, 2, "E", "m")), b"oops"]))
    assert [(error.type, error.message) for error in errors] == [
        ("E", "m"),
        ("Unreadable", "this stored error record cannot be read: oops"),
    ]


def test_a_count_that_is_not_a_number_does_not_hide_others():
    stats = read_stats("mail", reply(metrics={"completed": "many", "failed": 3, "s:0:wait3": 1}))  # pyright: ignore
    assert (stats.completed_total, stats.failed_total) == (0, 3)
    assert stats.unreadable == {"completed": "many"}
