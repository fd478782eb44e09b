"""What the server counts, for Prometheus."""

import time
from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server.

    Attributes
    ----------
    images : Counter
        Images predicted.
    bad_images : Counter
        Images that could not be used.
    batch : Histogram
        Images that went through the model together.
    content_type : str
        Of :meth:`text`.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.images = self._make(Counter, "sktl_images", "Images predicted")
        self.bad_images = self._make(Counter, "sktl_bad_images", "Images that could not be used")
        self.batch = self._make(Histogram, "sktl_batch_images", "Images per pass", buckets=_IMAGES)
        self._requests = self._make(Counter, "sktl_requests", "Requests", labelnames=("path", "method", "status"))
        self._seconds = self._make(
            Histogram, "sktl_request_seconds", "Seconds per request", labelnames=("path",), buckets=_SECONDS
        )

    def _make(self, kind, name: str, text: str, **options):
        return kind(name, text, registry=self.registry, **options)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Ask a function for a value whenever the metrics are read.

        Parameters
        ----------
        name, text : str
            Of the metric.
        value : callable
            Returns it.
        """
        self._make(Gauge, name, text).set_function(value)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def count(self, path: str, method: str, status: int, started: float) -> None:
        """Count a request.

        Parameters
        ----------
        path : str
            Of the route, not of the request: their number is bounded.
        method : str
            Of HTTP.
        status : int
            Of the answer.
        started : float
            By ``time.perf_counter()``.
        """
        self._requests.labels(path, method, status).inc()
        self._seconds.labels(path).observe(time.perf_counter() - started)


class Counted:
    """ASGI middleware that counts requests, and adds headers for the safety of browsers.

    Parameters
    ----------
    app : ASGI application
        What answers.
    metrics : Metrics
        Where requests are counted.
    """

    _HEADERS = (
        (b"x-content-type-options", b"nosniff"),
        (b"content-security-policy", b"default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'"),
        (b"referrer-policy", b"no-referrer"),
    )
    _METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"))

    def __init__(self, app, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_with_headers(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *self._HEADERS]}
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in self._METHODS else "other"
            self.metrics.count(path, method, status, started)
