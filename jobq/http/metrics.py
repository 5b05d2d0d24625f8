"""GET /metrics: the numbers of the queues in the text format of Prometheus.

All but the numbers of the process itself are read from the engine, so every server shows the same. Labels are queues,
states, outcomes, duties and published types. Their number is bounded. Groups, keys and names that clients choose are
never labels.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from aiohttp import web

from jobq.engine.log import get_logger
from jobq.engine.model.history import ALL, histogram, numbers
from jobq.engine.model.job import State
from jobq.engine.queue.performance import read_counted
from jobq.errors import StoreError
from jobq.http.problems import COMMON_HEADERS, NOT_INSTALLED, HttpProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from jobq.engine.model.scale import Scale
    from jobq.engine.model.views import Stats, WorkerRow
    from jobq.engine.queue.queue import Queue
    from jobq.http.call import ApiCall
    from jobq.http.duties import Duties

log = get_logger("jobq.metrics")

EDGES: Final = range(8, 36, 2)
"""Bit lengths of the largest time in us of each bucket: 0.256 ms, 1 ms, 4 ms, ... 4.8 hours."""
OTHER: Final = "other"

T = TypeVar("T")


class Reading(NamedTuple):
    """What was read of one queue."""

    stats: Stats
    enqueued: int
    types: dict[str, dict[str, int]]
    """What was counted of each type since the queue began."""
    jobs: dict[State, dict[str, int]]
    workers: list[WorkerRow]
    scale: Scale
    memory: dict[str, int]


async def read(queue: Queue) -> Reading:
    """Read the numbers of a queue.

    :raises StoreError: Redis is away, or refuses.
    """
    (now, (enqueued, _), counted), jobs, published, memory = await asyncio.gather(
        read_counted(queue.store), queue.types_by_state(), queue.store.type_names(), _memory(queue)
    )
    stats, workers, scale = await asyncio.gather(queue.stats(), queue.workers(), queue.scale())
    listed = {name.decode(errors="replace") for name in published} | set(queue.tasks)
    return Reading(
        stats,
        enqueued,
        _listed({name: counts.of(None, now) for name, counts in counted.items() if name != ALL}, listed),
        {state: _sum(found, listed) for state, found in jobs.items()},
        [row for row in workers if row.alive],
        scale,
        memory,
    )


def _listed(counted: dict[str, dict[str, int]], listed: set[str]) -> dict[str, dict[str, int]]:
    """The counts of listed types. Those of other types are added up."""
    found: dict[str, dict[str, int]] = {}
    for name, counts in counted.items():
        total = found.setdefault(name if name in listed else OTHER, {})
        for what, count in counts.items():
            total[what] = total.get(what, 0) + count
    return {name: counts for name, counts in found.items() if counts or name in listed}


def _sum(jobs: dict[str, int], listed: set[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, count in jobs.items():
        shown = name if name in listed else OTHER
        found[shown] = found.get(shown, 0) + count
    return found


async def _memory(queue: Queue) -> dict[str, int]:
    """What the server says of its memory; nothing if this user may not ask."""
    try:
        text: bytes = await queue.store.command(b"INFO", b"memory")
    except StoreError:
        return {}
    pairs = (line.partition(":") for line in text.decode(errors="replace").splitlines())
    return {name: int(value) for name, _, value in pairs if name in ("used_memory", "maxmemory") and value.isdecimal()}


# -- as metrics --------------------------------------------------------------------------------------------------------

_TOTALS: Final = (
    ("completed_jobs", "completed", "Jobs that ended in completed."),
    ("failed_jobs", "failed", "Jobs that ended in failed, also those that were killed, expired or dropped."),
    ("retried", "retried", "Runs that failed and are followed by another one."),
    ("snoozed", "snoozed", "Runs that a handler put off."),
    ("rate_limited", "rate_limited", "Runs that a service refused for a time."),
    ("unserved", "unserved", "Jobs that a worker handed back because it could not run them."),
    ("duplicates", "duplicates", "Enqueues that found another job with their key."),
    ("expired", "expired", "Jobs that did not start or end in time."),
    ("dropped", "dropped", "Jobs that a limit dropped."),
    ("replaced_oldest", "replaced_oldest", "Jobs that ended for a newer one under a limit."),
    ("killed_running", "killed_running", "Running jobs that were killed for a newer one under a limit."),
)
_MEMORY: Final = (
    ("redis_memory_bytes", "used_memory", "Memory that the Redis server of the queue uses."),
    ("redis_memory_max_bytes", "maxmemory", "maxmemory of that server, 0 for no bound."),
)


def metrics_of(readings: dict[str, Reading | None]) -> Iterator[Metric]:
    """The metrics of the queues. None: the queue could not be read."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    def gauge(name: str, summary: str, rows: Iterable[tuple[list[str], float]], labels: tuple[str, ...] = ()) -> Metric:
        family = GaugeMetricFamily(f"jobq_{name}", summary, labels=["queue", *labels])
        for values, number in rows:
            family.add_metric(values, number)
        return family

    def counter(
        name: str, summary: str, rows: Iterable[tuple[list[str], float]], labels: tuple[str, ...] = ()
    ) -> Metric:
        family = CounterMetricFamily(f"jobq_{name}", summary, labels=["queue", *labels])
        for values, number in rows:
            family.add_metric(values, number)
        return family

    yield gauge("up", "1 if the server could read the queue, 0 if not.", _rows(readings, lambda one: one is not None))
    known = {name: one for name, one in readings.items() if one is not None}

    def simple(name: str, summary: str, value: Callable[[Reading], float]) -> Metric:
        return gauge(name, summary, _rows(known, value))

    jobs = [
        ([name, kind, str(state)], float(count))
        for name, one in known.items()
        for state, kinds in one.jobs.items()
        for kind, count in kinds.items()
    ]
    summary = "Jobs by type and state. Above 300 jobs of a state the types are estimated from a sample."
    yield gauge("jobs", summary, jobs, ("type", "state"))
    exact = [([name, str(state)], float(_size(one.stats, state))) for name, one in known.items() for state in State]
    yield gauge("state_jobs", "Jobs by state, exactly.", exact, ("state",))
    yield counter("enqueued", "New jobs.", _rows(known, lambda one: one.enqueued))
    for name, what, summary in _TOTALS:
        yield counter(name, summary, _rows(known, lambda one, what=what: getattr(one.stats, f"{what}_total")))
    rows = [(name, numbers(kind, counts)) for name, one in known.items() for kind, counts in one.types.items()]
    ended = [
        ([name, row.type, outcome], float(count))
        for name, row in rows
        for outcome, count in (("completed", row.completed), ("failed", row.failed), ("retried", row.retried))
    ]
    yield counter("runs", "Runs that ended, by type and outcome.", ended, ("type", "outcome"))
    lost = [([name, row.type], float(row.lost)) for name, row in rows]
    yield counter("lost_leases", "Runs whose worker stopped renewing the lease.", lost, ("type",))
    busy = [([name, row.type], row.busy_ms / 1000) for name, row in rows]
    yield counter("busy_seconds", "Time that runs took, also failed ones.", busy, ("type",))
    yield _histograms("wait", "Time from the moment at which a job could run until its completed run began.", known)
    yield _histograms("run", "Time that completed runs took.", known)
    yield simple("oldest_eligible_seconds", "How long the job has been able to run that waits longest, or 0.",
                 lambda one: (one.stats.oldest_waiting_ms or 0) / 1000)  # fmt: skip
    yield simple("oldest_held_seconds", "How long the job has waited that a limit or a group holds longest, or 0.",
                 lambda one: (one.stats.oldest_held_ms or 0) / 1000)  # fmt: skip
    yield simple("paused", "1 if the queue is paused.", lambda one: one.stats.paused)
    yield simple("workers", "Living workers.", lambda one: one.stats.workers)
    yield simple("slots", "Jobs that the living workers can run at a time.",
                 lambda one: sum(row.concurrency for row in one.workers))  # fmt: skip
    yield simple("slots_used", "Jobs that the living workers run now, of all their queues.",
                 lambda one: sum(row.running for row in one.workers))  # fmt: skip
    yield simple("wanted_replicas", "Workers that the queue needs, with a target of one minute.",
                 lambda one: one.scale.replicas)  # fmt: skip
    yield simple("backlog", "Jobs that could start now. Jobs that a limit holds are left out.",
                 lambda one: one.scale.backlog)  # fmt: skip
    for name, field, summary in _MEMORY:
        known_memory = {queue: one for queue, one in known.items() if field in one.memory}
        yield gauge(name, summary, _rows(known_memory, lambda one, field=field: one.memory[field]))


def metrics_of_server(duties: Duties, queues: Collection[str]) -> Iterator[Metric]:
    """The metrics of this process. ``queues``: whose numbers the caller may see."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    # Several processes may share a port, and each scrape is answered by one of them.
    process = str(os.getpid())
    words = "By how much timers of the event loop were late."
    lag = HistogramMetricFamily("jobq_server_loop_lag_seconds", words, labels=["process"])
    lag.add_metric([process], buckets=duties.lag.buckets, sum_value=duties.lag.sum)
    yield lag
    words = "How often the server's own work failed and began again."
    failures = CounterMetricFamily("jobq_server_duty_failures", words, labels=["queue", "duty", "process"])
    words = "1 if the server's own work has failed within the last minutes."
    failing = GaugeMetricFamily("jobq_server_duty_failing", words, labels=["queue", "duty", "process"])
    for (duty, queue), count in duties.failures.items():
        if queue in queues:
            failures.add_metric([queue, duty, process], count)
            failing.add_metric([queue, duty, process], duties.is_failing(duty, queue))
    yield failures
    yield failing


def _rows(readings: Mapping[str, T], value: Callable[[T], float]) -> list[tuple[list[str], float]]:
    return [([name], float(value(one))) for name, one in readings.items()]


def _size(stats: Stats, state: State) -> int:
    return getattr(stats, str(state))


def _histograms(what: str, summary: str, known: dict[str, Reading]) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(f"jobq_{what}_seconds", summary, labels=["queue", "type"])
    for name, one in known.items():
        for kind, counts in one.types.items():
            buckets = histogram(counts, what)
            family.add_metric(
                [name, kind],
                buckets=[
                    *((str(2**edge / 1e6), sum(n for bits, n in buckets.items() if bits <= edge)) for edge in EDGES),
                    ("+Inf", sum(buckets.values())),
                ],
                sum_value=counts.get(f"{what}_us", 0) / 1e6,
            )
    return family


class _Once:
    """A collector of metrics that were read before."""

    def __init__(self, found: list[Any]) -> None:
        self._found = found

    def collect(self) -> Iterable[Any]:
        return self._found


def text_of(found: Iterable[Metric]) -> bytes:
    """The metrics in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry: CollectorRegistry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(list(found)))  # pyright: ignore[reportArgumentType] - a collector needs no base class
    return generate_latest(registry)


async def metrics(call: ApiCall) -> web.Response:
    """GET /metrics."""
    try:
        import prometheus_client  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        raise HttpProblem(NOT_INSTALLED, "metrics need prometheus-client: pip install 'jobq[metrics]'") from None
    mine = [queue for queue in call.hub.queues.values() if call.key.may_reach(queue.name)]
    found = await asyncio.gather(*(_try(queue) for queue in mine))
    readings = {queue.name: reading for queue, reading in zip(mine, found, strict=True)}
    body = text_of([*metrics_of(readings), *metrics_of_server(call.hub.duties, readings)])
    return web.Response(body=body, headers=COMMON_HEADERS | {"Content-Type": CONTENT_TYPE})


CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


async def _try(queue: Queue) -> Reading | None:
    """Read the queue. The server of one queue may be away while others answer."""
    try:
        return await read(queue)
    except StoreError as error:
        log.warning(f"The metrics of queue {queue.name} cannot be read: {error}", queue=queue.name, error=str(error))
        return None
