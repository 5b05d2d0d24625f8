"""docs/benchmarks.md, made from a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.goals import LIMIT_REDIS_US, goals
from benchmarks.run import Report, Spread
from benchmarks.scale.model import LAST
from benchmarks.workloads import everything

FIGURES = {
    "rate": "jobs/s",
    "of_ping": "of PING",
    "worker_us": "worker CPU, us/job",
    "server_us": "server CPU, us/job",
    "redis_us": "Redis CPU, us/job",
    "cycle_redis_us": "Redis CPU, us/job",
    "waiting_bytes": "B, waiting",
    "finished_bytes": "B, finished",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "seconds": "s",
    "resident_mb": "worker RSS, MiB",
    "utilisation": "utilisation",
    "slowest_ms": "slowest script, ms",
    "bytes_per_job": "B per job",
    "exactly_once": "exactly once",
}
"""The columns in order."""

DAY = 24 * 3600

COUNTS = Path(__file__).with_name("instructions.json")

INTRO = """\
# Benchmarks

Made by `python -m benchmarks page` from the run below; do not edit. Figures are medians with (least-most) of {repeats}
repeats or more; subjects take turns within each repeat, so compare inside a table and never across machines. No-op
jobs, 100 bytes of payload, concurrency 100, every library as its documentation recommends, jobq with all defaults on:
results, events, metrics, retention, fenced leases.

- machine: {cpu}, {cores} cores, {memory}, {system}
- {server}, no persistence, on a TCP port of this machine; Python {python}, node {node}, wrk {wrk}; the embedded
  server is {embedded}
- {at}; the machine's load average before the measurements was {load}: it was {busy}
- {versions}
"""

MACHINE = ("cpu", "cores", "memory", "system", "python", "node", "wrk", "embedded")

LIMIT = """\
`limit` is the bare limit (benchmarks/limit): the same layout without fences, retries, events, metrics, retention,
wake-ups and error handling. It cannot be used for anything; it says what the promises cost.
"""

GOALS = """\
The goal of Redis CPU was set on a machine where the bare limit took {redis:g} us of Redis for a job. The row that names
the limit says the same as a ratio.
"""

AGAIN = """\
## Run it yourself

    jobq bench                                            # ten seconds, this engine only
    python -m benchmarks install                          # the peers' environments, outside the repository
    python -m benchmarks run --subjects all               # everything; or name workloads
    pip install -r benchmarks/requirements.txt            # for the plots
    python -m benchmarks page                             # this page, from the last run
    python -m benchmarks.scale.run                        # clusters of 1, 2 and 3 local nodes, and this page again
    python -m benchmarks.instructions COMMIT              # one queue beside that commit, and this page again
"""


def say(value: float) -> str:
    """Three or four significant digits."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def say_spread(spread: Spread) -> str:
    """Median (least-most)."""
    if spread.least == spread.most:
        return say(spread.median)
    return f"{say(spread.median)} ({say(spread.least)}-{say(spread.most)})"


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def _goals(report: Report) -> Iterator[str]:
    yield "## Goals\n"
    yield GOALS.format(redis=LIMIT_REDIS_US)
    rows = [
        [
            goal.what,
            f"{'>=' if goal.least else '<='} {say(goal.bound)} {goal.unit}".rstrip(),
            f"{say_spread(goal.measured)} {goal.unit}".rstrip(),
            "yes" if goal.reached else "**no**",
        ]
        for goal in goals(report)
    ]
    yield from _table(["", "goal", "measured", "reached"], rows)


def _workload(report: Report, name: str, title: str) -> Iterator[str]:
    rows = [one for one in report.measured if one.workload == name and (one.repeats or one.failures)]
    measured = [one for one in rows if one.repeats]
    if not measured:
        return
    figures = [figure for figure in FIGURES if any(figure in one.repeats[0] for one in measured)]
    yield f"## {title}\n"
    one = measured[0]
    elsewhere = one.cpu not in ("", report.machine.get("cpu"))
    if elsewhere or one.at > report.at + DAY:
        load, where = (
            f"{min(one.load):.1f}-{max(one.load):.1f}",
            f" on another machine ({one.cpu})" if elsewhere else "",
        )
        yield f"Measured{where} at {_time(one.at)}, at a load average of {load}.\n"
    if not figures:
        return
    ratios = len(measured) > 1 and "rate" in figures
    lines: list[list[str]] = []
    for one in measured:
        line = [one.subject]
        if ratios:
            ratio = report.ratio(name, "rate", "jobq", one.subject)
            line.append("" if one.subject == "jobq" or ratio is None else say_spread(ratio))
        for figure in figures:
            spread = one.spread(figure)
            if figure == "exactly_once" and spread:
                line.append("yes" if spread.least == 1 else "no")
            else:
                line.append(say_spread(spread) if spread else "")
        lines.append(line)
    lines += [[one.subject, "failed"] for one in rows if not one.repeats]
    yield from _table(["", *(["jobq is faster by"] if ratios else []), *map(FIGURES.__getitem__, figures)], lines)


def _million(report: Report, workload: str) -> Iterator[str]:
    one = report.of(workload, "jobq")
    if one is None:
        return
    yield "With 1e6 waiting, 1e6 delayed and 1e6 finished jobs in the queue, beside an empty one, in turns:\n"
    rows: list[list[str]] = []
    for name, what in (
        ("one_of_ping", "enqueue one by one, of PING"),
        ("bulk_rate", "enqueue bulk, jobs/s"),
        ("drain_rate", "drain, jobs/s"),
        ("redis_us", "Redis CPU of a drain, us/job"),
    ):
        cells = [one.spread(f"{name}_{side}") for side in ("empty", "full", "kept")]
        rows.append([what, *(say_spread(cell) if cell else "" for cell in cells)])
    yield from _table(["", "empty", "full", "full over empty"], rows)


FLOWS = {
    "flow": (
        ("plain", "no limits"),
        ("groups", "1,000 groups"),
        ("tenants", "concurrency 5 for each of 1,000 tenants"),
        ("wide", "concurrency and rate of the whole queue"),
    ),
    "flow-keys": (("keys-10", "3 rules, 10 keys each"), ("keys-10000", "3 rules, 10,000 keys each")),
    "flow-full": (("alone", "10 groups"), ("behind", "10 groups, behind 100,000 full ones")),
}
"""The variants of a workload of limits and groups: the prefix of its figures, and its name. The first is the base."""


def _flow(report: Report, name: str) -> Iterator[str]:
    one = report.of(name, "jobq")
    if one is None or not one.repeats:
        return
    rows: list[list[str]] = []
    for prefix, what in FLOWS[name]:
        cells = [one.spread(f"{prefix}_{figure}") for figure in ("rate", "kept", "redis_us", "worker_us", "slowest_ms")]
        rows.append([what, *(say_spread(cell) if cell else "" for cell in cells)])
    head = [
        "",
        "jobs/s",
        "of the first row",
        "Redis CPU, us/job",
        "worker CPU, us/job",
        "slowest script, ms (0: under 2)",
    ]
    yield from _table(head, rows)


CLUSTER = """\
Six queues, {jobs} jobs in each round, one process that enqueues them in bulk, then one that runs them; the plain server
and the clusters of 1, 2 and 3 local nodes take turns. "Of the plain server" is the median (least-most) of the rounds:
the goal for one node is 0.95. The prediction is that of the [model](scale.md#many-nodes-a-model), with the costs of the
plain server. {cpu}, {cores} cores.
"""


def _cluster(jobs: str) -> Iterator[str]:
    """The clusters of ``python -m benchmarks.scale.run``, if it was run."""
    measured = json.loads(LAST.read_text()) if LAST.exists() else {}
    nodes = [row for row in measured.get("nodes", ()) if "drain_of_plain" in row]
    if not nodes:
        return
    yield "## Clusters of local nodes\n"
    yield CLUSTER.format(jobs=jobs, cpu=measured["machine"]["cpu"], cores=measured["machine"]["cores"])
    head = ["nodes"]
    for what in ("bulk enqueue", "drain"):
        head += [f"{what}, jobs/s", "predicted", "of the plain server"]
    rows: list[list[str]] = []
    for row in nodes:
        line = [str(row["nodes"])]
        for what in ("enqueue", "drain"):
            least, middle, most = row[f"{what}_of_plain"]
            line += [say(row[what]), say(row[f"{what}_predicted"]), f"{say(middle)} ({say(least)}-{say(most)})"]
        rows.append(line)
    yield from _table(head, rows)


INSTRUCTIONS = """\
Instructions per job of the server and of the client. "Before" is commit {hash} of {date}, which knew no clusters and
no partitions; the cluster has one node. Instructions are counted and not timed, so the load of the machine does not
change them. The goals are a change of at most 2 % since then, and at most 5 % more for the client of a cluster. A drain
costs the server more because [more is counted of types](decisions/0066-what-is-counted-of-types.md) since then: two
commands for all jobs that a worker settles at once. A single enqueue costs more on a cluster, because the server looks
there for the hash slot of each of its keys.
"""


def _instructions() -> Iterator[str]:
    """The counts of ``python -m benchmarks.instructions``, if it was run."""
    if not COUNTS.exists():
        return
    counts = json.loads(COUNTS.read_text())
    yield "## One queue: before clusters, now, and on a cluster\n"
    yield INSTRUCTIONS.format(**counts["commit"])
    rows: list[list[str]] = []
    for name in counts["now"]:
        for side in ("server", "client"):
            before, now, cluster = (counts[column][name][side] for column in ("before", "now", "cluster"))
            figures = (f"{before:,.0f}", f"{now:,.0f}", f"{now / before - 1:+.1%}", f"{cluster / now - 1:+.1%}")
            rows.append([f"{name}, {side}", *figures])
    yield from _table(["", "before", "now", "change", "on a cluster"], rows)


def _time(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def write(report: Report, docs: Path) -> list[Path]:
    """Write the page and the plots, and return the files. Without matplotlib the page keeps the plots it has."""
    loads = [load for one in report.measured for load in one.load] or [0.0]
    quiet = sorted(loads)[len(loads) // 2] <= int(report.machine.get("cores") or 1)
    text = INTRO.format(
        repeats=report.options.get("repeats", 0),
        server=report.server,
        at=_time(report.at),
        load=f"{min(loads):.1f}-{max(loads):.1f}",
        busy="quiet" if quiet else "shared, so absolute figures are low and ratios are what counts",
        versions=", ".join(f"{name} {version}" for name, version in report.versions.items() if version),
        **{key: report.machine.get(key, "") for key in MACHINE},
    )
    lines = [text, LIMIT, *_goals(report)]
    try:
        from benchmarks import plots as drawing
    except ImportError:
        drawn = (docs / "benchmarks" / f"{name}.svg" for name in ("drain", "enqueue", "curves"))
        plots = [plot for plot in drawn if plot.exists()]
    else:
        plots = drawing.draw(report, docs / "benchmarks")
    if plots:
        lines += ["## Throughput\n", *(f"![{plot.stem}](benchmarks/{plot.name})" for plot in plots), ""]
    for workload in everything():
        if workload.name.startswith("over-"):
            continue
        lines += _workload(report, workload.name, workload.title)
        if workload.name in ("million", "million-embedded"):
            lines += _million(report, workload.name)
        if workload.name in FLOWS:
            lines += _flow(report, workload.name)
    lines += _cluster("240,000")
    lines += _instructions()
    page = docs / "benchmarks.md"
    page.write_text("\n".join([*lines, AGAIN]))
    return [page, *plots]
