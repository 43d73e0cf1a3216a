"""What Prometheus reads at /metrics."""

from __future__ import annotations

from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_MODEL = ("model", "version")


class HasWaiting(Protocol):
    """A queue that knows how many wait in it."""

    waiting: int


class ModelMetrics:
    """The numbers of one model."""

    def __init__(self, metrics: Metrics, name: str, version: str) -> None:
        self._requests = metrics.requests
        self._labels = (name, version)
        self._ok = metrics.requests.labels(name, version, "200")
        self._seconds = metrics.seconds.labels(name, version)
        self._run_seconds = metrics.run_seconds.labels(name, version)
        self._run_samples = metrics.run_samples.labels(name, version)
        self._waiting = metrics.waiting.labels(name, version)

    def count(self, status: int, seconds: float) -> None:
        """Count one request."""
        if status == 200:
            self._ok.inc()
        else:
            self._requests.labels(*self._labels, str(status)).inc()
        self._seconds.observe(seconds)

    def observe_run(self, samples: int, seconds: float) -> None:
        """Count one run of the model."""
        self._run_samples.observe(samples)
        self._run_seconds.observe(seconds)

    def watch(self, queue: HasWaiting) -> None:
        """Read the length of this queue whenever it is asked for."""
        self._waiting.set_function(lambda: queue.waiting)


class Metrics:
    """The numbers of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "lightship_requests",
            "Requests for inference, by the HTTP status they were answered with.",
            (*_MODEL, "status"),
            registry=registry,
        )
        self.seconds = Histogram(
            "lightship_request_seconds",
            "From the head of a request to its answer.",
            _MODEL,
            registry=registry,
            buckets=_SECONDS,
        )
        self.run_seconds = Histogram(
            "lightship_run_seconds",
            "One run: preprocessing and the model.",
            _MODEL,
            registry=registry,
            buckets=_SECONDS,
        )
        self.run_samples = Histogram(
            "lightship_run_samples",
            "Samples of one run.",
            _MODEL,
            registry=registry,
            buckets=_SAMPLES,
        )
        self.waiting = Gauge(
            "lightship_waiting_requests",
            "Requests that are accepted and not answered yet.",
            _MODEL,
            registry=registry,
        )

    def text(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self.registry)
