"""Serves the numbers of one worker to Prometheus, on a port of its own, from a thread.

So they can be read while a handler blocks the worker's event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobq.engine.log import get_logger
from jobq.engine.version import jobq_version
from jobq.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.core import Metric

    from jobq.engine.worker.meter import Histogram
    from jobq.engine.worker.pool import Pool

log = get_logger("jobq.metrics")


class WorkerCollector:
    """The numbers of the pool's worker, as prometheus-client collects them."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        """All metrics. Called in the thread that serves them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        pool = self._pool
        info = GaugeMetricFamily("jobq_worker_info", "1, with the name and the version of the worker.",
                                 labels=["worker", "version"])  # fmt: skip
        info.add_metric([pool.worker, jobq_version()], 1)
        yield info
        yield GaugeMetricFamily("jobq_worker_slots", "Jobs that the worker can run at a time.", pool.slots.concurrency)
        yield GaugeMetricFamily("jobq_worker_running", "Jobs that it runs now.", pool.running)
        yield CounterMetricFamily(
            "jobq_worker_busy_slot_seconds",
            "Slots in use, summed over the seconds. Its rate, divided by the slots, is the utilisation.",
            pool.meter.busy,
        )
        lag = HistogramMetricFamily("jobq_worker_loop_lag_seconds", "Time until the event loop answered.")
        lag.add_metric([], buckets=pool.meter.lag.buckets, sum_value=pool.meter.lag.sum)
        yield lag
        sources = [(source.name, source.meter) for source in list(pool.sources)]
        yield self._histograms("trip_seconds", "Time of round trips that the worker made for its jobs.",
                               ((name, meter.seconds) for name, meter in sources))  # fmt: skip
        yield self._histograms("claimed_jobs", "Jobs that a claim brought.",
                               ((name, meter.claimed) for name, meter in sources))  # fmt: skip
        yield self._histograms("settled_jobs", "Jobs whose outcome a trip sent.",
                               ((name, meter.settled) for name, meter in sources))  # fmt: skip
        errors = CounterMetricFamily("jobq_worker_trip_errors", "Round trips without an answer.", labels=["queue"])
        for name, meter in sources:
            errors.add_metric([name], meter.errors)
        yield errors

    @staticmethod
    def _histograms(name: str, summary: str, rows: Iterable[tuple[str, Histogram]]) -> Metric:
        from prometheus_client.core import HistogramMetricFamily

        family = HistogramMetricFamily(f"jobq_worker_{name}", summary, labels=["queue"])
        for queue, found in rows:
            family.add_metric([queue], buckets=found.buckets, sum_value=found.sum)
        return family


class Exporter:
    """Serves /metrics of a worker until ``close``.

    :raises SettingsError: prometheus-client is not installed, or the port cannot be bound.
    """

    def __init__(self, pool: Pool, host: str, port: int) -> None:
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ImportError:
            raise SettingsError("metrics need prometheus-client: pip install 'jobq[metrics]'") from None
        registry = CollectorRegistry(auto_describe=False)
        collector: Any = WorkerCollector(pool)
        registry.register(collector)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise SettingsError(
                f"metrics cannot be served on {host} port {port}: {error.strerror or error}; choose another port"
            ) from None
        self.port: int = self._server.server_port
        log.info(f"Metrics of the worker are served on {host} port {self.port}", host=host, port=self.port)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(1.0)
