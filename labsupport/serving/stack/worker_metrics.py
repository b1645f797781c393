"""A worker's own `/metrics`: its engine's, and what became of the requests that it took from the queue."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import start_http_server
from prometheus_client.core import CounterMetricFamily, Metric

from labsupport.serving.metrics import PREFIX, Metrics
from labsupport.serving.stack.worker import Worker


def serve_metrics(worker: Worker, port: int) -> None:
    """At 127.0.0.1, in a thread."""
    metrics = Metrics(worker.backend)
    metrics.registry.register(_QueueCollector(worker))
    start_http_server(port, "127.0.0.1", metrics.registry)


class _QueueCollector:
    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def collect(self) -> Iterable[Metric]:
        counter = CounterMetricFamily(f"{PREFIX}queue_requests", "Requests of the queue, by outcome", labels=["fate"])
        for fate, count in self.worker.counts.items():
            counter.add_metric([fate], count)
        yield counter
