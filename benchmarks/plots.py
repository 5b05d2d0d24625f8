"""Plots of a run, as SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib  # pyright: ignore[reportMissingImports]

matplotlib.use("svg")

from matplotlib import pyplot  # pyright: ignore[reportMissingImports]
from matplotlib.ticker import FuncFormatter  # pyright: ignore[reportMissingImports]

from benchmarks.run import Measured, Report

CURVES = {
    "over-backlog": ("drain over the backlog", "jobs waiting"),
    "over-batch": ("enqueue over the batch size", "jobs per call"),
    "over-concurrency": ("drain over concurrency", "handlers at a time"),
    "over-processes": ("drain over processes", "worker processes"),
}
OURS, THEIRS = "#2563a8", "#b8bcc4"


def _thousands(value: float, _: Any) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def _finish(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    # Without a date, so that the same run draws the same file.
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def _curves(rows: dict[str, Measured], path: Path) -> Path:
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6))
    for ax, (name, (title, label)) in zip(axes.flat, CURVES.items(), strict=True):
        row = rows.get(name)
        if row is None:
            ax.set_visible(False)
            continue
        places = [int(place) for place in row.repeats[0]]
        spreads = [spread for place in places if (spread := row.spread(str(place)))]
        ax.fill_between(places, [s.least for s in spreads], [s.most for s in spreads], color=OURS, alpha=0.2, lw=0)
        ax.plot(places, [s.median for s in spreads], color=OURS, marker="o", ms=4)
        if name == "over-processes":
            ax.set_xticks(places)
        else:
            ax.set_xscale("log")
        ax.set_ylim(bottom=0)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(label, fontsize=9)
        ax.set_ylabel("jobs/s", fontsize=9)
        ax.yaxis.set_major_formatter(FuncFormatter(_thousands))
        ax.grid(alpha=0.3)
    return _finish(figure, path)


def _bars(report: Report, workload: str, title: str, path: Path) -> Path | None:
    rows = [(one.subject, one.spread("rate")) for one in report.measured if one.workload == workload and one.repeats]
    measured = sorted(((name, spread) for name, spread in rows if spread), key=lambda row: row[1].median)
    if len(measured) < 2:
        return None
    figure, ax = pyplot.subplots(figsize=(9, 0.4 * len(measured) + 1))
    medians = [spread.median for _, spread in measured]
    ranges = [
        [spread.median - spread.least for _, spread in measured],
        [spread.most - spread.median for _, spread in measured],
    ]
    colors = [OURS if name == "jobq" else THEIRS for name, _ in measured]
    ax.barh([name for name, _ in measured], medians, xerr=ranges, color=colors, ecolor="#555", capsize=2)
    ax.set_xscale("log")
    ax.set_title(title, fontsize=10)
    ax.set_xlabel("jobs/s (logarithmic)", fontsize=9)
    ax.xaxis.set_major_formatter(FuncFormatter(_thousands))
    ax.grid(axis="x", alpha=0.3)
    return _finish(figure, path)


def draw(report: Report, folder: Path) -> list[Path]:
    """Draw the figures of the run. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    pyplot.rcParams["svg.hashsalt"] = "jobq"
    drawn = [
        _bars(report, "drain-1", "drain, one worker process", folder / "drain.svg"),
        _bars(report, "enqueue-one", "enqueue, awaited one by one", folder / "enqueue.svg"),
    ]
    rows = {name: row for name in CURVES if (row := report.of(name, "jobq"))}
    if rows:
        drawn.append(_curves(rows, folder / "curves.svg"))
    return [path for path in drawn if path]
