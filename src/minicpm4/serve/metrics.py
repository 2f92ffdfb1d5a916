"""Figures for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from minicpm4.engine.api import Load
from minicpm4.engine.metrics import Metrics as Figures

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Of one server: a registry of its own, so that several live in one process. ``load``: the engine's."""

    def __init__(self, load: Callable[[], Load], requests: Callable[[], int]) -> None:
        own = self._registry = CollectorRegistry()
        self._answers = Counter(
            "minicpm4_http_requests", "Answers by path and status.", ["path", "status"], registry=own
        )
        self._seconds = Histogram(
            "minicpm4_http_seconds", "Seconds an answer took.", ["path"], buckets=_SECONDS, registry=own
        )
        self._gone = Counter(
            "minicpm4_clients_gone", "Clients that went before their answer was complete.", registry=own
        )
        self._prompt = Counter("minicpm4_prompt_tokens", "Tokens of prompts.", registry=own)
        self._cached = Counter("minicpm4_cached_tokens", "Of these, from the prefix cache.", registry=own)
        self._new = Counter("minicpm4_generated_tokens", "Tokens of answers.", registry=own)
        self._first = Histogram(
            "minicpm4_prefill_seconds",
            "Seconds from the start of a prompt's reading to the first token.",
            buckets=_SECONDS,
            registry=own,
        )
        gauges = {
            "minicpm4_requests": ("Requests in hand.", requests),
            "minicpm4_sequences_running": ("Sequences that hold pages.", lambda: load().running),
            "minicpm4_sequences_waiting": ("Sequences that wait for pages.", lambda: load().waiting),
            "minicpm4_pages_held": ("Pages of the cache that sequences hold.", lambda: load().pages_held),
            "minicpm4_pages": ("Pages of the cache.", lambda: load().pages),
        }
        for name, (meaning, value) in gauges.items():
            Gauge(name, meaning, registry=own).set_function(value)

    def answered(self, path: str, status: int, seconds: float) -> None:
        self._answers.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def gone(self) -> None:
        self._gone.inc()

    def generated(self, figures: Figures) -> None:
        """An answer is complete."""
        self._prompt.inc(figures.prompt_tokens)
        self._cached.inc(figures.cached_tokens)
        self._new.inc(figures.new_tokens)
        self._first.observe(figures.prefill_s)

    def text(self) -> bytes:
        """What Prometheus reads."""
        return bytes(generate_latest(self._registry))
