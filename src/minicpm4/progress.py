"""How long work tells how far it is, wherever that is the same for all: loading, reading, measuring."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from minicpm4.errors import ConfigError

__all__ = ["Bar", "Progress", "check_progress", "silent"]

Progress = Callable[[int, int], None]
"""``progress(done, total)``, in the same unit: layers, tokens, runs."""


class Bar(Protocol):
    """Shows how far one part of long work is."""

    def __call__(self, what: str, unit: str, *, before: int = 0) -> AbstractContextManager[Progress | None]:
        """``what`` is done, so many of ``unit``, of which an earlier run has done ``before``."""


def silent(what: str, unit: str, *, before: int = 0) -> AbstractContextManager[Progress | None]:
    """A Bar that shows nothing."""
    return nullcontext()


def check_progress(progress: object) -> None:
    """Raise ConfigError unless ``progress`` is a function, or None."""
    if progress is not None and not callable(progress):
        raise ConfigError(f"progress is a {type(progress).__name__}", "pass a function of (done, total)")
