"""Numbers for Prometheus: of requests, counted here, and of the engine, read when asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST

# Seconds, from a token of a small model to an answer of 100k tokens.
_LATENCIES_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180, 600, 1800)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_GAUGES = {
    "num_running": "requests that have a row of the batch",
    "num_waiting": "requests in the queue",
    "num_pages": "pages of the global layers' cache",
    "num_free_pages": "pages that hold nothing",
    "num_cached_pages": "pages kept for prompts with the same beginning, and freed on demand",
}
_COUNTERS = {
    "prompt_tokens": "tokens of prompts",
    "cached_prompt_tokens": "of them, taken from earlier requests",
    "generated_tokens": "tokens generated",
    "preemptions": "requests that gave up their pages and began again",
}


class HasStats(Protocol):
    """What of the engine's service is read here."""

    def stats(self) -> object: ...


class Metrics:
    """The counters of one server; they are in no global registry."""

    def __init__(self, service: HasStats) -> None:
        registry = self.registry = CollectorRegistry()
        self.responses = Counter(
            "cwm_http_responses", "replies", ["path", "status"], registry=registry
        )
        self.open_requests = Gauge(
            "cwm_http_open_requests", "requests without a whole reply", registry=registry
        )
        self.outcomes = Counter(
            "cwm_generations",
            "admitted requests by how they ended",
            ["endpoint", "outcome"],
            registry=registry,
        )
        self.first_token_s = Histogram(
            "cwm_time_to_first_token_seconds",
            "from a request's admission to its first token",
            registry=registry,
            buckets=_LATENCIES_S,
        )
        self.token_s = Histogram(
            "cwm_time_per_output_token_seconds",
            "of a finished continuation after its first token",
            registry=registry,
            buckets=_TOKEN_S,
        )
        self.request_s = Histogram(
            "cwm_request_seconds",
            "from a request's admission to its end",
            registry=registry,
            buckets=_LATENCIES_S,
        )
        registry.register(_EngineStats(service))

    def text(self) -> bytes:
        return prometheus_client.generate_latest(self.registry)


class _EngineStats:
    """Reads the engine when Prometheus asks."""

    def __init__(self, service: HasStats) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        stats = self._service.stats()
        for name, meaning in _GAUGES.items():
            yield GaugeMetricFamily(f"cwm_engine_{name}", meaning, getattr(stats, name))
        for name, meaning in _COUNTERS.items():
            yield CounterMetricFamily(f"cwm_engine_{name}", meaning, getattr(stats, name))
