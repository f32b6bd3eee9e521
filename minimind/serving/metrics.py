"""Collects a server's Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from minimind.serving.call_record import CallRecord
from minimind.serving.served_model import ServedModel

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class ServerMetrics:
    """Counts each call when it ends; the engines' statistics are read when metrics are
    requested."""

    def __init__(self, models: Callable[[], Mapping[str, ServedModel]]) -> None:
        # A registry of its own, since a process may hold several servers, as the tests do.
        self._registry = CollectorRegistry()
        self._registry.register(_EngineGauges(models))
        self._calls = Counter(
            "minimind_http_requests",
            "Calls answered, by route and HTTP status (499: the client left)",
            ["route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "minimind_http_request_seconds",
            "From a call's arrival to the end of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first_token = Histogram(
            "minimind_first_token_seconds",
            "From a call's arrival to its first token",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def count(self, record: CallRecord, route: str, status: int, seconds: float) -> None:
        self._calls.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)
        if record.model is not None and record.first_token_s is not None:
            self._first_token.labels(record.model).observe(record.first_token_s)

    def text(self) -> bytes:
        """Gives the metrics in Prometheus's text format."""
        return generate_latest(self._registry)


class _EngineGauges:
    """Reads the statistics that each engine keeps."""

    def __init__(self, models: Callable[[], Mapping[str, ServedModel]]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        stats = {
            name: model.thread.engine.stats
            for name, model in self._models().items()
            if model.adapter is None  # which shares its engine
        }
        for kind, field, text in (
            (GaugeMetricFamily, "running", "Generations that have a cache slot"),
            (GaugeMetricFamily, "waiting", "Generations that wait for one"),
            (GaugeMetricFamily, "free_slots", "Cache slots that are free"),
            (CounterMetricFamily, "prompt_tokens", "Tokens of prompts"),
            (CounterMetricFamily, "cached_tokens", "Of these, found in the cache"),
            (CounterMetricFamily, "completion_tokens", "Tokens made"),
        ):
            family = kind(f"minimind_{field}", text, labels=["model"])
            for name, values in stats.items():
                family.add_metric([name], getattr(values, field))
            yield family
