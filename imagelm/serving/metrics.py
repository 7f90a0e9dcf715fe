"""What the service counts, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from imagelm.serving.batching import Job

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The figures of one service, from when it started."""

    def __init__(self, num_waiting: Callable[[], float], held_bytes: Callable[[], float]) -> None:
        disable_created_metrics()  # a line for each figure that tells when it was first seen
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "imagelm_requests", "Requests that were answered", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "imagelm_request_seconds", "From first byte to answer", ["route"], buckets=SECONDS, registry=self.registry
        )
        self.batches = Histogram(
            "imagelm_batch_rows", "Rows or samples of a batch", ["task"], buckets=ROWS, registry=self.registry
        )
        self.compute = Counter("imagelm_compute_seconds", "Time of the model", ["task"], registry=self.registry)
        waiting = Gauge("imagelm_waiting_requests", "Requests that wait or are computed", registry=self.registry)
        waiting.set_function(num_waiting)
        held = Gauge("imagelm_held_bytes", "Request bodies that are held", registry=self.registry)
        held.set_function(held_bytes)
        ProcessCollector(registry=self.registry)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Counts an answer."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def count_batch(self, jobs: Sequence[Job], seconds: float) -> None:
        """Counts a batch; called in the model's thread."""
        task = type(jobs[0].request).__name__.lower()
        self.batches.labels(task).observe(sum(job.num_rows for job in jobs))
        self.compute.labels(task).inc(seconds)

    def text(self) -> bytes:
        """All figures."""
        return generate_latest(self.registry)
