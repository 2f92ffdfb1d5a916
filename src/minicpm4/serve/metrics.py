"""Figures for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from minicpm4.engine.api import Load
from minicpm4.engine.metrics import Metrics as Figures

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Of one server: a registry of its own, so that several live in one process. What concerns a model has
    its name as the label ``model``."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        by_model: Any = {"labelnames": ["model"], "registry": own}
        self._answers = Counter(
            "minicpm4_http_requests", "Answers by path and status.", ["path", "status"], registry=own
        )
        self._seconds = Histogram(
            "minicpm4_http_seconds", "Seconds an answer took.", ["path"], buckets=_SECONDS, registry=own
        )
        self._gone = Counter(
            "minicpm4_clients_gone", "Clients that went before their answer was complete.", registry=own
        )
        self._prompt = Counter("minicpm4_prompt_tokens", "Tokens of prompts.", **by_model)
        self._cached = Counter("minicpm4_cached_tokens", "Of these, from the prefix cache.", **by_model)
        self._new = Counter("minicpm4_generated_tokens", "Tokens of answers.", **by_model)
        self._drafts = Counter("minicpm4_draft_tokens", "Drafts that were checked.", **by_model)
        self._accepted = Counter("minicpm4_accepted_tokens", "Of these, those that became text.", **by_model)
        self._first = Histogram(
            "minicpm4_prefill_seconds",
            "Seconds from the start of a prompt's reading to the first token.",
            buckets=_SECONDS,
            **by_model,
        )
        self._loads = Counter("minicpm4_model_loads", "How often it was loaded on demand.", **by_model)
        self._gauges = {
            name: Gauge(f"minicpm4_{name}", meaning, **by_model)
            for name, meaning in (
                ("model_loaded", "1 while it is loaded."),
                ("requests", "Requests in hand."),
                ("sequences_running", "Sequences that hold pages."),
                ("sequences_waiting", "Sequences that wait for pages."),
                ("pages_held", "Pages of the cache that sequences hold."),
                ("pages", "Pages of the cache."),
            )
        }

    def watch(
        self, model: str, load: Callable[[], Load], requests: Callable[[], int], loaded: Callable[[], bool]
    ) -> None:
        """Show a model's figures, from 0 on. ``load``: its engine's."""
        values: dict[str, Callable[[], int]] = {
            "model_loaded": lambda: int(loaded()),
            "requests": requests,
            "sequences_running": lambda: load().running,
            "sequences_waiting": lambda: load().waiting,
            "pages_held": lambda: load().pages_held,
            "pages": lambda: load().pages,
        }
        for name, value in values.items():
            self._gauges[name].labels(model).set_function(value)
        tokens = (self._prompt, self._cached, self._new, self._drafts, self._accepted)
        for counted in (*tokens, self._first, self._loads):
            counted.labels(model)

    def answered(self, path: str, status: int, seconds: float) -> None:
        self._answers.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def gone(self) -> None:
        self._gone.inc()

    def loaded(self, model: str) -> None:
        """It was loaded on demand."""
        self._loads.labels(model).inc()

    def generated(self, model: str, figures: Figures) -> None:
        """An answer is complete."""
        self._prompt.labels(model).inc(figures.prompt_tokens)
        self._cached.labels(model).inc(figures.cached_tokens)
        self._new.labels(model).inc(figures.new_tokens)
        self._drafts.labels(model).inc(figures.draft_tokens)
        self._accepted.labels(model).inc(figures.accepted_tokens)
        self._first.labels(model).observe(figures.prefill_s)

    def text(self) -> bytes:
        """What Prometheus reads."""
        return bytes(generate_latest(self._registry))
