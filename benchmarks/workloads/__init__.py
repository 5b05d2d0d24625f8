"""The workloads. A workload measures one subject once; ``benchmarks.run`` repeats and alternates them."""

from __future__ import annotations

from benchmarks.workloads import curves, flow, latency, rest, scale, throughput
from benchmarks.workloads.base import Workload


def everything() -> list[Workload]:
    """All workloads, in the order of a full run."""
    return [
        *throughput.WORKLOADS,
        *latency.WORKLOADS,
        *rest.WORKLOADS,
        *scale.WORKLOADS,
        *flow.WORKLOADS,
        *curves.WORKLOADS,
    ]
