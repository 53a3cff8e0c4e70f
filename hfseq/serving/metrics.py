"""Prometheus metrics of a server."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Metrics of one server, in a registry of their own.

    Attributes:
        requests: Requests by model, endpoint and HTTP status; 499 where the client disconnected.
        latency: Seconds from a request to the end of its response, by model and endpoint.
        waiting: Seconds that the oldest input of a batch has waited, by model.
        batches: Sizes of batches, by model.
        tokens: Tokens by model and kind, `input` or `output`.
        dropped: Records that the log of the traffic has dropped.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        by = ("model", "endpoint")
        self.requests = Counter("hfseq_requests", "Requests", (*by, "status"), registry=registry)
        self.latency = Histogram("hfseq_request_seconds", "Latency", by, registry=registry, buckets=_SECONDS)
        self.waiting = Histogram(
            "hfseq_queue_seconds", "Longest wait of a batch", ("model",), registry=registry, buckets=_SECONDS
        )
        self.batches = Histogram("hfseq_batch_size", "Batch size", ("model",), registry=registry, buckets=_SIZES)
        self.tokens = Counter("hfseq_tokens", "Tokens", ("model", "kind"), registry=registry)
        self.dropped = Gauge("hfseq_traffic_dropped", "Records dropped by the log of the traffic", registry=registry)
        self._queue = Gauge("hfseq_queue_size", "Waiting inputs", ("model",), registry=registry)

    def watch_queue(self, model: str, size: Callable[[], float]) -> None:
        """Report the number of waiting inputs of a model.

        Args:
            model: Name of the model.
            size: Function without arguments that returns the number.
        """
        self._queue.labels(model).set_function(size)

    def observe_batch(self, model: str, size: int, seconds: float) -> None:
        """Record a batch of a model and the time in seconds that its oldest input has waited."""
        self.batches.labels(model).observe(size)
        self.waiting.labels(model).observe(seconds)

    def text(self) -> bytes:
        """All metrics, in Prometheus' text format."""
        return generate_latest(self._registry)
