"""The arithmetic of the benchmark harness, whose reports must be right on any machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from benchmarks import page as page_module
from benchmarks.drive import PAGE, Tally
from benchmarks.goals import goals
from benchmarks.page import say, write
from benchmarks.run import Measured, Report, Spread
from benchmarks.subjects import SUBJECTS
from benchmarks.workloads import everything
from benchmarks.workloads.base import quantile

if TYPE_CHECKING:
    from pathlib import Path


def report(**rates: list[float]) -> Report:
    measured = [Measured("drain-1", name, [{"rate": rate} for rate in values]) for name, values in rates.items()]
    return Report(
        at=0, machine={"cores": "2"}, server="Redis 7", versions={}, options={"repeats": 3}, measured=measured
    )


def test_ratios_are_taken_repeat_by_repeat() -> None:
    made = report(jobq=[100.0, 10.0, 60.0], bullmq=[25.0, 2.0, 20.0])
    assert made.ratio("drain-1", "rate", "jobq", "bullmq") == Spread(4.0, 3.0, 5.0)
    assert made.ratio("drain-1", "rate", "jobq", "arq") is None


def test_a_workload_is_replaced_as_a_whole() -> None:
    old, new = report(jobq=[1.0], bullmq=[1.0]), report(jobq=[2.0])
    old.merge(new)
    assert old.of("drain-1", "bullmq") is None, "a ratio must not mix two runs"
    assert old.of("drain-1", "jobq") == new.of("drain-1", "jobq")


def test_goals_are_judged_by_the_median() -> None:
    found = {goal.what: goal for goal in goals(report(jobq=[80.0, 70.0, 10.0], bullmq=[20.0] * 3, limit=[100.0] * 3))}
    assert found["drain, 1 process: over BullMQ"].reached
    assert found["drain, 1 process: of the bare limit"].measured == Spread(0.7, 0.1, 0.8)


def test_two_processes_are_judged_beside_the_bare_limit() -> None:
    made = report()
    for name, rate in (("jobq", 96.0), ("limit", 100.0)):
        made.measured.append(Measured("drain-2", name, [{"rate": rate}]))
    found = {goal.what: goal for goal in goals(made)}
    assert found["drain, 2 processes: of the bare limit"].measured == Spread(0.96, 0.96, 0.96)
    assert found["drain, 2 processes: of the bare limit"].reached


def test_the_pickup_is_judged_beside_bullmq() -> None:
    made = report()
    for name, p50 in (("jobq", 0.6), ("bullmq", 1.2)):
        made.measured.append(Measured("pickup", name, [{"p50_ms": p50, "p99_ms": 2.0}]))
    found = {goal.what: goal for goal in goals(made)}
    assert found["pickup, idle worker, p50 over BullMQ's"].reached


def test_redis_cpu_of_a_full_store_is_judged_on_the_embedded_server() -> None:
    made = report()
    for workload in ("million", "million-embedded"):
        made.measured.append(Measured(workload, "jobq", [{"redis_us_kept": 1.1}]))
    judged = [goal.what for goal in goals(made) if "Redis CPU" in goal.what]
    assert judged == ["embedded server, 3e6 jobs in store: Redis CPU, over the empty queue's"]


def test_the_page_shows_what_was_measured(tmp_path: Path) -> None:
    page, *_ = write(report(jobq=[100.0], bullmq=[25.0]), tmp_path)
    text = page.read_text()
    assert "| bullmq | 4 | 25 |" in text
    assert "over BullMQ | >= 3.5 x | 4 x | yes |" in text


def test_the_page_shows_clusters_beside_the_plain_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = tmp_path / "last.json"
    row = {"nodes": 1, "enqueue": 100.0, "enqueue_predicted": 90.0, "enqueue_of_plain": [0.9, 0.97, 1.0]}
    row |= {"drain": 50.0, "drain_predicted": 60.0, "drain_of_plain": [0.8, 0.98, 1.1]}
    last.write_text(json.dumps({"machine": {"cpu": "a core", "cores": 2}, "nodes": [row]}))
    monkeypatch.setattr(page_module, "LAST", last)
    page, *_ = write(report(jobq=[100.0]), tmp_path)
    assert "| 1 | 100 | 90 | 0.97 (0.9-1) | 50 | 60 | 0.98 (0.8-1.1) |" in page.read_text()


def test_the_tally_counts_lost_and_repeated_jobs(tmp_path: Path) -> None:
    tally = Tally(tmp_path, jobs=3, processes=2)
    tally.paths[0].write_bytes(b"\1\1\0")
    assert (tally.ran(), tally.exact()) == (2, False)
    with tally.paths[1].open("r+b") as file:
        file.write(b"\0\0\1")
    assert (tally.ran(), tally.exact()) == (3, True)
    with tally.paths[1].open("r+b") as file:
        file.write(b"\1\0\0")
    assert (tally.ran(), tally.exact()) == (3, False)
    tally.close()


def test_the_tally_counts_each_job_in_every_page(tmp_path: Path) -> None:
    jobs = 2 * PAGE + 5
    tally = Tally(tmp_path, jobs=jobs + PAGE, processes=2, looked=jobs)
    assert tally.ran() == 0
    done = 0
    with tally.paths[0].open("r+b") as one, tally.paths[1].open("r+b") as other:
        for begin, end in ((PAGE, jobs), (0, PAGE // 2), (PAGE // 2, PAGE), (jobs, jobs + PAGE)):
            for number in range(begin, end):
                file = other if number % 3 else one
                file.seek(number)
                file.write(b"\1")
            one.flush()
            other.flush()
            done += end - begin
            assert tally.ran() == min(done, jobs), "those behind the ones that are looked at do not count"
    assert tally.exact()
    tally.close()


@pytest.mark.parametrize(
    ("value", "said"), [(28941.7, "28,942"), (378.2, "378"), (31.04, "31"), (0.4961, "0.496"), (3.5, "3.5")]
)
def test_figures_have_the_digits_that_matter(value: float, said: str) -> None:
    assert say(value) == said


def test_quantiles() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([float(n) for n in range(100)], 0.99) == 99.0


def test_every_benchmark_driver_exists_and_is_pinned() -> None:
    for subject in SUBJECTS.values():
        assert subject.program.is_file(), subject.name
        assert subject.own or subject.version(subject.program) != "", subject.name
    assert len({workload.name for workload in everything()}) == len(everything())
