"""How long work tells how far it is, wherever that is the same for all: loading, reading, measuring."""

from __future__ import annotations

from collections.abc import Callable

from minicpm4.errors import ConfigError

__all__ = ["Progress", "check_progress"]

Progress = Callable[[int, int], None]
"""``progress(done, total)``, in the same unit: layers, tokens, runs."""


def check_progress(progress: object) -> None:
    """Raise ConfigError unless ``progress`` is a function, or None."""
    if progress is not None and not callable(progress):
        raise ConfigError(f"progress is a {type(progress).__name__}", "pass a function of (done, total)")
